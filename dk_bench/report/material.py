"""Collects what a report shows: run records, records of `dk-bench bench`, pictures; names files of no use."""

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from xml.etree import ElementTree

from PIL import Image

from dk_bench.claims.file import load_claims
from dk_bench.claims.findings import Family, families
from dk_bench.errors import UserError
from dk_bench.report.benches import Bench, read_bench
from dk_bench.runs.record import RunRecord, as_it_stands, find_records, read_record
from dk_bench.tables.costs import load_costs
from dk_bench.tables.documents import build_documents
from dk_bench.tables.table import Document
from dk_bench.tasks import check_known

Content = TypeVar("Content")
CLAIMS_PICTURE = "claims.svg"  # of `dk-bench claims`
LARGEST_PICTURE = 8 * 2**20  # bytes: what a page on a phone still bears
LARGEST_NUMBER = 1e30  # of a record: beyond this sums overflow, and nothing that is measured comes near it
# What code that trusts a record's inside raises where another program, or nobody sane, wrote it.
FOREIGN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, UserError)


@dataclass(frozen=True)
class Found(Generic[Content]):
    """A file of the report's folder: where it lies, relative to the folder, and what was read of it."""

    path: str
    content: Content


@dataclass(frozen=True)
class Material:
    """Holds what a report shows. ``pictures``: of each its own description, else empty, and its bytes as a data URI.
    ``problems``: files that had to be left out, and why."""

    runs: list[Found[RunRecord]]
    documents: dict[str, Document]
    benches: list[Found[Bench]]
    pictures: list[Found[tuple[str, str]]]
    problems: list[Found[str]]
    claims: list[Family]


def collect(folder: Path) -> Material:
    """Collects what a report of ``folder`` shows: run records, ``bench/*.json``, ``*.png`` and ``*.svg`` below it.

    A file that cannot be read or is not what its name says becomes a problem. Where a picture is there as PNG and as
    SVG, the SVG is taken. Hidden folders are left out. Raises UserError where ``folder`` is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    problems: list[Found[str]] = []

    def read_all(paths: Iterable[Path], read: Callable[[Path], Any]) -> list[Found[Any]]:
        found = []
        for path in paths:
            below = path.relative_to(folder)
            if any(part.startswith(".") for part in below.parts):
                continue
            try:
                found.append(Found(below.as_posix(), read(path)))
            except (OSError, SyntaxError, Image.DecompressionBombError, *FOREIGN) as error:  # SyntaxError: PIL's, XML's
                problems.append(Found(below.as_posix(), _reason(error, path)))
        return found

    runs = read_all(find_records([folder]), _read_run)
    benches = read_all(sorted(folder.rglob("bench/*.json")), read_bench)
    svgs = [path for path in folder.rglob("*.svg") if path != folder / CLAIMS_PICTURE]  # the page draws it itself
    pngs = [path for path in folder.rglob("*.png") if not path.with_suffix(".svg").exists()]
    pictures = read_all(sorted([*svgs, *pngs]), _read_picture)
    runs, documents = _tables(runs, problems)
    claims = _claims(runs, folder, problems)
    return Material(runs, documents, benches, pictures, sorted(problems, key=lambda problem: problem.path), claims)


def _read_run(path: Path) -> RunRecord:
    """Reads a record. Raises UserError for what tables and plots could not use of its free-form parts."""
    record = check_known(as_it_stands(read_record(path)), path)
    epochs = record.metrics["epochs"]
    if not all(isinstance(epoch, dict) for epoch in epochs):
        raise UserError("metrics.epochs is no list of objects")
    counts = {key: record.data.get(key) for key in ("train_images", "val_images", "test_images")}
    costs = {key: record.cost.get(key) for key in ("params", "macs", "sampling_macs")}
    for numbers in (counts, costs, record.throughput, record.metrics["final"], *epochs):
        for name, value in numbers.items():
            if not (value is None or isinstance(value, int | float) and abs(value) < LARGEST_NUMBER):
                raise UserError(f"{name} is {str(value)[:60]!r}, expected a number")
    return record


def _tables(
    runs: list[Found[RunRecord]], problems: list[Found[str]]
) -> tuple[list[Found[RunRecord]], dict[str, Document]]:
    """Returns the runs that tables could be made with, all unless one is foreign in its depths, and the tables."""
    costs = load_costs()
    try:
        return runs, build_documents([run.content for run in runs], costs)
    except FOREIGN:
        usable = []
        for run in runs:
            try:
                build_documents([run.content])
                usable.append(run)
            except FOREIGN as error:
                problems.append(Found(run.path, _reason(error)))
        return usable, build_documents([run.content for run in usable], costs)


def _claims(runs: list[Found[RunRecord]], folder: Path, problems: list[Found[str]]) -> list[Family]:
    """Returns the families of claims that anything was run of; none where runs or studies' files are foreign."""
    try:
        found = families(load_claims(), [run.content for run in runs], folder)
    except FOREIGN as error:
        problems.append(Found(CLAIMS_PICTURE, f"no claims: {_reason(error)}"))
        return []
    return [family for family in found if any(finding.judgement.n for finding in family.findings)]


def _read_picture(path: Path) -> tuple[str, str]:
    """Returns description and data URI. Raises OSError, SyntaxError, ValueError or UserError for no such picture."""
    if (size := path.stat().st_size) > LARGEST_PICTURE:
        raise UserError(f"{size / 2**20:.0f} MiB, a report takes pictures up to {LARGEST_PICTURE // 2**20} MiB")
    content = path.read_bytes()
    description, kind = "", "png"
    if path.suffix == ".svg":
        # Inside an <img> it runs no scripts and loads nothing, so it can be taken as it is.
        kind = "svg+xml"
        if not ElementTree.fromstring(content).tag.endswith("svg"):
            raise UserError("no SVG")
    else:
        with Image.open(path, formats=["PNG"]) as image:
            description = str(image.info.get("Description", ""))
            image.verify()
    return description, f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _reason(error: Exception, path: Path | str = "") -> str:
    """Returns an error in words, without the path's folder."""
    words = str(getattr(error, "strerror", None) or error).removeprefix(f"{path}: ")
    words = words.replace(str(path), Path(path).name) if path else words
    return words if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {words}"
