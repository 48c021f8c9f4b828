"""The house's rule: imports point downwards. The table is DESIGN.md's; the imports are read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
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
            found |= (
                {f"arelu_tl.{a.name}" for a in node.names}
                if node.module == "arelu_tl"
                else {node.module}
            )
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
    assert [
        (p.name, name)
        for p in tests.rglob("*.py")
        for name in _imports(p)
        if name.split(".")[0] == "tests"
    ] == []


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


# What takes more than seven arguments, and why.
MANY_PARAMETERS = {
    "activation/": "what a kernel reads and writes, and what an activation is made of",
    "cli/": "a parameter is an option",
    "surgery/convert.py:convert": "the public function: its keywords are the settings",
    "surgery/plan.py:make_plan": "the choices of a plan, by keyword",
    "exporting/export.py:export": "the public function: its keywords are the settings",
    "exporting/": "a form of export and what it is proved with",
    "data/folder.py:scan_folder": "settings, and who listens",
    "data/loader.py:": "by keyword, all but three with a default",
    "models/evaluate.py:evaluate": "the public function: its keywords are the settings",
    "training/fit.py:": "the loop's parts: model, batches, optimiser, schedule, settings, place, journal",
    "experiment/run.py:train_run": "the run's parts, and its share of the machine",
    "paper/nets/fit.py:train_stack": "the stack's parts",
    "explain/features/show.py:_tile": "where a tile stands, and what is in it",
}


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_function_fits_a_screen_and_takes_few_arguments(path: Path) -> None:
    for function in _functions(path):
        name = f"{path.relative_to(PACKAGE).as_posix()}:{function.name}"
        assert sum(isinstance(node, ast.stmt) for node in ast.walk(function)) <= 81, name
        taken = function.args
        names = [a.arg for a in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
        if len([n for n in names if n not in ("self", "cls")]) > 7:
            assert any(name.startswith(known) for known in MANY_PARAMETERS), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_lines_fit_and_docstrings_begin_with_a_summary(path: Path) -> None:
    text = path.read_text()
    assert [line for line in text.splitlines() if len(line) > 100] == []
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or path.name == "__main__.py", "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (told := ast.get_docstring(node)):
            first = told.splitlines()[0]
            sections = ("Args:", "Attributes:", "Returns:", "Raises:", "Yields:")
            assert not first.startswith(sections), f"{node.name}: {first}"


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
