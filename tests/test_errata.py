"""The errata: each names what shows it, and that is there and says so; the page is complete and fair in its counts."""

import ast
import functools

import pytest
import yaml
from conftest import code as cell
from conftest import displayed, text

from tools import errata_page
from tools.book import CLAIM_MIME, ROOT, chapter_paths, read
from tools.errata_page import DO_NOT_EDIT, KINDS, errata

ENTRIES = errata(ROOT)
FIELDS = {"id", "kind", "title", "source", "says", "right", "section"}


@functools.cache
def chapters() -> dict:
    return {path: read(path) for path in chapter_paths()}


@functools.cache
def names_in(name: str) -> set[str]:
    """The tests that pytest would collect from a file: its functions, and those of its classes."""
    tree = ast.parse((ROOT / "tests" / name).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {node.name for node in functions if node.name.startswith("test_")}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_what_an_entry_names_is_there_and_shows_it(entry):
    assert set(entry) >= FIELDS
    assert set(entry) <= FIELDS | {"known", "claims", "tests"}
    assert entry["kind"] in KINDS
    assert entry.get("claims") or entry.get("tests"), "nothing shows it"
    assert entry["section"] in errata_page.sections(chapters())
    for name in entry.get("tests", []):
        file, _, test = name.partition("::")
        assert (ROOT / "tests" / file).is_file(), name
        assert test in names_in(file), name
    claims = errata_page.known_claims(chapters())
    for name, verdict in entry.get("claims", {}).items():
        assert claims[name][0]["verdict"] == verdict, name
    places = [errata_page.sections(chapters())[entry["section"]][0]]
    assert all(claims[name][1] in places for name in entry.get("claims", {})), "the section is in another chapter"


def test_entries_have_names_and_titles_of_their_own():
    for field in ("id", "title"):
        values = [entry[field] for entry in ENTRIES]
        assert len(set(values)) == len(values)


def test_every_test_of_a_mistake_is_named_by_an_entry():
    named = {name.partition("::")[2] for entry in ENTRIES for name in entry.get("tests", [])}
    assert names_in("test_mistakes.py") <= named


def test_every_contradicted_claim_is_on_the_page():
    page = errata_page.errata_page(chapters(), ROOT)
    results = page.split("## Results that did not come out here")[1]
    contradicted = [
        name for name, (claim, _) in errata_page.known_claims(chapters()).items() if claim["verdict"] == "contradicted"
    ]
    assert len(contradicted) > 30
    assert [name for name in contradicted if f"#claim-{name})" not in results] == []
    assert results.count("#claim-") == len(contradicted)


def small(book, entry: dict) -> tuple[dict, dict]:
    """The chapters of a book that contradicts one claim of a source and one of its own, and an entry in its errata."""
    outputs = []
    for name, source in (("wider", "A paper (1990)"), ("own", "this book")):
        claim = {
            "id": name,
            "text": f"{name} | is better.",
            "source": source,
            "reported": "5.01",
            "verdict": "contradicted",
        }
        outputs += displayed({"text/markdown": "…", CLAIM_MIME: claim | {"measured": {"summary": "−1"}}})[1]
    path = book.chapter([text("# 1. T\n\n## 1.2 Is *wider* better?"), cell("…", outputs=outputs)], "01-x")
    whole = {
        "id": "wide",
        "kind": "code",
        "title": "Wider is not better",
        "source": "A paper (1990)",
        "says": "Wider is better.",
        "right": "It is not.",
        "section": "1.2",
    } | entry
    (book.root / "errata.yaml").write_text(yaml.safe_dump([whole]))
    return {path: read(path)}, whole


def test_an_entry_says_whose_it_is_what_is_right_and_what_shows_it(book):
    found, _ = small(
        book, {"claims": {"wider": "contradicted"}, "tests": ["test_a.py::test_b"], "known": "By hearsay."}
    )
    page = errata_page.errata_page(found, book.root)
    assert page.startswith(DO_NOT_EDIT)
    assert "It found 1 mistake, listed" in page
    assert "## Mistakes in code\n\n### Wider is not better\n\n- **Source:** A paper (1990).\n" in page
    assert (
        "- **How we know it:** By hearsay.\n- **It says:** Wider is better.\n- **What is right:** It is not.\n" in page
    )
    assert "- **Where:** [section 1.2 Is *wider* better?](chapters/01-x.ipynb#12-is-wider-better).\n" in page
    assert (
        "- **Shown by:** the claim [`wider`](chapters/01-x.ipynb#claim-wider) (contradicted); the test `tests/test_a.py::test_b`."
    ) in page
    assert "Comparisons" not in page
    others, own = page.split("### Of others")[1].split("### Of this book")
    where = "[chapter 1, section 1.2](chapters/01-x.ipynb#claim-{})"
    mistake = "(a mistake: [Wider is not better](errata.md#wider-is-not-better))"
    assert f"| wider \\| is better. | A paper (1990): 5.01 | −1 | {where.format('wider')} {mistake} |" in others
    assert f"| own \\| is better. | −1 | {where.format('own')} |" in own


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"section": "9.9"}, "names section 9.9, which no chapter has"),
        ({"claims": {"taller": "reproduced"}}, "names the claim 'taller', which no chapter makes"),
        ({"claims": {"wider": "reproduced"}}, "needs the claim 'wider' to be reproduced, and it is contradicted"),
    ],
)
def test_an_entry_that_names_what_is_not_there_is_a_sentence(book, entry, message):
    found, _ = small(book, entry)
    with pytest.raises(SystemExit, match=rf"errata\.yaml: the entry 'wide' {message}"):
        errata_page.errata_page(found, book.root)


def test_a_book_without_errata_has_a_page(book):
    assert "It found 0 mistakes" in errata_page.errata_page({}, book.root)
