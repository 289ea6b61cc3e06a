"""What the command says of itself and of bad usage."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dk_bench
from dk_bench.cli import COMMANDS, main
from dk_bench.functional.loading import HAS_CUDA

ROOT = Path(__file__).parents[2]


def test_version_tells_which_operators_were_built(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"dk_bench {dk_bench.__version__}, torch {torch.__version__}, operators: CPU (")
    assert printed.endswith(", CUDA\n") == HAS_CUDA


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"dk-bench {command}" in capsys.readouterr().out


def test_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    assert "'trian'" in capsys.readouterr().err


def test_reader_that_has_enough():
    command = f"{shlex.quote(sys.executable)} -m dk_bench sweep sweeps/imagenet_scope.yaml --dry-run"
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "" and done.returncode in (0, 1)
