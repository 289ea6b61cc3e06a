"""What the tests of layers and those of whole models share."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from dk_bench.nn import OffsetGenerator


def on_meta(name: str, **kwargs) -> nn.Module:
    """Makes a timm model of shapes alone."""
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def trained(name: str, **kwargs) -> nn.Module:
    """A timm model whose every branch matters: normalisation and layer scale as after training, not as at the start."""
    model = timm.create_model(name, **kwargs).eval()
    for module in model.modules():
        for key, low, high in (("running_var", 0.5, 1.5), ("running_mean", -0.1, 0.1)):
            if getattr(module, key, None) is not None:
                getattr(module, key).uniform_(low, high)
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1 and not key.endswith("bias"):
            nn.init.uniform_(parameter, 0.5, 1.0)
    return model


def randomise(module: nn.Module, scale: float = 0.3, kinds: tuple = (OffsetGenerator, nn.Linear)) -> nn.Module:
    """Gives the zero-initialised parts random values, so that the module is no longer rigid."""
    for part in module.modules():
        if isinstance(part, kinds):
            nn.init.normal_(part.weight, std=scale)
            nn.init.normal_(part.bias, std=scale)
    return module


def check_dtypes(mode: str, module: nn.Module, x: Tensor) -> None:
    """Computes under autocast to bfloat16, or in a dtype, which the output then has; backward too, and all close."""
    expected = module(x)
    if mode == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = module(x)
    else:
        dtype = getattr(torch, mode)
        out = module.to(dtype)(x.to(dtype))
        assert out.dtype == dtype
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    tolerance = 1e-5 if mode == "float64" else 0.05
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
