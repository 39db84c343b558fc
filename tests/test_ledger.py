"""The ledger: verdicts follow from intervals, and a claim that proves nothing is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import ledger


@pytest.fixture(autouse=True)
def empty_ledger(monkeypatch):
    monkeypatch.setattr(ledger, "_claims", {})


@pytest.fixture
def displayed(monkeypatch):
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def claim(measured, holds, id="gap", text="One is better than the other.", **changes):
    words = {"source": "Somebody 2016", "reported": "no number"} | changes
    ledger.claim(id, text, measured=measured, holds=holds, **words)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([1.0, 1.1, 0.9, 1.05], "reproduced"),
        ([-1.0, -1.1, -0.9, -1.05], "contradicted"),
        ([1.0, -1.0, 0.5, -0.4], "undecided"),
        ([0.0, 0.0, 0.0], "contradicted"),
    ],
)
def test_the_interval_decides(values, verdict, displayed):
    gap = ledger.over_seeds(values)
    claim(gap, gap > 0)
    assert ledger.verdict("gap") == verdict
    assert f"**{verdict}**" in displayed[0]["text/markdown"]
    assert displayed[0][ledger.CLAIM_MIME]["verdict"] == verdict


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=8))
def test_flipping_the_sign_flips_the_verdict(values):
    opposite = {"reproduced": "contradicted", "contradicted": "reproduced", "undecided": "undecided"}
    gap, flipped = ledger.over_seeds(values), ledger.over_seeds(-np.array(values))
    if gap.low != 0 != gap.high:  # an interval that ends exactly on the bound is not inside it, on neither side
        assert (flipped > 0).verdict == opposite[(gap > 0).verdict]
        assert (flipped < 0).verdict == (gap > 0).verdict


@given(st.floats(-10, 10), st.floats(0.1, 5))
def test_between_is_inside_both_bounds(value, half):
    x = ledger.exact(value)
    assert (x.between(-half, half).verdict == "reproduced") == (-half < value < half)


def test_the_record_is_what_the_book_reads(displayed):
    gap = ledger.over_seeds(torch.tensor([0.02, 0.03, 0.04]), unit="nats", data="MNIST")
    claim(gap, gap > 0, quick=True)
    record = displayed[0][ledger.CLAIM_MIME]
    assert set(record) == {"id", "text", "source", "reported", "measured", "condition", "verdict", "quick"}
    assert record["quick"] is True
    assert record["condition"] == "> 0"
    assert record["measured"]["summary"] == "0.030 nats (95 % interval 0.005 to 0.055, 3 seeds, MNIST)"
    assert record["measured"]["values"] == pytest.approx((0.02, 0.03, 0.04))


def test_the_table_shows_every_claim_and_escapes_bars(displayed):
    x = ledger.exact(1.0)
    claim(x, x > 0, id="a", text="The norm |x| is positive.")
    claim(x, x > 2, id="b", text="The norm exceeds 2.")
    ledger.table()
    table = displayed[-1]["text/markdown"]
    assert "norm \\|x\\| is" in table
    assert "2 claims: 1 reproduced, 1 contradicted" in table
    assert ledger.ids() == ["a", "b"]


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], []])
def test_too_few_seeds_are_refused(values):
    with pytest.raises(ValueError, match=rf"at least 3 seeds \(got {len(values)}\)"):
        ledger.over_seeds(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_measurement_must_be_finite(bad):
    with pytest.raises(ValueError, match="seed number 1 gave"):
        ledger.over_seeds([1.0, bad, 2.0])
    with pytest.raises(ValueError, match="finite"):
        ledger.exact(bad)


def test_a_duplicate_id_is_refused_but_a_cell_may_be_run_again(displayed):
    x = ledger.exact(1.0)
    claim(x, x > 0)
    y = ledger.exact(-1.0)
    claim(y, y > 0)
    assert ledger.verdict("gap") == "contradicted"
    with pytest.raises(ValueError, match="already used, for: One is better"):
        claim(x, x > 0, text="Another sentence.")


def test_other_misuse_is_named(displayed):
    x, y = ledger.exact(1.0), ledger.exact(2.0)
    with pytest.raises(ValueError, match="another measurement"):
        claim(x, y > 0)
    with pytest.raises(TypeError, match=r"measured must come from ledger.over_seeds or ledger.exact \(got float"):
        claim(1.0, x > 0)
    with pytest.raises(TypeError, match="holds must be a condition"):
        claim(x, True)
    for empty in (" ", None):
        with pytest.raises(ValueError, match="reported must be a text that is not empty"):
            claim(x, x > 0, reported=empty)
    for compare in (x.__gt__, x.__lt__, lambda bound: x.between(0, bound)):
        with pytest.raises(ValueError, match="cannot be compared with NaN"):
            compare(float("nan"))
    with pytest.raises(TypeError, match="between"):
        bool(0 < x < 2)  # Python would read this as (0 < x) and (x < 2)
    with pytest.raises(ValueError, match="low must be below high"):
        x.between(2, 1)
    with pytest.raises(ValueError, match="one dimension"):
        ledger.over_seeds(np.ones((3, 2)))
    assert ledger.ids() == []


def test_agree_prints_how_closely(capsys):
    a = torch.tensor([1.0, -4.0], dtype=torch.float64)
    ledger.agree("Both", a, a)
    ledger.agree("Both", a + 1e-12, a)
    assert capsys.readouterr().out == "Both agree exactly.\nBoth agree to 3e-13.\n"


@pytest.mark.parametrize("other", [torch.tensor([1.0, -4.001]), torch.tensor([1.0, math.nan])])
def test_agree_refuses_what_differs(other):
    with pytest.raises(AssertionError, match="do not agree"):
        ledger.agree("They", other, torch.tensor([1.0, -4.0]))


def test_difference_knows_shapes_and_lists():
    assert ledger.difference([torch.ones(2), torch.ones(3)], [torch.ones(2), 2 * torch.ones(3)]) == 0.5
    assert ledger.difference([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert ledger.difference(1e-3, 0.0) == 1e-3
    with pytest.raises(ValueError, match="different shapes"):
        ledger.difference(np.ones((2, 1)), np.ones(2))
