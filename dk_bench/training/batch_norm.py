"""Batch normalisation by the statistics of all processes, so that a batch is normalised alike however it is shared."""

import functools

import timm.layers
import torch
import torch.distributed as dist
from pytorch_lightning.plugins import LayerSync
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SharedBatchNorm(LayerSync):
    """Lightning's plugin in place of its own, which drops the activations of timm's layers (MobileNet-V2 has them) and
    cannot do without GPUs. On one device Lightning leaves it out."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronises every batch normalisation of ``model``; parameters and buffers stay the same tensors."""
        if dist.get_backend() == dist.Backend.NCCL:
            return timm.layers.convert_sync_batchnorm(model)  # torch's fused layer, which takes no input on a CPU
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                module.__class__ = _synchronised(type(module))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Returns ``model`` as it is: outside a process group its layers are ordinary ones."""
        return model


@functools.cache
def _synchronised(ordinary: type[_BatchNorm]) -> type[_BatchNorm]:
    return type(f"Sync{ordinary.__name__}", (_OverProcesses, ordinary), {})


class _OverProcesses:
    """Mixed into a class of batch normalisation: normalises (N, C, ...) over N, the dimensions after C and processes,
    by plain operations, with the running statistics that torch keeps."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(input)
        output = self._normalised(input)
        return self.act(self.drop(output)) if isinstance(self, timm.layers.BatchNormAct2d) else output

    def _normalised(self, input: Tensor) -> Tensor:
        over = [dim for dim in range(input.dim()) if dim != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        wide = input.float() if input.dtype.itemsize < 4 else input
        # Detectors' images are of any size, so that a process may hold more pixels than another.
        own = wide.new_tensor([input.numel() / input.shape[1]])
        sums = all_reduce(torch.cat([wide.sum(over), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        # The mean first: a difference of large squares would lose the digits that the variance is made of.
        variance = all_reduce(centred.square().sum(over)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normed = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)
