"""The house: what imports what, which floor a package stands on, and where a circle would be.

    python -m tests.house      floors, edges, circles; exit status 1 for a circle or an import upward

Design: imports are read from the source, those inside functions and under ``TYPE_CHECKING`` too, because a
circle that is only hidden is still one. The children of a folder are its files and its subfolders; a circle
is looked for among the children of every folder, so that a subfolder may use its neighbours' files as
long as they do not use it back.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.repository import ROOT

FLOORS = (
    ("values and errors", "types errors orphan scatter"),
    ("settings, wire, metrics", "background config estimators telemetry verification wire"),
    ("queue, tokens, objectives, what a run leaves", "auth objectives process queue run"),
    ("tensors, text, gRPC, checks before a start", "compute corpus preflight rpc testing"),
    ("weights on their way, clients, the laboratory", "clients lab weights"),
    ("replicas and the command line", "cli replica"),
)
"""What ``forethought`` is built of, from the ground up: each imports only from the floors below it.

``services`` and ``trainer`` stand on top, side by side, and never import ``lab``, ``cli`` or each other.
"""


PACKAGES = ("forethought", "services", "trainer")

FILES = sorted(
    file.relative_to(ROOT)
    for package in PACKAGES
    for file in (ROOT / package).rglob("*.py")
    if "__pycache__" not in file.parts
)


def module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@dataclass(frozen=True)
class Import:
    """``importer`` needs ``module``; at ``top_level`` when importing the one imports the other."""

    importer: str
    module: str
    top_level: bool

    def __str__(self) -> str:
        return f"{self.importer} imports {self.module}"


def statements(tree: ast.AST, at_top: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement, with whether it runs on import. ``if TYPE_CHECKING`` never runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, at_top
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from ((statement, False) for statement, _ in statements(node, False))
        else:
            runs = not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from statements(node, at_top and runs)


def imports_of(source: str, importer: str) -> Iterator[Import]:
    for statement, top_level in statements(ast.parse(source)):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield Import(importer, alias.name, top_level)
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{importer} imports relatively; write the whole name"
            for alias in statement.names:
                yield Import(importer, f"{statement.module}.{alias.name}", top_level)


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(
        found
        for file in FILES
        for found in imports_of((ROOT / file).read_text(encoding="utf-8"), module_name(file))
    )


def floor_of(unit: str) -> int:
    """From 0, the ground.

    Raises:
        KeyError: the file or folder has no floor yet; add it to :data:`FLOORS`.
    """
    return {name: floor for floor, (_, names) in enumerate(FLOORS) for name in names.split()}[unit]


@cache
def modules() -> frozenset[str]:
    """Every module of the three packages."""
    return frozenset(module_name(file) for file in FILES)


@cache
def edges(folder: str) -> dict[str, frozenset[str]]:
    """Which child of a folder (a file or a subfolder) imports which other."""
    found: dict[str, set[str]] = defaultdict(set)
    for imported in all_imports():
        target = (
            imported.module if imported.module in modules() else imported.module.rpartition(".")[0]
        )
        importer, target_child = _child(folder, imported.importer), _child(folder, target)
        if importer and target_child and importer != target_child:
            found[importer].add(target_child)
    return {child: frozenset(targets) for child, targets in found.items()}


def _child(folder: str, module: str) -> str:
    """The child of a folder that a module is, or is in; empty where it is elsewhere."""
    inside = module.startswith(f"{folder}.")
    return module.removeprefix(f"{folder}.").partition(".")[0] if inside else ""


def folders() -> list[str]:
    """Every package, outermost first."""
    return sorted({module_name(file) for file in FILES if file.name == "__init__.py"})


def circle(graph: dict[str, frozenset[str]]) -> list[str]:
    """Some circle of a graph, as the names along it; empty where there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := walk(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def circles() -> list[str]:
    """One line for every folder whose children import each other in a circle."""
    found = {folder: circle(edges(folder)) for folder in folders()}
    return [f"{folder}: {' -> '.join(names)}" for folder, names in found.items() if names]


def upward_imports() -> list[str]:
    """Imports of ``forethought`` that do not go to a lower floor."""
    return [
        f"{importer} (floor {floor_of(importer)}) imports {target} (floor {floor_of(target)})"
        for importer, targets in sorted(edges("forethought").items())
        for target in sorted(targets)
        if floor_of(target) >= floor_of(importer)
    ]


def main() -> int:
    """Print what the tests hold."""
    print("services and trainer")
    for floor, (what, names) in reversed(list(enumerate(FLOORS))):
        print(f"  floor {floor}  {what:<46} {names}")
    print(f"imports between them: {sum(map(len, edges('forethought').values()))}")
    wrong = circles() + upward_imports()
    print("circles and imports upward:", *(wrong or ["none"]), sep="\n  ")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
