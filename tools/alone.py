"""Run notebooks as a bare Colab machine would: `python -m tools.alone 01 02`, or `all` of them.

A fresh environment gets torch and what runs notebooks, in their newest versions, and nothing else. Each notebook is put
alone in an empty folder, and its set-up cell must install the rest: the package is taken from this checkout instead of
the repository, and is removed again before the next notebook. With `--borrow`, the fresh environment sees the packages
of this Python, or of another (as Colab's own, in its image), except the book's, and downloads none.

Needs papermill and what that brings, and setuptools.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from tools.book import ROOT, chapter_paths, finish, read
from tools.fresh import StepError, borrowing, clean, environment, quoted, step, versions
from tools.run import quick_overrides

EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
try:
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
except nbclient.exceptions.CellExecutionError as error:
    sys.exit(str(error))
finally:
    nbformat.write(notebook, sys.argv[1])
"""


def package(folder: Path, root: Path = ROOT) -> Path:
    """A wheel of the book's package, built from a copy, so that nothing is left in the checkout."""
    source = folder / "source"
    shutil.copytree(root / "shared", source / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-text"):
        shutil.copy(root / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    step("Packing the book's package", [*command, "--wheel-dir", folder, source])
    return next(folder.glob("unrolled-*.whl"))


def kernel(folder: Path, python: Path) -> dict[str, str]:
    """Variables under which `python` runs notebooks by itself, whatever kernels and start-up files the machine has."""
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
    place = folder / "jupyter" / "kernels" / "python3"
    place.mkdir(parents=True, exist_ok=True)
    (place / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    return {"JUPYTER_PATH": str(folder / "jupyter"), "IPYTHONDIR": str(folder / "ipython")}


def alone(path: Path, overrides: dict, folder: Path, python: Path, wheel: Path) -> float:
    """Run the notebook at `path`, with these parameters, alone under `python`; the seconds that its run took.

    It runs in an empty folder made in `folder`, and finds the package not yet installed. Raises StepError, after the
    failing cell was shown, if it does not run to its end.
    """
    notebook = load_notebook_node(read(path))
    here = folder / "here" / path.stem
    here.mkdir(parents=True)
    if overrides:
        notebook = parameterize_notebook(notebook, overrides, kernel_name="python3", language="python")
    nbformat.write(notebook, here / path.name)
    step("Removing the book's package", [python, "-m", "pip", "uninstall", "--yes", "-qq", "unrolled"], env=clean())
    start = time.perf_counter()
    step(
        f"Running {path.stem} in an empty folder",
        [python, "-c", EXECUTE, path.name],
        cwd=here,
        env=clean() | kernel(folder, python) | {"UNROLLED_INSTALL": str(wheel)},
    )
    return time.perf_counter() - start


def run(paths: list[Path], published: bool, borrow: str | None) -> str:
    """Run these notebooks one after the other; a report on those that failed, in Markdown, which is empty if none did.

    Raises StepError if what they run in cannot be made.
    """
    settings, failed = "published" if published else "quick", []
    with tempfile.TemporaryDirectory(prefix="unrolled-alone-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        bare = ["torch", "nbclient", "ipykernel"]
        python = borrowing(folder, borrow) if borrow else environment(folder, bare)
        wheel = package(folder)
        for path in paths:
            try:
                seconds = alone(path, {} if published else quick_overrides(path), folder, python, wheel)
            except StepError as error:
                print(f"{path.stem} does not run alone. {error}", file=sys.stderr, flush=True)
                failed.append(f"### {path.stem}\n\n{error}\n\n{quoted(error.said)}")
                continue
            what = f"at {settings} settings, with the installation by its set-up cell"
            print(f"{path.stem} runs alone: {seconds:.0f} s {what}.", flush=True)
        if not failed:
            return ""
        count = f"{len(failed)} of {len(paths)} chapters do not run alone at {settings} settings"
        return "\n".join([f"{count}, with {versions(python)}.\n", *failed])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.alone", description="Run notebooks as a bare Colab machine would."
    )
    parser.add_argument("chapters", metavar="01", nargs="+", help='numbers of chapters, or "all"')
    parser.add_argument("--published", action="store_true", help="at published settings instead of the quick ones")
    parser.add_argument(
        "--borrow",
        metavar="PYTHON",
        nargs="?",
        const=sys.executable,
        help="see the packages of this Python (without a name, of the one that runs this) and download none",
    )
    parser.add_argument("--report", metavar="FILE", type=Path, help="write what failed to this file, in Markdown")
    options = parser.parse_args(arguments)
    named = [None] if options.chapters == ["all"] else options.chapters
    paths = [path for number in named for path in chapter_paths(number)]
    try:
        report = run(paths, options.published, options.borrow)
    except StepError as error:
        print(f"The chapters could not be run. {error}", file=sys.stderr)
        report = f"The chapters could not be run. {error}\n\n{quoted(error.said)}"
    except KeyboardInterrupt:
        print("\nInterrupted: nothing was left behind.", file=sys.stderr)
        return 130
    if options.report:
        options.report.write_text(report, encoding="utf-8")
    return 1 if report else 0


if __name__ == "__main__":
    finish(main)
