"""Run one notebook as a bare Colab machine would: `python -m tools.alone 01 [--published] [--borrow]`.

A fresh environment gets torch and what runs notebooks, in their newest versions, and nothing else; the notebook is put
alone in an empty folder; its set-up cell must install the rest. It takes the package from this checkout instead of the
repository. With `--borrow`, the fresh environment sees the packages of this one, except the book's own, and downloads
none.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from tools.book import ROOT, chapter_paths
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


class AloneError(Exception):
    """A notebook that does not run alone; the message says which step failed."""


def step(what: str, command: list, **options) -> None:
    """Say what is being done and run it. Raises AloneError if it fails."""
    print(f"{what} …", flush=True)
    if subprocess.run([str(part) for part in command], **options).returncode:
        raise AloneError(f"It failed at: {what}.")


def environment(folder: Path, borrow: bool) -> Path:
    """The interpreter of a fresh virtual environment in `folder` that has torch and what runs notebooks."""
    python = folder / "venv" / "bin" / "python"
    if not borrow:
        step("Making a fresh environment", [sys.executable, "-m", "venv", folder / "venv"])
        step("Installing torch and Jupyter", [python, "-m", "pip", "install", "torch", "nbclient", "ipykernel"])
        return python
    step("Making a fresh environment", [sys.executable, "-m", "venv", "--without-pip", folder / "venv"])
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("unrolled", "__editable__", "shared")):
            (borrowed / entry.name).symlink_to(entry)
    # By a path file, so that pip takes them for packages of another environment and never removes one.
    next((folder / "venv" / "lib").glob("python3*/site-packages")).joinpath("borrowed.pth").write_text(f"{borrowed}\n")
    return python


def package(folder: Path, root: Path) -> Path:
    """A wheel of the book's package, built from a copy, so that nothing is left in the checkout."""
    source = folder / "source"
    shutil.copytree(root / "shared", source / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-text"):
        shutil.copy(root / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    step("Packing the book's package", [*command, "--wheel-dir", folder, source])
    return next(folder.glob("unrolled-*.whl"))


def alone(path: Path, overrides: dict, *, borrow: bool = False, root: Path = ROOT) -> float:
    """Run the notebook at `path`, with these parameters, alone; the seconds that its run took.

    Raises AloneError, after the failing step or cell was shown, if it does not run to its end.
    """
    with tempfile.TemporaryDirectory(prefix="unrolled-alone-") as name:
        folder = Path(name)
        (folder / "here").mkdir()
        notebook = load_notebook_node(str(path))
        if overrides:
            notebook = parameterize_notebook(notebook, overrides, kernel_name="python3", language="python")
        nbformat.write(notebook, folder / "here" / path.name)
        python, wheel = environment(folder, borrow), package(folder, root)
        bare = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "UNROLLED_DATA")}
        start = time.perf_counter()
        step(
            f"Running {path.stem} in an empty folder",
            [python, "-c", EXECUTE, path.name],
            cwd=folder / "here",
            env=bare | {"UNROLLED_INSTALL": str(wheel)},
        )
        return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.alone", description="Run one notebook as a bare machine would."
    )
    parser.add_argument("chapter", metavar="01")
    parser.add_argument("--published", action="store_true", help="at its published settings instead of the quick ones")
    parser.add_argument("--borrow", action="store_true", help="see this environment's packages and download none")
    options = parser.parse_args(arguments)
    (path,) = chapter_paths(options.chapter)
    try:
        seconds = alone(path, {} if options.published else quick_overrides(path), borrow=options.borrow)
    except AloneError as error:
        print(f"{path.stem} does not run alone. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted: nothing was left behind.", file=sys.stderr)
        return 130
    settings = "published" if options.published else "quick"
    print(f"{path.stem} runs alone: {seconds:.0f} s at {settings} settings, with the installation by its set-up cell.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
