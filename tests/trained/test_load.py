"""dk_bench.load: a run's folder and checkpoint, and what timm and mmdet's tools leave."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

import dk_bench
from dk_bench import KernelSpec, deform
from dk_bench.data.decoded import Encoded
from dk_bench.data.order import Transformed
from dk_bench.data.sources import open_images
from dk_bench.data.transforms import EvalTransform
from dk_bench.errors import UserError
from dk_bench.runs.record import read_record, write_record
from dk_bench.tasks import run_folder
from dk_bench.training.checkpoint import read_checkpoint
from dk_bench.training.weights import MODULE_STATE


def test_a_runs_folder_and_its_checkpoint(run):
    folder = run_folder(run)
    images = open_images(run.data, "val")
    for path in (folder, str(folder / "last.ckpt")):
        trained = dk_bench.load(path)
        assert trained.task == "classification" and trained.classes == tuple(images.classes)
        assert trained.record.name == run.name and trained.record.status == "finished"
        assert trained.path == Path(path) and not trained.model.training
        held = trained.checkpoint["state_dict"]  # the average; what the optimiser changes is beside it
        assert all(torch.equal(value, held[name]) for name, value in trained.model.state_dict().items())
        expected, _ = Transformed(Encoded(images), EvalTransform(run.data)).__getitems__([0, 1])
        assert torch.equal(torch.stack([trained.transform(images[index][0]) for index in (0, 1)]), expected)


def test_an_older_checkpoint_has_lightnings_names(run, tmp_path):
    checkpoint = read_checkpoint(run_folder(run) / "last.ckpt")
    weights = checkpoint.pop("state_dict")
    checkpoint["state_dict"] = {f"model.{name}": value for name, value in weights.items()} | checkpoint.pop(
        MODULE_STATE
    )
    torch.save(checkpoint, tmp_path / "old.ckpt")
    model = dk_bench.load(tmp_path / "old.ckpt").model
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_weights_are_as_other_tools_save_them(run, tmp_path):
    """Training lays them out otherwise, as safetensors refuses to write them."""
    trained = dk_bench.load(run_folder(run))
    timm.models.save_for_hf(trained.model, str(tmp_path), safe_serialization=True)
    again = dk_bench.load(tmp_path).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in trained.model.state_dict().items())


def test_the_record_is_that_of_the_run(run, tmp_path):
    folder = run_folder(run)
    shutil.copy(folder / "last.ckpt", tmp_path)
    assert dk_bench.load(tmp_path / "last.ckpt").record is None
    other = json.loads((folder / "record.json").read_text()) | {"run_id": "another"}
    (tmp_path / "record.json").write_text(json.dumps(other))
    assert dk_bench.load(tmp_path).record is None


@pytest.mark.parametrize("name", ["test_resnetdw_dk", "test_vit", "mobilenetv2_035 deformed"])
def test_what_timm_saved(tmp_path, name, seeded):
    """With names of classes or without; bicubic and cut out as the model wants it, or by our own transform."""
    model = timm.create_model(name.split()[0], num_classes=3).eval()
    if "deformed" in name:
        model = deform(model, KernelSpec(depthwise="local"))
    names = {} if name == "test_vit" else {"model_config": {"label_names": ["a", "b", "c"]}}
    timm.models.save_for_hf(model, str(tmp_path / "saved"), safe_serialization=True, **names)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 190, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for path in (tmp_path / "saved", tmp_path / "saved" / "model.safetensors", tmp_path / "saved" / "config.json"):
        trained = dk_bench.load(path)
        assert trained.classes == (("a", "b", "c") if names else ("0", "1", "2"))
        made = trained.transform(image)
        timms = create_transform(**resolve_data_config(model=model))(image)
        assert (made - timms).abs().max() * 255 * 0.22 < 1.01  # a grey level
        assert (trained.record, trained.checkpoint, trained.task) == (None, None, "classification")
        with torch.no_grad():
            torch.testing.assert_close(trained.model(made[None]), model(made[None]), atol=1e-6, rtol=1e-6)


def test_names_of_imagenet_where_none_are_held(tmp_path):
    timm.models.save_for_hf(timm.create_model("test_resnetdw"), str(tmp_path), safe_serialization=True)
    assert dk_bench.load(tmp_path).classes[1].startswith("goldfish")


def _other_weights(folder, run):
    timm.models.save_for_hf(timm.create_model("test_resnetdw"), str(folder), safe_serialization=True)
    (folder / "model.safetensors").rename(folder / "epoch_3.safetensors")
    (folder / "model.safetensors").symlink_to("epoch_3.safetensors")  # config.json tells of these alone
    return folder / "epoch_3.safetensors", "not a checkpoint of dk_bench"


def _nothing(folder, run):
    return folder, "holds no trained model"


def _failed(folder, run):
    record = read_record(run_folder(run) / "record.json")
    record.status, record.error = "failed", "training loss is nan at step 1"
    write_record(record, folder / "record.json")
    return folder, "holds no trained model (its run: training loss is nan at step 1), expected"


def _missing(folder, run):
    return folder / "none", "does not exist"


def _cut_short(folder, run):
    content = (run_folder(run) / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(content[: len(content) // 2])
    return folder, "not a checkpoint of plain data"


def _bare(folder, run):
    torch.save({"a": torch.ones(1)}, folder / "bare.ckpt")
    return folder / "bare.ckpt", "not a checkpoint of dk_bench"


def _not_finite(folder, run):
    checkpoint = read_checkpoint(run_folder(run) / "last.ckpt")
    checkpoint["state_dict"]["fc.bias"][0] = float("nan")
    torch.save(checkpoint, folder / "last.ckpt")
    return folder, "weights fc.bias are not finite"


def _not_json(folder, run):
    (folder / "config.json").write_text("{")
    return folder, "not a JSON file"


def _described(folder, **change):
    model = timm.create_model("test_resnetdw_dk", num_classes=2)
    timm.models.save_for_hf(model, str(folder), {"label_names": ["a", "b"]}, safe_serialization=True)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | change))
    return content["pretrained_cfg"]


def _no_description(folder, run):
    (folder / "config.json").write_text('"text"')
    return folder, "timm makes no model of what is in it"


def _other_names(folder, run):
    _described(folder, label_names=["a"])
    return folder, "names of 1 classes, expected 2"


def _other_deviation(folder, run):
    held = _described(folder)
    _described(folder, pretrained_cfg=held | {"std": [0.2, 0, 0.2]})
    return folder, "std [0.2, 0, 0.2], expected three numbers each, of std above 0"


def _no_pixels(folder, run):
    held = _described(folder)
    _described(folder, pretrained_cfg=held | {"input_size": [3, 0, 0]})
    return folder, "timm makes no model of what is in it"


def _without_weights(folder, run):
    timm.models.save_for_hf(timm.create_model("test_resnetdw"), str(folder), safe_serialization=True)
    (folder / "model.safetensors").unlink()
    return folder, "timm makes no model of what is in it"


def _damaged_weights(folder, run):
    timm.models.save_for_hf(timm.create_model("test_resnetdw"), str(folder), safe_serialization=True)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    return folder, "timm makes no model of what is in it"


def _other_channels(folder, run):
    timm.models.save_for_hf(timm.create_model("test_resnetdw", in_chans=1), str(folder), safe_serialization=True)
    return folder, "a model of images of 1 channels, expected 3"


@pytest.mark.parametrize(
    "made",
    [
        _nothing,
        _other_weights,
        _failed,
        _missing,
        _cut_short,
        _bare,
        _not_finite,
        _not_json,
        _no_description,
        _other_names,
        _other_deviation,
        _no_pixels,
        _without_weights,
        _damaged_weights,
        _other_channels,
    ],
    ids=lambda made: made.__name__,
)
def test_bad_input(made, tmp_path, run):
    path, expected = made(tmp_path, run)
    with pytest.raises(UserError) as error:
        dk_bench.load(path)
    assert expected in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
