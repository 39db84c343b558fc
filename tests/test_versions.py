"""The package with other versions of what it needs: what is installed, which tests run, and what is said of a failure."""

import re
import sys

import pytest

from tools import versions
from tools.book import ROOT


def test_the_oldest_are_the_lower_bounds_and_the_newest_any():
    oldest, newest = versions.needs("oldest"), versions.needs("newest")
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for name in ("torch", "numpy", "ipython"):
        bound = re.search(rf'"{name}>=([\d.]+)"', text)[1]
        assert f"{name}=={bound}" in oldest
        assert name in newest
    pinned = {one for one in newest if "==" in one}  # what runs the tests is the book's own
    assert {one.split("==")[0] for one in pinned} == set(versions.RUNNERS)
    assert pinned <= set(oldest)


def test_another_kind_of_bound_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch>=2.2,<3"]\n')
    with pytest.raises(ValueError, match=r"asks for 'torch>=2\.2,<3', which is not one"):
        versions.needs("oldest", tmp_path)


def test_the_tests_of_the_package_are_those_that_need_no_tool():
    names = {path.stem for path in versions.package_tests()}
    assert names >= {"test_import", "test_recurrent", "test_fast", "test_training", "test_ledger"}
    assert not names & {"test_chapters", "test_chapter01", "test_exercises", "test_site", "test_setup", "test_versions"}


def test_an_import_through_another_test_counts(tmp_path):
    (tmp_path / "tests").mkdir()
    for name, line in {
        "test_a": "import test_b",
        "test_b": "from shared import ledger",
        "test_c": "import conftest",
        "test_d": "import shared, test_c",
        "conftest": "import shared",
    }.items():
        (tmp_path / "tests" / f"{name}.py").write_text(f"def late():\n    {line}\n")
    assert [path.stem for path in versions.package_tests(tmp_path)] == ["test_a", "test_b"]


@pytest.mark.parametrize(("passing", "status"), [(True, 0), (False, 1)])
def test_what_passes_and_what_fails_is_said(passing, status, tmp_path, monkeypatch, capfd):
    """With this environment in place of a fresh one, and one small test."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/__init__.py").touch()
    (tmp_path / "tests/every_test.py").touch()
    (tmp_path / "tests/conftest.py").write_text("import no_such_tool\n")
    (tmp_path / "tests/test_one.py").write_text(f"import shared\n\n\ndef test_it():\n    assert {passing}\n")
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["torch>=2.2"]\n')
    (tmp_path / "requirements.txt").write_text("pytest==9.1.1\n")
    installed = []
    monkeypatch.setattr(
        versions,
        "environment",
        lambda folder, packages, *, python: installed.append((packages, python)) or sys.executable,
    )
    options = ["oldest", "--python", "python3.10", "--report", str(tmp_path / "report.md")]
    assert versions.main(options, tmp_path) == status
    assert installed == [(["torch==2.2", "pytest==9.1.1"], "python3.10")]
    said, report = capfd.readouterr(), (tmp_path / "report.md").read_text()
    if passing:
        assert said.out.splitlines()[-1].startswith("The package works with the oldest versions (Python 3.")
        assert report == ""
    else:
        sentence = said.err.splitlines()[-1]
        assert re.match(r"The package does not work with the oldest versions \(Python 3\.\S+, torch \S+,", sentence)
        assert sentence.endswith("It failed at: Running the tests of the package.")
        assert report.startswith(f"{sentence}\n\n```text\n")
        assert "FAILED tests/test_one.py::test_it" in report
