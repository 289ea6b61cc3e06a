"""Folders that reports are made of: as runs leave it, and with all that should not be there; a parser of pages."""

import json
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image, PngImagePlugin

from dk_bench.runs.record import RunRecord, write_record

DATA = {"name": "procedural", "classes": ["a", "b"], "train_images": 300, "val_images": 100}
COMMIT = {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False}
TOP1 = {"test_resnetdw": (60.0, 61.0, 62.0), "test_resnetdw_dk": (61.0, 64.0, 64.0), "test_resnetdw_gdk": (63.5,)}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "'-alert(3)-' </script></style></svg></title><h1>",
    "{{ 7 * 7 }} $x_2$ $\\frac{$ <!-- ]]> &amp;",
    "long" * 2000,
    "\u202eRTL עברית العربية\u2066 \ud800 \0 \x1b[31m 🦝",
]


class Page(HTMLParser):
    """What a page is made of: tags with attributes, scripts, text, and the rows of tables by their first header."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.words, self.open, self.rows = [], [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())
        self.ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts += [data] * (self.open[-1] == "script")
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    def row(self, first):
        return next(row for row in self.rows if row and row[0] == first)


def make_record(model, top1, seed=0, *, metric="val/top1", macs=2_000_000, **changes) -> RunRecord:
    epochs = [{"epoch": n, "train/loss": 2.0 / (n + 1), metric: top1 and top1 - 5 * (2 - n)} for n in range(3)]
    fields = {
        "run_id": f"{model}-s{seed}",
        "name": "test",
        "config": {"seed": seed, "model": {"name": model}},
        "config_hash": "0",
        "model": {"name": model},
        "data": DATA,
        "seed": seed,
        "status": "finished",
        "metrics": {"epochs": epochs, "final": epochs[-1]},
        "cost": {"params": 250_000, "macs": macs, "sampling_macs": 0},
        "throughput": {"train_images_per_second": 400.0 + seed, "eval_images_per_second": 1000.0 + seed},
        "versions": {"torch": "2.11.0"},
        "device": {"type": "cpu", "name": "A processor", "count": 2, "threads": 1},
        "git": COMMIT,
        "command": ["dk-bench", "train", "a b.yaml"],
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:01:30+00:00",
    }
    return RunRecord(**fields | changes)


def timing(operator, ratio, shape="8 x 4 x 4", mode="forward") -> dict:
    return {
        "shape": shape,
        "setting": "float32",
        "operator": operator,
        "variant": "",
        "mode": mode,
        "repeats": 3,
        "median": 0.002 * ratio,
        "quartiles": [0.001, 0.003],
        "ratio": ratio,
        "gigabytes_per_second": 1.0,
        "copy_share": 0.5,
        "peak_memory": None,
    }


def bench(timings) -> dict:
    device = {"type": "cpu", "name": "A processor"}
    return {"schema_version": 2, "kind": "operator times", "device": device, "git": COMMIT, "timings": timings}


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_picture(path: Path, description="") -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Description", description)
    Image.new("RGB", (6, 4), "red").save(path, pnginfo=texts)


def make_folder(folder: Path) -> Path:
    """Three models, one of them with one seed, a failed run with two attempts, a detector, a bench, pictures."""
    runs = [
        make_record(model, top1, seed, macs=2_000_000 + 10_000 * len(model))
        for model, all_top1 in TOP1.items()
        for seed, top1 in enumerate(all_top1)
    ]
    failed = make_record("test_resnetdw_dcn", None, status="failed", error="RuntimeError: out of memory")
    failed.git = COMMIT | {"dirty": True}
    attempt = {name: getattr(failed, name) for name in ("started", "ended", "git", "device", "versions", "status")}
    failed.attempts = [attempt | {"error": "ValueError: the first one"}, attempt | {"error": failed.error}]
    shapes = {"name": "shapes", "classes": 3, "train_images": 30, "val_images": 10}
    detector = make_record("resnet18", 31.5, metric="val/mAP", task="detection", data=shapes)
    for number, record in enumerate([*runs, failed, detector]):
        write_record(record, folder / f"run{number}" / "record.json")
    times = [timing("local DK", 2.0), timing("local DK", 8.0, "16 x 2 x 2"), timing("torchvision deform_conv2d", 90.0)]
    speed = {
        "model": "resnet50dw_dk",
        "train_images_per_second": 9.0,
        "train_ratio": 0.5,
        "eval_images_per_second": 40.0,
        "eval_ratio": 0.8,
        "peak_memory": None,
    }
    write_json(folder / "bench" / "cpu.json", bench(times))
    settings = {"batch": 2, "size": 224, "precision": "float32"}
    speeds = bench([]) | {"kind": "model speeds", "settings": settings, "speeds": [speed]}
    write_json(folder / "bench" / "train.json", speeds)
    write_picture(folder / "field.png", "Receptive fields of rigid & deformed")
    write_picture(folder / "twice.png")
    (folder / "twice.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>')
    (folder / ".hidden").mkdir()
    write_picture(folder / ".hidden" / "thumbnail.png")
    return folder


def make_hostile_folder(folder: Path) -> Path:
    """Records full of hostile names, and one file of each kind that is not what its name says."""
    for number, name in enumerate(HOSTILE):
        record = make_record(name, 50.0 + number, name=name, run_id=name, command=[name, name], error=name)
        record.data = DATA | {"name": HOSTILE[-1 - number % 2]}
        record.versions, record.git = {name: name}, {"commit": name, "dirty": name}
        record.device = dict.fromkeys(("type", "name", "count", "threads", "system"), name)
        record.status, record.started = ("failed", "finished")[number > 0], name
        record.attempts = [{n: name for n in ("started", "ended", "git", "device", "versions", "status", "error")}]
        record.attempts[0]["git"] = {"commit": name}
        write_json(folder / f"hostile{number}" / "record.json", vars(record))
    good = vars(make_record("test_resnetdw", 55.0))
    files = {
        "not_json": "{",
        "list": [],
        "future": good | {"schema_version": 9},
        "deep": "[" * 100_000,
        "no_name": good | {"model": {"name": ["m"]}},
        "no_figure": good | {"metrics": {"epochs": [], "final": {"val/top1": "<b>high</b>"}}},
        "huge": good | {"cost": {"macs": 1e300}},
        "no_epochs": good | {"metrics": {"epochs": [3], "final": {}}},
        "bad_spec": good | {"model": {"name": "m", "spec": {"depthwise": "sideways"}}},
        "odd_size": good | {"model": {"name": "resnet50dw", "input_size": 224}},
    }
    for name, content in files.items():
        write_json(folder / name / "record.json", content)
    odd = [timing(name, 2.0 + n, mode=name) for n, name in enumerate(HOSTILE)]
    write_json(folder / "bench" / "odd.json", bench(odd))
    write_json(folder / "bench" / "foreign.json", {"a": 1})
    write_json(folder / "bench" / "negative.json", bench([timing("local DK", -1.0)]))
    write_json(folder / "bench" / "half.json", {"kind": "model speeds"})
    write_picture(folder / "<b onclick=alert(4)>'&.png", HOSTILE[1])
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "broken.svg").write_text("<svg")
    (folder / "page.svg").write_text("<html/>")
    script = '<script>alert(5)</script><image href="http://example.org/x.png" width="4" height="4"/>'
    (folder / "active.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4" onload="alert(6)">{script}</svg>'
    )
    return folder
