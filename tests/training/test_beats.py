"""The heartbeat of a run that trains: cheap, whole or not at all, and never in the way."""

import json
import os
import platform
from pathlib import Path

import pytest
from training_cases import STEPS, PowerCut, tiny

from dk_bench.runs import heartbeat
from dk_bench.runs.heartbeat import Beat, read_beat, seconds_idle, write_beat
from dk_bench.training import beats, run_folder, train

SHORT = ("optim.epochs=2", "optim.warmup_epochs=0", "trainer.checkpoint_every_n_steps=2")
BEAT = Beat(time=130.0, epoch=1, epochs=4, step=50, steps=200, began=100.0, first=20, host="here", pid=1)


def test_run_tells_how_far_it_is_and_goes_on_from_there(tmp_path, monkeypatch):
    monkeypatch.setattr(beats, "EVERY_SECONDS", 0.0)
    config, written = tiny(tmp_path, *SHORT), []

    def note(folder, beat):
        assert folder == run_folder(config)
        write_beat(folder, beat)
        written.append(read_beat(folder))
        assert written[-1] == beat

    monkeypatch.setattr(beats, "write_beat", note)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, callbacks=[PowerCut(STEPS - 1)])
    assert [beat.step for beat in written] == [1, 2] and read_beat(run_folder(config)) is None
    train(config)
    first, *_, last = written[2:]
    # After training, the images of validation beat too.
    assert (first.step, first.first, first.epoch) == (3, 3, 0)
    assert (last.step, last.steps, last.first, last.epochs) == (2 * STEPS, 2 * STEPS, 3, 2)
    assert (last.host, last.pid) == (platform.node(), os.getpid())
    assert [beat.step for beat in written[2:]] == sorted(beat.step for beat in written[2:])
    assert all(beat.began == first.time for beat in written[2:])
    assert not (run_folder(config) / heartbeat.FILE).exists()


def test_at_most_one_beat_in_a_while(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(beats, "EVERY_SECONDS", 1e6)
    monkeypatch.setattr(beats, "write_beat", lambda folder, beat: written.append(beat))
    train(tiny(tmp_path, *SHORT))
    assert [beat.step for beat in written] == [1]


def test_beat_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(beats, "EVERY_SECONDS", 0.0)
    config = tiny(tmp_path, *SHORT)
    (run_folder(config) / heartbeat.FILE).mkdir(parents=True)  # no file can take its place
    assert train(config).status == "finished"
    assert read_beat(run_folder(config)) is None and not list(run_folder(config).glob(".*.tmp"))


def test_what_is_left_is_told_from_this_attempts_steps():
    assert BEAT.seconds_left() == 30.0 / 30 * 150
    assert Beat(**(vars(BEAT) | {"steps": None})).seconds_left() is None
    assert Beat(**(vars(BEAT) | {"first": 50})).seconds_left() is None


def test_idle_since_the_last_step_or_the_beginning():
    assert seconds_idle(BEAT, since=90.0, now=140.0) == 10.0
    assert seconds_idle(BEAT, since=135.0, now=140.0) == 5.0
    assert seconds_idle(None, since=135.0, now=140.0) == 5.0
    assert seconds_idle(BEAT, since=90.0, now=120.0) == 0.0  # another machine's clock is ahead


@pytest.mark.parametrize("text", ["", "{", "[]", "3", json.dumps(vars(BEAT) | {"more": 1}), "\xff"])
def test_file_that_is_no_beat_is_none(tmp_path, text):
    assert read_beat(tmp_path) is None
    Path(tmp_path, heartbeat.FILE).write_bytes(text.encode("latin1"))
    assert read_beat(tmp_path) is None
    write_beat(tmp_path, BEAT)
    assert read_beat(tmp_path) == BEAT
