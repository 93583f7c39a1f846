"""Who may import what: the lightness of ``forethought``, the walls between processes, and the wheel."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.layers import (
    FILES,
    LAYERS,
    all_imports,
    cycle,
    cycles,
    edges,
    imports_of,
    layer_of,
    module_name,
    upward_imports,
)
from tests.repository import ROOT

PACKAGES = ("forethought", "services", "trainer")
HEAVY = {"torch", "transformers", "vllm"}
NEEDS_TORCH = (
    "forethought.compute",
    "forethought.lab.curation",
    "forethought.lab.downstream.answering",
)
"""What handles tensors itself; no other module of the library imports it at module level."""
PURE = (
    "forethought.types",
    "forethought.errors",
    "forethought.objectives",
    "forethought.estimators",
)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imported_by(target: str, *outside: str) -> list[str]:
    """Imports of ``target`` by modules outside of some packages."""
    return [
        str(i)
        for i in all_imports()
        if within(i.module, target) and not within(i.importer, *outside)
    ]


def loaded_after(code: str) -> set[str]:
    """Top-level names in ``sys.modules`` of a clean process that ran ``code``."""
    code += (
        "\nimport sys, json; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def light_modules() -> list[str]:
    """Every module of the library that has to be importable without torch."""
    names = [module_name(file) for file in FILES if file.parts[0] == "forethought"]
    return [name for name in names if not within(name, *NEEDS_TORCH) and "__main__" not in name]


def test_importing_the_library_is_light() -> None:
    loaded = loaded_after("import forethought")
    assert not loaded & (HEAVY | {"redis", "grpc", "google", "numpy", "pydantic", "fastapi"})


def test_clients_load_a_transport_when_a_url_names_it() -> None:
    transports = {"httpx", "httpx2", "grpc", "google"}
    code = "import forethought.clients as c\n"
    assert not loaded_after(code) & (HEAVY | transports | {"numpy"})
    assert loaded_after(code + "c.RewardClient('http://h:1')") & transports == {"httpx2"}
    loaded = loaded_after(code + "c.RewardClient('grpc://h:1').close()")
    assert loaded & transports == {"grpc", "google"}
    assert not loaded & HEAVY


def test_no_module_of_the_library_loads_torch() -> None:
    """One process for all: where it fails, the modules are tried one by one to name the culprit."""
    modules = light_modules()
    assert len(modules) > 50
    if loaded_after("".join(f"import {name}\n" for name in modules)) & HEAVY:
        guilty = [name for name in modules if loaded_after(f"import {name}") & HEAVY]
        pytest.fail(f"these modules load one of {sorted(HEAVY)}: {guilty}")


def test_domain_logic_never_sees_redis_grpc_or_protobuf() -> None:
    code = "".join(f"import {name}\n" for name in light_modules() if within(name, *PURE))
    assert "forethought.objectives.rlp" in code
    assert not loaded_after(code) & {"redis", "grpc", "google", "fastapi"}


def test_help_is_light() -> None:
    code = "import sys\nfrom forethought.cli import main\nsys.argv = ['forethought', '--help']\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass"
    assert not loaded_after(code) & (HEAVY | {"redis", "grpc", "numpy", "datasets", "matplotlib"})


@pytest.mark.parametrize("process", ["services.rollout", "services.reward", "trainer"])
def test_arguments_are_parsed_before_anything_heavy_is_imported(process: str) -> None:
    code = "import runpy, sys\nsys.argv = ['x', '--help']\ntry:\n"
    code += f"    runpy.run_module('{process}', run_name='__main__')\nexcept SystemExit:\n    print('left')"
    assert not loaded_after(code) & HEAVY


def test_vllm_is_of_the_rollout_service_alone() -> None:
    assert imported_by("vllm", "services.rollout") == []


def test_redis_is_of_the_queue_alone() -> None:
    assert imported_by("redis", "forethought.queue") == []
    assert imported_by("redis", "no_module"), "the rule found no import at all"


def test_stubs_are_of_the_wire_and_the_grpc_adapters_alone() -> None:
    allowed = (
        "forethought.wire",
        "forethought.rpc",
        "forethought.weights.grpc_weights",
        "forethought.clients.grpc_transport",  # the errors of calls
        "forethought.clients.grpc_methods",  # the messages of every method
        "services.reward.grpc_server",
        "services.rollout.grpc_server",
    )
    assert imported_by("forethought.wire.v1", *allowed) == []
    stubs = [i for i in all_imports() if "_pb2" in i.module and not within(i.importer, *allowed)]
    assert stubs == []
    assert imported_by("grpc", *allowed) == []


def test_no_folder_has_an_import_cycle_among_its_children() -> None:
    assert cycles() == []


def test_every_package_has_a_layer_and_imports_only_from_below() -> None:
    children = set(edges("forethought")) | {
        file.parts[1].removesuffix(".py") for file in FILES if file.parts[0] == "forethought"
    }
    layers = [name for _, names in LAYERS for name in names.split()]
    assert sorted(layers) == sorted(children - {"__init__"}), "LAYERS names each exactly once"
    assert upward_imports() == []


def test_the_rules_find_what_they_forbid() -> None:
    assert cycle({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b")}) == [
        "b",
        "c",
        "b",
    ]
    assert cycle({"a": frozenset("bc"), "b": frozenset("c")}) == []
    assert "wire" in edges("forethought")["run"], "imports between packages are seen at all"
    assert "assembly" in edges("trainer")["__main__"], "those inside functions too"
    assert layer_of("types") < layer_of("replica")


def test_the_architecture_page_shows_the_layers() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for what, names in LAYERS:
        assert f"| {what} | {', '.join(f'`{name}`' for name in names.split())} |" in page


def test_services_and_trainer_import_neither_lab_nor_cli() -> None:
    for above in ("forethought.lab", "forethought.cli"):
        assert imported_by(above, "forethought.lab", "forethought.cli") == []


def test_the_library_imports_neither_services_nor_trainer() -> None:
    for above in ("services", "trainer"):
        assert imported_by(above, "services", "trainer") == []


@pytest.mark.parametrize("process", ["services.rollout", "services.reward", "trainer"])
def test_processes_never_import_each_other(process: str) -> None:
    """But for the one that is all three of them."""
    assert imported_by(process, process, "services.single") == []


def test_what_processes_share_is_in_the_library() -> None:
    """Nothing lives in ``services`` itself: it would be a way around the wall."""
    assert [f for f in FILES if f.parts[0] == "services" and len(f.parts) == 2] == [
        Path("services/__init__.py")
    ]


def test_compute_is_imported_by_no_other_module_of_the_library_at_top_level() -> None:
    guilty = [
        str(i)
        for i in all_imports()
        if i.top_level
        and within(i.module, "forethought.compute")
        and within(i.importer, "forethought")
        and not within(i.importer, *NEEDS_TORCH)
    ]
    assert guilty == []


def test_torch_is_imported_by_no_other_module_of_the_library_at_top_level() -> None:
    guilty = [
        str(i)
        for i in all_imports()
        if i.top_level
        and within(i.module, *HEAVY)
        and within(i.importer, "forethought")
        and not within(i.importer, *NEEDS_TORCH)
    ]
    assert guilty == []


@pytest.mark.parametrize(
    "pickler", ["pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"]
)
def test_nothing_is_pickled(pickler: str) -> None:
    assert imported_by(pickler, "no_module") == []


def test_torch_load_is_not_called() -> None:
    """It unpickles; tensors are read from safetensors."""
    calls = [
        f"{file}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save")
    ]
    assert calls == []


def test_the_rules_see_every_way_to_import() -> None:
    source = (
        "import a.b as c, d\nfrom e import f\nif TYPE_CHECKING:\n    import g\n"
        "try:\n    import h\nexcept ImportError:\n    pass\n"
        "class C:\n    import i\n    def m(self):\n        from j.k import l\n"
    )
    found = {(i.module, i.top_level) for i in imports_of(source, "m")}
    assert found == {
        ("a.b", True), ("d", True), ("e.f", True), ("g", False), ("h", True), ("i", True),
        ("j.k.l", False),
    }  # fmt: skip


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_contains_the_three_packages_and_nothing_else(wheel_names: set[str]) -> None:
    assert {name.partition("/")[0] for name in wheel_names} == set(PACKAGES)
    missing = {file.as_posix() for file in FILES} - wheel_names
    assert missing == set()
    assert not {name for name in wheel_names if "__pycache__" in name or name.endswith(".pyc")}


def test_the_wheel_carries_what_is_not_code(wheel_names: set[str]) -> None:
    base = ROOT / "forethought/lab/demo/base"
    shipped = {f"forethought/lab/demo/base/{file.name}" for file in base.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        f.name for f in base.iterdir()
    }
    assert shipped <= wheel_names
    assert "forethought/py.typed" in wheel_names
    assert any(name.endswith("_pb2.pyi") for name in wheel_names)
