"""The stamp: what makes a chapter stale, and what does not."""

import shutil
import subprocess
import sys

import pytest
from conftest import code, text

from tools import stamp
from tools.book import ROOT, read

RUNTIME = '''
"""Where."""
import os
import numpy as np

WHERE = "cpu"
SEED: int = 0

def device():
    """The device."""
    return os.environ.get("D", WHERE)

def unrelated():
    return np.zeros(3)
'''
TASKS = """
from shared import runtime
from shared.runtime import SEED as seed

def echo(n):
    return Task(n, runtime.device())

class Task:
    def __init__(self, n, where):
        self.n = n

    def draw(self):
        return helper(self.n) + seed

def helper(n):
    return n

def other():
    return runtime.unrelated()
"""
CHAPTER = ["from shared import tasks", "seeds = 5", "task = tasks.echo(seeds)\ntask.draw()"]


def stamped(book, sources=CHAPTER):
    """A chapter of these sources (the second is the parameters cell), stamped as if it had just run."""
    cells = [code(source, *(["parameters"] if n == 1 else [])) for n, source in enumerate(sources)]
    notebook = read(book.chapter([text("# 1. Title"), *cells]))
    notebook.metadata["unrolled"] = stamp.make_stamp(notebook, "published", stamp.parameters(notebook), 1.0, book.root)
    assert stamp.stale_reasons(notebook, book.root) == []
    return notebook


@pytest.fixture
def modules(book):
    book.module("runtime", RUNTIME)
    book.module("tasks", TASKS)
    return book


# The chapter's own cells


def hashed(*sources, tag=None):
    from nbformat import v4

    return stamp.code_hash(v4.new_notebook(cells=[code(source, *([tag] if tag else [])) for source in sources]))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x=1  # the first"),
        ("x = 1\ny = 2", "\nx = 1\n\n\ny = (2)\n"),
        ('def f():\n    return "a"', "def f():\n    '''Say a.'''\n    return 'a'"),
        ("x = 1", '"a remark"\nx = 1'),
        ("f(1, 2)", "f(\n    1,\n    2,\n)"),
        ('x = "a" f"b{1}"', 'x = f"ab{1}"'),
    ],
)
def test_layout_comments_and_docstrings_do_not_count(before, after):
    assert hashed(before) == hashed(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = True", "x = 1"),
        ("x = None", "x = ..."),
        ("f(1, 2)", "f(2, 1)"),
        ("{**a, 'b': 1}", "{'b': 1, **a}"),
        ("def f(*, a, b=1): pass", "def f(*, a=1, b): pass"),
        ("lambda a, *b: 0", "lambda *b, a: 0"),
        ('print(f"{x:.2f}")', 'print(f"{x:.3f}")'),
        ('print(f"{x!s}")', 'print(f"{x!r}")'),
        ('print("a")', 'print("b")'),
        ("x = -1", "x = +1"),
        ("a < b", "a <= b"),
        ("def f(): return g(x)", "async def f(): return g(x)"),
        ("x[1:]", "x[:1]"),
        ("x[1:]", "x[::1]"),
        ("import a.b", "import a.b as a"),
        ("from a import b", "from .a import b"),
        ("match x:\n    case None: pass", "match x:\n    case True: pass"),
    ],
)
def test_code_counts(before, after):
    assert hashed(before) != hashed(after)


def test_cell_boundaries_and_order_count_but_not_cells_without_code():
    assert hashed("x = 1", "y = 2") != hashed("x = 1\ny = 2")
    assert hashed("x = 1", "y = 2") != hashed("y = 2", "x = 1")
    assert hashed("x = 1", "y = 2") == hashed("x = 1", "# nothing", "y = 2", "")


def test_the_setup_cell_does_not_count_and_the_parameters_cell_does(modules):
    notebook = stamped(modules)
    notebook.cells.insert(0, code("address = 1", "setup"))
    assert stamp.stale_reasons(notebook, modules.root) == []
    notebook.cells[3].source = "seeds = 6"
    assert stamp.stale_reasons(notebook, modules.root) == ["code cells changed", "the published settings changed"]


def test_a_cell_that_is_not_plain_python_is_named():
    with pytest.raises(ValueError, match=r"code cell 2 is not plain Python \(line 1"):
        hashed("x = 1", "%matplotlib inline")


@pytest.mark.parametrize(
    "source", ["seeds = list(range(3))", "import os", "print(1)", "a.b = 1", "x = {1, 2}", "if 1: a = 1"]
)
def test_parameters_must_be_literals(source, book):
    with pytest.raises(ValueError, match="only assignments of literals"):
        stamp.parameters(read(book.chapter([code(source, "parameters")])))


def test_parameters_are_read_as_json_has_them(book):
    source = 'dataset = "digits"\nsizes: list = (1, -2)\na = b = None'
    expected = {"dataset": "digits", "sizes": [1, -2], "a": None, "b": None}
    assert stamp.parameters(read(book.chapter([code(source, "parameters")]))) == expected
    with pytest.raises(ValueError, match=r"exactly one code cell tagged `parameters` \(found 2\)"):
        stamp.parameters(read(book.chapter([code("a = 1", "parameters"), code("b = 1", "parameters")])))


# What it uses of shared


def test_only_what_is_reached_is_recorded(modules):
    names = set(stamped(modules).metadata["unrolled"]["shared"])
    tasks = {f"shared.tasks.{name}" for name in ("Task", "echo", "helper", "runtime", "seed")}
    assert names == tasks | {f"shared.runtime.{name}" for name in ("SEED", "WHERE", "device", "os")}


@pytest.mark.parametrize(
    ("module", "before", "after", "reasons"),
    [
        ("tasks", "return n\n", "return n + 1\n", ["shared.tasks.helper changed"]),
        ("tasks", "self.n = n", "self.n = n + 1", ["shared.tasks.Task changed"]),
        ("runtime", 'WHERE = "cpu"', 'WHERE = "gpu"', ["shared.runtime.WHERE changed"]),
        ("runtime", "SEED: int = 0", "SEED: int = 1", ["shared.runtime.SEED changed"]),
        ("runtime", 'get("D"', 'get("E"', ["shared.runtime.device changed"]),
        ("runtime", "import os", "import posix as os", ["shared.runtime.os changed"]),
        ("runtime", "def device", "@cache\ndef device", ["shared.runtime.device changed"]),
        ("runtime", 'WHERE = "cpu"', 'WHERE = "cpu"\nWHERE += "s"', ["shared.runtime.WHERE changed"]),
        ("runtime", "import os", "import os\nos.nice(0)", ["shared.runtime.<module> is now used"]),
        (
            "tasks",
            "return helper(self.n) + seed",
            "return seed",
            ["shared.tasks.Task changed", "shared.tasks.helper is gone"],
        ),
        ("runtime", '"""The device."""', '"""Which device."""  # no?', []),
        ("runtime", "np.zeros(3)", "np.ones(3)", []),
        ("runtime", "import numpy as np", "import numpy.ma as np", []),
        ("tasks", "def other():\n    return", "def other():\n    return 3 +", []),
        ("tasks", "def other", "def added():\n    return helper(2)\n\ndef other", []),
    ],
)
def test_changes_of_shared(modules, module, before, after, reasons):
    notebook = stamped(modules)
    source = RUNTIME if module == "runtime" else TASKS
    assert before in source
    modules.module(module, source.replace(before, after))
    assert stamp.stale_reasons(notebook, modules.root) == reasons


@pytest.mark.parametrize(
    "use",
    [
        "from shared.tasks import helper\nhelper(1)",
        "from shared.tasks import helper as h\nmap(h, [1])",
        "from shared import tasks as t\nt.helper(1)",
        "import shared.tasks\nshared.tasks.helper(1)",
        "import shared.tasks as t\nt.helper(1)",
        "def f():\n    from shared.tasks import helper\n    return helper(1)",
        "from shared import tasks\n@tasks.helper\ndef f(): pass",
        "from shared.tasks import *",
        "from shared import tasks\ngetattr(tasks, 'hel' + 'per')",
        "from shared import tasks\nf(tasks)",
        "from shared.tasks import Task\nTask(1, 2).draw()",
        "from shared.again import again\nagain(1)",
        "from shared import again\nagain.again(1)",
        "from shared import package\npackage.part.use()",
        "from shared.package import part\npart.use()",
        "from shared.package.part import use\nuse()",
        "from shared.package import lazy\nlazy()",
        "from shared.inner.up import up\nup()",
        "from shared.package import relative\nrelative()",
        "import importlib\nimportlib.import_module('shared.tasks').helper(1)",
    ],
)
def test_every_way_to_reach_a_function(modules, use):
    modules.module("inner/__init__", "")
    modules.module("inner/up", "from ..tasks import helper\n\ndef up():\n    return helper(1)")
    modules.module("again", "from shared.tasks import helper as again")
    modules.module(
        "package/__init__",
        "from .part import use as relative\n\ndef lazy():\n    from ..tasks import helper\n    helper()",
    )
    modules.module("package/part", "import shared.tasks\n\ndef use():\n    return shared.tasks.helper(1)")
    notebook = stamped(modules, [use, "seeds = 5"])
    modules.module("tasks", TASKS.replace("return n\n", "return n + 1\n"))
    assert "shared.tasks.helper changed" in stamp.stale_reasons(notebook, modules.root)


@pytest.mark.parametrize(
    ("again", "use"),
    [
        ("from .use import use", "from shared.package import use\nuse(1)"),
        ("from .use import use", "from shared.package.use import use\nuse(1)"),
        ("from shared.package.use import use", "from shared import package\npackage.use(1)"),
        ("from . import use", "from shared import package\npackage.use.use(1)"),
        ("import shared.package.use as use", "from shared.package import use\nuse.use(1)"),
    ],
)
def test_a_module_with_the_name_of_its_function_that_its_package_imports(modules, again, use):
    modules.module("package/__init__", again)
    modules.module("package/use", "from shared.tasks import helper\n\ndef use(n):\n    return helper(n)")
    notebook = stamped(modules, [use, "seeds = 5"])
    modules.module("tasks", TASKS.replace("return n\n", "return n + 1\n"))
    assert stamp.stale_reasons(notebook, modules.root) == ["shared.tasks.helper changed"]


def test_importing_without_using_counts_only_what_runs_on_import(modules):
    notebook = stamped(modules, ["from shared import tasks", "seeds = 5"])
    assert notebook.metadata["unrolled"]["shared"] == {}
    modules.module("runtime", RUNTIME + "\nif WHERE:\n    unrelated()\n")
    reasons = stamp.stale_reasons(notebook, modules.root)
    assert "shared.runtime.<module> is now used" in reasons
    assert "shared.runtime.unrelated is now used" in reasons


def test_what_the_book_decorates_counts_although_nothing_names_it(modules):
    loaders = "LOADERS = {}\ndef register(f):\n    LOADERS[f.__name__] = f\n    return f\n\n"
    loaders += "@register\ndef digits():\n    return 1\n\ndef load(name):\n    return LOADERS[name]()\n"
    modules.module("data", loaders)
    notebook = stamped(modules, ["from shared import data", "seeds = 5", "data.load('digits')"])
    modules.module("data", loaders.replace("return 1", "return 2"))
    assert stamp.stale_reasons(notebook, modules.root) == ["shared.data.digits changed"]


def test_every_assignment_of_a_name_counts(modules):
    modules.module("limits", "LIMIT = 1\nLIMIT += 1\n")
    notebook = stamped(modules, ["from shared import limits", "seeds = 5", "limits.LIMIT"])
    modules.module("limits", "LIMIT = 2\nLIMIT += 1\n")
    assert stamp.stale_reasons(notebook, modules.root) == ["shared.limits.LIMIT changed"]


def test_a_module_that_cannot_be_read_or_is_gone(modules):
    notebook = stamped(modules)
    modules.module("runtime", "def (")
    assert "shared.runtime is not plain Python" in stamp.stale_reasons(notebook, modules.root)[0]
    (modules.root / "shared" / "runtime.py").unlink()
    assert "shared.runtime.device is gone" in stamp.stale_reasons(notebook, modules.root)


# The stamp as a whole


def test_prose_does_not_make_stale_and_outputs_made_otherwise_do(book):
    notebook = read(book.chapter(book.good()))
    assert stamp.stale_reasons(notebook, book.root) == ["never executed at published settings"]
    made = stamp.make_stamp(notebook, "published", stamp.parameters(notebook), 12.34, book.root)
    assert made["data"] == ["digits"]
    assert (made["device"], made["versions"], made["seconds"]) == ("cpu", {"python": "3.11"}, 12.3)
    notebook.metadata["unrolled"] = made
    notebook.cells[4].source = "Other words."
    assert stamp.stale_reasons(notebook, book.root) == []
    for key, wrong in [("data", ["mnist"]), ("device", "cuda"), ("versions", {"python": "3.12"})]:
        right, made[key] = made[key], wrong
        notebook.metadata["unrolled"] = made
        assert stamp.stale_reasons(notebook, book.root) == [
            "its stamp names another device, data or versions than its outputs"
        ]
        made[key] = right
    notebook.metadata["unrolled"] = made
    notebook.cells[6].outputs[0].text = "agree to 1e-16\n"
    assert stamp.stale_reasons(notebook, book.root) == ["its stored outputs are not those of the stamped run"]
    notebook.metadata["unrolled"]["settings"] = "quick"
    assert stamp.stale_reasons(notebook, book.root) == ["never executed at published settings"]


def test_the_command_names_the_stale_chapter(book, monkeypatch, capsys):
    monkeypatch.setattr("tools.book.CHAPTERS", book.root / "chapters")
    monkeypatch.setattr(stamp, "ROOT", book.root)
    assert stamp.main() == 0
    book.chapter(book.good())
    assert stamp.main() == 1
    expected = "chapters/01-good.ipynb is stale: never executed at published settings. Run make refresh.\n"
    assert capsys.readouterr().out == expected


HASH_ALL = """
import ast, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tools.syntax import Reach, digest, dump
nodes = ast.parse(Path(sys.argv[1], "code.txt").read_text(encoding="utf-8")).body
reach = Reach(Path(sys.argv[1]))
reach.code(nodes)
print(digest(dump(nodes)), sorted(reach.hashes.items()))
"""
MANY_KINDS = '''
from shared import *
import shared.runtime, shared.exercises
print(f"{x!r:>{width}} {y:.3f} {{z}}" "and" f"{x = }" f"{a}{b:{c}d}", "é ∂", b"\\xff", 1e-7, 10**20, 3j, ...)
@decorated
class A(B, metaclass=C):
    """Doc."""
    x: int = 1
    async def f(self, /, a, *b, c=1, **d) -> "str":
        async with a as b, c: yield await d
        return [i async for i in x if i], {**d}, a[1:2, ..., ::3], (lambda *a: a), (n := 3), not x, a if b else c
match p:
    case {"a": [1, *rest], **more} | A(x=None) if rest: pass
    case -1 | "s" | True | _: pass
try: pass
except (A, B) as e: raise C from e
finally: del x, y[0]
global g
for i, (j, *k) in x: continue
else: assert a, "b"
while a < b <= c is not d: break
'''


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_hashes_are_alike_on_all_python_versions(tmp_path, version):
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"Python {version} is not installed here")
    shutil.copytree(ROOT / "shared", tmp_path / "shared")
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "syntax.py", tmp_path / "tools")
    modules = "".join(
        f"import shared.{p.stem}\nf(shared.{p.stem})\n" for p in sorted((ROOT / "shared").glob("[a-z]*.py"))
    )
    (tmp_path / "code.txt").write_text(MANY_KINDS + modules, encoding="utf-8")
    command = ["-W", "ignore", "-c", HASH_ALL, str(tmp_path)]
    here = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout
    there = subprocess.run([python, *command], capture_output=True, text=True, check=True).stdout
    assert "shared.runtime.device" in here
    assert here == there
