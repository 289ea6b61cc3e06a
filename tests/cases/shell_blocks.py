"""Commands of the shell as the documentation has them: bash itself reads them, and programs that only note down how
they are called stand in for those that they name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

REAL = ("cat", "cp", "head", "ls", "mkdir", "mv", "nproc", "tar", "unzip")  # these do what they do
JOB = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "8"}
# A call is one write, as a block may start several at a time; \x1f ends a word, \x1e a call.
STUB = """#!{bash}
printf -v words '%s\\x1f' "${{0##*/}}" "$@"
printf '%s\\x1e' "$words" >>"$CALLS"
"""


def calls_of(block: str, folder: Path, noted: Iterable[str]) -> list[list[str]]:
    """Runs a block in ``folder`` and returns the calls of the ``noted`` programs: name and arguments of each.

    Fails where bash cannot read a line, finds no file for a pattern, knows no variable or no program of a name.
    """
    bash, programs, log = shutil.which("bash"), folder / "programs", folder / "programs" / "calls.log"
    programs.mkdir(exist_ok=True)
    for name in noted:
        (programs / name).write_text(STUB.format(bash=bash))
        (programs / name).chmod(0o755)
    for name in REAL:
        if not (programs / name).exists():
            (programs / name).symlink_to(shutil.which(name))
    log.write_text("")
    environment = {"PATH": str(programs), "CALLS": str(log), "HOME": str(folder), "SCRATCH": "scratch"} | JOB
    command = [bash, "-u", "-O", "failglob", "-c", block]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), f"{block}\n{done.stderr}"
    return [call.split("\x1f")[:-1] for call in log.read_text().split("\x1e")[:-1]]
