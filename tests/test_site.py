"""The site: the real one builds strictly and passes its checks, and each check finds what it is for."""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import ALT, CLAIM_MIME, code, displayed, text

from tools import site
from tools.book import ROOT, chapter_paths, title
from tools.check import SETUP, colab

pytestmark = [
    pytest.mark.xdist_group("site"),  # one worker, so that the site is built once
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # inside Sphinx's extensions
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # one of them looks at every object there is, torch's too
]


def test_a_group_of_tests_stays_on_one_worker(request):
    if getattr(request.config.option, "loadgroup", False):  # as `make test` asks
        assert request.node.nodeid.endswith("@site")


def test_the_site_builds_without_a_warning_and_passes_its_checks(built):
    assert (built / "index.html").exists()
    assert site.problems(built) == []


def test_the_pages_of_the_book_are_all_there(built):
    names = {path.relative_to(built).with_suffix("").as_posix() for path in built.rglob("*.html")}
    assert {"intro", "ledger", "status", "notation", "search"} <= names
    assert {f"chapters/{path.stem}" for path in chapter_paths()} == {one for one in names if one.startswith("chapters")}


def test_mathematics_and_search_are_on_the_site_itself(built):
    page = (built / "notation.html").read_text()
    script = re.search(r'<script[^>]* src="(_static/mathjax/[^"?]+)', page)[1]
    assert (built / script).is_file()
    assert "eta" in page
    assert "momentum" in (built / "searchindex.js").read_text()


def test_light_and_dark(built):
    page = (built / "intro.html").read_text()
    assert "theme-switch" in page
    assert re.search(r'data-default-mode="(auto)?"', page)  # as the reader's system is set
    style = (built / "_static/custom.css").read_text()
    assert 'html[data-theme="dark"]' in style
    assert "_static/custom.css" in page


def test_the_footer_names_the_licences_and_the_navigation_the_parts(built):
    page = (built / "intro.html").read_text()
    assert "CC BY 4.0" in page
    assert "MIT licence" in page
    assert "The book about itself" in page


# A site in a temporary folder, of one chapter and the pages that a build makes of it


@pytest.fixture
def small(book):
    """A book of one chapter with the real settings, ready to be built."""
    for name in ("_config.yml", "notation.md", "images", "_static"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, book.root / name)
    claim = {"id": "depth", "text": "Depth **helps** for $n > 1$."}
    source, outputs = displayed({"text/markdown": claim["text"], CLAIM_MIME: claim})
    address = colab("01-good.ipynb", book.root)
    cells = [
        text(f"# 1. A chapter\n\nDoes depth help?\n\n[![Open in Colab](../images/colab.svg)]({address})"),
        code(SETUP.format(address="https://github.com/unrolled-book/unrolled"), "setup"),
        code(source, outputs=outputs),
        text("## Then\n\n[Up](#then) and [the ledger](../ledger.md)."),
    ]
    path = book.chapter(cells)
    notebook = site.read(path)
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    (book.root / "intro.md").write_text("# A book\n\n[First](chapters/01-good.ipynb)\n")
    (book.root / "ledger.md").write_text(f"# The ledger\n\n{claim['text']}\n")
    (book.root / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nparts:\n"
        "  - {caption: I, chapters: [{file: chapters/01-good}]}\n"
        "  - {caption: II, chapters: [{file: ledger}, {file: notation}]}\n"
    )
    return book


def test_a_warning_keeps_the_last_good_site_and_its_repair_replaces_it(small, capfd):
    out = small.root / "_build" / "html"
    out.mkdir(parents=True)
    (out / "index.html").write_text("the last good site")
    (small.root / "intro.md").write_text("# A book\n\n[Nowhere](missing.md)\n")
    assert site.build(out, small.root) == ["Sphinx found what is shown above"]
    assert "missing.md" in capfd.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["html", "running"]  # the second holds the lock
    assert (out / "index.html").read_text() == "the last good site"

    (small.root / "intro.md").write_text("# A book\n\n[First](chapters/01-good.ipynb)\n")
    assert site.build(out, small.root) == []
    assert "%] chapters/01-good" in capfd.readouterr().out
    assert (out / "chapters/01-good.html").exists()
    assert sorted(path.name for path in out.parent.iterdir()) == ["html", "running"]  # the second holds the lock

    # what the checks find on this site when a chapter was spoilt
    page = out / "chapters/01-good.html"
    good = page.read_text()
    page.write_text(good.replace("Depth <strong>", "Width <strong>"))
    assert site.problems(out, small.root) == ["chapters/01-good: the claim 'depth' is missing from its page"]
    right = colab("01-good.ipynb", small.root)
    page.write_text(good.replace(right, right.replace("/blob/", "-other/blob/")))
    assert site.problems(out, small.root) == [f"chapters/01-good: no button opens {right}"]
    page.write_text(good)
    index = out / "searchindex.js"
    index.write_text(index.read_text().replace("1. A chapter", "1. Another"))
    assert site.problems(out, small.root) == ["chapters/01-good: the search does not know the title '1. A chapter'"]
    page.unlink()
    assert "chapters/01-good is not on the site: add it to _toc.yml" in site.problems(out, small.root)


def pages_of(folder: Path, **files: str):
    for name, body in files.items():
        (folder / f"{name}.html").write_text(body)
    return {Path(path.name): site.Page(path.read_text()) for path in folder.glob("*.html")}


@pytest.mark.parametrize(
    "body",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<script src="//cdn.example.org/a.js"></script>',
        '<script>const A = "https://cdn.example.org/a.js?v=1"</script>',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<link rel="preload" as="font" href="https://example.org/a.woff2">',
        '<img alt="a" src="http://example.org/a.png">',
        '<img alt="a" srcset="https://example.org/a.png 2x">',
        '<iframe src="https://example.org/"></iframe>',
        '<p style="background: url(https://example.org/a.png)"></p>',
        "<style>@import '//example.org/a.css';</style>",
        "<style>b {src: url('https://example.org/a.woff')}</style>",
    ],
)
def test_what_is_loaded_from_another_machine_is_found(tmp_path, body):
    (one,) = site.check_outside(tmp_path, pages_of(tmp_path, a=body))
    assert re.match(r"a\.html loads .*example\.org.* from another machine", one)


def test_a_style_sheet_that_loads_from_another_machine_is_found(tmp_path):
    (tmp_path / "a.css").write_text("@font-face {src: url(//example.org/a.woff2)}")
    assert list(site.check_outside(tmp_path, {})) == ["a.css loads //example.org/a.woff2 from another machine"]


def test_links_that_a_reader_may_follow_are_let_through(tmp_path):
    body = '<link rel="canonical" href="https://example.org/"><a href="https://example.org/x.js">x</a>'
    pages = pages_of(tmp_path, a=body)
    assert list(site.check_outside(tmp_path, pages)) == []
    assert list(site.check_links(tmp_path, pages)) == []


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("b.html#there", None),
        ("#here", None),
        ("b.html?x=1", None),
        ("c.html", "leads nowhere"),
        ("../../outside.html", "leads nowhere"),
        ("b.html#gone", "no such place"),
        ("#gone", "no such place"),
    ],
)
def test_links_inside_the_site(tmp_path, link, problem):
    pages = pages_of(tmp_path, a=f'<p id="here"><a href="{link}">x</a></p>', b='<h1 id="there">b</h1>')
    found = list(site.check_links(tmp_path, pages))
    assert (problem in found[0] and link in found[0]) if problem else found == []


def test_a_missing_image_is_a_link_that_leads_nowhere(tmp_path):
    pages = pages_of(tmp_path, a=f'<img src="a.png" alt="{ALT}">')
    assert list(site.check_links(tmp_path, pages)) == ["a.html: the link a.png leads nowhere"]


@pytest.mark.parametrize("image", ['<img src="a.png">', '<img src="a.png" alt=" ">'])
def test_an_image_without_a_text_is_found(tmp_path, image):
    assert list(site.check_images(tmp_path, pages_of(tmp_path, a=image))) == [
        "a.html: the image a.png has no alternative text"
    ]


def test_a_formula_that_was_not_understood_is_found(tmp_path):
    pages = pages_of(tmp_path, a="<p>Take $x</p>", b="<p><code>$HOME</code></p><pre>$ <span>ls $x</span></pre>")
    assert list(site.check_mathematics(pages)) == ["a.html: a formula is shown as it is typed: 'Take $x'"]


def test_an_ornament_needs_no_text(tmp_path):
    assert list(site.check_images(tmp_path, pages_of(tmp_path, a='<img class="logo__image" src="a" alt="">'))) == []


# The command


def command(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-m", "tools.site", *arguments], cwd=root, env=environment, capture_output=True, text=True
    )


def test_check_and_serve_before_a_build_are_a_sentence(book):
    book.add_tools()
    for name in ("check", "serve"):
        result = command(book.root, name)
        assert result.returncode == 1
        assert result.stderr == "The site has not been built yet: run `make book` first.\n"


def test_check_counts_the_problems(book):
    book.add_tools()
    out = book.root / "_build" / "html"
    out.mkdir(parents=True)
    (out / "index.html").write_text('<a href="gone.html">x</a>')
    (out / "searchindex.js").write_text('Search.setIndex({"titles": []})')
    (book.root / "_toc.yml").write_text("parts: []")
    result = command(book.root, "check")
    assert result.returncode == 1
    assert result.stderr == "index.html: the link gone.html leads nowhere\nThe site has 1 problem, shown above.\n"


def test_serve_shows_the_site_and_stops_when_interrupted(book):
    book.add_tools()
    out = book.root / "_build" / "html"
    out.mkdir(parents=True)
    (out / "index.html").write_text("the book")
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.site", "serve"],
        cwd=book.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.search(r"http://\S+", process.stdout.readline())[0]
        assert urllib.request.urlopen(address, timeout=10).read() == b"the book"
        process.send_signal(2)
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()


def test_titles_of_chapters_are_in_the_search(built):
    text_of_index = (built / "searchindex.js").read_text()
    for path in chapter_paths():
        assert title(site.read(path)) in text_of_index
