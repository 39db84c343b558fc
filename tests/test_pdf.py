"""The book as one PDF: a small book is printed as it should be, and nothing that goes wrong costs the last good one."""

import io
import os
import re
import unicodedata

import nbformat
import pytest
import yaml
from conftest import ALT, PIXEL, Book, code, displayed, text
from pypdf import PdfReader
from pypdf.generic import Destination

from tools import pdf, site
from tools.book import ROOT, BookError
from tools.browser import chromium
from tools.check import SETUP, colab

pytestmark = [
    pytest.mark.xdist_group("pdf"),  # one worker, so that the small book is printed once
    pytest.mark.skipif(chromium() is None, reason="no browser to print with: install Chromium"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # inside Sphinx's extensions
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

MILLIMETRE = 72 / 25.4
PROGRAM = [f"value_{number} = {number}  # a line of a long program" for number in range(90)]
LONG_LINE = "total = " + " + ".join(f"value_{number}" for number in range(30))
WIDE = "| " + " | ".join(f"measured_{number}" for number in range(16)) + " |"
HIDDEN = {"jupyter": {"source_hidden": True}, "cellView": "form"}


def write(path, cells) -> None:
    for count, cell in enumerate((one for one in cells if one.cell_type == "code"), 1):
        cell.execution_count = count
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["unrolled"] = {"date": f"2026-03-0{path.stem[1]}"}
    nbformat.write(notebook, path)


def figure(source: str, caption: str, *tags: str):
    _, shown = displayed({"image/png": PIXEL, "text/plain": ALT}, {"image/png": {"alt": ALT, "width": 720}})
    _, said = displayed({"text/markdown": caption})
    return code(source, *tags, outputs=[*shown, *said], mystnb={"image": {"alt": ALT, "width": "720px"}})


def make_book(root) -> Book:
    """Two chapters that lead to one another, and one each of what a printed page can hold."""
    book = Book(root)
    for name in ("_config.yml", "CITATION.cff"):
        (root / name).write_text((ROOT / name).read_text())
    for name in ("images", "_static"):
        os.symlink(ROOT / name, root / name)
    badge = f"[![Open in Colab](../images/colab.svg)]({colab('01-first.ipynb', root)})"
    formula = r"$$\frac{\partial L}{\partial h} = \sum_{k} \lambda_k \tag{1.1}$$"
    wide_formula = "$$" + " + ".join(f"a_{{{number}}} x^{{{number}}}" for number in range(30)) + r" \tag{1.2}$$"
    first = [
        text(f"# 1. The first\n\nWhat is it?\n\n{badge}"),
        code(SETUP.format(address="https://github.com/unrolled-book/unrolled"), "setup", "hide-input", **HIDDEN),
        code("seeds = 5", "parameters", "hide-input", **HIDDEN),
        figure("drawn_here = 1", "**Figure 1.1.** A point.", "hero", "hide-input"),
        text(
            "## The same\n\n[The other](02-second.ipynb#the-same), [its chapter](02-second.ipynb), [this](#the-same)."
        ),
        text(f"Take $x$ and\n\n{formula}\n\nand\n\n{wide_formula}\n\n[A paper](https://example.org/paper)."),
        code("\n".join([*PROGRAM, LONG_LINE])),
        text("\n".join([WIDE, re.sub(r"\w+", "---", WIDE), WIDE.replace("measured", "very long words in")])),
        text("<details>\n<summary>The proof</summary>\n\nIt is plain.\n\n</details>"),
        figure("moves = 2", "**Figure 1.2.** A point that moves.", "interactive-point"),
        text("## Exercises\n\n**Exercise 1.1** Answer."),
        code("#@title Solution 1.1\nanswer = 42", "solution", "hide-cell", **HIDDEN),
        text("<details>\n<summary>On paper</summary>\n\nForty and two.\n\n</details>"),
        text("Afterwards."),
    ]
    second = [
        text("# 2. The second\n\nAnd then?"),
        text("## The same\n\n[The other](01-first.ipynb#the-same), [the list](../ledger.md)."),
        text("## The letter $h$"),
        code("last_line = 3"),
    ]
    write(root / "chapters" / "01-first.ipynb", first)
    write(root / "chapters" / "02-second.ipynb", second)
    card = ":::{grid-item-card} 1. The first\n:link: chapters/01-first\n:link-type: doc\n\nWhat is it?\n:::"
    dark = f":::{{image}} images/01-backpropagation.png\n:alt: {ALT}\n:class: only-dark\n:::"
    (root / "intro.md").write_text(
        f"# A book\n\nRead it.\n\n{dark}\n\n## I One\n\n::::{{grid}} 1 1 2 2\n{card}\n::::\n"
    )
    (root / "ledger.md").write_text("# The list\n\n[Claimed](chapters/01-first.ipynb#the-same).\n")
    parts = [("I One", ["chapters/01-first"]), ("II Two", ["chapters/02-second", "ledger"])]
    (root / "further").mkdir()
    (root / "further" / "more.md").write_text("# More\n\n[Back](../ledger.md).\n")
    contents = {
        "format": "jb-book",
        "root": "intro",
        "parts": [{"caption": name, "chapters": [{"file": page} for page in pages]} for name, pages in parts],
    }
    contents["parts"][1]["chapters"][1]["sections"] = [{"glob": "further/*"}]
    (root / "_toc.yml").write_text(yaml.safe_dump(contents))
    return book


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The small book with its site."""
    book = make_book(tmp_path_factory.mktemp("pdf") / "book")
    assert site.build(book.root / "_build" / "html", book.root) == []
    return book.root


@pytest.fixture(scope="module")
def printed(root) -> bytes:
    out = root / "_build" / "book.pdf"
    pages = pdf.make(out, root / "_build" / "html", root)
    content = out.read_bytes()
    assert len(PdfReader(io.BytesIO(content)).pages) == pages
    return content


@pytest.fixture(scope="module")
def reader(printed) -> PdfReader:
    return PdfReader(io.BytesIO(printed))


@pytest.fixture(scope="module")
def texts(reader) -> list[str]:
    return [unicodedata.normalize("NFKC", page.extract_text()) for page in reader.pages]


def entries(reader, outline=None, level=1):
    """(level, title, page counted from one) for each entry of the outline."""
    for one in reader.outline if outline is None else outline:
        if isinstance(one, list):
            yield from entries(reader, one, level + 1)
        else:
            yield level, one.title, reader.get_destination_page_number(one) + 1


def links(page) -> list[str]:
    """Where the links of a page lead: an address, or a slash and the name of a place."""
    shown = [one.get_object() for one in page.get("/Annots", [])]
    return [one["/A"]["/URI"] if "/A" in one else one["/Dest"] for one in shown if one["/Subtype"] == "/Link"]


def page_of(reader, name: str) -> int:
    place: Destination = reader.named_destinations[name]
    return reader.get_destination_page_number(place) + 1


OUTLINE = [
    (1, "About this book"),
    (1, "I One"),
    (2, "1. The first"),
    (3, "The same"),
    (3, "Exercises"),
    (1, "II Two"),
    (2, "2. The second"),
    (3, "The same"),
    (3, "The letter h"),
    (2, "The list"),
    (2, "More"),
    (1, "Solutions"),
    (2, "1. The first"),
    (1, "Code"),
    (2, "1. The first"),
]


def test_the_outline_is_in_order_and_each_entry_leads_to_its_page(reader, texts):
    found = list(entries(reader))
    assert [(level, title) for level, title, _ in found] == OUTLINE
    for _, title, page in found:
        assert title in texts[page - 1]
    pages = [page for _, _, page in found]
    assert pages == sorted(pages)
    assert len(set(pages)) >= 7


def test_the_contents_say_the_pages_to_which_they_lead(reader, texts):
    lines = [line for line in texts[1].splitlines() if re.search(r" \d+$", line)]
    assert lines == [f"{title} {page}" for _, title, page in entries(reader)]
    assert [page_of(reader, one) for one in links(reader.pages[1])] == [page for _, _, page in entries(reader)]


def test_no_link_leads_nowhere_and_each_chapter_keeps_its_own_places(reader):
    chapters = {title: page for level, title, page in entries(reader) if title in ("1. The first", "The list")}
    inside = {one for page in reader.pages for one in links(page) if one.startswith("/")}
    assert {page_of(reader, one) for one in inside} <= set(range(1, len(reader.pages) + 1))
    firsts = [page for _, title, page in entries(reader) if title == "The same"]
    assert page_of(reader, "/chapters-01-first--the-same") == firsts[0]
    assert page_of(reader, "/chapters-02-second--the-same") == firsts[1]
    assert {"/chapters-02-second", "/ledger"} <= inside
    assert "/chapters-01-first--the-same" in links(reader.pages[chapters["The list"] - 1])


def test_links_out_of_the_book_stay_and_show_where_they_lead(reader, texts):
    outside = {one for page in reader.pages for one in links(page) if not one.startswith("/")}
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["html"]["baseurl"]
    assert "https://example.org/paper" in outside
    assert f"{address}chapters/01-first.html" in outside  # of the figure that moves
    assert all(one.startswith("https://") for one in outside)
    assert any("A paper (example.org/paper)" in one for one in texts)


def test_formulas_and_code_are_text(texts):
    whole = " ".join("\n".join(texts).split())
    assert re.search(r"∂\s?L", whole)
    assert "∑" in whole
    assert "(1.1)" in whole
    assert "(1.2)" in whole
    for line in [*PROGRAM, "seeds = 5", "drawn_here = 1", "answer = 42", "last_line = 3"]:
        assert " ".join(line.split()) in whole
    assert LONG_LINE.replace(" ", "") in whole.replace(" ", "")
    assert "\\" not in whole


def test_nothing_is_wider_than_the_page_or_made_smaller_to_fit(reader):
    sizes = set()
    for page in reader.pages:
        assert [round(float(side) / MILLIMETRE) for side in page.mediabox[2:]] == [210, 297]

        def visit(text, transformation, matrix, font, size):
            if text.strip():
                left = transformation[0] * matrix[4] + transformation[4]
                assert 19.5 * MILLIMETRE < left < 190.5 * MILLIMETRE
                sizes.add(round(abs(transformation[0] * matrix[0] * size), 1))

        page.extract_text(visitor_text=visit)
    assert 10.5 in sizes  # prose
    assert 7.6 in sizes  # code


def test_all_fonts_are_in_the_file(reader):
    found = 0
    for page in reader.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            font = font.get_object()
            if font["/Subtype"] == "/Type3":
                continue
            (one,) = font.get("/DescendantFonts", [font])
            descriptor = one.get_object()["/FontDescriptor"].get_object()
            assert any(name.startswith("/FontFile") for name in descriptor)
            found += 1
    assert found > 5


def test_the_file_says_what_it_is(reader, texts):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert reader.metadata.title.lower() == citation["title"].lower()
    assert reader.metadata.author == "the Unrolled authors"
    assert reader.metadata.creation_date.strftime("%Y-%m-%d") == "2026-03-02"  # of the youngest run
    assert reader.trailer["/Root"]["/Lang"] == "en-GB"
    assert "runs up to 2 March 2026" in texts[0]
    assert "CC BY 4.0" in texts[0]


def test_a_figure_stays_with_its_caption(reader, texts):
    for caption in ("Figure 1.1. A point.", "Figure 1.2. A point that moves."):
        (page,) = (page for page, text in zip(reader.pages, texts, strict=True) if caption in text)
        assert any(one.get_object()["/Subtype"] == "/Image" for one in page["/Resources"]["/XObject"].values())


def test_solutions_and_folded_code_are_at_the_end_and_both_places_name_each_other(reader, texts):
    pages = {title: page for level, title, page in entries(reader) if level == 1}
    (asked,) = (number for number, text in enumerate(texts, 1) if "Exercise 1.1 Answer" in text)
    assert f"Solution on page {pages['Solutions']}" in texts[asked - 1]
    solution = texts[pages["Solutions"] - 1]
    assert f"Solution 1.1from page {asked}" in solution.replace(" from", "from")
    assert "answer = 42" in solution
    assert "On paper" in solution  # what follows a solution goes with it
    assert "Forty and two." in solution
    (drawn,) = (number for number, text in enumerate(texts, 1) if "Figure 1.1. A point" in text)
    assert f"Code on page {pages['Code']}" in texts[drawn - 1]
    assert "drawn_here = 1" in texts[pages["Code"] - 1]
    assert "seeds = 5" not in texts[pages["Code"] - 1]  # settings are for every reader
    proof = next(number for number, text in enumerate(texts, 1) if "It is plain." in text)
    assert proof < pages["II Two"]


def test_nothing_of_the_site_around_the_pages_is_printed(reader, texts):
    whole = "\n".join(texts)
    for one in ("Show code", "Click to", "previous", "Search", "Skip to", "Copy"):
        assert one not in whole
    (about,) = (page for page, text in zip(reader.pages, texts, strict=True) if "Read it." in text)
    assert not about["/Resources"].get("/XObject", {})  # the picture in it is for the dark


def test_the_same_book_is_the_same_file(root, printed):
    out = root / "_build" / "again.pdf"
    pdf.make(out, root / "_build" / "html", root)
    assert out.read_bytes() == printed


def test_what_cannot_be_printed_is_said_and_the_last_print_kept(root, printed):
    spoilt = {
        '<div style="width: 400mm">Wide.</div>': "chapters-02-second: this is wider than a page: Wide.",
        '<a href="01-first.html#gone">x</a>': "the link to chapters-01-first--gone leads nowhere",
        '<img alt="a" src="gone.png">': f"the picture {pdf.ADDRESS}chapters/gone.png is missing",
        r'<span class="math">\(\nosuch\)</span>': r"a formula was not understood: Undefined control sequence \nosuch",
    }
    page = root / "_build" / "html" / "chapters" / "02-second.html"
    good = page.read_text()
    page.write_text(good.replace("<p>And then?</p>", "".join(spoilt)))
    out = root / "_build" / "book.pdf"
    try:
        with pytest.raises(pdf.Wrong) as caught:
            pdf.make(out, root / "_build" / "html", root)
    finally:
        page.write_text(good)
    assert set(spoilt.values()) <= set(caught.value.args)
    assert out.read_bytes() == printed


# The command


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`main` with a site that is as good as built and a PDF of before; call it with what printing does."""
    out = tmp_path / "unrolled.pdf"
    out.write_text("the last good print")
    monkeypatch.setattr(site, "main", lambda arguments: 0)
    monkeypatch.setattr(pdf, "BOOK", out)

    def run(make) -> int:
        monkeypatch.setattr(pdf, "make", make)
        status = pdf.main()
        assert out.read_text() == "the last good print"
        return status

    return run


def raising(error):
    def make():
        raise error

    return make


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (KeyboardInterrupt(), 130, "Interrupted: the PDF is as it was before."),
        (OSError(28, "No space left on device"), 1, "The book was not printed, and the PDF is as it was before: "),
        (RuntimeError("No browser was found."), 1, "as it was before: No browser was found."),
        (pdf.Error("Target crashed\nCall log:"), 1, "as it was before: Target crashed\n"),
        (pdf.Wrong("the link to x leads nowhere"), 1, "the link to x leads nowhere\nThe book cannot be printed"),
    ],
)
def test_what_goes_wrong_is_a_sentence(command, capsys, error, status, sentence):
    assert command(raising(error)) == status
    assert sentence in capsys.readouterr().err


def test_a_site_that_cannot_be_built_is_not_printed(command, monkeypatch):
    monkeypatch.setattr(site, "main", lambda arguments: 1)
    assert command(raising(AssertionError("it was printed"))) == 1


def test_without_a_browser_the_command_says_what_to_install(command, monkeypatch, capsys):
    make = pdf.make
    monkeypatch.setattr("tools.browser.chromium", lambda: None)
    assert command(lambda: make(pdf.BOOK)) == 1
    assert "install Chromium" in capsys.readouterr().err


def test_a_full_disk_keeps_the_last_print(root, printed, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pdf, "print_book", lambda page, book: (printed, []))
    monkeypatch.setattr(os, "replace", full)
    out = root / "_build" / "book.pdf"
    with pytest.raises(BookError, match="There is no room left on the disk"):
        pdf.make(out, root / "_build" / "html", root)
    assert out.read_bytes() == printed
    assert not [one for one in out.parent.iterdir() if one.name.startswith(".book")]
