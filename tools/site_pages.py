"""Hooks of the site (mkdocs.yml): results/ as pages of it, links between the repository's folders, formulas as MathML.

In the repository docs/ and results/ lie beside each other, and their links are those that GitHub follows. In the site
results/ lies below docs/, with all its files: tables, records, logs.
"""

import os
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files, config):
    """Adds the files of results/, and for each folder that has no text of its own a page that lists them."""
    for path in sorted(each for each in RESULTS.rglob("*") if each.is_file()):
        name = path.relative_to(ROOT).as_posix()
        if files.get_file_from_path(name) is None and name != "results/report.html":
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for folder in sorted(each for each in RESULTS.rglob("*") if each.is_dir()):
        if not (folder / "README.md").exists():
            name = folder.relative_to(ROOT).as_posix()
            files.append(File.generated(config, f"{name}/index.md", content=listing(folder)))
    return files


def listing(folder: Path) -> str:
    """Returns a page with a link to each file in a folder and below."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"- [{name}]({name})" for name in names]
    return "\n".join([f"# Files in {folder.relative_to(ROOT).as_posix()}", "", *lines, ""])


def on_page_markdown(markdown, page, config, files):
    """Turns links of the repository into links of the site, and makes room for tables of results."""
    name = page.file.src_uri
    here = name if name.startswith("results/") else f"docs/{name}"  # in the repository
    if here == name:
        page.meta["hide"] = ["toc"]  # its tables are wide

    def turned(link):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[2]))
        if (ROOT / target).is_dir():
            target += "/README.md" if (ROOT / target / "README.md").exists() else "/index.md"
        target = target.removeprefix("docs/")
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(name) or '.')}{link[3]}"

    return outside_code(markdown, lambda text: LINK.sub(turned, text))


def outside_code(text: str, change) -> str:
    """Returns the text with all changed that is in no block of code."""
    ends = [0, *(edge for block in FENCED.finditer(text) for edge in block.span()), len(text)]
    parts = [text[begin:end] for begin, end in zip(ends, ends[1:], strict=False)]
    return "".join(part if number % 2 else change(part) for number, part in enumerate(parts))


def on_page_content(html, page, config, files):
    """Turns formulas into MathML, which browsers show by themselves."""
    return FORMULA.sub(lambda found: formula(found[2], block=found[1] == "div"), html)


def formula(latex: str, *, block: bool) -> str:
    """Returns a formula as MathML."""
    latex = latex.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return convert(latex.strip(), display="block" if block else "inline")


def on_post_build(config):
    """Removes what nobody asks for: the site map, which wants the site's address."""
    for name in ("sitemap.xml", "sitemap.xml.gz"):
        path = Path(config.site_dir) / name
        if path.exists():
            os.remove(path)
