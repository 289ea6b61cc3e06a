"""On terminals of any width, and where there is none, names stand whole."""

import io

import pytest
from rich.console import Console
from table_cases import PROCEDURAL, make_record

from dk_bench.analysis.bench.tables import document as bench_document
from dk_bench.analysis.console import progress
from dk_bench.analysis.erf.study import study
from dk_bench.analysis.erf.summary import summary
from dk_bench.analysis.erf.tables import ABOUT, document
from dk_bench.analysis.pictures import open_pictures
from dk_bench.analysis.subjects import open_model
from dk_bench.cli import main
from dk_bench.runs.record import write_record
from dk_bench.sweep.job import Job
from dk_bench.sweep.progress import SweepProgress
from dk_bench.tables.entries import Right
from dk_bench.tables.table import Table
from dk_bench.tables.terminal import print_table, show

NAMES = ["test_resnetdw_dcn_dk", "test_resnetdw_dcn", "test_resnetdw_dk_s3", "test_resnetdw_dk_s5"]
COLUMNS = ("model", "top-1", "sampling MMACs")


PLACES = [(20, False), (80, False), (20, True), (60, True), (300, True)]


@pytest.fixture
def places(monkeypatch):
    """Goes through widths of the output, each in the environment of a pipe, of CI or of a terminal."""

    def enter():
        for width, terminal in PLACES:
            monkeypatch.setenv("COLUMNS", str(width))
            monkeypatch.setenv("TERM", "xterm")
            for name in ("FORCE_COLOR", "NO_COLOR"):
                monkeypatch.setenv(name, "1") if terminal else monkeypatch.delenv(name, raising=False)
            yield width, terminal

    return enter()


def shown(width: int, terminal: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    rows = [["[b] a name of words", Right("59.7 ± 2.9 (n=3)"), Right("1")], ["b", Right("-"), Right("2")]]
    table = Table("", COLUMNS, rows, rules=(1,))
    print_table(console, "A title of\n[b] names", table, ["A note of several words."])
    assert console.width == width
    return console.file.getvalue().splitlines()


def test_table_is_as_wide_as_its_words():
    lines = shown(20, False)
    assert "│ [b] a name of words │ 59.7 ± 2.9 (n=3) │              1 │" in lines and len(lines) == 10
    lines = shown(20, True)
    assert "│ [b] a name of words │  59.7 │        1 │" in lines
    assert "┃ model               ┃ top-1 ┃    MMACs ┃" in lines
    assert len({len(line) for line in lines[2:-2] if line[0] in "│┃├"}) == 1
    assert any("┃ sampling ┃" in line for line in lines)
    assert "│ 59.7 ± 2.9 (n=3) │ " in " ".join(shown(60, True))  # where there is room, it is used


def test_tables_show_every_name(places, tmp_path, capsys):
    data = PROCEDURAL | {"name": "photographs_of_animals_and_tools"}
    for name in NAMES:
        write_record(make_record(name, 50.0, data=data), tmp_path / name / "record.json")
    for place in places:
        assert main(["tables", str(tmp_path), "--table", "demo"]) == 0
        printed = capsys.readouterr().out
        assert all(f" {name} " in printed for name in (*NAMES, data["name"])) and "…" not in printed, place
        assert "50.0" in printed and str(tmp_path / "demo.tex") in printed.splitlines()[-1], place


def test_models_show_every_name(places, capsys):
    for place in places:
        assert main(["models", "--filter", "test_resnetdw_dk_s[35]", "--input-size", "32"]) == 0
        printed = capsys.readouterr().out
        assert all(f" {name} " in printed for name in NAMES[2:]) and "…" not in printed, place


def test_bench_shows_every_name(places):
    device = {"name": "[processor]", "threads": 1}
    timing = {
        "setting": "float32",
        "shape": "128 x 56 x 56",
        "variant": "",
        "mode": "forward+backward",
        "seconds": 1.0,
        "median": 1.0,
        "cold": 1.0,
        "ratio": 1.0,
        "over_float32": None,
        "copy_share": 1.0,
        "peak_memory": None,
    }
    operators = [timing | {"operator": name} for name in ("torchvision deform_conv2d", "torchvision deform_conv2d v2")]
    speed = dict.fromkeys(("train_images_per_second", "train_ratio", "eval_images_per_second", "eval_ratio"), 1.0)
    speeds = [speed | {"model": name, "base": NAMES[0], "batch": 2, "size": 32, "peak_memory": None} for name in NAMES]
    part = {"instruction_set": "avx2", "conclusions": [], "warnings": [], "host_overhead": {}}
    record = {"device": device, "settings": {"precision": "float32"}, "conclusions": [], "warnings": []}
    wanted = ["128 x 56 x 56", "torchvision deform_conv2d", "torchvision deform_conv2d v2", "forward+backward", *NAMES]
    for width, terminal in places:
        console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
        show(bench_document(record | {"kind": "operator times", "parts": [part | {"timings": operators}]}), console)
        show(bench_document(record | {"kind": "model speeds", "parts": [part | {"speeds": speeds}]}), console)
        printed = console.file.getvalue()
        assert printed.count("[processor], ") == 2 and "float32, random weights, " in printed and " 2 at 32 " in printed
        assert all(f" {name} " in printed for name in wanted) and "…" not in printed, (width, terminal)


def test_receptive_fields_show_every_name(places, capsys):
    fields = study([open_model(name, 32) for name in NAMES[2:]], open_pictures("random", 32, 1))
    for place in places:
        show(document(summary(fields), dict.fromkeys(ABOUT), []), Console())
        printed = capsys.readouterr().out
        assert all(f" {name} " in printed for name in NAMES[2:]) and "…" not in printed, place


@pytest.mark.parametrize("width", [60, 80, 200])
def test_sweeps_progress_shows_every_run(width, tmp_path):
    names = [f"model.name={name} seed={seed}" for name in NAMES for seed in range(2)]
    jobs = [Job(name, ["true"], tmp_path / f"{n}.log") for n, name in enumerate(names)]
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bars = SweepProgress(jobs, 2, console)
    for job in jobs:
        job.log.write_text("epoch 3 of 12: the last line of a log, which is long\n")
        job.state = "running"
        bars.changed(job)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(bars.progress.get_renderable())
    printed = console.file.getvalue()
    lines = printed.splitlines()
    assert max(map(len, lines)) == width
    for name in NAMES:
        assert sum(f"model.name={name}" in line.split() for line in lines) == 2
    assert printed.count("seed=0") == printed.count("seed=1") == len(NAMES) and "runs, 8 running" in printed


def test_progress_shows_every_name():
    console = Console(file=io.StringIO(), width=50, force_terminal=True, color_system=None)
    with progress(console) as bar:
        bar.add_task(f"receptive fields of {NAMES[0]}", total=3)
        text = io.StringIO()
        Console(file=text, width=50, color_system=None).print(bar.get_renderable())
    assert "receptive fields of" in text.getvalue() and NAMES[0] in text.getvalue()
    assert "0/3 -:--:--" in text.getvalue() and "…" not in text.getvalue()  # how far it is stands whole too
