"""The reference pages of `shared`: complete, true to the docstrings, the same every time, with no link that leads nowhere."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import code, text
from test_import import ROOMS

from tools import api
from tools.book import ROOT, chapter_paths, read
from tools.docstrings import Argument, Block, blocks, escaped, first_sentence, is_python, markdown
from tools.site import letters

HOOKS = {"extra_repr"}  # which torch.nn calls, not a reader


@pytest.fixture(scope="module")
def package():
    return api.Package()


@pytest.fixture(scope="module")
def pages():
    return {path.relative_to(ROOT).as_posix(): page for path, page in written()}


def written(root=ROOT) -> list[tuple]:
    return list(api.pages({path: read(path) for path in sorted((root / "chapters").glob("*.ipynb"))}, root))


def without_roles(page: str) -> str:
    return re.sub(r"\{py:obj\}`([^`<]*?) ?<[^`]*>`", r"`\1`", page)


def offered(room: str) -> dict[str, object]:
    """What the room offers by dotted path, found by importing it: an account that owes nothing to tools/api.py."""
    module = importlib.import_module(f"shared.{room}")
    if hasattr(module, "__all__"):
        return {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    modules = [module]
    if hasattr(module, "__path__"):
        names = [path.stem for path in sorted((ROOT / "shared" / room).glob("[!_]*.py"))]
        modules += [importlib.import_module(f"{module.__name__}.{name}") for name in names]
    return {
        f"{one.__name__}.{name}": value
        for one in modules
        for name, value in vars(one).items()
        if not name.startswith("_") and own(value, one.__name__)
    }


def own(value, module: str) -> bool:
    if type(value).__name__ == "Checker":
        value = value.check
    return callable(value) and getattr(value, "__module__", "") == module


def docstring(value) -> str:
    """The docstring that was written for it; not one that a dataclass or a base class gives it."""
    value = value.check if type(value).__name__ == "Checker" else value
    if isinstance(value, type):
        return inspect.cleandoc(vars(value).get("__doc__") or "")
    return inspect.cleandoc(value.__doc__ or "") if inspect.isroutine(value) else ""


def test_the_rooms_are_all_there_from_the_ground_up():
    there = {path.stem for path in (ROOT / "shared").iterdir() if path.stem[0] not in "_."}
    assert set(api.ROOMS) == there
    floors = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
    assert [floors[room] for room in api.ROOMS] == sorted(floors[room] for room in api.ROOMS)


@pytest.mark.parametrize("room", api.ROOMS)
def test_every_public_name_is_on_its_page_and_in_the_index(room, pages):
    page, names = pages[f"api/{room}.md"], offered(room)
    assert names
    module, shown = "", set()
    for kind, rest in re.findall(r"^`+\{py:(\w+)\} ([\w.]+)", page, re.M):
        module = rest if kind == "currentmodule" else module
        shown.add(f"{module}.{rest}")
    assert sorted(set(names) - shown) == []
    assert sorted(name for name in names if f"<{name}>" not in pages["api.md"]) == []


@pytest.mark.parametrize("room", api.ROOMS)
def test_no_word_of_a_docstring_is_lost(room, pages):
    page = letters(without_roles(pages[f"api/{room}.md"]))
    missing = []
    for name, value in offered(room).items():
        methods = vars(value).values() if isinstance(value, type) else []
        public = [one for one in methods if not getattr(one, "__name__", "_").startswith("_")]
        for one in [value, *public]:
            for line in docstring(one).splitlines():
                item = re.fullmatch(r" *[\w, \"]{1,40}: (.*)", line)  # its terms stand apart, with their types
                if letters(item[1] if item else line) not in page:
                    missing.append(f"{name}: {line}")
    assert missing == []


def test_the_first_sentence_of_each_room_is_in_the_index(pages):
    index = letters(without_roles(pages["api.md"]))
    for room in api.ROOMS:
        assert letters(first_sentence(importlib.import_module(f"shared.{room}").__doc__)) in index


def test_everything_public_is_documented(package):
    silent = [path for path, entry in package.entries.items() if not entry.doc]
    for path, entry in package.entries.items():
        if isinstance(entry.node, ast.ClassDef):
            above = [one for _, node in package.lineage(entry.source, entry.node) for one in documented(node)]
            public = [one.name for one in functions(entry.node) if not one.name.startswith("_")]
            silent += [f"{path}.{name}" for name in public if name not in above and name not in HOOKS]
    assert silent == []


def functions(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [one for one in node.body if isinstance(one, ast.FunctionDef)]


def documented(node: ast.ClassDef) -> list[str]:
    return [one.name for one in functions(node) if ast.get_docstring(one)]


def test_docstrings_name_the_errors_that_the_code_below_them_raises(package):
    unnamed = []
    for path, entry in package.entries.items():
        for node in functions(entry.node) if isinstance(entry.node, ast.ClassDef) else [entry.node]:
            told = f"{entry.doc} {ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else ''}"
            raised = [one.exc.func for one in ast.walk(node) if isinstance(one, ast.Raise) and hasattr(one.exc, "func")]
            names = {ast.unparse(one) for one in raised} - {"Wrong"}  # which a checker turns into a sentence
            unnamed += [f"{path}.{node.name}: {name}" for name in sorted(names) if name not in told]
    assert unnamed == []


def test_tensors_that_go_in_have_shapes(package):
    """Counted, not forbidden: a tensor of any shape is an honest argument."""
    writer, bare, tensors = api.Writer(package, {}), [], 0
    for path, entry in package.entries.items():
        if isinstance(entry.node, ast.FunctionDef) and not path.startswith("shared.exercises"):
            for argument in writer.arguments(entry.source, entry.node):
                tensors += any(kind in argument.kind for kind in ("Tensor", *api.KINDS))
                if argument.kind in ("Tensor", "Tensor | None", "torch.Tensor") and "(" not in entry.doc:
                    bare.append(f"{path}: {argument.name}")
    print(f"{len(bare)} of {tensors} arguments that take tensors say nothing of shapes: {', '.join(bare) or 'none'}")
    assert len(bare) < tensors / 20


def test_each_place_is_there_once_and_each_link_leads_to_one(package, pages):
    places = []
    for name, page in pages.items():
        module = ""
        for kind, rest in re.findall(r"^`+\{py:(\w+)\} ([\w.]+)", page, re.M):
            module = rest if kind == "currentmodule" else module
            places += [] if kind == "currentmodule" else [f"{module}.{rest}"]
        for link in re.findall(r"\]\((?!https:)([^)]+)\)", page):
            target = (ROOT / name).parent / link
            assert target.is_file() or target.resolve().relative_to(ROOT).as_posix() in pages, f"{name}: {link}"
    assert len(places) == len(set(places))
    assert set(places) == package.places
    links = {link for page in pages.values() for link in re.findall(r"\{py:obj\}`[^`]*<([^`]*)>`", page)}
    assert links - set(places) == set()
    assert "shared.truncation.truncated_backward" in places
    assert "shared.ledger.Measured.between" in places


def test_the_pages_are_the_same_each_time_and_need_no_torch(pages):
    program = """
import sys
from tools import api
from tools.book import chapter_paths, read
found = list(api.pages({path: read(path) for path in chapter_paths()}))
assert "torch" not in sys.modules
print(found)
"""
    run = [sys.executable, "-c", program]
    environment = {"PYTHONHASHSEED": "3", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    again = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == str([(ROOT / name, page) for name, page in pages.items()])


def test_names_lead_to_the_chapters_that_use_them(book, pages):
    book.module("runtime", '"""Runs."""\n\ndef device():\n    """Where."""\n\ndef report():\n    """What."""\n')
    sources = [
        "from shared import runtime as here\n\nhere.device()",
        "import shared.runtime\n\nshared.runtime.device()",
    ]
    for number, source in enumerate([*sources, "from shared.runtime import device\n\nprint(device)"], 1):
        book.chapter([text(f"# {number}. A chapter"), code(source)], f"0{number}-one")
    page = dict(written(book.root))[book.root / "api/runtime.md"]
    device, report = page.split("{py:function} ")[1:]
    links = [f"[{number}](../chapters/0{number}-one.ipynb)" for number in (1, 2, 3)]
    assert f"Used in chapters {links[0]}, {links[1]} and {links[2]}." in device
    assert "Used" not in report
    path = next(path for path in chapter_paths() if path.name.startswith("03"))
    after = pages["api/truncation.md"].partition("{py:function} truncated_backward")[2]
    assert f"[3](../chapters/{path.name})" in after


def test_a_chapter_that_is_no_code_is_named_in_a_sentence(book):
    book.chapter([text("# 1. A chapter"), code("x = (")], "01-broken")
    with pytest.raises(SystemExit, match=r"01-broken.ipynb: code cell 1 is not plain Python"):
        written(book.root)


def test_a_room_that_is_gone_takes_its_page_along(book):
    (book.root / "api").mkdir()
    (book.root / "api" / "yesterday.md").touch()
    assert written(book.root) == [(book.root / "api" / "yesterday.md", None)]


def test_signatures_and_types_are_short_and_right(book):
    source = '''"""Runs."""

import contextlib
from jaxtyping import Float, Int
from torch import Tensor

Hidden = Float[Tensor, "batch hidden"]


class _Base:
    def inner(self, x: Hidden) -> "Step":
        """Inner, inherited."""


class Step(_Base):
    """A step."""

    def __init__(self, size: int, /, *rest, width=3, **options):
        self.size = size

    @property
    def doubled(self) -> int:
        """Twice the size."""

    @classmethod
    def load(cls, path: str) -> "Step":
        """A step from a file."""


@contextlib.contextmanager
def quiet(*, loudly: bool = False) -> Iterator[None]:
    """Nothing is said."""


def count(x: Float[Tensor, ""] | Int[np.ndarray, " items"], h: Hidden = None) -> tuple[Hidden, Step]:
    """Counts."""


SMALL = 3  # as small as that
LARGE = 4
'''
    book.module("runtime", source)
    page = dict(written(book.root))[book.root / "api/runtime.md"]
    for line in (
        "`````{py:class} Step(size, /, *rest, width=3, **options)",
        "````{py:property} Step.doubled",
        "````{py:method} Step.load(path)\n:classmethod:",
        "````{py:method} Step.inner(x)",
        "* **x** (`Float[batch, hidden]`)\n* *returns* `Step`",
        "````{py:function} quiet(*, loudly=False)",
        "A context manager, for a `with` block.",
        "````{py:function} count(x, h=None)",
        "* **x** (`Float[()] | Int[np.ndarray: items]`)\n* **h** (`Float[batch, hidden]`)\n",
        "\n* *returns* `tuple[Float[batch, hidden], Step]`",
        '````{py:data} SMALL\n:value: "3"\n\nas small as that',
    ):
        assert line in page, line
    assert "_Base" not in page
    assert "LARGE" not in page
    assert "{py:data} Hidden" not in page


# Docstrings


def plain(doc: str, *names: str) -> str:
    return markdown(doc, lambda words: None, [Argument(name, name, "int") for name in names])


def test_a_docstring_falls_into_its_parts():
    doc = """Run it, for x: as
state: no item, since it stands in a sentence.

state: where to begin,
    which goes on.
lam, discount: both.
method: how.
    "padded": in one call,
        dense.
    None: as it likes.
And a sentence after them.

    h = f(x)

    y = h

- one
  and more
- two"""
    assert list(blocks(doc, ["state", "lam", "discount", "method"])) == [
        Block("text", "Run it, for x: as state: no item, since it stands in a sentence."),
        Block("item", "where to begin, which goes on.", ("state",)),
        Block("item", "both.", ("lam", "discount")),
        Block("item", "how.", ("method",), (
            Block("item", "in one call, dense.", ('"padded"',)),
            Block("item", "as it likes.", ("None",)),
        )),
        Block("text", "And a sentence after them."),
        Block("code", "h = f(x)\n\ny = h"),
        Block("bullet", "one and more"),
        Block("bullet", "two"),
    ]  # fmt: skip
    assert [block.kind for block in blocks("Cost: that of a pass.", ["x"])] == ["text"]


def test_arguments_stand_where_they_are_explained_or_else_behind_the_first_paragraph():
    assert plain("It runs.\n\nMore.", "x") == "It runs.\n\n* **x** (`int`)\n\nMore."
    doc = "It runs.\n\nMore.\n\ny, x: the\n    two.\n\nRaises ValueError."
    assert plain(doc, "x", "y", "z_1") == (
        "It runs.\n\nMore.\n\n* **y**, **x** (`int`): the two.\n* **z\\_1** (`int`)\n\nRaises `ValueError`."
    )


def test_text_is_shown_as_it_is_typed():
    assert escaped("h_{t−1} < 2 $ [0, 1) (*batch, units), *batch # ~") == (
        "h\\_\\{t−1\\} \\< 2 \\$ \\[0, 1) (\\*batch, units), \\*batch \\# \\~"
    )
    assert escaped("its *own* loss; *as the input of it*") == "its *own* loss; *as the input of it*"
    assert plain("(x)= is no target") == "\\(x)= is no target"
    assert plain("1. is no list") == "1\\. is no list"
    assert plain("- a\n- b") == "- a\n- b"
    assert plain("`a_b` and ``c`d``") == "`a_b` and ``c`d``"


def test_code_is_marked_as_what_it_is():
    assert plain("See\n\n    x = f(1)") == "See\n\n```python\nx = f(1)\n```"
    assert plain("See\n\n    s_t = f ⊙ s_{t−1},   y_t = s_t") == "See\n\n```text\ns_t = f ⊙ s_{t−1},   y_t = s_t\n```"


def test_the_first_sentence():
    assert first_sentence("Draw it, after Ba et al. (2016). More.\n\nNext.") == "Draw it, after Ba et al. (2016)."
    assert first_sentence("One and\nthe same") == "One and the same"


def test_the_examples_in_docstrings_run(package, monkeypatch):
    """With what they leave open: a few numbers, two layers, and workers that need no processes."""
    from shared import ledger, synthetic_gradients

    class Here(synthetic_gradients.Workers):
        def __init__(self, size):
            assert size == 2

        def __exit__(self, *_):
            pass

        def train(self, *arguments, **options):
            return synthetic_gradients.train_in_turn(*arguments, **options)

    monkeypatch.setattr(ledger, "_claims", {})
    below, above = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    given = {
        "ledger": ledger, "losses_chunked": torch.tensor([3.0, 3.1, 3.2]), "losses_true": torch.ones(3),
        "Workers": Here, "below": below, "above": above, "predictor": synthetic_gradients.GradientPredictor(4),
        "inputs": torch.randn(8, 3), "labels": torch.randint(2, (8,)), "order": torch.randint(8, (5, 4)),
        "partial": partial, "Adam": torch.optim.Adam,
    }  # fmt: skip
    sources = [source for modules in package.rooms.values() for source, _ in modules]
    docs = [source.doc for source in sources] + [entry.doc for entry in package.entries.values()]
    examples = [block.text for doc in docs for block in blocks(doc) if block.kind == "code" and is_python(block.text)]
    assert len(examples) >= 2
    for example in examples:
        exec(example, given)
    assert given["gap"].mean == pytest.approx(2.1)
    assert len(given["run"].losses) == 5
