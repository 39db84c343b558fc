"""Execute chapters: `python -m tools.run [--chapter 01] [--quick] [--stale]`.

Published settings: the notebook is executed as it stands and its outputs are stored in it, stamped, in one step, and
only if the result passes the checks of `tools.check`. Quick settings (`--quick`): the overrides of
`chapters/quick.yaml` are injected and the result goes to `_build/quick`. A failed or interrupted run leaves the stored
notebook as it was.
"""

import argparse
import logging
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
import papermill
import yaml
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError

from tools import check, stamp
from tools.book import (
    ROOT,
    BookError,
    chapter_paths,
    code_cells,
    figures,
    finish,
    only_one,
    read,
    said,
    shown,
    tags,
    write_atomically,
)
from tools.fresh import COLOURS
from tools.kernel import guarded, kernel_class, stoppable

RUN_TIME = re.compile(r"(<!-- runtime -->).*?(<!-- /runtime -->)", re.S)  # in a chapter's title cell
HEADING = re.compile(r"^#+ +(.*\S)", re.M)

# How long a single cell may take, in seconds. A whole chapter takes at most twelve minutes at published settings on two
# cores, and half a minute at quick ones; what takes longer than this, even on a much slower machine, never ends.
CELL_LIMIT = {"published": 30 * 60, "quick": 5 * 60}


class ChapterError(BookError):
    """A chapter that could not be executed or stored; the message says all that a person needs."""


def execute(path: Path, notebook, settings: str, overrides: dict, root: Path = ROOT):
    """The executed notebook, as papermill leaves it, and the seconds it took; `settings` is "published" or "quick".

    Runs in an empty folder, so that nothing depends on the place. Raises ChapterError if a cell fails or does not end,
    or if the kernel dies; what ran is then in `_build/failed`.
    """
    chapter = shown(path, root)
    try:
        unknown = set(overrides) - set(stamp.parameters(notebook))
    except ValueError as error:
        raise ChapterError(f"{chapter}: {error}.") from None
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ChapterError(f"chapters/quick.yaml sets {names} for {path.stem}, whose parameters cell has no such name.")
    for logger in ("papermill", "asyncio", "traitlets"):  # they report at length what is said here in a sentence
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    handed, happened, start = [], "", time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="unrolled-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            (folder / "here").mkdir()
            with guarded(folder) as watch:
                papermill.execute_notebook(
                    notebook,
                    None,
                    parameters=overrides,
                    engine_name="handing",
                    handed=handed,
                    kernel_name="python3",
                    language="python",
                    cwd=folder / "here",
                    start_timeout=300,
                    execution_timeout=CELL_LIMIT[settings],
                    iopub_timeout=CELL_LIMIT[settings],  # its outputs may come late on a busy machine
                    kernel_manager_class=kernel_class(root, folder, watch),
                )
    except PapermillExecutionError as error:
        happened = f"{error.ename} ended"
    except DeadKernelError:
        happened = "The kernel died, probably for lack of memory, in"
    except CellTimeoutError:
        limit = f"{CELL_LIMIT[settings] / 60:g} minutes, the limit for a cell at {settings} settings"
        happened = f"After {limit}, the kernel was stopped in"
    except OSError as error:
        raise ChapterError(f"{chapter} did not run: {said(error)}; the stored chapter is unchanged.") from None
    except RuntimeError as error:
        raise ChapterError(f"{chapter}: no kernel could be started ({error}); run make again.") from None
    seconds = time.perf_counter() - start
    result = nbformat.reads(nbformat.writes(handed[0]), as_version=4)  # as it would be stored
    if happened or any(output.output_type == "error" for cell in code_cells(result) for output in cell.outputs):
        raise ChapterError(f"{explanation(result, happened, chapter)} {keep(result, path, root)}")
    return result, seconds


def keep(executed, path: Path, root: Path) -> str:
    """Put what could not be stored in `_build/failed`, and say where it is."""
    kept = root / "_build" / "failed" / path.name
    try:
        write(kept, executed)
    except BookError as error:
        return f"What ran could not be kept either. {error}"
    return f"What ran is in {shown(kept, root)}."


def places(notebook) -> Iterator[tuple]:
    """(number among the chapter's code cells, last heading above it, cell) for every code cell."""
    number, heading = 0, "the top"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = HEADING.findall(check.CODE_BLOCK.sub("", cell.source))
            heading = headings[-1] if headings else heading
        elif cell.cell_type == "code":
            number += "injected-parameters" not in tags(cell)
            yield number, heading, cell


def explanation(executed, happened: str, chapter: str) -> str:
    """The last cell that began to run, with its place, its source and its traceback, and what happened in a sentence.

    `happened` are the first words of that sentence; if they are missing, the error that the cell shows takes their place.
    """
    begun = [place for place in places(executed) if place[2].metadata.papermill.get("start_time")]
    number, heading, cell = begun[-1]
    lines = [f"{chapter}, code cell {number}, under “{heading}”"]
    lines += [f"{n:4}  {line}" for n, line in enumerate(cell.source.splitlines(), 1)]
    for error in (output for output in cell.outputs if output.output_type == "error"):
        traceback = "\n".join(error.traceback)
        lines += ["", traceback if sys.stdout.isatty() else COLOURS.sub("", traceback)]
        happened = happened or f"{error.ename} ended"
    return "\n".join([*lines, "", f"{happened} code cell {number} of {chapter}; the stored chapter is unchanged."])


def slowest(executed) -> list[dict]:
    """The five code cells that took longest: number, heading above and seconds of each, the slowest first."""
    took = [
        {"cell": number, "heading": heading, "seconds": round(cell.metadata.papermill.duration, 1)}
        for number, heading, cell in places(executed)
    ]
    return sorted(took, key=lambda one: -one["seconds"])[:5]


def tidied(outputs: list) -> list:
    """The outputs, each stream in one piece, without progress bars: lines of stderr that return to their beginning."""
    kept = []
    for output in joined(outputs):
        if output.get("name") == "stderr":
            lines = COLOURS.sub("", output.text).split("\n")
            output.text = "\n".join(line for line in lines if "\r" not in line and line.strip())
        if output.get("text") != "":
            kept.append(output)
    return joined(kept)  # what a progress bar had torn apart


def joined(outputs: list) -> list:
    """The outputs, pieces of the same stream that follow one another in one: they are cut differently in every run."""
    whole = []
    for output in outputs:
        if whole and output.output_type == "stream" and whole[-1].get("name") == output.name:
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def store_outputs(notebook, executed) -> None:
    """Put the outputs of the executed copy into the notebook, and alternative texts where the site looks for them."""
    for cell, ran in zip(code_cells(notebook), code_cells(executed), strict=True):
        cell.outputs, cell.execution_count = tidied(deepcopy(ran.outputs)), ran.execution_count
        if "mystnb" in cell.metadata:
            cell.metadata["mystnb"].pop("image", None)
    for cell, output in figures(notebook):
        alt = next((kind.get("alt") for kind in output.metadata.values() if isinstance(kind, dict)), None)
        cell.metadata.setdefault("mystnb", {})["image"] = {"alt": alt or ""}
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"}


def state_run_time(notebook, seconds: float, device: str) -> None:
    """Write how long the chapter ran, and on what, between the marks in its prose."""
    minutes = f"about {round(seconds / 60)} minutes" if seconds >= 90 else "about a minute"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = RUN_TIME.sub(rf"\g<1>{minutes} on {device}\g<2>", cell.source)


def publish(path: Path, root: Path = ROOT) -> float:
    """Execute a chapter at its published settings and store the result in it; the seconds that it took.

    Raises BookError, with the stored chapter as it was, if it cannot be executed or stored, or fails the checks.
    """
    notebook = read(path)
    refuse(check.source_problems(notebook, path, root), path, root, "is not ready to run")
    list(check.check_claims(notebook, path, root))  # it reads all chapters: a damaged one is better met now than later
    code, reached = stamp.code_hash(notebook), stamp.shared_hashes(notebook, root)
    executed, seconds = execute(path, notebook, "published", {}, root)
    try:
        notebook = read(path)  # once more: its prose may have been edited meanwhile
        if stamp.code_hash(notebook) != code or len(code_cells(notebook)) != len(code_cells(executed)):
            raise ChapterError(f"{shown(path, root)} was changed while it ran: nothing was stored.")
        store_outputs(notebook, executed)
        settings = stamp.parameters(notebook)
        made = stamp.make_stamp(notebook, "published", settings, seconds, root)
        # What was reached is as it was when the kernel imported it.
        notebook.metadata["unrolled"] = made | {"shared": reached, "slowest": slowest(executed)}
        state_run_time(notebook, seconds, made["device"])
        problems = check.problems_in(notebook, path, root)
        refuse(problems, path, root, "ran, but the result was not stored")
        write(path, notebook)
    except BookError as error:
        raise ChapterError(f"{error}\n{keep(executed, path, root)}") from None
    from shared import datasets  # here, since torch takes seconds to import and most calls run nothing

    wanted = datasets.SETS[settings["dataset"]][0] if settings.get("dataset") in datasets.SETS else None
    if wanted and wanted not in made["data"]:
        print(f"Note: {path.stem} asks for the data {wanted!r} and used {', '.join(made['data']) or 'none'} instead.")
    return seconds


def refuse(problems: list[str], path: Path, root: Path, sentence: str) -> None:
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ChapterError(f"{shown(path, root)} {sentence}:\n{lines}")


def write(path: Path, notebook) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BookError(f"{said(error, path)}.") from None
    write_atomically(path, nbformat.writes(notebook) + "\n")


def quick_settings(root: Path = ROOT) -> dict[str, dict]:
    """The overrides of every chapter that `chapters/quick.yaml` names."""
    return yaml.safe_load((root / "chapters" / "quick.yaml").read_text(encoding="utf-8")) or {}


def quick_overrides(path: Path, root: Path = ROOT) -> dict:
    """What `chapters/quick.yaml` sets for a chapter; nothing if it does not name it."""
    return quick_settings(root).get(path.stem) or {}


def quick(path: Path, out: Path, root: Path = ROOT) -> float:
    """Execute a chapter at quick settings into the notebook `out`; the seconds that it took.

    Raises ChapterError if it cannot be executed.
    """
    executed, seconds = execute(path, read(path), "quick", quick_overrides(path, root), root)
    write(out, executed)
    return seconds


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.run", description="Execute chapters and store their outputs."
    )
    parser.add_argument("--chapter", metavar="01", help="only this chapter")
    parser.add_argument("--quick", action="store_true", help="small settings; the result goes to _build/quick")
    parser.add_argument("--stale", action="store_true", help="only chapters whose stored outputs come from other code")
    options = parser.parse_args(arguments)
    settings, ran = "quick" if options.quick else "published", 0
    for path in chapter_paths(options.chapter):
        out = root / "_build" / "quick" / path.name if options.quick else path
        before = None
        try:
            before = read(path)
            reasons = stamp.stale_reasons(before, root) if options.stale else []
            if options.stale and not reasons:
                continue
            ran += 1
            with stoppable(), only_one(root / "_build" / "running" / f"{path.stem}-{settings}", f"run of {path.stem}"):
                because = f" because {'; '.join(reasons)}" if reasons else ""
                print(f"Running {path.stem} at {settings} settings{because}", flush=True)
                seconds = quick(path, out, root) if options.quick else publish(path, root)
                print(f"{path.stem}: {seconds:.0f} s, stored in {shown(out, root)}", flush=True)
        except BookError as error:
            print(error, flush=True)
            return 1
        except KeyboardInterrupt as interrupt:
            number = interrupt.args[0] if interrupt.args else signal.SIGINT
            by = "" if number == signal.SIGINT else f" by {number.name}"
            what = f"nothing was changed in {path.stem}; the same command begins it again"
            if before and read(path).metadata.get("unrolled") != before.metadata.get("unrolled"):
                what = f"what ran is already stored in {path.stem}"
            print(f"\nInterrupted{by}: {what}.", flush=True)
            return 128 + number
    if not ran:
        print("Chapters are up to date" if options.stale else "There are no chapters yet.")
    return 0


if __name__ == "__main__":
    finish(main)
