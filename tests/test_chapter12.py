"""Chapter 12: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import ast
import functools
import itertools
import math
import re
import types
from collections import Counter, defaultdict

import conftest
import numpy as np
import pandas as pd
import pytest
import torch

from shared import datasets, fast_weights, tasks, training
from shared.exercises import chapter12
from shared.fast_weights import FastWeightsCell, chunked_unroll
from shared.recurrent import unroll
from tools.book import chapter_paths, code_cells, read

NOTEBOOK = read(chapter_paths("12")[0])
GIVEN = {"itertools": itertools, "math": math, "np": np, "torch": torch, "chapter12": chapter12}
GIVEN |= {"Counter": Counter, "defaultdict": defaultdict, "one_hot": torch.nn.functional.one_hot}
GIVEN |= {"datasets": datasets, "fast_weights": fast_weights, "tasks": tasks, "training": training}
GIVEN |= {"FastWeightsCell": FastWeightsCell, "chunked_unroll": chunked_unroll, "unroll": unroll}
GIVEN |= {"cross_entropy": torch.nn.functional.cross_entropy, "layer_norm": torch.nn.functional.layer_norm}


def printed(*names, **more):
    """What the chapter defines under these names, where it may use `more` beside what is given to all."""
    return conftest.printed(NOTEBOOK, GIVEN | more, *names)


def slipping(slip):
    return functools.partial(chapter12._step, slip=slip)


def by_layer_norm(z, A, gain, bias, inner_steps, decay, rate, eps=1e-5, kept=1):
    h = z.relu()
    for _ in range(inner_steps):
        sums = z + (A @ h[..., None])[..., 0]
        h = torch.nn.functional.layer_norm(sums, h.shape[-1:], gain, bias, eps).relu()
    return h, kept * (decay * A + rate * h[..., None] * h[:, None])


def early(z, A, gain, bias, inner_steps, decay, rate):
    """As `by_layer_norm`, but it writes the preliminary state before it reads."""
    A = decay * A + rate * torch.stack([torch.outer(one, one) for one in z.relu()])
    return by_layer_norm(z, A, gain, bias, inner_steps, 1, 0)


def sample(z, A, gain, bias, inner_steps, decay, rate, dim=-1, correction=1):
    h = z.relu()
    for _ in range(inner_steps):
        sums = z + torch.einsum("bij,bj->bi", A, h)
        h = sums - sums.mean(dim, keepdim=True)
        h = (gain * h / (sums.var(dim, correction=correction, keepdim=True) + 1e-5).sqrt() + bias).relu()
    return h, decay * A + rate * torch.einsum("bi,bj->bij", h, h)


def weights(h, q, decay, rate, ages=lambda T: torch.arange(T - 1, -1, -1).double(), match=torch.matmul):
    return rate * decay ** ages(len(h)) * match(h, q)


def newest_forgotten(h, q, decay, rate):
    found = weights(h, q, decay, rate)
    return torch.cat([found[:-1], torch.zeros(1)])


def best_attention(h, q, decay, rate):
    return (h @ q * decay ** torch.arange(len(h) - 1, -1, -1)).softmax(0)


def faded_softmax(h, q, decay, rate):
    return weights(h, q, decay, rate, match=lambda h, q: (h @ q).softmax(0))


def meets(hidden, inner_steps, matrix=lambda S: S + 2, attention=lambda S: S, off=0):
    return 1 + off + math.ceil(matrix(inner_steps) * hidden / attention(inner_steps))


def counted(hidden, inner_steps, ahead=lambda one, other: one < other):
    """The sums of the two forms, added up step by step; this is right."""
    T = attention = matrix = 0
    while T == 0 or ahead(attention, matrix):
        attention += 2 * inner_steps * T * hidden
        matrix += (inner_steps + 2) * hidden**2
        T += 1
    return T


def guessed(pairs, digits, slip=""):
    return chapter12._plateaus(pairs, digits)[slip]


def delta(A, k, v, beta, power=2, said=1.0, written=1.0):
    return A + beta * torch.outer(written * v - said * A @ k, k) / k.norm() ** power


WRONG = [
    *(("step", slipping(slip), re.escape(advice)) for slip, advice in chapter12.SLIPS.items()),
    ("step", early, "the matrix is read before it is written"),
    ("step", sample, "not by one less"),
    ("step", functools.partial(sample, dim=0, correction=0), "over the units of one example, not over the batch"),
    ("step", slipping("of the batch"), r"your h is off by \d.* of its largest entry, and A by"),
    ("step", functools.partial(by_layer_norm, eps=0), "ε is missing"),
    ("step", functools.partial(by_layer_norm, kept=0.9), r"^h is right. With S = 2 your h is off by .*, and A by 0.1"),
    ("step", lambda *of: by_layer_norm(*of)[0], "return two tensors"),
    ("step", lambda *of: by_layer_norm(*of)[::-1], r"should have shape \(3, 5\) \(got \(3, 5, 5\)\)"),
    ("step", lambda *of: [-one for one in by_layer_norm(*of)], "^With S = 2 your h is off by 2 of"),
    ("attention_weights", lambda h, q, decay, rate: decay * weights(h, q, decay, rate), "newest has not faded"),
    ("attention_weights", lambda h, q, decay, rate: weights(h, q, decay, rate) / decay, "newest has λ⁰, not 1/λ"),
    ("attention_weights", functools.partial(weights, ages=torch.arange), "the ages run the wrong way"),
    ("attention_weights", functools.partial(weights, ages=torch.zeros), "nothing fades"),
    ("attention_weights", lambda h, q, decay, rate: weights(h, q, decay, 1), "the rate is missing"),
    ("attention_weights", lambda *of: weights(*of) / of[1].shape[0] ** 0.5, "root of the number of units"),
    ("attention_weights", lambda *of: weights(*of) / weights(*of).sum(), "yours add up to one"),
    ("attention_weights", lambda *of: weights(*of, match=lambda h, q: (h @ q).abs()), "has a negative weight"),
    ("attention_weights", lambda *of: weights(*of, match=lambda h, q: 1), "not by its age alone"),
    ("attention_weights", newest_forgotten, "the newest state has no weight, but A_4 has h_4 in it"),
    ("attention_weights", lambda *of: weights(*of)[:-1], "4 states were written, .* you return 3 weights"),
    ("attention_weights", best_attention, "that is a softmax"),
    ("attention_weights", faded_softmax, "that is a softmax"),
    ("attention_weights", lambda h, *of: weights(h, *of) @ h, "return a weight for each state"),
    ("attention_weights", lambda h, *of: weights(h, *of)[:, None], r"should have shape \(4,\)"),
    ("attention_weights", lambda *of: weights(*of) ** 2, "off by .* of the largest, so that .* misses A q by"),
    ("crossover", lambda H, S: 1 + (S + 2) * H / S, "steps are whole"),
    ("crossover", lambda H, S: H * (1 + 2 / S), "near, but count exactly"),
    ("crossover", functools.partial(meets, off=-1), "step t finds t − 1 states"),
    ("crossover", lambda H, S: 1 + (S + 2) * H // S, "round up"),
    ("crossover", functools.partial(counted, ahead=lambda one, other: one <= other), "attention has cost as much"),
    ("crossover", functools.partial(meets, attention=lambda S: 2 * S), "a \\*step\\* of attention costs more"),
    ("crossover", functools.partial(meets, matrix=lambda S: S), "gone through twice"),
    ("crossover", lambda H, S: H, "that is one read of each form"),
    ("crossover", functools.partial(meets, matrix=lambda S: S + 1), "to read it and to store it"),
    ("crossover", functools.partial(meets, matrix=lambda S: 3 * S), "written once"),
    ("crossover", functools.partial(meets, attention=lambda S: 1), "anew in each of the S inner steps"),
    ("crossover", lambda H, S: 3 * H + 1, "right for S = 1; else .* written once"),
    ("crossover", functools.partial(meets, matrix=lambda S: 2 * S + 4), "goes through the states twice"),
    ("crossover", lambda H, S: 7, "you say T = 7. By then attention has touched .* T should be larger"),
    ("crossover", lambda H, S: 10**4, "you say T = 10,000. .* T should be smaller"),
    *(("plateau", functools.partial(guessed, slip=slip), advice) for slip, advice in chapter12.GUESSERS.items()),
    ("plateau", lambda *of: guessed(*of)[0], "return two numbers"),
    ("plateau", lambda *of: (guessed(*of)[0], 1.0), r"for 1 pairs and \d digits you say 0.00 % and 1.000 nats, and it"),
    ("corrected", functools.partial(delta, power=0), r"divide by the key's squared length; this one is \d"),
    ("corrected", functools.partial(delta, power=1), r"\*squared\* length"),
    ("corrected", lambda A, k, v, beta: delta(A, k, v, 1), "β is missing"),
    ("corrected", lambda A, k, v, beta: delta(A, k, v, -beta), "the sign is wrong"),
    ("corrected", functools.partial(delta, said=0), "on top of what the memory said"),
    ("corrected", functools.partial(delta, said=0, power=0), "that is the sum rule"),
    ("corrected", lambda *of: delta(*of, said=1 / of[3]), "β scales both"),
    ("corrected", lambda *of: delta(*of, written=1 / of[3]), "β scales both"),
    ("corrected", lambda A, k, v, beta: delta((1 - beta) * A, k, v, beta, said=0), "yours forgets everything"),
    ("corrected", lambda A, *of: delta(A, *of) - A, "that is the change"),
    ("corrected", lambda A, *of: A + (delta(A, *of) - A).mT, "the wrong way round"),
    ("corrected", lambda *of: 0.9 * delta(*of), r"at right angles .* they differ by 0\.1"),
    ("corrected", functools.partial(delta, said=0.5), r"asked with k, the memory is off by .* with β = 0\.\d\d"),
    ("corrected", lambda A, *of: delta(A, *of).mT[:4], r"should have shape \(5, 5\) \(got \(4, 5\)\)"),
]


def test_other_ways_to_the_right_answer():
    assert chapter12.step.problem(by_layer_norm) is None
    assert chapter12.crossover.problem(counted) is None


def assigned(name, namespace):
    """What the chapter sets this name to, where it may use the names in `namespace`."""
    for cell in code_cells(NOTEBOOK):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Assign) and [getattr(target, "id", None) for target in node.targets] == [name]:
                return eval(compile(ast.Expression(node.value), "a chapter's cell", "eval"), namespace)
    raise AssertionError(f"the chapter does not set {name}")


def random_cell(inputs=4, hidden=6, seed=0, **options):
    torch.manual_seed(seed)
    cell = FastWeightsCell(inputs, hidden, **options).double()
    for parameter in cell.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return cell, torch.randn(9, 3, inputs).double()


def one_example(cell, x):
    """States and the last matrix of one example, x (time, input), number by number from equations 12.1 and 12.4 to 12.6."""
    W, U, gain, bias = (one.detach().numpy() for one in (cell.W, cell.U, cell.gain, cell.bias))
    n, states = len(W), []
    h, A = [0.0] * n, [[0.0] * n for _ in range(n)]
    for x_t in x.tolist():
        z = [sum(W[i][j] * h[j] for j in range(n)) + U[i] @ x_t for i in range(n)]
        h = [max(one, 0.0) for one in z]
        for _ in range(cell.inner_steps):
            a = [z[i] + sum(A[i][j] * h[j] for j in range(n)) for i in range(n)]
            mean = sum(a) / n
            deviation = math.sqrt(sum((one - mean) ** 2 for one in a) / n + 1e-5)
            h = [max(gain[i] * (a[i] - mean) / deviation + bias[i], 0.0) for i in range(n)]
        A = [[cell.decay * A[i][j] + cell.rate * h[i] * h[j] for j in range(n)] for i in range(n)]
        states.append(h)
    return torch.tensor(states).double(), torch.tensor(A).double()


@pytest.mark.parametrize("inner_steps", [1, 3])
def test_the_cell_by_its_equations_and_by_attention(inner_steps):
    by_equations, by_attention = printed("by_equations", "by_attention")
    cell, x = random_cell(inner_steps=inner_steps, decay=0.8, rate=0.7)
    states, A = by_equations(cell, x)
    for example in range(3):
        right = one_example(cell, x[:, example])
        torch.testing.assert_close(states[:, example], right[0])
        torch.testing.assert_close(A[example], right[1])
    torch.testing.assert_close(by_attention(cell, x), states)


def test_normalised_as_by_torch():
    (layer_normalised,) = printed("layer_normalised")
    a, gain, bias = torch.randn(7, 5).double(), torch.randn(5).double(), torch.randn(5).double()
    for scale in (1, 1e-3):  # the second shows where ε stands
        right = torch.nn.functional.layer_norm(scale * a, (5,), gain, bias)
        torch.testing.assert_close(layer_normalised(scale * a, gain, bias), right)


def test_an_example_cell_is_not_at_its_special_values():
    (example_cell,) = printed("example_cell")
    cell, other = example_cell(inner_steps=2), example_cell(inner_steps=2)
    assert all(torch.equal(one, two) for one, two in zip(cell.parameters(), other.parameters(), strict=True))
    assert all((one != 0).all() and (one != 1).all() for one in cell.parameters())
    assert (cell.inner_steps, cell.U.shape, cell.U.dtype) == (2, (8, 5), torch.float64)


def test_slopes_are_those_of_the_mean_square():
    cell, x = random_cell(inner_steps=2)
    by_equations, slope = printed("by_equations", "slope", x=x)
    gradients = torch.autograd.grad(by_equations(cell, x)[0].square().mean(), list(cell.parameters()))
    for parameter, gradient in zip(cell.parameters(), gradients, strict=True):
        before = parameter.detach().clone()
        for i in range(0, parameter.numel(), 5):
            assert slope(cell, parameter, i) == pytest.approx(gradient.view(-1)[i].item(), abs=1e-8)
        torch.testing.assert_close(parameter.detach(), before, atol=1e-15, rtol=0)


def test_each_mistake_is_the_one_it_is_called():
    by_equations, mistaken = printed("by_equations", "mistaken")
    cell, x = random_cell()
    right, A = by_equations(cell, x)
    for mistake in ("none", "not reset"):
        torch.testing.assert_close(mistaken(cell, x, mistake), (right, A))
    later = mistaken(cell, x, "not reset", A)[0]
    torch.testing.assert_close(later, unroll(cell, x, (torch.zeros(3, 6).double(), A))[0])
    assert not torch.allclose(later, right)
    alone = {
        one: mistaken(cell, x[:, :2], one)[0] for one in ("batch statistics", "diagonal of A", "step applied twice")
    }
    for mistake, states in alone.items():
        together = mistaken(cell, x, mistake)[0]
        assert not torch.allclose(together, right)
        assert torch.allclose(states, together[:, :2]) == (mistake != "batch statistics")
    h, A = torch.zeros(6).double(), torch.zeros(6, 6).double()
    for x_t, state in zip(x[:, 0], alone["diagonal of A"][:, 0], strict=True):
        z = cell.W @ h + cell.U @ x_t
        h = torch.nn.functional.layer_norm(z + A.diagonal() * z.relu(), (6,), cell.gain, cell.bias).relu()
        A = cell.decay * A + cell.rate * torch.outer(h, h)
        torch.testing.assert_close(state, h)


def test_digits_of_the_mean_length_while_it_is_finite():
    (digits_of,) = printed("digits_of")
    states = torch.zeros(4, 2, 3)
    states[0, :, 1] = 10.0
    states[1, 0, 0], states[1, 1, 2] = 1500.0, -500.0
    states[2:, 0, 0] = torch.tensor([torch.inf, torch.nan])
    assert digits_of(states) == pytest.approx([1, 3])


def test_without_normalisation_lengths_explode_and_with_it_they_do_not():
    states_of, digits_of = printed("states_of", "digits_of")
    assert states_of(1).shape == (24, 16, 50)
    assert len(digits_of(states_of(layer_norm=False))) < 12
    assert digits_of(states_of()).max() < 1.5


@pytest.mark.parametrize("at", [20.0, 33.0, 64.0])
def test_where_two_curves_cross(at):
    (crossing,) = printed("crossing")
    lengths = [16, 32, 64, 128]
    slower, faster = np.ones(4), np.array(lengths) / at
    assert crossing(lengths, slower, faster) == pytest.approx(at)
    assert math.isnan(crossing(lengths, slower, 100 * faster))
    assert math.isnan(crossing(lengths, slower, faster / 100))


def test_what_is_kept_is_counted_once():
    (megabytes_kept,) = printed("megabytes_kept")
    w, v = torch.randn(50_000, requires_grad=True), torch.randn(50_000, requires_grad=True)
    assert megabytes_kept(lambda: (w + v).sum().backward()) == 0
    assert megabytes_kept(lambda: w.exp().sum().backward()) == pytest.approx(0.2)
    assert megabytes_kept(lambda: (w * w).sum().backward()) == pytest.approx(0.2)
    assert megabytes_kept(lambda: (w * v).sum().backward()) == pytest.approx(0.4)


@pytest.mark.parametrize("chunk", [1, 3, 12])
def test_linear_fast_weights_step_by_step_and_in_chunks(chunk):
    in_chunks, step_by_step = printed("in_chunks", "step_by_step")
    q, k, v = torch.randn(12, 4).double(), torch.randn(12, 4).double(), torch.randn(12, 3).double()
    right = [sum(0.8 ** (t - s) * (k[s] @ q[t]) * v[s] for s in range(t + 1)) for t in range(12)]
    A = sum(0.8 ** (11 - s) * torch.outer(v[s], k[s]) for s in range(12))
    for outputs, last in (in_chunks(q, k, v, 0.8, chunk), step_by_step(q, k, v, 0.8)):
        torch.testing.assert_close(outputs, torch.stack(right))
        torch.testing.assert_close(last, A)
    outputs, last = step_by_step(*(torch.stack([one, -one], 1) for one in (q, k, v)), 0.8)
    torch.testing.assert_close(outputs[:, 1], -torch.stack(right))
    torch.testing.assert_close(last[1], A)


def sphere(*shape):
    points = torch.randn(*shape).double()
    return points / points.norm(dim=-1, keepdim=True)


def test_the_delta_rules_error_by_formula_by_recursion_and_measured():
    delta_error, by_recursion = printed("delta_error", "by_recursion")
    for d, items in ((2, 3), (6, 9), (64, 200)):
        for n in range(0, items, 2):
            assert delta_error(n, items, d) == pytest.approx(by_recursion(n, items, d))
    torch.manual_seed(0)
    k, v = sphere(9, 20_000, 6), sphere(9, 20_000, 6)
    A = fast_weights.delta_rule(k, k, v, 1.0)[1]
    errors = (torch.einsum("bvk,nbk->nbv", A, k) - v).square().sum(-1).mean(1)
    assert errors.tolist() == pytest.approx([delta_error(8 - i, 9, 6) for i in range(9)], abs=0.02)


CAPACITY = {"capacity_trials": 40, "capacity_items": [16, 80], "d": 64, "GAMMA": 1 - 1 / 64, "RHO": 1 - 130 / (64 * 66)}


def test_memories_hold_what_their_rules_say():
    drawn_pairs, judged, one_pass = printed("drawn_pairs", "judged", "one_pass", **CAPACITY)
    for items in (16, 80):
        k, v = drawn_pairs(items, torch.Generator().manual_seed(3))
        assert k.shape == v.shape == (items, 40, 64)
        torch.testing.assert_close(k.norm(dim=-1), torch.ones(items, 40).double())
        found = one_pass(items, 3)
        A = torch.einsum("nbv,nbk->bvk", v, k)
        assert found["sum rule"] == pytest.approx(torch.stack(judged(A, k, v)).mean(2).numpy())
        answers = torch.stack([torch.stack([A[b] @ k[i, b] for b in range(40)]) for i in range(items)])
        scores = [[(v[:, b] @ answers[i, b]).argmax().item() == i for b in range(40)] for i in range(items)]
        assert found["sum rule"][1] == pytest.approx(np.mean(scores, 1))
        assert found["sum rule"][0] == pytest.approx((answers - v).square().sum(-1).mean(1).numpy())
        assert found["delta rule"][0, -1] == pytest.approx(0, abs=1e-12)
        assert found["least squares"][0].mean() == pytest.approx(max(0, 1 - 64 / items), abs=0.02)


def test_expected_errors_are_those_measured():
    expected, drawn_pairs, one_pass = printed(
        "expected", "drawn_pairs", "one_pass", **CAPACITY | {"capacity_trials": 60}
    )
    for items in (16, 80):
        found = one_pass(items, 0)
        for rule in ("sum rule", "delta rule", "least squares"):
            assert expected(rule, items) == pytest.approx(found[rule][0].mean(), rel=0.03, abs=1e-9)
        k, v = drawn_pairs(items, torch.Generator().manual_seed(1))
        for rule, run in (("sum rule", fast_weights.linear_attention), ("delta rule", fast_weights.delta_rule)):
            A = run(k, k, v, 1.0)[1]
            answers = torch.einsum("bvk,nbk->nbv", A, k)
            factor = (answers * v).sum() / answers.square().sum()  # by least squares
            least = (factor * answers - v).square().sum(-1).mean().item()
            assert expected(f"{rule}, scaled", items) == pytest.approx(least, rel=0.03)


def test_passes_go_on_from_the_last():
    after_passes, one_pass = printed("after_passes", "one_pass", **CAPACITY | {"capacity_trials": 5})
    errors = after_passes(32, 12, 2)
    assert errors[0] == pytest.approx(one_pass(32, 2)["delta rule"][0].mean())
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < errors[0] / 50


@pytest.mark.parametrize("decay", [1.0, 0.95, 0.7])
def test_what_is_left_of_an_old_value(decay):
    (rewritten_error,) = printed("rewritten_error", items=16, d=64)
    torch.manual_seed(0)
    k, v = sphere(16, 500, 64), sphere(32, 500, 64)
    twice = torch.cat([k, k])
    A = fast_weights.linear_attention(twice, twice, v, decay)[1]
    error = (torch.einsum("bvk,nbk->nbv", A, k) - v[16:]).square().sum(-1).mean().item()
    assert rewritten_error(decay) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("rule", ["sum", "delta"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_stream_is_asked_for_what_counts(rule, fresh):
    stream, drawn_pairs, late = printed("stream", "drawn_pairs", "late", capacity_trials=2, stream_steps=32)
    errors = stream(rule, 0.9, fresh, 5)
    g = torch.Generator().manual_seed(5)
    again = torch.randint(32, (32, 2), generator=g)  # drawn first, needed or not
    k, v = drawn_pairs(64, g)
    right = np.zeros(3)
    for trial in range(2):
        A, counts = torch.zeros(64, 64).double(), {}
        for t in range(64):
            key = t if fresh or t < 32 else again[t - 32, trial].item()
            k_t, v_t = k[key, trial], v[t, trial]
            A = 0.9 * A
            A = A + torch.outer(v_t - (A @ k_t if rule == "delta" else 0), k_t)
            counts.pop(key, None)
            counts[key] = v_t
            if t + 1 >= 32 and (t + 1) % 16 == 0:
                asked = list(counts)[-32:]
                missed = [(A @ k[one, trial] - counts[one]).square().sum().item() for one in asked]
                assert len(missed) == 32
                right[(t + 1) // 16 - 2] += np.mean(missed) / 2
    assert errors == pytest.approx(right)
    assert late(np.array([[9.0, 9, 1, 3], [9, 9, 2, 2]])).tolist() == [2, 2]


def test_guessers_know_what_they_see():
    best_guesser, bag = printed("best_guesser", "bag")
    assert bag((3, 1, 3)) == bag((1, 3, 3)) != bag((1, 1, 3))
    floors = tasks.retrieval_floors(3)
    for seen, floor in (
        (lambda digits: None, floors.none),
        (bag, floors.digits),
        (tuple, floors.digits),
        (lambda digits: digits[1], floors.one_digit),
    ):
        assert best_guesser(3, seen) == pytest.approx(floor)
    for pairs in (2, 3, 4):
        assert guessed(pairs, 10) == pytest.approx(tasks.retrieval_floors(pairs).digits[::-1])
    assert chapter12._plateaus(3, 10)["one pair"] == pytest.approx(floors.one_digit[::-1])


NETWORKS = assigned("NETWORKS", {})
RETRIEVAL = {"NETWORKS": NETWORKS, "pairs": 2, "units": 6, "few_units": 3, "fast_decay": 0.8, "fast_rate": 0.4}


def doubles(network, seeds, **more):
    (start,) = printed("start", **RETRIEVAL | more)
    P = {name: one.detach().double() for name, one in start(network, seeds).items()}
    for name in ("bias", "gain", "c"):
        if name in P:
            P[name] += 0.3 * torch.randn_like(P[name])
    return P


def some_strings(runs=2, count=5, pairs=2):
    return torch.stack([tasks.retrieval(pairs, count, torch.Generator().manual_seed(i)).symbols for i in range(runs)])


@pytest.mark.parametrize("network", NETWORKS)
def test_runs_of_one_seed_begin_alike_whoever_is_beside_them(network):
    (start,) = printed("start", **RETRIEVAL)
    P, alone = start(network, [4, 0, 4]), start(network, [4])
    for name, one in P.items():
        assert one.is_leaf
        assert one.requires_grad
        assert torch.equal(one[0], one[2])
        assert torch.equal(one[0], alone[name][0])
    assert not torch.equal(P["U"][0], P["U"][1])
    size = 3 if "few" in network else 6
    assert P["U"].abs().max() <= size**-0.5
    if "LSTM" in network:
        assert P["bias"].flatten(1)[0].tolist() == [0] * size + [1] * size + [0] * 2 * size
    else:
        assert torch.equal(P["W"][1].detach(), torch.eye(6) * (1 if network == "IRNN" else 0.05))
    assert ("V" in P) == (network == "depth alone")
    (weights_of,) = printed("weights_of", **RETRIEVAL)
    lstm = 4 * (37 * size + size**2 + size)
    own = {"LSTM": lstm, "LSTM, few units": lstm, "IRNN": 37 * 6 + 36 + 6, "depth alone": 37 * 6 + 2 * 36 + 12}
    assert weights_of(network) == own.get(network, 37 * 6 + 36 + 12) + 10 * size + 10


def by_hand(network, P, run, string):
    """The last state of one string in one run of the four layer-normalised networks."""
    U, W, gain, bias = (P[name][run] for name in ("U", "W", "gain", "bias"))
    h, A = torch.zeros(6).double(), torch.zeros(6, 6).double()
    for symbol in string:
        z = U[symbol] + h @ W
        read = {
            "fast weights": A @ z.relu(),
            "matrix alone": A @ h,
            "depth alone": z.relu() @ P["V"][run] if "V" in P else 0,
            "neither": 0,
        }[network]
        h = torch.nn.functional.layer_norm(z + read, (6,), gain[0], bias[0]).relu()
        A = 0.8 * A + 0.4 * torch.outer(h, h)
    return h


@pytest.mark.parametrize("network", [one for one in NETWORKS if "few" not in one])
def test_networks_side_by_side_and_alone(network):
    last_state, counterpart = printed("last_state", "counterpart", **RETRIEVAL)
    P, symbols = doubles(network, [0, 7]), some_strings()
    h = last_state(network, P, symbols)
    assert h.shape == (2, 5, 6)
    for run in range(2):
        if network in ("IRNN", "LSTM"):
            right = counterpart(network, {name: one[run:] for name, one in P.items()}, symbols[run])
        else:
            right = torch.stack([by_hand(network, P, run, string) for string in symbols[run].T])
        torch.testing.assert_close(h[run], right)


def test_weights_of_every_read_are_kept_if_asked_for():
    (last_state,) = printed("last_state", **RETRIEVAL)
    P, symbols, attention = doubles("fast weights", [0]), some_strings(1), []
    last_state("fast weights", P, symbols, attention)
    assert [tuple(one.shape) for one in attention] == [(1, 5, t) for t in range(1, 7)]
    states = [last_state("fast weights", P, symbols[:, :t])[0] for t in range(1, 7)]
    z = P["U"][0][symbols[0, -1]] + states[-1] @ P["W"][0]
    right = [0.4 * 0.8 ** (5 - i) * (states[i] * z.relu()).sum(-1) for i in range(6)]
    torch.testing.assert_close(attention[-1][0], torch.stack(right, -1))


class Alone(torch.nn.Module):
    """One run of `P` as modules of torch.nn and shared, for strings (time, batch)."""

    def __init__(self, network, P, run):
        super().__init__()
        if network == "fast weights":
            self.net = FastWeightsCell(37, 6, decay=0.8, rate=0.4).double()
            names = {"U": "U", "W": "W", "gain": "gain", "bias": "bias"}
        else:
            kind, more = (torch.nn.LSTM, {}) if network == "LSTM" else (torch.nn.RNN, {"nonlinearity": "relu"})
            self.net = kind(37, 6, **more).double()
            self.net.bias_hh_l0.requires_grad_(False).zero_()
            names = {"weight_ih_l0": "U", "weight_hh_l0": "W", "bias_ih_l0": "bias"}
        self.readout = torch.nn.Linear(6, 10).double()
        for module, parameter, name in [
            *((self.net, *both) for both in names.items()),
            (self.readout, "weight", "out"),
            (self.readout, "bias", "c"),
        ]:
            value = getattr(module, parameter)
            value.data.copy_(P[name][run].T if value.ndim == 2 else P[name][run, 0])

    def forward(self, symbols):
        x = torch.nn.functional.one_hot(symbols, 37).double()
        outputs = unroll(self.net, x)[0] if isinstance(self.net, FastWeightsCell) else self.net(x)[0]
        return self.readout(outputs[-1])


@pytest.mark.parametrize("network", ["fast weights", "IRNN", "LSTM"])
def test_training_side_by_side_is_training_alone(network):
    adam_step, last_state = printed("adam_step", "last_state", **RETRIEVAL)
    P = {name: one.requires_grad_() for name, one in doubles(network, [0, 1]).items()}
    alone = [Alone(network, P, run) for run in range(2)]
    rates = torch.tensor([0.02, 0.1]).double()
    adams = [torch.optim.Adam(net.parameters(), rate.item()) for net, rate in zip(alone, rates, strict=True)]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in P.values()]
    for update in range(1, 6):
        symbols, targets = some_strings(2, 5 + update), torch.randint(10, (2, 5 + update))
        said = torch.baddbmm(P["c"], last_state(network, P, symbols), P["out"])
        loss = torch.nn.functional.cross_entropy(said.flatten(0, 1), targets.flatten(), reduction="sum") / len(
            targets.T
        )
        adam_step(P, loss, moments, rates[:, None, None], update)
        for run, (net, adam) in enumerate(zip(alone, adams, strict=True)):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(net(symbols[run]), targets[run]).backward()
            adam.step()
    for run, net in enumerate(alone):
        torch.testing.assert_close(
            torch.baddbmm(P["c"], last_state(network, P, symbols), P["out"])[run], net(symbols[run])
        )


def test_strings_go_by_seed_and_answers_are_judged_by_run():
    strings, wrong = printed("strings", "wrong", **RETRIEVAL)
    symbols, targets = strings([3, 0, 3], 400, 100)
    assert symbols.shape == (3, 7, 400)
    right = tasks.retrieval(2, 400, torch.Generator().manual_seed(103))
    for run in (0, 2):
        assert torch.equal(symbols[run], right.symbols)
        assert torch.equal(targets[run], right.targets)
    assert not torch.equal(symbols[0], symbols[1])
    P = {name: one.float() for name, one in doubles("IRNN", [3, 0, 3]).items()}
    P["out"].zero_()
    P["c"].zero_()
    for run, digit in enumerate((2, 2, 5)):
        P["c"][run, 0, digit] = 1
    share = [100 * (targets[run] != digit).double().mean().item() for run, digit in enumerate((2, 2, 5))]
    assert wrong("IRNN", P, symbols, targets).tolist() == pytest.approx(share)


SMALL = RETRIEVAL | {"retrieval_seeds": 2, "updates": 6, "batch_size": 4}


@pytest.mark.parametrize("network", ["fast weights", "LSTM"])
def test_a_run_does_not_depend_on_who_is_beside_it(network):
    runs = {}
    for rates in ([0.02], [0.02, 0.1]):
        (race,) = printed("race", **SMALL, STEP_SIZES={network: rates})
        runs[len(rates)] = race(network, 0)
    one, two = runs[1], runs[2]
    assert one["curve"].shape == (2, 6)
    assert two["curve"].shape == (4, 6)
    assert two["tuned_on"] == pytest.approx(two["curve"][:, -1].reshape(2, 2).mean(0))
    for name in one.keys() - {"tuned_on"}:
        assert np.asarray(two[name])[::2] == pytest.approx(np.asarray(one[name]), abs=2e-4), name
    assert not np.allclose(two["out"][0], two["out"][1])
    assert not np.allclose(two["out"][0], two["out"][2])


def raced(**more):
    """Two seeds and three step sizes of one network; run 3 · seed + rate."""
    runs = {"network": "IRNN", "final": np.array([60.0, 10, 40, 62, 30, 20]), "tuned_on": np.array([61.0, 25, 30])}
    return pd.DataFrame([runs | {"curve": np.arange(12.0).reshape(6, 2)} | more])


def test_the_best_step_size_is_chosen_on_other_strings():
    (best_of,) = printed("best_of", raced=raced(), STEP_SIZES={"IRNN": [1, 2, 3]}, **SMALL)
    chosen, errors, curves = best_of("IRNN")
    assert chosen == 1
    assert errors.tolist() == [10, 30]
    assert curves.tolist() == [[2, 3], [8, 9]]


def test_errors_by_place_are_of_the_chosen_runs():
    P = {name: one.float() for name, one in doubles("IRNN", [0] * 6).items()}
    P["out"].zero_()
    P["c"].zero_()
    for run in range(6):
        P["c"][run, 0, run] = 1  # run i always answers i
    frame = raced(**{name: list(one.numpy()) for name, one in P.items()})
    (error_by_place,) = printed("error_by_place", raced=frame, STEP_SIZES={"IRNN": [1, 2, 3]}, **SMALL)
    with torch.no_grad():
        found = error_by_place("IRNN")
    drawn = tasks.retrieval(2, 5_000, torch.Generator().manual_seed(3 * 10**6))
    for seed, place in itertools.product(range(2), range(2)):
        missed = drawn.targets[drawn.answers == place] != 3 * seed + 1
        assert found[seed, place] == pytest.approx(100 * missed.double().mean().item())


def test_a_network_that_knows_its_letters_looks_at_the_letter():
    own = RETRIEVAL | {"units": 37}
    one_each = {"U": torch.eye(37)[None], "W": torch.zeros(1, 37, 37), "gain": torch.ones(1, 1, 37)}
    (right_weight,) = printed("right_weight", **own, P=one_each | {"bias": torch.zeros(1, 1, 37)})
    assert right_weight() == pytest.approx((1, 0, 1 / 6))


def test_claims_have_the_sign_that_they_say():
    told = []
    fake = types.SimpleNamespace(
        over_seeds=lambda gap, **about: gap, claim=lambda *of, **about: told.append((of, about))
    )
    best = {"LSTM": (0, np.array([5.0, 7])), "fast weights": (0, np.array([2.0, 3]))}
    by_kind = {name: types.SimpleNamespace(error=pd.Series(errors)) for name, (_, errors) in best.items()}
    errs_less, ahead = printed(
        "errs_less",
        "ahead",
        ledger=fake,
        by_kind=by_kind,
        images=types.SimpleNamespace(name="digits"),
        **SMALL,
    )
    errs_less.__globals__.update(best_of=best.get, ledger=fake)
    errs_less("one", "Less", "LSTM", "fast weights", source="", reported="")
    ahead("two", "Ahead", "LSTM")
    assert [of[0] for of, _ in told] == ["one", "two"]
    for of, about in told:
        assert about["measured"].tolist() == [3, 4]
        assert np.all(about["holds"])
        assert "“LSTM” less that of “fast weights”" in of[1]


@pytest.mark.parametrize("side", [8, 28])
def test_glimpses_of_a_picture(side):
    (glimpses,) = printed("glimpses")
    pictures, q = torch.rand(3, side, side), side // 4
    seen = glimpses(pictures)
    assert seen.shape == (24, 3, q * q)
    for picture, quadrant in itertools.product(range(3), range(4)):
        top, left = 2 * q * (quadrant // 2), 2 * q * (quadrant % 2)
        part = pictures[picture, top : top + 2 * q, left : left + 2 * q]
        coarse = (part[::2, ::2] + part[1::2, ::2] + part[::2, 1::2] + part[1::2, 1::2]) / 4
        quarters = [part[i : i + q, j : j + q] for i in (0, q) for j in (0, q)]
        for glimpse, right in enumerate([coarse, *quarters, coarse]):
            torch.testing.assert_close(seen[6 * quadrant + glimpse, picture], right.flatten())


def with_readers(*names, **more):
    with_matrix, without_matrix, irnn = printed("with_matrix", "without_matrix", "irnn")
    own = GIVEN | {"with_matrix": with_matrix, "without_matrix": without_matrix, "irnn": irnn}
    return printed(*names, READERS=assigned("READERS", own), **more)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_last_states_with_and_without_the_matrix(rate):
    with_matrix, without_matrix = printed("with_matrix", "without_matrix")
    cell, x = random_cell(rate=rate)
    torch.testing.assert_close(with_matrix(cell, x), unroll(cell, x)[0][-1])
    cell.rate = 0.0
    torch.testing.assert_close(without_matrix(cell, x), unroll(cell, x)[0][-1])


def test_an_irnn_begins_as_a_memory():
    (irnn,) = printed("irnn")
    rnn = irnn(3, 5)
    x = torch.cat([torch.rand(1, 2, 3), torch.zeros(6, 2, 3)])
    states = rnn(x)[0]
    torch.testing.assert_close(states, (x[0] @ rnn.weight_ih_l0.T).relu().expand_as(states))


def test_readers_tell_a_step_and_see_a_glimpse():
    READERS, Reader = with_readers("READERS", "Reader")
    torch.manual_seed(0)
    layer_normalised = 50 * (73 + 50 + 2)
    for kind in READERS:
        net = Reader(kind, 7**2)
        own = {"LSTM": 4 * layer_normalised, "IRNN": layer_normalised}.get(kind, layer_normalised)
        assert sum(weights.numel() for weights in net.parameters()) == own + 51 * 10
        pictures = torch.rand(3, 28, 28)
        scores = net(pictures)
        assert scores.shape == (3, 10)
        shuffled = pictures.view(3, 2, 14, 28).flip(1).reshape(3, 28, 28)  # the halves exchanged
        assert not torch.allclose(net(shuffled), scores)
        torch.testing.assert_close(net(pictures[:1]), scores[:1], atol=1e-5, rtol=1e-4)


def test_what_is_read_grows_with_the_rate():
    data = datasets.load("digits")
    (lengths,) = with_readers("lengths", images=data, side=8)
    slight, usual = lengths(0.05), lengths(0.5)
    assert len(usual) == 24
    assert usual[0] == slight[0] == 0
    assert usual[1] == pytest.approx(10 * slight[1], rel=1e-4)
    assert slight[-1] < usual[-1]


def test_readers_are_told_the_step():
    Reader, glimpses = with_readers("Reader", "glimpses")
    net, seen = Reader("LSTM", 7**2), []
    net.recurrent.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pictures = torch.rand(3, 28, 28)
    net(pictures)
    assert torch.equal(seen[0][..., :49], glimpses(pictures))
    assert torch.equal(seen[0][..., 49:], torch.eye(24)[:, None].expand(-1, 3, -1))


def test_reading_is_judged_on_pictures_that_were_not_trained_on():
    data = datasets.load("digits")
    kept = len(data.train_images) // 12
    poisoned = data.train_images.clone()
    poisoned[-kept:] = torch.nan  # kept for the choice of step sizes, and so in no training
    loaded = types.SimpleNamespace(
        **{name: getattr(data, name) for name in ("test_images", "test_labels", "train_labels")}
    )
    loaded.train_images = poisoned
    own = {"dataset": "digits", "glimpse_images": 10_000, "glimpse_epochs": 1, "glimpse_batch": 25}
    results = []
    for images, held_out in ((data, True), (data, False), (loaded, False)):
        fake = types.SimpleNamespace(load=lambda *of, images=images, **options: images)
        (reading,) = with_readers("reading", datasets=fake, **own)
        torch.manual_seed(0)
        results.append(reading("IRNN", 0.004, held_out, 0))
    held, unseen, again = results
    assert unseen == again
    assert len(held["losses"]) == 30
    assert held["losses"] == pytest.approx(unseen["losses"])
    assert held["losses"][-1] < 0.8 * held["losses"][0]
    for one, count in ((held, kept), (unseen, len(data.test_images))):
        assert one["error"] < 85
        assert one["error"] * count / 100 == pytest.approx(round(one["error"] * count / 100))
