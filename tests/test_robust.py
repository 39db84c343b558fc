"""What can befall the production line: each accident ends in a sentence, and no stored notebook is lost or half written."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import code, text

from tools import alone, check, pages, repository, run, site, stamp
from tools import book as the_book
from tools.book import BookError, chapter_paths, only_one, read, write_atomically

# A cell that hears no polite request, starts another process in its group, and says when both are at work.
DEAF = """\
import os, pathlib, signal, subprocess, time

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
helper = subprocess.Popen(["sleep", "300"])
note = pathlib.Path({note!r})
note.with_suffix(".new").write_text(f"{{os.getpid()}} {{helper.pid}}")
note.with_suffix(".new").rename(note)
{work}
"""
SLEEP = "while True:\n    time.sleep(1)"
NEVER_LETS_GO = "3 ** 10**9"  # one instruction, which no other thread of the kernel can interrupt


def _as_from_a_terminal() -> None:
    """Hear what `nohup`, or the background of a script, has the tests ignore, and with them what they start."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def wait_until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def gone(process: int) -> bool:
    """Whether no such process is at work; one that only waits to be buried is not."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Line:
    """A book with its tools and one chapter, whose last cell can be deaf and never end."""

    def __init__(self, book, tmp_path: Path):
        self.book, self.note, self.temporary = book, tmp_path / "note", tmp_path / "temporary"
        self.temporary.mkdir()
        book.add_tools()

    def deaf(self, work: str = SLEEP, name: str = "01-good") -> Path:
        cells = self.book.good(name)
        cells["heading"] = text("## Where it hangs")
        cells["deaf"] = code(DEAF.format(note=str(self.note), work=work))
        return self.book.chapter(cells, name)

    @contextlib.contextmanager
    def running(self, *arguments: str):
        """A run in another process that has reached its last cell, and the processes at work in that cell."""
        command = [sys.executable, "-m", "tools.run", *arguments]
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = {"cwd": self.book.root, "env": environment, "preexec_fn": _as_from_a_terminal}
        with subprocess.Popen(command, **started, **pipes) as process:
            try:
                wait_until(lambda: self.note.exists() or process.poll() is not None)
                assert process.poll() is None, process.communicate()
                yield process, [int(one) for one in self.note.read_text().split()]
            finally:
                process.kill()

    def rest(self) -> list[Path]:
        """What lies beside the chapters, and in the folder for temporary files."""
        return [*(self.book.root / "chapters").glob(".*"), *self.temporary.iterdir()]


@pytest.fixture
def line(book, tmp_path, monkeypatch):
    monkeypatch.setattr(the_book, "CHAPTERS", book.root / "chapters")
    return Line(book, tmp_path)


# A run is killed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_kernel_and_is_said(line, number):
    path = line.deaf()
    before = path.read_bytes()
    with line.running("--chapter", "1") as (process, at_work):
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    said = f"Interrupted by {number.name}: nothing was changed in 01-good; the same command begins it again."
    assert out.splitlines()[-1] == said
    assert "Traceback" not in out + err
    assert path.read_bytes() == before
    assert all(map(gone, at_work))
    assert line.rest() == []


def test_two_runs_of_a_chapter_and_the_end_of_one_that_is_killed(line, capsys):
    path = line.deaf(NEVER_LETS_GO)
    line.book.chapter([line.book.good("02-more")[name] for name in ("title", "parameters")], "02-more")
    before = path.read_bytes()
    with line.running("--chapter", "1") as (process, at_work):
        for arguments in (["--chapter", "1"], ["--stale"]):
            assert run.main(arguments, line.book.root) == 1
            said = capsys.readouterr().out
            assert said.startswith(f"Another run of 01-good is under way (process {process.pid}, since ")
            assert said.count("\n") == 1
        assert run.main(["--chapter", "2", "--quick"], line.book.root) == 0
        assert not any(map(gone, at_work))
        process.kill()
        wait_until(lambda: all(map(gone, at_work)), 20)
    assert path.read_bytes() == before
    wait_until(lambda: not line.rest(), 20)
    line.book.chapter(line.book.good())
    assert run.main(["--chapter", "1"], line.book.root) == 0


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
from tools import book
os.replace = lambda *_: os.kill(os.getpid(), 9)
book.write_atomically(Path(sys.argv[1]), "half of it")
"""
WRITES_ON_AND_ON = """
import sys
from pathlib import Path
from tools.book import write_atomically
while True:
    for letter in "ab":
        write_atomically(Path(sys.argv[1]), letter * 1_000_000)
        print(flush=True)
"""


def test_a_process_that_is_killed_as_it_writes_leaves_no_half_and_is_tidied_up_after(line):
    path = line.book.chapter(line.book.good())
    before = path.read_bytes()
    others = {path.with_name(f".{path.name}.swp"), path.with_name(f".{path.name}.abcdefgh.{os.getpid()}")}
    for other in others:  # of an editor, and of a process that is still writing
        other.touch()
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(path)], cwd=line.book.root)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert len(set(line.rest()) - others) == 1
    assert chapter_paths() == [path]
    write_atomically(path, "new")
    assert set(line.rest()) == others
    assert path.read_text() == "new"


def test_at_whatever_moment_one_looks_or_kills_the_writer_the_file_is_whole(line):
    path = line.book.root / "chapters" / "01-good.ipynb"
    command = [sys.executable, "-c", WRITES_ON_AND_ON, str(path)]
    with subprocess.Popen(command, cwd=line.book.root, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        seen = {path.read_text() for _ in range(300)}
        process.kill()
    assert seen | {path.read_text()} == {"a" * 1_000_000, "b" * 1_000_000}
    write_atomically(path, "new")
    assert line.rest() == []


def test_a_run_that_is_interrupted_after_it_stored_says_so(book, monkeypatch, capsys):
    monkeypatch.setattr(the_book, "CHAPTERS", book.root / "chapters")
    path = book.chapter(book.good())

    def interrupted(_, notebook):
        notebook.metadata["unrolled"] = {"seconds": 1.0}
        nbformat.write(notebook, path)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run, "publish", lambda path, _: interrupted(path, read(path)))
    assert run.main([], book.root) == 128 + signal.SIGTERM
    assert "Interrupted by SIGTERM: what ran is already stored in 01-good.\n" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# A full disk


@pytest.fixture(params=["a small disk", "a limit"])
def no_room(request, tmp_path):
    """A folder, and a context in which no file of more than half a megabyte has room there."""
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "a small disk":
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
        if mounted.returncode:
            pytest.skip("only root can make a small disk")
        yield folder, contextlib.nullcontext
        subprocess.run(["umount", folder], check=True)
        return

    @contextlib.contextmanager
    def limit():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield folder, limit


def test_a_result_for_which_there_is_no_room(no_room, book, monkeypatch, capsys):
    folder, full = no_room
    book.root = shutil.copytree(book.root, folder, dirs_exist_ok=True)
    monkeypatch.setattr(the_book, "CHAPTERS", folder / "chapters")
    cells = book.good()
    cells["large"] = code("print('x' * 600_000)")
    path = book.chapter(cells)
    before = path.read_bytes()
    with full():
        assert run.main([], folder) == 1
    said = capsys.readouterr().out.splitlines()[1:]
    assert said == [
        f"There is no room left on the disk for {path}; what stood there is unchanged.",
        "What ran could not be kept either. There is no room left on the disk for "
        f"{folder}/_build/failed/01-good.ipynb; what stood there is unchanged.",
    ]
    assert path.read_bytes() == before
    assert list(path.parent.glob(".*")) == []


def test_a_generated_page_for_which_there_is_no_room(no_room):
    folder, full = no_room
    page = folder / "ledger.md"
    page.write_text("before")
    with full(), pytest.raises(BookError, match=r"no room left on the disk for .*/ledger.md; what stood there is unch"):
        write_atomically(page, "x" * 600_000)
    assert [path.read_text() for path in folder.iterdir()] == ["before"]


@pytest.mark.parametrize("size", ["size=4k,nr_inodes=1", "size=4k"])
def test_a_temporary_folder_without_room(book, tmp_path, monkeypatch, caplog, size):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can make a small disk")
    with contextlib.suppress(OSError):
        (folder / "large").write_bytes(bytes(5000))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    path = book.chapter(book.good())
    try:
        with pytest.raises(run.ChapterError) as raised:
            run.publish(path, book.root)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert caplog.text == ""
    assert str(raised.value).startswith("chapters/01-good.ipynb did not run: There is no room left on the disk")
    assert str(raised.value).endswith("; the stored chapter is unchanged.")


@pytest.mark.parametrize("tool", ["stamp", "check", "run"])
def test_a_full_disk_behind_the_output_of_a_command(line, tool):
    line.book.chapter({"title": text("# 1. A chapter with more than one problem")})
    command = [sys.executable, "-m", f"tools.{tool}"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command, cwd=line.book.root, env=buffered, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (ended.returncode, ended.stderr) == (1, "There is no room left on the disk.\n")


# A damaged notebook


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def conflict(path: Path) -> None:
    path.write_text(path.read_text().replace('"metadata"', '<<<<<<< HEAD\n"metadata"', 1))


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


def without_cells(path: Path) -> None:
    notebook = json.loads(path.read_text())
    del notebook["cells"]
    path.write_text(json.dumps(notebook))


def cell_without_source(path: Path) -> None:
    notebook = json.loads(path.read_text())
    del notebook["cells"][1]["source"]
    path.write_text(json.dumps(notebook))


DAMAGES = [
    cut,
    conflict,
    folder_in_its_place,
    without_cells,
    cell_without_source,
    Path.unlink,
    lambda path: path.write_text(""),
    lambda path: path.write_text("[]"),
    lambda path: path.write_text("{}"),
    lambda path: path.write_text("[" * 100_000),
    lambda path: path.write_text('{"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}'),
    lambda path: path.write_bytes(path.read_bytes().decode().encode("utf-16")),
    lambda path: path.write_bytes(os.urandom(1000)),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_notebook_is_named_with_the_way_to_get_it_back(book, monkeypatch, damage):
    monkeypatch.chdir(book.root)
    path = book.chapter(book.good())
    damage(path)
    with pytest.raises(BookError) as raised:
        read(path)
    said = str(raised.value)
    assert said.startswith("chapters/01-good.ipynb cannot be read: ")
    assert said.endswith(" `git checkout -- chapters/01-good.ipynb` brings back the committed one.")
    assert len(said) < 300
    assert "\n" not in said


def test_a_notebook_that_may_not_be_read(book, monkeypatch):
    monkeypatch.chdir(book.root)
    path = book.chapter(book.good())
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(BookError, match=r"^chapters/01-good.ipynb cannot be read or written \(Permission denied\)"):
            read(path)
    finally:
        os.seteuid(user)


TOOLS = {
    "run": lambda root: run.publish(
        root / "chapters" / "01-good.ipynb", root
    ),  # which asks the others for their claims
    "run --quick": lambda root: run.quick(root / "chapters" / "02-bad.ipynb", root / "out.ipynb", root),
    "stamp": lambda root: stamp.main(),
    "check": lambda root: check.main([]),
    "pages": lambda root: pages.main([], root),
    "site": lambda root: site.build(root / "_build" / "html", root),
    "alone": lambda root: alone.alone(root / "chapters" / "02-bad.ipynb", {}, root, Path(sys.executable), root),
    "repository": lambda root: repository.repoint("https://github.com/jo/book", root),
    "repository --check": lambda root: list(repository.disagreements(root)),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_names_a_damaged_notebook_and_changes_nothing(book, monkeypatch, tool):
    monkeypatch.setattr(the_book, "CHAPTERS", book.root / "chapters")
    monkeypatch.setattr(stamp, "ROOT", book.root)
    monkeypatch.setattr(run, "execute", lambda *_: pytest.fail("a chapter was executed"))
    book.chapter(book.good())
    cut(book.chapter(book.good("02-bad"), "02-bad"))
    before = {path: path.read_bytes() for path in book.root.rglob("*") if path.is_file()}
    with pytest.raises(BookError, match=r"02-bad.ipynb cannot be read: it is no notebook"):
        TOOLS[tool](book.root)
    assert {path: path.read_bytes() for path in book.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("tool", sorted({tool.split()[0] for tool in TOOLS}))
def test_every_command_ends_a_sentence_as_such(tool):
    source = (the_book.ROOT / "tools" / f"{tool}.py").read_text(encoding="utf-8")
    assert source.rstrip().splitlines()[-1] in ("    finish(main)", "    finish(lambda: main(sys.argv[1:]))")


def test_a_sentence_is_all_that_a_person_sees(line):
    line.book.chapter(line.book.good())
    cut(line.book.chapter(line.book.good("02-bad"), "02-bad"))
    (line.book.root / "chapters" / "01-good.ipynb").unlink()
    ended = subprocess.run([sys.executable, "-m", "tools.stamp"], cwd=line.book.root, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("chapters/02-bad.ipynb cannot be read: it is no notebook (Notebook does not appear")
    assert ended.stderr.count("\n") == 1


def test_an_error_of_a_tool_itself_keeps_its_traceback():
    with pytest.raises(FileNotFoundError):
        the_book.finish(Path("/no/such/file").read_text)
    with pytest.raises(ZeroDivisionError):
        the_book.finish(lambda: 1 / 0)


def test_a_chapter_damaged_while_another_runs_costs_no_result(book, monkeypatch):
    path = book.chapter(book.good())
    ran = read(path)

    def execute(*_):
        path.write_text("")
        return ran, 1.0

    monkeypatch.setattr(run, "execute", execute)
    with pytest.raises(run.ChapterError, match=r"(?s)01-good.ipynb cannot be read.*What ran is in _build/failed/01-go"):
        run.publish(path, book.root)
    assert len(read(book.root / "_build" / "failed" / "01-good.ipynb").cells) == len(ran.cells)
    assert path.read_text() == ""


# Two at once


HOLD = """
import sys
from pathlib import Path
from tools.book import only_one
with only_one(Path(sys.argv[1]), "build of the site"):
    print(flush=True)
    sys.stdin.read()
"""
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def test_of_two_builds_of_the_site_the_second_says_so_and_touches_nothing(line):
    build = line.book.root / "_build"
    (build / "site-of-the-first").mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(build / "running" / "site")]
    with subprocess.Popen(command, cwd=line.book.root, **PIPES) as process:
        process.stdout.readline()
        with pytest.raises(BookError, match=rf"^Another build of the site is under way \(process {process.pid}, since"):
            site.build(build / "html", line.book.root)
        process.kill()
    assert sorted(path.name for path in build.iterdir()) == ["running", "site-of-the-first"]
    with only_one(build / "running" / "site", "build of the site"):
        pass  # the first one's lock went with it


def test_a_build_of_the_site_removes_what_a_killed_one_left(book, monkeypatch):
    build = book.root / "_build"
    (build / "site-of-a-killed-one" / "html").mkdir(parents=True)
    monkeypatch.setattr("jupyter_book.sphinx.build_sphinx", lambda *_, **__: 1)
    assert site.build(build / "html", book.root) == ["Sphinx found what is shown above"]
    assert [path.name for path in build.iterdir()] == ["running"]


def test_who_may_wait_waits(line):
    lock = line.book.root / "_build" / "running" / "pages"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], cwd=line.book.root, **PIPES) as process:
        process.stdout.readline()
        released = threading.Event()
        threading.Timer(0.3, lambda: (released.set(), process.kill())).start()
        with only_one(lock, "writing of the pages", wait=True):
            assert released.is_set()


# A chapter that never ends


JOBLIB = """\
import pathlib, time
from joblib import Parallel, delayed

def work(number):
    import os
    pathlib.Path({folder!r}, str(os.getpid())).touch()
    time.sleep(300)

Parallel(n_jobs=2)(delayed(work)(number) for number in range(2))"""


@pytest.mark.parametrize("kind", ["joblib", "deaf"])
def test_a_cell_that_never_ends_is_stopped_with_all_that_it_started(book, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(run, "CELL_LIMIT", {"published": 1000, "quick": 4})
    note, workers = tmp_path / "note", tmp_path / "workers"
    workers.mkdir()
    source = JOBLIB.format(folder=str(workers)) if kind == "joblib" else DEAF.format(note=str(note), work=NEVER_LETS_GO)
    path = book.chapter([text("# 1. T"), code("n = 1", "parameters"), text("## For ever\n\nWhy?"), code(source)])
    before = path.read_bytes()
    with pytest.raises(run.ChapterError) as raised:
        run.quick(path, book.root / "out.ipynb", book.root)
    said = str(raised.value).splitlines()
    assert said[0] == "chapters/01-good.ipynb, code cell 2, under “For ever”"
    assert said[1] == f"   1  {source.splitlines()[0]}"
    assert said[-1] == (
        "After 0.0666667 minutes, the limit for a cell at quick settings, the kernel was stopped in code cell 2 of "
        "chapters/01-good.ipynb; the stored chapter is unchanged. What ran is in _build/failed/01-good.ipynb."
    )
    at_work = [path.name for path in workers.iterdir()] if kind == "joblib" else note.read_text().split()
    assert len(at_work) == 2
    assert all(gone(int(process)) for process in at_work)
    assert path.read_bytes() == before
    assert not (book.root / "out.ipynb").exists()


def test_the_limits_leave_a_slow_machine_its_time():
    assert run.CELL_LIMIT["published"] >= 2 * 12 * 60  # a chapter takes twelve minutes at most
    assert run.CELL_LIMIT["quick"] >= 2 * 30


@pytest.mark.parametrize("settings", ["published", "quick"])
def test_a_run_is_given_the_limit_of_its_settings(book, monkeypatch, settings):
    given = {}

    def execute(*_, **options):
        given.update(options)
        raise RuntimeError("enough is known")

    monkeypatch.setattr(run.papermill, "execute_notebook", execute)
    path = book.chapter(book.good())
    with pytest.raises(run.ChapterError, match="enough is known"):
        run.publish(path, book.root) if settings == "published" else run.quick(path, path, book.root)
    assert given["execution_timeout"] == run.CELL_LIMIT[settings]
