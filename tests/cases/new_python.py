"""New Python processes that need not import for seconds: forked from one that has imported what is large of others'."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# Nothing of dk_bench, so that a process finds it as a user's does.
IMPORTED = ["torch", "timm", "pytorch_lightning", "mmdet.apis", "mmdet.models"]


def run_new_python(
    argv: list[str], *, cwd: str | Path = ".", env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Runs ``python *argv``, with ``-c`` and code, ``-m`` and a module or a script, as subprocess.run does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        arguments = [str(argument) for argument in argv]
        environment = dict(os.environ if env is None else env)
        process = context.Process(target=_become, args=(arguments, str(cwd), environment, outputs))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        return subprocess.CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in outputs))


def _become(argv: list[str], cwd: str, environment: dict[str, str], outputs: list[Path]) -> None:
    """Makes a forked process one that was started with these."""
    for number, path in enumerate(outputs, 1):
        with open(path, "wb") as stream:
            os.dup2(stream.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv = [sys.executable, *argv]
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    first, *rest = argv
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
