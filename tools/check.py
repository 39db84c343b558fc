"""Check that chapters are portable and complete: `python -m tools.check [files]` prints every problem.

A chapter must read well on the site, in Colab and on GitHub alike, so its prose uses only what all three render; its
stored outputs must come from one clean run from top to bottom; and its prose must leave results to the code.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import nbformat
import yaml

from tools import stamp
from tools.book import ROOT, chapter_paths, claims, code_cells, figures, finish, read, tags, title

DEFAULT_ADDRESS = "https://github.com/unrolled-book/unrolled"
SETUP = """\
# Installs the book's helper package where it is missing, as on a fresh Colab machine.
import importlib.util, os, subprocess, sys

if getattr(importlib.util.find_spec("shared"), "origin", None) is None:
    address = os.environ.get("UNROLLED_INSTALL", "git+{address}")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", address], check=True)"""

TAGS = {"setup", "parameters", "hero", "nbval-check-output", "solution", "hide-cell", "hide-input", "hide-output"}
# On the site a script puts a live figure in the place of the picture of such a cell (see _static/interactive).
TAGS |= {"interactive-descent", "interactive-truncation"}
MAX_BYTES, MAX_LINES, MIN_ALT = 3_000_000, 25, 40

CODE_BLOCK = re.compile(r"^ *(?:```.*?(?:^ *```+ *$|\Z)|~~~.*?(?:^ *~~~+ *$|\Z))", re.M | re.S)
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
MATH = re.compile(r"\$\$.+?\$\$|(?<![\\$])\$(?![ $])(?:[^$\\\n]|\\.|\n(?!\n))+?\$", re.S)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)[^)]*\)|^\[[^\]\n]+\]:\s*(\S+)|(?:src|href)=[\"']([^\"']+)[\"']", re.M)
NOT_READ = re.compile(r"\]\([^)]*\)|https?://\S+|<[^>\n]+>")  # the addresses of links, and tags
NO_ALT = re.compile(r"!\[\s*\][(\[]|<img(?![^>]*\balt=[\"'][^\"']+)")

# What only MyST renders, in text where each span of code is one ` and each formula $ or $$.
MYST = {
    "a role": r"\{[\w:.-]+\}`",
    "a directive": r"^\s*:{3,}",
    "a substitution": r"\{\{",
    "a label": r"^\([\w:.-]+\)=\s*$",
    "a label after an equation": r"\$\$[ \t]*\([\w:.-]+\)[ \t]*$",
    "a comment": r"^\s*%",
    "a block break": r"^\+\+\+",
    "attributes": r"[\])]\{[^}\n]*\}",
    "a footnote": r"\[\^[^\]\n]+\]",
    "an environment outside $$": r"\\begin\{",
}
DIRECTIVE = re.compile(r"[`~ ]*\{.*")  # the first line of such a block of code

# Numbers that look like results: decimals, and numbers with the unit of a result. If one is found that is none, write
# a worked number as $…$, a name or setting as `…`, a count as a word. References and "95 %" are let through.
LET_THROUGH = re.compile(
    r"\b(?:figure|fig\.|equation|section|chapter|table|exercise|python|torch|version|arxiv)s?[ :]*\d[\d.]*"
    r"(?:(?:, | and |, and | to |–)\d+\.\d+)*|\([1-9]\d?\.\d{1,2}\)|^#+ \d[\d.]*|\b95\s?(?:%|per cent)",
    re.I | re.M,
)
DECIMAL = re.compile(r"(?<![\w.])(?:\d*\.\d+(?!\.?\d)|\d+e[-−]?\d+)")
WITH_UNIT = re.compile(r"(?<![\w.])\d[\d.,]*\s*(?:%|×(?!\s*\d)|(?:x|times|seconds?|s|ms|nats?|bits?|per cent)\b)")
# In mathematics, what was not worked out exactly.
MEASURED = re.compile(r"(?:\\approx|≈|\\simeq)\s*-?\d+\.\d+|\d\s*(?:\\,)?\s*\\%")


def repository(root: Path) -> tuple[str, str]:
    """The book's address and branch, from `_config.yml`."""
    settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    return settings["url"].rstrip("/"), settings.get("branch", "main")


def colab(name: str, root: Path) -> str:
    """The address that opens a chapter in Colab."""
    address, branch = repository(root)
    return f"https://colab.research.google.com/github/{'/'.join(address.split('/')[-2:])}/blob/{branch}/chapters/{name}"


def prose(notebook) -> Iterator[str]:
    """The text of each markdown cell, without blocks of code and with ` for each span of code."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield CODE_SPAN.sub("`", CODE_BLOCK.sub("", cell.source))


def numbered(notebook) -> Iterator[tuple[str, nbformat.NotebookNode]]:
    """("code cell 3", cell) for every code cell."""
    return ((f"code cell {number}", cell) for number, cell in enumerate(code_cells(notebook), 1))


# What the author writes


def check_title(notebook, path: Path, root: Path) -> Iterator[str]:
    try:
        found = title(notebook)
    except ValueError as error:
        yield str(error)
    else:
        if not re.match(rf"{int(path.stem[:2])}\. \S", found):
            yield f"the title must be '# {int(path.stem[:2])}. Title' (is '# {found}')"
    if any("id" not in cell for cell in notebook.cells):
        yield "a cell has no id: save the notebook in format 4.5"


def check_markup(notebook, path: Path, root: Path) -> Iterator[str]:
    for text in prose(notebook):
        for formula in MATH.findall(text):
            if "\\\\" in formula and "\\tag" in formula:  # the site sets several lines where no \tag is allowed
                yield f"an equation of several lines takes no \\tag: write an equation for each line, near {formula[:40]!r}"
        text = MATH.sub(lambda formula: "$$" if formula.group().startswith("$$") else "$", text)
        for what, pattern in MYST.items():
            for match in re.finditer(pattern, text, re.M):
                yield f"{what} renders only on the site: {match.group().strip()!r}"
        for match in re.finditer(r"\$\$", text):
            before, after = text[: match.start()].rpartition("\n\n")[2], text[match.end() :].partition("\n\n")[0]
            if (before + after).strip():
                yield f"an equation between $$ needs a blank line on both sides, near {(before + after).strip()[:50]!r}"
    for cell in notebook.cells:
        for block in CODE_BLOCK.findall(cell.source) if cell.cell_type == "markdown" else []:
            if DIRECTIVE.match(block):
                yield f"a directive renders only on the site: {block.splitlines()[0]!r}"


def check_numbers(notebook, path: Path, root: Path) -> Iterator[str]:
    for text in prose(notebook):
        for formula in MATH.findall(text):
            for match in MEASURED.finditer(formula):
                yield f"a result is typed in prose: {match.group()!r}"
        text = LET_THROUGH.sub("", NOT_READ.sub("", MATH.sub("$", text)))
        for match in [*WITH_UNIT.finditer(text), *DECIMAL.finditer(WITH_UNIT.sub("", text))]:
            yield f"a result is typed in prose: {match.group()!r}"


def check_tags(notebook, path: Path, root: Path) -> Iterator[str]:
    for cell in notebook.cells:
        yield from (f"unknown tag {tag!r}" for tag in tags(cell) if tag not in TAGS)
    for where, cell in numbered(notebook):
        if "solution" in tags(cell):
            hidden = cell.metadata.get("jupyter", {}).get("source_hidden") and cell.metadata.get("cellView") == "form"
            if not hidden or "hide-cell" not in tags(cell):
                yield f"{where}: a solution needs the tag hide-cell, jupyter.source_hidden true and cellView 'form'"
    try:
        stamp.parameters(notebook)
    except ValueError as error:
        yield str(error)
    heroes = [cell for cell in code_cells(notebook) if "hero" in tags(cell)]
    if len(heroes) != 1:
        yield f"there must be exactly one code cell tagged `hero` (found {len(heroes)})"
    setups = [cell.source for cell in code_cells(notebook) if "setup" in tags(cell)]
    if setups != [SETUP.format(address=repository(root)[0])]:
        yield "there must be exactly one code cell tagged `setup`, as tools/check.py has it for this repository"


def check_code(notebook, path: Path, root: Path) -> Iterator[str]:
    for where, cell in numbered(notebook):
        if len(cell.source.splitlines()) > MAX_LINES:
            yield f"{where} has more than {MAX_LINES} lines"
        try:
            nodes = list(ast.walk(ast.parse(cell.source)))
        except SyntaxError as error:
            yield f"{where} is not plain Python (line {error.lineno}: {error.msg})"
            continue
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        used |= {one.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for one in node.names}
        used |= {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
        for name in sorted(used & {"get_ipython", "myst_nb", "glue"}):
            yield f"{where} uses {name}, which plain Python does not have"


def check_links(notebook, path: Path, root: Path) -> Iterator[str]:
    address, _ = repository(root)
    owner, name = address.split("/")[-2:]
    opened = []
    for text in prose(notebook):
        yield from (f"an image has no alternative text: {match.group()!r}" for match in NO_ALT.finditer(text))
        for target in (next(filter(None, groups)) for groups in LINK.findall(MATH.sub("$", text))):
            own = re.match(r"https?://(?:www\.)?(?:raw\.)?github(?:usercontent)?\.com/([\w.-]+)/([\w.-]+)", target)
            slug = own.groups() if own else ()
            if "colab.research.google.com/github/" in target:
                opened.append(target)
            elif slug and slug != (owner, name) and (slug[1] == name or "/".join(slug) in DEFAULT_ADDRESS):
                yield f"a link to the book must begin with {address}: {target!r}"
            elif not re.match(r"[\w+.-]+:|#", target) and not (path.parent / unquote(target.split("#")[0])).exists():
                yield f"a link leads nowhere: {target!r}"
    if set(opened) != {colab(path.name, root)}:
        yield f"the Colab link must be {colab(path.name, root)} (found {', '.join(opened) or 'none'})"


# What a run stores


def check_execution(notebook, path: Path, root: Path) -> Iterator[str]:
    counts = [cell.execution_count for cell in code_cells(notebook) if cell.source.strip()]
    if counts != list(range(1, len(counts) + 1)):
        yield "the code cells were not all executed once, in order, in a fresh kernel"
    for where, cell in numbered(notebook):
        for output in cell.outputs:
            text, html = output.get("text", ""), "".join(output.get("data", {}).get("text/html", ""))
            if "<img" in html or "<svg" in html:
                yield f"{where} stores a picture inside HTML: show it with figures.show, which gives it an alternative text"
            if output.output_type == "error":
                yield f"{where} stores an error: {output.ename}"
            elif output.get("name") == "stderr" or "Warning: " in text:
                yield f"{where} stores a warning: {text.strip().partition(chr(10))[0]!r}"
            elif any("widget" in kind for kind in output.get("data", {})):
                yield f"{where} stores a widget, which shows nothing outside a running notebook"


def check_figures(notebook, path: Path, root: Path) -> Iterator[str]:
    names = {id(cell): where for where, cell in numbered(notebook)}
    shown = figures(notebook)
    for cell, output in shown:
        alt = next((values.get("alt") for values in output.metadata.values() if isinstance(values, dict)), None) or ""
        if len(alt) < MIN_ALT:
            yield f"{names[id(cell)]}: a figure needs an alternative text of {MIN_ALT} characters or more (has {alt!r})"
        if cell.metadata.get("mystnb", {}).get("image", {}).get("alt") != alt:
            yield f"{names[id(cell)]}: the alternative text for the site is not the figure's; run the chapter again"
    for where, number in Counter(names[id(cell)] for cell, _ in shown).items():
        if number > 1:
            yield f"{where} shows {number} figures; show one in a cell"
    for where, cell in numbered(notebook):
        if "hero" in tags(cell) and not any(cell is owner for owner, _ in shown):
            yield f"{where} is tagged `hero` and shows no figure"


def check_claims(notebook, path: Path, root: Path) -> Iterator[str]:
    ids = Counter(claim["id"] for claim in claims(notebook))
    yield from (f"the claim {name!r} is made {number} times" for name, number in ids.items() if number > 1)
    for other in sorted((root / "chapters").glob("[0-9][0-9]-*.ipynb")):
        if other.name != path.name:
            for name in sorted(ids.keys() & {claim["id"] for claim in claims(read(other))}):
                yield f"the claim {name!r} is also made in {other.name}"


def check_size(notebook, path: Path, root: Path) -> Iterator[str]:
    size = len(nbformat.writes(notebook).encode())
    if size > MAX_BYTES:
        yield f"the notebook holds {size / 1e6:.1f} MB (at most {MAX_BYTES / 1e6:.0f}); make its figures smaller"


SOURCE_CHECKS = (check_title, check_markup, check_numbers, check_tags, check_code, check_links)
OUTPUT_CHECKS = (check_execution, check_figures, check_claims, check_size)


def source_problems(notebook, path: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the text and the code of the notebook that is, or will be, at `path`."""
    return [problem for check in SOURCE_CHECKS for problem in check(notebook, path, root)]


def problems_in(notebook, path: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the notebook that is, or will be, at `path`: its text, its code and its stored outputs."""
    outputs = [problem for check in OUTPUT_CHECKS for problem in check(notebook, path, root)]
    return source_problems(notebook, path, root) + outputs


def problems(path: Path, root: Path = ROOT) -> list[str]:
    """Everything that is wrong with a stored chapter, one sentence each."""
    return problems_in(read(path), path, root)


def main(arguments: list[str]) -> int:
    found = 0
    for path in [Path(one).resolve() for one in arguments] or chapter_paths():
        for problem in problems(path):
            print(f"{path.name}: {problem}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    finish(lambda: main(sys.argv[1:]))
