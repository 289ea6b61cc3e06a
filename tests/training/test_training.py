"""Whole runs on a tiny model: what they leave, how they resume, how they fail."""

import pickle
import re
import signal

import pytest
import torch
from own_trainer_cases import trainer
from torch.utils.data import DataLoader
from training_cases import EPOCHS, STEPS, TINY, PowerCut, timeless, tiny

from dk_bench.classification.data import ClassificationData
from dk_bench.classification.timm_models import build_model
from dk_bench.cli import main
from dk_bench.config import to_dict
from dk_bench.errors import UserError
from dk_bench.nn import DeformKernel2d
from dk_bench.runs.environment import portable
from dk_bench.runs.record import read_record
from dk_bench.training import Diverged, LitClassifier, evaluate, load_model, read_checkpoint, run_folder, train
from dk_bench.training.ending import reason
from dk_bench.training.run_data import RunData


def outcome(config):
    """Everything a run computed: checkpoint tensors and the record's metrics, without times."""
    checkpoint = read_checkpoint(run_folder(config) / "last.ckpt")
    metrics = timeless(read_record(run_folder(config) / "record.json"))
    return checkpoint, metrics


def assert_same_outcome(config, other):
    (a, metrics), (b, other_metrics) = outcome(config), outcome(other)
    assert metrics == other_metrics and len(metrics) == EPOCHS
    for key in ("state_dict", "module_state", "current_model_state"):
        assert a.get(key, {}).keys() == b.get(key, {}).keys()
        for name, value in a.get(key, {}).items():
            assert torch.equal(value, b[key][name]), name
    momenta, other_momenta = (c["optimizer_states"][0]["state"] for c in (a, b))
    assert all(torch.equal(momenta[k]["momentum_buffer"], other_momenta[k]["momentum_buffer"]) for k in momenta)
    assert a["lr_schedulers"] == b["lr_schedulers"] and a["global_step"] == b["global_step"] == EPOCHS * STEPS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never interrupted, and its configuration."""
    config = tiny(tmp_path_factory.mktemp("straight"))
    return config, train(config, command=["dk-bench", "train", "tiny.yaml"])


def test_record_of_a_run(finished):
    config, record = finished
    assert read_record(run_folder(config) / "record.json").metrics == record.metrics
    assert (record.status, record.error, record.name, record.seed) == ("finished", None, "tiny", 0)
    assert record.model["name"] == "test_resnetdw_dk" and record.model["num_classes"] == 6
    assert record.model["input_size"] == [3, 32, 32] and record.model["spec"]["depthwise"] == "local"
    assert (record.data["train_images"], record.data["val_images"], len(record.data["classes"])) == (26, 12, 6)
    assert record.config["optim"]["epochs"] == EPOCHS and record.command == ["dk-bench", "train", "tiny.yaml"]
    assert record.cost["params"] == sum(p.numel() for p in load_model(run_folder(config) / "last.ckpt").parameters())
    assert record.cost["macs"] > 0 and record.cost["sampling_macs"] > 0
    assert record.throughput["train_images_per_second"] > 0 and record.throughput["eval_images_per_second"] > 0
    assert record.started <= record.ended


def test_metrics_of_a_run(finished):
    record = finished[1]
    epochs = record.metrics["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == list(range(EPOCHS))
    assert record.metrics["final"] == epochs[-1]
    for epoch in epochs:
        assert {"train/loss", "val/loss", "val/top1", "val/top5", "lr", "seconds"} <= epoch.keys()
        assert 0 <= epoch["val/top1"] <= epoch["val/top5"] <= 100
        assert 12 * epoch["val/top1"] / 100 == pytest.approx(round(12 * epoch["val/top1"] / 100), abs=1e-4)
    assert epochs[0]["lr"] == pytest.approx(0.05) and epochs[-1]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("classes", [5, 6])
def test_top5_is_shown_where_it_can_be_wrong(tmp_path, capsys, classes):
    train(tiny(tmp_path, f"data.procedural.classes={classes}", "optim.epochs=1", "optim.warmup_epochs=0"))
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch 1/1"))
    assert "top-1" in line and ("top-5" in line) == (classes > 5)


def test_finished_run_is_not_repeated(finished, capsys):
    config, record = finished
    again = train(config, callbacks=[PowerCut(0)])
    assert again.ended == record.ended and again.metrics == record.metrics
    assert "finished" in capsys.readouterr().err


def test_evaluating_the_checkpoint_gives_the_last_epoch(finished, capsys, tmp_path):
    config, record = finished
    path = run_folder(config) / "last.ckpt"
    assert main(["eval", str(path), "data.batch_size=5", "--record", str(tmp_path / "eval.json")]) == 0
    evaluated = read_record(tmp_path / "eval.json")
    for name in ("val/top1", "val/top5"):
        assert evaluated.metrics["final"][name] == record.metrics["final"][name]
    assert evaluated.metrics["final"]["val/loss"] == pytest.approx(record.metrics["final"]["val/loss"], rel=1e-4)
    assert "of 12 images of procedural" in capsys.readouterr().out


def test_loaded_model_computes_what_was_evaluated(finished):
    config, record = finished
    model = load_model(run_folder(config) / "last.ckpt")
    images, labels = zip(*ClassificationData(config.data, 0).val_dataloader(), strict=True)
    with torch.no_grad():
        right = (model(torch.cat(images)).argmax(1) == torch.cat(labels)).sum().item()
    assert not model.training
    assert 100 * right / 12 == pytest.approx(record.metrics["final"]["val/top1"], abs=1e-3)


def test_checkpoint_loads_with_weights_only(finished):
    checkpoint = torch.load(run_folder(finished[0]) / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["config"]["model"]["name"] == "test_resnetdw_dk"
    assert checkpoint["epoch"] == EPOCHS - 1


@pytest.mark.parametrize("cut", [0, 6, 8], ids=["before the first step", "between epochs", "in an epoch"])
def test_resumed_after_epochs_equals_uninterrupted(finished, tmp_path, cut):
    config = tiny(tmp_path)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(cut)])
    failed = read_record(run_folder(config) / "record.json")
    assert (failed.status, failed.error) == ("failed", "RuntimeError: power cut")
    assert len(failed.metrics["epochs"]) == cut // STEPS
    assert train(config).status == "finished"
    assert_same_outcome(finished[0], config)


def test_resumed_inside_an_epoch_equals_uninterrupted(finished, tmp_path):
    config = tiny(tmp_path, "trainer.checkpoint_every_n_steps=2", "ema.decay=0.5")
    for cut in (5, 9, 11):  # checkpoints of steps 4, 8 and 10 inside epochs, of 9 at an epoch's end
        with pytest.raises(RuntimeError, match="power cut"):
            train(config, callbacks=[PowerCut(cut)])
    train(config)
    straight = tiny(tmp_path / "straight", "trainer.checkpoint_every_n_steps=2", "ema.decay=0.5")
    train(straight)
    assert_same_outcome(straight, config)
    # The average is evaluated, the weights below it are those of a run without averaging.
    (averaged, _), (plain, _) = outcome(config), outcome(finished[0])
    name = "conv1.0.weight"
    assert torch.equal(averaged["current_model_state"][f"model.{name}"], plain["state_dict"][name])
    assert not torch.equal(averaged["state_dict"][name], plain["state_dict"][name])


def test_seed_changes_the_run_and_its_folder(finished, tmp_path):
    config = tiny(tmp_path, "seed=1", "optim.epochs=2")
    assert run_folder(tiny(tmp_path, "seed=1")) != run_folder(tiny(tmp_path))
    assert run_folder(tiny(tmp_path)).name == run_folder(finished[0]).name
    first = train(config).metrics["epochs"][0]["train/loss"]
    assert first != finished[1].metrics["epochs"][0]["train/loss"]


@pytest.fixture
def restore_interrupts():
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones while it shuts down


def test_interrupt_is_told_from_other_failures(tmp_path, restore_interrupts):
    config = tiny(tmp_path)
    with pytest.raises(SystemExit):
        train(config, callbacks=[PowerCut(4, KeyboardInterrupt())])
    record = read_record(run_folder(config) / "record.json")
    assert (record.status, record.error, len(record.metrics["epochs"])) == ("failed", "interrupted", 1)


@pytest.mark.parametrize(
    ("model", "reason"), [("test_resnetdw", "training loss is nan"), ("test_resnetdw_dk", "kernel_offset: NaN")]
)
def test_diverged_run_fails_and_says_at_which_step(tmp_path, capsys, model, reason):
    path = tmp_path / "tiny.yaml"
    path.write_text("name: diverging\n")
    overrides = [*TINY[1:], f"output={tmp_path}", f"model.name={model}", "optim.lr=1e30", "optim.warmup_epochs=0"]
    assert main(["train", str(path), *overrides]) == 1
    (folder,) = tmp_path.glob("diverging-*")
    record = read_record(folder / "record.json")
    assert record.status == "failed" and record.metrics["final"] == {} and record.ended
    assert record.error.startswith(reason) and record.error.endswith("at step 1 (epoch 0)")
    assert record.error in capsys.readouterr().out


@pytest.mark.parametrize("inference_mode", [True, False])
def test_an_evaluated_model_that_makes_nan_offsets_is_told_as_diverged(tmp_path, inference_mode):
    config = tiny(tmp_path, "model.name=test_resnetdw_dk")
    data = ClassificationData(config.data, config.seed)
    module = LitClassifier(to_dict(config), data.val_images.classes)
    torch.nn.init.constant_(next(module.model.parameters()), torch.nan)
    with pytest.raises(Diverged, match=r"^kernel_offset: NaN at index \(0, 0, 0, 0\) at step 0 \(epoch 0\)$"):
        trainer(inference_mode=inference_mode).validate(module, data, verbose=False)


def test_checkpoint_of_another_model_in_the_run_folder(finished, tmp_path):
    config = tiny(tmp_path, "model.name=test_resnetdw", "data.procedural.classes=5")
    run_folder(config).mkdir(parents=True)
    path = run_folder(config) / "last.ckpt"
    path.write_bytes((run_folder(finished[0]) / "last.ckpt").read_bytes())
    with pytest.raises(UserError, match=r"of test_resnetdw_dk with 6 classes, expected test_resnetdw with 5 classes"):
        train(config)


STANDSTILL = ("optim.epochs=1", "optim.warmup_epochs=0", "optim.lr=1e-30")


def test_starting_from_a_checkpoint(finished, tmp_path):
    path = run_folder(finished[0]) / "last.ckpt"
    config = tiny(tmp_path, f"model.checkpoint={path}", *STANDSTILL)
    train(config)
    started, held = (read_checkpoint(run_folder(c) / "last.ckpt")["state_dict"] for c in (config, finished[0]))
    weights = [name for name in held if "running_" not in name and "num_b" not in name]
    assert len(weights) > 50 and all(torch.equal(started[name], held[name]) for name in weights)
    with pytest.raises(UserError, match=r"model\.checkpoint.*of test_resnetdw_dk, expected one of test_resnetdw$"):
        train(tiny(tmp_path, f"model.checkpoint={path}", "model.name=test_resnetdw"), callbacks=[PowerCut(0)])


def test_starting_a_deformed_model_from_its_rigid_base(tmp_path):
    rigid = tiny(tmp_path, "model.name=test_resnetdw", "optim.epochs=2")
    train(rigid)
    path = run_folder(rigid) / "last.ckpt"
    start = build_model(tiny(tmp_path, f"model.checkpoint={path}").model, 6).eval()
    images = torch.randn(2, 3, 32, 32)
    assert any(isinstance(module, DeformKernel2d) for module in start.modules())
    torch.testing.assert_close(start(images), load_model(path)(images))
    with pytest.raises(UserError, match=r"expected one of mobilenetv2_100_dk or of its rigid base mobilenetv2_100$"):
        build_model(tiny(tmp_path, f"model.checkpoint={path}", "model.name=mobilenetv2_100_dk").model, 6)


def test_evaluating_with_what_does_not_fit(finished, tmp_path):
    path = run_folder(finished[0]) / "last.ckpt"
    with pytest.raises(UserError, match=r"of test_resnetdw_dk with 6 classes, expected test_resnetdw with"):
        evaluate(path, ["model.name=test_resnetdw"])
    with pytest.raises(UserError, match=r"6 classes \(triangle, .*7 classes"):
        evaluate(path, ["data.procedural.classes=7"])
    (tmp_path / "x.ckpt").write_text("no checkpoint")
    with pytest.raises(UserError, match=r"x\.ckpt: not a checkpoint of plain data"):
        evaluate(tmp_path / "x.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "y.ckpt")
    with pytest.raises(UserError, match=r"y\.ckpt: not a checkpoint of dk_bench"):
        evaluate(tmp_path / "y.ckpt")
    with pytest.raises(UserError, match=r"z\.ckpt: no checkpoint"):
        evaluate(tmp_path / "z.ckpt")


def test_checkpoint_that_could_run_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return print, ("code ran",)

    torch.save({"hyper_parameters": Payload()}, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"bad\.ckpt: not a checkpoint of plain data"):
        load_model(tmp_path / "bad.ckpt")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=test_resnetdv", r"'test_resnetdv', which timm does not know, did you mean test_resnetdw"),
        ("model.kwargs.wheels=4", r"test_resnetdw_dk cannot be made with .*wheels"),
        ("trainer.precision=12-bit", r"key 'trainer.precision' is '12-bit', expected one of 32-true, "),
        ("trainer.accelerator=abacus", r"section 'trainer': .*abacus"),
        ("trainer.accelerator=tpu", r"section 'trainer': .*torch_xla"),
    ],
)
def test_settings_only_the_libraries_can_check(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train(tiny(tmp_path, override))


def test_wandb_offline_keeps_the_run_id_over_a_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(tmp_path, "wandb.mode=offline", "optim.epochs=2")
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(4)])
    first = read_record(run_folder(config) / "record.json").run_id
    assert train(config).run_id == first
    parts = sorted((run_folder(config) / "wandb").glob("offline-run-*"))
    # the second may begin in the same second as the first, and W&B then numbers its folder
    assert len(parts) == 2 and all(re.search(rf"-{first}(-\d+)?$", part.name) for part in parts)
    assert all(any(part.glob("*.wandb")) for part in parts)


def test_damaged_image_ends_the_run_with_its_name(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (10 * i, len(split), len(name))).save(tmp_path / split / name / f"{i}.png")
    damaged = tmp_path / "train" / "bee" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    config = tiny(
        tmp_path, "data.source=timm", f"data.train={tmp_path}/train", f"data.val={tmp_path}/val", "data.workers=1"
    )
    with pytest.raises(UserError, match=r"^\S+train: image bee/2\.png cannot be read: [^\n]+$") as raised:
        train(config)
    record = read_record(run_folder(config) / "record.json")
    assert record.status == "failed" and record.error == portable(str(raised.value))


def refuse(number):
    raise UserError(f"worker {number} is refused")


def test_what_a_task_has_its_loaders_workers_do_is_done():
    """Also by those that are not forked, which get it pickled; a UserError comes from there as from anywhere."""
    begin = RunData().loader([1, 2], None, 1, worker_init_fn=refuse).worker_init_fn
    with pytest.raises(UserError, match="^worker 0 is refused$"):
        list(DataLoader([1, 2], num_workers=1, worker_init_fn=pickle.loads(pickle.dumps(begin))))


def test_error_of_several_lines_is_recorded_whole():
    error = UserError("expected one of these:\n- a\n- b", key="x", value=3)
    assert reason(error) == str(error) == str(pickle.loads(pickle.dumps(error)))
    assert str(error) == "key 'x' is 3, expected one of these:\n- a\n- b"


def test_checkpoint_says_how_long_an_epoch_is(finished):
    held = read_checkpoint(run_folder(finished[0]) / "last.ckpt")
    assert held["task"] == "classification" and held["hyper_parameters"]["steps_per_epoch"] == STEPS
