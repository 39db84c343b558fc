"""Test the package `shared` with other versions of what it needs than the book's own: `python -m tools.versions oldest`.

`oldest` are the lower bounds in `pyproject.toml`, `newest` whatever the index has; both are installed in a fresh
environment, and what ran in it is removed afterwards. Only the tests run that need the package alone: those that import
it and, whatever they import, nothing of the tools. (`make test` runs everything with the versions of
`requirements.txt`.) Needs the standard library alone, so that nothing need be set up first.
"""

import argparse
import ast
import os
import re
import sys
import tempfile
from pathlib import Path

import tomllib

from tools.fresh import StepError, clean, environment, quoted, step, versions
from tools.syntax import imports

ROOT = Path(__file__).resolve().parent.parent
RUNNERS = ("pytest", "pytest-xdist", "hypothesis", "psutil")  # what the tests need besides what the package needs


def needs(which: str, root: Path = ROOT) -> list[str]:
    """What pip must install: what the package asks for, in its oldest or newest versions, and the book's test runners.

    Raises ValueError if the package sets anything other than one lower bound for something it needs.
    """
    found = []
    for asked in tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]:
        bound = re.fullmatch(r"([\w.-]+)>=([\w.]+)", asked)
        if not bound:
            raise ValueError(f"pyproject.toml asks for {asked!r}, which is not one lower bound, as in numpy>=1.26")
        found.append(f"{bound[1]}=={bound[2]}" if which == "oldest" else bound[1])
    pins = (root / "requirements.txt").read_text("utf-8").splitlines()
    return found + [pin for pin in pins if pin.split("==")[0] in RUNNERS]


def imported(path: Path) -> set[str]:
    """The names of the modules that a test file imports, by itself or through another file beside it."""
    names = {module.split(".")[0] for *_, module in imports([ast.parse(path.read_text("utf-8"))])}
    for name in sorted(names):
        beside = path.with_name(f"{name}.py")
        if beside.exists() and beside != path:
            names |= imported(beside)
    return names


def package_tests(root: Path = ROOT) -> list[Path]:
    """The test files that need the package `shared` and no tool."""
    found = {path: imported(path) for path in sorted((root / "tests").glob("test_*.py"))}
    return [path for path, names in found.items() if "shared" in names and not names & {"tools", "conftest"}]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.versions", description="Test the package with other versions of what it needs."
    )
    parser.add_argument("which", choices=("oldest", "newest"))
    parser.add_argument("--python", default=sys.executable, help="the Python to make the environment with")
    parser.add_argument("--report", metavar="FILE", type=Path, help="write what failed to this file, in Markdown")
    options = parser.parse_args(arguments)
    report, heading = "", f"The package does not work with the {options.which} versions"
    with tempfile.TemporaryDirectory(prefix="unrolled-versions-", ignore_cleanup_errors=True) as name:
        try:
            python = environment(Path(name), needs(options.which, root), python=options.python)
            heading += f" ({versions(python)})"
            # Without tests/conftest.py, which needs the tools; what every test needs of it is in tests/every_test.py.
            command = [python, "-m", "pytest", "--noconftest", "-p", "every_test", "-q", "-n", "2"]
            paths = [path.relative_to(root) for path in package_tests(root)]
            variables = clean() | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
            step("Running the tests of the package", [*command, *paths], cwd=root, env=variables)
        except StepError as error:
            print(f"{heading}. {error}", file=sys.stderr)
            report = f"{heading}. {error}\n\n{quoted(error.said)}"
        except KeyboardInterrupt:
            print("\nInterrupted: nothing was left behind.", file=sys.stderr)
            return 130
        else:
            print(f"The package works with the {options.which} versions ({versions(python)}).")
    if options.report:
        options.report.write_text(report, encoding="utf-8")
    return 1 if report else 0


if __name__ == "__main__":
    sys.exit(main())
