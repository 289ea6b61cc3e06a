"""The report: what is on the page, that nothing of a record gets out of its place, and the page in a real browser."""

import base64
import hashlib
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from browser import a_browser
from report_cases import HOSTILE, TOP1, Page, make_folder, make_hostile_folder, make_record, write_json, write_picture

from dk_bench.cli import main
from dk_bench.errors import UserError
from dk_bench.report.page import write_report
from dk_bench.report.svg import drawing, label, to_svg
from dk_bench.runs.record import write_record

NETWORK = ("src", "srcset", "href", "xlink:href", "action", "formaction", "data", "poster", "background")
NEVER = {"iframe", "object", "embed", "base", "form", "input", "foreignobject"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The good and the hostile folder, each with its report and what was counted."""
    made = {}
    for name, make in (("good", make_folder), ("hostile", make_hostile_folder)):
        out = tmp_path_factory.mktemp(name) / "report.html"
        counts = write_report(make(out.parent / "records"), out)
        made[name] = SimpleNamespace(path=out, counts=counts, page=Page(out.read_text(encoding="utf-8")))
    return made


@pytest.fixture(params=["good", "hostile"])
def report(folders, request):
    return folders[request.param]


# What is on the page


def test_page_has_figures_with_their_spread(folders):
    page, counts = folders["good"].page, folders["good"].counts
    assert (counts["runs"], counts["pictures"], counts["problems"]) == (9, 2, 0)
    # 60, 61, 62: standard deviation 1, so 4.3027 / sqrt(3) = 2.48; the differences to 61, 64, 64 are 1, 3, 2.
    assert page.row("test_resnetdw")[4] == "61.0 ± 2.5(n=3)"
    assert page.row("test_resnetdw_dk")[4:6] == ["63.0 ± 4.3(n=3)", "+2.0 ± 2.5(n=3)"]
    assert page.row("test_resnetdw_gdk")[4:6] == ["63.5(n=1)", "+3.5(n=1)"]
    assert page.row("test_resnetdw_dcn")[4].startswith("failed")
    assert "31.5(n=1)" in page.row("")  # the detector, whose first column is empty
    assert page.text.count("Table 1: scope, global and local kernels.") == 2  # in the list of those not run, and itself
    assert page.row("ResNet-50-DW")[3] == "76.3"  # the paper's
    assert "Family: 7 differences (6 Δ rigid, 1 Δ DK), 2 of them run." in page.text


def test_plots_that_there_are(folders):
    titles = re.findall(r"<figcaption>([^<]+)", folders["good"].path.read_text())
    first = ["Difference to the rigid base", "Accuracy and cost", "top-1 during training", "Training loss"]
    second = ["Accuracy and cost", "mAP during training", "Training loss"]
    third = ["Operators, float32", "Models, batches of 2 at 224, float32"]
    assert titles == [*first, *second, *third]
    assert folders["good"].counts["plots"] == len(titles)


def test_notes_tell_what_marks_stand_for(folders):
    def notes(path):
        return dict(re.findall(r"<figcaption>([^<]+)<small>([^<]*)", path.read_text()))

    bars, single = "Bars: 95 % interval", "Open marks: one seed, no interval."
    good = notes(folders["good"].path)
    assert good["Difference to the rigid base"].startswith("Paired by seed. " + bars)
    assert good["Difference to the rigid base"].endswith(single)
    assert "One seed: no interval." in good["Accuracy and cost"]  # of the last group, the detector
    assert good["Models, batches of 2 at 224, float32"] == "Random weights, offsets spread at random."


def test_error_bars_end_where_the_interval_does(folders):
    svg = re.search(r"<svg[^>]*Difference to the rigid base.*?</svg>", folders["good"].path.read_text(), re.DOTALL)[0]
    elements = list(ElementTree.fromstring(svg).iter())
    # Two ticks of the horizontal axis give its scale.
    ticks = {e.text: float(e.get("x")) for e in elements if e.tag.endswith("text") and re.fullmatch(r"\d", e.text)}
    unit = (ticks["2"] - ticks["0"]) / 2
    group = next(e for e in elements if any(c.text == "test_resnetdw_dk: +2.0 ± 2.5 (n=3)" for c in e))
    path = next(e for e in group.iter() if e.tag.endswith("path"))
    ends = sorted((float(x) - ticks["0"]) / unit for x in re.findall(r"[ML] ([\d.]+)", path.get("d")))
    assert ends == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3)


def test_runs_tell_where_they_come_from(folders):
    page = folders["good"].page
    text = page.text
    for words in ("dk-bench train 'a b.yaml'", "0123456789ab with changes", "torch 2.11.0"):
        assert words in text
    assert "A processor, cpu, 2 cores, 1 thread Versions" in text
    assert "ValueError: the first one" in text and "RuntimeError: out of memory" in text
    run = page.row("test_resnetdw_dk-s1")
    assert run[1:8] == ["test_resnetdw_dk", "procedural", "1", "finished", "64.0", "3", "2026-01-01 00:00"]
    assert run[8:10] == ["90", "1"]
    assert "9 runs (1 failed, 8 finished) of 5 models on 2 data sets, 2026-01-01." in text


def test_pictures_are_in_the_page(folders):
    images = [attributes for tag, attributes in folders["good"].page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["Receptive fields of rigid & deformed", "twice.svg"]
    folder = folders["good"].path.parent / "records"
    for image, name in zip(images, ("field.png", "twice.svg"), strict=True):
        assert base64.b64decode(image["src"].partition(",")[2]) == (folder / name).read_bytes()


def test_folder_without_records(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 0
    assert "0 records, 0 plots, 0 pictures; wrote" in capsys.readouterr().out
    page = Page((tmp_path / "report.html").read_text())
    assert "There is no run record in this folder yet." in page.text
    assert page.row("ResNet-50-DW")[3] == "76.3"


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--output", "file/report.html"]])
def test_bad_folder_or_file(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["report", *arguments]) == 2
    assert arguments[-1] in capsys.readouterr().err


def test_same_records_give_the_same_bytes(tmp_path):
    for seed, top1 in enumerate(TOP1["test_resnetdw"]):
        write_record(make_record("test_resnetdw", top1, seed), tmp_path / f"run{seed}" / "record.json")
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    assert write_report(tmp_path, first) == write_report(tmp_path, second)
    assert first.read_bytes() == second.read_bytes()


# Nothing gets out of its place


def test_nothing_is_fetched_and_nothing_else_runs(report):
    page = report.page
    for tag, attributes in page.tags:
        assert tag not in NEVER, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in NETWORK:
                assert value.startswith(("#", "data:")), (tag, name, value[:80])
            assert name == "content" or "url(" not in (value or "") or re.search(r"url\(#[\w-]+\)", value), (tag, value)
    assert len(page.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    (policy,) = (a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}';" in policy


def test_ids_are_unique_and_references_lead_to_them(report):
    page = report.page
    assert len(page.ids) == len(set(page.ids))
    used = [v for _, a in page.tags for n, v in a.items() if n in NETWORK and v.startswith("#")]
    used += [f"#{i}" for _, a in page.tags for v in a.values() for i in re.findall(r"url\(#([\w.-]+)\)", v or "")]
    assert used and {reference[1:] for reference in used} <= set(page.ids)


def test_hostile_names_are_text(folders):
    text = folders["hostile"].page.text
    for name in HOSTILE[:4]:
        assert text.count(name) >= 5, name  # model, legend, run, command, error ...
    assert "longlong" in text and "long" * 1001 not in text
    assert "עברית" in text and not re.search("[\u202e\u2066\0\x1b]", text)


def test_files_that_cannot_be_used_are_listed(folders):
    page, counts = folders["hostile"].page, folders["hostile"].counts
    reasons = {
        "bad_spec/record.json": "got 'sideways'",
        "bench/foreign.json": "no record of `dk-bench bench`",
        "bench/half.json": "KeyError: 'device'",
        "bench/negative.json": "ratio is '-1.0', expected a positive number",
        "broken.svg": "ParseError",
        "cut.png": "cannot identify image file",
        "deep/record.json": "RecursionError",
        "future/record.json": "schema_version is 9, this program reads 1",
        "huge/record.json": "macs is '1e+300', expected a number",
        "list/record.json": "a record is a JSON object, this is a list",
        "no_epochs/record.json": "metrics.epochs is no list of objects",
        "no_figure/record.json": "val/top1 is '<b>high</b>', expected a number",
        "no_name/record.json": "model.name is ['m'], expected str",
        "not_json/record.json": "not a JSON file",
        "odd_size/record.json": "TypeError",
        "page.svg": "no SVG",
    }
    for path, reason in reasons.items():
        assert reason in page.row(path)[1], path
    assert counts["problems"] == len(reasons)
    assert counts["runs"] == len(HOSTILE)
    assert str(folders["hostile"].path.parent) not in folders["hostile"].path.read_text()


def test_too_large_a_picture_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("dk_bench.report.material.LARGEST_PICTURE", 60)
    write_picture(tmp_path / "big.png", "x" * 100)
    assert write_report(tmp_path, tmp_path / "out" / "report.html")["problems"] == 1
    assert "a report takes pictures up to" in (tmp_path / "out" / "report.html").read_text()


def test_names_in_plots():
    assert label("a\nb\0 \u202ec") == "a b\ufffd \ufffdc"
    assert label("x" * 30, 10) == "x" * 9 + "…"
    with drawing() as (figure, axes):
        axes.plot([0, 1], [0, 1], gid="line", marker="o")
        axes.set_xlabel("a <b> & $x_2$ \\frac{")
        svg = to_svg(figure, "p", '"><script>', {"line": "</title><script>\0"})
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == '"><script>'
    texts = [element.text for element in root.iter()]
    assert "a <b> & $x_2$ \\frac{" in texts and "</title><script>\ufffd" in texts
    assert all(value.startswith("p-") for element in root.iter() if (value := element.get("id")))


def test_axes_stand_where_no_solvers_last_digits_show():
    with drawing(8, 3) as (figure, axes):
        axes.set(xlabel="difference", yticks=[0, 1], yticklabels=["a long name", "b"])
        to_svg(figure, "p", "P")
        bounds = axes.get_position().bounds
    assert bounds == pytest.approx([round(edge, 6) for edge in bounds], abs=1e-12) and bounds[0] > 0.05


def test_user_error_for_no_folder(tmp_path):
    write_json(tmp_path / "file", {})
    with pytest.raises(UserError, match="file: no such folder"):
        write_report(tmp_path / "file", tmp_path / "report.html")


# In a browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    with a_browser(tmp_path_factory) as browser:
        yield browser


@pytest.fixture
def shown(browser, report):
    """The browser with a report open, at the width of a desktop."""
    browser.view(1280)
    browser.open(report.path)
    return browser


def test_browser_finds_no_fault(shown, report):
    told = shown.told("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert not told
    assert not shown.told("Page.javascriptDialogOpening")
    fetched = [request["request"]["url"] for request in shown.told("Network.requestWillBeSent")]
    assert report.path.as_uri() in fetched
    assert [url for url in fetched if url != report.path.as_uri() and not url.startswith("data:")] == []
    widths = shown.run("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(widths) == report.counts["pictures"] and all(widths)
    # Every plot has a size, and draws in the page's colours.
    boxes = shown.run('[...document.querySelectorAll("figure svg")].map(s => s.getBoundingClientRect().height)')
    assert len(boxes) == report.counts["plots"] and min(boxes) > 100


@pytest.mark.parametrize("width", [375, 320])
def test_phone_scrolls_one_way(shown, width):
    shown.view(width, 800)
    assert shown.run("document.documentElement.scrollWidth") == width
    inside = shown.run('[...document.querySelectorAll(".scroll")].map(s => s.scrollWidth > s.clientWidth)')
    assert any(inside)  # tables scroll in their boxes
    sizes = shown.run("""[...document.querySelectorAll("figure svg text")].map(
        t => 10 * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b))""")
    assert min(sizes) > 7  # pixels of the plots' text


def test_dark_mode(shown):
    script = """["body", "figure svg text", "td"].flatMap(s => {
        const style = getComputedStyle(document.querySelector(s));
        return [style.color, style.fill, style.backgroundColor]
    })"""
    light = shown.run(script)
    shown.view(1280, dark=True)
    dark = shown.run(script)

    def brightness(colour):
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    # Text of page, plots and tables is dark on bright, then bright on dark.
    assert max(brightness(light[0]), brightness(light[4]), brightness(light[6])) < 120 < 240 < brightness(light[2])
    assert min(brightness(dark[0]), brightness(dark[4]), brightness(dark[6])) > 140 > 40 > brightness(dark[2])


def sorting(browser, column, key=None):
    """Clicks a header of the first table with models, or presses a key on it; gives its keys and states then."""
    find = """[...document.querySelectorAll("table")].find(
        t => t.tHead.rows[0].cells[0].textContent.trim() === "model")"""
    button = (
        f"""[...{find}.tHead.rows[0].cells].find(c => c.textContent.trim() === "{column}").querySelector("button")"""
    )
    if key is None:
        browser.run(f"{button}.click()")
    else:
        browser.run(f"{button}.focus()")
        for kind in ("keyDown", "keyUp"):
            browser.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )
    place = f"""[...{find}.tHead.rows[0].cells].findIndex(c => c.textContent.trim() === "{column}")"""
    keys = browser.run(f"[...{find}.tBodies[0].rows].map(r => r.cells[{place}].dataset.key)")
    return keys, browser.run(f'[...{find}.tHead.rows[0].cells].map(c => c.getAttribute("aria-sort"))')


def test_tables_sort(browser, folders):
    browser.view(1280)
    browser.open(folders["good"].path)
    up, states = sorting(browser, "top-1")
    assert [float(key) for key in up if key] == [61.0, 63.0, 63.5]
    assert up[3:] == [""] * (len(up) - 3)  # what has no figure stays last
    assert states.count("ascending") == 1 and states.count("none") == len(states) - 1
    down, states = sorting(browser, "top-1", key="Enter")
    assert [float(key) for key in down if key] == [63.5, 63.0, 61.0] and down[3:] == up[3:]
    assert states.count("descending") == 1
    names, states = sorting(browser, "model")
    assert names == sorted(names) and len(set(names)) == 7
    assert states[0] == "ascending" and states.count("none") == len(states) - 1


def test_link_opens_its_run_and_paper_shows_all(browser, folders):
    browser.view(1280)
    browser.open(folders["good"].path)
    closed = "document.querySelectorAll('details:not([open])').length"
    before = browser.run(closed)
    browser.run("""new Promise(done => {
        addEventListener("hashchange", () => setTimeout(done)); document.querySelector("td a").click()})""")
    assert browser.run("document.querySelector('#run-1').open")
    browser.run("addEventListener('beforeprint', () => { window.closedOnPaper = " + closed + " })")
    pdf = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF")
    assert browser.run("window.closedOnPaper") == 0
    assert browser.run(closed) == before - 1


def test_page_may_not_reach_the_network(browser, folders):
    browser.open(folders["good"].path)
    refused = browser.run("""new Promise(done => {
        addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
        new Image().src = "http://127.0.0.1:9/x.png"})""")
    assert refused == "img-src"
    script = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    browser.run(script)
    assert browser.run("window.ran === undefined")
