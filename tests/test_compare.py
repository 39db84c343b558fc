"""The comparison of the stored chapters with those of an earlier commit."""

import csv
import io
import subprocess

import nbformat
import pytest
from conftest import claim, code, displayed, text

from tools import compare
from tools.book import CLAIM_MIME, BookError, read


def measured(name: str, verdict: str, summary: str) -> dict:
    return claim(name) | {"verdict": verdict, "measured": {"summary": summary}}


def chapter(book, name: str, *made: dict):
    outputs = [one for entry in made for one in displayed({"text/plain": "Claim", CLAIM_MIME: entry})[1]]
    return book.chapter([text(f"# {name}"), code("claims()", outputs=outputs)], name)


def committed(book) -> None:
    who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    for arguments in (["init", "-q"], ["add", "chapters"], [*who, "commit", "-qm", "The first run"]):
        subprocess.run(["git", *arguments], cwd=book.root, check=True)


def test_what_another_run_changed_is_told(book, capsys):
    path = chapter(
        book,
        "01-first",
        measured("depth", "reproduced", "2 points"),
        measured("width", "undecided", "1 point, or less"),
        measured("gone", "reproduced", "3"),
    )
    committed(book)
    chapter(book, "02-second", measured("new", "reproduced", "4"))  # is not in the commit
    notebook = read(path)
    for output, summary, verdict in zip(
        notebook.cells[1].outputs, ("2 points", "7 points"), ("reproduced", "contradicted"), strict=False
    ):
        output.data[CLAIM_MIME] |= {"verdict": verdict, "measured": {"summary": summary}}
    del notebook.cells[1].outputs[2]
    nbformat.write(notebook, path)

    assert compare.main(["HEAD"], book.root) == 0
    out, err = capsys.readouterr()
    assert list(csv.reader(io.StringIO(out))) == [
        ["claim", "verdict_then", "then", "verdict_now", "now"],
        ["depth", "reproduced", "2 points", "reproduced", "2 points"],
        ["width", "undecided", "1 point, or less", "contradicted", "7 points"],
    ]
    assert err == "2 claims, 1 of them measured alike.\nwidth: undecided, now contradicted\n"


@pytest.mark.parametrize("commit", ["nowhere", "-q", "HEAD:chapters"])
def test_a_commit_that_is_not_there_is_named(book, commit):
    chapter(book, "01-first")
    committed(book)
    with pytest.raises(BookError, match=f"There is no commit {commit}"):
        compare.main(["--", commit], book.root)


def test_without_git_the_reason_is_said(book, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BookError, match="git is not installed"):
        compare.main(["HEAD"], book.root)
