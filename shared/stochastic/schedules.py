"""Slopes and temperatures that change from epoch to epoch: call a schedule with the number of the epoch, from 0."""

import dataclasses
import numbers


def check_positive(name: str, value: float) -> float:
    """`value`, or ValueError if it is not a finite number above zero."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a number above 0 (got {value!r})")
    return value


class _Schedule:
    def __post_init__(self):
        check_positive("start", self.start)
        if self.limit is not None:
            check_positive("limit", self.limit)

    def __call__(self, epoch: float) -> float:
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0 (got {epoch!r})")
        value = self._value(epoch)
        if self.limit is None:
            return check_positive("the value of the schedule", value)
        return min(value, self.limit) if self.limit >= self.start else max(value, self.limit)


@dataclasses.dataclass(frozen=True)
class Geometric(_Schedule):
    """start · factor^epoch, but not beyond `limit`: a slope times 1.1 in each epoch, a temperature times 0.9.

    Raises ValueError for a start, factor or limit that is not above 0, and for an epoch below 0.
    """

    start: float
    factor: float
    limit: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive("factor", self.factor)

    def _value(self, epoch: float) -> float:
        return self.start * self.factor**epoch


@dataclasses.dataclass(frozen=True)
class Linear(_Schedule):
    """start + step · epoch, but not beyond `limit`. Chung, Ahn and Bengio (2016) let a slope grow by 0.04 in each epoch.

    Raises ValueError for a start or limit that is not above 0, for an epoch below 0, and where the value falls to 0.
    """

    start: float
    step: float
    limit: float | None = None

    def _value(self, epoch: float) -> float:
        return self.start + self.step * epoch
