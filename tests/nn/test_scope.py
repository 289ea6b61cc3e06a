"""A rigid kernel in a scope: sampled where its taps start it comes back, for every S >= K."""

from __future__ import annotations

import pytest
import torch

from dk_bench.nn import to_scope
from dk_bench.nn.scope import grid_offset
from dk_bench.reference import sample_kernel, tap_weights

SIZES = [(k, s) for k in (1, 2, 3, 5, 7) for s in range(k, 10)]


@pytest.mark.parametrize("grid", ["centred", "spread"])
@pytest.mark.parametrize("kernel_size, scope", SIZES)
def test_the_kernel_comes_back_where_the_taps_start(kernel_size, scope, grid):
    torch.manual_seed(0)
    kernel = torch.randn(3, 2, kernel_size, kernel_size, dtype=torch.float64)
    weight = to_scope(kernel, (scope, scope), grid)
    start = grid_offset((kernel_size, kernel_size), (scope, scope), grid)[None]
    assert grid == "spread" or not start.any()
    torch.testing.assert_close(sample_kernel(weight, start, kernel_size=kernel_size)[0], kernel)


def test_spread_grid_reaches_the_edges_of_the_scope():
    """K = (3, 1) in S = (4, 5): along y from 0.5, 1.5, 2.5 to 0, 1.5, 3; the one tap along x stays in the middle."""
    assert grid_offset((3, 1), (4, 5), "spread").tolist() == [-0.5, 0, 0, 0, 0.5, 0]
    rest = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
    dy, dx = grid_offset((3, 3), (4, 4), "spread").view(3, 3, 2).unbind(-1)
    torch.testing.assert_close(rest[:, None] + dy, torch.tensor([[0.0], [1.5], [3.0]]).double().expand(3, 3))
    torch.testing.assert_close(rest + dx, torch.tensor([0.0, 1.5, 3.0]).double().expand(3, 3))


@pytest.mark.parametrize(
    "scope, grid, low, mean, high",
    [
        (3, "centred", 1, 1, 1),
        (4, "centred", 0.021447, 0.25, 0.728553),
        (4, "spread", 0.25, 0.694444, 1),
        (5, "centred", 1, 1, 1),
        (5, "spread", 1, 1, 1),
        (9, "centred", 1, 1, 1),
        (9, "spread", 1, 1, 1),
    ],
)
def test_how_fast_the_kernel_that_taps_read_learns(scope, grid, low, mean, high):
    """Beside a rigid one, by the eigenvalues of A A^T: what docs/mathematics.md says under "Where taps start"."""
    start = grid_offset((3, 3), (scope, scope), grid)[None]
    sampling = tap_weights(start, (3, 3), (scope, scope), clip=True)[0]
    rates = torch.linalg.eigvalsh(sampling @ sampling.T)
    found = [rates.min().item(), rates.mean().item(), rates.max().item()]
    assert found == pytest.approx([low, mean, high], abs=1e-6)


def test_unknown_grid():
    with pytest.raises(ValueError, match=r"grid: expected one of \('centred', 'spread'\), got 'wide'"):
        to_scope(torch.randn(1, 1, 3, 3), (4, 4), "wide")


def test_axes_are_independent():
    torch.manual_seed(0)
    kernel = torch.randn(3, 1, 2, 3, dtype=torch.float64)
    weight = to_scope(kernel, (3, 7))
    assert weight.shape == (3, 1, 3, 7)
    torch.testing.assert_close(sample_kernel(weight, kernel.new_zeros(1, 12), kernel_size=(2, 3))[0], kernel)


def test_norm_is_the_least():
    """Orthogonal to everything that sampling at rest cannot see."""
    torch.manual_seed(0)
    weight = to_scope(torch.randn(5, 1, 3, 3, dtype=torch.float64), (4, 4)).flatten(1)
    sampling = tap_weights(torch.zeros(1, 18, dtype=torch.float64), (3, 3), (4, 4), clip=True)[0]
    null_space = torch.linalg.svd(sampling).Vh[9:]
    assert (weight @ null_space.T).abs().max() < 1e-10
    assert weight.abs().max() > 0.1


def test_same_size_is_the_kernel_itself():
    kernel = torch.randn(3, 1, 3, 3)
    torch.testing.assert_close(to_scope(kernel, (3, 3)), kernel)


def test_dtype_is_kept():
    assert to_scope(torch.randn(3, 1, 3, 3).bfloat16(), (4, 4)).dtype == torch.bfloat16


def test_scope_smaller_than_the_kernel():
    with pytest.raises(ValueError, match=r"scope: expected at least the kernel's size \(3, 3\), got \(4, 2\)"):
        to_scope(torch.randn(1, 1, 3, 3), (4, 2))
