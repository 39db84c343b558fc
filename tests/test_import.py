"""The package as a whole: cheap to import, dependencies in one direction, documented, and readable by Python 3.10."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import shared

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted(Path(shared.__file__).parent.rglob("*.py"))

# The rooms from the ground up: a room imports only from rooms on the lines above its own.
ROOMS = [
    ["runtime"],
    ["datasets"],
    ["tasks", "batching"],
    ["recurrent"],
    ["truncation", "checkpointing"],
    ["stochastic"],
    ["discrete", "fast_weights", "synthetic_gradients"],
    ["training"],
    ["ledger", "figures", "exercises"],
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}

HEAVY = [
    "pandas",
    "sklearn",
    "scipy.stats",
    "joblib",
    "pooch",
    "requests",
    "tqdm",
    "IPython",
    "matplotlib.pyplot",
]

IMPORT_ALL = """
import importlib, json, pkgutil, sys, torch
before = set(sys.modules)  # what torch itself brings along (it brings tqdm) costs nothing more
import shared
for module in pkgutil.walk_packages(shared.__path__, "shared."):
    importlib.import_module(module.name)
print(json.dumps([sorted(set(sys.modules) - before), sorted(m for m in sys.modules if m.startswith("shared"))]))
"""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """ "training" for "shared.training", "exercises" for "shared.exercises.chapter01", "" for "shared"."""
    return [*module.split("."), ""][1]


def imported(path: Path) -> set[str]:
    """The names of the modules that the file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: a relative import hides the direction"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_imports(module: str, names: set[str]) -> list[str]:
    """Those of the imported `names` that this module may not import."""
    here = room(module)
    wrong = []
    for name in sorted(names):
        top, there = name.split(".")[0], room(name)
        outside = top in ("chapters", "tools", "tests", "benchmarks")
        inside = top == "shared" and there and there != here
        if outside or (inside and (here == "" or there not in FLOOR or FLOOR[there] >= FLOOR[here])):
            wrong.append(name)
    return wrong


def test_importing_everything_costs_little():
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    brought, ours = json.loads(run.stdout)
    assert {module_name(path) for path in PATHS} == set(ours)
    assert [name for name in HEAVY if name in brought] == []


@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_a_room_imports_only_from_the_rooms_above(path):
    module = module_name(path)
    assert module == "shared" or room(module) in FLOOR, f"{module}: which room is it? (see ROOMS above)"
    assert wrong_imports(module, imported(path)) == []


def test_the_check_of_the_direction_knows_right_from_wrong():
    assert wrong_imports("shared.training", {"shared", "shared.runtime", "numpy", "shared.training"}) == []
    assert wrong_imports("shared.exercises.chapter01", {"shared.exercises.checks", "shared.training.interval"}) == []
    for name in ("shared.ledger", "shared.figures.show", "tools.book", "tests", "shared.elsewhere"):
        assert wrong_imports("shared.training", {name}) == [name]
    assert wrong_imports("shared.ledger", {"shared.figures"}) == ["shared.figures"]
    assert wrong_imports("shared", {"shared.runtime"}) == ["shared.runtime"]


@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_what_is_public_is_documented(path):
    module = ast.parse(path.read_text("utf-8"))
    public = [
        node
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert ast.get_docstring(module)
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_python_3_10_can_read_it(path):
    ast.parse(path.read_text("utf-8"), feature_version=(3, 10))
