"""The site of docs/: it builds without a warning, its links lead somewhere, and it needs nothing from elsewhere."""

import functools
import importlib
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from browser import a_browser

ROOT = Path(__file__).parents[1]
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
FETCHED |= {"link": "href", "object": "data", "use": "href", "image": "href"}
OUTSIDE = re.compile(r"(?:[a-z]+:)?//")
WIDTHS = (1280, 390)  # a desk's and a phone's, in pixels


class Page(HTMLParser):
    """What a page has: places in it, links, what a browser fetches to show it, and its formulas."""

    def __init__(self, path: Path):
        super().__init__()
        self.places, self.links, self.fetched, self.formulas = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and given.get(FETCHED[tag]):
            self.fetched.append(given[FETCHED[tag]])
        if tag == "math":
            self.formulas.append("")

    def handle_data(self, data):
        if self.formulas and self.lasttag in ("mi", "mo", "mn", "mtext"):
            self.formulas[-1] += data


page = functools.cache(Page)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Returns the folder of the site, as `make docs` builds it."""
    pytest.importorskip("latex2mathml", reason="not installed: pip install -e .[docs]")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))  # raises Abort at a warning
    return folder


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def test_every_text_is_a_page(site):
    texts = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("results/**/*.md")]
    names = [text.relative_to(ROOT).with_suffix(".html").as_posix().removeprefix("docs/") for text in texts]
    names = [re.sub("README.html$", "index.html", name) for name in names]
    assert len(names) > 30 and [name for name in names if not (site / name).exists()] == []


@pytest.mark.parametrize("module", ["functional", "models", "nn", "reference", "training"])
def test_the_api_has_every_public_name(site, module):
    shown = {place.rpartition(".")[2] for place in page(site / "api" / f"{module}.html").places}
    names = importlib.import_module(f"dk_bench.{module}").__all__
    assert [name for name in names if name not in shown] == []


def test_links_lead_to_files_and_places(site):
    wrong = []
    for path in pages(site):
        for link in (*page(path).links, *page(path).fetched):
            target, _, place = unquote(link).partition("#")
            if OUTSIDE.match(link) or link.startswith(("data:", "mailto:")):
                continue
            there = (path.parent / target).resolve() if target else path
            if not there.is_file() or place and place not in page(there).places:
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = {link for path in [*pages(site), site / "404.html"] for link in page(path).fetched}
    for style in site.rglob("*.css"):
        fetched |= set(re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", style.read_text(encoding="utf-8")))
    assert len(fetched) > 10 and [link for link in fetched if OUTSIDE.match(link)] == []


def test_formulas_are_mathml(site):
    formulas = page(site / "mathematics.html").formulas
    assert len(formulas) > 20 and [each for each in formulas if "\\" in each or not each] == []
    assert [path for path in pages(site) if "arithmatex" in path.read_text(encoding="utf-8")] == []


def test_pictures_are_those_that_the_script_draws(tmp_path):
    from site_pictures import PICTURES, write_pictures

    drawn = write_pictures(tmp_path)
    assert {path.name for path in drawn} == {path.name for path in PICTURES.iterdir()}
    assert [path.name for path in drawn if path.read_bytes() != (PICTURES / path.name).read_bytes()] == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with a_browser(tmp_path_factory) as browser:
        yield browser


@pytest.mark.parametrize("name", ["index.html", "mathematics.html", "results/claims.html", "api/models.html"])
def test_pages_fit_a_desk_and_a_phone_and_fetch_nothing(site, browser, name):
    for width in WIDTHS:
        browser.view(width)
        browser.open(site / name)
        assert browser.run("document.documentElement.scrollWidth") <= width
        asked = [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")]
        assert asked and [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert browser.told("Runtime.exceptionThrown", "Log.entryAdded") == []


def test_search_works_without_a_server(site, browser):
    browser.view(WIDTHS[0])
    browser.open(site / "index.html")
    found = """new Promise((resolve, reject) => {
      document.querySelector("#__search").click()
      const field = document.querySelector("input.md-search__input")
      field.value = "bilinear"
      field.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}))
      const links = () => [...document.querySelectorAll("a.md-search-result__link")].map(link => link.href)
      const look = () => links().length ? resolve(links()) : setTimeout(look, 50)
      look()
      setTimeout(reject, 60000, "no answer")
    })"""
    assert any("mathematics.html" in link for link in browser.run(found))
