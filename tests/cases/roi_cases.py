"""Random cases of deform_roi_pool, and the comparison of an implementation with the reference."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from operator_cases import DTYPES, LAYOUTS, assert_close, in_compute_dtype, lay_out
from torch import Tensor

from dk_bench import functional, reference

SETTINGS = {
    "output_size": (2, 3),
    "spatial_scale": 0.5,
    "sampling_ratio": 2,
    "gamma": 0.1,
    "aligned": True,
    "position_sensitive": False,
}
BOXES = ("inside", "across", "outside", "empty", "swapped", "huge", "whole")


@dataclass(frozen=True)
class Case:
    """One call: sizes, dtypes, kinds of boxes and how each operand lies in memory."""

    seed: int
    batch: int
    out_channels: int
    groups: int
    size: tuple[int, int]
    boxes: tuple[str, ...]
    has_offset: bool
    has_mask: bool
    settings: dict
    dtype: torch.dtype
    other_dtype: torch.dtype  # of boxes, offset and mask
    layouts: tuple[str, ...]  # of input, offset, mask and the output's gradient


def random_case(seed: int) -> Case:
    """Case number ``seed``: dtypes, layouts, boxes and operands in turn, so that all are met; the rest by chance."""
    r = random.Random(seed)
    groups, dtype = r.choice((1, 1, 2, 3)), DTYPES[seed % 4]
    settings = {
        "output_size": (r.choice((1, 2, 3)), r.choice((1, 2, 3))),
        "spatial_scale": r.choice((1.0, 0.5, 0.25, 1 / 3)),
        "sampling_ratio": r.choice((0, 0, 1, 2, 3)),
        "gamma": r.choice((0.1, 0.1, 1.0)),
        "aligned": r.random() < 0.6,
        "position_sensitive": r.random() < 0.4,
    }
    return Case(
        seed=seed,
        batch=r.choice((1, 2, 3)),
        out_channels=groups * r.choice((1, 2, 5, 40)),
        groups=groups,
        size=(r.choice((1, 2, 5, 8)), r.choice((1, 3, 7, 9))),
        boxes=(BOXES[seed % len(BOXES)], *(r.choice(BOXES[:-2]) for _ in range(r.randrange(4)))),
        has_offset=seed // 4 % 4 != 0,
        has_mask=seed // 4 % 2 == 0,
        settings=settings,
        dtype=dtype,
        other_dtype=torch.float32 if dtype.itemsize == 2 and r.random() < 0.7 else dtype,
        layouts=tuple(r.choice(LAYOUTS) for _ in range(4)),
    )


def make_boxes(case: Case) -> Tensor:
    """(R, 5), float64: one box of each kind that the case names."""
    r = random.Random(case.seed)
    height, width = (size / case.settings["spatial_scale"] for size in case.size)
    rows = []
    for kind in case.boxes:
        x1, x2 = sorted((r.uniform(0, width), r.uniform(0, width)))
        y1, y2 = sorted((r.uniform(0, height), r.uniform(0, height)))
        if kind == "across":
            x1, y1, x2, y2 = x1 - width, y1 - height, x2 + width / 2, y2 + height / 2
        elif kind == "outside":
            shift = r.choice((-3, 3))
            x1, x2, y1, y2 = x1 + shift * width, x2 + shift * width, y1, y2
        elif kind == "empty":
            x2, y2 = x1, r.choice((y1, y2))
        elif kind == "swapped":
            x1, x2, y1, y2 = x2, x1, *r.choice(((y1, y2), (y2, y1)))
        elif kind == "huge":
            x1, y1, x2, y2 = -40 * width, -55 * height, 60 * width, 50 * height
        elif kind == "whole":  # samples fall on pixels and on the map's edges
            x1, y1, x2, y2 = 0, 0, round(width), round(height)
        rows.append((r.randrange(case.batch), x1, y1, x2, y2))
    return torch.tensor(rows, dtype=torch.float64)


def random_boxes(count: int, images: int, size: float, generator: torch.Generator) -> torch.Tensor:
    """Boxes with ordered corners (RoIAlign fails at others), many of them partly or wholly outside (size, size)."""
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * 2 * size - size / 2
    index = torch.randint(0, images, (count, 1), generator=generator)
    return torch.cat((index, corners.amin(1), corners.amax(1)), 1)


def make_tensors(case: Case, device: str = "cpu") -> tuple[list[Tensor | None], Tensor]:
    """Input, boxes, offset and mask (all but the boxes leaves that want a gradient), and the output's gradient.

    They are laid out on the device, since a copy from one to another makes them dense.
    """
    generator = torch.Generator().manual_seed(case.seed)
    size = case.settings["output_size"]
    bins, rois = size[0] * size[1], make_boxes(case).to(device, case.other_dtype)

    def make(shape, dtype, layout, scale=1.0):
        values = scale * torch.randn(shape, dtype=torch.float64, generator=generator)
        return lay_out(values.to(device, dtype), layout).detach().requires_grad_()

    channels = case.out_channels * (bins if case.settings["position_sensitive"] else 1)
    operands = [
        make((case.batch, channels, *case.size), case.dtype, case.layouts[0]),
        rois,
        make((len(rois), 2 * case.groups, *size), case.other_dtype, case.layouts[1]) if case.has_offset else None,
        make((len(rois), 1, *size), case.other_dtype, case.layouts[2]) if case.has_mask else None,
    ]
    grad = make((len(rois), case.out_channels, *size), case.dtype, case.layouts[3]).detach()
    return operands, grad


def forward_backward(function, operands, grad: Tensor, settings: dict) -> list[Tensor | None]:
    """The output and the gradients of input, offset and mask; None for what is None."""
    out = function(*operands, **settings)
    given = [t for t in operands if t is not None and t.requires_grad]
    gradients = iter(torch.autograd.grad(out, given, grad, allow_unused=True))
    return [out.detach(), *(None if t is None else next(gradients) for t in (operands[0], *operands[2:]))]


def check_against_reference(case: Case, function=functional.deform_roi_pool, device: str = "cpu") -> None:
    """Raises AssertionError where the implementation and the reference differ, forward or backward."""
    operands, grad = make_tensors(case, device)
    actual = forward_backward(function, operands, grad, case.settings)
    # On the CPU: CUDA divides by a number by multiplying, which moves samples off the pixels they lie on.
    plain = [in_compute_dtype(t.cpu() if t is not None else t) for t in operands]
    expected = forward_backward(reference.deform_roi_pool, plain, in_compute_dtype(grad.cpu()), case.settings)
    assert actual[0].dtype == case.dtype
    names = ("output", "gradient of input", "gradient of offset", "gradient of mask")
    for name, a, e, operand in zip(names, actual, expected, (None, operands[0], *operands[2:]), strict=True):
        if operand is None and name != "output":
            continue
        assert operand is None or a.dtype == operand.dtype, name
        assert_close(a.cpu(), torch.zeros_like(a.cpu()) if e is None else e, name)
