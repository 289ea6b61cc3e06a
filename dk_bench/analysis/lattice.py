"""Where in the image the places of a layer's map lie."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

# Along y and x: where a map's first place lies, pixels of the image, and how far the next one is.
Lattice = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Step:
    """A module that gives a smaller map than it takes: along each axis the sizes, and where in the larger map the
    smaller one's first place lies."""

    sizes: tuple[tuple[int, int], tuple[int, int]]
    first: tuple[float, float]


@contextmanager
def steps_down(model: nn.Module) -> Iterator[list[Step]]:
    """Collects every convolution and pooling that runs in the block and gives a smaller map."""
    steps: list[Step] = []

    def record(module: nn.Module, args: tuple, output: Tensor) -> None:
        before, after = args[0].shape[2:], output.shape[2:]
        if len(before) == 2 and after != before:
            given = (getattr(module, name, 1) for name in ("kernel_size", "dilation", "padding"))
            reach = (value if isinstance(value, tuple) else (value, value) for value in given)
            first = tuple((k - 1) * d / 2 - p for k, d, p in zip(*reach, strict=True))
            steps.append(Step(tuple(zip(before, after, strict=True)), first))

    with ExitStack() as hooks:
        for module in model.modules():
            if hasattr(module, "stride") and not isinstance(getattr(module, "kernel_size", ""), str):
                hooks.enter_context(module.register_forward_hook(record))
        yield steps


def lattice_of(image: Sequence[int], places: Sequence[int], steps: list[Step]) -> Lattice:
    """Returns the lattice of a map of ``places`` (h, w) of an image (H, W), which came about by some of these steps.

    A 3x3 convolution with stride 2 and padding 1 puts out places 0, 2, 4, ... of what it reads, not 0.5, 2.5, ...: the
    units of a stack of them begin on the image's upper left corner. Where several modules beside each other halve a map
    (a residual block's convolution and its shortcut) the first one counts. A map whose size no chain of modules
    explains is spread over the image evenly.
    """
    y, x = (_along(axis, image[axis], places[axis], steps) for axis in (0, 1))
    return y, x


def _along(axis: int, side: int, places: int, steps: list[Step]) -> tuple[float, float]:
    first, stride, size = 0.0, 1.0, side
    while size > places:
        step = next((step for step in steps if step.sizes[axis][0] == size), None)
        if step is None:
            return (side / places - 1) / 2, side / places
        before, after = step.sizes[axis]
        first += step.first[axis] * stride
        stride *= round(before / after)
        size = after
    return first, stride
