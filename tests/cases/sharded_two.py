"""Started by test_sharded.py: ``dk-bench`` whose strategy fsdp also takes CPUs, which Lightning does not let it."""

import sys

import torch
from torch.distributed.fsdp import FullyShardedDataParallel

from dk_bench.cli import main
from dk_bench.training import trainer
from dk_bench.training.sharded import Sharded


class OnCpu(Sharded):
    """The same, but that torch is told where to work: it looks for a GPU otherwise."""

    def _setup_model(self, model):
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


strategy_of = trainer.strategy_of
trainer.strategy_of = lambda settings: OnCpu() if settings.strategy == "fsdp" else strategy_of(settings)
sys.exit(main(sys.argv[1:]))
