"""Checks of a reader's answers: each runs the answer on fresh cases and says, like a colleague, what is wrong and by how much.

A chapter's checkers are in the module of its number: `from shared.exercises import chapter01`.
"""

from collections.abc import Callable

import numpy as np
import torch


class Wrong(Exception):  # noqa: N818 - not an error of the program but the outcome of a check
    """Raised by a check to say what is not right yet."""


class Checker:
    """One exercise's check. Calling it with an answer prints what it found; `problem` returns it, or None if the answer is right."""

    def __init__(self, number: str, praise: str, check: Callable):
        self.number, self.praise, self.check = number, praise, check
        self.__doc__ = check.__doc__

    def problem(self, answer: Callable) -> str | None:
        """What is not right yet about `answer`, as a sentence, or None."""
        try:
            self.check(answer)
        except Wrong as wrong:
            return str(wrong)
        except NotImplementedError:
            return "replace the line that raises NotImplementedError by your answer."
        except Exception as error:  # whatever the reader's code does, the notebook goes on
            return f"your code stopped with {type(error).__name__}: {error}"
        return None

    def __call__(self, answer: Callable) -> None:
        problem = self.problem(answer)
        print(f"Exercise {self.number}: {'right. ' + self.praise if problem is None else 'not yet: ' + problem}")


def off(ours, right) -> float:
    """The largest difference between two arrays or tensors as a fraction of the largest right value."""
    return float(np.abs(np.asarray(ours) - np.asarray(right)).max() / np.abs(np.asarray(right)).max())


def like(ours, right: torch.Tensor) -> torch.Tensor:
    """An answer as a tensor of the dtype of `right`. Raises Wrong if it has another shape."""
    ours = torch.as_tensor(ours)
    if ours.shape != right.shape:
        raise Wrong(f"the result should have shape {tuple(right.shape)} (got {tuple(ours.shape)}).")
    return ours.detach().to(right.dtype)


def checker(number: str, praise: str) -> Callable[[Callable], Checker]:
    """Turn a function that raises `Wrong` about a bad answer into the `Checker` of exercise `number`."""
    return lambda check: Checker(number, praise, check)
