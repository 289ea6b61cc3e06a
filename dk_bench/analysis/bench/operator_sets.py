"""What ``dk-bench bench ops --of`` times: sets of operators, each of those that take the place of one kind
of convolution."""

from dataclasses import dataclass, field
from typing import Any

from dk_bench.analysis.bench.calls import FORWARD, HALVES, OPERANDS, TRAIN, MakeCalls, Setting, Shape, make_depthwise
from dk_bench.analysis.bench.dense_calls import DenseCalls

BATCH = {"cpu": 4, "cuda": 64}


@dataclass(frozen=True)
class OperatorSet:
    """A set's calls, the shapes and settings (by device) that they are timed in, and what records say of them."""

    make_calls: MakeCalls
    shapes: tuple[Shape, ...]
    settings: dict[str, tuple[Setting, ...]]
    about: dict[str, Any]  # sizes of its operands
    targets: dict[str, dict[str, float]] = field(default_factory=dict)  # ratios to the base at most, by operator, mode
    bounded: tuple[str, ...] = ()  # operators whose memory has a bound

    def shapes_on(self, device: str) -> list[Shape]:
        """Returns the shapes with the device's batch."""
        return [Shape(shape.channels, shape.size, BATCH[device], shape.out_channels) for shape in self.shapes]


_CUDA = tuple(Setting(d, m) for d in (*HALVES, "float32") for m in ("channels_last", "contiguous"))
_LAST = {"cpu": (Setting(),), "cuda": tuple(setting for setting in _CUDA if setting.memory_format == "channels_last")}


def _dense(make_calls: DenseCalls, shapes: tuple[Shape, ...], forward: float, train: float) -> OperatorSet:
    about = OPERANDS | {"kernel_size": make_calls.kernel_size, "scope": make_calls.scope}
    targets = {make_calls.ours[0]: {FORWARD: forward, TRAIN: train}}
    return OperatorSet(make_calls, shapes, _LAST, about, targets, make_calls.ours)


DEPTHWISE = OperatorSet(  # shapes of ResNet-50-DW
    make_depthwise,
    tuple(Shape(*shape) for shape in ((128, 56), (256, 28), (512, 14), (1024, 7))),
    {"cpu": (Setting(), Setting(memory_format="contiguous"), *map(Setting, HALVES)), "cuda": _CUDA},
    OPERANDS,
)
_RESNET50 = ((64, 56), (128, 28), (256, 14), (512, 7))  # channels and height of its 3 x 3 convolutions
OPERATOR_SETS = {
    "depthwise": DEPTHWISE,
    "dense": _dense(
        DenseCalls("dense", kernel_size=3, scope=4, unfolding=True), tuple(Shape(*each) for each in _RESNET50), 3, 3.5
    ),
    "pointwise": _dense(  # those within its residual blocks, of each stage: to fewer channels, and back
        DenseCalls("1x1", kernel_size=1, scope=2),
        tuple(
            Shape(inner, size, out_channels=outer)
            for channels, size in _RESNET50
            for inner, outer in ((4 * channels, channels), (channels, 4 * channels))
        ),
        5,
        5,
    ),
}
