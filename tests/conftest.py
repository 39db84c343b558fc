"""Fixtures shared by the tests of the production line: a small book in a temporary folder."""

import ast
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from tools import check, run, site
from tools.book import CLAIM_MIME, ROOT, RUN_MIME, code_cells

pytest_plugins = ["every_test"]

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
ALT = "Loss against updates: one line that falls from two to one in five updates."


def code(source: str, *tags: str, outputs=(), **metadata):
    """A code cell; its execution count is filled in by `Book.chapter`."""
    metadata |= {"tags": list(tags)} if tags else {}
    return v4.new_code_cell(source, metadata=metadata, outputs=[v4.new_output(**one) for one in outputs])


def text(source: str):
    return v4.new_markdown_cell(source)


def displayed(data: dict, metadata: dict | None = None) -> tuple[str, list[dict]]:
    """A source that displays `data`, and the outputs that it stores."""
    source = f"from IPython.display import display\n\ndisplay({data!r}, metadata={metadata or {}!r}, raw=True)"
    return source, [{"output_type": "display_data", "data": data, "metadata": metadata or {}}]


def claim(name: str, quick: bool = True, verdict: str = "reproduced") -> dict:
    return {"id": name, "text": "Depth helps.", "verdict": verdict, "quick": quick}


def printed(notebook, given: dict, *names: str) -> list:
    """What a chapter defines under these names, as its code has it, where it may use the names in `given`.

    Only its functions and classes are carried out, and in the same cells what is set to a literal or a lambda, or on a class.
    """
    namespace = dict(given)
    for cell in code_cells(notebook):
        nodes = ast.parse(cell.source).body
        if not any(isinstance(node, DEFINITION) for node in nodes):
            continue
        nodes = [node for node in nodes if isinstance(node, DEFINITION) or _plain(node)]
        exec(compile(ast.Module(nodes, []), "a chapter's cell", "exec"), namespace)
    return [namespace[name] for name in names]


DEFINITION = ast.FunctionDef | ast.ClassDef


def _plain(node) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    if all(isinstance(target, ast.Attribute) for target in node.targets):
        return True  # a method, given to a class later
    literal = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context)
    return isinstance(node.value, ast.Lambda) or all(isinstance(part, literal) for part in ast.walk(node.value))


class Book:
    """A book in `root` with one module and no chapters; the cells of `good` pass all checks as they stand."""

    def __init__(self, root: Path):
        self.root = root
        (root / "chapters").mkdir(parents=True)
        (root / "shared").mkdir()
        (root / "_config.yml").write_text('repository: {url: "https://github.com/jane/unrolled", branch: main}\n')
        (root / "chapters" / "quick.yaml").write_text("# nothing yet\n")
        self.module("__init__", "")

    def module(self, name: str, source: str) -> None:
        path = self.root / "shared" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)

    def good(self, name: str = "01-good") -> dict:
        """The cells of a chapter by a name for each, with the outputs of a run."""
        figure, shown = displayed({"image/png": PIXEL, "text/plain": ALT}, {"image/png": {"alt": ALT, "width": 1}})
        record = {"device": "cpu", "versions": {"python": "3.11"}, "data": ["digits"]}
        report, reported = displayed({"text/plain": "Device: cpu", RUN_MIME: record})
        ledger, entered = displayed({"text/markdown": "Depth helps.", CLAIM_MIME: claim(f"{name}-depth")})
        hidden = {"jupyter": {"source_hidden": True}, "cellView": "form"}
        said = {"output_type": "stream", "name": "stdout", "text": "agree to 3e-16\n"}
        return {
            "title": text(f"# {int(name[:2])}. A chapter\n\n[Open]({check.colab(f'{name}.ipynb', self.root)})"),
            "setup": code(check.SETUP.format(address="https://github.com/jane/unrolled"), "setup"),
            "parameters": code('dataset = "digits"\nseeds = 5', "parameters"),
            "report": code(report, outputs=reported),
            "prose": text("Is it so? The loss is $x^2$, as Figure 1.2 shows."),
            "figure": code(figure, "hero", outputs=shown, mystnb={"image": {"alt": ALT}}),
            "check": code('print("agree to 3e-16")', "nbval-check-output", outputs=[said]),
            "claim": code(ledger, outputs=entered),
            "solution": code("answer = 2", "solution", "hide-cell", **hidden),
        }

    def chapter(self, cells, name: str = "01-good", executed: bool = True) -> Path:
        """Store a chapter of these cells (a list, or a dictionary as from `good`)."""
        cells = list(cells.values()) if isinstance(cells, dict) else cells
        for count, cell in enumerate((one for one in cells if one.cell_type == "code"), 1):
            cell.execution_count = count if executed else None
            cell.outputs = cell.outputs if executed else []
        path = self.root / "chapters" / f"{name}.ipynb"
        nbformat.write(v4.new_notebook(cells=cells), path)
        return path

    def add_tools(self) -> None:
        """Put the tools beside the chapters, so that commands run in `root` see this book."""
        shutil.copytree(ROOT / "tools", self.root / "tools", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture
def book(tmp_path) -> Book:
    return Book(tmp_path / "book")


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory):
    """From a chapter's path to its notebook executed at quick settings, without real data, once a session."""
    ran: dict[Path, Path] = {}

    def quick(path: Path) -> Path:
        if path not in ran:
            out = tmp_path_factory.mktemp("quick") / path.name
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("UNROLLED_DATA", raising=False)
                seconds = run.quick(path, out)
            print(f"{path.stem} ran at quick settings in {seconds:.0f} s")
            ran[path] = out
        return ran[path]

    return quick


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The real site, built afresh: once, for the tests in the group "site"."""
    out = tmp_path_factory.mktemp("site") / "html"
    found = site.build(out)
    assert found == []
    return out
