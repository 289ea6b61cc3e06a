"""What arguments are called, and what they take."""

from __future__ import annotations

import argparse
import importlib
import io
import re
import sys
from pathlib import Path

import pytest

from dk_bench.cli import COMMANDS, main
from dk_bench.cli.options import add_output, check_file, check_folder
from dk_bench.errors import UserError

ROOT = Path(__file__).parents[2]
WRITING = ("bench", "dynamics", "erf", "kernels", "picture", "predict", "replay", "report", "sweep", "tables")


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    importlib.import_module(f"dk_bench.cli.{command}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("command", WRITING)
def test_output_has_one_name_and_the_other_is_taken(command):
    (action,) = [found for found in parser_of(command)._actions if {"--output", "--out"} & {*found.option_strings}]
    assert action.option_strings == ["--output", "--out"] and action.dest == "output"
    assert action.metavar in ("FILE", "FOLDER") and action.type("x") == Path("x")


def test_every_option_with_a_value_says_what_it_is():
    for command in COMMANDS:
        for action in parser_of(command)._actions:
            if action.option_strings and action.nargs != 0:
                assert action.metavar or action.choices, (command, action.dest)
            assert action.help


def test_both_names_write_to_the_same_place(tmp_path, capsys):
    for name in ("--output", "--out"):
        assert main(["picture", name, str(tmp_path / f"{name}.png"), "--rows", "1"]) == 0
        assert (tmp_path / f"{name}.png").is_file()
        capsys.readouterr()
        assert main(["sweep", "sweeps/demo.yaml", "--dry-run", name, "elsewhere"]) == 0
        assert "output=elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "sweeps/demo.yaml", "--dry"],
        ["tables", "--outp", "x"],
        ["models", "--input", "32"],
        ["--vers"],
        ["bench", "ops", "--dev", "cpu"],
        ["eval", "last.ckpt", "--rec", "x.json"],
        ["tables", "none.json", "--output", ""],
    ],
)
def test_beginnings_of_names_and_empty_paths_are_no_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert re.search(
        "unrecognized arguments|required: COMMAND|expected a path, got an empty text", capsys.readouterr().err
    )


def test_documents_and_messages_use_the_one_name():
    files = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/*.md"), *ROOT.glob("dk_bench/**/*.py")]
    used = {path.name for path in files if re.search(r"--out\b", path.read_text(encoding="utf-8"))}
    assert used == {"options.py", "using.md"}  # which say that there are two


def test_output_that_cannot_be_is_told_before_the_work(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "record.json").write_text("{}")  # never read
    monkeypatch.chdir(tmp_path)
    inside = "--output file/x: file is a file, expected a folder"
    for arguments, message in (
        (["tables", "record.json", "--output", "file/x"], inside),
        (["erf", "test_resnetdw", "--output", "file/x"], inside),
        (["dynamics", "none.ckpt", "--output", "file/x"], inside),
        (["kernels", "none.ckpt", "--image", "none.png", "--output", "file"], "--output file: file is a file"),
        (["bench", "ops", "--output", "folder"], "--output folder: is a folder, expected a file"),
        (["picture", "none.yaml", "--output", "folder"], "--output folder: is a folder, expected a file"),
        (["report", ".", "--output", "folder"], "--output folder: is a folder, expected a file"),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err.startswith(f"dk-bench {arguments[0]}: {message}")


def test_folders_are_made_and_others_refused(tmp_path, monkeypatch):
    check_folder(tmp_path / "new" / "newer")
    check_file(tmp_path / "new" / "x.json")
    monkeypatch.chdir(tmp_path)
    check_folder(Path("new"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"--output .*link/x: .*link is a file, expected a folder"):
        check_folder(tmp_path / "link" / "x")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to"):
        check_folder(Path("new"))


def test_defaults_are_paths():
    parser = argparse.ArgumentParser()
    add_output(parser, "FILE", "where", "x.png")
    assert parser.parse_args([]).output == Path("x.png")


def test_a_name_that_the_terminal_cannot_show_stops_no_command(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["models", "--filter", "test_resnetdw", "--input-size", "32"]) == 0
    stream.flush()
    assert b"test_resnetdw" in stream.buffer.getvalue()
    print("é")
