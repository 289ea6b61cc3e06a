"""Exports as weights to start from: in ``model.checkpoint``, in a detector's backbone, and for ``pretrained=True``."""

import re
import shutil

import pytest
import timm
import torch
from trained_cases import CLASSES, changed, run_of

import dk_bench
from dk_bench.classification.timm_models import build_model
from dk_bench.config import ModelConfig
from dk_bench.errors import UserError
from dk_bench.trained.export import export

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LOCAL = {"depthwise": "local", "scope": 6}
NAMES = {"rigid": ("test_resnetdw", None), "ours": ("test_resnetdw_dk", None), "spec": ("test_resnetdw", LOCAL)}


@pytest.fixture(scope="module", params=NAMES)
def exported(request, tmp_path_factory):
    """Name and spec, the run's folder, that of the export, and the model."""
    name, spec = NAMES[request.param]
    folder = tmp_path_factory.mktemp("export")
    run = run_of(folder / "run", f"model.name={name}", f"model.spec={spec or 'null'}".replace("'", ""))
    export(run, folder / "out")
    return name, spec, run, folder / "out", dk_bench.load(run).model


@torch.no_grad()
def test_model_checkpoint_takes_an_export(exported, caplog):
    name, spec, run, out, expected = exported
    for path in (out, out / "model.safetensors", run):
        model = build_model(ModelConfig(name, spec, checkpoint=str(path)), len(CLASSES)).eval()
        torch.testing.assert_close(model(IMAGES), expected(IMAGES), rtol=0, atol=1e-6)
    other = build_model(ModelConfig(name, spec, checkpoint=str(out)), 3).eval()
    assert f"{out}: of 5 classes, so that the classifier of 3 starts anew" in caplog.text
    torch.testing.assert_close(other.forward_features(IMAGES), expected.forward_features(IMAGES), rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_export_of_the_rigid_base_is_deformed_and_one_of_another_model_refused(exported):
    name, spec, _, out, expected = exported
    for path in (out, out / "model.safetensors"):
        config = ModelConfig("test_resnetdw_dcn", checkpoint=str(path))
        if name == "test_resnetdw" and spec is None:
            found = build_model(config, len(CLASSES)).eval()(IMAGES)
            torch.testing.assert_close(found, expected(IMAGES), rtol=1e-4, atol=1e-4)
            continue
        held = f"{name} with spec {LOCAL}" if spec else name
        wanted = "expected one of test_resnetdw_dcn or of its rigid base test_resnetdw"
        expected_error = f"key 'model.checkpoint' is {str(path)!r}, an export of {held}, {wanted}"
        with pytest.raises(UserError, match=f"^{re.escape(expected_error)}$"):
            build_model(config, len(CLASSES))


def test_a_spec_whose_weights_have_the_same_shapes_is_another_model(tmp_path):
    run = run_of(tmp_path / "run", "model.name=test_resnetdw", "model.spec={depthwise: local, clip: false}")
    export(run, tmp_path / "out")
    config = ModelConfig("test_resnetdw_dk", checkpoint=str(tmp_path / "out"))
    with pytest.raises(
        UserError, match=r"an export of test_resnetdw with spec \{.*'clip': False\}, expected one of test"
    ):
        build_model(config, 5)


def test_folders_without_weights_and_damaged_ones(tmp_path):
    config = ModelConfig("test_resnetdw", checkpoint=str(tmp_path))
    with pytest.raises(UserError, match=r"holds no weights, expected last\.ckpt or model\.safetensors in it$"):
        build_model(config, 5)
    export(run_of(tmp_path / "run", "model.name=test_resnetdw"), tmp_path / "out")
    shutil.copy(tmp_path / "out" / "model.safetensors", tmp_path / "alone.safetensors")
    assert build_model(ModelConfig("test_resnetdw", checkpoint=str(tmp_path / "alone.safetensors")), 5).num_classes == 5
    config = ModelConfig("test_resnetdw", checkpoint=str(tmp_path / "out"))
    (tmp_path / "out" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not a JSON file"):
        build_model(config, 5)
    (tmp_path / "out" / "config.json").write_text("[]")  # not timm's: the weights tell what they are of
    assert build_model(config, 5).num_classes == 5
    (tmp_path / "out" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="out/model.safetensors: not a checkpoint of plain data"):
        build_model(config, 5)


def test_timms_own_exports_in_both_of_its_formats(tmp_path):
    """Also as older versions of timm wrote config.json."""
    model = timm.create_model("test_resnetdw", num_classes=5).eval()
    for safe in (True, False):
        timm.models.save_for_hf(model, tmp_path / str(safe), safe_serialization=safe)
        made = build_model(ModelConfig("test_resnetdw", checkpoint=str(tmp_path / str(safe))), 5)
        assert all(torch.equal(value, made.state_dict()[name]) for name, value in model.state_dict().items())
    changed(tmp_path / "True" / "config.json", architecture="test_resnet")
    with pytest.raises(UserError, match="an export of test_resnet, expected one of test_resnetdw"):
        build_model(ModelConfig("test_resnetdw", checkpoint=str(tmp_path / "True")), 5)


@torch.no_grad()
def test_a_detectors_backbone_takes_an_export(exported):
    from dk_bench.detection.backbone import TimmBackbone

    name, spec, run, out, expected = exported
    backbone = TimmBackbone(name, spec=spec, checkpoint=str(out)).eval()
    (last,) = expected.forward_intermediates(IMAGES, indices=1, intermediates_only=True)
    torch.testing.assert_close(backbone(IMAGES)[-1], last, rtol=0, atol=1e-6)
    if name != "test_resnetdw" or spec:
        with pytest.raises(UserError, match="an export of test_resnetdw.*, expected one of test_resnetdw_dcn"):
            TimmBackbone("test_resnetdw_dcn", checkpoint=str(out))


@torch.no_grad()
def test_pretrained_takes_an_exports_file(exported):
    """By timm's ``file`` and ``state_dict``; `test_push` has those that are fetched."""
    name, spec, _, out, expected = exported
    how = {"base": name, "spec": spec} if spec else {}
    weights = out / "model.safetensors"
    for overlay in ({"file": str(weights)}, {"state_dict": expected.state_dict()}):
        make = {"model_name": "dk_deformed" if spec else name, "pretrained": True, "pretrained_cfg_overlay": overlay}
        model = timm.create_model(**make, **how, num_classes=5).eval()
        torch.testing.assert_close(model(IMAGES), expected(IMAGES), rtol=0, atol=1e-6)
        config = ModelConfig(name, spec, pretrained=True, kwargs={"pretrained_cfg_overlay": overlay})
        torch.testing.assert_close(build_model(config, 5).eval()(IMAGES), expected(IMAGES), rtol=0, atol=1e-6)
        other = build_model(config, 3).eval()
        assert torch.equal(other.forward_features(IMAGES), expected.forward_features(IMAGES))
        assert other.pretrained_cfg["architecture"] == expected.pretrained_cfg["architecture"]


@torch.no_grad()
def test_offsets_of_a_timm_models_weights_are_not_dropped(tmp_path):
    """Names and shapes of the rigid model's own are all there beside the offsets': timm alone would take those."""
    spec = {"dense_dcn": "v2", "dense_dcn_min_stride": 8}
    run = run_of(tmp_path / "run", "model.name=test_resnet", "model.spec={dense_dcn: v2, dense_dcn_min_stride: 8}")
    export(run, tmp_path / "out")
    overlay = {"file": str(tmp_path / "out" / "model.safetensors"), "num_classes": 5}
    for classes in (5, 7):
        config = ModelConfig("test_resnet", spec, pretrained=True, kwargs={"pretrained_cfg_overlay": overlay})
        found = build_model(config, classes).eval().forward_features(IMAGES)
        torch.testing.assert_close(found, dk_bench.load(run).model.forward_features(IMAGES), rtol=0, atol=1e-6)
    other = ModelConfig("test_resnet", spec | {"dense_dcn": "v1"}, pretrained=True, kwargs=config.kwargs)
    with pytest.raises(UserError, match="'model.pretrained' is True, expected false unless .* are of another model"):
        build_model(other, 7)


def test_a_spec_that_does_not_fit_is_told_before_weights_are_read():
    overlay = {"pretrained_cfg_overlay": {"file": "nowhere.pth"}}
    config = ModelConfig("test_resnet", {"depthwise": "local"}, pretrained=True, kwargs=overlay)
    with pytest.raises(UserError, match="'model.spec' is .*, which does not fit test_resnet"):
        build_model(config, 5)
