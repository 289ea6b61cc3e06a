"""Collects what a report shows: run records, records of `dk-bench bench`, pictures; names files of no use."""

import base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
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

CLAIMS_PICTURE = "claims.svg"  # of `dk-bench claims`
LARGEST_PICTURE = 8 * 2**20  # bytes: what a page on a phone still bears
LARGEST_NUMBER = 1e30  # of a record: beyond this sums overflow, and nothing that is measured comes near it
# What code that trusts a record's inside raises where another program, or nobody sane, wrote it.
FOREIGN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, UserError)


@dataclass(frozen=True)
class Material:
    """Holds what a report shows, by files' paths relative to its folder. ``pictures``: of each its own description, or
    nothing, and its bytes as a data URI. ``problems``: why files had to be left out."""

    runs: dict[str, RunRecord]
    documents: dict[str, Document]
    benches: dict[str, Bench]
    pictures: dict[str, tuple[str, str]]
    problems: dict[str, str]
    claims: list[Family]


def collect(folder: Path) -> Material:
    """Collects what a report of ``folder`` shows: run records, ``bench/*.json``, ``*.png`` and ``*.svg`` below it.

    A file that cannot be read or is not what its name says becomes a problem. Where a picture is there as PNG and as
    SVG, the SVG is taken. Hidden folders are left out. Raises UserError where ``folder`` is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    problems: dict[str, str] = {}

    def read_all(paths: Iterable[Path], read: Callable[[Path], Any]) -> dict[str, Any]:
        found = {}
        for path in paths:
            below = path.relative_to(folder)
            if any(part.startswith(".") for part in below.parts):
                continue
            try:
                found[below.as_posix()] = read(path)
            except (OSError, SyntaxError, Image.DecompressionBombError, *FOREIGN) as error:  # SyntaxError: PIL's, XML's
                problems[below.as_posix()] = _reason(error, path)
        return found

    runs = read_all(find_records([folder]), _read_run)
    benches = read_all(sorted(folder.rglob("bench/*.json")), read_bench)
    svgs = [path for path in folder.rglob("*.svg") if path != folder / CLAIMS_PICTURE]  # the page draws it itself
    pngs = [path for path in folder.rglob("*.png") if not path.with_suffix(".svg").exists()]
    pictures = read_all(sorted([*svgs, *pngs]), _read_picture)
    documents = _tables(runs, problems)
    claims = _claims(runs.values(), folder, problems)
    return Material(runs, documents, benches, pictures, dict(sorted(problems.items())), claims)


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


def _tables(runs: dict[str, RunRecord], problems: dict[str, str]) -> dict[str, Document]:
    """Returns the tables. A run that is foreign in its depths, so that there are none with it, becomes a problem."""
    costs = load_costs()
    try:
        return build_documents(runs.values(), costs)
    except FOREIGN:
        for path, run in list(runs.items()):
            try:
                build_documents([run])
            except FOREIGN as error:
                problems[path] = _reason(error)
                del runs[path]
        return build_documents(runs.values(), costs)


def _claims(runs: Iterable[RunRecord], folder: Path, problems: dict[str, str]) -> list[Family]:
    """Returns the families of claims that anything was run of; none where runs or studies' files are foreign."""
    try:
        found = families(load_claims(), runs, folder)
    except FOREIGN as error:
        problems[CLAIMS_PICTURE] = f"no claims: {_reason(error)}"
        return []
    return [family for family in found if any(finding.judgement.n for finding in family.findings)]


def _read_picture(path: Path) -> tuple[str, str]:
    """Returns description and data URI. Raises OSError, SyntaxError, ValueError or UserError for no such picture."""
    if (size := path.stat().st_size) > LARGEST_PICTURE:
        raise UserError(f"{size / 2**20:.0f} MiB, a report takes pictures up to {LARGEST_PICTURE // 2**20} MiB")
    content = path.read_bytes()
    data = base64.b64encode(content).decode()
    if path.suffix == ".svg":
        if not ElementTree.fromstring(content).tag.endswith("svg"):
            raise UserError("no SVG")
        # Inside an <img> it runs no scripts and loads nothing, so it can be taken as it is.
        return "", f"data:image/svg+xml;base64,{data}"
    with Image.open(path, formats=["PNG"]) as image:
        image.verify()
        return str(image.info.get("Description", "")), f"data:image/png;base64,{data}"


def _reason(error: Exception, path: Path | str = "") -> str:
    """Returns an error in words, without the path's folder."""
    words = str(getattr(error, "strerror", None) or error).removeprefix(f"{path}: ")
    words = words.replace(str(path), Path(path).name) if path else words
    return words if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {words}"
