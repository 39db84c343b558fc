"""tools/setup: one sentence for every way it can fail, nothing done twice, an interruption lost nowhere.

Each test runs the real script on a small copy of the book. Its Python is real too, but `python3` on the PATH is a
stand-in that makes virtual environments with a recording stub for pip in them, so that nothing is ever installed.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parent.parent

# "Installs" by writing what importlib.metadata reads; fails or hangs when a test asks for it by a file in the checkout.
STUB_PIP = """
import pathlib, re, sys, sysconfig
arguments = sys.argv[1:]
if arguments == ["--version"]:
    sys.exit()
with open("calls", "a") as calls:
    print(*arguments, file=calls)
if pathlib.Path("broken").exists():
    log = pathlib.Path(arguments[arguments.index("--log") + 1])
    log.write_text(pathlib.Path("broken").read_text())
    sys.exit(1)
site = pathlib.Path(sysconfig.get_paths()["purelib"])
if "-r" in arguments:
    text = pathlib.Path("requirements.txt").read_text()
    for name, version in re.findall(r"^([\\w.-]+)(?:\\[.*\\])?==([^\\s;]+)", text, re.M):
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        (site / f"{name.replace('-', '_')}.py").touch()
else:
    (site / "shared.py").touch()
"""


class Book:
    """A copy of what tools/setup needs, with its own PATH."""

    def __init__(self, folder: Path):
        self.folder = folder / "book"
        (self.folder / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "tools/setup", self.folder / "tools/setup")
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        (self.folder / "requirements.txt").write_text(
            'torch==1.0\npapermill==2.0\njupyter-book==3.0; python_version >= "3.2"\n'
        )
        (self.folder / "stub_pip.py").write_text(STUB_PIP)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in ("sh", "cat", "cksum", "dirname", "grep", "mkdir", "rm", "sed", "tail", "cp"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.command("python3", self.stand_in())

    def stand_in(self) -> str:
        return f"""if [ "$1 $2" = "-m venv" ]; then
    {sys.executable} -m venv --without-pip .venv && echo made >> made
    for site in .venv/lib/python3.*/site-packages; do mkdir "$site/pip" && cp stub_pip.py "$site/pip/__main__.py"; done
else
    exec {sys.executable} "$@"
fi"""

    def command(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.bin / name).chmod(0o755)

    def version(self, name: str, version: str, venv: bool = True) -> None:
        """A Python that only knows its version and whether it can make virtual environments."""
        self.command(name, f'case "$2" in *version_info*) echo {version} ;; *ensurepip*) exit {int(not venv)} ;; esac')

    def setup(self, **environment) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["sh", "tools/setup"],
            cwd=self.folder,
            env={"PATH": str(self.bin), "HOME": str(self.folder), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def fails(self, **environment) -> str:
        """The one sentence that set-up fails with."""
        result = self.setup(**environment)
        assert result.returncode == 1, result
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.strip()

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def site(self) -> Path:
        return next((self.folder / ".venv/lib").glob("python3.*/site-packages"))


@pytest.fixture(autouse=True)
def _not_inside_another_make(monkeypatch):
    """`make test` would otherwise tell the makes that are started here that they are parts of it."""
    for name in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "CHAPTER", "URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


def test_sets_up_once_and_then_says_nothing(book):
    first = book.setup()
    assert first.returncode == 0, first.stderr
    assert "is ready" in first.stdout
    assert len(book.calls) == 2
    assert "-r requirements.txt" in book.calls[0]
    assert "--no-deps --no-build-isolation --editable ." in book.calls[1]
    second = book.setup()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert len(book.calls) == 2


@pytest.mark.parametrize("changed", ["requirements.txt", "pyproject.toml"])
def test_a_changed_list_is_installed_again_in_the_same_environment(book, changed):
    book.setup()
    with open(book.folder / changed, "a") as stream:
        stream.write("# changed\n")
    assert book.setup().returncode == 0
    assert len(book.calls) == 4
    assert (book.folder / "made").read_text() == "made\n"


def test_a_moved_book_is_installed_again(book):
    book.setup()
    book.folder = book.folder.rename(book.folder.with_name("moved"))
    assert book.setup().returncode == 0
    assert len(book.calls) == 4


def test_an_interrupted_set_up_is_continued(book):
    (book.folder / "broken").write_text("ERROR: Operation cancelled by user")
    assert book.setup().returncode == 1
    assert not (book.folder / ".venv/.ready").exists()
    (book.folder / "broken").unlink()
    assert book.setup().returncode == 0
    assert (book.folder / "made").read_text() == "made\n"


def test_an_update_that_failed_is_continued_even_if_the_list_is_as_before(book):
    book.setup()
    list_before = (book.folder / "requirements.txt").read_text()
    (book.folder / "requirements.txt").write_text(list_before.replace("1.0", "1.1"))
    (book.folder / "broken").write_text("ERROR: Operation cancelled by user")
    assert book.setup().returncode == 1
    (book.folder / "broken").unlink()
    (book.folder / "requirements.txt").write_text(list_before)
    assert "is ready" in book.setup().stdout


def test_an_environment_interrupted_before_pip_came_is_continued(book):
    (book.folder / ".venv/bin").mkdir(parents=True)
    assert book.setup().returncode == 0


def test_ctrl_c_ends_in_a_sentence(book):
    book.command("python3", 'case "$2" in *version_info*) echo 3.12 ;; *ensurepip*) ;; *) kill -INT $PPID ;; esac')
    result = book.setup()
    assert result.returncode == 130
    assert "run the same command again to go on" in result.stderr


def test_no_python(book):
    (book.bin / "python3").unlink()
    assert re.search(r"^No Python was found: install Python 3\.11, 3\.12 or 3\.13", book.fails())


def test_a_stand_in_that_fails_is_passed_over(book):
    (book.bin / "python3").rename(book.bin / "python3.12")
    book.command("python3", "echo 'no such version' >&2; exit 127")
    book.command("python", "exit 127")
    assert book.setup().returncode == 0


@pytest.mark.parametrize(
    ("version", "age"), [("2.7", "old"), ("3.10", "old"), ("3.9", "old"), ("3.14", "new"), ("4.0", "new")]
)
def test_wrong_python(book, version, age):
    book.version("python3", version)
    sentence = book.fails()
    assert f"Python {version}, which is too {age}: install Python 3.11, 3.12 or 3.13" in sentence


def test_a_right_python_is_found_behind_a_wrong_one(book):
    (book.bin / "python3").rename(book.bin / "python3.13")
    book.version("python3", "3.10")
    assert book.setup().returncode == 0


def test_no_venv_module(book):
    book.version("python3", "3.11", venv=False)
    sentence = book.fails()
    assert sentence.startswith("Python 3.11 (python3) cannot make virtual environments: install its venv package")


def test_named_python_is_the_only_one_tried(book):
    assert book.fails(PYTHON="no-such-python") == (
        "PYTHON is set to no-such-python, which does not run: set it to Python 3.11, 3.12 or 3.13."
    )
    book.version("mine", "3.8")
    assert "(mine) is Python 3.8, which is too old" in book.fails(PYTHON="mine")
    assert book.setup(PYTHON="python3").returncode == 0


def test_an_environment_with_another_python_is_refused(book):
    (book.folder / ".venv/bin").mkdir(parents=True)
    book.version("other", "3.9")
    (book.folder / ".venv/bin/python").symlink_to(book.bin / "other")
    sentence = book.fails()
    assert ".venv has Python 3.9, but the book needs" in sentence
    assert "rm -rf .venv" in sentence


def damage_python(book):
    (book.folder / ".venv/bin/python").unlink()


def damage_package(book):
    shutil.rmtree(next(book.site.glob("papermill-*")))


def damage_version(book):
    (book.site / "torch-1.0.dist-info").rename(book.site / "torch-0.9.dist-info")
    metadata = book.site / "torch-0.9.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "0.9"))


def damage_module(book):
    (book.site / "jupyter_book.py").unlink()


def damage_file(book):
    (book.site / "torch-1.0.dist-info/RECORD").write_text("torch/lib/gone.so,,\ntorch.py,,\ntorch/gone.py,,\n")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (damage_python, "its Python does not run"),
        (damage_package, "papermill is missing"),
        (damage_version, "torch is version 0.9 instead of 1.0"),
        (damage_module, "jupyter_book cannot be imported"),
        (damage_file, "torch has lost torch/gone.py"),
    ],
)
def test_a_damaged_environment_is_named_and_can_be_repaired(book, damage, what):
    book.setup()
    damage(book)
    assert book.fails() == (
        f"The virtual environment .venv is damaged: {what}. "
        "Remove it with `rm -rf .venv` and run the same command again."
    )
    shutil.rmtree(book.folder / ".venv")
    assert book.setup().returncode == 0


def test_the_processor_build_of_torch_counts(book):
    book.setup()
    metadata = book.site / "torch-1.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.0+cpu"))
    assert book.setup().returncode == 0


def test_a_pin_for_another_python_does_not_count(book):
    with open(book.folder / "requirements.txt", "a") as stream:
        stream.write('absent==1.0; python_version < "3.5"\n')
    book.setup()
    shutil.rmtree(book.site / "absent-1.0.dist-info")
    assert book.setup().returncode == 0


def test_another_failure_of_the_install_gives_pips_reason(book):
    (book.folder / "broken").write_text(
        "ERROR: trouble\n2026-01-01T00:00:00,000 ERROR: [Errno 28] No space left on device\n"
    )
    sentence = book.fails()
    assert "could not be installed: [Errno 28] No space left on device" in sentence
    assert "_build/setup.log" in sentence


def test_no_network(book):
    """With the real pip and an index that nobody answers for."""
    book.setup()
    (book.folder / ".venv/.ready").unlink()
    shutil.rmtree(book.site / "pip")
    (book.site / "pip").symlink_to(Path(find_spec("pip").origin).parent)
    next(book.site.glob("torch-*/METADATA")).unlink()
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull}
    assert "the network or the package index cannot be reached" in book.fails(**unreachable)


def pins() -> dict[str, str]:
    text = (ROOT / "requirements.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = [
        re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)(?:; python_version (?:<|==|>=) \"3\.1\d\")?", line)
        for line in lines
    ]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found}


def test_every_requirement_is_pinned_in_a_form_that_set_up_can_check():
    assert pins()["torch"] == "2.13.0"
    assert pins()["jupyter-book"] == "1.0.4.post1"


def test_everything_the_package_asks_for_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    names = {re.match(r"[\w.-]+", one)[0].lower() for one in asked}
    assert names <= set(pins())


def test_make_alone_lists_every_command():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
    assert set(re.findall(r"^  make (\w+) +\S", listed, re.M)) == targets
    assert targets >= {"book", "test", "run", "refresh", "lab", "serve", "bench", "repository", "alone"}


@pytest.mark.parametrize(
    ("target", "example"), [("run", "CHAPTER=01"), ("alone", "CHAPTER=01"), ("repository", "URL=https")]
)
def test_a_command_without_its_argument_says_what_it_needs(target, example, tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/setup").touch()
    result = subprocess.run(["make", target], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode != 0
    assert example in result.stderr.splitlines()[0]


def test_the_last_thing_that_make_test_does_is_to_run_the_tests():
    """So that the closing line of its output is pytest's own summary."""
    planned = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    commands = [line for line in planned.splitlines() if not line.startswith("echo ")]
    assert commands[0] == "sh tools/setup"
    assert [command.split()[2] for command in commands[1:]] == ["ruff", "ruff", "pytest"]


@pytest.mark.parametrize("there", [True, False])
def test_continuous_integration_uses_the_data_that_lie_beside_the_checkout(tmp_path, there):
    (tmp_path / "checkout/.ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", tmp_path / "checkout/.ci/run")
    (tmp_path / "make").write_text('#!/bin/sh\necho "$@ ${UNROLLED_DATA:-nothing}"\n')
    (tmp_path / "make").chmod(0o755)
    if there:
        (tmp_path / "shared/data").mkdir(parents=True)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        [tmp_path / "checkout/.ci/run"], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == f"test {tmp_path / 'shared/data' if there else 'nothing'}\n"
