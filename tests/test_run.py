"""Executing chapters: what is stored, what is not, and what a person is told."""

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from conftest import ALT, Book, code, text
from nbformat import v4

from tools import run, stamp
from tools.book import read, tags

LOOK = """\
import os, sys, shared
print([sys.executable, os.listdir(), shared.__file__, os.environ["UNROLLED_DATA"]])
print("started by the user" if "USER_START" in globals() else "bare")
print("\\r 50%|#####     | 1/2", file=sys.stderr, flush=True, end="")
print("\\r100%|##########| 2/2\\x1b[A\\n", file=sys.stderr, flush=True)
0"""


def cells_of(path: Path) -> dict:
    """The code cells of a stored chapter by their first line."""
    return {cell.source.splitlines()[0]: cell for cell in read(path).cells if cell.cell_type == "code"}


# One published run, looked at from all sides


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A chapter executed at published settings, in a home that does its best to interfere."""
    book = Book(tmp_path_factory.mktemp("published"))
    cells = book.good()
    del cells["figure"].metadata["mystnb"]
    cells["look"] = code(LOOK, mystnb={"image": {"alt": "of a figure that is gone"}, "number_source_lines": True})
    path = book.chapter(cells, executed=False)
    home = book.root / "home"
    kernel = home / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["false"], "display_name": "Another", "language": "python"}')
    start = home / "profile_default" / "startup" / "00-start.py"
    start.parent.mkdir(parents=True)
    start.write_text("USER_START = 1\n")
    (book.root / "digits").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(home))
        patch.setenv("IPYTHONDIR", str(home))
        patch.chdir(book.root)
        patch.setenv("UNROLLED_DATA", "digits")
        before = dict(os.environ)
        run.publish(path, book.root)
        assert dict(os.environ) == before
    return book, path, cells


def test_the_kernel_is_this_interpreter_in_an_empty_folder_with_the_books_own_package(published):
    book, path, _ = published
    printed = cells_of(path)["import os, sys, shared"].outputs[0].text.splitlines()
    init, data = str(book.root / "shared" / "__init__.py"), str(book.root / "digits")
    assert printed == [str([sys.executable, [], init, data]), "bare"]


def test_progress_is_dropped_and_streams_are_in_one_piece(published):
    outputs = cells_of(published[1])["import os, sys, shared"].outputs
    assert [(output.output_type, output.get("name")) for output in outputs] == [
        ("stream", "stdout"),
        ("execute_result", None),
    ]


def test_a_stream_in_pieces_is_put_together_and_a_warning_among_progress_is_kept():
    pieces = [
        ("stdout", "a"),
        ("stdout", "b\n"),
        ("stderr", "\r 50%\rcareful"),
        ("stderr", "\n"),
        ("stderr", "x = 1\n\r100%\n"),
    ]
    pieces += [("stdout", "c"), ("stderr", "\r 50%"), ("stderr", "\n")]
    outputs = [v4.new_output("stream", name=name, text=text) for name, text in pieces]
    kept = [(output.name, output.text) for output in run.tidied(outputs)]
    assert kept == [("stdout", "ab\n"), ("stderr", "x = 1"), ("stdout", "c")]
    torn = [("stdout", "a\n"), ("stderr", "\r 50%"), ("stdout", "b\n")]
    whole = run.tidied([v4.new_output("stream", name=name, text=text) for name, text in torn])
    assert [(output.name, output.text) for output in whole] == [("stdout", "a\nb\n")]


def test_the_stored_chapter_is_fresh_and_stamped(published):
    book, path, _ = published
    notebook = read(path)
    assert stamp.stale_reasons(notebook, book.root) == []
    made = notebook.metadata["unrolled"]
    assert made["settings"] == "published"
    assert made["parameters"] == {"dataset": "digits", "seeds": 5}
    assert made["data"] == ["digits"]
    assert made["seconds"] > 0
    assert len(made["slowest"]) == 5
    assert all(0 <= one["seconds"] < made["seconds"] for one in made["slowest"])


def test_only_outputs_counts_and_alternative_texts_change(published):
    _, path, cells = published
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "unrolled"}
    assert notebook.metadata.kernelspec == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in cells.values()]
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in cells.values()]
    metadata = dict(zip(cells, (cell.metadata for cell in notebook.cells), strict=True))
    assert metadata.pop("figure") == {"tags": ["hero"], "mystnb": {"image": {"alt": ALT}}}
    assert metadata.pop("look") == {"mystnb": {"number_source_lines": True}}
    assert metadata == {name: cells[name].metadata for name in metadata}
    assert not (path.parent.parent / "_build").exists()


# Runs that go wrong


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "x = 1\nraise ValueError('odd')",
            ["   2  raise ValueError('odd')", "ValueError: odd", "\nValueError ended"],
        ),
        ("import sys\nsys.exit(0)", ["   2  sys.exit(0)", "\nSystemExit ended"]),
        ("raise KeyboardInterrupt", ["   1  raise KeyboardInterrupt", "\nKeyboardInterrupt ended"]),
        (
            "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))\nnumbers = bytearray(2**34)",
            ["   3  numbers = bytearray(2**34)", "\nMemoryError ended"],
        ),
        (  # as Linux ends a process when memory runs out
            "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
            ["   2  os.kill(os.getpid(), signal.SIGKILL)", "\nThe kernel died, probably for lack of memory, in"],
        ),
        ("import os\nos._exit(1)", ["   2  os._exit(1)", "\nThe kernel died, probably for lack of memory, in"]),
    ],
)
def test_a_failing_cell_is_shown_and_nothing_is_lost(book, source, said):
    cells = book.good()
    cells["heading"] = text("Words.\n\n## The delta rule\n\nMore words.")
    cells["failing"] = code(source)
    cells["after"] = code("after = 1")
    path = book.chapter(cells)
    before = path.read_bytes()
    with pytest.raises(run.ChapterError) as raised:
        run.publish(path, book.root)
    message = str(raised.value)
    assert path.read_bytes() == before
    for part in said:
        assert part in message
    assert "\x1b" not in message
    assert message.splitlines()[-1].endswith(
        " code cell 8 of chapters/01-good.ipynb; the stored chapter is unchanged. What ran is in _build/failed/01-good.ipynb."
    )
    assert message.startswith("chapters/01-good.ipynb, code cell 8, under “The delta rule”\n")
    partial = cells_of(book.root / "_build" / "failed" / "01-good.ipynb")
    assert partial['print("agree to 3e-16")'].outputs[0].text == "agree to 3e-16\n"


def test_an_interruption_changes_nothing_and_leaves_no_kernel(book):
    book.add_tools()
    marker = book.root / "running"
    cells = book.good()
    cells["long"] = code(
        f"import os, time, pathlib\npathlib.Path({str(marker)!r}).write_text(str(os.getpid()))\ntime.sleep(300)"
    )
    path = book.chapter(cells)
    before = path.read_bytes()
    command = [sys.executable, "-m", "tools.run", "--chapter", "1"]
    process = subprocess.Popen(command, cwd=book.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not marker.exists() or not marker.read_text():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out.splitlines()[-1] == "Interrupted: nothing was changed in 01-good; the same command begins it again."
    assert "Traceback" not in out + err
    assert path.read_bytes() == before
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def test_a_kernel_that_does_not_start_is_said_in_a_sentence(book, monkeypatch):
    path = book.chapter(book.good())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(run.ChapterError, match=r"^chapters/01-good.ipynb: no kernel could be started \(.*\); run make"):
        run.publish(path, book.root)


# What is decided around a run, with the run itself played


@pytest.fixture
def played(monkeypatch, book):
    """Plays the execution: outputs are those of `Book.good`, and `played.meanwhile()` happens during it."""

    class Played:
        def __init__(self):
            self.ran = []
            self.meanwhile = lambda: None

        def __call__(self, path, notebook, settings, overrides, root):
            self.ran.append(path.stem)
            executed = copy.deepcopy(notebook)
            outputs = {cell.source: cell.outputs for cell in book.good(path.stem).values() if cell.cell_type == "code"}
            for count, cell in enumerate((one for one in executed.cells if one.cell_type == "code"), 1):
                cell.outputs = outputs.get(cell.source, cell.outputs)
                cell.execution_count = count
                cell.metadata["papermill"] = nbformat.from_dict({"duration": count / 10})
            self.meanwhile()
            return executed, 1.0

    play = Played()
    monkeypatch.setattr(run, "execute", play)
    monkeypatch.setattr("tools.book.CHAPTERS", book.root / "chapters")
    return play


def edit(path: Path, before: str, after: str) -> None:
    source = path.read_text()
    assert before in source
    path.write_text(source.replace(before, after))


def test_prose_edited_during_a_run_is_kept(book, played):
    path = book.chapter(book.good(), executed=False)
    played.meanwhile = lambda: edit(path, "Is it so?", "Is it really so?")
    run.publish(path, book.root)
    assert "Is it really so?" in path.read_text()
    assert stamp.stale_reasons(read(path), book.root) == []


def test_the_run_time_is_written_between_its_marks(book, played):
    cells = book.good()
    cells["prose"].source = "It runs in <!-- runtime -->a while<!-- /runtime -->, or so."
    path = book.chapter(cells, executed=False)
    run.publish(path, book.root)
    expected = "It runs in <!-- runtime -->about a minute on cpu<!-- /runtime -->, or so."
    assert read(path).cells[4].source == expected
    notebook = read(path)
    run.state_run_time(notebook, 312.0, "a GPU")
    assert ">about 5 minutes on a GPU<" in notebook.cells[4].source


def test_the_slowest_cells_are_in_the_stamp_and_do_not_make_it_stale(book, played):
    cells = book.good()
    cells["prose"].source += "\n\n## It `works`\n\n```\n# no heading\n```"
    path = book.chapter(cells, executed=False)
    run.publish(path, book.root)
    notebook = read(path)
    places = [(7, "It `works`"), (6, "It `works`"), (5, "It `works`"), (4, "It `works`"), (3, "1. A chapter")]
    expected = [{"cell": cell, "heading": heading, "seconds": cell / 10} for cell, heading in places]
    assert notebook.metadata["unrolled"]["slowest"] == expected
    del notebook.metadata["unrolled"]["slowest"]  # a chapter that ran before this was recorded
    assert stamp.stale_reasons(notebook, book.root) == []


def test_code_edited_during_a_run_is_not_given_the_outputs_of_other_code(book, played):
    path = book.chapter(book.good(), executed=False)
    played.meanwhile = lambda: edit(path, "answer = 2", "answer = 3")
    with pytest.raises(run.ChapterError, match="was changed while it ran: nothing was stored"):
        run.publish(path, book.root)
    assert read(path).cells[-1].execution_count is None
    assert (book.root / "_build" / "failed" / "01-good.ipynb").exists()


def test_a_package_edited_during_a_run_leaves_the_chapter_stale(book, played):
    book.module("tasks", "def echo(): return 1")
    cells = book.good()
    cells["use"] = code("from shared import tasks\n\ntasks.echo()")
    path = book.chapter(cells, executed=False)
    played.meanwhile = lambda: book.module("tasks", "def echo(): return 2")
    run.publish(path, book.root)
    assert stamp.stale_reasons(read(path), book.root) == ["shared.tasks.echo changed"]


def test_a_chapter_that_is_not_ready_is_not_executed(book, played):
    cells = book.good()
    cells["prose"].source = "It is 3.2 times faster."
    path = book.chapter(cells, executed=False)
    before = path.read_bytes()
    with pytest.raises(
        run.ChapterError, match=r"(?s)is not ready to run:\n  - a result is typed in prose: '3.2 times'"
    ):
        run.publish(path, book.root)
    assert played.ran == []
    assert path.read_bytes() == before


def test_a_result_that_fails_the_checks_is_kept_but_not_stored(book, played):
    cells = book.good()
    output = {"output_type": "stream", "name": "stderr", "text": "careful\n"}
    cells["warning"] = code("warn()", outputs=[output, output])
    path = book.chapter(cells)
    before = path.read_bytes()
    with pytest.raises(
        run.ChapterError,
        match=r"(?s)was not stored:\n  - code cell 8 stores.*\nWhat ran is in _build/failed/01-good.ipynb.$",
    ):
        run.publish(path, book.root)
    assert path.read_bytes() == before
    kept = read(book.root / "_build" / "failed" / "01-good.ipynb")
    assert [cell.get("outputs") for cell in kept.cells] == [cell.get("outputs") for cell in cells.values()]


def test_only_stale_chapters_run_and_it_says_why(book, played, capsys):
    assert run.main([], book.root) == 0
    assert capsys.readouterr().out == "There are no chapters yet.\n"
    paths = [book.chapter(book.good(name), name) for name in ("01-good", "02-more")]
    assert run.main(["--stale"], book.root) == 0
    assert played.ran == ["01-good", "02-more"]
    edit(paths[1], "answer = 2", "answer = 3")
    capsys.readouterr()
    assert run.main(["--stale"], book.root) == 0
    assert played.ran[2:] == ["02-more"]
    out = capsys.readouterr().out
    assert out.startswith("Running 02-more at published settings because code cells changed\n")
    assert "02-more: 1 s, stored in chapters/02-more.ipynb" in out
    assert run.main(["--stale"], book.root) == 0
    assert capsys.readouterr().out == "Chapters are up to date\n"
    assert run.main(["--chapter", "1"], book.root) == 0
    assert played.ran[3:] == ["01-good"]


def test_data_other_than_asked_for_is_said(book, played, capsys):
    cells = book.good()
    cells["parameters"].source = 'dataset = "mnist"'
    book.chapter(cells)
    run.main([], book.root)
    assert "Note: 01-good asks for the data 'MNIST' and used digits instead." in capsys.readouterr().out


# Quick settings


def test_quick_settings_are_injected_and_the_stored_chapter_is_not_touched(book):
    (book.root / "chapters" / "quick.yaml").write_text("01-good: {seeds: 2}\n")
    cells = {name: cell for name, cell in book.good().items() if name in ("title", "parameters")}
    cells["show"] = code("print(dataset, seeds)")
    path = book.chapter(cells, executed=False)
    before, out = path.read_bytes(), book.root / "_build" / "quick" / "01-good.ipynb"
    run.quick(path, out, book.root)
    assert cells_of(out)["print(dataset, seeds)"].outputs[0].text == "digits 2\n"
    assert [tags(cell) for cell in read(out).cells][1:3] == [["parameters"], ["injected-parameters"]]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "parameters", "said"),
    [
        ("01-good: {sedes: 2}", ["seeds = 5"], "sets sedes for 01-good, whose parameters cell has no such name"),
        ("", [], r"exactly one code cell tagged `parameters` \(found 0\)"),
        ("", ["seeds = 5", "n = 1"], r"exactly one code cell tagged `parameters` \(found 2\)"),
    ],
)
def test_wrong_settings_are_refused_before_a_kernel_starts(book, monkeypatch, settings, parameters, said):
    monkeypatch.setattr(run.papermill, "execute_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
    (book.root / "chapters" / "quick.yaml").write_text(settings)
    path = book.chapter([text("# 1. Title"), *(code(source, "parameters") for source in parameters)])
    with pytest.raises(run.ChapterError, match=said):
        run.quick(path, book.root / "out.ipynb", book.root)


@pytest.mark.parametrize("content", ["", "# nothing\n", "02-other: {seeds: 1}\n", "01-good:\n"])
def test_no_entry_means_no_overrides(book, content):
    (book.root / "chapters" / "quick.yaml").write_text(content)
    assert run.quick_overrides(book.root / "chapters" / "01-good.ipynb", book.root) == {}
