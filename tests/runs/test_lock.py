"""One process at a time in a folder: which one is named, and nothing is left of one that is gone."""

import errno
import fcntl
import multiprocessing
import subprocess
import sys
import threading

import pytest

from dk_bench.errors import BusyError
from dk_bench.runs import lock
from dk_bench.runs.lock import LOCK, hold, is_held, wait_for


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.01)


def test_folder_is_held_by_one(tmp_path):
    folder = tmp_path / "run"
    assert not is_held(folder)
    with hold(folder):
        assert is_held(folder)
        with pytest.raises(BusyError, match=r"run: process \d+ on \S+ is training this very run"), hold(folder):
            pass
        assert is_held(folder)
    assert not is_held(folder)
    with hold(folder):
        pass


def test_lock_goes_with_its_process(tmp_path):
    code = "import fcntl, sys; s = open(sys.argv[1], 'a'); fcntl.flock(s, fcntl.LOCK_EX); print(1, flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert is_held(tmp_path)
        process.kill()
    assert not is_held(tmp_path)


def test_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="no locks there"), hold(tmp_path):
        pass


def test_file_of_an_earlier_process_holds_nothing(tmp_path):
    (tmp_path / LOCK).write_text("process 1 on elsewhere\n")
    assert not is_held(tmp_path)
    with hold(tmp_path), pytest.raises(BusyError, match=r"process \d\d+ on"), hold(tmp_path):
        pass


def test_children_forked_meanwhile_keep_nothing(tmp_path):
    fork = multiprocessing.get_context("fork")
    done = fork.Event()
    with hold(tmp_path):
        child = fork.Process(target=done.wait)
        child.start()
    assert not is_held(tmp_path)
    done.set()
    child.join()


def test_only_one_goes_on_of_those_that_wait(tmp_path):
    path, inside, most = tmp_path / "a.lock", [], []
    together = threading.Barrier(3)

    def work():
        together.wait()
        for _ in range(20):
            with wait_for(path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 60


def test_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OSError), hold(tmp_path):
        pass
