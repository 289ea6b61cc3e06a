"""deform() of timm's families: what a spec asks for is replaced, the rest is named, and the function stays."""

from __future__ import annotations

import collections
import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from module_cases import on_meta, trained
from timm.models import create_feature_extractor
from torch import nn

from dk_bench import KernelSpec, deform
from dk_bench.models import outcomes_of
from dk_bench.models.features import flat, outer_name
from dk_bench.nn import OffsetGenerator, RigidStart2d, offset_parameter_names

pytestmark = pytest.mark.usefixtures("seeded")

DENSE, DW, PW = {"dense": "local"}, {"depthwise": "local"}, {"pointwise": "local"}
LARGER = {"kernel_size": None}  # than 1x1
EVERYWHERE = DENSE | LARGER | {"everywhere": True}
DENSE_2, DENSE_4 = (EVERYWHERE | {"kernel_size": size, "scope": size + 1} for size in (2, 4))
DENSE_5, DW_5 = (kernels | {"kernel_size": 5, "scope": 6} for kernels in (DENSE, DW))
SPREAD = DENSE | {"scope": 5, "grid": "spread"}
DENSE_DCN = DENSE | {"dense_dcn": "v1", "dense_dcn_min_stride": 16}
ONE, ONE_BLOCK = {"layers": (1, 1, 1, 1)}, {"depths": (1, 1, 1, 1)}
SMALL, GROUPED = ONE | {"channels": (8, 16, 32, 64)}, ONE | {"channels": (32, 64, 128, 256)}
DK, GDK, DCN_DK = "DeformKernel2d", "GlobalDeformKernel2d", "DeformKernelConv2d"

# Model and arguments, spec; how many of which layers there are then, and the names of all of them; how many others stay
# for their place, or as the spec asks for another "kind".
FAMILIES = [
    ("test_resnet", {}, DENSE, f"7 {DK}", r"layer[124]\.0\.conv[12]|layer3\.0\.conv2", "3 stem, 3 shortcut, 2 kind"),
    ("resnet18", SMALL, EVERYWHERE, f"9 {DK}", r"conv1|layer\d\.0\.conv\d", "4 kind"),
    ("resnet26", SMALL, DENSE_DCN, f"2 {DK}, 2 {DCN_DK}", r"layer\d\.0\.conv2", "1 stem, 8 kind, 4 shortcut"),
    ("resnext50_32x4d", GROUPED, DENSE | PW, f"12 {DK}", r"layer\d\.0\.conv\d", "1 stem, 4 shortcut"),
    ("res2net50_26w_4s", SMALL, DENSE, f"12 {DK}", r"layer\d\.0\.convs\.\d", "1 stem, 8 kind, 4 shortcut"),
    (
        "skresnet18",
        SMALL,
        DENSE,
        f"12 {DK}",
        r"layer\d\.0\.(conv1\.paths\.\d|conv2)\.conv",
        "1 stem, 8 attention, 4 shortcut",
    ),
    ("resnetv2_18", SMALL, EVERYWHERE, f"9 {DK}", r"stem\.conv|stages\.\d\.blocks\.0\.conv\d", "4 kind, 1 classifier"),
    ("regnetx_002", {}, SPREAD, f"13 {DK}", r"s\d\.b\d\.conv2\.conv", "1 stem, 26 kind, 4 shortcut"),
    (
        "regnety_002",
        {},
        {"dense": "global"},
        f"13 {GDK}",
        r"s\d\.b\d\.conv2\.conv",
        "1 stem, 26 kind, 26 attention, 4 shortcut",
    ),
    ("vgg11", {"mlp_ratio": 0.002}, DENSE, f"7 {DK}", r"features\.[1-9]\d*", "1 stem, 2 classifier"),
    ("densenet121", {"block_config": (2, 2)}, DENSE | PW, f"9 {DK}", r"features\.(dense|trans).*", "1 stem"),
    ("test_convnext", {}, EVERYWHERE | DW, f"13 {DK}", r"stem\.0|.*\.(downsample\.1|conv_dw)", ""),
    ("test_convnext2", {}, DENSE_4, f"1 {DK}", r"stem\.0", "7 kind"),
    ("convnext_atto", ONE_BLOCK, DENSE_2, f"3 {DK}", r"stages\.\d\.downsample\.1", "13 kind"),
    ("test_efficientnet", {}, DENSE | DW, f"5 {DK}", r"blocks\.\d\.0\.conv(_dw|_exp)?", "1 stem, 7 kind, 4 attention"),
    ("efficientnet_lite0", {}, DW_5, f"9 {DK}", r"blocks\.([25]\.\d|4\.\d)\.conv_dw", "1 stem, 39 kind"),
    ("tinynet_e", {}, PW, f"20 {DK}", r"blocks\.\d\.\d\.conv_pwl?|conv_head", "1 stem, 10 kind, 20 attention"),
    ("mobilenetv2_035", {}, PW, f"34 {DK}", r"blocks\.\d\.\d\.conv_pwl?|conv_head", "1 stem, 17 kind"),
    ("mobilenetv3_small_050", {}, EVERYWHERE | DW, f"12 {DK}", r"conv_stem|.*\.conv_dw", "18 attention, 23 kind"),
    (
        "mobilenetv4_conv_small_035",
        {},
        EVERYWHERE | DW,
        f"18 {DK}",
        r"conv_stem|blocks\.[01]\.0\.conv|.*\.dw_(start|mid)\.conv",
        "28 kind",
    ),
    (
        "ghostnet_050",
        {},
        DW,
        f"34 {DK}",
        r".*\.cheap_operation\.0|blocks\.[15]\.0\.conv_dw",
        "1 stem, 36 kind, 10 shortcut, 14 attention",
    ),
    (
        "lcnet_035",
        {},
        DW | {"dcn": True},
        f"3 {DK}, 3 {DCN_DK}",
        r"blocks\.([0-2]\.\d|3\.0)\.conv_dw",
        "1 stem, 21 kind, 4 attention",
    ),
    (
        "inception_next_atto",
        ONE_BLOCK,
        DW | LARGER,
        f"12 {DK}",
        r".*\.token_mixer\.dwconv_(hw|h|w)",
        "1 stem, 8 kind, 3 shortcut",
    ),
    ("inception_v3", {}, DENSE_5, f"3 {DK}", r"Mixed_5[bcd]\.branch5x5_2\.conv", "5 stem, 86 kind"),
    (
        "hrnet_w18_small",
        {"features_only": True},
        DENSE,
        f"60 {DK}",
        r"(layer1|incre_modules).*conv2|stage.*(conv[12]|layers(\.\d){4})|transition.*",
        "2 stem, 20 kind, 5 shortcut",
    ),
    ("dla46_c", {}, DENSE, f"12 {DK}", r"level\d\..*tree\d\.conv2", "3 stem, 33 kind, 1 classifier"),
    ("test_byobnet", {}, EVERYWHERE, f"6 {DK}", r"stem\.conv|.*_kxk\.conv", "8 kind, 8 attention"),
    ("cs3darknet_s", {}, DENSE, f"13 {DK}", r"stages\..*\.(conv2|conv_down)\.conv", "2 stem, 17 kind"),
    (
        "hgnetv2_b0",
        {},
        EVERYWHERE | DW,
        f"22 {DK}",
        r"stem\.stem(1|2a|2b|3)\.conv|stages.*\.(layers\.\d|conv2|downsample)\.conv",
        "21 kind",
    ),
    ("ese_vovnet19b_slim_dw", {}, DW | LARGER, f"12 {DK}", r"stages\..*\.conv_dw", "5 stem, 19 kind, 4 attention"),
    (
        "starnet_s050",
        {},
        EVERYWHERE | DW,
        f"17 {DK}",
        r"stem\.0\.conv|stages\.\d\.0\.conv|.*\.dwconv2?\.conv",
        "18 kind",
    ),
    ("edgenext_xx_small", {}, EVERYWHERE | DW, f"19 {DK}", r"stem\.0|.*\.(downsample\.1|conv_dw|convs\.\d)", "1 kind"),
    ("mobilevit_xxs", {}, EVERYWHERE | DW, f"14 {DK}", r"stem\.conv|.*(_kxk|_fusion)\.conv", "21 kind"),
    ("pvt_v2_b0", {}, EVERYWHERE, f"4 {DK}", r"patch_embed\.proj|.*\.downsample\.proj", "6 attention, 8 kind"),
]


def trained_on(x: torch.Tensor, name: str, arguments: dict) -> nn.Module:
    """A model whose statistics are of these images, so that all of its layers matter to what it puts out."""
    classes = {} if arguments.get("features_only") else {"num_classes": 5}
    model = trained(name, **classes, **arguments).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(x)
    return model.eval()


def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = model(x)
    return torch.cat([each.flatten() for each in (out if isinstance(out, list) else [out])])


def counted(words) -> dict[str, int]:
    return {word: int(count) for count, word in (each.split(" ") for each in words.split(", ") if each)}


def short(reason: str) -> str:
    """What the table above calls it."""
    words = {
        "in the stem": "stem",
        "of a shortcut": "shortcut",
        "of squeeze": "attention",
        "of the class": "classifier",
    }
    return next((word for begin, word in words.items() if reason.startswith(begin)), reason.split(" ")[0])


@pytest.mark.parametrize("name, arguments, spec, layers, names, stay", FAMILIES, ids=[row[0] for row in FAMILIES])
@torch.no_grad()
def test_what_matches_is_replaced_and_the_rest_is_named(name, arguments, spec, layers, names, stay):
    size = 96 if name.startswith("inception_v3") else 64  # it pads nothing
    x, spec = torch.randn(2, 3, size, size, dtype=torch.float64), KernelSpec(**spec)
    rigid = trained_on(x, name, arguments)
    expected = outputs(rigid, x)
    told = outcomes_of(rigid, spec)
    convs = [key for key, module in rigid.named_modules() if isinstance(module, nn.Conv2d)]
    assert [each.name for each in told] == convs
    model = deform(rigid, spec)
    assert outcomes_of(model, spec) == told
    changed = {key: type(each).__name__ for key, each in model.named_modules() if isinstance(each, RigidStart2d)}
    assert changed == {each.name: each.layer for each in told if each.layer}
    assert list(changed) == [key for key in convs if re.fullmatch(names, key)]
    assert collections.Counter(changed.values()) == counted(layers)
    reasons = collections.Counter(short(each.reason) for each in told if not each.layer)
    assert reasons == {word if word != "kind" else "no": count for word, count in counted(stay).items()}
    bound = 1e-8 * expected.abs().max()
    assert (outputs(model, x) - expected).abs().max() <= bound
    for module in model.modules():
        if isinstance(module, OffsetGenerator):
            module.bias.add_(0.4)
    assert (outputs(model, x) - expected).abs().max() > 1e4 * bound


@pytest.mark.parametrize(
    "name", "test_resnet regnety_002 vgg11 test_convnext test_efficientnet hrnet_w18_small dla46_c pvt_v2_b0".split()
)
def test_networks_of_feature_maps_change_as_the_whole_model(name):
    """timm renames modules there ("stem_0"), and leaves the head away."""
    spec, net = KernelSpec(**DENSE | DW | PW | LARGER), on_meta(name, features_only=True)
    whole = {flat(each.name): each[1:] for each in outcomes_of(on_meta(name), spec)}
    maps = {flat(each.name.removeprefix(outer_name(net))): each[1:] for each in outcomes_of(net, spec)}
    assert maps.items() <= whole.items() and len(maps) >= len(whole) - 4


DEFORMED = [("test_resnet", DENSE_DCN | PW), ("test_convnext", EVERYWHERE | DW), ("test_efficientnet", DENSE | DW | PW)]


@pytest.mark.parametrize("name, spec", DEFORMED)
def test_training_starts_where_the_rigid_model_is(name, spec):
    x, target = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    rigid = trained_on(x, name, {}).train()
    model = deform(copy.deepcopy(rigid), KernelSpec(**spec))
    expected, before = rigid(x), model(x)
    assert (before - expected).abs().max() <= 1e-8 * expected.abs().max()
    for key, value in rigid.named_buffers():
        torch.testing.assert_close(model.get_buffer(key), value, rtol=1e-8, atol=1e-8)
    slow = offset_parameter_names(model)
    layers = {key for key, module in model.named_modules() if isinstance(module, RigidStart2d)}
    assert {key.rpartition(".")[0].rpartition(".")[0] for key in slow} == layers
    optimizer = torch.optim.SGD(
        [
            {"params": [p for key, p in model.named_parameters() if key not in slow], "lr": 1e-3},
            {"params": [p for key, p in model.named_parameters() if key in slow], "lr": 1e-4},
        ]
    )
    loss = F.cross_entropy(before, target)
    loss.backward()
    assert not [key for key in slow if not model.get_parameter(key).grad.any()]
    optimizer.step()
    assert F.cross_entropy(model(x), target) < loss


@pytest.mark.parametrize("name, spec", DEFORMED)
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_copies_traces_and_scripts(name, spec):
    model = deform(trained(name, num_classes=5), KernelSpec(**spec)).eval()
    for module in model.modules():
        if isinstance(module, OffsetGenerator):
            nn.init.normal_(module.bias, std=0.3)
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    other = deform(timm.create_model(name, num_classes=5), KernelSpec(**spec)).eval()
    other.load_state_dict(model.state_dict())
    by_timm = create_feature_extractor(model, [model.pretrained_cfg["classifier"]])
    for made in (copy.deepcopy(model), other, torch.fx.symbolic_trace(model)):
        torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*by_timm(x).values(), expected, rtol=1e-4, atol=1e-5)
    assert offset_parameter_names(by_timm) == offset_parameter_names(model)
    with pytest.raises(RuntimeError, match=r"cannot be scripted: TorchScript"):
        torch.jit.script(model)
