"""``dk-bench bench data`` on few images: the record's content, not its rates."""

import json
import tarfile

import pytest
from PIL import Image
from rich.console import Console

from dk_bench.analysis.bench.loader import LoaderPlan, bench_data, write_images
from dk_bench.analysis.bench.speeds import data_speeds
from dk_bench.analysis.bench.tables import document
from dk_bench.cli import main
from dk_bench.data.procedural import ShapeImages
from dk_bench.report.benches import read_bench
from dk_bench.runs import processor
from dk_bench.tables.terminal import show

FEW = ["--images", "30", "--sizes", "16", "24", "--batch", "8", "--repeats", "2"]


@pytest.fixture(autouse=True)
def unprobed(monkeypatch):
    """Libraries are not asked for their instruction sets, which takes seconds."""
    monkeypatch.setattr(processor, "_probe", dict)


def test_record(tmp_path, capsys):
    path = tmp_path / "rates.json"
    assert main(["bench", "data", *FEW, "--output", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["kind"] == "image rates" and record["device"]["type"] == "cpu"
    settings = {"sizes": [16, 24], "images": 30, "side": 32, "batch": 8, "workers": [0], "place": None}
    assert settings.items() <= record["settings"].items() and record["settings"]["augment"]["color_jitter"] == 0.4
    (part,) = record["parts"]
    kept = {"tar": ["file"], "folder": ["file"], "wds": ["file"], "procedural": ["memory"], "synthetic": []}
    assert [(r["source"], r["decoded"], r["size"], r["workers"], r["mode"]) for r in part["rates"]] == [
        (source, where, size, 0, mode)
        for source in kept
        for size in (16, 24)
        for where in (*kept[source], "every time")
        for mode in ("train", "eval")
    ]
    for rate in part["rates"]:
        assert rate["images"] == 30 and rate["rounds"] == 2 and rate["images_per_second"] >= rate["median"] > 0
    assert [(o["source"], o["images"], o["pixels"]) for o in part["openings"]] == [
        ("tar", 30, [32, 32]),
        ("folder", 30, [32, 32]),
        ("wds", 30, [32, 32]),
        ("procedural", 30, [24, 24]),
        ("synthetic", 30, [500, 375]),
    ]
    assert [o["first_seconds"] is None for o in part["openings"]] == [False, False, False, False, True]
    assert [o["again_seconds"] is None for o in part["openings"]] == [False, False, False, True, True]
    assert [o["source"] for o in part["openings"] if o.get("index_seconds", 0) > 0] == ["wds"]
    assert part["machine"]["processor"]["name"] and {"commit", "dirty"} == set(record["git"])
    printed = capsys.readouterr().out
    assert "procedural" in printed and "tar, 30 of 32 x 32: decoded " in printed
    table = read_bench(path).table
    assert len(table.rows) == 36 and table.rows[0][:5] == ["tar", "file", "16", "train", "0"]


def test_workers_and_readers(tmp_path, capsys):
    write_images(tmp_path, 25, 12, shards=True)
    own = ["--reader", "wds/mine", "--root", str(tmp_path), "--place", "{0000..0000}.tar"]
    path = tmp_path / "rates.json"
    assert main(["bench", "data", *own, *FEW[2:], "--workers", "0", "2", "--output", str(path)]) == 0
    (part,) = json.loads(path.read_text())["parts"]
    assert {(r["source"], r["workers"]) for r in part["rates"]} == {("wds", 0), ("wds", 2)}
    printed = capsys.readouterr().out
    assert "workers" in printed and "samples found" in printed
    words, table = data_speeds(json.loads(path.read_text()))
    assert "by so many workers" in words and "| wds | file | 2 |" in table


def test_own_images(tmp_path, capsys):
    write_images(tmp_path / "mine.tar", 20, 12)
    assert main(["bench", "data", "--place", str(tmp_path / "mine.tar"), *FEW[2:], "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "tar, 20 of 12 x 12: " in printed and "procedural" not in printed
    write_images(tmp_path / "mine", 20, 12)
    record = bench_data(LoaderPlan(["folder"], [8], batch=64, rounds=1, place=str(tmp_path / "mine")))
    assert {rate["images"] for rate in record["parts"][0]["rates"]} == {20}  # fewer than a batch
    assert record["settings"]["place"] == "mine"
    record["parts"][0]["warnings"] = ["a sentence"]
    show(document(record), Console())
    assert "not quiet:\n  a sentence\n" in capsys.readouterr().out


def test_written_images_are_the_procedural_ones(tmp_path):
    write_images(tmp_path / "a.tar", 12, 20)
    write_images(tmp_path / "a", 12, 20)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert len(tar.getnames()) == 12
        for member in tar:
            assert tar.extractfile(member).read() == (tmp_path / "a" / member.name).read_bytes()
    image, label = ShapeImages("train", 12, size=20)[11]
    written = Image.open(tmp_path / "a" / ShapeImages("train", 12).classes[label] / "11.jpg")
    assert written.size == image.size == (20, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "32", "0"], "--sizes: expected at least 1, got 0"),
        (["--images", "0"], "--images: expected at least 1, got 0"),
        (["--shapes", "8,6"], "--shapes: does not go with data"),
        (["--device", "cuda"], "--device cuda: images are loaded by the CPU"),
        (["--place", "here.tar", "--sources", "folder"], "--sources folder: --place here.tar is a tar"),
        (["--place", "nowhere.tar"], "nowhere.tar does not exist"),
        (["--reader", "wds/x"], "--reader wds/x: expected --place with it, and no --sources"),
        (["--reader", "wds/x", "--place", "x-{0..1}.tar"], "'x-{0..1}.tar', of whose 2 shards 2 are missing"),
        (["--root", "here"], "--root here: expected --reader with it"),
        (["--workers", "1", "-1"], "--workers: expected at least 0, got -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys):
    assert main(["bench", "data", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert main(["bench", "ops", "--sizes", "3"]) == 2
    assert "--sizes: does not go with ops" in capsys.readouterr().err
