"""What of a trained model goes into a graph, ONNX or torch.export, for programs that have none of its code: a task says
it, `dk_bench.trained.graphs` writes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Graph:
    """A model, or as much of one as can do without Python, from images to tensors.

    Attributes:
        module: in evaluation mode; takes images (N, 3, H, W) float32 and returns a tensor or a tuple of them.
        compute: computes the same as the model does in use, for comparison.
        outputs: a name for each tensor, in order.
        size: (3, H, W) of the images that it is made and compared with; unless sizes are free, of all that it takes.
        about: what whoever runs the graph has to know, as plain data: names of classes, mean, deviation.
        multiple: where height and width are free, both are multiples of it.
        free: whether they are free if nothing is said: where evaluation has images of several sizes.
        left_out: what of the model is not in the graph, in words; empty where all of it is.
    """

    module: nn.Module
    compute: Callable[[Tensor], Tensor | Sequence[Tensor]]
    outputs: tuple[str, ...]
    size: tuple[int, int, int]
    about: Mapping[str, Any]
    multiple: int = 1
    free: bool = False
    left_out: str = ""
