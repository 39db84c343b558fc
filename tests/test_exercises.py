"""Every exercise of every chapter: its checker passes the solution, and fails the stub and typical wrong answers.

Each chapter's own test module has GIVEN, what its solutions need, and WRONG: triples of an exercise, a wrong answer, and
what the checker has to say about it (a regular expression).
"""

import importlib
import re

import conftest
import pytest

from shared.exercises import Checker
from tools.book import chapter_paths, code_cells, read, tags

CHAPTERS = [path.stem[:2] for path in chapter_paths()]
TESTS = {number: importlib.import_module(f"test_chapter{number}") for number in CHAPTERS}
CHECKERS = {
    (number, name): value
    for number in CHAPTERS
    for name, value in vars(importlib.import_module(f"shared.exercises.chapter{number}")).items()
    if isinstance(value, Checker)
}
WRONG = [(number, *case) for number in CHAPTERS for case in TESTS[number].WRONG]


@pytest.mark.parametrize(("number", "name"), CHECKERS)
def test_the_solution_passes_and_the_stub_does_not(number, name):
    check, chapter = CHECKERS[number, name], read(chapter_paths(number)[0])
    solution, stub = conftest.printed(chapter, TESTS[number].GIVEN, f"solution_{name}", f"my_{name}")
    for _ in range(5):
        assert check.problem(solution) is None
    assert "replace the line that raises" in check.problem(stub)


@pytest.mark.parametrize(("number", "name", "answer", "advice"), WRONG)
def test_a_wrong_answer_is_told_why(number, name, answer, advice):
    for _ in range(3):
        assert re.search(advice, CHECKERS[number, name].problem(answer))


@pytest.mark.parametrize("number", CHAPTERS)
def test_there_are_three_exercises_each_with_a_folded_solution_and_two_wrong_answers(number):
    names = [name for chapter, name in CHECKERS if chapter == number]
    assert len(names) >= 3
    assert sum("solution" in tags(cell) for cell in code_cells(read(chapter_paths(number)[0]))) == len(names)
    wrong = [name for chapter, name, *_ in WRONG if chapter == number]
    assert [name for name in names if wrong.count(name) < 2] == []
