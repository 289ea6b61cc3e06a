"""Exports as graphs: every kind of model through ONNX and torch.export, what their files say, what cannot go."""

import copy
import dataclasses
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from timm.models._efficientnet_builder import decode_arch_def
from torch import nn
from trained_cases import CLASSES, run_of

import dk_bench
from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.nn import DeformRoIPool
from dk_bench.tasks import of
from dk_bench.trained import graphs
from dk_bench.trained.load import Trained
from dk_bench.training.graph import Graph

ROOT = Path(__file__).parents[2]
BLOCKS = decode_arch_def([["ds_r1_k3_s1_c8"], ["ir_r1_k3_s2_e2_c16"]])  # two: exporting one takes seconds
DENSE_BLOCKS = decode_arch_def([["cn_r1_k3_s1_c8"], ["er_r1_k3_s2_e2_c16"]])
BASE, DENSE = (
    ("model.name=small_mobilenetv2", f"model.kwargs={json.dumps({'block_args': blocks})}")
    for blocks in (BLOCKS, DENSE_BLOCKS)
)
KINDS = {
    "rigid": BASE,
    "local": (*BASE, "model.spec={depthwise: local}"),
    "spread": (*BASE, "model.spec={depthwise: local, scope: 5, grid: spread, clip: false}"),
    "global": (*BASE, "model.spec={depthwise: global, pointwise: global}"),
    "conditional": (*BASE, "model.spec={experts: 3, depthwise: local}"),
    "dcn": (*BASE, "model.spec={dcn: true, dcn_min_stride: 1}"),
    "dcn, local": (*BASE, "model.spec={dcn: true, dcn_min_stride: 1, depthwise: local}"),
    "dense, local": (*DENSE, "model.spec={dense: local, dense_dcn: v1, dense_dcn_min_stride: 2, pointwise: local}"),
    "dense dcn": ("model.name=test_resnet", "model.kwargs={layers: [1, 1, 1, 1]}", "model.spec={dense_dcn: v2}"),
    "ConvNeXt": (
        "model.name=test_convnext",
        "model.kwargs={depths: [1, 1, 1, 1], dims: [8, 8, 8, 8], kernel_sizes: 3}",
        "model.spec={depthwise: local}",
    ),
    "MobileNet": ("model.name=test_efficientnet", "model.spec={dcn: true, dcn_min_stride: 16}"),
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def in_onnxruntime(path):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: [torch.from_numpy(out) for out in session.run(names, {"images": images.numpy()})]


def in_torch(path):
    module = torch.export.load(path).module()
    return lambda images: module(images) if isinstance(module(images), tuple) else (module(images),)


FORMATS = {"onnx": (graphs.write_onnx, in_onnxruntime), "pt2": (graphs.write_pt2, in_torch)}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_of_model_goes(kind, format, tmp_path):
    write, read = FORMATS[format]
    trained = dk_bench.load(run_of(tmp_path / "run", *KINDS[kind]))
    (name,) = write(trained, tmp_path)
    images = torch.randn(5, 3, 32, 32)
    (found,) = read(tmp_path / name)(images)
    expected = trained.model(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # they tell images apart
    assert str(ROOT).encode() not in (tmp_path / name).read_bytes()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return dk_bench.load(run_of(tmp_path_factory.mktemp("local") / "run", *KINDS["local"]))


@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_free_heights_and_widths(local, tmp_path, format):
    """And what a file says of its model."""
    write, read = FORMATS[format]
    (name,) = write(local, tmp_path, free=True)
    run = read(tmp_path / name)
    for size in ((1, 3, 8, 20), (4, 3, 36, 12)):
        images = torch.randn(size)
        torch.testing.assert_close(run(images)[0], local.model(images), atol=1e-4, rtol=1e-4)
    if format == "onnx":
        held = pytest.importorskip("onnx").load(tmp_path / name)
        about = {each.key: json.loads(each.value) for each in held.metadata_props}
        assert [dim.dim_param or dim.dim_value for dim in held.graph.input[0].type.tensor_type.shape.dim] == [
            "batch",
            3,
            "height",
            "width",
        ]
        assert {node.domain for node in held.graph.node} == {""}
    else:
        extra = {graphs.ABOUT: ""}
        torch.export.load(tmp_path / name, extra_files=extra)
        about = json.loads(extra[graphs.ABOUT])
    assert about == {
        "dk_bench": dk_bench.__version__,
        "task": "classification",
        "classes": CLASSES,
        "input_size": [3, 32, 32],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "channel_order": "RGB",
        "pixel_range": [0, 1],
        "outputs": ["logits"],
        "multiple_of": 2,
    }


@torch.no_grad()
def test_a_graph_of_an_export_has_the_runs_size(tmp_path):
    """Of timm's layout, which says it; in several formats at once, and from one export to another."""
    run = run_of(tmp_path / "run", "model.name=test_resnetdw")
    assert main(["export", str(run), "--to", str(tmp_path / "timm")]) == 0
    assert main(["export", str(tmp_path / "timm"), "--to", str(tmp_path / "out"), "--format", "timm", "pt2"]) == 0
    images, expected = torch.randn(3, 3, 32, 32), dk_bench.load(run).model
    for found in (
        in_torch(tmp_path / "out" / "model.pt2"),
        lambda images: [dk_bench.load(tmp_path / "out").model(images)],
    ):
        torch.testing.assert_close(found(images)[0], expected(images), atol=1e-5, rtol=1e-5)
    extra = {graphs.ABOUT: ""}
    torch.export.load(tmp_path / "out" / "model.pt2", extra_files=extra)
    about = json.loads(extra[graphs.ABOUT])
    assert about["input_size"] == [3, 32, 32] and about["mean"] == [0.5, 0.4, 0.3] and about["classes"] == CLASSES


@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_feature_maps_of_a_detector(tmp_path, capsys, format):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    from detection_cases import CLASSES, tiny_detection

    task = of(tiny_detection(tmp_path))
    model = task.module(list(CLASSES), initial_weights=False).model.eval()
    meta = {"dataset_meta": {"classes": CLASSES}}
    model, transform = task.for_use(model, {"hyper_parameters": {"classes": CLASSES}, "meta": meta})
    write, read = FORMATS[format]
    (name,) = write(Trained(model, transform, CLASSES, "detection", None, None, tmp_path), tmp_path)
    assert "boxes are not in it" in capsys.readouterr().err
    run = read(tmp_path / name)
    for size in ((1, 3, 64, 96), (3, 3, 128, 64)):
        images = torch.randn(size)
        found, expected = run(images), model.extract_feat(images)
        assert len(found) == len(expected) == 4
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    if format == "onnx":
        held = pytest.importorskip("onnx").load(tmp_path / name)
        about = {each.key: json.loads(each.value) for each in held.metadata_props}
        assert about["strides"] == [4, 8, 16, 32] and about["multiple_of"] == about["pad_size_divisor"] == 32
        assert about["input_size"] == [3, 64, 96] and about["channel_order"] == "BGR" and about["mean"] == [50.0] * 3
        assert [out.name for out in held.graph.output] == about["outputs"] == ["map0", "map1", "map2", "map3"]
        weights = sum(parameter.numel() for part in (model.backbone, model.neck) for parameter in part.parameters())
        assert (tmp_path / name).stat().st_size < 4 * weights + 200_000  # none of the heads


class Branches(nn.Module):
    """What no graph can say: it looks at its input."""

    def forward(self, images):
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


class Pools(nn.Module):
    """Deformable RoI pooling, which ONNX cannot say."""

    def __init__(self):
        super().__init__()
        self.pool = DeformRoIPool(3, 2, hidden=4)

    def forward(self, images):
        return self.pool(images, torch.tensor([[0.0, 0, 0, 9, 9]])).flatten(1)


def trained_of(model, classes=("a", "b", "c")):
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    return Trained(model.eval(), None, classes, "classification", None, None, Path("run"))


@pytest.mark.parametrize(
    "model, format, words",
    [
        (Branches, "onnx", "torch cannot export a Branches: "),
        (Branches, "pt2", "torch cannot export a Branches: "),
        (Pools, "onnx", "torch cannot export a Pools: dk_bench.functional.deform_roi_pool has no ONNX form"),
    ],
)
def test_what_no_graph_can_say_is_told_in_a_sentence(model, format, words, tmp_path, capfd):
    with pytest.raises(UserError) as error:
        FORMATS[format][0](trained_of(model()), tmp_path / "out")
    assert str(error.value).startswith(f"--format {format}: {words}") and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("part, value", [("classifier.weight", 3e38), ("offset", float("nan"))])
def test_outputs_that_are_not_finite_are_not_taken_for_equal(local, tmp_path, part, value):
    """Finite weights that are too large give some; offsets that are NaN our operators refuse themselves."""
    model = copy.deepcopy(local.model)
    next(weight for name, weight in model.state_dict().items() if part in name).fill_(value)
    with pytest.raises(UserError, match="--format pt2: the model's outputs are not finite"):
        graphs.write_pt2(dataclasses.replace(local, model=model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("off", [2e-4, float("nan"), None], ids=["beyond", "nan", "shape"])
def test_a_graph_that_computes_something_else_is_refused(off):
    graph = Graph(nn.Identity(), lambda images: 0.5 * images.tanh(), ("logits",), (3, 4, 4), {})
    graphs._compare(graph, lambda images: [0.5 * images.tanh() + 5e-5], False, "--format pt2")
    with pytest.raises(UserError, match="--format pt2: the graph computes something else: logits are off by"):
        graphs._compare(
            graph, lambda images: [images[:, :1] if off is None else 0.5 * images.tanh() + off], False, "--format pt2"
        )


def test_a_graph_that_does_not_take_the_images_is_refused():
    def guarded(images):
        raise AssertionError("Guard failed: sizes")

    graph = Graph(nn.Identity(), lambda images: images, ("logits",), (3, 4, 4), {})
    with pytest.raises(UserError, match="--format pt2: the graph does not take images .*: Guard failed: sizes"):
        graphs._compare(graph, guarded, False, "--format pt2")


@pytest.mark.parametrize("missing", graphs.ONNX_NEEDS)
def test_onnx_without_a_package(local, tmp_path, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    with pytest.raises(UserError, match=rf"--format onnx: needs {missing}; `pip install 'dk_bench\[onnx\]'` installs"):
        graphs.write_onnx(local, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_extra_installs_what_onnx_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.match(r"[\w-]+", each)[0] for each in project["optional-dependencies"]["onnx"]} >= set(graphs.ONNX_NEEDS)


def test_sizes_are_left_open_by_the_command(tmp_path, capsys):
    run = str(run_of(tmp_path / "run", *KINDS["rigid"]))
    assert main(["export", run, "--to", str(tmp_path / "out"), "--format", "pt2", "--any-size"]) == 0
    assert in_torch(tmp_path / "out" / "model.pt2")(torch.randn(2, 3, 44, 30))[0].shape == (2, len(CLASSES))
    assert main(["export", run, "--to", str(tmp_path / "none"), "--any-size"]) == 2
    assert "--any-size: goes with --format onnx or pt2" in capsys.readouterr().err


def test_weights_that_are_more_than_a_file_of_onnx_holds(local, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "ONNX_BYTES", 1000)
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="--format onnx: a file holds 2 GiB, .* expected --format pt2"):
        graphs.write_onnx(local, tmp_path)


def test_a_folder_that_cannot_be_written(local, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        graphs.write_pt2(local, tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
