"""What a step of training does for an image, operator by operator: multiply-adds, values read and written, values kept
for the backward pass. Counted on meta tensors, which takes no arithmetic and next to no memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dk_bench.functional.flops import SAMPLING_MACS

IMAGES = 2  # of the batch that is counted: batch normalisation refuses one value a channel
# Deformable operators as records of `dk-bench bench ops` call them: depthwise ones, and others of K x K or 1 x 1 taps.
LOCAL_DK, DCN, BOTH = DEPTHWISE = ("local DK", "depthwise DCN", "DK+DCN")
_FORMS = ("{} local DK", "{} DCN", "{} DK+DCN", "torchvision {} deform_conv2d")
DENSE = tuple(form.format(taps) for taps in ("dense", "1x1") for form in _FORMS)
PLAIN = "plain"  # all other operators
_depthwise_dk, _dense_dk = torch.ops.dk_bench.deform_kernel_conv, torch.ops.dk_bench.dense_deform_kernel
_torchvisions = torch.ops.torchvision.deform_conv2d


@dataclass(frozen=True)
class Operation:
    """One operator's forward call, of one image. ``kind`` is `PLAIN`, or the deformable operator that it is."""

    kind: str
    macs: float
    moved: float  # values of its operands and results, once each, and of what it unfolds in between, twice


@dataclass(frozen=True)
class Workload:
    """Holds what training does for one image of a size, and what a model holds however many images there are."""

    params: int
    trained: int  # parameters that have a gradient
    buffers: int  # values, as running statistics
    macs: float  # of convolutions and matrix products
    sampling_macs: float  # of bilinear interpolation inside deformable operators; not part of ``macs``
    saved: float  # values that the backward pass needs
    saved_bytes: float  # of what else it needs: places, masks
    operations: tuple[Operation, ...]
    note: str = ""  # what is not counted, in words


class Watcher(TorchDispatchMode):
    """Notes the operators that run inside it, and with `kept` what autograd keeps of them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.sampling_macs = 0.0
        self._storages: dict[int, Any] = {}  # by identity, which they keep while they are held
        self._saved: dict[int, tuple[int, torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet, results, operands = func._overloadpacket, _tensors(out), _tensors((args, kwargs))
        flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        if packet in SAMPLING_MACS:
            self.sampling_macs += SAMPLING_MACS[packet](*args, **kwargs, out_val=out)
        if operands and not _is_view(func, results, operands):
            moved = sum(tensor.numel() for tensor in (*operands, *results)) + _unfolded(packet, args, out)
            self.operations.append(Operation(_kind(packet, args), flops / 2, moved))
        return out

    def keep(self, tensor: Tensor) -> Tensor:
        """Notes a tensor that autograd keeps, as a hook of saved tensors."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        self._saved[storage._cdata] = storage.nbytes(), tensor.dtype
        return tensor

    def kept(self, own: set[int]) -> tuple[float, float]:
        """Returns the floating-point values that autograd keeps, but for those of storages that the model owns, and the
        bytes of all else."""
        held = [entry for key, entry in self._saved.items() if key not in own]
        values = sum(size / dtype.itemsize for size, dtype in held if dtype.is_floating_point)
        return values, sum(size for size, dtype in held if not dtype.is_floating_point)


def count_workload(model: nn.Module, call: Callable[[Tensor], Any], input_size: tuple[int, int, int]) -> Workload:
    """Counts what one image of ``input_size``, (C, H, W), takes in ``call``, which gets a batch of images and uses the
    model. The model is on the meta device and keeps its mode."""
    with Watcher() as watch, torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor):
        call(torch.empty(IMAGES, *input_size, device="meta"))
    parameters = list(model.parameters())
    values, others = watch.kept({parameter.untyped_storage()._cdata for parameter in parameters})
    return Workload(
        params=sum(parameter.numel() for parameter in parameters),
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        buffers=sum(buffer.numel() for buffer in model.buffers()),
        macs=sum(operation.macs for operation in watch.operations) / IMAGES,
        sampling_macs=watch.sampling_macs / IMAGES,
        saved=values / IMAGES,
        saved_bytes=others / IMAGES,
        operations=tuple(Operation(each.kind, each.macs / IMAGES, each.moved / IMAGES) for each in watch.operations),
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _is_view(func: Any, results: list[Tensor], operands: list[Tensor]) -> bool:
    """Tells whether an operator moves nothing: its results lie where its operands do, and it changes none of them."""
    if func._schema.is_mutable or not results:
        return False
    storages = {tensor.untyped_storage()._cdata for tensor in operands}
    return all(tensor.untyped_storage()._cdata in storages for tensor in results)


def _unfolded(packet: Any, args: Any, out: Any) -> int:
    """Returns the values that an operator writes, a piece at a time, to multiply them: 0 for all but one."""
    if packet is not _dense_dk:
        return 0
    input, _, _, weight, *_ = args
    return 2 * input.shape[1] * weight.shape[2:].numel() * (out.numel() // out.shape[1])


def _kind(packet: Any, args: Any) -> str:
    if packet is _torchvisions:
        return _FORMS[3].format(_taps(args[1].shape[2:]))
    if packet not in (_depthwise_dk, _dense_dk):
        return PLAIN
    _, data_offset, kernel_offset, _, kernel_size, *_ = args
    which = 0 if data_offset is None else 1 if kernel_offset is None else 2
    return DEPTHWISE[which] if packet is _depthwise_dk else _FORMS[which].format(_taps(kernel_size))


def _taps(kernel_size: Sequence[int]) -> str:
    return "1x1" if prod(kernel_size) == 1 else "dense"
