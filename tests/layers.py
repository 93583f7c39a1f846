"""Which layer a package is on, what imports what, and where an import cycle would be.

    python -m tests.layers      layers, imports, cycles; exit status 1 for a cycle or an upward import

Design: imports are read from the source, including those inside functions and under ``TYPE_CHECKING``,
because a hidden cycle is still one. The children of a folder are its files and its subfolders; cycles are
looked for among the children of every folder, so a subfolder may use its neighbours' files unless they use
it back.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.repository import ROOT

LAYERS = (
    (
        "values, errors, and helpers without imports",
        "types errors hub_id orphan scatter scratch stops",
    ),
    (
        "settings, wire format, telemetry",
        "background config conformance estimators hub special_tokens telemetry verification wire",
    ),
    ("queue, tokens, objectives, run directory", "auth objectives process queue run"),
    ("tensors, corpus, gRPC, preflight checks", "compute corpus preflight rpc testing"),
    ("weight transfer, clients, experiments", "clients lab weights"),
    ("replica runtime, command line", "cli replica"),
)
"""What ``forethought`` is built of, bottom first: each imports only from the layers below it.

``services`` and ``trainer`` are on top, next to each other. They import neither ``lab`` nor ``cli``, nor
each other, except for ``services.single``, which is a whole run in one process.
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


def layer_of(unit: str) -> int:
    """From 0, the bottom.

    Raises:
        KeyError: the file or folder has no layer yet; add it to :data:`LAYERS`.
    """
    return {name: layer for layer, (_, names) in enumerate(LAYERS) for name in names.split()}[unit]


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


def cycle(graph: dict[str, frozenset[str]]) -> list[str]:
    """Some cycle of a graph, as the names along it; empty where there is none."""
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


def cycles() -> list[str]:
    """One line for every folder whose children import each other in a cycle."""
    found = {folder: cycle(edges(folder)) for folder in folders()}
    return [f"{folder}: {' -> '.join(names)}" for folder, names in found.items() if names]


def upward_imports() -> list[str]:
    """Imports of ``forethought`` that do not go to a lower layer."""
    return [
        f"{importer} (layer {layer_of(importer)}) imports {target} (layer {layer_of(target)})"
        for importer, targets in sorted(edges("forethought").items())
        for target in sorted(targets)
        if layer_of(target) >= layer_of(importer)
    ]


def main() -> int:
    """Print what the tests enforce."""
    print("services and trainer")
    for layer, (what, names) in reversed(list(enumerate(LAYERS))):
        print(f"  layer {layer}  {what:<46} {names}")
    print(f"imports between them: {sum(map(len, edges('forethought').values()))}")
    wrong = cycles() + upward_imports()
    print("cycles and upward imports:", *(wrong or ["none"]), sep="\n  ")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
