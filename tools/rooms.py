"""Prints which room of dk_bench imports which, from the floor up; fails on a circle or an arrow that points upward.

python tools/rooms.py [--files]: with --files also which files carry each arrow.

A room is a folder of the package, or a file beside the folders. `FLOORS` orders them: a room imports from rooms below
it alone. Imports inside functions count like those at the top of a file.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dk_bench"
FLOORS = (
    "errors",
    "files",
    "reading",
    "processes",
    "reference",
    "functional",
    "nn",
    "models",
    "config",
    "runs",
    "data",
    "training",
    "classification",
    "registry",
    "detection",
    "tasks",
    "tables",
    "claims",
    "trained",
    "sweep",
    "analysis",
    "plan",
    "report",
    "cli",
    "__main__",
)
# mmengine finds what a configuration names in a registry, and that has to import the modules it holds.
ALLOWED = {("registry", "detection")}


def modules() -> dict[str, Path]:
    """All modules of the package by their dotted names without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """The modules of the package that a file imports, and whether as it is loaded itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        inner for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef | ast.If) for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in wanted:
            if full.split(".")[0] != PACKAGE.name:
                continue
            inside = full.removeprefix(PACKAGE.name).lstrip(".")
            while inside and inside not in known:
                inside = inside.rpartition(".")[0]
            if inside != name:
                yield inside, node not in later


def room(name: str) -> str:
    """The room that a module is in."""
    return name.partition(".")[0]


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One circle of arrows, its first module again at its end; empty where there is none."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for following in sorted(arrows.get(name, ())):
            if found := walk(following, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def faults() -> list[str]:
    """Tells what is wrong with the rooms, a sentence each."""
    known, found = modules(), []
    floors = {name: floor for floor, name in enumerate(FLOORS)}
    arrows: dict[str, set[str]] = {}
    for name, path in known.items():
        for target, at_once in imports(name, path, known):
            if not name or not target:  # the package's own face, dk_bench/__init__.py
                continue
            here, there = room(name), room(target)
            if here not in floors or there not in floors:
                found.append(f"{name}: room {here if here not in floors else there} has no floor in tools/rooms.py")
            elif floors[there] > floors[here] and (here, there) not in ALLOWED:
                found.append(f"{name} imports {target}: {there} lies above {here}")
            # A package's face imports what is in it, and that may import its neighbours by their own names.
            if at_once and known[target].name != "__init__.py" and known[name].name != "__init__.py":
                arrows.setdefault(name, set()).add(target)
    if loop := circle(arrows):
        found.append(f"circle: {' -> '.join(loop)}")
    return found


def main() -> int:
    """Prints the rooms from the ground up, each with those that it uses, and what is wrong."""
    known = modules()
    carried: dict[str, dict[str, set[str]]] = {}
    for name, path in known.items():
        for target, _ in imports(name, path, known):
            if name and target and room(name) != room(target):
                carried.setdefault(room(name), {}).setdefault(room(target), set()).add(f"{name} -> {target}")
    for name in FLOORS:
        if name not in map(room, known):
            continue
        used = carried.get(name, {})
        print(f"{name}: {', '.join(other for other in FLOORS if other in used) or '-'}")
        if "--files" in sys.argv[1:]:
            print(*(f"    {arrow}" for other in used for arrow in sorted(used[other])), sep="\n")
    print(*faults(), sep="\n")
    return int(bool(faults()))


if __name__ == "__main__":
    sys.exit(main())
