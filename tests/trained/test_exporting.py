"""dk-bench export: all of a folder or nothing, and in a sentence what cannot be exported."""

import json
import os
import re
import stat

import pytest
import torch
from trained_cases import changed, run_of

import dk_bench
from dk_bench.cli import main
from dk_bench.cli.export import FORMATS as WORDS
from dk_bench.errors import UserError
from dk_bench.trained import card, timm_hub
from dk_bench.trained.export import FORMATS, export
from dk_bench.trained.snippets import BY_FILES

NAMES = {"config.json", "model.safetensors", "README.md", "record.json", "export.json"}
MODEL = "model.name=test_resnetdw_dk"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("run"), MODEL)


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_the_command_writes_a_folder_that_can_be_loaded(run, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert main(["export", str(run / "last.ckpt"), "--to", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: {', '.join(export(run, tmp_path / 'other'))}\n"
    assert names_in(out) == NAMES and names_in(tmp_path) == {"new", "other"} and names_in(out.parent) == {"out"}
    content = json.loads((out / "export.json").read_text())
    assert set(content["files"]) | {"export.json"} == NAMES and content["formats"].keys() == {"timm"}
    assert (out / "record.json").read_bytes() == (run / "record.json").read_bytes()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(dk_bench.load(out).model(images), dk_bench.load(run).model(images))
    readable = {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    os.umask(mask := os.umask(0))
    assert readable == {0o666 & ~mask}


def test_an_older_export_is_replaced_and_what_it_alone_had_is_gone(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export(run, out)  # an empty folder is free
    (out / "model.onnx").write_text("of an older export")
    changed(out / "export.json", files=[*NAMES, "model.onnx"])
    export(run_of(tmp_path / "another", "model.name=test_resnetdw"), out)
    assert names_in(out) == NAMES and names_in(tmp_path) == {"out", "another"}
    assert json.loads((out / "config.json").read_text())["architecture"] == "test_resnetdw"


@pytest.mark.parametrize("held", ["notes.txt", "folder"])
def test_a_folder_that_holds_other_things_is_left_alone(held, run, tmp_path, capsys):
    export(run, tmp_path / "out")
    (tmp_path / "out" / held).mkdir() if held == "folder" else (tmp_path / "out" / held).write_text("mine")
    before = (tmp_path / "out" / "config.json").stat()
    assert main(["export", str(run), "--to", str(tmp_path / "out")]) == 2
    expected = f"holds {held}; expected a new folder, an empty one or an older export\n"
    assert capsys.readouterr().err == f"dk-bench export: --to {tmp_path / 'out'}: {expected}"
    assert names_in(tmp_path / "out") == NAMES | {held} and (tmp_path / "out" / "config.json").stat() == before


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": 3}', '{"files": [["a"], null]}', "{"])
def test_anothers_file_of_the_name_makes_no_export(content, run, tmp_path):
    (tmp_path / "export.json").write_text(content)
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match="holds a; expected a new folder|export.json: not a JSON file"):
        export(run, tmp_path)
    assert names_in(tmp_path) == {"export.json", "a"}


def test_a_run_is_no_place_for_an_export(run, capsys):
    assert main(["export", str(run), "--to", str(run)]) == 2
    assert "holds last.ckpt, record.json; expected a new folder" in capsys.readouterr().err


def test_the_folder_that_one_is_in_is_not_taken_away(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--to \.: is the folder that you are in, which cannot be replaced"):
        export(run, ".")
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path)  # as a container's volume is
    with pytest.raises(UserError, match="is a mount point, which cannot be replaced; expected one in it"):
        export(run, tmp_path)
    assert tmp_path.exists() and not names_in(tmp_path)


@pytest.mark.parametrize("named", [".", "config.json", "model.safetensors"])
def test_an_export_is_not_replaced_by_what_cannot_be_loaded(named, run, tmp_path):
    export(run, tmp_path / "out")
    with pytest.raises(UserError, match="out: holds the model itself, which would be lost; .* or --format timm onnx$"):
        export(tmp_path / "out" / named, tmp_path / "out", ["onnx"])
    assert names_in(tmp_path / "out") == NAMES
    assert set(export(tmp_path / "out" / named, tmp_path / "out")) == NAMES


@pytest.mark.parametrize("failing", [1, 2])
def test_an_older_export_stays_where_the_new_one_cannot_take_its_place(failing, run, tmp_path, monkeypatch):
    export(run, tmp_path / "out")
    before, calls, replace = (tmp_path / "out" / "config.json").stat(), [], os.replace

    def interrupted(old, new):
        replace(old, new)
        if str(new).endswith((".old", "out")):
            calls.append(new)
            if len(calls) == failing:
                raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "out")
    assert names_in(tmp_path) == {"out"} and names_in(tmp_path / "out") == NAMES
    assert ((tmp_path / "out" / "config.json").stat() == before) == (failing == 1)


@pytest.mark.parametrize("error", [RuntimeError("power cut"), KeyboardInterrupt(), UserError("no room")])
@pytest.mark.parametrize("at", ["weights", "card"])
@pytest.mark.parametrize("older", [True, False])
def test_an_interrupted_export_leaves_nothing(error, at, older, run, tmp_path, monkeypatch):
    if older:
        export(run, tmp_path / "out")
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def stop(*_):
        raise error

    monkeypatch.setattr(*((timm_hub, "_check") if at == "weights" else (card, "text")), stop)
    with pytest.raises(type(error)):
        export(run, tmp_path / "out")
    assert names_in(tmp_path) == ({"out"} if older else set())
    if older:
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_full_disk_is_told(run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dk_bench.trained.timm_hub.save_for_hf", full)
    with pytest.raises(UserError, match=r"^--to .*out: cannot be written: No space left on device$"):
        export(run, tmp_path / "out")
    assert names_in(tmp_path) == set()


LOSS = "training loss is nan at step 3 (epoch 1)"


@pytest.mark.parametrize(
    "run_ends, message",
    [
        ({"status": "failed", "error": LOSS}, f"the run diverged: {re.escape(LOSS)}; its model is of no use"),
        ({"status": "failed", "error": "interrupted", "epochs": 1}, r"training got to 1 of 2 epochs \(interrupted\); "),
        ({"status": "running", "epochs": 1}, "training got to 1 of 2 epochs; expected a finished run, or --unfinished"),
    ],
)
def test_runs_that_diverged_or_have_not_ended(run_ends, message, tmp_path):
    run = run_of(tmp_path / "run", MODEL, **{"epochs": 2} | run_ends)
    with pytest.raises(UserError, match=message):
        export(run, tmp_path / "out")
    if "diverged" in message:
        with pytest.raises(UserError, match=message):
            export(run, tmp_path / "out", unfinished=True)
        return
    assert names_in(tmp_path) == {"run"}
    export(run, tmp_path / "out", unfinished=True)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "**The run is not finished**: training got to 1 of 2 epochs" in text


def test_without_its_record_the_checkpoint_tells_how_far_training_got(tmp_path):
    for epochs in (1, 2):
        run = run_of(tmp_path / f"run{epochs}", MODEL, epochs=epochs)
        (run / "record.json").unlink()
    with pytest.raises(UserError, match="run1: training got to 1 of 2 epochs; expected a finished run"):
        export(tmp_path / "run1", tmp_path / "out")
    assert "record.json" not in export(tmp_path / "run2", tmp_path / "out")


def test_weights_that_are_not_finite(tmp_path):
    run = run_of(tmp_path / "run", MODEL)
    content = torch.load(run / "last.ckpt", weights_only=True)
    content["state_dict"]["fc.bias"][0] = torch.nan
    torch.save(content, run / "last.ckpt")
    with pytest.raises(UserError, match=r"run: weights fc\.bias are not finite"):
        export(run, tmp_path / "out", unfinished=True)
    assert names_in(tmp_path) == {"run"}


def test_bad_arguments_are_one_sentence_each(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    out = ["--to", str(tmp_path / "out")]
    for arguments, message in (
        ([str(tmp_path / "none"), *out], f"{tmp_path / 'none'}: does not exist"),
        ([str(tmp_path / "file"), *out], f"{tmp_path / 'file'}: not a checkpoint"),
        ([str(run), "--to", str(tmp_path / "file")], f"--to {tmp_path / 'file'}: {tmp_path / 'file'} is a file"),
        ([str(run), *out, "--records", str(tmp_path / "none")], f"{tmp_path / 'none'}: no such file or folder"),
        ([str(run), *out, "--records", str(tmp_path / "empty")], f"--records {tmp_path / 'empty'}: no record in it"),
        ([str(run), *out, "--private"], "--private: goes with --push"),
    ):
        assert main(["export", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"dk-bench export: {message}") and said.count("\n") == 1
    for option, message in ((["--license", "My Own"], "hub's name of a licence"), (["--format", "jpeg"], "'jpeg'")):
        with pytest.raises(SystemExit):
            main(["export", str(run), *out, *option])
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="^--format jpeg: expected timm, mmdet, onnx, pt2$"):
        export(run, tmp_path / "out", ["jpeg"])
    assert names_in(tmp_path) == {"empty", "file"}


def test_the_command_knows_all_formats():
    assert tuple(FORMATS) == WORDS
    assert set(FORMATS) == {"timm", *BY_FILES} == set(card.LIBRARIES)


def test_an_export_can_be_exported_again(run, tmp_path):
    export(run, tmp_path / "one")
    export(tmp_path / "one", tmp_path / "two")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    one, two = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two"))
    one["pretrained_cfg"]["label_names"] = one["label_names"]  # where timm puts them as it reads
    assert one == two
