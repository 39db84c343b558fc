"""The checks of a chapter: each rule with what it lets through and what it refuses."""

import pytest
from conftest import ALT, PIXEL, claim, code, displayed, text

from tools import check
from tools.book import CLAIM_MIME, read


def found(book, cells, name="01-good") -> list[str]:
    return check.problems(book.chapter(cells, name), book.root)


def with_prose(book, source: str) -> list[str]:
    return found(book, book.good() | {"prose": text(source)})


def test_a_good_chapter_has_no_problem(book):
    assert found(book, book.good()) == []


@pytest.mark.parametrize(
    "source",
    [
        "See {eq}`loss`.",
        "See {doc}`02-unrolling` or {py:func}`f`.",
        "```{note}\nWords.\n```",
        ":::{note}\nWords.\n:::",
        ":::\nWords.\n:::",
        "$$x^2$$ (loss)",
        "Version {{ version }}.",
        "(label)=\n## Title",
        "% a comment",
        "Words.\n\n+++\n\nWords.",
        "![Picture](../chapters){width=50%}",
        "[words]{.red}",
        "A remark[^1].",
        "\\begin{align}x\\end{align}",
    ],
)
def test_markup_of_the_site_alone_is_refused(book, source):
    assert any("renders only on the site" in problem for problem in with_prose(book, source))


def test_a_numbered_equation_of_several_lines_is_refused(book):
    lines = "\\begin{aligned} x &= 1, \\\\ y &= 2 \\end{aligned}"
    assert any("takes no \\tag" in problem for problem in with_prose(book, f"$${lines} \\tag{{1.1}}$$"))
    assert with_prose(book, f"$${lines}$$") == []


@pytest.mark.parametrize("source", ["So\n$$x^2.$$", "$$x^2.$$\nThen", "So $$x^2$$ is it.", "\n\nSo\n$$x^2.$$\n\nThen"])
def test_an_equation_that_is_no_paragraph_is_refused(book, source):
    assert any("blank line on both sides" in problem for problem in with_prose(book, source))


@pytest.mark.parametrize(
    "source",
    [
        "So\n\n$$x^2.$$\n\nThen `$$` it is\n\n$$\ny\n\\tag{1.1}$$\n",
        "Plain `{role}` and `f(x){y}`; all % signs.",
        "```python\n% of = {1}\n(label)=\n+++\n```",
        "$$\\begin{align} \\left[x\\right]{y} \\tag{1.3} \\end{align}$$",
        "A set $\\{a\\}$ and $[^1]$, (label) = x, :: and a | table |.",
        "<details><summary>More</summary>\n\nWords.\n\n</details>",
        "| a | b |\n|---|---|\n| c | d |",
    ],
)
def test_markup_that_renders_everywhere_is_let_through(book, source):
    assert with_prose(book, source) == []


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("The loss falls to 0.31.", "0.31"),
        ("The loss is **0.454** nats", "0.454"),
        ("| chunked | 5.04 |", "5.04"),
        ("It is 3 times faster.", "3 times"),
        ("It is 2.5x faster.", "2.5x"),
        ("It is 3x faster.", "3x"),
        ("A loss of .031 remains.", ".031"),
        ("An error of 1e-3 remains.", "1e-3"),
        ("An accuracy of $97\\,\\%$ is reached.", "7\\,\\%"),
        ("It is 3× faster.", "3×"),
        ("About 97 % are right, or 97%.", "97 %"),
        ("It takes 12 seconds.", "12 seconds"),
        ("It takes 40 ms.", "40 ms"),
        ("A gap of 2 nats", "2 nats"),
        ("A gap of 1,000 bits", "1,000 bits"),
        ("It is $x \\approx 0.31$ here.", "\\approx 0.31"),
        ("It is $$x ≈ -2.5$$ here.", "≈ -2.5"),
        ("In Figure 1.2 it is 0.7.", "0.7"),
        ("A level of 95 % gave 96 %.", "96 %"),
        ("[It is 0.31](../chapters).", "0.31"),
    ],
)
def test_a_result_typed_in_prose_is_refused(book, source, number):
    expected = [f"a result is typed in prose: {number!r}"]
    assert [problem for problem in with_prose(book, source) if problem in expected] == expected


@pytest.mark.parametrize(
    "source",
    [
        "Figure 1.2, Figures 1.2 and 1.3, Equations 1.3, 1.4 and 1.5, Section 2.1, Exercise 1.1: no more.",
        "By (1.3) and (1.12), as in Table 2.1.",
        "Python 3.11, torch 2.13.0, version 1.0 and the release 1.0.4.",
        "Steps of $0.001$ lead from $x = 4$ to $3.888$, and\n\n$$x = 3.79 \\tag{1.2}$$",
        "Set `step_size` to `0.001`.",
        "```python\nx = 0.31\n```",
        "Bands are 95 % intervals, that is 95% or 95 per cent.",
        "Five seeds, 60,000 images, 28 × 28 pixels, 10 classes, 2 weights.",
        "[Paper](https://example.org/1606.03401) and <https://example.org/0.31>, arXiv:1606.03401.",
        "## 1.2 Two dimensions",
        "1. First\n2. Second",
        "Loops are run 3 to 5 seeds long in 1990.",
    ],
)
def test_numbers_that_are_no_results_are_let_through(book, source):
    assert with_prose(book, source) == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("[next](02-next.ipynb)", "a link leads nowhere: '02-next.ipynb'"),
        ("[next](<no where.md>)", "a link leads nowhere"),
        ("![Picture](../images/no.png)", "a link leads nowhere: '../images/no.png'"),
        ('<img src="no.png" alt="Picture">', "a link leads nowhere: 'no.png'"),
        ("[words]\n\n[words]: no.md", "a link leads nowhere: 'no.md'"),
        ("![](../_config.yml)", "an image has no alternative text"),
        ('<img src="../_config.yml">', "an image has no alternative text"),
        (
            "[code](https://github.com/bob/unrolled/issues)",
            "a link to the book must begin with https://github.com/jane/unrolled",
        ),
        ("[code](https://github.com/unrolled-book/unrolled)", "a link to the book must begin with"),
        ("[raw](https://raw.githubusercontent.com/bob/unrolled/main/x)", "a link to the book must begin with"),
        (
            "[it](https://colab.research.google.com/github/jane/unrolled/blob/main/chapters/02-x.ipynb)",
            "the Colab link must be",
        ),
    ],
)
def test_broken_links_are_refused(book, source, said):
    assert any(said in problem for problem in with_prose(book, source))


def test_a_link_left_from_the_default_address_is_refused(book):
    (book.root / "_config.yml").write_text('repository: {url: "https://github.com/jane/lessons"}\n')
    said = "a link to the book must begin with https://github.com/jane/lessons: 'https://github.com/unrolled-book/unrolled'"
    assert said in with_prose(book, "[code](https://github.com/unrolled-book/unrolled)")


@pytest.mark.parametrize(
    "source",
    [
        "[settings](../_config.yml), [this](01-good.ipynb#title), [here](#title), [mail](mailto:a@b.org)",
        "[code](https://github.com/jane/unrolled/issues), [other](https://github.com/bob/other)",
        "[![Badge](https://colab.research.google.com/assets/colab-badge.svg)](https://example.org)",
        "`[not](a-link.md)` and $[a](b)$",
    ],
)
def test_whole_links_are_let_through(book, source):
    assert with_prose(book, source) == []


def output(name: str, text: str) -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def more(source: str, *tags: str, **metadata):
    """A function from a book to its good chapter with one more code cell, the eighth."""
    return lambda book: book.good() | {"more": code(source, *tags, **metadata)}


def instead(**cells):
    """A function from a book to its good chapter with some cells replaced, or left out (None)."""
    return lambda book: {name: cell for name, cell in (book.good() | cells).items() if cell is not None}


def retitled(before: str, after: str):
    return lambda book: book.good() | {"title": text(book.good()["title"].source.replace(before, after))}


def without(name: str, *keys: str):
    """A function from a book to its good chapter with one entry of one cell's metadata left out."""

    def cells(book):
        cells = book.good()
        holder = cells[name].metadata
        for key in keys[:-1]:
            holder = holder[key]
        del holder[keys[-1]]
        return cells

    return cells


SETUP = check.SETUP.format(address="https://github.com/jane/unrolled")
FIGURE, SHOWN = displayed({"image/png": PIXEL}, {"image/png": {"alt": ALT}})
SHORT = displayed({"image/png": PIXEL}, {"image/png": {"alt": "Loss."}})[1]
NO_ALT = displayed({"image/svg+xml": "<svg/>"})[1]
IN_HTML = displayed({"text/html": ["<div>", '<img src="x.png">', "</div>"]})[1]
WIDGET = displayed({"application/vnd.jupyter.widget-view+json": {}})[1]
TWICE = displayed({CLAIM_MIME: claim("01-good-depth")})[1]
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
MYSTNB = {"image": {"alt": ALT}}
HIDDEN = {"jupyter": {"source_hidden": True}, "cellView": "form"}


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (retitled("# 1.", "# 2."), "the title must be '# 1. Title' (is '# 2. A chapter')"),
        (retitled("# 1. A chapter", "# A chapter"), "the title must be '# 1. Title' (is '# A chapter')"),
        (retitled("# 1.", "1."), "the notebook has no title"),
        (instead(title=text("# 1. A chapter")), "the Colab link must be"),
        (instead(parameters=None), "exactly one code cell tagged `parameters` (found 0)"),
        (more("a = 1", "parameters"), "exactly one code cell tagged `parameters` (found 2)"),
        (instead(parameters=code("a = b", "parameters")), "only assignments of literals"),
        (instead(setup=None), "exactly one code cell tagged `setup`"),
        (instead(setup=code(SETUP + "\nprint(1)", "setup")), "exactly one code cell tagged `setup`, as"),
        (instead(setup=code(SETUP.replace("jane", "bob"), "setup")), "exactly one code cell tagged `setup`, as"),
        (more(SETUP, "setup"), "exactly one code cell tagged `setup`"),
        (without("figure", "tags"), "exactly one code cell tagged `hero` (found 0)"),
        (more(FIGURE, "hero", outputs=SHOWN, mystnb=MYSTNB), "exactly one code cell tagged `hero` (found 2)"),
        (instead(figure=code("1", "hero")), "code cell 4 is tagged `hero` and shows no figure"),
        (more("1", "parameter"), "unknown tag 'parameter'"),
        (more("1", "raises-exception"), "unknown tag 'raises-exception'"),
        (without("solution", "cellView"), "code cell 7: a solution needs"),
        (without("solution", "jupyter", "source_hidden"), "code cell 7: a solution needs"),
        (instead(solution=code("1", "solution", **HIDDEN)), "code cell 7: a solution needs"),
        (more("\n".join(["x = 1"] * 26)), "code cell 8 has more than 25 lines"),
        (more("%matplotlib inline"), "code cell 8 is not plain Python (line 1"),
        (more("!pip install x"), "code cell 8 is not plain Python (line 1"),
        (more("get_ipython().run_line_magic('time', '')"), "code cell 8 uses get_ipython"),
        (more("from myst_nb import glue"), "code cell 8 uses myst_nb"),
        (more("import myst_nb.core as m"), "code cell 8 uses myst_nb"),
        (more("1", outputs=[ERROR]), "code cell 8 stores an error: ValueError"),
        (more("1", outputs=[output("stderr", "careful\nhere")]), "code cell 8 stores a warning: 'careful'"),
        (
            more("1", outputs=[output("stdout", "x.py:1: UserWarning: odd")]),
            "code cell 8 stores a warning: 'x.py:1: User",
        ),
        (more("1", outputs=WIDGET), "code cell 8 stores a widget"),
        (more("1", outputs=IN_HTML), "code cell 8 stores a picture inside HTML: show it with figures.show"),
        (more("1", outputs=SHORT, mystnb={"image": {"alt": "Loss."}}), "40 characters or more (has 'Loss.')"),
        (more("1", outputs=NO_ALT, mystnb={"image": {"alt": ""}}), "40 characters or more (has '')"),
        (without("figure", "mystnb"), "code cell 4: the alternative text for the site"),
        (more("1", outputs=SHOWN * 2, mystnb=MYSTNB), "code cell 8 shows 2 figures"),
        (more("1", outputs=TWICE), "the claim '01-good-depth' is made 2 times"),
        (more("1", outputs=[output("stdout", "x" * 3_000_000)]), "the notebook holds 3.0 MB (at most 3)"),
    ],
)
def test_cells_that_break_a_rule_are_refused(book, cells, said):
    problems = found(book, cells(book))
    assert len(problems) == 1
    assert said in problems[0]


def test_cells_at_the_edge_of_a_rule_are_let_through(book):
    added = [code("\n".join(["x = 1"] * 25)), code("", "hide-input"), code(FIGURE, outputs=SHOWN, mystnb=MYSTNB)]
    added.append(
        code(FIGURE, outputs=[*SHOWN, *displayed({"text/markdown": "A caption: 0.31 nats."})[1]], mystnb=MYSTNB)
    )
    added.append(code("more", outputs=displayed({CLAIM_MIME: claim("another")})[1]))
    cells = [*book.good().values(), *added]
    path = book.chapter(cells)
    notebook = read(path)
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code" and c.source), 1):
        cell.execution_count = count
    assert check.problems_in(notebook, path, book.root) == []


@pytest.mark.parametrize("counts", [[1, 2, 3, 4, 5, 6, None], [1, 2, 3, 4, 5, 7, 6], [2, 3, 4, 5, 6, 7, 8]])
def test_cells_not_executed_in_order_are_refused(book, counts):
    path = book.chapter(book.good())
    notebook = read(path)
    for cell, count in zip((c for c in notebook.cells if c.cell_type == "code"), counts, strict=True):
        cell.execution_count = count
    problems = check.problems_in(notebook, path, book.root)
    assert problems == ["the code cells were not all executed once, in order, in a fresh kernel"]


def test_an_unexecuted_chapter_is_ready_to_run(book):
    path = book.chapter(book.good(), executed=False)
    assert check.source_problems(read(path), path, book.root) == []
    assert check.problems(path, book.root) != []


def test_a_claim_made_in_two_chapters_is_refused_in_both(book):
    cells = book.good("02-more") | {"claim": book.good("01-good")["claim"]}
    assert found(book, cells, "02-more") == []
    assert found(book, book.good()) == ["the claim '01-good-depth' is also made in 02-more.ipynb"]
    path = book.root / "chapters" / "02-more.ipynb"
    assert check.problems(path, book.root) == ["the claim '01-good-depth' is also made in 01-good.ipynb"]


def test_a_cell_without_id_is_refused(book):
    path = book.chapter(book.good())
    notebook = read(path)
    for cell in notebook.cells:
        del cell["id"]
    notebook.nbformat_minor = 4
    assert "a cell has no id: save the notebook in format 4.5" in check.problems_in(notebook, path, book.root)


def test_the_command_prints_every_problem(book, monkeypatch, capsys):
    monkeypatch.setattr("tools.book.CHAPTERS", book.root / "chapters")
    assert check.main([]) == 0
    path = book.chapter(book.good() | {"prose": text("It is 0.31, and 12 ms.")})
    problems = check.problems
    monkeypatch.setattr(check, "problems", lambda path: problems(path, book.root))
    assert check.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "01-good.ipynb: a result is typed in prose: '12 ms'",
        "01-good.ipynb: a result is typed in prose: '0.31'",
    ]
    assert check.main([str(path)]) == 1
