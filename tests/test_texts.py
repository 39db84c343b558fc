"""The README, the front page, the citation and the guide for contributors: their examples run, and they agree with each other."""

import datetime
import re

import joblib
import pytest
import torch
import yaml

from shared import ledger, recurrent
from tools.book import ROOT, chapter_paths


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def examples(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", read(name), re.M | re.S)


@pytest.fixture
def threads():
    """Experiments of `replicate` run in this process, which starts sooner than others do."""
    with joblib.parallel_config(backend="threading"):
        yield


@pytest.mark.parametrize("number", range(3))
def test_the_examples_of_the_readme_run_as_they_are(number, threads):
    assert len(examples("README.md")) == 3
    found = {}
    exec(compile(examples("README.md")[number], "README.md", "exec"), found)
    if "cell" in found:
        assert found["outputs"].shape == (200, 32, 128)
        gated = {getattr(recurrent, name) for name in recurrent.__all__ if name.endswith("Cell")}
        assert len([one for one in gated if issubclass(one, recurrent.GatedCell)]) - 1 == 11  # as the comment says
    if "lengths" in found:
        assert found["outputs"].shape == (50, 3, 128)
        assert torch.equal(found["state"][0][0, 2], found["outputs"][6, 2])
        real = torch.cat([found["outputs"][:length, row] for row, length in enumerate(found["lengths"])])
        assert found["loss"].item() == pytest.approx(real.square().mean().item())
    if "table" in found:
        assert len(found["table"]) == 10
        assert found["low"] < found["mean"] < found["high"]


def test_the_examples_of_the_guide_run_with_what_they_leave_open(monkeypatch, capsys):
    claim, cluster = examples("CONTRIBUTING.md")
    monkeypatch.setattr(ledger, "_claims", {})
    data = type("Data", (), {"name": "MNIST"})
    exec(claim, {"ledger": ledger, "chunked": torch.tensor([5.1, 5.2, 5.3]), "true": torch.ones(3), "text": data})
    assert ledger.verdict("true-beats-chunked") == "reproduced"
    compile(cluster, "CONTRIBUTING.md", "exec")  # which needs a cluster


def test_every_command_and_tool_that_is_named_exists():
    targets = set(re.findall(r"^(\w+):.*##", read("Makefile"), re.M))
    for name in ("README.md", "CONTRIBUTING.md"):
        text = read(name)
        assert set(re.findall(r"make ([a-z]+)[` \n]", text)) <= targets, name
        for tool in re.findall(r"tools[./](\w+)", text):
            assert (ROOT / "tools" / tool).exists() or (ROOT / "tools" / f"{tool}.py").exists(), f"{name}: tools/{tool}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_to_them(name):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", read(name))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_front_page_names_the_chapters_that_are_not_yet_written():
    numbers = {int(path.name[:2]) for path in chapter_paths()}
    missing = sorted(set(range(1, max(numbers))) - numbers)
    words = re.search(r"this edition has no ([\d, or]+),", read("intro.md"))
    assert [int(one) for one in re.findall(r"\d+", words[1])] == missing


# The citation


@pytest.fixture(scope="module")
def citation() -> dict:
    return yaml.safe_load(read("CITATION.cff"))


def test_the_front_page_cites_the_book_as_the_citation_file_does(citation):
    (author,), page, year = (
        [one["name"] for one in citation["authors"]],
        read("intro.md"),
        citation["date-released"].year,
    )
    text = f"{author} ({year}). *{citation['title']}* (version {citation['version']}).\n<{citation['url']}>"
    assert text in page
    entry = "\n".join(
        [
            "```bibtex",
            "@misc{unrolled,",
            f"  author = {{{{{author}}}}},",
            f"  title = {{{citation['title']}}},",
            f"  year = {{{year}}},",
            f"  version = {{{citation['version']}}},",
            f"  url = {{{citation['url']}}}",
            "}",
            "```",
        ]
    )
    assert entry in page


def test_the_citation_is_that_of_this_version(citation):
    assert isinstance(citation["date-released"], datetime.date)
    assert str(citation["date-released"].year) == str(yaml.safe_load(read("_config.yml"))["copyright"])
    assert f'version = "{citation["version"]}"' in read("pyproject.toml")
    assert citation["url"] == yaml.safe_load(read("_config.yml"))["html"]["baseurl"]
    assert set(citation) >= {"cff-version", "message", "title", "authors", "license", "repository-code"}
