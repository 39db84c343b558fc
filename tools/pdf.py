"""The whole book as one PDF: `python -m tools.pdf` builds the site and prints it with a browser.

The order is that of `_toc.yml`; `tools/pdf.js` arranges the pages and `tools/pdf.css` says how they look. The book is
printed twice, because only a print tells on which page each place lies, as the contents are to say.
"""

import datetime
import io
import logging
import sys
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from playwright.sync_api import Error, Page, Route
from pypdf import PdfReader, PdfWriter
from pypdf.generic import Fit, NameObject, TextStringObject

from tools import site
from tools.book import ROOT, BookError, read, write_atomically
from tools.book import finish as end
from tools.browser import browser

BOOK = ROOT / "_build" / "unrolled.pdf"
HERE = Path(__file__).parent

ADDRESS = "http://unrolled.invalid/"  # of no machine: the browser is given the files of the site, and nothing else
START = """<!DOCTYPE html>
<html lang="en" data-theme="light">
<head><meta charset="utf-8"><title>{title}</title><link rel="stylesheet" href="_static/pygments.css"></head>
<body></body>
</html>"""
# As on the site, but set when the book is complete, without the copies of formulas that screen readers use, and strict.
MATHJAX = """window.MathJax = {
  options: {
    processHtmlClass: "tex2jax_process|mathjax_process|math|output_area",
    enableAssistiveMml: false,
    menuOptions: {settings: {assistiveMml: false}},
  },
  tex: {packages: {"[-]": ["noundefined"]}},
  startup: {typeset: false},
};"""
PRINTS = 4  # the numbers settle after two, unless one of them moves a line over the end of a page


class Wrong(Exception):  # noqa: N818 (it reads as a sentence)
    """The book cannot be printed as it is; the arguments are sentences that say why."""


def pages(entries: list[dict], built: Path) -> Iterator[str]:
    """The pages that a list of the table of contents names, in order, each followed by those below it."""
    for entry in entries:
        if "glob" in entry:
            found = sorted(built.glob(f"{entry['glob']}.html"))
            yield from (path.relative_to(built).with_suffix("").as_posix() for path in found)
        else:
            yield entry["file"]
            yield from pages(entry.get("sections", []), built)


def describe(built: Path, root: Path) -> dict:
    """What `arrange` in tools/pdf.js needs to know of the book: its title page, and its pages in order."""
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    notebooks = (read(path) for path in sorted((root / "chapters").glob("[0-9][0-9]-*.ipynb")))
    dates = [one.metadata["unrolled"]["date"] for one in notebooks if "unrolled" in one.metadata]
    youngest = max(map(datetime.date.fromisoformat, dates), default=None)
    title, _, subtitle = citation["title"].partition(": ")
    address = config["html"]["baseurl"]
    link = f'<a href="{escape(address)}">{escape(address)}</a>'
    return {
        "root": contents["root"],
        "parts": [
            {"caption": part["caption"], "pages": list(pages(part["chapters"], built))} for part in contents["parts"]
        ],
        "address": address,
        "title": title,
        "subtitle": subtitle[:1].upper() + subtitle[1:],
        "author": config["author"],
        "date": youngest,
        "imprint": [
            f"Version {escape(citation['version'])}"
            + (f", with runs up to {youngest.day} {youngest:%B %Y}" if youngest else ""),
            f"Printed from {link}",
            config["html"]["extra_footer"].strip().removeprefix("<p>").removesuffix("</p>"),
        ],
    }


def serve(route: Route, built: Path, start: str) -> None:
    """Answer a request of the browser with a file of the built site, or not at all."""
    parts = urlsplit(route.request.url)
    path = (built / unquote(parts.path).lstrip("/")).resolve()
    if route.request.url == ADDRESS:
        route.fulfill(body=start, content_type="text/html")
    elif route.request.url.startswith(ADDRESS) and path.is_file() and path.is_relative_to(built.resolve()):
        route.fulfill(path=path)
    else:
        route.abort()


def places(reader: PdfReader | PdfWriter) -> dict[str, int]:
    """The page, counted from one, of every place in a PDF to which something in it leads."""
    numbers = {page.indirect_reference.idnum: number for number, page in enumerate(reader.pages, 1)}
    found = reader.named_destinations.items()
    return {unquote(name).removeprefix("/"): numbers[place.raw_get("/Page").idnum] for name, place in found}


def print_book(page: Page, book: dict) -> tuple[bytes, list]:
    """The book as the browser prints it, with its page numbers in the text, and its outline. Raises Wrong."""
    page.emulate_media(media="print", color_scheme="light")
    page.goto(ADDRESS)
    page.add_style_tag(path=HERE / "pdf.css")
    page.add_script_tag(content=MATHJAX)
    page.add_script_tag(url=f"{ADDRESS}_static/mathjax/tex-chtml.js")
    page.add_script_tag(path=HERE / "pdf.js")
    arranged = page.evaluate("arrange", {name: value for name, value in book.items() if name != "date"})
    if arranged["problems"]:
        raise Wrong(*arranged["problems"])
    numbers: dict[str, int] = {}
    for count in range(PRINTS):
        print(f"Printing the book{', now with its page numbers' if count else ''}.", flush=True)
        pdf = page.pdf(prefer_css_page_size=True, print_background=True)
        found = places(PdfReader(io.BytesIO(pdf)))
        if found == numbers:
            return pdf, arranged["outline"]
        numbers = found
        page.evaluate("setNumbers", numbers)
    raise Wrong("The page numbers in the book change with every print.")


def finish(pdf: bytes, book: dict, outline: list) -> bytes:
    """The PDF with its outline, author and language, and the date of the youngest run in place of that of the print.

    So the same book makes the same file, whenever it is printed.
    """
    logging.getLogger("pypdf").setLevel(
        logging.ERROR
    )  # it warns that its copy has more objects, which is its own doing
    writer = PdfWriter(clone_from=io.BytesIO(pdf))
    numbers, exact = places(writer), writer.named_destinations
    parents: list = []  # the last entry of each level above
    for level, title, place in outline:
        del parents[level - 1 :]
        parents.append(
            writer.add_outline_item(
                title=title,
                page_number=numbers[place] - 1,
                parent=parents[-1] if parents else None,
                fit=Fit.xyz(top=exact[f"/{place}"]["/Top"]),
                is_open=level == 1,
            )
        )
    writer.root_object[NameObject("/Lang")] = TextStringObject("en-GB")
    writer.page_mode = "/UseOutlines"
    about = {"/Title": f"{book['title']}: {book['subtitle']}", "/Author": book["author"], "/Creator": "tools/pdf.py"}
    date = f"D:{book['date']:%Y%m%d}" if book["date"] else None
    writer.metadata = about | ({"/CreationDate": date, "/ModDate": date} if date else {})
    written = io.BytesIO()
    writer.write(written)
    return written.getvalue()


def make(out: Path = BOOK, built: Path = site.SITE, root: Path = ROOT) -> int:
    """Print the site that was built at `built` to the file `out`, all at once or not at all; the number of its pages.

    Raises Wrong with what is wrong with the book, and RuntimeError with a sentence if this machine has no browser.
    """
    book = describe(built, root)
    with browser() as opened:
        page = opened.new_page()
        page.route("**/*", lambda route: serve(route, built, START.format(title=escape(book["title"]))))
        pdf, outline = print_book(page, book)
    pdf = finish(pdf, book, outline)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, pdf)
    return len(PdfReader(io.BytesIO(pdf)).pages)


def main() -> int:
    failed = site.main(["build"])
    if failed:
        return failed
    start = time.perf_counter()
    try:
        count = make()
    except KeyboardInterrupt:
        print("\nInterrupted: the PDF is as it was before.", file=sys.stderr)
        return 130
    except Wrong as wrong:
        print(*wrong.args, sep="\n", file=sys.stderr)
        print("The book cannot be printed, for what is shown above; the PDF is as it was before.", file=sys.stderr)
        return 1
    except (RuntimeError, OSError, BookError, Error) as error:
        print(
            f"The book was not printed, and the PDF is as it was before: {str(error).splitlines()[0]}", file=sys.stderr
        )
        return 1
    size = BOOK.stat().st_size / 1e6
    print(f"The book is printed: {count} pages, {size:.0f} MB, in {time.perf_counter() - start:.0f} s.")
    print(f"Open {BOOK}.")
    return 0


if __name__ == "__main__":
    end(main)
