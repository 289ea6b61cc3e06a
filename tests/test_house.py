"""The house is in order: rooms on their floors, one name for one thing, files and functions that can be read whole."""

import ast
import collections
import re
import statistics
from pathlib import Path

import pytest
import rooms

from dk_bench.tasks import KINDS

ROOT = Path(__file__).parents[1]

PACKAGE = {path: ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "dk_bench").rglob("*.py"))}
FUNCTIONS = [
    (path, node)
    for path, tree in PACKAGE.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]
SUFFIXES = {".py", ".cpp", ".h", ".cu", ".cuh"}
LONGEST_FILE, MEDIAN_FILE, LONGEST_FUNCTION, MOST_FUNCTIONS = 400, 110, 50, 22  # lines; the last: of nine in ten

PRODUCTS = {"sample_kernel", "dense_deform_kernel"}  # by PyTorch's own operators, without a folder in ops/
OPERATORS = "|".join({*PRODUCTS, *(path.name for path in (ROOT / "ops").iterdir() if path.is_dir())})
TASKS = "|".join(kind.place.split(".")[1] for kind in KINDS.values())
# Modules that have one name on purpose: all tasks are laid out alike, and so are the studies; an operator has its own
# name in every room; a command has the name that users type, and its module in cli that of the command.
ALIKE = (
    (rf"(training|{TASKS})\.(task|module|data|recipe|predicting|exporting|outlining)",),
    (r"analysis\.\w+\.(study|figures|tables)", r"cli\.tables"),
    (rf"(reference|functional|nn)\.({OPERATORS})",),
    (r"cli\.plan", r"claims\.plan"),
    (r"cli\.(power|replay|predict|export)", r"tables\.power", r"sweep\.replay", r"trained\.(predict|export)"),
)
# Words that end as a verb in the third person does, and are none.
NO_VERBS = set(
    "As Attempts Batches Boxes Bytes Cells Class Classes Coefficients Cores Differences Epochs FLOPs Factors Figures "
    "Images Its Labels Lines Logits Offsets Pixels Positions Quartiles Radius Ratios Rows Seconds Sentences "
    "Tables This Times Tuples Values Versions".split()
)


def dotted(path):
    return ".".join(path.relative_to(ROOT / "dk_bench").with_suffix("").parts)


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def length(function):
    return function.end_lineno - function.lineno + 1


def test_rooms_use_what_lies_below_them_and_nothing_goes_round():
    assert rooms.faults() == []


def test_public_classes_have_names_of_their_own():
    places = collections.defaultdict(list)
    for path, tree in PACKAGE.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(dotted(path))
    assert {name: there for name, there in places.items() if len(there) > 1} == {}


def test_modules_have_names_of_their_own():
    places = collections.defaultdict(set)
    for path in PACKAGE:
        if path.name != "__init__.py":
            places[path.stem].add(dotted(path))
    for alike in ALIKE:
        for there in places.values():
            matching = {name for name in there if any(re.fullmatch(pattern, name) for pattern in alike)}
            there -= set(sorted(matching)[1:])
    assert {name: sorted(there) for name, there in places.items() if len(there) > 1} == {}


@pytest.mark.parametrize("folder", ["dk_bench", "ops", "tests", "tools"])
def test_no_file_is_too_long_to_be_read(folder):
    files = [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in files}
    assert lengths and {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_files_are_read_in_one_sitting():
    assert statistics.median(len(path.read_text("utf-8").splitlines()) for path in PACKAGE) <= MEDIAN_FILE


def test_functions_fit_a_screen():
    lengths = sorted(length(node) for _, node in FUNCTIONS)
    assert lengths[len(lengths) * 9 // 10] <= MOST_FUNCTIONS


def test_no_function_is_too_long_to_be_read():
    assert [where(path, node) for path, node in FUNCTIONS if length(node) > LONGEST_FUNCTION] == []


def test_docstrings_of_functions_begin_with_a_verb():
    """In the third person: Returns, Reads, Tells whether."""
    wrong = []
    for path, node in FUNCTIONS:
        if text := ast.get_docstring(node):
            word = re.match(r"\w*", text)[0]
            if word in NO_VERBS or not re.fullmatch(r"[A-Z][a-z]*s", word):
                wrong.append(f"{where(path, node)}: {text[:40]}")
    assert wrong == []


def test_the_formatter_decides_everywhere():
    words = re.compile(r"#\s*fmt:\s*(skip|off)")
    files = [path for folder in ("dk_bench", "tests", "tools", "configs") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in files if words.search(path.read_text("utf-8"))] == []
