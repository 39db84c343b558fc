"""What every tool needs to know about the book: where it is, its chapters, and what their stored outputs hold."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"

CLAIM_MIME = "application/vnd.unrolled.claim+json"  # written by shared.ledger
RUN_MIME = "application/vnd.unrolled.run+json"  # written by shared.runtime.report


def chapter_paths(number: str | None = None) -> list[Path]:
    """The notebooks in reading order, or only the one of that number ("01" or "1") or name ("01-backpropagation").

    Raises SystemExit with a sentence if no chapter has that number.
    """
    paths = sorted(CHAPTERS.glob("[0-9][0-9]-*.ipynb"))
    if number is None:
        return paths
    chosen = [p for p in paths if p.stem == number or p.stem[:2] == number.zfill(2)]
    if not chosen:
        raise SystemExit(
            f"There is no chapter {number!r}; there are: {', '.join(p.stem for p in paths) or 'none yet'}."
        )
    return chosen


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`, in the current notebook format."""
    return nbformat.read(path, as_version=4)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file at `path` in one step, so that an interruption leaves the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def title(notebook) -> str:
    """The text of the first heading: "1. Backpropagation and gradient descent"."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    raise ValueError("the notebook has no title (a line that begins with '# ')")


def records(notebook, mime: str) -> Iterator[dict]:
    """The machine-readable records of one kind in the stored outputs, in order."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if mime in output.get("data", {}):
                yield output.data[mime]


def claims(notebook) -> list[dict]:
    """The chapter's ledger, as `shared.ledger.claim` recorded it."""
    return list(records(notebook, CLAIM_MIME))


def figures(notebook) -> list[tuple]:
    """(cell, output) for every stored image."""
    return [
        (cell, output)
        for cell in code_cells(notebook)
        for output in cell.outputs
        if any(kind.startswith("image/") for kind in output.get("data", {}))
    ]
