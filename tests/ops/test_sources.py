"""The operators' sources: named so that setup.py finds them, and readable."""

from __future__ import annotations

from pathlib import Path

OPS = Path(__file__).parents[2] / "ops"
SOURCES = [path for path in OPS.rglob("*") if path.is_file()]


def test_every_source_is_compiled():
    """setup.py takes ops/*/cpu*.cpp and ops/*/cuda*.cu; what has another name would be left out without a word."""
    for path in SOURCES:
        names = {".cpp": "cpu", ".cu": "cuda"}
        assert path.parent.parent == OPS and path.suffix in {".h", *names}, path
        assert path.name.startswith(names.get(path.suffix, "")), path


def test_lines_are_as_long_as_pythons():
    """clang-format leaves comments as they are."""
    for path in (*SOURCES, *(OPS.parent / "tests/emulated").iterdir()):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert len(line) <= 120, f"{path}:{number}"


def test_product_code_knows_no_test():
    for path in SOURCES:
        text = path.read_text().lower()
        assert "emulat" not in text and "tests/" not in text, path
