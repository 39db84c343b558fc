"""The generated pages: derived from the stored notebooks alone, complete, escaped, written only when they change."""

import base64
import os
from xml.etree import ElementTree

import nbformat
import pytest
from conftest import ALT, PIXEL, code, displayed, text

from shared import figures
from tools import pages, wording
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


GENERATED = ["ledger.md", "errata.md", "status.md", "intro.md", "README.md"]
GENERATED += ["images/ledger-light.svg", "images/ledger-dark.svg", "images/01-first.png"]


def build(book, capsys) -> str:
    assert pages.main([], book.root) == 0
    return capsys.readouterr().out


def test_writes_everything_once(small, capsys):
    names = "ledger.md, errata.md, status.md, intro.md, README.md"
    pictures = "images/ledger-light.svg, images/ledger-dark.svg, images/01-first.png"
    assert build(small, capsys) == f"Written anew: {names}, {pictures}.\n"
    assert pages.main(["--check"], small.root) == 0
    before = {path: path.stat().st_mtime_ns for path in small.root.rglob("*.md")}
    assert build(small, capsys) == "The generated pages are up to date.\n"
    assert {path: path.stat().st_mtime_ns for path in small.root.rglob("*.md")} == before


def test_the_signs_are_those_of_the_chapters():
    from shared.ledger import SYMBOLS

    assert {verdict: sign for verdict, (sign, _) in wording.VERDICTS.items()} == SYMBOLS


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


def test_the_front_page_shows_the_ledger_as_a_picture_and_in_numbers_that_lead_to_it(small, capsys):
    build(small, capsys)
    state = (small.root / "intro.md").read_text().split("## The state of the ledger")[1]
    for theme in ("light", "dark"):
        assert f":::{{image}} images/ledger-{theme}.svg\n:class: only-{theme} ledger-picture\n:alt: A bar for" in state
    assert "Of 3 claims 1 are reproduced, 1 are contradicted, 1 are undecided. By chapter: chapter 1: 1 repro" in state
    number = "[1](ledger.md#chapter=1&verdict={})"
    numbers = " | ".join(number.format(verdict) for verdict in wording.VERDICTS)
    assert f"| [1. The first \\| chapter](ledger.md#chapter=1) | 3 | {numbers} |" in state
    assert "| [2. The second](ledger.md#chapter=2) | 0 | 0 | 0 | 0 |" in state


def test_the_picture_has_a_part_for_each_number_in_colours_that_all_tell_apart(small, capsys):
    build(small, capsys)
    light, dark = (
        ElementTree.parse(small.root / f"images/ledger-{theme}.svg").getroot() for theme in ("light", "dark")
    )
    for picture in (light, dark):
        texts = [one.text for one in picture.findall("{*}text")]
        assert texts == [
            *(f"1 {verdict}" for verdict in wording.VERDICTS),
            "1. The first | chapter",
            *("1", "1", "1"),
            "2. The second",
        ]
        parts = [one.attrib for one in picture.findall("{*}rect")][3:]
        assert [float(one["width"]) for one in parts] == pytest.approx([440 / 3 - 1.5] * 3, abs=0.01)
    assert [one["fill"] for one in parts] == [figures.BLUE, figures.ORANGE, "none"]
    assert light[0].attrib == dark[0].attrib  # the colours of the verdicts
    assert {one.get("fill") for one in light.findall("{*}text")} != {one.get("fill") for one in dark.findall("{*}text")}


def test_the_readme_has_the_picture_for_light_and_dark(small, capsys):
    build(small, capsys)
    readme = (small.root / "README.md").read_text()
    assert 'srcset="images/ledger-dark.svg"' in readme
    assert 'src="images/ledger-light.svg"' in readme
    assert 'alt="A bar for each chapter' in readme


def test_the_hero_is_the_tagged_figure(small, capsys):
    build(small, capsys)
    assert (small.root / "images/01-first.png").read_bytes() == base64.b64decode(PIXEL)


def test_the_readme_has_badges_for_the_repository_and_run_times(small, capsys):
    build(small, capsys)
    readme = (small.root / "README.md").read_text()
    address = "https://colab.research.google.com/github/jane/unrolled/blob/main/chapters/01-first.ipynb"
    assert f"[![Open in Colab](images/colab.svg)]({address}) | 3 min (x86_64 CPU, 2 threads) |" in readme


@pytest.mark.parametrize("name", GENERATED)
def test_check_names_the_file_that_is_out_of_date(small, capsys, name):
    build(small, capsys)
    path = small.root / name
    before = path.read_bytes()
    path.write_bytes(b"another picture" if name.endswith(".png") else before + b"changed by hand")
    if name in ("intro.md", "README.md"):  # of which only a part is generated
        path.write_bytes(before.replace(b"1. The first", b"1. The frist"))
    changed = path.read_bytes()
    assert pages.main(["--check"], small.root) == 1
    assert capsys.readouterr().out == f"{name} is out of date. Run `python -m tools.pages`.\n"
    assert path.read_bytes() == changed
    assert build(small, capsys) == f"Written anew: {name}.\n"


def test_the_picture_of_a_chapter_that_is_gone_goes_too(small, capsys):
    build(small, capsys)
    (small.root / "images/logo.svg").touch()
    os.remove(small.root / "chapters/01-first.ipynb")
    said = build(small, capsys)
    assert "images/01-first.png" in said
    assert "images/ledger-dark.svg" in said  # nor is there a picture of no claims
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
    ("seconds", "words"),
    [
        (3.4, "3 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (191.4, "3 min"),
        (719, "12 min"),
        (5369, "89 min"),
        (5400, "1 h 30 min"),
        (7190, "2 h 0 min"),
    ],
)
def test_times_in_words(seconds, words):
    assert wording.in_words(seconds) == words


def test_the_stored_pages_are_those_of_the_stored_chapters(capsys):
    assert pages.main(["--check"], ROOT) == 0, capsys.readouterr().out
