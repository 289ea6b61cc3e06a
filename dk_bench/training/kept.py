"""What optimisers keep of the weights, counted on a small network without memory."""

import functools
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Of convolutions over all channels and over each, of biases, of a classifier.
SHAPES = ((64, 32, 1, 1), (32, 1, 3, 3), (64,), (10, 64))


class _Ones(TorchDispatchMode):
    """Has every number that is asked of a tensor without memory be one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0
        return func(*args, **(kwargs or {}))


@functools.cache
def copies_by_step(optimizer: str, device: str = "meta") -> float:
    """Returns how many times the weights' bytes an optimiser of timm keeps after its first step, but for counters."""
    weights = [torch.nn.Parameter(torch.full(shape, 0.1, device=device)) for shape in SHAPES]
    made = create_optimizer_v2(weights, opt=optimizer, lr=1e-3, momentum=0.9)
    with _Ones():
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        made.step()
    kept = [leaf for weight in weights for leaf in tree_leaves(made.state[weight]) if isinstance(leaf, torch.Tensor)]
    return sum(leaf.nbytes for leaf in kept if leaf.dim()) / sum(weight.nbytes for weight in weights)
