"""Execute chapters: `python -m tools.run [--chapter 01] [--quick] [--stale]`.

Published settings: the notebook is executed as it stands and its outputs are stored in it, stamped, in one step, and
only if the result passes the checks of `tools.check`. Quick settings (`--quick`): the overrides of
`chapters/quick.yaml` are injected and the result goes to `_build/quick`. A failed or interrupted run leaves the stored
notebook as it was.
"""

import argparse
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
import yaml
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets import default

from tools import check, stamp
from tools.book import ROOT, chapter_paths, code_cells, figures, read, tags, write_atomically

COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
RUN_TIME = re.compile(r"(<!-- runtime -->).*?(<!-- /runtime -->)", re.S)  # in a chapter's title cell


class ChapterError(Exception):
    """A chapter that could not be executed or stored; the message says all that a person needs."""


def kernel_class(environment: dict[str, str]) -> type:
    """A kernel manager for the interpreter that runs this tool, whatever kernels the user has under the same name."""

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
            return KernelSpec(argv=command, env=environment, display_name="Python 3", language="python")

    class Kernel(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _this_python(self):
            return ThisPython(parent=self)

    return Kernel


class SparingEngine(NBClientEngine):
    """papermill's own engine, which writes all of the notebook before and after every cell: that took a quarter of a
    quick run. Here it is written after at most five seconds, and at the end, however that comes about.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name: str, **kwargs):
        save = nb_man.save

        def save_if_due(**changes) -> None:
            if (nb_man.now() - nb_man.last_save_time).total_seconds() > 5:
                save(**changes)

        nb_man.save = save_if_due
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
        finally:
            nb_man.save = save


papermill_engines.register("sparing", SparingEngine)


def environment(root: Path, folder: Path) -> dict[str, str]:
    """What a kernel needs: this checkout's `shared` before any installed one, nobody's start-up files, whole paths."""
    changes = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # no advice about frozen modules
    }
    if os.environ.get("UNROLLED_DATA"):
        changes["UNROLLED_DATA"] = str(Path(os.environ["UNROLLED_DATA"]).expanduser().resolve())
    return changes


def execute(path: Path, notebook, overrides: dict, root: Path = ROOT):
    """The executed notebook, as papermill leaves it, and the seconds it took.

    Runs in an empty folder, so that nothing depends on the place. Raises ChapterError if a cell fails or the kernel
    dies; what ran is then in `_build/failed`.
    """
    try:
        unknown = set(overrides) - set(stamp.parameters(notebook))
    except ValueError as error:
        raise ChapterError(f"{shown(path, root)}: {error}.") from None
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ChapterError(f"chapters/quick.yaml sets {names} for {path.stem}, whose parameters cell has no such name.")
    for name in ("papermill", "asyncio"):  # they report at length what is said here in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="unrolled-", ignore_cleanup_errors=True) as name:
        folder, partial = Path(name), Path(name, "partial.ipynb")
        (folder / "here").mkdir()
        start = time.perf_counter()
        try:
            papermill.execute_notebook(
                notebook,
                partial,
                parameters=overrides,
                engine_name="sparing",
                kernel_name="python3",
                language="python",
                cwd=folder / "here",
                start_timeout=300,
                kernel_manager_class=kernel_class(environment(root, folder)),
            )
        except PapermillExecutionError:
            pass
        except DeadKernelError:
            what = f"{shown(path, root)}: the kernel died, perhaps for lack of memory; the stored chapter is unchanged"
            raise ChapterError(f"{what}, and what ran is in {keep(partial, path, root)}.") from None
        except RuntimeError as error:
            raise ChapterError(f"{shown(path, root)}: no kernel could be started ({error}); run make again.") from None
        seconds, result = time.perf_counter() - start, read(partial)
        if any(output.output_type == "error" for cell in code_cells(result) for output in cell.outputs):
            raise ChapterError(f"{explanation(result, path, root)}, and what ran is in {keep(partial, path, root)}.")
    return result, seconds


def shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def keep(partial: Path, path: Path, root: Path) -> str:
    """Move what could not be stored to `_build/failed`, and say where it is."""
    kept = root / "_build" / "failed" / path.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(partial, kept)
    return shown(kept, root)


def explanation(notebook, path: Path, root: Path) -> str:
    """The failing cell of an executed notebook with its place, its source and its traceback, and one sentence."""
    number, heading = 0, "the top"
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and "papermill-error-cell-tag" not in tags(cell):
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            heading = headings[-1].lstrip("# ") if headings else heading
        number += cell.cell_type == "code" and "injected-parameters" not in tags(cell)
        errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
        if errors:
            break
    error = errors[0]
    where = f"{shown(path, root)}, code cell {number}, under “{heading}”"
    lines = [f"{n:4}  {line}" for n, line in enumerate(cell.source.splitlines(), 1)]
    traceback = "\n".join(error.traceback)
    if not sys.stdout.isatty():
        traceback = COLOURS.sub("", traceback)
    sentence = f"Code cell {number} of {shown(path, root)} failed with {error.ename}; the stored chapter is unchanged"
    return "\n".join([where, *lines, "", traceback, "", sentence])


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
        cell.outputs, cell.execution_count = tidied(ran.outputs), ran.execution_count
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

    Raises ChapterError, with the stored chapter as it was, if it cannot be executed, or the result fails the checks.
    """
    notebook = read(path)
    refuse(check.source_problems(notebook, path, root), path, root, "is not ready to run")
    code, reached = stamp.code_hash(notebook), stamp.shared_hashes(notebook, root)
    executed, seconds = execute(path, notebook, {}, root)
    notebook = read(path)  # once more: its prose may have been edited meanwhile
    kept = root / "_build" / "failed" / path.name
    if stamp.code_hash(notebook) != code or len(code_cells(notebook)) != len(code_cells(executed)):
        write(kept, executed)
        raise ChapterError(
            f"{shown(path, root)} was changed while it ran: nothing was stored, see {shown(kept, root)}."
        )
    store_outputs(notebook, executed)
    settings = stamp.parameters(notebook)
    notebook.metadata["unrolled"] = stamp.make_stamp(notebook, "published", settings, seconds, root)
    notebook.metadata["unrolled"]["shared"] = reached  # as it was when the kernel imported it
    state_run_time(notebook, seconds, notebook.metadata["unrolled"]["device"])
    problems = check.problems_in(notebook, path, root)
    if problems:
        write(kept, notebook)
    refuse(problems, path, root, f"ran, but the result was not stored (it is in {shown(kept, root)})")
    write(path, notebook)
    used = notebook.metadata["unrolled"]["data"]
    from shared import datasets  # here, since torch takes seconds to import and most calls run nothing

    wanted = datasets.SETS[settings["dataset"]][0] if settings.get("dataset") in datasets.SETS else None
    if wanted and wanted not in used:
        print(f"Note: {path.stem} asks for the data {wanted!r} and used {', '.join(used) or 'none'} instead.")
    return seconds


def refuse(problems: list[str], path: Path, root: Path, sentence: str) -> None:
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ChapterError(f"{shown(path, root)} {sentence}:\n{lines}")


def write(path: Path, notebook) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
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
    executed, seconds = execute(path, read(path), quick_overrides(path, root), root)
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
    ran = 0
    try:
        for path in chapter_paths(options.chapter):
            reasons = stamp.stale_reasons(read(path), root) if options.stale else []
            if options.stale and not reasons:
                continue
            ran += 1
            because = f" because {'; '.join(reasons)}" if reasons else ""
            print(f"Running {path.stem} at {'quick' if options.quick else 'published'} settings{because}", flush=True)
            out = root / "_build" / "quick" / path.name if options.quick else path
            seconds = quick(path, out, root) if options.quick else publish(path, root)
            print(f"{path.stem}: {seconds:.0f} s, stored in {shown(out, root)}", flush=True)
    except ChapterError as error:
        print(error, flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted: nothing was changed in {path.stem}; the same command begins it again.", flush=True)
        return 130
    if not ran:
        print("Chapters are up to date" if options.stale else "There are no chapters yet.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
