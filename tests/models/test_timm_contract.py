"""What timm documents and tests of every model, for each of our tiny ones. TorchScript is refused, as documented."""

from __future__ import annotations

import fnmatch
import inspect

import pytest
import timm
import torch
from timm.models import create_feature_extractor, get_notrace_modules, group_parameters, is_notrace_module
from timm.optim import param_groups_layer_decay
from timm.utils import AttentionExtract
from torch import nn
from torch.fx.experimental.optimization import fuse
from torchvision.models import feature_extraction

from dk_bench.models import MODELS, TEST_MODELS
from dk_bench.nn import RigidStart2d, offset_parameter_names

NAMES = list(TEST_MODELS)
DEFORMED = [name for name in NAMES if not MODELS[name].spec.is_rigid]


pytestmark = pytest.mark.usefixtures("seeded")


def create(name: str, **kwargs) -> nn.Module:
    """A model in evaluation whose layers all count: offsets and routing off zero, residual branches not at zero."""
    model = timm.create_model(name, **{"num_classes": 5, "zero_init_last": False, **kwargs}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "_offset." in key or ".routing." in key:
                parameter.normal_(std=0.3 / parameter[0].numel() ** 0.5)  # of a third of a pixel, however wide
    return model


def on_meta(name: str, **kwargs) -> nn.Module:
    return timm.create_model(name, device="meta", dtype=torch.float32, **kwargs).eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_forward(name):
    """Any image size, any memory format, 16 bits, and gradient checkpointing set."""
    model = create(name)
    x = torch.randn(1, 3, 72, 40)
    out = model(x)
    assert out.shape == (1, 5) and out.isfinite().all()
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)), out, rtol=1e-4, atol=1e-5
    )
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), out, rtol=1e-4, atol=1e-5)
    model.bfloat16()
    low = model(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), out, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_backward_reaches_every_parameter(name):
    model = timm.create_model(name, num_classes=42, in_chans=1, drop_path_rate=0.2).train()
    out = model(torch.randn(2, 1, 32, 32))
    assert out.shape == (2, 42)
    out.mean().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_configuration_and_heads(name):
    model = on_meta(name)
    cfg = model.default_cfg
    state = model.state_dict()
    assert model.num_classes == cfg["num_classes"] == 1000 and model.in_chans == cfg["input_size"][0] == 3
    assert f"{cfg['classifier']}.weight" in state and f"{cfg['first_conv']}.weight" in state
    assert set(state) == {key for key, _ in (*model.named_parameters(), *model.named_buffers())}
    x = torch.empty(1, *cfg["input_size"], device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *cfg["pool_size"])
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (1, model.head_hidden_size)
    assert model.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    model.to(torch.float32)
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(x).shape == pooled.shape == on_meta(name, num_classes=0)(x).shape
    model.reset_classifier(0, "")
    assert model(x).shape == features.shape == on_meta(name, num_classes=0, global_pool="")(x).shape
    for pool, factor in (("avg", 1), ("max", 1), ("avgmax", 1), ("catavgmax", 2)):
        model.reset_classifier(7, pool)
        assert model(x).shape == (1, 7) and model.get_classifier().in_features == factor * model.num_features
    with pytest.raises(TypeError, match="no_argument_of_a_model"):
        on_meta(name, no_argument_of_a_model=1)


@pytest.mark.parametrize("name", NAMES)
def test_devices_dtypes_and_frozen_parameters(name):
    model = on_meta(name)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    model = timm.create_model(name, device="meta", dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    model.reset_classifier(0)
    model.reset_classifier(2)
    assert all(p.is_meta and p.dtype == torch.float64 for p in model.get_classifier().parameters())
    model.requires_grad_(False)
    model.reset_classifier(0)
    assert not any(p.requires_grad for p in model.parameters())
    assert inspect.signature(model.reset_classifier).parameters["global_pool"].default is None


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_parameters(name):
    """Layer decay and freezing by stages find every parameter, those of offset generators with their convolution."""
    model = on_meta(name)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {key for key, _ in model.named_parameters()} and len(set(groups.values())) > 2
        for key in offset_parameter_names(model):
            assert groups[key] == groups[f"{key.split('_offset.')[0].rpartition('.')[0]}.weight"]
    keys = [key for key, _ in model.named_parameters()]
    for pattern in getattr(model, "no_weight_decay", set)():
        assert fnmatch.filter(keys, pattern)
    decayed = param_groups_layer_decay(model, layer_decay=0.5)
    assert sum(len(group["params"]) for group in decayed) == len(keys)
    assert len({group["lr_scale"] for group in decayed}) > 2


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features(name):
    """By hooks on stages, by forward_intermediates ("getter") and by torch.fx: the same maps, of the announced size."""
    x = torch.randn(1, 3, 64, 96)
    model = create(name)
    found = []
    for how in ({}, {"feature_cls": "getter"}, {"feature_cls": "fx"}, {"output_stride": 8}):
        net = timm.create_model(name, features_only=True, zero_init_last=False, **how).eval()
        net.load_state_dict(state_as(net, model), strict=False)
        info = net.feature_info
        assert info.reduction() == [min(r, how.get("output_stride", 32)) for r in (2, 4, 8, 16, 32)]
        maps = net(x)
        sizes = [(c, 64 // r, 96 // r) for c, r in zip(info.channels(), info.reduction(), strict=True)]
        assert [tuple(m.shape[1:]) for m in maps] == sizes
        found.append(maps)
    final, intermediates = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    for maps in found[:3]:
        for one, other in zip(maps, intermediates, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def state_as(net: nn.Module, model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's state under the names that a feature extractor gives it; all that the extractor has must be there."""
    prefix = {"FeatureGetterNet": "model.", "FeatureGraphNet": "graph_module."}.get(type(net).__name__, "")
    state = {prefix + key: value for key, value in model.state_dict().items()}
    assert set(net.state_dict()) <= set(state)
    return state


@pytest.mark.parametrize("name", NAMES)
def test_intermediate_layers_can_be_pruned(name):
    model = create(name)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        taps = model.forward_intermediates(x, intermediates_only=True)
        early = model.forward_intermediates(x, indices=[2], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(early[0], taps[2])
        kept = model.prune_intermediate_layers([2])
        torch.testing.assert_close(model.forward_intermediates(x, indices=kept, intermediates_only=True)[0], taps[2])
    model.train().forward_features(x.expand(2, -1, -1, -1)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_symbolic_tracing(name):
    """timm's tracer keeps our layers whole; torchvision's and torch's own, which know nothing of them, go through."""
    model = create(name)
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    stage = model.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
    by_timm = create_feature_extractor(model, ["layer3", "fc"])
    for found in (by_timm(x), feature_extraction.create_feature_extractor(model, ["layer3", "fc"])(x)):
        torch.testing.assert_close(found["fc"], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["layer3"], stage, rtol=1e-4, atol=1e-5)
    layers = {key for key, module in model.named_modules() if isinstance(module, RigidStart2d)}
    assert {key for key, module in by_timm.named_modules() if isinstance(module, RigidStart2d)} == layers
    assert offset_parameter_names(by_timm) == offset_parameter_names(model)  # they keep their learning rate
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fuse(model)(x), expected, rtol=1e-3, atol=1e-4)
    extract = AttentionExtract(model, names=["layer*.conv2"], method="fx")
    torch.testing.assert_close(extract(x)["layer3.0.conv2"], maps_of(model, "layer3.0.conv2", x), rtol=1e-4, atol=1e-5)


def maps_of(model: nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, args, output: found.append(output))
    model(x)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_a_traced_model(name):
    model = create(name).train()
    traced = feature_extraction.create_feature_extractor(model, ["fc"])
    traced.train()(torch.randn(2, 3, 32, 32))["fc"].square().mean().backward()
    assert not [key for key, p in traced.named_parameters() if p.grad is None]
    assert set(dict(traced.named_parameters())) == set(dict(model.named_parameters()))


def test_every_layer_is_marked_for_timms_tracer():
    kinds = {type(m) for name in NAMES for m in on_meta(name).modules() if isinstance(m, RigidStart2d)}
    assert len(kinds) == 5 and kinds <= set(get_notrace_modules()) and all(map(is_notrace_module, kinds))


REFUSED = r"^(CondConv|DeformConv|(Global)?DeformKernel|DeformKernelConv)2d\(.*\) cannot be scripted: TorchScript"


@pytest.mark.parametrize("name", DEFORMED)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_torchscript_is_refused_by_a_sentence(name):
    """Also where the model is made as timm's --torchscript makes it, and traced by torch.fx first."""
    model = timm.create_model(name, scriptable=True)
    for given in (model, create_feature_extractor(model.eval(), ["fc"]), nn.Sequential(model)):
        with pytest.raises(RuntimeError, match=REFUSED):
            torch.jit.script(given)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_rigid_models_script():
    model = timm.create_model("test_resnetdw", scriptable=True).eval()
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnetdw_gdk_pw", "test_resnetdw_scc_dk", "test_resnetdw_dcn_dk"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_torchscript_takes_any_batch(name):
    model = create(name)
    traced = torch.jit.trace(model, torch.randn(2, 3, 32, 32))
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


def test_drop_path_is_drawn_for_every_image():
    model = create("test_resnetdw_gdk", drop_path_rate=0.5)
    x = torch.randn(1, 3, 32, 32).expand(16, -1, -1, -1)
    torch.testing.assert_close(model(x), model(x[:1]).expand(16, -1), rtol=1e-4, atol=1e-5)
    model.layer4[0].drop_path.train()
    out = model(x).detach()
    assert len({tuple(row.tolist()) for row in out.round(decimals=3)}) == 2  # with the last block and without
