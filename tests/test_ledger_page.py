"""The pages of the ledger and of the runs: rows that lead to what was measured, places to be led to, and the filter."""

import shutil

import nbformat
import pytest
from conftest import ALT, PIXEL, Book, code, displayed, text

from tools import pages, site
from tools.book import CLAIM_MIME, ROOT, read
from tools.browser import browser, chromium
from tools.places import places
from tools.sources import group, grouped
from tools.status_page import status_page
from tools.wording import verdict_counts

pytestmark = [
    pytest.mark.xdist_group("ledger"),  # one worker, so that the small site is built once
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # inside Sphinx's extensions
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def record(name: str, sentence: str, verdict: str, source: str = "A paper (1990), table 1") -> dict:
    return {
        "id": name,
        "text": sentence,
        "source": source,
        "reported": "5.01 nats",
        "measured": {"summary": "0.031 nats (95 % interval 0.012 to 0.050, 5 seeds, MNIST)"},
        "condition": "> 0",
        "verdict": verdict,
    }


def entered(*made: dict):
    """A cell that shows a figure, and then states claims as chapters do."""
    outputs = displayed({"image/png": PIXEL, "text/plain": ALT}, {"image/png": {"alt": ALT, "width": 720}})[1]
    for one in made:
        words = f"> **Claim.** {one['text']}  \n> *{one['source']}* reports: {one['reported']}."
        outputs += displayed({"text/markdown": words, "text/plain": words, CLAIM_MIME: one})[1]
    outputs.insert(1, {"output_type": "stream", "name": "stdout", "text": "agree to 3e-16\n"})
    return code("claims()", "hide-input", outputs=outputs, mystnb={"image": {"alt": ALT}})


STAMP = {
    "seconds": 600.0,
    "device": "x86_64 CPU",
    "versions": {"torch": "2.13.0"},
    "data": ["MNIST"],
    "date": "2026-01-02",
}


ERRATA = """
- id: depth
  kind: text
  title: Depth | and width
  source: A paper (1990)
  known: At second hand.
  says: Width helps.
  right: Depth does, $n > 1$.
  section: "1.2"
  claims: {width: contradicted}
  tests: [test_pages.py::test_a_name_that_is_so_long_that_no_telephone_has_room_for_all_of_it_on_one_line]
"""


def two_chapters(root) -> Book:
    """A book of two chapters with four claims, two of them from one cell, and its generated pages."""
    book = Book(root)
    for name in ("_config.yml", "images", "_static"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, book.root / name)
    for path in book.root.glob("images/[0-9]*.png"):
        path.unlink()
    first = [
        text("# 1. The first\n\nDoes depth help?\n\n## 1.1 Before"),
        code("1 + 1"),
        text("## 1.2 Depth and width"),
        entered(
            record("depth", "Depth **helps** for $n > 1$.", "reproduced"),
            record("width", "Width helps.", "contradicted", "this book"),
        ),
    ]
    second = [
        text("# 2. The second\n\nAnd time?\n\n## 2.1 Time\n\n### The race"),
        entered(record("faster", "It is faster.", "undecided"), record("slower", "It is slower.", "contradicted")),
    ]
    for cells, name in ((first, "01-first"), (second, "02-second")):
        path = book.chapter(cells, name)
        notebook = read(path)
        notebook.metadata["language_info"] = {"name": "python"}
        notebook.metadata["unrolled"] = dict(STAMP)
        nbformat.write(notebook, path)
    for name in ("intro.md", "README.md"):
        (book.root / name).write_text(f"# A book\n\n{pages.BEGIN}\n{pages.END}\n")
    (book.root / "errata.yaml").write_text(ERRATA)
    (book.root / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nparts:\n"
        "  - {caption: I, chapters: [{file: chapters/01-first}, {file: chapters/02-second}]}\n"
        "  - {caption: II, chapters: [{file: ledger}, {file: errata}, {file: status}]}\n"
    )
    assert pages.main([], book.root) == 0
    return book


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The small book's folder, with its site in `site`."""
    book = two_chapters(tmp_path_factory.mktemp("ledger") / "book")
    found = site.build(book.root / "site", book.root)
    # The chapters are not whole ones: they lack the button of a real one.
    assert [one for one in found if "no button" not in one] == []
    return book.root


# The page as it is written


def ledger_of(root) -> str:
    return (root / "ledger.md").read_text()


def test_every_claim_has_a_row_that_leads_to_its_measurement(tmp_path):
    ledger = ledger_of(two_chapters(tmp_path / "book").root)
    assert "**4 claims: 1 reproduced, 2 contradicted, 1 undecided**" in ledger
    assert (
        "| Depth **helps** for $n > 1$. | A paper (1990), table 1 | 5.01 nats "
        "| 0.031 nats (95 % interval 0.012 to 0.050, 5 seeds, MNIST); asked for: > 0 "
        '| <span data-verdict="reproduced" data-source="a-paper-1990"></span>✓&nbsp;reproduced, '
        "[section 1.2](chapters/01-first.ipynb#claim-depth) |"
    ) in ledger
    assert "[section 2.1](chapters/02-second.ipynb#claim-faster) |" in ledger  # under a heading without a number


def test_claims_are_counted_by_source(tmp_path):
    ledger = ledger_of(two_chapters(tmp_path / "book").root)
    summary = ledger.split("## By source")[1]
    paper, own = (line for line in summary.splitlines() if line.startswith("| <span"))
    assert "[A paper (1990)](ledger.md#source=a-paper-1990) | 3 |" in paper
    assert "[1](ledger.md#source=a-paper-1990&verdict=contradicted)" in paper
    assert own.startswith('| <span id="source=this-book"></span>[This book](ledger.md#source=this-book) | 1 |')
    assert own.count("0 |") == 2


RECORD = """claim,verdict_then,then,verdict_now,now
depth,reproduced,2 points,reproduced,2 points
width,contradicted,"1 point, or less",reproduced,7 points
faster,undecided,1.1 times,reproduced,1.2 times
forgotten,undecided,1,reproduced,2
"""


def test_what_another_processor_changes_is_shown(tmp_path):
    book = two_chapters(tmp_path / "book")
    assert "nother processor" not in ledger_of(book.root)
    record = book.root / "benchmarks" / "results" / "two_processors.csv"
    record.parent.mkdir(parents=True)
    record.write_text(RECORD)
    assert pages.main([], book.root) == 0
    before, part = ledger_of(book.root).split("## On another processor")
    assert "[another processor](ledger.md#on-another-processor)" in before
    assert "2 chapters ran on two. Of 3 claims, 1 came out alike" in part  # the claim that no chapter makes is left out
    assert "and 2 with another verdict, 1 of these with the opposite one." in part
    rows = [line for line in part.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| Width helps. ([section 1.2](chapters/01-first.ipynb#claim-width)) "
        "| ✗&nbsp;contradicted, 1 point, or less | ✓&nbsp;reproduced, 7 points |",
        "| It is faster. ([section 2.1](chapters/02-second.ipynb#claim-faster)) "
        "| ?&nbsp;undecided, 1.1 times | ✓&nbsp;reproduced, 1.2 times |",
    ]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("R2RT, Written memories (2016)", "R2RT, Written memories (2016)"),
        ("R2RT, Recurrent Neural Networks in Tensorflow III (2016), in a reader's repetition", None),
        ("R2RT, as one reader ran it again", "R2RT, Binary stochastic neurons (2016)"),
        ("Polyak 1964; equations 1.6 and 1.7", "Polyak 1964"),
        ("Wikipedia, Backpropagation (inertia)", "Wikipedia, Backpropagation"),
        ("Jaderberg et al. (2016), from memory, not checked", "Papers quoted from memory, not checked"),
        ("section 2.5, a common misreading of the bound", "Common belief and practice"),
        ("this book, against the customary worry about discrete codes", "This book"),
        ("equations 1.10 and 1.13", "This book"),
        ("the opposite was suspected by the same re-implementer", "This book"),  # not a claim of theirs
        ("Hernandez' factorial study", "Hernandez' factorial study"),
    ],
)
def test_sources_are_gathered_by_name(source, name):
    assert group(source).name == (name or "R2RT, Recurrent Neural Networks in Tensorflow III (2016)")


def test_no_two_groups_of_sources_share_an_address_and_no_claim_is_lost():
    entries = pages.all_claims({path: read(path) for path in (ROOT / "chapters").glob("*.ipynb")})
    found = grouped(entries)
    assert len({one.slug for one in found}) == len(found)
    assert sum(map(len, found.values())) == len(entries) == sum(verdict_counts(entries).values())


def test_places_of_cells():
    cells = [
        code("0"),
        text("# 1. T\n\n## 1.1 A *b*"),
        code("1"),
        text("### Sub"),
        code("2"),
        text("## Exercises"),
        code("3"),
    ]
    found = [tuple(place) for place, _ in places(nbformat.v4.new_notebook(cells=cells))]
    assert found == [(1, "the top", None), (2, "1.1 A *b*", "1.1"), (3, "Sub", "1.1"), (4, "Exercises", None)]


# The status page


def chapter(book, slowest=None, **stamp):
    name = f"{len(list((book.root / 'chapters').glob('*.ipynb'))) + 1:02}-x"
    path = book.chapter([text(f"# {int(name[:2])}. X | y"), code("1")], name)
    notebook = read(path)
    notebook.metadata["unrolled"] = STAMP | stamp | ({"slowest": slowest} if slowest else {})
    return path, notebook


def test_the_status_page_has_the_total_and_the_slowest_cells_of_the_book(book):
    many = [{"cell": n, "heading": "1.2 Depth | width", "seconds": 100.0 - n} for n in range(1, 6)]
    chapters = dict(
        [
            chapter(book, many),
            chapter(book, [{"cell": 7, "heading": "2.1 Time", "seconds": 97.5}], seconds=5400.0),
            chapter(book),
        ]
    )
    status = status_page(chapters)
    assert "The published runs of 3 chapters took **1 h 50 min** in all." in status
    assert (
        "| [1. X \\| y](chapters/01-x.ipynb) | 10&nbsp;min | x86_64 CPU | torch 2.13.0 | MNIST | 2026-01-02 |" in status
    )
    rows = [line for line in status.split("## The slowest cells")[1].splitlines() if "code cell" in line]
    assert (
        rows[0]
        == "| 99&nbsp;s | 16&nbsp;% | [code cell 1](chapters/01-x.ipynb#cell-1) | 1.2 Depth \\| width | 1. X \\| y |"
    )
    assert [row.split("#cell-")[1][0] for row in rows] == ["1", "2", "7", "3", "4", "5"]
    assert "Times of cells were not recorded by the run of chapter 3." in status


def test_the_status_page_of_a_chapter_that_has_not_run(book):
    path = book.chapter([text("# 1. X")], "01-x")
    status = status_page({path: read(path)})
    assert "| [1. X](chapters/01-x.ipynb) | not yet run |" in status
    assert "slowest" not in status
    assert "No chapter has run yet." in status_page({})


# The site


def test_a_claim_has_its_place_on_the_very_block_that_states_it(built):
    for name, claims in (("01-first", ("depth", "width")), ("02-second", ("faster", "slower"))):
        page = (built / "site" / "chapters" / f"{name}.html").read_text()
        blocks = [part.split("</blockquote>")[0] for part in page.split("<blockquote ")[1:]]
        assert [block.split('"')[1] for block in blocks] == [f"claim-{one}" for one in claims]
        assert all(one in block.lower() for one, block in zip(claims, blocks, strict=True))
    page = (built / "site" / "chapters" / "01-first.html").read_text()
    assert [page.count(f'id="cell-{n}"') for n in range(4)] == [0, 1, 1, 0]


def test_a_link_to_a_claim_that_is_not_there_fails_the_build(built, tmp_path, capfd):
    root = tmp_path / "book"
    shutil.copytree(built, root, ignore=shutil.ignore_patterns("site"))
    path = root / "ledger.md"
    path.write_text(path.read_text().replace("#claim-depth", "#claim-breadth"))
    assert site.build(root / "site", root) == ["Sphinx found what is shown above"]
    assert "local id not found in doc 'chapters/01-first': 'claim-breadth'" in capfd.readouterr().err


@pytest.fixture(scope="module")
def opened():
    if chromium() is None:
        pytest.skip("no Chromium or Chrome on this machine")
    with browser() as one:
        yield one


@pytest.fixture
def visit(built, opened):
    """Open the ledger from its file, with something behind the #."""
    with opened.new_context(viewport={"width": 1280, "height": 500}) as context:

        def go(asked: str = "", **options):
            page = context.new_page()
            page.goto((built / "site" / "ledger.html").as_uri() + asked)
            return page

        yield go


def shown(page) -> list[str]:
    return [
        one.inner_text().split(".")[0]
        for one in page.locator("tr:has([data-verdict]) td:first-child").all()
        if one.is_visible()
    ]


def said(page) -> str:
    return page.get_by_role("status").inner_text()


IN_VIEW = """() => {
  const { top, bottom } = document.querySelector("[role=search].ledger-filter").getBoundingClientRect();
  return top >= 0 && bottom <= innerHeight;
}"""


def test_without_being_asked_the_ledger_shows_everything(visit):
    page = visit()
    assert len(shown(page)) == 4
    assert said(page) == "4 of 4 claims shown"


def test_what_is_chosen_is_shown_announced_and_kept_in_the_address(visit):
    page = visit()
    assert page.get_by_role("status").get_attribute("aria-live") == "polite"
    page.get_by_label("verdict").select_option("contradicted")
    assert shown(page) == ["Width helps", "It is slower"]
    assert said(page) == "2 of 4 claims shown"
    assert page.url.endswith("ledger.html#verdict=contradicted")
    page.get_by_label("chapter").select_option("2. The second")
    assert shown(page) == ["It is slower"]
    assert page.url.endswith("#chapter=2&verdict=contradicted")
    assert not page.get_by_role("heading", name="1. The first").is_visible()
    assert page.get_by_role("heading", name="2. The second").is_visible()
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelector('[role=status]').textContent === '4 of 4 claims shown'")
    assert page.url.endswith("ledger.html")
    assert page.get_by_role("heading", name="1. The first").is_visible()


def test_sources_and_words_are_asked_for_too(visit):
    page = visit()
    page.get_by_role("combobox", name="source").select_option("A paper (1990)")
    assert len(shown(page)) == 3
    page.get_by_label("words").fill("faster SEEDS")
    assert shown(page) == ["It is faster"]
    assert page.url.endswith("#source=a-paper-1990&words=faster+SEEDS")
    page.get_by_label("words").fill("no such word")
    assert shown(page) == []
    assert said(page) == "0 of 4 claims shown"


def test_a_view_can_be_linked_and_one_that_asks_for_nothing_known_shows_all(visit):
    page = visit("#chapter=1&verdict=contradicted")
    page.wait_for_function(IN_VIEW)  # pages scroll smoothly
    assert shown(page) == ["Width helps"]
    assert page.get_by_label("chapter").input_value() == "1"
    page.get_by_role("link", name="A paper (1990)").click()  # in the summary, on the page itself
    page.wait_for_function("document.querySelector('[role=status]').textContent === '3 of 4 claims shown'")
    page.wait_for_function(IN_VIEW)  # pages scroll smoothly
    page.go_back()
    page.wait_for_function("document.querySelector('[role=status]').textContent === '1 of 4 claims shown'")
    assert len(shown(visit("#chapter=99"))) == 4
    assert len(shown(visit("#by-source"))) == 4


def test_the_filter_is_used_by_keyboard_alone(visit):
    page = visit()
    page.get_by_label("chapter").focus()
    page.keyboard.press("Tab")
    page.keyboard.type("u")  # the first choice that begins so
    assert shown(page) == ["It is faster"]
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName"))
    assert reached == ["SELECT", "INPUT", "BUTTON"]
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('[role=status]').textContent === '4 of 4 claims shown'")


def test_a_row_leads_to_the_claim_which_is_marked(visit):
    page = visit("#verdict=undecided")
    page.get_by_role("link", name="section 2.1").click()
    page.wait_for_url("**/chapters/02-second.html#claim-faster")
    block = page.locator("#claim-faster")
    assert "It is faster." in block.inner_text()
    assert block.evaluate("one => one.matches(':target') && getComputedStyle(one).outlineStyle") == "solid"
    assert page.locator("#claim-slower").evaluate("one => getComputedStyle(one).outlineStyle") == "none"


def test_without_javascript_the_page_is_the_whole_ledger(built, opened):
    with opened.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto((built / "site" / "ledger.html").as_uri() + "#chapter=2&verdict=contradicted")
        assert len(shown(page)) == 4
        assert page.get_by_role("search", name="The ledger").count() == 0


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_no_page_of_these_overflows(built, opened, width):
    with opened.new_context(viewport={"width": width, "height": 800}) as context:
        for name in ("ledger", "errata", "status", "intro"):
            page = context.new_page()
            page.goto((built / "site" / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
