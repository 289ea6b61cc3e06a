"""Training on two processes."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from new_python import run_new_python
from timm.layers import BatchNormAct2d
from torch import nn

from dk_bench.runs.correct import correct_images
from dk_bench.runs.record import find_records, read_record
from dk_bench.training import evaluate, load_model
from dk_bench.training.batch_norm import SharedBatchNorm

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
SMALL = (
    "data.size=32",
    "data.batch_size=8",
    "data.procedural.train_images=26",
    "data.procedural.val_images=13",
    "optim.epochs=2",
    "trainer.accelerator=cpu",
)

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_new_python(["-m", "dk_bench", *arguments], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def train_demo(output: Path, *overrides: str) -> tuple[dict, nn.Module]:
    """The demo's configuration by the command line, made small; metrics and model of its one record."""
    run_command("train", str(DEMO), *SMALL, *overrides, f"output={output}")
    (path,) = find_records([output])
    record = read_record(path)
    assert record.status == "finished" and len(record.metrics["epochs"]) == 2
    return record.metrics["final"], load_model(path.parent / "last.ckpt")


def test_two_processes_leave_one_record_and_one_model(tmp_path):
    tests = (
        "data.procedural.scale=[0.2, 0.28]",
        "data.procedural.test_images=11",
        "data.procedural.shifts.scale_down=0.1",
    )
    metrics, model = train_demo(tmp_path, "model.name=test_resnetdw_dk", "trainer.devices=2", *tests)
    # 13 images on two processes: none counted twice.
    right = 13 * metrics["val/top1"] / 100
    assert right == pytest.approx(round(right), abs=1e-3)
    (path,) = tmp_path.glob("*/last.ckpt")
    done = run_command("eval", str(path), "trainer.devices=1", f"--record={tmp_path / 'eval.json'}")
    line, _ = done.stdout.splitlines()  # of the first process alone
    record, alone = (read_record(file) for file in (path.with_name("record.json"), tmp_path / "eval.json"))
    assert (record.device["devices"], alone.device["devices"]) == (2, 1)
    assert record.correct["val"] == alone.correct["val"] and correct_images(record).sum() == round(right)
    assert f"top-1 {metrics['val/top1']:.2f} %" in line
    tested = evaluate(path, ["trainer.devices=1"], split="test")
    assert tested.correct == {name: bits for name, bits in record.correct.items() if name != "val"}
    of_one = tested.metrics["final"]
    assert of_one.keys() == {name for name in metrics if name.startswith("test/")} and len(of_one) == 6
    assert of_one == pytest.approx({name: metrics[name] for name in of_one}, rel=1e-5)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_two_processes_train_to_the_result_of_one(tmp_path):
    """In float64 what is left between them is the order of sums, so that the tolerance can be tight."""
    overrides = ("model.name=test_resnetdw_dcn_dk", "trainer.precision=64-true", "trainer.sync_batchnorm=true")
    metrics, model = train_demo(tmp_path / "one", *overrides, "trainer.devices=1")
    of_two, model_of_two = train_demo(tmp_path / "two", *overrides, "trainer.devices=2")
    for name in ("train/loss", "val/loss", "val/top1", "val/top5"):
        assert of_two[name] == pytest.approx(metrics[name], rel=1e-6), name
    weights, weights_of_two = model.state_dict(), model_of_two.state_dict()
    assert weights.keys() == weights_of_two.keys()
    for name, value in weights.items():
        torch.testing.assert_close(weights_of_two[name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    # They begin at zero: the offsets were trained too.
    assert all(value.any() for name, value in weights.items() if name.endswith("_offset.bias"))


@pytest.fixture
def process_group(tmp_path):
    """This process alone, as a group."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "norm, shape, dtype",
    [
        (nn.BatchNorm2d(3), (4, 3, 5, 2), torch.float64),
        (nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 2), torch.float32),
        (nn.BatchNorm1d(3, affine=False), (6, 3), torch.float64),
        (nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 4, 4), torch.float64),
        (BatchNormAct2d(3, act_layer=nn.ReLU6), (4, 3, 5, 2), torch.float64),
        (nn.BatchNorm2d(3), (4, 3, 5, 2), torch.bfloat16),
    ],
)
def test_synchronised_batch_normalisation_is_the_ordinary_one(process_group, norm, shape, dtype):
    torch.manual_seed(0)
    ordinary = norm.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    shared = SharedBatchNorm().apply(copy.deepcopy(ordinary))
    images = 100 + 3 * torch.randn(3, *shape, dtype=dtype)
    upstream = torch.randn(shape, dtype=dtype)
    found = {}
    for name, module in (("ordinary", ordinary), ("shared", shared)):
        x = images.clone().requires_grad_()
        outputs = [module.train()(batch) for batch in x]
        torch.autograd.backward(outputs, [upstream] * 3)
        gradients = [parameter.grad for parameter in module.parameters()]
        found[name] = [x.grad, *outputs, *gradients, *module.state_dict().values(), module.eval()(images[0])]
    torch.testing.assert_close(found["shared"], found["ordinary"])


def test_synchronising_keeps_the_activations_of_mobilenet(process_group):
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_100_dk", num_classes=4, drop_rate=0.0).train()
    images = torch.randn(2, 3, 64, 64)
    before = model(images)
    shared = SharedBatchNorm().apply(model)
    assert {type(module).__name__ for module in shared.modules()} >= {"SyncBatchNormAct2d"}
    torch.testing.assert_close(shared(images), before, rtol=1e-3, atol=1e-4)
