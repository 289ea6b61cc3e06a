"""Attempts of a run: kept over resuming, told when their process is gone."""

import dataclasses
import json
import subprocess
import sys

import pytest

from dk_bench.errors import UserError
from dk_bench.runs.attempts import STALE, is_gone, this_process
from dk_bench.runs.record import as_it_stands, attempts_of, new_record, read_record, write_record
from dk_bench.tables.documents import build_documents
from dk_bench.tables.render import markdown


def make_record(**more):
    model, data = {"name": "a"}, {"name": "d", "classes": 2}
    return new_record(name="test", config={}, model=model, data=data, seed=0, device="cpu", **more)


@pytest.fixture
def dead_process():
    """A process of this machine that has ended."""
    code = "import json; from dk_bench.runs.attempts import this_process; print(json.dumps(this_process()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_attempts_add_up(tmp_path):
    first = dataclasses.replace(make_record(), status="failed", error="power cut", ended="2026-01-01T00:00:00+00:00")
    first = read_record(write_record(first, tmp_path / "record.json"))
    first.attempts[0]["started"] = "2025-12-31T00:00:00+00:00"
    second = make_record(earlier=attempts_of(first))
    second.status = "finished"
    second = read_record(write_record(second, tmp_path / "record.json"))
    assert [attempt["status"] for attempt in second.attempts] == ["failed", "finished"]
    assert [attempt["error"] for attempt in second.attempts] == ["power cut", None]
    assert second.started == "2025-12-31T00:00:00+00:00" < second.attempts[1]["started"]
    assert all({"git", "device", "versions", "ended"} <= attempt.keys() for attempt in second.attempts)
    assert not any("process" in attempt for attempt in second.attempts)  # of no use any more


def test_record_without_attempts_is_read(tmp_path):
    path = write_record(make_record(), tmp_path / "record.json")
    content = json.loads(path.read_text())
    del content["attempts"]
    path.write_text(json.dumps(content))
    old = read_record(path)
    assert old.attempts == [] and as_it_stands(old) is old  # nobody knows its process
    resumed = make_record(earlier=attempts_of(old))
    assert [(a["status"], a["error"]) for a in resumed.attempts] == [("failed", STALE), ("running", None)]
    path.write_text(json.dumps(content | {"attempts": [{"started": ""}]}))
    with pytest.raises(UserError, match=r"attempts\[0\] is no attempt: expected started"):
        read_record(path)


def test_running_record_of_a_process_that_is_gone(dead_process):
    record = make_record()
    assert as_it_stands(record).status == "running"
    record.attempts[-1]["process"] = dead_process
    stale = as_it_stands(record)
    assert (stale.status, stale.error, stale.attempts[-1]["status"]) == ("failed", STALE, "failed")
    assert "| failed" in markdown(build_documents([stale])["other"])
    assert as_it_stands(dataclasses.replace(record, status="finished")).status == "finished"


def test_processes_are_told_apart(dead_process):
    here = this_process()
    assert not is_gone(here) and is_gone(dead_process)
    assert is_gone(here | {"boot": "of another day"})
    assert not is_gone(dead_process | {"host": "another machine"})
    if here["began"] is not None:
        assert is_gone(here | {"began": here["began"] - 1})  # the number went to another process since


def test_name_of_the_machine_is_not_told():
    import platform

    assert platform.node() not in json.dumps(this_process())
