"""Windows and macOS, as far as Linux can tell: what they lack is asked for where it is guarded, and nowhere else."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import dk_bench
from dk_bench.processes import groups
from dk_bench.processes.interrupts import STOPS, Interrupted, interrupts
from dk_bench.runs import attempts

PACKAGE = Path(dk_bench.__file__).parent
# Modules and names of the standard library that Windows lacks, and those that mean something else there.
ABSENT = set("fcntl grp posix pty pwd readline resource syslog termios tty".split())
UNLIKE = {
    "os": set(
        "chown fork forkpty getgid getpgid getuid kill killpg mkfifo nice register_at_fork setpgid setsid "
        "sched_getaffinity sched_setaffinity sysconf uname wait waitpid".split()
    ),
    "signal": set("SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIGXCPU alarm pause setitimer".split()),
}
GUARDED = {
    "processes/groups.py": {"os.killpg", "signal.SIGKILL"},
    "processes/interrupts.py": {"signal.SIGCHLD"},
    "processes/requeue.py": {"signal.SIGUSR1"},
    "runs/attempts.py": {"os.kill"},
    "runs/hardware.py": {"os.sched_getaffinity"},
    "sweep/runner.py": {"os.sched_getaffinity"},
}


def test_only_guarded_places_name_what_other_systems_lack():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        names = {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.attr in UNLIKE.get(node.value.id, ())
        }
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {getattr(node, "module", None) for node in imports}
        modules |= {alias.name for node in imports for alias in node.names}
        names |= modules & ABSENT
        if names:
            found[path.relative_to(PACKAGE).as_posix()] = names
    assert found == GUARDED


@pytest.fixture
def windows(monkeypatch):
    """What Python has on Windows alone, and no name that it lacks there."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0x200, raising=False)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    for module, name in ((os, "killpg"), (os, "kill"), (signal, "SIGKILL"), (signal, "SIGCHLD")):
        monkeypatch.delattr(module, name)


def test_groups_of_processes_on_windows(windows):
    told = []
    process = SimpleNamespace(send_signal=lambda number: told.append(number), kill=lambda: told.append("killed"))
    assert groups.apart() == {"creationflags": 0x200}
    groups.ask_to_stop(process)
    groups.end(process)
    assert told == [1, "killed"]


def test_groups_of_processes_elsewhere():
    """A shell and its child end together, first when they are asked to."""
    for stop, number in ((groups.ask_to_stop, signal.SIGTERM), (groups.end, signal.SIGKILL)):
        process = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, **groups.apart())
        process.stdout.readline()
        stop(process)
        assert process.wait(60) == -number
        assert process.stdout.read() == b""  # ends with the last process that holds it, which is the child
        stop(process)  # it has ended: nothing to stop


def test_nobody_asks_windows_whether_a_process_lives(windows, monkeypatch):
    monkeypatch.setattr(attempts, "told_by", lambda path: "")
    process = attempts.this_process()
    assert process["began"] is None and process["boot"] is None
    assert not attempts.is_gone(process) and not attempts.is_gone(process | {"pid": 2**22 + 1})


def test_a_signal_stops_where_nobody_tells_of_children(monkeypatch):
    monkeypatch.delattr(signal, "SIGCHLD")
    with pytest.raises(Interrupted, match="SIGTERM"), interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert not interrupts_are_ours()


def interrupts_are_ours():
    return any(getattr(signal.getsignal(number), "__module__", "") == interrupts.__module__ for number in STOPS)
