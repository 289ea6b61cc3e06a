"""What a configuration holds, a file a section, and how it is read. Begin with experiment.py."""

from dk_bench.config.data_section import AugmentConfig, DataConfig, ProceduralConfig, ShiftsConfig, SyntheticConfig
from dk_bench.config.experiment import Config, config_from_dict, load_config, to_dict
from dk_bench.config.loss_section import LossConfig
from dk_bench.config.model_section import ModelConfig, spec_of
from dk_bench.config.optim_section import EmaConfig, OptimConfig
from dk_bench.config.run_section import RunConfig, WandbConfig
from dk_bench.config.trainer_section import TrainerConfig

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EmaConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "ProceduralConfig",
    "RunConfig",
    "ShiftsConfig",
    "SyntheticConfig",
    "TrainerConfig",
    "WandbConfig",
    "config_from_dict",
    "load_config",
    "spec_of",
    "to_dict",
]
