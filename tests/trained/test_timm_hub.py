"""Exports in timm's hub layout: made again by timm, to the same outputs and the same pixels."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from trained_cases import CLASSES, run_of

import dk_bench
from dk_bench.errors import UserError
from dk_bench.trained import timm_hub
from dk_bench.trained.export import export

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SPEC = "model.spec={{{}}}"
MODELS = {
    "one of ours": ("model.name=test_resnetdw_gdk_pw",),
    "ResNet": ("model.name=test_resnet", SPEC.format("dense_dcn: v2, dense_dcn_min_stride: 8")),
    "MobileNet": ("model.name=mobilenetv3_small_050", SPEC.format("depthwise: local, scope: 5")),
    "ConvNeXt": ("model.name=test_convnext", SPEC.format("depthwise: global, kernel_size: 7, scope: 8")),
    "other arguments": (
        "model.name=test_resnetdw",
        SPEC.format("depthwise: local, grid: spread"),
        "model.kwargs={output_stride: 16, act_layer: silu}",
        "model.drop_path_rate=0.1",
    ),
    "rigid": ("model.name=test_vit", "model.kwargs={img_size: 32}", "data.size=32"),
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """What was trained, and the folder of its export."""
    folder = tmp_path_factory.mktemp("export")
    run = run_of(folder / "run", *MODELS[request.param])
    export(run, folder / "out")
    return dk_bench.load(run), folder / "out"


def made(folder, **more):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **more).eval()


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_timm_makes_the_same_model(exported):
    trained, folder = exported
    model = made(folder)
    assert_equal(model(IMAGES), trained.model(IMAGES))
    assert model.num_classes == len(CLASSES)
    again = dk_bench.load(folder)
    assert_equal(again.model(IMAGES), trained.model(IMAGES))
    assert again.classes == trained.classes == tuple(CLASSES)


@torch.no_grad()
def test_another_number_of_classes_and_of_channels(exported):
    """All but stem and classifier stays; a stem of one channel sums, as timm does it, what three gave."""
    trained, folder = exported
    features = trained.model.forward_features(IMAGES)
    for classes in (0, 3):
        other = made(folder, num_classes=classes)
        assert_equal(other.forward_features(IMAGES), features)
        assert other.num_classes == classes and other(IMAGES).shape == (2, classes or other.head_hidden_size)
    grey = IMAGES[:, :1]
    expected = trained.model(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(made(folder, in_chans=1)(grey), expected, rtol=1e-4, atol=1e-5)
    four = made(folder, in_chans=4, num_classes=2)
    stem = f"{four.pretrained_cfg['first_conv']}.weight"
    held, found = trained.model.state_dict()[stem], four.state_dict()[stem]
    torch.testing.assert_close(found, held[:, [0, 1, 2, 0]] * 0.75)  # as timm repeats colours


@torch.no_grad()
def test_features(exported):
    trained, folder = exported
    net = made(folder, features_only=True, out_indices=(-1,))
    expected = trained.model.forward_intermediates(IMAGES, indices=1, norm=False, intermediates_only=True)
    assert_equal(net(IMAGES)[-1], expected[-1])
    assert (
        made(folder, features_only=True, out_indices=(-1,), in_chans=1)(IMAGES[:, :1])[-1].shape == expected[-1].shape
    )


def test_a_name_that_says_what_it_is(exported):
    trained, folder = exported
    content = json.loads((folder / "config.json").read_text())
    assert content["architecture"] == trained.model.pretrained_cfg["architecture"]
    assert content["label_names"] == CLASSES and content["num_classes"] == len(CLASSES)
    if content["architecture"] == "dk_deformed":
        assert content["model_args"]["base"] == trained.record.model["name"]
        assert content["model_args"]["spec"] == trained.record.model["spec"]


@pytest.mark.parametrize("size", [(50, 37), (32, 35), (35, 200), (90, 91)])
def test_timms_transform_gives_the_runs_pixels(size, tmp_path):
    """Up to single grey levels, where torch and Pillow round a resize's weights otherwise."""
    for crop in ("0.875", "1"):
        run = run_of(tmp_path / crop, "model.name=test_resnetdw", f"data.crop_pct={crop}")
        export(run, tmp_path / f"out{crop}")
        settings = resolve_data_config(model=made(tmp_path / f"out{crop}"))
        assert settings == resolve_data_config(model=made(tmp_path / f"out{crop}"), use_test_size=True)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        found, expected = create_transform(**settings)(image), dk_bench.load(run).transform(image)
        levels = (found - expected).mul(torch.tensor([0.2, 0.3, 0.25])[:, None, None]).mul(255).abs()
        assert found.shape == expected.shape == (3, 32, 32)
        assert levels.max() < 1.01 and (levels > 0.01).float().mean() < 0.05


def test_advice_of_timms_authors_for_other_pixels_is_left_out(tmp_path):
    trained = dk_bench.load(run_of(tmp_path / "run", "model.name=test_efficientnet"))
    trained.model.pretrained_cfg |= {"test_input_size": (3, 320, 320), "test_crop_pct": 1.0, "license": "cc-by-nc-4.0"}
    timm_hub.write(trained, tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert not any(held.get(key) for key in timm_hub.OTHERS)
    assert resolve_data_config(pretrained_cfg=held, use_test_size=True)["input_size"] == [3, 32, 32]


def test_what_timm_cannot_make_again_is_refused(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", "model.name=test_resnetdw_dk")
    trained = dk_bench.load(run)
    monkeypatch.setattr(trained.model, "forward", lambda images: images.new_ones(2, 5))
    with pytest.raises(
        UserError, match=r"^--format timm: timm makes another model of the weights: its outputs are off"
    ):
        timm_hub.write(trained, tmp_path)
    other = dk_bench.load(run)
    other.model.pretrained_cfg = None
    with pytest.raises(UserError, match=r"^--format timm: a ResNet is no model of timm's; expected a classifier$"):
        timm_hub.write(other, tmp_path)
