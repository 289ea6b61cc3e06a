"""Parameters and multiply-adds of a model, counted operator by operator.

Conventions:

- Multiply-adds of convolutions and matrix products are counted, with torch.utils.flop_counter's formulas and ours
  (:mod:`dk_bench.functional.flops`); element-wise operations, reductions, pooling, normalisation and data movement are
  not, as is usual. Biases are not.
- Bilinear interpolation inside deformable operators is reported apart, in ``sampling_macs``.
- A global DK samples its kernel by a matrix product over the whole scope, and a conditional convolution mixes its
  experts by one; those run as matrix products, and count as such in ``macs``.
- Counts are of one image, in evaluation mode.

Where the counts differ from the paper's FLOPs column, the notes of tables 1 and 2 say so
(:mod:`dk_bench.tables.classification`); nothing here is bent to close a gap.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dk_bench.functional.flops import SAMPLING_MACS
from dk_bench.models.probe import run_meta


@dataclass(frozen=True)
class Cost:
    """Holds what one image costs."""

    params: int
    macs: int  # of convolutions and matrix products
    sampling_macs: int  # of bilinear interpolation inside deformable operators; not part of `macs`


def count_cost(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> Cost:
    """Counts a model's parameters and the multiply-adds of its forward pass on one image of ``input_size``, (C, H, W).

    Runs on meta tensors: takes no arithmetic and next to no memory, and leaves the model, on any device, as it was.

    Raises:
        NotImplementedError: the model runs an operator that may do arithmetic and has no formula; the message names
            it. Register one with ``torch.utils.flop_counter.register_flop_formula``.
    """
    with _Counter() as counter:
        run_meta(model, input_size)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params, counter.flops // 2, counter.sampling_macs)


# Operators of aten that count zero and that no tag or schema tells apart from a matrix product.
_UNCOUNTED = frozenset(
    # creation and conversion
    "arange empty empty_like empty_strided full full_like new_empty new_full new_ones new_zeros ones ones_like "
    "scalar_tensor zeros zeros_like eye linspace lift_fresh_copy _to_copy _local_scalar_dense promote_types "
    # data movement
    "_reshape_copy _unsafe_view cat stack constant_pad_nd reflection_pad2d replication_pad2d copy flip gather index "
    "index_select masked_fill pixel_shuffle pixel_unshuffle repeat roll scatter slice_scatter select_scatter tril triu "
    "channel_shuffle unfold_copy "
    # pooling and interpolation of whole maps
    "avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices "
    "upsample_bilinear2d upsample_nearest2d upsample_bicubic2d "
    # normalisation
    "_native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm native_batch_norm "
    "native_group_norm native_layer_norm _fused_rms_norm "
    # element-wise in all but the tag, softmax, reductions, sorting
    "hardswish hardtanh hardswish_ hardtanh_ glu prelu _softmax _safe_softmax _log_softmax bernoulli native_dropout "
    "cumsum topk sort max min var_mean std_mean linalg_vector_norm".split()
)


class _Counter(TorchDispatchMode):
    """Sums formulas over the operators that run, and refuses one that it cannot judge."""

    flops = sampling_macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        elif not _counts_zero(func):
            raise NotImplementedError(
                f"{func}: no formula for its multiply-adds; register one with "
                "torch.utils.flop_counter.register_flop_formula"
            )
        if packet in SAMPLING_MACS:
            self.sampling_macs += SAMPLING_MACS[packet](*args, **kwargs, out_val=out)
        return out


def _counts_zero(func: torch._ops.OpOverload) -> bool:
    """Tells whether an operator without a formula is element-wise, a reduction, a view, or listed above."""
    if func.namespace not in ("aten", "prim"):
        return False
    if func.namespace == "prim" or {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.inplace_view} & set(func.tags):
        return True
    aliases = [result.alias_info for result in func._schema.returns]
    is_view = bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)
    return is_view or func._overloadpacket.__name__ in _UNCOUNTED
