"""The notebook alone: what a bare machine does with it, and that nothing of this checkout or this machine helps it."""

import ast
import os
import sys
from importlib import metadata

import pytest
from conftest import code

from tools import alone, fresh
from tools.check import SETUP
from tools.syntax import imports

BARE = """
import importlib.util, os, pathlib
import shared
assert "site-packages" in shared.__file__ and "venv" in shared.__file__, shared.__file__
assert importlib.util.find_spec("tools") is None
assert os.listdir() == [name + ".ipynb"], os.listdir()
assert "UNROLLED_DATA" not in os.environ
from shared.runtime import seed_everything
assert seeds == 3, seeds
assert not hasattr(shared, "used")
with open(shared.__file__, "a") as module:
    module.write("used = True")
with open(report, "a") as file:
    file.write(name + " ran to its end. ")
"""


@pytest.mark.xdist_group("alone")
def test_notebooks_run_alone_in_empty_folders_of_one_environment(book, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # what it borrows is enough
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    wrong = tmp_path / "jupyter/kernels/python3"  # a kernel of the user's that has the same name and does not run
    wrong.mkdir(parents=True)
    (wrong / "kernel.json").write_text('{"argv": ["false"], "display_name": "Python 3", "language": "python"}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    before = sorted(os.listdir(alone.ROOT))
    report = tmp_path / "report"
    paths = []
    for name in ("01-tiny", "02-tiny"):
        cells = [
            code(SETUP.format(address="https://github.com/nobody/nothing"), "setup"),
            code('seeds = 5\nreport = name = ""', "parameters"),
            code(BARE),
        ]
        paths.append(book.chapter(cells, name))
    stored = [path.read_bytes() for path in paths]
    monkeypatch.setattr(alone, "quick_overrides", lambda path: {"seeds": 3, "report": str(report), "name": path.stem})
    assert alone.run(paths, False, sys.executable) == ""
    assert report.read_text() == "01-tiny ran to its end. 02-tiny ran to its end. "
    assert "02-tiny runs alone: " in capfd.readouterr().out
    assert [path.read_bytes() for path in paths] == stored
    assert sorted(os.listdir(alone.ROOT)) == before


@pytest.mark.xdist_group("alone")
def test_a_failing_notebook_is_a_sentence_and_a_report_and_the_others_run(book, monkeypatch, capfd, tmp_path):
    paths = [book.chapter([code("1 / 0")], "01-tiny"), book.chapter([code("1 / 1")], "02-tiny")]
    monkeypatch.setattr(alone, "chapter_paths", lambda number: paths)
    monkeypatch.setattr(alone, "package", lambda folder: folder)
    assert alone.main(["all", "--borrow", "--report", str(tmp_path / "report.md")]) == 1
    out, error = capfd.readouterr()
    assert "ZeroDivisionError" in out
    assert error == "01-tiny does not run alone. It failed at: Running 01-tiny in an empty folder.\n"
    assert "02-tiny runs alone: " in out
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("1 of 2 chapters do not run alone at quick settings, with Python 3.")
    assert f"torch {metadata.version('torch')}" in report.splitlines()[0]
    assert "### 01-tiny\n\nIt failed at: Running 01-tiny in an empty folder.\n\n```text\n" in report
    assert "ZeroDivisionError: division by zero\n" in report
    assert "02-tiny" not in report
    assert "\x1b" not in report


def test_an_environment_that_cannot_be_made_is_a_sentence_and_a_report(monkeypatch, capfd, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho the disk is full >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    options = ["all", "--borrow", str(tmp_path / "python"), "--report", str(tmp_path / "report.md")]
    assert alone.main(options) == 1
    sentence = "The chapters could not be run. It failed at: Making a fresh environment.\n"
    assert capfd.readouterr().err == sentence
    assert (tmp_path / "report.md").read_text() == f"{sentence}\n```text\nthe disk is full\n```\n"


def test_what_is_quoted_stays_within_its_block():
    quoted = fresh.quoted("begin\n````\n# no heading\n" * 1000 + "end\n")
    lines = quoted.splitlines()
    assert (lines[0], lines[-2:]) == ("`````text", ["end", "`````"])
    assert "`````" not in "".join(lines[1:-1])
    assert 3_900 < len(quoted) < 4_100


def test_it_needs_only_what_papermill_brings():
    """`.github/alone.sh` installs papermill for it, and setuptools to pack the package with."""
    seen, others, waiting = set(), set(), ["tools.alone"]
    while waiting:
        name = waiting.pop()
        if name.startswith("tools.") and name not in seen:
            seen.add(name)
            path = alone.ROOT / f"{name.replace('.', '/')}.py"
            trees = [ast.parse(path.read_text("utf-8"))] if path.exists() else []
            waiting += [one for _, *names in imports(trees) for one in names]
        elif not name.startswith("tools"):
            others.add(name.split(".")[0])
    assert "tools.fresh" in seen
    brought = {"papermill", "nbformat", "nbclient", "jupyter_client", "traitlets", "yaml"}
    assert others - set(sys.stdlib_module_names) == brought | {"shared"}  # and `shared` only to publish a chapter
