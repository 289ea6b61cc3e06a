"""deform_kernel_conv under torch.func and dual numbers: derivatives of every kind are those of the reference."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from operator_cases import lay_out
from test_gradients import operands
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from transform_cases import along, check_derivative, check_every_mapping, check_gradients, same, total

from dk_bench import functional, reference

GEOMETRY = {"kernel_size": (1, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (1, 1)}
VARIANTS = pytest.mark.parametrize(
    "variant", [("none", True), ("data", True), ("kernel", True), ("kernel", False), ("both", True)], ids=str
)
op, backward_op = torch.ops.dk_bench.deform_kernel_conv, torch.ops.dk_bench.deform_kernel_conv_backward


def make(variant) -> tuple:
    """The compiled operator and the reference as functions of the operands that are there, and these, float64."""
    offsets, clip = variant
    given = operands(offsets, (1, 2), (2, 3), size=(2, 3), out=(2, 2))
    there = [i for i, t in enumerate(given) if t is not None]

    def of(module):
        def call(*tensors):
            full = [None] * 4
            for i, t in zip(there, tensors, strict=True):
                full[i] = t
            return module.deform_kernel_conv(*full, clip=clip, **GEOMETRY)

        return call

    return of(functional), of(reference), tuple(given[i].detach() for i in there)


@VARIANTS
def test_forward_mode(variant):
    """By torch.func and by dual numbers, along all operands and along each alone, also through the operator itself."""
    compiled, plain, given = make(variant)
    directions = along(given)
    same(jvp(compiled, given, directions), jvp(plain, given, directions))
    for i, t in enumerate(given):

        def of_one(x, call, i=i):
            return call(*given[:i], x, *given[i + 1 :])

        ours, expected = (jvp(lambda x, c=c, f=of_one: f(x, c), (t,), (directions[i],)) for c in (compiled, plain))
        assert ours[1].abs().max() > 0
        same(ours, expected)
        with forward_ad.dual_level():
            dual = of_one(forward_ad.make_dual(t, directions[i]), compiled)
            same(tuple(forward_ad.unpack_dual(dual)), expected)


def dual_numbers_that_require_grad(call, given, v):
    leaves = [t.clone().requires_grad_() for t in given]
    with forward_ad.dual_level():
        out = call(*(forward_ad.make_dual(t, d) for t, d in zip(leaves, v, strict=True)))
        primal, tangent = forward_ad.unpack_dual(out)
        return [torch.autograd.grad(total(t), leaves, retain_graph=True) for t in (primal, tangent)]


def third_by_autograd(call, given, v):
    leaves = [t.clone().requires_grad_() for t in given]
    first = torch.autograd.grad(total(call(*leaves)), leaves, create_graph=True)
    second = torch.autograd.grad(total(first), leaves, create_graph=True)
    return torch.autograd.grad(total(second), leaves)


def numbers(given) -> tuple[int, ...]:
    return tuple(range(len(given)))


def third_by_grad(call, given, v):
    every = numbers(given)
    second = grad(lambda *b: total(grad(lambda *c: total(call(*c)), every)(*b)), every)
    return grad(lambda *a: total(second(*a)), every)(*given)


NESTED = {
    "jacfwd": lambda f, t, v: jacfwd(f, numbers(t))(*t),
    "jacrev": lambda f, t, v: jacrev(f, numbers(t))(*t),
    "grad": lambda f, t, v: grad(lambda *a: total(f(*a)), numbers(t))(*t),
    "hessian": lambda f, t, v: hessian(lambda *a: total(f(*a)), numbers(t))(*t),
    "forward over forward": lambda f, t, v: jacfwd(jacfwd(lambda *a: total(f(*a)), numbers(t)), numbers(t))(*t),
    "reverse over forward": lambda f, t, v: jacrev(jacfwd(lambda *a: total(f(*a)), numbers(t)), numbers(t))(*t),
    "third forward": lambda f, t, v: jvp(lambda *a: jvp(lambda *b: jvp(f, b, v)[1], a, v)[1], t, v),
    "third grad": third_by_grad,
    "third by autograd": third_by_autograd,
    "dual numbers that require grad": dual_numbers_that_require_grad,
    "vectorised hessian": lambda f, t, v: torch.autograd.functional.hessian(
        lambda *a: total(f(*a)), t, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
}


@VARIANTS
@pytest.mark.parametrize("kind", NESTED)
def test_nested_derivatives(kind, variant):
    check_derivative(NESTED[kind], make(variant))


def test_linearize():
    compiled, plain, given = make(("both", True))
    v = along(given)
    same(linearize(compiled, *given)[1](*v), jvp(plain, given, v)[1])


@VARIANTS
def test_gradcheck_of_every_mode(variant):
    compiled, _, given = make(variant)
    check_gradients(compiled, given)


def doubled(variant) -> list:
    """The operands of two images."""
    given = list(make(variant)[2])
    return [torch.cat((t, t.flip(-1))) for t in given[:-1]] + given[-1:]


@VARIANTS
def test_vmap_over_any_operands(variant):
    """Of the operator and of its gradients."""
    tensors = doubled(variant)
    check_every_mapping(make(variant)[0], tensors)
    gradient = along([make(variant)[0](*tensors)])[0]
    absent = {"none": (1, 2), "data": (2,), "kernel": (1,), "both": ()}[variant[0]]

    def gradients(mask, *given):
        full = list(given)
        for i in absent:
            full.insert(1 + i, None)
        return backward_op(*full, *GEOMETRY.values(), variant[1], False, False, mask)

    for mask in ((True,) * 4, (True, True, True, False), (True, False, False, True), (False,) * 4):
        check_every_mapping(partial(gradients, mask), [gradient, *tensors])


def test_out_dims_levels_and_chunks():
    compiled, _, given = make(("both", True))
    twice = [torch.stack([torch.stack([t + 0.1 * i + 0.01 * j for j in range(2)]) for i in range(3)]) for t in given]
    one_by_one = torch.stack([torch.stack([compiled(*(t[i, j] for t in twice)) for j in range(2)]) for i in range(3)])
    same(vmap(vmap(compiled))(*twice), one_by_one)
    same(vmap(vmap(compiled), in_dims=1, out_dims=2)(*twice), one_by_one.movedim(1, 2))
    same(vmap(compiled, chunk_size=2)(*(t[:, 0] for t in twice)), one_by_one[:, 0])
    assert vmap(compiled)(*(t[:0, 0] for t in twice)).shape == (0, *one_by_one.shape[2:])


@VARIANTS
def test_per_sample_gradients(variant):
    """vmap(grad) of a batch is grad of its images, and their sum that of the batch; the kernel is the batch's."""
    compiled, _, _ = make(variant)
    *images, weight = doubled(variant)

    def loss(weight, *of_one):
        return total(compiled(*(t[None] for t in of_one), weight))

    every = tuple(range(1 + len(images)))
    found = vmap(grad(loss, every), (None,) + (0,) * len(images))(weight, *images)
    for i in range(2):
        same(tuple(g[i] for g in found), grad(loss, every)(weight, *(t[i] for t in images)))
    same(found[0].sum(0), grad(lambda w: total(compiled(*images, w)))(weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits(dtype):
    _, _, given = make(("both", True))
    given = tuple(t.to(dtype) for t in given)
    wide = tuple(t.float() for t in given)
    v = tuple(t.to(dtype) for t in along(given))
    compiled, plain, _ = make(("both", True))
    out, tangent = jvp(compiled, given, v)
    assert out.dtype == tangent.dtype == dtype
    expected = jvp(plain, wide, tuple(t.float() for t in v))[1]
    same(tangent.float(), expected, 8 * torch.finfo(dtype).eps)


def test_autocast():
    """The rounding of autocast, once, in front of every transform; gradients in the operands' own dtypes."""
    compiled, plain, given = make(("both", True))
    given = tuple(t.float() for t in given)
    v = along(given)
    with torch.autocast("cpu", torch.bfloat16):
        expected = compiled(*given)
        out, tangent = jvp(compiled, given, v)
        mapped = vmap(compiled, (0, 0, 0, None))(*(t[None] for t in given[:-1]), given[-1])
        gradients = grad(lambda *t: total(compiled(*t).float()), (0, 1, 2, 3))(*given)
    assert out.dtype == tangent.dtype == torch.bfloat16
    assert torch.equal(out, expected) and torch.equal(mapped[0], expected)
    same(tangent.float(), jvp(plain, given, v)[1], 0.1)
    leaves = [t.clone().requires_grad_() for t in given]
    with torch.autocast("cpu", torch.bfloat16):
        loss = total(compiled(*leaves).float())
    for ours, by_autograd in zip(gradients, torch.autograd.grad(loss, leaves), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, by_autograd)


@pytest.mark.parametrize("layout", ["channels_last", "expanded", "transposed", "zeros"])
def test_tangents_and_gradients_in_any_memory(layout):
    compiled, plain, given = make(("both", True))

    def lay(t):
        return torch._efficientzerotensor(t.shape, dtype=t.dtype) if layout == "zeros" else lay_out(t, layout)

    v = [lay(t) for t in along(given)]
    if layout == "zeros":
        v[2] = along(given)[2]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(given, v, strict=True)]
        same(*(forward_ad.unpack_dual(f(*duals)).tangent for f in (compiled, plain)))
    gradient = lay(along([plain(*given)])[0])
    same(*(vjp(f, *given)[1](gradient) for f in (compiled, plain)))


def test_no_images():
    compiled, _, given = make(("both", True))
    none = tuple(t[:0] for t in given[:-1]) + given[-1:]
    out, tangent = jvp(compiled, none, along(none))
    assert out.shape == tangent.shape == (0, 2, 2, 2)
    gradients = grad(lambda *t: total(compiled(*t)), (0, 1, 2, 3))(*none)
    assert [g.shape for g in gradients] == [t.shape for t in none] and not gradients[-1].any()


def test_tensors_without_memory():
    """On the meta device, which autocast does not know."""
    compiled, _, given = make(("both", True))
    there = tuple(t.to("meta") for t in given)
    out, tangent = jvp(compiled, there, there)
    assert out.shape == tangent.shape == compiled(*given).shape and tangent.is_meta
    assert [g.shape for g in grad(lambda *t: total(compiled(*t)), (0, 1, 2, 3))(*there)] == [t.shape for t in given]
    assert vmap(compiled)(*(t[None] for t in there)).shape == (1, *out.shape)


TRACED = {
    "vmap(grad)": lambda f: vmap(grad(lambda *t: total(f(*t)), (0, 3)), (0, 0, 0, None)),
    "jvp": lambda f: lambda *t: jvp(f, t, t),
    "jvp(grad)": lambda f: lambda *t: jvp(grad(lambda x: total(f(x, *t[1:]))), t[:1], t[:1]),
}


@pytest.mark.parametrize("kind", TRACED)
def test_compiles_under_transforms(kind):
    compiled, plain, given = make(("both", True))
    function = TRACED[kind](compiled)
    if kind == "vmap(grad)":
        given = (*(torch.stack((t, t + 0.1)) for t in given[:-1]), given[-1])
    same(torch.compile(function, backend="aot_eager", fullgraph=True)(*given), TRACED[kind](plain)(*given))


def test_dual_numbers_compile():
    """torch.compile enters their level without telling forward_ad."""
    compiled, plain, given = make(("both", True))

    def tangent(call, *tensors):
        with forward_ad.dual_level():
            out = call(forward_ad.make_dual(tensors[0], tensors[0]), *tensors[1:])
            return forward_ad.unpack_dual(out).tangent

    ours = torch.compile(lambda *t: tangent(compiled, *t), backend="aot_eager", fullgraph=True)
    same(ours(*given), tangent(plain, *given))


@pytest.mark.parametrize(("kind", "mode"), [("jvp", "real"), ("grad", "real"), ("grad", "symbolic")])
def test_make_fx(kind, mode):
    compiled, plain, given = make(("both", True))
    function, expected = (
        TRACED["jvp"](call) if kind == "jvp" else grad(lambda *t, call=call: total(call(*t)), (0, 1, 2, 3))
        for call in (compiled, plain)
    )
    graph = make_fx(function, tracing_mode=mode)(*given)
    assert "dk_bench.deform_kernel_conv" in graph.code
    same(graph(*given), expected(*given))


def test_functionalize():
    compiled, _, given = make(("both", True))
    same(functionalize(compiled)(*given), compiled(*given))
    scalar = grad(lambda *t: total(functionalize(compiled)(*t)))
    same(scalar(*given), grad(lambda *t: total(compiled(*t)))(*given))
    with pytest.raises(RuntimeError, match="deform_kernel_conv: torch.func.functionalize goes inside"):
        functionalize(grad(lambda *t: total(compiled(*t))))(*given)


def test_gradient_of_a_function_that_outlives_its_level():
    compiled, plain, given = make(("both", True))
    found = []
    for call in (compiled, plain):
        _, pull = vjp(call, *given)
        gradient = along([call(*given)])[0].requires_grad_()
        first = pull(gradient)
        found.append((first, torch.autograd.grad(total(first), gradient)))
    same(*found)


def test_checkpoint():
    compiled, plain, given = make(("both", True))
    leaves = [t.clone().requires_grad_() for t in given]
    for reentrant in (False, True):
        out = checkpoint(compiled, *leaves, use_reentrant=reentrant)
        same(
            torch.autograd.grad(total(out), leaves) if not reentrant else out,
            torch.autograd.grad(total(plain(*leaves)), leaves) if not reentrant else plain(*leaves),
        )


def test_bad_dtype_is_named_under_transforms():
    weight, geometry = torch.ones(2, 1, 3, 3), ([3, 3], [1, 1], [1, 1], [1, 1], True)
    for dtype in (torch.complex64, torch.int64):
        x = torch.ones(1, 2, 5, 5, dtype=dtype)
        with pytest.raises(RuntimeError, match="input: expected a floating dtype"):
            jvp(lambda w, x=x: op(x, None, None, w, *geometry), (weight,), (weight,))
        with pytest.raises(RuntimeError, match="input: expected a floating dtype"):
            vmap(lambda y: op(y, None, None, weight, *geometry))(x[None])


def test_global_kernels():
    """sample_kernel is plain PyTorch."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 2, 4, 3, dtype=torch.float64, generator=generator)
    offset = 0.2 + 0.5 * torch.rand(2, 8, dtype=torch.float64, generator=generator)

    def call(w, o):
        return functional.sample_kernel(w, o, kernel_size=2)

    check_gradients(call, (weight, offset))
    per_sample = vmap(grad(lambda o: total(call(weight, o[None]))))(offset)
    same(per_sample, grad(lambda o: total(call(weight, o)))(offset))
    assert hessian(lambda o: total(call(weight, o)))(offset).abs().max() > 0
