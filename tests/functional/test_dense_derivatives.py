"""Derivatives of local deformable kernels on dense convolutions and of the unfolding, of every kind, and vmap."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from dense_cases import backward_op, dense, specified, specified_unfold, unfold
from operator_cases import lay_out
from test_gradients import away_from_knots
from torch.autograd import forward_ad, gradcheck
from torch.func import functionalize, grad, jacfwd, jvp, vmap
from transform_cases import along, check_derivative, check_every_mapping, check_gradients, same, total

from dk_bench import functional, reference

GEOMETRY = {"kernel_size": (1, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (1, 1)}
VARIANTS = pytest.mark.parametrize("variant", [("none", True), ("kernel", False), ("both", True)], ids=str)
KINDS = pytest.mark.parametrize("kind", ["dense", "unfold"])


def given(offsets: str, batch: int = 1):
    """Two taps in a scope of 2 x 3; four channels in two groups, to four outputs; float64, away from knots."""
    torch.manual_seed(0)
    shape = (batch, 4, 2, 2)
    kernel = away_from_knots(*shape, rest=0.5, reach=1) if offsets in ("kernel", "both") else None
    data = away_from_knots(*shape, rest=0, reach=2) if offsets in ("data", "both") else None
    x, weight = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((batch, 4, 2, 3), (4, 2, 2, 3)))
    return x, data, kernel, weight


def make(kind: str, variant, batch: int = 1) -> tuple:
    """The compiled operator and the reference as functions of the operands that are there, and these."""
    offsets, clip = variant
    every = given(offsets, batch)[: 4 if kind == "dense" else 3]
    there = [i for i, t in enumerate(every) if t is not None]
    settings = {**GEOMETRY, "clip": clip}

    def of(function, **more):
        def call(*tensors):
            full = [None] * len(every)
            for i, t in zip(there, tensors, strict=True):
                full[i] = t
            return function(*full, **settings, **more)

        return call

    operands = tuple(every[i].detach() for i in there)
    if kind == "unfold":
        return of(unfold, scope=(2, 3)), of(specified_unfold, scope=(2, 3)), operands
    return of(partial(dense, memory=200)), of(specified), operands


@KINDS
@VARIANTS
def test_gradcheck_of_every_mode(kind, variant):
    compiled, _, operands = make(kind, variant)
    check_gradients(compiled, operands)


@pytest.mark.parametrize("offsets", ["data", "kernel", "both"])
def test_gradcheck_of_the_reference(offsets):
    for kind in ("dense", "unfold"):
        _, plain, operands = make(kind, (offsets, True))
        assert gradcheck(plain, [t.requires_grad_() for t in operands], fast_mode=True)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradcheck_of_nine_taps(groups, clip):
    """With data offsets too, in a scope that is larger along one axis and as large as the kernel along the other."""
    torch.manual_seed(0)
    x, weight = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((1, 3, 3, 2), (3, 3 // groups, 4, 3))
    )
    data, kernel = (away_from_knots(1, 18, 3, 2, rest=0, reach=reach) for reach in (2, 1))
    with torch.no_grad():
        kernel[:, ::2] -= 0.5  # along y taps rest between samples

    def call(*operands):
        return dense(*operands, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), clip=clip, memory=0)

    assert gradcheck(call, (x, data, kernel, weight))


NESTED = {
    "jvp": lambda f, t, v: jvp(f, t, v),
    "forward over reverse": lambda f, t, v: jvp(grad(lambda *a: total(f(*a)), tuple(range(len(t)))), t, v),
    "reverse over forward": lambda f, t, v: grad(lambda *a: total(jvp(f, a, v)[1]))(*t),
    "forward over forward": lambda f, t, v: jacfwd(jacfwd(lambda *a: total(f(*a))))(*t),
}


@KINDS
@pytest.mark.parametrize("nesting", NESTED)
def test_nested_derivatives(kind, nesting):
    check_derivative(NESTED[nesting], make(kind, ("both", True)))


@KINDS
@VARIANTS
def test_vmap_over_any_operands(kind, variant):
    compiled, _, operands = make(kind, variant, batch=2)
    check_every_mapping(compiled, operands)


@pytest.mark.parametrize("mask", [(True,) * 4, (True, True, True, False), (True, False, False, True)])
def test_vmap_of_gradients(mask):
    compiled, _, operands = make("dense", ("both", True), batch=2)
    gradient = along([compiled(*operands)])[0]

    def gradients(*tensors):
        return backward_op(*tensors, *GEOMETRY.values(), True, 200, False, False, mask)

    check_every_mapping(gradients, (gradient, *operands), count=2)


def test_vmap_of_gradients_of_unfolding():
    compiled, _, operands = make("unfold", ("both", True), batch=2)
    gradient = along([compiled(*operands)])[0]
    size, *others = GEOMETRY.values()

    def gradients(*tensors):
        settings = size, (2, 3), *others, True
        return torch.ops.dk_bench.scope_unfold_backward(*tensors, *settings, False)

    check_every_mapping(gradients, (gradient, *operands), count=2)


def test_a_bound_is_of_each_call_that_is_mapped():
    """Calls with kernels of their own are joined, which takes more than one of them may."""
    x, _, kernel, weight = (t if t is None else t.detach() for t in given("kernel"))
    least = x[0, :, 0, 0].numel() * weight[0, 0].numel() * 8

    def call(weight, memory):
        return functional.dense_deform_kernel(x, kernel, weight, memory=memory, **GEOMETRY)

    weights = torch.stack([weight, 2 * weight, weight + 1])
    same(vmap(partial(call, memory=least))(weights), torch.stack([call(w, None) for w in weights]))
    with pytest.raises(RuntimeError, match=f"memory: expected at least the {least} bytes"):
        vmap(partial(call, memory=least - 1))(weights)


def test_per_sample_gradients():
    compiled, _, (*images, weight) = make("dense", ("both", True), batch=2)

    def loss(weight, *of_one):
        return total(compiled(*(t[None] for t in of_one), weight))

    every = tuple(range(1 + len(images)))
    found = vmap(grad(loss, every), (None,) + (0,) * len(images))(weight, *images)
    for i in range(2):
        same(tuple(g[i] for g in found), grad(loss, every)(weight, *(t[i] for t in images)))
    same(found[0].sum(0), grad(lambda w: total(compiled(*images, w)))(weight))


@KINDS
@pytest.mark.parametrize("layout", ["channels_last", "expanded", "transposed"])
def test_tangents_in_any_memory(kind, layout):
    compiled, plain, operands = make(kind, ("both", True), batch=2)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, lay_out(v, layout)) for t, v in zip(operands, along(operands), strict=True)]
        same(*(forward_ad.unpack_dual(f(*duals)).tangent for f in (compiled, plain)))


def test_functionalize():
    compiled, _, operands = make("dense", ("both", True))
    same(functionalize(compiled)(*operands), compiled(*operands))


@pytest.mark.parametrize("module", [reference, functional], ids=["reference", "compiled"])
def test_zero_offsets_of_a_scope_as_large_as_the_kernel_can_learn(module):
    """Every tap rests on a knot, the outer ones on the clip's bounds; slopes are those of the depthwise operator."""
    weight = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]], dtype=torch.float64)
    x = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    slopes = []
    for call, kernel in (
        (module.dense_deform_kernel, weight.expand(1, 2, 3, 3)),
        (module.local_deform_kernel, weight.expand(2, 1, 3, 3)),
    ):
        offset = torch.zeros(1, 18, 1, 1, dtype=torch.float64, requires_grad=True)
        call(x, offset, kernel, kernel_size=3).sum().backward()
        slopes.append(offset.grad)
    assert torch.equal(*slopes) and (slopes[0] != 0).all()
