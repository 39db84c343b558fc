"""Docstrings of `shared` as Markdown for the site.

They are plain text with a few habits: paragraphs; names and code in backticks; indented blocks, which are code or formulas;
bullets; and items such as "state: where to begin", which say what an argument means and go on indented.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

TERM = r'(?:\w+|"[^"]*")'
ITEM = re.compile(rf"({TERM}(?:(?:, | and ){TERM})*): (.*)")
ERROR = re.compile(r"\b(?:[A-Z]\w+Error|DatasetUnavailable|ExperimentFailed)\b")


@dataclass
class Argument:
    """An argument of a function or a field of a class; `shown` is how the signature writes it, `kind` its type, if given."""

    name: str
    shown: str
    kind: str = ""
    comment: str = ""


@dataclass
class Block:
    """A part of a docstring: a "text", a "bullet", "code", or an "item" with its terms, and with what stands under it."""

    kind: str
    text: str
    terms: tuple[str, ...] = ()
    under: tuple["Block", ...] = ()


def blocks(doc: str, names: Sequence[str] = ()) -> Iterator[Block]:
    """The parts of a docstring in order. The terms of an item are `names`, None or quoted, or else it goes on indented."""
    lines = doc.splitlines()

    def take(wanted: Callable[[str], object]) -> list[str]:
        end = next((number for number, line in enumerate(lines) if not wanted(line)), len(lines))
        front = lines[:end]
        del lines[:end]
        return front

    while lines:
        line = lines.pop(0)
        known, goes_on = terms(line, names), bool(lines) and lines[0].startswith("    ") and lines[0].strip()
        if line.startswith("    "):
            code = [line, *take(lambda one: one.startswith("    ") or not one.strip())]
            yield Block("code", textwrap.dedent("\n".join(code)).strip())
        elif line.startswith("- "):
            yield Block("bullet", joined([line[2:], *take(lambda one: one.startswith("  "))]))
        elif known or (goes_on and terms(line)):
            under = list(blocks(textwrap.dedent("\n".join(take(lambda one: one.startswith("    "))))))
            text = [ITEM.fullmatch(line)[2], *(under.pop(0).text for _ in under[:1] if under[0].kind == "text")]
            yield Block("item", joined(text), known or terms(line), tuple(under))
        elif line.strip():
            more = take(lambda one: one.strip() and not one.startswith("- "))
            yield Block("text", joined([line, *more]))


def terms(line: str, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """The terms of a line that begins an item; () if it begins none, or if a term is not in quotes, None or of the `names`."""
    item = ITEM.fullmatch(line)
    found = tuple(re.findall(TERM, item[1].replace(" and ", ", "))) if item else ()
    right = names is None or all(term in names or term == "None" or term.startswith('"') for term in found)
    return found if right else ()


def joined(lines: Sequence[str]) -> str:
    return " ".join(" ".join(lines).split())


def first_sentence(doc: str) -> str:
    """The first sentence of the first paragraph."""
    first = next((block.text for block in blocks(doc) if block.kind == "text"), "")
    return re.split(r"(?<=[.?!])(?<!et al\.)\s+(?=[A-ZÀ-Þ`\"])", first)[0]


def escaped(text: str) -> str:
    """Plain text such that Markdown shows it as it is, but for *emphasis*; names of errors become code."""
    text = re.sub(r"(?<![\w(*\[])\*([A-Za-z][^*]*?[A-Za-z])\*(?![\w*])", "\0\\1\0", text)
    text = re.sub(r"([\\*_{}\[\]<>$~&#|`^])", r"\\\1", text).replace("\0", "*")
    return ERROR.sub(r"`\g<0>`", text)


def inline(text: str, link: Callable[[str], str | None]) -> str:
    """A paragraph as Markdown; `link` gives the place of what is meant by a name in backticks, or None."""
    parts = []
    for piece in re.split(r"(``.+?``|`[^`]+`)", text):
        code = piece.strip("`")
        place = link(code.removesuffix("()")) if piece.startswith("`") else None
        parts.append(f"{{py:obj}}`{code} <{place}>`" if place else piece if piece.startswith("`") else escaped(piece))
    return re.sub(r"^(\d+)([.)] )|^(?=[-+%=:(])", r"\1\\\2", "".join(parts))


def is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def markdown(doc: str, link: Callable, arguments: Sequence[Argument] = (), returns: str = "") -> str:
    """A docstring as Markdown, with its arguments and what it returns in one list.

    The list stands where the docstring explains the first of the arguments, or else behind the first paragraph. Its bullets are
    other than those of the docstring's own lists, so that Markdown keeps the two apart.
    """
    names = [argument.name for argument in arguments if argument.name]
    parts = list(blocks(doc, names))
    about = {term: block for block in parts if set(block.terms) & set(names) for term in block.terms}
    place = next((number for number, block in enumerate(parts) if block in about.values()), 1)
    parts = [block for block in parts if block not in about.values()]
    entries = list(argument_lines(arguments, about, link))
    entries += [f"* *returns* {returns}"] if returns else []
    written = [("" if block.kind in ("text", "code") else block.kind, shown(block, link)) for block in parts]
    written[place:place] = [("arguments", "\n".join(entries))] if entries else []
    text = ""
    for (before, _), (kind, one) in zip([("", ""), *written], written, strict=False):
        text += ("\n" if kind == before != "" else "\n\n") + one
    return text.strip()


def argument_lines(arguments: Sequence[Argument], about: dict[str, Block], link: Callable) -> Iterator[str]:
    """A line for each argument of which there is anything to say; arguments that are explained together share one."""
    kinds = {argument.name: argument.kind for argument in arguments}
    done: set[str] = set()
    for argument in arguments:
        block = about.get(argument.name, Block("item", argument.comment, (argument.name,)))
        if argument.name in done or not (argument.kind or block.text):
            continue
        done.update(block.terms)
        same = len({kinds.get(term) for term in block.terms}) == 1
        heads = [f"**{escaped(t)}**" + (f" (`{kinds[t]}`)" if kinds.get(t) and not same else "") for t in block.terms]
        head = ", ".join(heads) + (f" (`{argument.kind}`)" if same and argument.kind else "")
        yield f"* {head}" + (f": {inline(block.text, link)}" if block.text else "") + nested(block, link)


def shown(block: Block, link: Callable) -> str:
    """A block of any kind as Markdown."""
    if block.kind == "code":
        return f"```{'python' if is_python(block.text) else 'text'}\n{block.text}\n```"
    if block.kind == "text":
        return inline(block.text, link)
    head = ", ".join(f"`{term}`" for term in block.terms)
    return f"- {head}{': ' if head else ''}{inline(block.text, link)}" + nested(block, link)


def nested(block: Block, link: Callable) -> str:
    return "".join("\n" + textwrap.indent(shown(one, link), "  ") for one in block.under)
