"""The last stage of a rigid model at twice the resolution: stride 1, dilation 2 (Dai et al., ICCV 2017, section 4)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dk_bench.models.blocks import block_convolutions
from dk_bench.models.probe import output_strides


@contextmanager
def dilated_last_stage(model: nn.Module, strides: dict[str, int]) -> Iterator[None]:
    """Dilates the last stage of a rigid model in place; an exception inside the block undoes it. ``strides`` are the
    output strides of its convolutions, as :func:`dk_bench.models.probe.output_strides` has them.

    The convolution that starts the stage, and the one of its shortcut, get the stride 1, and all of the stage's kernels
    larger than 1x1 the dilation 2, with padding that keeps the size. What a kernel reaches in the image stays the same,
    so trained weights still fit. But borders differ, and so does the first block, which read every pixel before: the
    model does not compute what it did. timm's ``feature_info`` then tells the new stride.

    Raises:
        ValueError: the stage is not made of convolutions alone that can change so (an average pool in a shortcut, a
            blur pool), or the model has no stage of stride 2.
    """
    in_blocks = [strides[name] for name, _ in block_convolutions(model) if name in strides]
    last = max(in_blocks, default=1)  # squeeze-and-excitation, outside, works on a single pixel
    stage = {name: model.get_submodule(name) for name, stride in strides.items() if stride == last}
    undo = [(conv, key, getattr(conv, key)) for conv in stage.values() for key in ("stride", "dilation", "padding")]
    kept = getattr(model, "feature_info", None) or []  # a list, which a model of features has inside of an object
    reductions = [info for info in getattr(kept, "info", kept) if info.get("reduction") == last]
    try:
        _dilate(model, stage, last)
        for info in reductions:
            info["reduction"] = last // 2
        yield
    except BaseException:
        for conv, key, value in undo:
            setattr(conv, key, value)
        for info in reductions:
            info["reduction"] = last
        raise


def _dilate(model: nn.Module, stage: dict[str, nn.Conv2d], last: int) -> None:
    hint = "create it with timm's output_stride instead, and leave dilate_last out"
    if not any(conv.stride == (2, 2) for conv in stage.values()):
        raise ValueError(f"dilate_last: {type(model).__name__} has no last stage that starts with stride 2; {hint}")
    for name, conv in stage.items():
        if conv.dilation != (1, 1) or isinstance(conv.padding, str) or conv.stride not in ((1, 1), (2, 2)):
            raise ValueError(f"dilate_last: {name} cannot be dilated: {conv}; {hint}")
        conv.stride = (1, 1)
        # Padding of half the kernel becomes that of half the dilated kernel; 1x1 kernels have neither.
        conv.dilation = tuple(2 if size > 1 else 1 for size in conv.kernel_size)
        conv.padding = tuple(pad * step for pad, step in zip(conv.padding, conv.dilation, strict=True))
    try:
        after = output_strides(model)
    except RuntimeError as error:  # branches of different sizes do not add up
        raise ValueError(f"dilate_last: {type(model).__name__} does not run dilated; {hint} ({error})") from error
    if any(after[name] != last // 2 for name in stage):
        raise ValueError(f"dilate_last: {type(model).__name__} keeps its stride {last}; {hint}")
