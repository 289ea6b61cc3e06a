"""A disk that is full: one sentence from every command, and nothing that is half-written."""

import resource
import sys

import pytest
from image_files import picture
from training_cases import ONE_STEP

from dk_bench.cli import main

CONFINED = resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY
TRAIN = ("train", "config.yaml", "model.name=test_resnetdw", *ONE_STEP)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run in runs/ and an image."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "config.yaml").write_text("")
        assert main([*TRAIN, "output=runs"]) == 0
    picture(place / "a.png", size=(64, 64))
    return place


@pytest.fixture
def give(trained, monkeypatch):
    """Lets files grow to so many bytes and no further, until the test's end."""
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python keeps what it could write of a module's, a part
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(CONFINED, reason="limited already")
@pytest.mark.parametrize(
    ("command", "room", "said"),
    [
        (["export", "RUN", "--to", "out"], 100_000, "--to out: cannot be written: File too large"),
        (["export", "RUN", "--to", "out", "--format", "pt2"], 100_000, "--to out: cannot be written: File too large"),
        (["predict", "RUN", "a.png", "--output", "out.csv"], 20, "--output out.csv: File too large"),
        (["predict", "RUN", "a.png", "--pictures", "out"], 2_000, "--pictures out: File too large"),
        ([*TRAIN, "output=out"], 100_000, "File too large; the same command goes on from the run's last checkpoint"),
        ([*TRAIN, "output=out"], 100, "File too large; the same command goes on from the run's last checkpoint"),
    ],
    ids=["timm", "pt2", "csv", "pictures", "checkpoint", "record"],
)
def test_full_disk_is_one_sentence(command, room, said, trained, give, capsys):
    (run,) = (trained / "runs").glob("run-*")
    before = set(trained.rglob("*"))
    give(room)
    assert main([str(run) if word == "RUN" else word for word in command]) in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"dk-bench {command[0]}: {said}")
    left = {path.name for path in set(trained.rglob("*")) - before if path.is_file()}
    assert left <= {"run.lock", "record.json"}
