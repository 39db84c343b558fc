"""The notebook alone: what a bare machine does with it, and that nothing of this checkout helps it."""

import os

import pytest
from conftest import code

from tools import alone
from tools.check import SETUP

BARE = """
import importlib.util, os, pathlib
import shared
assert "site-packages" in shared.__file__ and "venv" in shared.__file__, shared.__file__
assert importlib.util.find_spec("tools") is None
assert os.listdir() == ["01-tiny.ipynb"], os.listdir()
assert "UNROLLED_DATA" not in os.environ
from shared.runtime import seed_everything
assert seeds == 3, seeds
pathlib.Path(report).write_text("ran to its end")
"""


@pytest.mark.xdist_group("alone")
def test_a_notebook_runs_alone_in_an_empty_folder(book, tmp_path, monkeypatch):
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # what it borrows is enough
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    before = sorted(os.listdir(alone.ROOT))
    report = tmp_path / "report"
    cells = [
        code(SETUP.format(address="https://github.com/nobody/nothing"), "setup"),
        code('seeds = 5\nreport = ""', "parameters"),
        code(BARE),
    ]
    path = book.chapter(cells, "01-tiny")
    stored = path.read_bytes()
    alone.alone(path, {"seeds": 3, "report": str(report)}, borrow=True)
    assert report.read_text() == "ran to its end"
    assert path.read_bytes() == stored
    assert sorted(os.listdir(alone.ROOT)) == before


@pytest.mark.xdist_group("alone")
def test_a_failing_notebook_is_a_sentence_after_its_traceback(book, monkeypatch, capfd):
    path = book.chapter([code("1 / 0")], "01-tiny")
    monkeypatch.setattr(alone, "chapter_paths", lambda number: [path])
    monkeypatch.setattr(alone, "package", lambda folder, root: folder)
    assert alone.main(["01", "--borrow"]) == 1
    error = capfd.readouterr().err
    assert "ZeroDivisionError" in error
    assert error.endswith("01-tiny does not run alone. It failed at: Running 01-tiny in an empty folder.\n")
