"""Without a server nothing reaches for the network: neither our process nor W&B's own, which is a Go program."""

import ctypes
import os
import platform
import signal
import socket
import struct
import subprocess
import sys

from training_cases import TINY

from dk_bench.runs.record import find_records, read_record
from dk_bench.runs.wandb_records import RECORD_FILE

SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]  # the system call's number
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of the kernel's packet filters
CALL, FIRST_ARGUMENT = 0, 16  # offsets in what the filter sees
ALLOW, KILL = 0x7FFF0000, 0x80000000


def local_sockets_only():
    """Has the kernel kill this process, or any that descends from it, once it opens a socket that can leave the
    machine. That needs no privilege, and no program can undo it."""
    steps = [
        (LOAD, 0, 0, CALL),
        (JUMP_IF_EQUAL, 0, 3, SOCKET),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 1, 0, socket.AF_UNIX),
        (JUMP_IF_EQUAL, 0, 1, socket.AF_NETLINK),  # asks the kernel; W&B's process does, for this machine's interfaces
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, KILL),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SET_SECCOMP, FILTER, program, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "seccomp")


def run_confined(code, *arguments, **more):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        preexec_fn=local_sockets_only,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        **more,
    )


def test_the_kernel_sees_every_process():
    child = "import socket; socket.socket({0}); socket.socket(socket.AF_INET)"
    parent = "import subprocess, sys; print(subprocess.run([sys.executable, '-c', sys.argv[1]]).returncode)"
    assert run_confined(parent, child.format("socket.AF_UNIX")).stdout == f"{-signal.SIGSYS}\n"
    assert run_confined(child.format("socket.AF_INET6")).returncode == -signal.SIGSYS


def test_offline_and_disabled_runs_open_no_socket(tmp_path):
    code = "import sys; from dk_bench.cli import main; sys.exit(any(main(line.split()) for line in sys.argv[1:]))"
    (tmp_path / "config.yaml").write_text("")
    short = " ".join(["train config.yaml", *TINY, "optim.epochs=1 optim.warmup_epochs=0"])
    modes = [f"{short} wandb.mode={mode} output={mode}" for mode in ("offline", "disabled")]
    done = run_confined(code, *modes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [read_record(path).status for path in find_records([tmp_path])] == ["finished"] * 2
    # W&B's process lived and has written the run, the record among its files, for `wandb sync`.
    (record,) = tmp_path.glob("offline/*/record.json")
    (synced,) = tmp_path.glob("**/wandb/offline-run-*")
    (log,) = synced.glob("run-*.wandb")
    assert synced.is_relative_to(record.parent) and b"val/top1" in log.read_bytes()
    assert (synced / "files" / RECORD_FILE).read_bytes() == record.read_bytes()
