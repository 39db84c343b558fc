"""The generated pages: derived from the stored notebooks alone, complete, escaped, written only when they change."""

import base64
import os

import nbformat
import pytest
from conftest import ALT, PIXEL, code, displayed, text

from tools import pages
from tools.book import CLAIM_MIME, ROOT, read

STAMP = {
    "settings": "published",
    "data": ["MNIST"],
    "device": "x86_64 CPU, 2 threads",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "seconds": 191.4,
    "date": "2026-01-02",
}


def entered(name: str, sentence: str, verdict: str):
    """A cell with a stored claim."""
    record = {
        "id": name,
        "text": sentence,
        "source": "A paper (1990)",
        "reported": "5.01 nats",
        "measured": {"summary": "0.031 nats (95 % interval 0.012 to 0.050, 5 seeds, MNIST)"},
        "condition": "> 0",
        "verdict": verdict,
    }
    source, outputs = displayed({"text/markdown": sentence, CLAIM_MIME: record})
    return code(source, outputs=outputs)


def picture(*tags, png: str = PIXEL):
    source, outputs = displayed({"image/png": png, "text/plain": ALT}, {"image/png": {"alt": ALT, "width": 720}})
    return code(source, *tags, outputs=outputs)


@pytest.fixture
def small(book):
    """A book with two chapters: the first has run and made claims, the second has only been written."""
    (book.root / "images").mkdir()
    for name in ("intro.md", "README.md"):
        (book.root / name).write_text(f"# Before\n\n{pages.BEGIN}\nformerly\n{pages.END}\n\nAfter\n")
    (book.root / "_toc.yml").write_text(
        "root: intro\nparts:\n"
        "  - caption: I Gradients\n    chapters: [{file: chapters/01-first}, {file: chapters/02-second}]\n"
        "  - caption: The book about itself\n    chapters: [{file: ledger}]\n"
    )
    cells = [
        text("# 1. The first | chapter\n\n[![Open](b.svg)](c)\n\n*How does a network\nfind out?*\n\nMore."),
        picture(png=base64.b64encode(b"another").decode()),
        picture("hero"),
        entered("a", "Depth | width: both help.", "reproduced"),
        entered("b", "It is faster.", "undecided"),
        entered("c", "It is better.", "contradicted"),
    ]
    path = book.chapter(cells, "01-first")
    notebook = read(path)
    notebook.metadata["unrolled"] = STAMP
    nbformat.write(notebook, path)
    book.chapter([text("# 2. The second"), text("What then?")], "02-second")
    return book


def build(book, capsys) -> str:
    assert pages.main([], book.root) == 0
    return capsys.readouterr().out


def test_writes_everything_once(small, capsys):
    assert build(small, capsys) == ("Written anew: ledger.md, status.md, intro.md, README.md, images/01-first.png.\n")
    assert pages.main(["--check"], small.root) == 0
    before = {path: path.stat().st_mtime_ns for path in small.root.rglob("*.md")}
    assert build(small, capsys) == "The generated pages are up to date.\n"
    assert {path: path.stat().st_mtime_ns for path in small.root.rglob("*.md")} == before


def test_the_ledger_holds_every_claim_in_a_table(small, capsys):
    build(small, capsys)
    ledger = (small.root / "ledger.md").read_text()
    assert "**3 claims: 1 reproduced, 1 contradicted, 1 undecided**" in ledger
    assert (
        "| Depth \\| width: both help. | A paper (1990) | 5.01 nats "
        "| 0.031 nats (95 % interval 0.012 to 0.050, 5 seeds, MNIST); asked for: > 0 | ✓&nbsp;reproduced |"
    ) in ledger
    assert "## 2. The second\n\n[The chapter](chapters/02-second.ipynb) makes 0 claims" in ledger


def test_the_signs_are_those_of_the_chapters():
    from shared.ledger import SYMBOLS

    assert {verdict: sign for verdict, (sign, _) in pages.VERDICTS.items()} == SYMBOLS


def test_the_status_page_shows_each_run(small, capsys):
    build(small, capsys)
    status = (small.root / "status.md").read_text()
    assert (
        "| [1. The first \\| chapter](chapters/01-first.ipynb) | 3 min | x86_64 CPU, 2 threads "
        "| python 3.11.7, torch 2.13.0 | MNIST | 2026-01-02 |"
    ) in status
    assert "| [2. The second](chapters/02-second.ipynb) | not yet run |" in status


def test_the_front_page_has_a_card_for_each_chapter(small, capsys):
    build(small, capsys)
    intro = (small.root / "intro.md").read_text()
    assert intro.startswith("# Before\n")
    assert intro.endswith("\n\nAfter\n")
    assert "formerly" not in intro
    assert "## I Gradients" in intro
    assert "The book about itself" not in intro
    first, second = intro.split(":::{grid-item-card} ")[1:]
    assert first.startswith("1. The first | chapter\n:link: chapters/01-first\n")
    assert f":img-top: images/01-first.png\n:img-alt: {ALT}\n\nHow does a network find out?\n:::" in first
    assert "img-top" not in second
    assert "\n\nWhat then?\n:::" in second
    assert "3 claims" in second


def test_the_hero_is_the_tagged_figure(small, capsys):
    build(small, capsys)
    assert (small.root / "images/01-first.png").read_bytes() == base64.b64decode(PIXEL)


def test_the_readme_has_badges_for_the_repository_and_run_times(small, capsys):
    build(small, capsys)
    readme = (small.root / "README.md").read_text()
    address = "https://colab.research.google.com/github/jane/unrolled/blob/main/chapters/01-first.ipynb"
    assert f"[![Open in Colab](images/colab.svg)]({address}) | 3 min (x86_64 CPU, 2 threads) |" in readme


@pytest.mark.parametrize("name", ["ledger.md", "status.md", "intro.md", "README.md", "images/01-first.png"])
def test_check_names_the_file_that_is_out_of_date(small, capsys, name):
    build(small, capsys)
    path = small.root / name
    path.write_bytes(path.read_bytes().replace(b"first", b"frist") if name.endswith(".md") else b"another picture")
    changed = path.read_bytes()
    assert pages.main(["--check"], small.root) == 1
    assert capsys.readouterr().out == f"{name} is out of date. Run `python -m tools.pages`.\n"
    assert path.read_bytes() == changed
    assert build(small, capsys) == f"Written anew: {name}.\n"


def test_the_picture_of_a_chapter_that_is_gone_goes_too(small, capsys):
    build(small, capsys)
    (small.root / "images/logo.svg").touch()
    os.remove(small.root / "chapters/01-first.ipynb")
    assert "images/01-first.png" in build(small, capsys)
    assert os.listdir(small.root / "images") == ["logo.svg"]


def test_lost_markers_are_a_sentence_and_nothing_is_written(small):
    (small.root / "README.md").write_text("# Before\n")
    with pytest.raises(SystemExit, match=r"README\.md has lost its markers"):
        pages.main([], small.root)
    assert "formerly" in (small.root / "intro.md").read_text()


def test_a_book_without_chapters_has_pages(small, capsys):
    for path in (small.root / "chapters").glob("*.ipynb"):
        path.unlink()
    build(small, capsys)
    assert "0 claims" in (small.root / "ledger.md").read_text()
    assert "The first chapter is being written." in (small.root / "README.md").read_text()


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.4, "3 s"), (89.4, "89 s"), (90, "2 min"), (191.4, "3 min"), (719, "12 min")]
)
def test_times_in_words(seconds, words):
    assert pages.in_words(seconds) == words


def test_the_stored_pages_are_those_of_the_stored_chapters(capsys):
    assert pages.main(["--check"], ROOT) == 0, capsys.readouterr().out
