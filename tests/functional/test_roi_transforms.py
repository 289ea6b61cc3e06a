"""deform_roi_pool under torch.func and dual numbers: derivatives of every kind are those of the reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from transform_cases import along, check_derivative, check_every_mapping, check_gradients, same, total

from dk_bench import reference
from dk_bench.functional import deform_roi_pool

ROIS = torch.tensor([[0, 0.3, 0.7, 4.1, 5.2], [1, 1.3, 0.2, 6.6, 3.9], [1, -3, -2, 2.2, 9.1]], dtype=torch.float64)
# offset, mask, position_sensitive, sampling_ratio
VARIANTS = pytest.mark.parametrize(
    "variant",
    [(True, True, False, 2), (False, False, False, 0), (True, False, True, 0), (False, True, False, 2)],
    ids=["both", "none", "offset", "mask"],
)
SETTINGS = {
    "output_size": [2, 1],
    "spatial_scale": 0.7,
    "sampling_ratio": 0,
    "gamma": 0.1,
    "aligned": True,
    "position_sensitive": False,
}
op, backward_op = torch.ops.dk_bench.deform_roi_pool, torch.ops.dk_bench.deform_roi_pool_backward


def make(variant):
    """The compiled operator and the reference as functions of the operands that are there, and these."""
    has_offset, has_mask, sensitive, ratio = variant
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    given = [random(2, 4, 4, 5)]
    given += [random(3, 2 if sensitive else 4, 2, 1)] if has_offset else []
    given += [random(3, 1, 2, 1)] if has_mask else []

    def of(function):
        def call(x, *others):
            others = list(others)
            offset = others.pop(0) if has_offset else None
            mask = others.pop(0) if has_mask else None
            settings = {**SETTINGS, "sampling_ratio": ratio, "position_sensitive": sensitive}
            return function(x, ROIS, offset, mask, **settings)

        return call

    return of(deform_roi_pool), of(reference.deform_roi_pool), tuple(given)


def dual(f, t, v):
    with forward_ad.dual_level():
        out = f(*(forward_ad.make_dual(a, b) for a, b in zip(t, v, strict=True)))
        return tuple(forward_ad.unpack_dual(out))


def twice(f, t, v):
    every = tuple(range(len(t)))
    return grad(lambda *a: total(grad(lambda *b: total(f(*b)), every)(*a)), every)(*t)


DERIVATIVES = {
    "jvp": jvp,
    "dual": dual,
    "jacfwd": lambda f, t, v: jacfwd(f, tuple(range(len(t))))(*t),
    "jacrev": lambda f, t, v: jacrev(f, tuple(range(len(t))))(*t),
    "forward over reverse": lambda f, t, v: jvp(grad(lambda *a: total(f(*a)), tuple(range(len(t)))), t, v),
    "forward over forward": lambda f, t, v: jvp(lambda *a: jvp(f, a, v)[1], t, v),
    "reverse over reverse": twice,
}


@VARIANTS
@pytest.mark.parametrize("kind", DERIVATIVES)
def test_derivatives(kind, variant):
    check_derivative(DERIVATIVES[kind], make(variant))


def test_hessian():
    """Forward over reverse, mapped over both, by the offset."""
    compiled, plain, (x, offset, mask) = make((True, True, False, 2))
    found, expected = (hessian(lambda o, f=f: total(f(x, o, mask)))(offset) for f in (compiled, plain))
    assert found.abs().max() > 0
    same(found, expected)


@VARIANTS
def test_gradcheck_of_every_mode(variant):
    compiled, _, given = make(variant)
    check_gradients(compiled, given)


@pytest.mark.parametrize("mask", [(True, True, True), (True, False, False), (False, True, True)])
def test_vmap_over_any_operands(mask):
    """Boxes among them: those of each call name its own images."""
    _, plain, (x, offset, factor) = make((True, True, False, 2))
    operands = [x, ROIS[:, 1:], offset, factor]

    def with_images(boxes):  # the number of an image is not what a mapping may move
        return torch.cat((ROIS[:, :1].expand(*boxes.shape[:-1], 1), boxes), -1)

    def forward(x, boxes, offset, factor):
        return op(x, with_images(boxes), offset, factor, *SETTINGS.values())

    def backward(gradient, x, boxes, offset, factor):
        settings = (*SETTINGS.values(), False, False, mask)
        return backward_op(gradient, x, with_images(boxes), offset, factor, *settings)

    check_every_mapping(forward, operands)
    check_every_mapping(backward, [along([plain(x, offset, factor)])[0], *operands])


def test_mapped_boxes_cannot_read_another_calls_images():
    x = torch.randn(2, 2, 3, 4, 5)
    for image in (2.0, -1.0):
        rois = ROIS.float().clone()
        rois[0, 0] = image
        with pytest.raises(RuntimeError, match="rois: row 0 names image"):
            vmap(lambda y, rois=rois: deform_roi_pool(y, rois, output_size=2))(x)


def test_mapped_16_bit_boxes_name_many_images():
    """float16 holds no odd number above 2048."""
    x = torch.arange(3000, dtype=torch.float16).view(3000, 1, 1, 1, 1)
    rois = torch.tensor([[0, 0, 0, 1, 1]], dtype=torch.float16)
    out = vmap(lambda y: deform_roi_pool(y, rois, output_size=1))(x)
    assert torch.equal(out.flatten(), x.flatten())


def test_what_cannot_work_says_so():
    compiled, _, given = make((True, False, False, 2))
    with pytest.raises(RuntimeError, match="deform_roi_pool: there is no derivative by rois; give rois.detach()"):
        jvp(lambda rois: deform_roi_pool(given[0], rois, output_size=2), (ROIS,), (torch.ones_like(ROIS),))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="there is no derivative by rois"):
        deform_roi_pool(given[0], forward_ad.make_dual(ROIS, ROIS), output_size=2)

    def second(rois):
        return grad(lambda x: total(grad(lambda y: total(deform_roi_pool(y, rois, output_size=2)))(x)))(given[0])

    assert second(ROIS).abs().max() > 0
    with pytest.raises(RuntimeError, match="deform_roi_pool: second derivatives cannot be mapped over rois"):
        vmap(second)(torch.stack((ROIS, ROIS)))


def test_per_sample_gradients_under_autocast():
    x = torch.randn(3, 1, 2, 5, 5)
    rois = torch.tensor([[0, 1, 1, 4, 4]], dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        mapped = vmap(grad(lambda y: total(deform_roi_pool(y, rois, output_size=2))))(x)
    expected = [grad(lambda y: total(deform_roi_pool(y, rois.float(), output_size=2)))(y) for y in x]
    same(mapped, torch.stack(expected), 1e-6)


def test_all_choices_of_gradients():
    """What is not asked for is empty, and the rest is the same."""
    _, plain, (x, offset, factor) = make((True, True, False, 2))
    gradient = along([plain(x, offset, factor)])[0]
    full = backward_op(gradient, x, ROIS, offset, factor, *SETTINGS.values(), False)
    for mask in itertools.product((True, False), repeat=3):
        part = backward_op(gradient, x, ROIS, offset, factor, *SETTINGS.values(), False, False, mask)
        for wanted, p, f in zip(mask, part, full, strict=True):
            assert torch.equal(p, f) if wanted else p.shape == (0,)
