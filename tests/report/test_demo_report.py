"""What `make demo` runs, made small: the Makefile's own commands, then the page that they leave, in a real browser."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from browser import a_browser
from report_cases import Page

from dk_bench.cli import main
from dk_bench.runs.record import find_records, read_record
from dk_bench.sweep.grid import read_sweep
from dk_bench.sweep.listing import make_jobs

ROOT = Path(__file__).parents[2]
SMALL = {
    "optim.epochs": 2,
    "optim.warmup_epochs": 0,
    "data.procedural.train_images": 96,
    "data.procedural.val_images": 50,  # more than a batch, or there is no speed
}
MODELS = yaml.safe_load((ROOT / "sweeps/demo.yaml").read_text())["parameters"]["model.name"]["values"]


def demo_commands():
    """The arguments of each dk-bench command in the Makefile's recipe of `demo`."""
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    commands = [shlex.split(line) for line in recipe.splitlines()]
    assert all(program == "$(BIN)/dk-bench" for program, *_ in commands), recipe
    return [arguments for _, *arguments in commands]


def small_sweep(path, folder):
    """Runs a sweep's runs, made small, one after another in this process: seven processes would import torch for a
    minute."""
    content = yaml.safe_load(path.read_text())
    content["parameters"] |= {key: {"value": value} for key, value in SMALL.items()}
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump(content))
    for job in make_jobs(read_sweep(small), None):
        assert job.argv[0] == "dk-bench"
        assert main(job.argv[1:]) == 0, job.name


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The report of `make demo`."""
    folder = tmp_path_factory.mktemp("demo")
    for inputs in ("configs", "sweeps"):
        (folder / inputs).symlink_to(ROOT / inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command, *arguments in demo_commands():
            if command == "sweep":
                small_sweep(Path(*arguments), folder)
            else:
                assert main([command, *arguments]) == 0
    return folder / "runs/demo/report.html"


def test_order_of_the_recipe():
    assert [command for command, *_ in demo_commands()] == ["sweep", "tables", "picture", "report"]


def test_page_has_every_model_and_picture(demo):
    records = [read_record(path) for path in find_records([demo.parent])]
    assert sorted(record.model["name"] for record in records) == sorted(MODELS)
    assert {record.status for record in records} == {"finished"}
    text = demo.read_text(encoding="utf-8")
    page = Page(text)
    assert len(MODELS) == 7 and "7 runs (7 finished) of 7 models on 1 data set" in page.text
    for record in records:
        row = page.row(record.model["name"])
        assert row[4].startswith(f"{record.metrics['final']['val/top1']:.1f}(n=1)")
        assert row[page.row("model").index("MMACs")] == f"{record.cost['macs'] / 1e6:.2f}"
    titles = re.findall(r"<figcaption>([^<]+)<small>", text)
    assert titles == ["Difference to the rigid base", "Accuracy and cost", "top-1 during training", "Training loss"]
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert image["alt"] == "Training images, before augmentation."
    links = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert str(ROOT) not in text and str(demo.parents[2]) not in text  # no path of this machine


# In a browser


@pytest.fixture(scope="module")
def shown(demo, tmp_path_factory):
    with a_browser(tmp_path_factory) as browser:
        browser.view(1280)
        browser.open(demo)
        yield browser


def test_browser_shows_all_and_fetches_nothing(shown, demo):
    assert not shown.told("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    fetched = {request["request"]["url"] for request in shown.told("Network.requestWillBeSent")}
    assert {url for url in fetched if not url.startswith("data:")} == {demo.as_uri()}
    assert shown.run("[...document.images].map(i => i.complete && i.naturalWidth > 0)") == [True]
    heights = shown.run('[...document.querySelectorAll("figure svg")].map(s => s.getBoundingClientRect().height)')
    assert len(heights) == 4 and min(heights) > 100


def test_table_of_models_sorts(shown):
    keys = """(column => {
        const table = [...document.querySelectorAll("table")].find(
            t => t.tHead.rows[0].cells[0].textContent.trim() === "model");
        const place = [...table.tHead.rows[0].cells].findIndex(c => c.textContent.trim() === column);
        table.tHead.rows[0].cells[place].querySelector("button").click();
        return [...table.tBodies[0].rows].map(row => row.cells[place].dataset.key)})"""
    assert shown.run(keys + '("model")') == sorted(MODELS)
    assert shown.run(keys + '("model")') == sorted(MODELS, reverse=True)
    up = [float(key) for key in shown.run(keys + '("MMACs")')]
    assert up == sorted(up) and len(set(up)) > 3


def test_phone_scrolls_one_way(shown):
    shown.view(390, 844)
    assert shown.run("document.documentElement.scrollWidth") == 390
    shown.view(1280)
