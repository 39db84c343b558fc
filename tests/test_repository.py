"""Re-pointing: one command changes the address everywhere, nothing else, and back again."""

import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import code, displayed, text
from nbformat import v4

from tools import pages, repository, stamp
from tools.book import ROOT, read
from tools.check import DEFAULT_ADDRESS, SETUP, colab

OLD = "/".join(repository.owner_and_name(DEFAULT_ADDRESS))
SITE = "https://unrolled-book.github.io/unrolled/"
NEW = "https://github.com/jane-doe/recurrent.book"


@pytest.fixture
def checkout(tmp_path):
    """A copy of the book, with one chapter more, whose output and prose name the address as well."""
    root = tmp_path / "checkout"
    ignored = (".git", ".venv", "_build", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", ".ipynb_checkpoints")
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*ignored))
    repository.repoint(DEFAULT_ADDRESS, root)  # also in a fork, whose own address is another
    source, outputs = displayed({"text/plain": "seen"})
    cells = [
        text(f"# 99. A test\n\n[![Open in Colab](../images/colab.svg)]({colab('99-test.ipynb', root)})"),
        code(SETUP.format(address=DEFAULT_ADDRESS), "setup"),
        code("seeds = 3", "parameters"),
        code(source, outputs=outputs),
        text(f"[Its source]({DEFAULT_ADDRESS}/blob/main/README.md), [on the site]({SITE}chapters/99-test.html)."),
    ]
    nbformat.write(v4.new_notebook(cells=cells), root / "chapters/99-test.ipynb")
    pages.main([], root)
    return root


def texts(root: Path) -> dict[str, bytes]:
    """Every file that a person or a tool reads, except the tools and tests, which know the default address."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in ("tools", "tests")
    }


def test_points_everything_elsewhere_and_back(checkout, capsys):
    before = texts(checkout)
    codes = {path: stamp.code_hash(read(path)) for path in (checkout / "chapters").glob("*.ipynb")}
    assert any(OLD.encode() in content for content in before.values())
    assert repository.main(["--check"], checkout) == 0

    assert repository.main([NEW], checkout) == 0
    after = texts(checkout)
    owner, name = OLD.split("/")
    for path, content in after.items():
        assert OLD.encode() not in content, path
        assert f"{owner}.github.io".encode() not in content, path
    assert b"https://jane-doe.github.io/recurrent.book/" in after["_config.yml"]
    chapter = after["chapters/99-test.ipynb"]
    assert chapter.count(b"github.com/jane-doe/recurrent.book") == 2  # the set-up cell and the link in the prose
    assert b"colab.research.google.com/github/jane-doe/recurrent.book/blob/main/chapters/99-test.ipynb" in chapter
    for path, content in after.items():  # nothing else has changed
        restored = content.replace(b"jane-doe.github.io/recurrent.book", f"{owner}.github.io/{name}".encode())
        assert restored.replace(b"jane-doe/recurrent.book", OLD.encode()) == before[path], path
    assert repository.main(["--check"], checkout) == 0
    assert pages.main(["--check"], checkout) == 0
    assert {path: stamp.code_hash(read(path)) for path in codes} == codes
    assert "changed" in capsys.readouterr().out

    again = texts(checkout)
    assert repository.main([NEW + "/"], checkout) == 0
    assert texts(checkout) == again
    assert repository.main([DEFAULT_ADDRESS + ".git"], checkout) == 0
    assert texts(checkout) == before


def test_a_stored_output_is_not_touched(checkout):
    path = checkout / "chapters/99-test.ipynb"
    path.write_text(path.read_text().replace('"seen"', f'"installed {DEFAULT_ADDRESS}"'))
    hashed = stamp.output_hash(read(path))
    repository.repoint(NEW, checkout)
    assert stamp.output_hash(read(path)) == hashed


@pytest.mark.parametrize(
    "address",
    [
        "",
        "jane/book",
        "http://github.com/jane/book",
        "https://example.org/jane/book",
        "https://github.com/jane",
        "https://github.com/jane/book/tree/main",
        "https://github.com/-jane/book",
        "https://github.com/jane/..",
        "https://github.com/jane/bo ok",
        "https://github.com/jane/book https://github.com/joe/book",
    ],
)
def test_a_wrong_address_is_a_sentence_and_changes_nothing(checkout, capsys, address):
    before = texts(checkout)
    assert repository.main([address], checkout) == 1
    assert capsys.readouterr().err == f"The address must be like https://github.com/OWNER/NAME (got {address!r}).\n"
    assert texts(checkout) == before


def test_a_failure_on_the_way_puts_everything_back(checkout, monkeypatch):
    before = texts(checkout)
    written = []

    def fails_at_the_third(path, content):
        if len(written) == 2:
            written.append("failure")
            raise OSError("No space left on device")
        written.append(path)
        path.write_text(content)

    monkeypatch.setattr(repository, "write_atomically", fails_at_the_third)
    with pytest.raises(OSError, match="No space"):
        repository.repoint(NEW, checkout)
    assert texts(checkout) == before


@pytest.mark.parametrize("name", ["README.md", "CITATION.cff", "pyproject.toml", "chapters/99-test.ipynb"])
@pytest.mark.parametrize("other", ["somebody/unrolled", "unrolled-book/unrolled"])
def test_check_finds_a_file_that_names_another_address(checkout, capsys, name, other):
    if other == OLD:  # left over from before
        repository.repoint("https://github.com/jane/unrolled", checkout)
    path = checkout / name
    if name.endswith(".ipynb"):
        path.write_text(
            path.read_text().replace("[Its source](", f"[Another](https://github.com/{other}) [Its source](")
        )
    else:
        path.write_text(f"{path.read_text()}\n# https://github.com/{other}\n")
    capsys.readouterr()
    assert repository.main(["--check"], checkout) == 1
    here = "jane/unrolled" if other == OLD else OLD
    assert f"{name} names {other} and not {here}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["README.md", "CITATION.cff", "pyproject.toml"])
def test_check_finds_a_file_that_does_not_name_the_address(checkout, capsys, name):
    path = checkout / name
    path.write_text(path.read_text().replace(OLD, "some/thing").replace("unrolled-book.github.io", "some.org"))
    assert repository.main(["--check"], checkout) == 1
    assert f"{name} does not name {DEFAULT_ADDRESS}" in capsys.readouterr().out


def test_addresses_of_others_are_let_through(checkout):
    (checkout / "notes.md").write_text("https://github.com/pytorch/pytorch and https://joe.github.io/other/\n")
    assert list(repository.disagreements(checkout)) == []


def test_the_book_agrees_on_its_address():
    assert list(repository.disagreements(ROOT)) == []
