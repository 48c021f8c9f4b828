"""The house's rule: imports point downwards. The table is DESIGN.md's; the imports are read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_code

PACKAGE = Path(__file__).parents[1] / "arelu_tl"
FLOORS = (
    ("errors", "lazy", "private", "version"),
    ("activation", "records"),
    ("backbone", "data"),
    ("surgery",),
    ("training", "analysis"),
    ("render",),
    ("models",),
    ("experiment", "exporting", "paper"),
    ("explain",),
    ("cli",),
)
LAYERS = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
# One of a floor may know another there only where this table says so.
SIBLINGS = {("paper", "experiment")}
HEAVY = ("torch", "torchvision", "timm", "matplotlib", "scipy")


def _package_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imports(path: Path, *, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # ``from arelu_tl import x``: of the package itself, x is what is imported.
            found |= {f"arelu_tl.{a.name}" for a in node.names} if node.module == "arelu_tl" else {node.module}
    return found


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    here = _package_of(path)
    if here in ("__init__", "__main__"):
        return
    for name in _imports(path):
        if not name.startswith("arelu_tl."):
            continue
        there = name.split(".")[1]
        if there == here:
            continue
        assert LAYERS[there] < LAYERS[here] or (here, there) in SIBLINGS, f"{here} imports {there}"


def test_helpers_of_tests_have_one_name() -> None:
    """Under a second one they are imported twice, with all that they keep, and pytest by itself does not find it."""
    tests = Path(__file__).parent
    assert [(p.name, name) for p in tests.rglob("*.py") for name in _imports(p) if name.split(".")[0] == "tests"] == []


def test_type_checkers_of_others_see_our_types() -> None:
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_every_package_has_a_layer() -> None:
    packages = {_package_of(p) for p in SOURCES} - {"__init__", "__main__"}
    assert packages == set(LAYERS)


def test_no_package_offers_what_another_module_defines() -> None:
    """An ``__init__`` that imports makes everybody pay for everything, and hides where a thing is."""
    hubs = [p for p in SOURCES if p.name == "__init__.py" and p.parent != PACKAGE]
    assert [p for p in hubs if len(ast.parse(p.read_text()).body) != 1] == []


def test_few_packages_see_the_whole_configuration() -> None:
    for path in SOURCES:
        here = _package_of(path)
        if here in ("experiment", "explain", "cli", "records", "__init__"):
            continue
        tree = ast.parse(path.read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
        assert "FinetuneConfig" not in names, path


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("arelu_tl", (*HEAVY, "numpy", "pydantic")),
        ("arelu_tl.cli.app", (*HEAVY, "numpy")),
        ("arelu_tl.records.runs", HEAVY),
        ("arelu_tl.analysis.comparison", ("torch", "torchvision", "timm")),
    ],
)
def test_importing_brings_along_nothing_heavy(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted(m for m in {forbidden!r} if m in sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


def test_public_names_are_what_they_promise_after_every_module_is_imported() -> None:
    """A sub-package of the same name would take a public function's place as soon as it is imported."""
    code = (
        "import importlib, pkgutil, arelu_tl\n"
        "for found in pkgutil.walk_packages(arelu_tl.__path__, 'arelu_tl.'):\n"
        # The one module that cannot be imported where Triton isn't.
        "    if not found.name.endswith(('__main__', 'triton_kernels')): importlib.import_module(found.name)\n"
        "assert all(callable(getattr(arelu_tl, n)) for n in arelu_tl.__all__ if n != '__version__')"
    )
    done = run_code(code)
    assert done.returncode == 0, done.stderr
