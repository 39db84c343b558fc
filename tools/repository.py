"""Point the whole book at another repository: `python -m tools.repository https://github.com/OWNER/NAME`.

The address stands in the site's settings, the badges and links, the chapters' set-up cells, the citation and the
package's description. It is read from `_config.yml` and replaced everywhere at once, or, if anything goes wrong,
nowhere. A set-up cell is no part of a chapter's code, so that no chapter becomes stale. `--check` finds files that name
another address.
"""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

from tools.book import ROOT, finish, parsed, read_text, write_atomically
from tools.check import DEFAULT_ADDRESS, repository

FILES = ("_config.yml", "*.md", "api/*.md", "*.cff", "pyproject.toml", ".github/workflows/*.yml", "chapters/*.ipynb")
MUST_NAME_IT = ("_config.yml", "CITATION.cff", "README.md", "pyproject.toml")

VALID = re.compile(r"https://github\.com/([A-Za-z0-9](?:[A-Za-z0-9-]{0,38}))/([A-Za-z0-9._-]+?)(?:\.git)?/?")
HOSTS = r"(github\.com|colab\.research\.google\.com/github|raw\.githubusercontent\.com)/"
ANY_REPOSITORY = re.compile(HOSTS + r"([\w-]+)/([\w.-]+[\w-])")
ANY_SITE = re.compile(r"([\w-]+)\.github\.io/([\w.-]*[\w-])")


def owner_and_name(address: str) -> tuple[str, str]:
    """The two parts of a repository's address. Raises ValueError if it is none."""
    match = VALID.fullmatch(address)
    if not match or set(match[2]) <= {"."}:
        raise ValueError(f"The address must be like https://github.com/OWNER/NAME (got {address!r}).")
    return match[1], match[2]


def files(root: Path) -> list[Path]:
    return sorted(path for pattern in FILES for path in root.glob(pattern))


def changed(path: Path, change: Callable[[str], str]) -> str:
    """The file's text with `change` made to it; in a notebook to the sources of its cells, not to what they stored."""
    text = read_text(path)
    if path.suffix != ".ipynb":
        return change(text)
    notebook = parsed(text, path)
    before = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        cell.source = change(cell.source)
    return text if [cell.source for cell in notebook.cells] == before else nbformat.writes(notebook) + "\n"


def repoint(address: str, root: Path = ROOT) -> list[Path]:
    """Replace the book's address everywhere by another; the files that changed.

    Raises ValueError if `address` is not that of a repository. If a file cannot be written, all are put back.
    """
    new_owner, new_name = owner_and_name(address)
    old_owner, old_name = (re.escape(part) for part in owner_and_name(repository(root)[0]))

    def change(text: str) -> str:
        text = re.sub(rf"{HOSTS}{old_owner}/{old_name}(?![\w-])", rf"\g<1>/{new_owner}/{new_name}", text)
        return re.sub(rf"{old_owner}\.github\.io/{old_name}(?![\w-])", f"{new_owner}.github.io/{new_name}", text)

    before = {path: read_text(path) for path in files(root)}
    after = {path: changed(path, change) for path in before}
    different = [path for path in before if after[path] != before[path]]
    try:
        for path in different:
            write_atomically(path, after[path])
    except BaseException:
        for path in different:
            if path.read_text(encoding="utf-8") != before[path]:
                write_atomically(path, before[path])
        raise
    return different


def disagreements(root: Path = ROOT) -> Iterator[str]:
    """Every place that names another address for this book than `_config.yml`, or fails to name it."""
    address, _ = repository(root)
    here = owner_and_name(address)
    former = owner_and_name(DEFAULT_ADDRESS)
    for path in files(root):
        name = path.relative_to(root)
        text = read_text(path)
        if path.suffix == ".ipynb":
            text = "\n".join(cell.source for cell in parsed(text, path).cells)
        found = {match.groups()[-2:] for kind in (ANY_REPOSITORY, ANY_SITE) for match in kind.finditer(text)}
        found = {(owner, repo.removesuffix(".git")) for owner, repo in found}
        for other in sorted(one for one in found - {here} if one[1] == here[1] or one == former):
            yield f"{name} names {'/'.join(other)} and not {'/'.join(here)}"
        if name.as_posix() in MUST_NAME_IT and here not in found:
            yield f"{name} does not name {address}"


def main(arguments: list[str], root: Path = ROOT) -> int:
    if arguments == ["--check"]:
        found = list(disagreements(root))
        print("\n".join(found) or f"Every file names {repository(root)[0]}.")
        return 1 if found else 0
    try:
        different = repoint(" ".join(arguments), root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for path in different:
        print(path.relative_to(root))
    print(f"The book's address is {repository(root)[0]}: {len(different)} files changed.")
    return 0


if __name__ == "__main__":
    finish(lambda: main(sys.argv[1:]))
