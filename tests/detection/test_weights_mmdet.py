"""Weights that mmengine loads into a detector: all of the backbone's, or a sentence; files that its runner wrote."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

from mmdet.apis import init_detector
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from dk_bench.classification.timm_models import load_model
from dk_bench.detection.backbone import TimmBackbone
from dk_bench.detection.mmengine_config import load_detection_config, use_scope
from dk_bench.detection.module import build_detector, load_start
from dk_bench.errors import UserError
from dk_bench.training.weights import read_plain, weights_in

FILE = Path(__file__).parents[2] / "configs" / "det" / "tiny_procedural.py"
IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def configuration(name):
    config = load_detection_config(FILE, [f"model.backbone.model_name={name}"])
    use_scope(config.cfg)
    return config.cfg


@pytest.fixture(scope="module")
def rigid(tmp_path_factory):
    """A detector of the rigid base, and the file with its weights."""
    torch.manual_seed(0)
    model = build_detector(configuration("test_resnetdw")).eval()
    path = tmp_path_factory.mktemp("rigid") / "rigid.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": ("a",)}}}, path)
    return model, str(path)


@pytest.fixture
def classifiers(tmp_path):
    torch.save({"state_dict": timm.create_model("test_resnetdw", num_classes=3).state_dict()}, tmp_path / "last.ckpt")
    return str(tmp_path / "last.ckpt")


def test_weights_of_a_classification_run_are_refused(classifiers):
    """mmengine prints that nothing matches, and goes on with random weights."""
    with pytest.raises(UserError, match=r"^TimmBackbone: the weights that are loaded have 0 of the \d+ tensors of"):
        init_detector(configuration("test_resnetdw"), classifiers, device="cpu")
    backbone = TimmBackbone("test_resnetdw", init_cfg={"type": "Pretrained", "checkpoint": classifiers})
    with pytest.raises(UserError, match="argument 'checkpoint' takes those of a classification run"):
        backbone.init_weights()
    taken = TimmBackbone("test_resnetdw", checkpoint=classifiers, norm_eval=False)
    held = torch.load(classifiers, weights_only=True)["state_dict"]
    assert all(torch.equal(value, held[name]) for name, value in taken.net.state_dict().items())


def test_weights_that_are_there_in_part_are_refused(rigid, tmp_path):
    model, path = rigid
    for change, message in (
        (lambda held: held.pop("backbone.net.layer2.0.conv2.weight"), r"not backbone\.net\.layer2\.0\.conv2\.weight\)"),
        (lambda held: held.update({"backbone.net.bn1.bias": torch.zeros(3)}), r"not backbone\.net\.bn1\.bias\)"),
    ):
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint["state_dict"])
        torch.save(checkpoint, tmp_path / "part.pth")
        for load in (load_checkpoint, load_start):
            with pytest.raises(UserError, match=message):
                load(build_detector(configuration("test_resnetdw")), str(tmp_path / "part.pth"))
    held = {name: value for name, value in model.state_dict().items() if "num_batches_tracked" not in name}
    torch.save({"state_dict": held}, tmp_path / "old.pth")  # of before normalisation counted its batches
    load_checkpoint(build_detector(configuration("test_resnetdw")), str(tmp_path / "old.pth"))


def test_a_checkpoint_of_before_is_refused_and_converted(rigid, tmp_path):
    """By mmdet, which knows nothing of Lightning's names; docs/trained.md says how it is converted."""
    names = {f"model.{name}": value for name, value in rigid[0].state_dict().items()}
    held = {"config": {}, "classes": ["a"]}
    torch.save({"hyper_parameters": held, "state_dict": names, "task": "detection"}, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match=r"have 0 of the \d+ tensors of test_resnetdw"):
        load_checkpoint(build_detector(configuration("test_resnetdw")), str(tmp_path / "old.ckpt"))
    torch.save({"state_dict": weights_in(read_plain(tmp_path / "old.ckpt"))}, tmp_path / "new.ckpt")
    model = build_detector(configuration("test_resnetdw"))
    load_checkpoint(model, str(tmp_path / "new.ckpt"))
    assert all(torch.equal(value, rigid[0].state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnetdw_dk", "test_resnetdw_gdk_pw", "test_resnetdw_dcn"])
@pytest.mark.parametrize("load", [load_checkpoint, load_start])
def test_a_rigid_detectors_weights_are_deformed(name, load, rigid, caplog):
    model = build_detector(configuration(name))
    load(model, rigid[1])
    assert f"TimmBackbone: the weights are of the rigid base of {name}, and are deformed" in caplog.text
    with torch.no_grad():
        for ours, expected in zip(model.eval().extract_feat(IMAGES), rigid[0].extract_feat(IMAGES), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_spec_is_a_deformed_model_too(rigid):
    cfg = configuration("test_resnetdw")
    cfg.model.backbone.spec = {"depthwise": "local", "scope": 6}
    model = build_detector(cfg)
    load_checkpoint(model, rigid[1])
    with torch.no_grad():
        for ours, expected in zip(model.eval().extract_feat(IMAGES), rigid[0].extract_feat(IMAGES), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_deformed_detectors_weights_are_not_a_rigid_ones(tmp_path):
    torch.save({"state_dict": build_detector(configuration("test_resnetdw_dk")).state_dict()}, tmp_path / "dk.pth")
    for name in ("test_resnetdw", "test_resnetdw_dk_s5"):
        with pytest.raises(UserError, match=rf"TimmBackbone: .* tensors of {name} \(not backbone"):
            load_checkpoint(build_detector(configuration(name)), str(tmp_path / "dk.pth"))


def test_parts_that_start_anew_are_named(rigid, capsys):
    """As where a detector of other classes begins from a trained one."""
    cfg = configuration("test_resnetdw")
    cfg.model.roi_head.bbox_head.num_classes = 3
    load_start(build_detector(cfg), rigid[1])
    said = capsys.readouterr().err
    assert "rigid.pth: has no weights that fit 4 of the model's 1" in said and "4 of its 1" in said
    assert "which start anew: roi_head.bbox_head.fc_cls.weight, roi_head.bbox_head.fc_cls.bias, roi_head.bbox" in said


def test_pretrained_reads_a_detectors_backbone_by_its_prefix(rigid):
    init = {"type": "Pretrained", "checkpoint": rigid[1], "prefix": "backbone."}
    backbone = MODELS.build({"type": "dk_bench.TimmBackbone", "model_name": "test_resnetdw", "init_cfg": init})
    backbone.init_weights()
    held = rigid[0].backbone.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in backbone.state_dict().items())


def test_a_detectors_checkpoint_is_no_classifiers(tmp_path):
    torch.save({"task": "detection", "hyper_parameters": {"config": {}, "classes": []}}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="last.ckpt: a checkpoint of detection, expected one of a classification run"):
        load_model(tmp_path / "last.ckpt")


# What torch.load may read of mmengine's files


def test_histories_and_numbers_of_numpy_are_read(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    held = {"log": history, "eta": np.float64(2.5), "count": np.int64(3), "flag": np.bool_(True)}
    torch.save(held, tmp_path / "new.pth")
    text = io.BytesIO()
    torch.save(held, text, _use_new_zipfile_serialization=False)  # so that names can be changed: numpy 1 wrote these
    old = text.getvalue().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    assert old != text.getvalue()
    (tmp_path / "old.pth").write_bytes(old)
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray, np.dtype, type(np.dtype(float))]):
        pass  # as onedl's mmengine loads: this forbids in the end what it allowed, whoever else did
    for name in ("new.pth", "old.pth"):
        read = torch.load(tmp_path / name, weights_only=True)
        assert read["log"].mean() == 2 and read["log"].statistics("max") == 3
        assert (read["eta"], read["count"], read["flag"]) == (2.5, 3, True)


class Reaches:
    """getattr of something else, as a file that wants to run code would begin."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


class Other:
    pass


def test_nothing_else_is_read(tmp_path):
    for content, named in ((Reaches(), "getattr of '__init__'"), (Other(), "Other was not an")):
        torch.save({"state_dict": {}, "more": content}, tmp_path / "bad.pth")
        with pytest.raises(pickle.UnpicklingError, match=named):
            torch.load(tmp_path / "bad.pth", weights_only=True)
