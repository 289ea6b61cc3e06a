"""Model cards: all that the record knows, in the hub's form, and what is not known said so."""

import ast
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn
from trained_cases import CLASSES, changed, run_of

import dk_bench
from dk_bench.cli import main
from dk_bench.runs.record import find_records, read_record
from dk_bench.tables.statistics import summarize
from dk_bench.trained import card
from dk_bench.trained.export import export
from dk_bench.trained.history import History
from dk_bench.trained.load import Trained

ROOT = Path(__file__).parents[2]
MODEL = ("model.name=test_resnetdw", "model.spec={depthwise: local, scope: 5}")


def card_of(run, folder, *options):
    """The card that the command writes."""
    assert main(["export", str(run), "--to", str(folder), *options]) == 0
    return ModelCard.load(folder / "README.md")


def test_a_card_says_what_the_record_knows(tmp_path):
    run = run_of(tmp_path / "run", *MODEL, top1=61.25)
    written = card_of(run, tmp_path / "out", "--license", "cc-by-nc-4.0")
    data, text = written.data, written.text
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-nc-4.0", "timm", "image-classification")
    assert {"timm", "dk_bench", "deformable-kernels"} <= set(data.tags) and data.metrics == ["accuracy"]
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 61.25, "validation")
    assert result.dataset_name == "photos" and data.model_name == "test_resnetdw on photos"
    record = read_record(run / "record.json")
    for said in (
        "Deformed: local 5x5, centred.",
        f"{len(CLASSES)} classes: {', '.join(f'`{name}`' for name in CLASSES)}.",
        "| val/top1 | 61.25 |",
        "| val/loss | 1.5000 |",
        "How far: 2 of 2 epochs.",
        "Data: photos; images: 1,200 train, 40 val.",
        "Seed: 0; run: tiny, `run-0`.",
        f"Commit of dk_bench: {'0' * 40}.",
        f"torch {record.versions['torch']}",
        "Command: `dk-bench train`",
        "The figures are of one run: what another seed gives is not known.",
        "It was evaluated on photos alone",
    ):
        assert said in text, said
    assert "licence" not in text and "all seeds" not in text and str(tmp_path) not in written.content
    again = card_of(tmp_path / "out", tmp_path / "again").text  # of the export and the record in it
    assert "| val/top1 | 61.25 |" in again and "Deformed: local 5x5, centred." in again


def test_what_other_seeds_reach(tmp_path):
    tops = [50.0, 52.0, 57.0]
    for seed, top1 in enumerate(tops):
        run_of(tmp_path / "runs" / str(seed), *MODEL, seed=seed, top1=top1)
    run_of(tmp_path / "runs" / "failed", *MODEL, seed=3, status="failed", error="power cut")
    run_of(tmp_path / "runs" / "other", "model.name=test_resnetdw", top1=1.0)
    written = card_of(tmp_path / "runs" / "1", tmp_path / "out", "--records", str(tmp_path / "runs"))
    summary = summarize(tops)
    seeds = f"{summary.mean:.2f} ± {summary.half_width:.2f} (n=3), 1 failed"
    assert f"| val/top1 | 52.00 | {seeds} |" in written.text and written.data.eval_results[0].metric_value == 52.0
    assert "95 % interval, by Student's t distribution" in written.text and "of one run" not in written.text
    rigid = card_of(tmp_path / "runs" / "other", tmp_path / "rigid", "--records", str(tmp_path / "runs"))
    assert "all seeds" not in rigid.text and "Its convolutions are rigid" in rigid.text


def test_what_is_not_known_is_said(tmp_path):
    run = run_of(tmp_path / "run", *MODEL)
    (run / "record.json").unlink()
    written = card_of(run, tmp_path / "out")
    assert "No record of the run lies beside the checkpoint" in written.text and "| val/top1 | 50.00 |" in written.text
    assert "Deformed: local 5x5, centred." in written.text and written.data.eval_results is None
    assert written.data.license == "unknown" and "Nobody has said under which licence the weights are" in written.text
    again = card_of(tmp_path / "out", tmp_path / "again")
    assert "None: the run's record is not at hand" in again.text and "How far: unknown." in again.text


def test_code_that_had_changed_and_weights_that_it_started_from(tmp_path):
    start = run_of(tmp_path / "start", "model.name=test_resnetdw") / "last.ckpt"
    run = run_of(tmp_path / "run", *MODEL, f"model.checkpoint={start}")
    changed(run / "record.json", git={"commit": "1" * 40, "dirty": True})
    text = card_of(run, tmp_path / "out").text
    assert f"Commit of dk_bench: {'1' * 40}, with changes that were not committed." in text
    assert re.search(r"Started from: `.*last\.ckpt` \(`model\.checkpoint`\)\.", text)


@pytest.mark.parametrize("model", [MODEL, ("model.name=test_resnetdw_dk",), ("model.name=test_efficientnet",)])
@torch.no_grad()
def test_its_code_runs_beside_the_folder(model, tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", *model)
    text = card_of(run, tmp_path / "a folder").text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    assert ("import dk_bench" in blocks[1]) == ("resnetdw" in model[0])  # timm's own need nothing of ours
    monkeypatch.chdir(tmp_path)
    names = {"image": Image.new("RGB", (40, 50), (200, 30, 90))}
    for block in blocks:
        ast.parse(block)
        exec(block, names)
    assert names["trained"].classes == tuple(CLASSES)
    expected = dk_bench.load(run)
    probabilities = expected.model(expected.transform(names["image"])[None]).softmax(1)
    torch.testing.assert_close(names["probabilities"], probabilities, rtol=0, atol=1e-3)  # a grey level in the resize


@torch.no_grad()
def test_the_code_of_graphs_runs_too(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    run = run_of(tmp_path / "run", "model.name=test_resnetdw")
    text = card_of(run, tmp_path / "graphs", "--format", "onnx", "pt2").text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2 and "dk_bench.load" not in text  # which opens neither
    monkeypatch.chdir(tmp_path)
    images = torch.rand(3, 3, 32, 32)
    for block, given in zip(blocks, (images.numpy(), images), strict=True):
        names = {"images": given}
        exec(block, names)
        found = names["outputs"] if isinstance(names["outputs"], torch.Tensor) else torch.tensor(names["outputs"][0])
        torch.testing.assert_close(found, dk_bench.load(run).model(images), rtol=1e-4, atol=1e-4)


def test_a_card_of_a_repository_names_it(tmp_path):
    run = run_of(tmp_path / "run", *MODEL)
    export(run, tmp_path / "out", repository="some-one/model")
    text = (tmp_path / "out" / "README.md").read_text()
    assert 'timm.create_model("hf-hub:some-one/model", pretrained=True)' in text
    assert 'snapshot_download("some-one/model", local_dir="out")' in text


def test_a_detectors_card():
    """Of a run in the repository: what is counted and scored is the detector's."""
    records = [read_record(path) for path in find_records(ROOT / "results" / "e3")]
    record = next(record for record in records if (record.model["spec"] or {}).get("depthwise") == "local")
    about = card.About(
        Trained(nn.Identity(), lambda image: image, tuple(record.data["classes"]), "detection", record, None, ROOT),
        History(12, 12, record.metrics["final"], None, True),
        {"mmdet": ["config.py", "model.pth"]},
        "out",
        records=records,
    )
    found = ModelCard(card.text(about))
    data, figures = found.data, record.metrics["final"]
    assert (data.library_name, data.pipeline_tag) == ("mmdetection", "object-detection")
    assert data.eval_results[0].metric_value == round(figures["val/mAP"], 2)
    assert found.text.startswith(
        f"\n# {record.model['detector']} with {record.model['name']} on {record.data['name']}\n"
    )
    assert re.search(rf"\| val/mAP \| {figures['val/mAP']:.2f} \| \d+\.\d\d ± \d+\.\d\d \(n=6\) \|", found.text)
    assert 'init_detector("out/config.py", "out/model.pth", device="cpu")' in found.text
    assert re.search(r"multiply-adds of the backbone for one image \(3 x \d+ x \d+\): [\d,]+\.", found.text)
