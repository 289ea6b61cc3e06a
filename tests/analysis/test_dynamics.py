"""Learned dynamics: what is read where, what probes tell of planted features, and the command from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_cases import CLASSES, checkpoint, read_csv
from PIL import Image
from torch import nn

from dk_bench.analysis.dynamics.differences import difference
from dk_bench.analysis.dynamics.figures import deciles
from dk_bench.analysis.dynamics.linear_probe import probe, targets_of
from dk_bench.analysis.dynamics.study import collect
from dk_bench.analysis.learned import EXPERTS, KERNEL, Loaded, load
from dk_bench.analysis.objects import Objects, coco_objects, procedural_objects
from dk_bench.cli import main
from dk_bench.config import Config
from dk_bench.errors import UserError
from dk_bench.nn import DeformKernel2d

# What is read, and where


@pytest.mark.parametrize(
    "conv",
    [DeformKernel2d((4, 4), 3, 3, 3, 2, 1, groups=3), DeformKernel2d(4, 3, 5, 3, 2, 1), DeformKernel2d(2, 3, 5, 1, 2)],
)
def test_local_offsets_are_those_of_the_cell_that_holds_the_objects_middle(conv):
    """A generator that copies the red channel to every offset, at stride 2: it gives the pixel under a cell."""
    taps = conv.kernel_size[0] ** 2
    with torch.no_grad():
        conv.kernel_offset.weight[:, 0, conv.padding[0], conv.padding[0]] = 1
    config = Config()
    config.data.size, config.data.crop_pct, config.data.mean, config.data.std = 8, 1.0, [0.0] * 3, [1.0] * 3
    reds = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    images = [Image.fromarray(np.stack([red] * 3, axis=2)) for red in reds]
    centre = np.array([[0.0, 0.999], [0.5, 0.3], [1.0, 0.0]])  # cells (0, 3), (2, 1), and (3, 0) at the lower edge
    objects = Objects(
        [lambda image=image: image for image in images],
        np.array([0, 1, 1]),
        np.zeros(3, int),
        ["a"],
        centre,
        np.ones(3),
        {},
        "three objects",
    )
    found = collect(Loaded(Path(), nn.Sequential(conv), config, "", ["a"]), objects).learned[KERNEL]["0"]
    expected = np.array([reds[0, 0, 6], reds[1, 4, 2], reds[1, 6, 0]]) / 255
    np.testing.assert_allclose(found, np.tile(expected[:, None], 2 * taps), rtol=1e-6)


def test_expert_scores_are_the_sigmoid_of_the_routing(tmp_path):
    loaded = load(checkpoint(tmp_path / "last.ckpt", "test_resnetdw_scc"))
    with torch.no_grad():
        for module in loaded.model.modules():
            if hasattr(module, "routing"):
                module.routing.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
    dynamics = collect(loaded, procedural_objects(loaded.config.data, 3))
    assert set(dynamics.learned) == {EXPERTS} and len(dynamics.learned[EXPERTS]) == 12
    expected = np.tile([0.5, 0.7310586, 0.2689414, 0.8807971], (3, 12))
    np.testing.assert_allclose(dynamics.joined(EXPERTS), expected, rtol=1e-5)
    assert np.ptp(dynamics.joined(EXPERTS, random=True), axis=0).min() > 0  # the control does see the images


def test_procedural_objects_are_what_was_drawn(tmp_path):
    data = load(checkpoint(tmp_path / "last.ckpt", "test_resnetdw_dk")).config.data
    objects = procedural_objects(data, 6)
    assert objects.classes == CLASSES and objects.label.tolist() == [0, 1, 2, 3, 0, 1]
    assert (0.15 <= objects.scale).all() and (objects.scale <= 0.34).all()
    assert set(objects.pose) == {"rotation", "bend"} and np.abs(objects.pose["bend"]).max() <= 0.8


# Probes


def test_probe_reads_what_was_planted_and_nothing_else():
    rng = np.random.default_rng(0)
    scale, label = np.exp(rng.normal(size=400)), rng.integers(0, 3, 400)
    targets = targets_of(label, scale, {"rotation": rng.normal(size=400), "bend": np.zeros(400)})
    assert list(targets) == ["class", "log scale", "sin rotation", "cos rotation"]  # bend is the same for all
    features = np.concatenate([np.log(scale)[:, None], 8.0 * np.eye(3)[label], rng.normal(size=(400, 6))], axis=1)
    scores = probe(features @ rng.normal(size=(10, 10)), targets, np.arange(400))
    assert scores["log scale"].value > 0.99 and scores["class"].value == 100
    assert abs(scores["sin rotation"].value) < 0.06 and abs(scores["cos rotation"].value) < 0.06
    noise = probe(rng.normal(size=(400, 10)), targets, np.arange(400))
    assert abs(noise["log scale"].value) < 0.06 and 25 < noise["class"].value < 42
    for score in (*scores.values(), *noise.values()):
        assert score.low <= score.value <= score.high


def test_probe_holds_out_whole_images():
    """Features that only name the image tell nothing of another: objects of one image are never on both sides."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(40), 5)
    target = {"number": rng.normal(size=40)[image]}
    assert probe(np.eye(40)[image], target, image)["number"].value < 0.02
    assert probe(np.eye(40)[image], target, np.arange(200))["number"].value > 0.9


def test_probe_at_fewer_components():
    rng = np.random.default_rng(0)
    number = rng.normal(size=200)
    features = np.stack([number, number, number, rng.normal(size=200)], axis=1)
    known = probe(features, {"number": number}, np.arange(200), dims=1)["number"].value
    assert known > 0.95  # after standardising the first component is the one that three share


def test_probe_wants_images_and_classes():
    with pytest.raises(ValueError, match="at least 5 images, got 4"):
        probe(np.ones((8, 1)), {"number": np.arange(8.0)}, np.arange(8) // 2)
    with pytest.raises(ValueError, match="class: expected at least two classes"):
        probe(np.ones((8, 1)), {"class": np.arange(8) // 7}, np.arange(8))


def test_deciles_and_differences():
    assert deciles(np.array([3.0, 1.0, 2.0, 9.0, 8.0])).tolist() == [4, 0, 2, 8, 6]
    found = difference({0: 1.0, 1: 3.0, 5: 9.0}, {0: 0.5, 1: 1.5})
    assert (found.mean, found.n) == (1.0, 2) and found.half_width == pytest.approx(12.7062 * 0.5, rel=1e-4)
    assert difference({0: 1.0}, {1: 1.0}) is None


# COCO


def coco_folder(folder, images: int = 10):
    """A set of noise images with two boxes each, and a crowd and a box of no area that must not count."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    rng = np.random.default_rng(0)
    content = {"categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}], "images": [], "annotations": []}
    for number in range(images):
        size = (40, 60) if number % 2 else (60, 40)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
        for category, box in ((7, [2, 4, 10 + number, 20]), (3, [20, 10, 12, 12 + number]), (3, [0, 0, 0, 5])):
            each = {"id": len(content["annotations"]), "image_id": number, "category_id": category, "bbox": box}
            content["annotations"].append(each | {"iscrowd": 0})
    content["annotations"].append(content["annotations"][0] | {"id": 999, "iscrowd": 1})
    path = folder / "annotations" / "val.json"
    path.write_text(json.dumps(content))
    return path, content


def test_coco_objects(tmp_path):
    path, content = coco_folder(tmp_path)
    objects = coco_objects(path, None, 100)
    assert len(objects) == 20 and len(objects.images) == 10 and objects.pose == {}
    assert objects.classes == ["cat", "dog"] and objects.label.tolist() == [0, 1] * 10
    assert objects.image.tolist() == sorted(list(range(10)) * 2)
    np.testing.assert_allclose(objects.centre[0], [(4 + 10) / 60, (2 + 5) / 40])
    np.testing.assert_allclose(objects.scale[[0, 1]], np.sqrt([200, 144]) / 40)
    assert objects.images[1]().size == (60, 40)
    assert len(coco_objects(path, tmp_path / "images", 7)) == 7
    for each in content["annotations"]:
        each["pose"] = {"rotation": each["id"] / 10, "bend": 0.5}
    path.write_text(json.dumps(content))
    assert coco_objects(path, None, 100).pose["rotation"][:2].tolist() == [0.0, 0.1]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(annotations=[]), "no boxes"),
        (lambda c: [a.pop("bbox") for a in c["annotations"]], "no boxes"),
        (lambda c: c.pop("categories"), "key 'categories' is missing or no list"),
        (lambda c: c["annotations"][0].update(image_id=77), "annotation 0: no image has the id 77"),
    ],
)
def test_annotations_that_will_not_do(tmp_path, change, message):
    path, content = coco_folder(tmp_path)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as raised:
        coco_objects(path, None, 100)
    assert str(path) in str(raised.value)


# The command


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        (name, seed): str(checkpoint(folder / f"{name}-{seed}.ckpt", f"test_resnet{name}", seed=seed, plant=plant))
        for name, seed, plant in (
            ("dw_dk", 0, True),
            ("dw_dk", 1, True),
            ("_dcn_dk", 0, False),  # not depthwise
            ("dw_scc", 0, False),
            ("dw_scc", 1, False),
            ("dw", 0, False),
        )
    }


def test_procedural_from_end_to_end(checkpoints, tmp_path, capsys):
    """Planted offsets come back as they are, and what does not vary tells nothing; intervals are over both seeds."""
    paths = [checkpoints[key] for key in (("dw_dk", 0), ("dw_dk", 1), ("dw_scc", 0), ("dw_scc", 1))]
    command = ["dynamics", *paths, "--objects", "40", "--tsne", "30", "--perplexity", "5", "--output", str(tmp_path)]
    assert main(command) == 0
    assert "test_resnetdw_scc" in capsys.readouterr().out
    loaded = load(paths[0])
    rows = read_csv(next(tmp_path.glob("dynamics-test_resnetdw_dk-*-s0.csv")))
    assert len(rows) == 40 and rows[2]["class"] == "ring"
    for layer in ("layer1.0.conv2", "layer4.0.conv2"):
        bias = loaded.model.get_submodule(layer).kernel_offset.bias.tolist()
        assert all([float(row[f"{layer} {KERNEL} {i}"]) for i in range(18)] == bias for row in rows)
    scores = read_csv(tmp_path / "probe.csv")
    planted = [row for row in scores if row["model"] == "test_resnetdw_dk" and row["features"] == "learned"]
    assert {(row["seed"], row["target"]) for row in planted} == {
        (seed, target) for seed in "01" for target in ("class", "log scale", "sin rotation", "cos rotation", "bend")
    }
    assert all(float(row["value"]) <= (25 if row["target"] == "class" else 0) for row in planted)
    assert {"random generator", "shuffled targets", "48 components"} < {row["features"] for row in scores}
    assert {row["kind"] for row in scores if row["model"] == "none"} == {"class alone", "log scale alone"}
    tsne = read_csv(tmp_path / "tsne.csv")
    assert len(tsne) == 2 * 30 and {row["seed"] for row in tsne} == {"0"}
    text = (tmp_path / "probe.md").read_text()
    assert "## Offsets minus expert scores of test_resnetdw_scc" in text and "## Checkpoints" in text
    assert "test_resnetdw_scc-s1" in text and " ± " in text
    for name in ("tsne", "probe"):
        assert Image.open(tmp_path / f"{name}.png").size[0] > 500
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_coco_from_end_to_end(checkpoints, tmp_path):
    path, _ = coco_folder(tmp_path / "data")
    out = tmp_path / "out"
    command = ["dynamics", checkpoints["_dcn_dk", 0], "--data", str(path), "--tsne", "0", "--output", str(out)]
    assert main(command) == 0
    assert not (out / "tsne.csv").exists()
    scores = read_csv(out / "probe.csv")
    assert {row["kind"] for row in scores} == {"kernel offsets", "data offsets", "class alone", "log scale alone"}
    assert {row["target"] for row in scores} == {"class", "log scale"}


@pytest.mark.parametrize(
    "which, arguments, message",
    [
        ([("dw", 0)], [], "test_resnetdw is rigid: nothing is deformable in it"),
        ([("dw_dk", 0), ("dw_dk", 0)], [], "the same model, settings and seed"),
        ([("dw_dk", 0)], ["--objects", "25"], "--perplexity 30: t-SNE wants it below its number of objects, 25"),
        ([("dw_dk", 0)], ["--objects", "3"], "--objects: expected at least 20, got 3"),
        ([("dw_dk", 0)], ["--data", "nowhere.json"], "annotation file nowhere.json cannot be read"),
        ([("dw_dk", 0)], ["--device", "cuda"], "--device cuda"),
        ([], ["nowhere.ckpt"], "nowhere.ckpt: no checkpoint can be read there"),
    ],
)
def test_bad_input_is_named(checkpoints, tmp_path, capsys, which, arguments, message):
    if arguments[-1:] == ["cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = ["dynamics", *(checkpoints[key] for key in which), *arguments, "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
