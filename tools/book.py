"""What every tool needs to know about the book: where it is, its chapters, and what their stored outputs hold."""

import contextlib
import errno
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import nbformat

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"

CLAIM_MIME = "application/vnd.unrolled.claim+json"  # written by shared.ledger
RUN_MIME = "application/vnd.unrolled.run+json"  # written by shared.runtime.report

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_FAULT = (*NO_ROOM, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EPIPE)  # of the machine, not of a tool


class BookError(Exception):
    """What a person who uses a tool can meet and mend; the message is all that they are told."""


def finish(main: Callable[[], int]) -> NoReturn:
    """End the process with the status of a tool's `main`; a BookError, or a full disk, ends it with 1 and a sentence."""
    try:
        status = main()
        sys.stdout.flush()
    except BookError as error:
        status = str(error)
    except OSError as error:
        if error.errno not in NO_FAULT:
            raise
        status = f"{said(error)}."
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what still waits to be printed would only fail once more
    sys.exit(status)


def said(error: OSError, path: Path | None = None) -> str:
    """What the operating system refused, in words."""
    where = shown(path) if path else error.filename
    if error.errno in NO_ROOM:
        return f"There is no room left on the disk{f' for {where}' if where else ''}"
    return f"{where or 'What this command prints'} cannot be read or written ({error.strerror or error})"


def shown(path: Path, root: Path | None = None) -> str:
    """A path as one writes it in the folder of the book, or in the present one."""
    root = root or Path.cwd()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


@contextlib.contextmanager
def only_one(lock: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the file `lock`, as one process at a time can; others who want it at the same time may `wait` for it.

    It is the operating system that holds it for this process, and no longer, however the process ends. Raises BookError
    with a sentence about the process that holds it, unless it may wait.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read() or "it has just begun"
            raise BookError(f"Another {what} is under way ({holder}): wait for its end, or stop it.") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()}, since {time.strftime('%H:%M on %d %B %Y')}")
        stream.flush()
        yield


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


def read_text(path: Path) -> str:
    """The text of the file at `path`. Raises BookError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except PermissionError as error:
        raise BookError(f"{said(error, path)}; make it readable.") from None
    except OSError as error:
        raise unreadable(path, error.strerror) from None
    except UnicodeDecodeError:
        raise unreadable(path, "it is not text in UTF-8") from None


def unreadable(path: Path, reason: str) -> BookError:
    name = shown(path)
    return BookError(f"{name} cannot be read: {reason}. `git checkout -- {name}` brings back the committed one.")


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`, in the current notebook format. Raises BookError if there is none that can be read."""
    return parsed(read_text(path), path)


def parsed(text: str, path: Path) -> nbformat.NotebookNode:
    """The notebook whose file, at `path`, holds `text`. Raises BookError if it holds none."""
    try:
        notebook = nbformat.convert(nbformat.reader.reads(text), 4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat meets what it does not expect with errors of every kind
        reason = str(error).partition("\n")[0][:100]
        raise unreadable(path, f"it is no notebook ({reason})") from None
    return notebook


def is_alive(process: int) -> bool:
    """Whether there is a process of this number, of whomever."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the file at `path` in one step, so that an interruption leaves the old file or the new one.

    Removes what processes that were killed while they did so have left. Raises BookError if it cannot be written.
    """
    for left in path.parent.glob(f".{path.name}.????????.[0-9]*"):
        process = left.suffix[1:]
        if process.isdigit() and not is_alive(int(process)):
            left.unlink(missing_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=f".{os.getpid()}")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BookError(f"{said(error, path)}; what stood there is unchanged.") from None


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
