"""The chapters themselves: fresh, portable, and giving at quick settings what they claim."""

import copy
import os
import re
import subprocess
import sys

import nbformat
import pytest
from conftest import code
from nbformat import v4

from tools import check, run, stamp
from tools.book import ROOT, chapter_paths, claims, code_cells, read, tags

SANITIZE = ROOT / "tests" / "nbval-sanitize.cfg"
# One chapter's tests stay on one worker, so that its quick run is made once.
every_chapter = pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=pytest.mark.xdist_group(path.stem)) for path in chapter_paths()]
)


@every_chapter
def test_the_stored_outputs_come_from_the_code_on_the_page(path):
    reasons = stamp.stale_reasons(read(path))
    assert not reasons, f"{path.relative_to(ROOT)} is stale: {'; '.join(reasons)}. Run make refresh."


@every_chapter
def test_the_chapter_is_portable_and_complete(path):
    problems = check.problems(path)
    assert not problems, "\n".join([f"{path.relative_to(ROOT)}:", *problems])


@every_chapter
def test_the_quick_run_makes_the_same_claims_and_those_marked_quick_hold(path, quick_run):
    ran = claims(read(quick_run(path)))
    assert [claim["id"] for claim in ran] == [claim["id"] for claim in claims(read(path))]
    assert [claim["id"] for claim in ran if claim["quick"] and claim["verdict"] != "reproduced"] == []


@every_chapter
def test_marked_outputs_are_the_same_at_quick_settings(path, tmp_path):
    """nbval runs a copy with the quick parameters injected and compares the cells tagged `nbval-check-output`."""
    assert any("nbval-check-output" in tags(cell) for cell in code_cells(read(path)))
    replay(path, run.quick_overrides(path), tmp_path)


def replay(path, overrides: dict, folder) -> None:
    """Let nbval run the chapter with these parameters in an empty folder; fails with its report."""
    notebook = copy.deepcopy(read(path))
    place = next(n for n, cell in enumerate(notebook.cells) if "parameters" in tags(cell))
    source = "\n".join(f"{name} = {value!r}" for name, value in overrides.items())
    notebook.cells.insert(place + 1, v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]}))
    nbformat.write(notebook, folder / path.name)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "UNROLLED_DATA"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
    command += ["--nbval-sanitize-with", str(SANITIZE), path.name]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]


def test_the_quick_settings_name_chapters_that_exist():
    names = [path.stem for path in chapter_paths()]
    if not names:
        pytest.skip("there are no chapters yet")
    assert [name for name in run.quick_settings() if name not in names] == []


# nbval itself, on a small chapter: it must notice a changed number, and let rounding errors differ


@pytest.mark.parametrize(
    ("stored", "printed", "alike"),
    [
        ("agree to 3e-16, 0.5", "agree to 2.1e-13, 0.5", True),
        ("agree exactly", "agree to -3.2e-16", True),
        ("agree to 3e-16", "agree to 3e-09", False),
        ("agree to 3e-16, 0.5", "agree to 3e-16, 0.6", False),
        ("3.888", "3.889", False),
    ],
)
def test_nbval_compares_all_but_rounding_errors(stored, printed, alike):
    from nbval.plugin import get_sanitize_patterns

    def sanitized(line: str) -> str:
        for pattern, replacement in get_sanitize_patterns(SANITIZE.read_text(encoding="utf-8")):
            line = re.sub(pattern, replacement, line)
        return line

    assert (sanitized(stored) == sanitized(printed)) == alike


def test_nbval_compares_marked_cells_only_and_with_the_injected_parameters(book, tmp_path):
    cells = book.good()
    cells["parameters"].source = "seeds = 5"
    cells["check"].source = 'print("agree to 3e-07")'  # stored: 3e-16
    cells["quick"] = code("assert seeds == 2")
    cells["free"] = code("print(seeds)", outputs=[{"output_type": "stream", "name": "stdout", "text": "5\n"}])
    with pytest.raises(AssertionError, match=r"(?s)agree to 3e-07.*1 failed, 9 passed"):
        replay(book.chapter(cells), {"seeds": 2}, tmp_path)
