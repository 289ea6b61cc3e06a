"""Experiment configurations: one YAML file an experiment, checked against the dataclasses of this room.

A file may name another with ``base:`` (a path relative to itself) and then holds only what differs. Values come from
the dataclass defaults, then the bases, then the file, then ``key=value`` overrides; every layer is checked by itself,
so that an error names its source, the key, the value and what is expected.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dk_bench.config.data_section import DataConfig
from dk_bench.config.loss_section import LossConfig
from dk_bench.config.model_section import ModelConfig, spec_of
from dk_bench.config.optim_section import EmaConfig, OptimConfig
from dk_bench.config.run_section import RunConfig
from dk_bench.errors import UserError, located
from dk_bench.reading.schema import Layer, merged
from dk_bench.reading.values import plain
from dk_bench.reading.yaml_words import read_words


@dataclass
class Config(RunConfig):
    """One experiment of classification."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Reads a configuration file (None: the defaults alone) with its bases and applies ``key=value`` overrides. Raises
    UserError for a file that is missing or not YAML, an unknown key, a value of the wrong type or range."""
    return _with_short_spec(merged(Config, _file_layers(Path(path)) if path is not None else [], overrides))


def config_from_dict(values: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> Config:
    """Returns the configuration `to_dict` gave, as checkpoints hold it, and overrides. Raises as load_config does."""
    return _with_short_spec(merged(Config, [(source, values)], overrides))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Returns the configuration as plain data: dicts, lists, strings, numbers."""
    return dataclasses.asdict(config)


def _file_layers(path: Path, children: tuple[Path, ...] = ()) -> list[Layer]:
    """Returns name and content of a file and its bases, the base first."""
    content = read_words(path)
    content = {} if content is None else content
    with located(path):
        if path.resolve() in children:
            raise UserError("'base' leads back to this file")
        if not isinstance(content, dict):
            raise UserError(f"expected keys and values, found {type(plain(content)).__name__}")
        base = content.pop("base", None)
        if not isinstance(base, str | None):
            raise UserError("expected the path of another configuration", key="base", value=plain(base))
    below = [] if base is None else _file_layers(path.parent / base, (*children, path.resolve()))
    return [*below, (str(path), content)]


def _with_short_spec(config: Config) -> Config:
    """Leaves in ``model.spec`` what differs from KernelSpec's defaults, so that one spec is one cell however it is
    written. Raises UserError for fields that make no KernelSpec, and for a spec that changes nothing."""
    if config.model.spec is not None:
        spec = spec_of(config.model)
        if spec.is_rigid:
            what = f"null, or one or more of {', '.join(spec.PARTS)}"
            raise UserError(f"which changes nothing; expected {what}", key="model.spec", value=config.model.spec)
        config.model.spec = spec.changed()
    return config
