"""Exports for mmdet: its own tools read them in processes that have imported nothing of dk_bench when they start."""

import ast
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet", reason="mmdet is not installed")

import mmdet
from detection_cases import CLASSES, tiny_detection
from mmdet.apis import inference_detector
from mmengine.config import Config
from new_python import run_new_python
from trained_cases import run_of

import dk_bench
from dk_bench.cli import main
from dk_bench.detection.predicting import as_mmdet_has_it
from dk_bench.detection.scene_files import ProceduralCoco
from dk_bench.errors import UserError
from dk_bench.registry import MODELS
from dk_bench.tasks import of
from dk_bench.trained import mmdet_files
from dk_bench.trained.graphs import ABOUT
from dk_bench.trained.load import Trained

ROOT = Path(__file__).parents[2]
TOOLS = Path(mmdet.__file__).parent / ".mim" / "tools"
LOADER = ("num_workers=0", "persistent_workers=False", "dataset.scenes.train_images=4", "dataset.scenes.val_images=2")
SETTINGS = [
    "wandb.mode=disabled",
    "output=runs",
    "train_cfg.max_epochs=1",
    "model.backbone.model_name=test_resnetdw_dk",
    "model.test_cfg.rcnn.score_thr=0.0",
    "model.test_cfg.rcnn.max_per_img=20",
    *(f"{loader}_dataloader.{one}" for loader in ("train", "val", "test") for one in LOADER),
]

READ = """
import json, runpy, sys, time
from pathlib import Path
from mmdet.apis import DetInferencer, init_detector, inference_detector
def tool(name, *arguments):
    sys.argv = [name, *arguments]
    runpy.run_path(name, run_name="__main__")
def look(model, image):
    found = inference_detector(model, image).pred_instances
    return {"classes": list(model.dataset_meta["classes"]), "palette": list(map(list, model.dataset_meta["palette"])),
            "boxes": found.bboxes.tolist(), "scores": found.scores.tolist(), "labels": found.labels.tolist()}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With ``runs/``, in which a detector of ours was trained, ``data/`` and its export, ``out/``."""
    folder = tmp_path_factory.mktemp("mmdet")
    previous = Path.cwd()
    os.chdir(folder)  # images are written below the working directory
    try:
        assert main(["train", str(ROOT / "configs" / "det" / "tiny_procedural.py"), *SETTINGS]) == 0
        (run,) = Path("runs").iterdir()
        run.rename("run")
        assert main(["export", "run", "--to", "out"]) == 0
    finally:
        os.chdir(previous)
    return folder


def test_mmdets_tools_read_an_export(folder):
    """test.py, publish_model.py, init_detector and DetInferencer, and find what the run's model does."""
    image = str(min((folder / "data").rglob("val_*.png")))
    code = f"""{READ}
config, weights, image = "out/config.py", "out/model.pth", {image!r}
tool({str(TOOLS / "test.py")!r}, config, weights, "--work-dir", "tested", "--out", "found.pkl")
tool({str(TOOLS / "model_converters" / "publish_model.py")!r}, weights, "published.pth")
while not (made := list(Path().glob("published-*.pth"))):  # the tool does not wait for the command that renames it
    time.sleep(0.1)
looks = [look(init_detector(config, path, device="cpu"), image) for path in (weights, str(made[0]))]
for some in ((config, weights), (None, weights), (None, str(made[0]))):
    looks.append(look(DetInferencer(*some, device="cpu").model, image))
json.dump(looks, open("looks.json", "w"))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    done = run_new_python(["-c", code], cwd=folder, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "do not match exactly" not in done.stdout + done.stderr
    expected = inference_detector(dk_bench.load(folder / "run").model, image).pred_instances
    assert len(expected) == 20
    looks = json.loads((folder / "looks.json").read_text())
    assert len(looks) == 5
    for found in looks:
        assert found["classes"] == list(ProceduralCoco.METAINFO["classes"])
        assert found["palette"] == list(map(list, ProceduralCoco.METAINFO["palette"]))
        assert found["labels"] == expected.labels.tolist()
        for name, value in (("boxes", expected.bboxes), ("scores", expected.scores)):
            torch.testing.assert_close(torch.tensor(found[name]), value, rtol=1e-6, atol=1e-6)
    assert len(pickle.loads((folder / "found.pkl").read_bytes())) == 2


def test_an_export_is_loaded_as_the_run_is(folder):
    run = dk_bench.load(folder / "run")
    image = str(min((folder / "data").rglob("val_*.png")))
    expected = inference_detector(run.model, image).pred_instances
    for path in (folder / "out", folder / "out" / "model.pth"):
        trained = dk_bench.load(path)
        assert (trained.task, trained.classes) == ("detection", run.classes)
        found = inference_detector(trained.model, image).pred_instances
        assert torch.equal(found.bboxes, expected.bboxes) and torch.equal(found.scores, expected.scores)


def test_the_files_hold_plain_data_that_stand_by_themselves(folder):
    content = torch.load(folder / "out" / "model.pth", weights_only=True)
    assert content.keys() == {"meta", "state_dict"}
    meta, text = content["meta"], (folder / "out" / "config.py").read_text()
    assert meta["cfg"] == text and meta["dk_bench_version"] == dk_bench.__version__ and meta["mmdet_version"]
    held, config = dk_bench.load(folder / "run").checkpoint, Config.fromfile(folder / "out" / "config.py")
    assert content["state_dict"].keys() == held["state_dict"].keys()
    assert all(torch.equal(value, held["state_dict"][name]) for name, value in content["state_dict"].items())
    assert config.custom_imports == {"imports": ["dk_bench.registry"], "allow_failed_imports": False}
    trained_with = Config(held["hyper_parameters"]["config"])
    for key in ("data_root", "train_dataloader", "val_dataloader", "test_dataloader", "optim_wrapper"):
        assert config.get(key) == trained_with.get(key)  # data where the run had them
    assert str(folder) not in text


def test_a_deformed_backbone_and_its_pyramid_as_a_graph(folder, tmp_path):
    """Its last level has a larger stride than mmdet pads images to."""
    assert main(["export", str(folder / "run"), "--to", str(tmp_path / "out"), "--format", "pt2"]) == 0
    extra = {ABOUT: ""}
    module = torch.export.load(tmp_path / "out" / "model.pt2", extra_files=extra).module()
    about = json.loads(extra[ABOUT])
    assert about["strides"] == [4, 8, 16, 32, 64] and (about["pad_size_divisor"], about["multiple_of"]) == (32, 64)
    images = torch.randn(1, 3, 192, 448)
    with torch.no_grad():
        for found, expected in zip(
            module(images), dk_bench.load(folder / "run").model.extract_feat(images), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def loaded(folder, *overrides, change=lambda cfg: None):
    """A detector of mmdet's parts alone, that was never trained, as dk_bench.load gives one."""
    task = of(tiny_detection(folder, *overrides))
    change(task.config.cfg)
    module = task.module(list(CLASSES), initial_weights=False)
    meta = {"dataset_meta": {"classes": CLASSES, "palette": "random"}}
    model, transform = as_mmdet_has_it(module.model, task.config.cfg, meta, CLASSES)
    return Trained(model, transform, CLASSES, "detection", None, None, Path("run"))


def test_what_the_run_started_from_is_left_out_and_validation_stands_for_test(tmp_path):
    weights = {"type": "Pretrained", "checkpoint": "gone.pth"}
    trained = loaded(
        tmp_path, "load_from=gone.pth", change=lambda cfg: cfg.model.backbone.update(init_cfg=weights, frozen_stages=-1)
    )
    (tmp_path / "out").mkdir()
    assert mmdet_files.write(trained, tmp_path / "out") == ["config.py", "model.pth"]
    config = Config.fromfile(tmp_path / "out" / "config.py")
    assert "gone" not in config.pretty_text and "load_from" not in config
    assert config.test_dataloader == config.val_dataloader and config.test_evaluator == config.val_evaluator
    assert config.test_cfg == {"type": "TestLoop"}
    meta = torch.load(tmp_path / "out" / "model.pth", weights_only=True)["meta"]
    assert meta["dataset_meta"] == {"classes": CLASSES}  # mmdet draws colours where there are none
    assert dk_bench.load(tmp_path / "out").classes == CLASSES


def test_imports_of_the_configuration_stay(tmp_path):
    imports = {"imports": ["json"], "allow_failed_imports": True}
    trained = loaded(tmp_path, change=lambda cfg: cfg.update(custom_imports=imports))
    mmdet_files.write(trained, tmp_path)
    assert Config.fromfile(tmp_path / "config.py").custom_imports == imports | {
        "imports": ["json", "dk_bench.registry"]
    }


def test_a_configuration_that_cannot_be_written_down(tmp_path):
    trained = loaded(tmp_path, change=lambda cfg: cfg.update(note=float("inf")))
    with pytest.raises(UserError, match="^run: "):
        mmdet_files.write(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_where_the_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        mmdet_files.write(loaded(tmp_path), tmp_path / "file" / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "tiny.py", "tiny_data"}


@pytest.mark.parametrize("spec", [None, {"depthwise": "local", "scope": 5}], ids=["by its name", "by a spec"])
@pytest.mark.parametrize("exported", [False, True], ids=["run", "export"])
def test_a_classifiers_weights_begin_a_detector(tmp_path, capsys, spec, exported):
    """The sentence has the line that does it."""
    model = ["model.name=test_resnetdw", f"model.spec={spec}"] if spec else ["model.name=test_resnetdw_dk"]
    run = run_of(tmp_path / "run", *model)
    if exported:
        assert main(["export", str(run), "--to", str(tmp_path / "timm")]) == 0
        run = tmp_path / "timm"
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--format", "mmdet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "holds a classifier" in error and not (tmp_path / "out").exists()
    (line,) = re.findall(r"backbone=(dict\(.*\))", error)
    call = ast.parse(line, mode="eval").body
    backbone = MODELS.build({each.arg: ast.literal_eval(each.value) for each in call.keywords})
    weights = dk_bench.load(run).model.state_dict()
    own = backbone.net.state_dict()
    assert len(own) > 100 and all(torch.equal(value, weights[name]) for name, value in own.items())


def test_a_diverged_detector_is_refused(folder, tmp_path, capsys):
    content = torch.load(folder / "run" / "last.ckpt", weights_only=True)
    next(iter(content["state_dict"].values())).flatten()[0] = float("nan")
    torch.save(content, tmp_path / "last.ckpt")
    assert main(["export", str(tmp_path / "last.ckpt"), "--to", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert "are not finite" in capsys.readouterr().err
