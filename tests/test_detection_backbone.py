"""Any timm model as mmdet's backbone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from mmdet.registry import MODELS

from dk_bench.nn import offset_parameter_names


def build(name, **settings):
    return MODELS.build(dict(type="dk_bench.TimmBackbone", model_name=name, **settings))


@pytest.mark.parametrize("name", ["test_resnetdw", "test_resnetdw_dk", "test_resnetdw_dcn_dk", "mobilenetv2_100_dk"])
def test_features(name):
    """Strides 4 to 32, and a gradient for every parameter that leads to a feature."""
    backbone = build(name, out_indices=(1, 2, 3, 4), norm_eval=False).train()
    features = backbone(torch.randn(1, 3, 64, 64))
    assert [f.shape[-1] for f in features] == [16, 8, 4, 2]
    assert [f.shape[1] for f in features] == list(backbone.out_channels)
    sum(f.square().mean() for f in features).backward()
    offsets = offset_parameter_names(backbone)
    assert bool(offsets) == ("dk" in name or "dcn" in name)
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_frozen_stages_and_norm_eval():
    backbone = build("test_resnetdw", out_indices=(1, 2, 3, 4), frozen_stages=1, norm_eval=True).train()
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen and any("layer1" in name for name in frozen) and not any("layer2" in name for name in frozen)
    assert not any(m.training for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_scope_is_found_without_importing_the_package():
    code = (
        "from mmdet.registry import MODELS\n"
        "b = MODELS.build(dict(type='dk_bench.TimmBackbone', model_name='test_resnetdw_dk'))\n"
        "print(type(b).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("dk_bench.detection.backbone")
