"""Chapter 13: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import ast
import copy
import functools
import itertools
import math
import types
from operator import add

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.autograd.functional import jvp, vjp
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from shared import datasets, synthetic_gradients, tasks
from shared.exercises import chapter13
from shared.recurrent import Cell, LSTMCell, TanhCell, unroll
from shared.synthetic_gradients import DecoupledStack, GradientPredictor, LossPredictor, window_backward
from tools.book import chapter_paths, code_cells, read

NOTEBOOK = read(chapter_paths("13")[0])
GIVEN = {"itertools": itertools, "math": math, "np": np, "torch": torch, "nn": nn, "chapter13": chapter13}
GIVEN |= {"cross_entropy": cross_entropy, "mse_loss": mse_loss, "one_hot": one_hot, "partial": functools.partial}
GIVEN |= {"datasets": datasets, "synthetic_gradients": synthetic_gradients, "tasks": tasks, "unroll": unroll}
GIVEN |= {"Cell": Cell, "LSTMCell": LSTMCell, "TanhCell": TanhCell, "window_backward": window_backward}
GIVEN |= {
    "DecoupledStack": DecoupledStack,
    "GradientPredictor": GradientPredictor,
    "LossPredictor": LossPredictor,
    "depths": [3, 5],  # smaller settings than the chapter's
    "H": 12,
    "PREDICTORS": {},
    "discount": 0.3,
    "process_width": 7,
    "PIXELS": 11,
    "CLASSES": 4,
}


def printed(*names, **more):
    """What the chapter defines under these names, where it may use `more` beside what is given to all, and before what it sets."""
    *found, one = conftest.printed(NOTEBOOK, GIVEN | more, *names, "one_way")
    one.__globals__.update(more)
    return found


TABLES = {"PREDICTORS", "LINEAR", "HELPERS", "LEARN"}


def with_tables(*names, **more):
    """As `printed`, with the tables of methods as the chapter leaves them."""
    namespace = printed("stack_of", **more)[0].__globals__
    for cell in code_cells(NOTEBOOK):
        for node in ast.parse(cell.source).body:
            targets = getattr(node, "targets", [getattr(node, "target", node)]) if _assigns(node) else []
            if any(getattr(part, "id", None) in TABLES for target in targets for part in ast.walk(target)):
                exec(compile(ast.Module([node], []), "a chapter's cell", "exec"), namespace)
    return [namespace[name] for name in names]


def _assigns(node):
    return isinstance(node, ast.Assign | ast.AugAssign)


def drawn(module, seed=0, std=0.5):
    """The module with random numbers for parameters, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = std * torch.randn(parameter.shape, generator=generator)
    return module.double()


def doubles(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(module):
    return [p.grad for p in module.parameters()]


close = torch.testing.assert_close


def brought_down(h, piece, g, sign=1, power=0):
    """Jᵀ g times the batch size to some power; as it stands, it is right."""
    return sign * len(h) ** power * vjp(piece, h, g.detach())[1]


def by_backward(h, piece, g):
    h = h.requires_grad_()
    piece(h).backward(g)
    return h.grad


def by_backward_of_the_piece_alone(h, piece, g):
    return by_backward(h, piece, g.detach())


def slope(h, piece, g, of=torch.sum):
    h = h.requires_grad_()
    return torch.autograd.grad(of(piece(h)), h)[0]


def nearer(h, piece, g, reduction="sum"):
    return slope(h, piece, g, lambda up: torch.nn.functional.mse_loss(up, g.detach(), reduction=reduction))


def forwards(h, piece, g):
    if g.shape != h.shape:
        return brought_down(h, piece, g)
    return jvp(piece, h, g.detach())[1]


def said(h, W, b, y, chances, scale=1.0, squared=False, of=(0, 1, 2)):
    """The gradient for every label by autograd, and their means and variances; as it stands, it is right."""
    every = []
    for label in range(len(W)):
        one = h.clone().requires_grad_()
        scores, labels = one @ W.T + b, torch.full((len(h),), label)
        loss = (
            (scores - one_hot(labels, len(W))).square().sum() / 2 if squared else cross_entropy(scores, labels) * len(h)
        )
        every.append(torch.autograd.grad(loss, one)[0])
    every = torch.stack(every, 1)
    mean = (chances[..., None] * every).sum(1)
    missed = (chances * (every - mean[:, None]).square().sum(2)).sum(1)
    right = (scale * every[torch.arange(len(h)), y], mean, missed)
    return tuple(right[i] for i in of)


def but(i, wrong):
    """All of `said` but for the i-th, which is `wrong` of the same arguments."""

    def answer(*given):
        found = list(said(*given))
        found[i] = wrong(*given)
        return found

    return answer


def scores(h, W, b, y, chances):
    return h @ W.T + b


def likeliest(h, W, b, y, chances):
    return said(h, W, b, chances.argmax(1), chances)[0]


def walked(tensor, without=()):
    """Every leaf below a tensor, if some nodes were not there."""
    leaves, layer, seen = set(), {tensor.grad_fn}, {None, *without}
    while layer := layer - seen:
        seen |= layer
        leaves |= {node.variable for node in layer if hasattr(node, "variable")}
        layer = {after for node in layer for after, _ in node.next_functions}
    return leaves


def closing(tensor, wanted, candidates, closes=lambda left, wanted: left == wanted):
    """As it stands, it is right."""
    left = {name: walked(tensor, {one.grad_fn}) for name, one in candidates.items()}
    return [name for name in candidates if closes(left[name], set(wanted))]


def by_recursion(tensor, wanted, candidates):
    def leaves(node, cut):
        if node is None or node is cut:
            return set()
        if hasattr(node, "variable"):
            return {node.variable}
        return set().union(*(leaves(before, cut) for before, _ in node.next_functions))

    return {name for name, one in candidates.items() if leaves(tensor.grad_fn, one.grad_fn) == {*wanted}}


def on_a_way(tensor, wanted, candidates):
    return [name for name, one in candidates.items() if walked(one) - set(wanted)]


def just_the_leak(tensor, wanted, candidates):
    forbidden = walked(tensor) - set(wanted)
    return [name for name, one in candidates.items() if walked(one) == forbidden]


def all_of_the_leak(tensor, wanted, candidates):
    forbidden = walked(tensor) - set(wanted)
    return [name for name, one in candidates.items() if forbidden <= walked(one)]


def simulated(forward, backward, predictor, delay, parts):
    """One after the other, by the clock; this is right."""

    def makespan(durations, m):
        """When each part leaves the last of the processes, if all wait at the first."""
        done = [0.0] * m
        for i, duration in enumerate(durations):
            free = 0.0
            for k in range(m):
                free = done[k] = max(free, done[k] + (delay if i else 0)) + duration / m
        return done[-1]

    turns = []
    for m in (1, parts):
        turns.append(makespan(forward, m) + makespan(backward[::-1], m))
    clock, left = [0.0] * len(forward), []
    for _ in range(200):
        arrives = 0.0
        for i, work in enumerate(zip(forward, backward, predictor, strict=True)):
            begins = max(clock[i], arrives)
            arrives, clock[i] = begins + work[0] + delay, begins + sum(work)
        left.append(clock[-1])
    return *turns, (left[-1] - left[-51]) / 50


def late(i, change):
    """`simulated`, of which the i-th number is changed by a function of all that was given, and of that number."""

    def answer(*given):
        found = list(simulated(*given))
        found[i] = change(*given, found[i])
        return found

    return answer


def travel(f, delay):
    return 2 * (len(f) - 1) * delay


def mixed(steps, lam, rest=True, first=0):
    """As it stands, it is right."""
    weights = [(1 - lam) * lam ** (first + k) for k in range(steps)]
    if rest:
        weights[-1] = 1 - sum(weights[:-1])
    return torch.tensor(weights)


def shared(share, steps, lam):
    shares = torch.tensor([float(share(lam, k)) for k in range(steps)])
    return shares / shares.sum()


WRONG = [
    ("target", lambda h, piece, g: g, "the chain rule makes another of it"),
    ("target", functools.partial(brought_down, power=-1), "^yours is 3 times too small"),
    ("target", functools.partial(brought_down, power=1), "^yours is 3 times too large"),
    ("target", functools.partial(brought_down, sign=-1), "the sign is wrong"),
    ("target", lambda h, piece, g: brought_down(h, piece, g / g.numel()), "you took a mean somewhere"),
    ("target", slope, "the slope of the sum .* the prediction is not in it"),
    ("target", functools.partial(slope, of=torch.mean), "the slope of the mean"),
    ("target", forwards, "that is J times the prediction"),
    ("target", nearer, "not an activation to come near"),
    ("target", functools.partial(nearer, reduction="mean"), "not an activation to come near"),
    ("target", by_backward_of_the_piece_alone, "left something in the .grad of the piece"),
    ("target", by_backward, "left something in the .grad of the piece"),
    ("target", lambda h, piece, g: vjp(piece, h, g, create_graph=True)[1], "hangs on a graph still"),
    ("target", lambda *of: brought_down(*of).mean(0), r"should have shape \(3, 4\) \(got \(4,\)\)"),
    ("target", lambda *of: math.nan * brought_down(*of), "off by nan"),
    ("target", lambda *of: 0.9 * brought_down(*of), "off by 0.1 of the largest"),
    ("predictions", lambda *of: said(*of)[:2], "return three tensors"),
    ("predictions", functools.partial(said, of=(1, 1, 2)), "^with the label: the first sees the label"),
    ("predictions", functools.partial(said, squared=True), "^with the label: that is for squared errors"),
    ("predictions", lambda h, W, b, *of: said(h, W, 0 * b, *of), "the bias of the scores is missing"),
    ("predictions", functools.partial(said, scale=1 / 7), "each example's own loss, not of the mean"),
    ("predictions", functools.partial(said, scale=-1), "^with the label: the sign is wrong"),
    ("predictions", but(0, lambda h, W, b, y, _: -W[y]), "it also counts what the network says"),
    ("predictions", functools.partial(said, scale=2), r"^with the label: off by 1 of the largest"),
    (
        "predictions",
        lambda *of: said(*of[:4], scores(*of).softmax(1)),
        "the softmax were the chances|only if the network",
    ),
    ("predictions", but(1, likeliest), "not the likeliest label's"),
    ("predictions", functools.partial(said, of=(0, 0, 2)), "^without the label: .* must not see the label"),
    ("predictions", but(1, lambda *of: scores(*of).softmax(1) @ of[1]), "count like a label of which a part is sure"),
    ("predictions", lambda *of: said(*of[:4], of[4].mean(0).expand_as(of[4])), "every example has chances of its own"),
    ("predictions", but(2, lambda *of: said(*of)[2] / 5), "that is the mean over features"),
    ("predictions", but(2, lambda *of: of[4] @ of[1].square().sum(1)), "square of the mean has to be taken off"),
    ("predictions", but(2, lambda *of: (of[4] - of[4] ** 2).sum(1)), "W makes a gradient of it"),
    ("predictions", but(2, lambda *of: (said(*of)[0] - said(*of)[1]).square().sum(1)), "for this label"),
    ("predictions", but(2, lambda *of: said(*of)[2].sqrt()), "that is the root"),
    ("predictions", but(2, lambda *of: said(*of)[1].square().sum(1)), "own squared length"),
    ("predictions", but(2, lambda *of: said(*of)[2][:, None]), r"should have shape \(7,\) \(got \(7, 1\)\)"),
    (
        "leak",
        lambda tensor, wanted, candidates: candidates,
        "“scores” is detached, this is lost: top.weight and top.bias",
    ),
    ("leak", lambda *of: closing(*of)[:1], "“h” would do: detached, it leaves exactly what is wanted"),
    ("leak", lambda *of: closing(*of)[-1:], "of a, h, scores, loss: “a” would do"),
    ("leak", lambda *of: [], "of a, h, scores, loss: “a” would do"),
    ("leak", on_a_way, "this is lost: top.weight and top.bias"),
    ("leak", just_the_leak, "this is still reached|would do"),
    ("leak", all_of_the_leak, "this is lost"),
    ("leak", functools.partial(closing, closes=set.issubset), "this is lost"),
    ("leak", functools.partial(closing, closes=set.issuperset), "this is still reached: [a-z]"),
    ("leak", lambda *of: walked(of[0]), "return a list of names"),
    ("leak", lambda *of: ["nothing"], "return a list of names"),
    ("leak", lambda tensor, wanted, candidates: tensor.nothing, "stopped with AttributeError: 'Tensor' object"),
    ("seconds", late(0, lambda f, b, s, c, m, t: t - (len(f) - 1) * c), "^locked: what goes up has to come down again"),
    ("seconds", late(0, lambda f, b, s, c, m, t: sum(f + b) + 2 * len(f) * c), "P processes have P − 1 borders"),
    ("seconds", late(0, lambda f, b, s, c, m, t: sum(f + b)), "while the only batch is under way, nobody can work"),
    ("seconds", late(0, lambda f, b, s, c, m, t: t + sum(s)), "no predictors to pay for"),
    (
        "seconds",
        late(0, lambda f, b, s, c, m, t: max(map(add, f, b)) + travel(f, c)),
        "^locked: one process works at a time",
    ),
    ("seconds", late(1, lambda f, b, s, c, m, t: m * (t - travel(f, c)) + travel(f, c)), "a part takes an m-th"),
    ("seconds", late(1, lambda f, b, s, c, m, t: sum(f + b) / m + travel(f, c)), "only the first finds every one free"),
    ("seconds", late(1, lambda f, b, s, c, m, t: sum(f + b) / len(f) + travel(f, c)), "has to fill and to empty"),
    ("seconds", late(1, lambda f, b, s, c, m, t: t + (max(f) + max(b)) / m), "the first part is in the sum already"),
    ("seconds", late(1, lambda f, b, s, c, m, t: t - (m - 1) / m * travel(f, c)), "however small the part"),
    ("seconds", late(1, lambda f, b, s, c, m, t: t + (m - 1) * travel(f, c)), "the delay is paid once a border"),
    ("seconds", late(2, lambda f, b, s, c, m, t: sum(f + b + s)), "work at the same time"),
    ("seconds", late(2, lambda f, b, s, c, m, t: np.mean([f, b, s]) * 3), "waits for the next batch"),
    ("seconds", late(2, lambda f, b, s, c, m, t: max(map(add, f, b))), "the predictor is work, too|for 3 processes"),
    ("seconds", late(2, lambda f, b, s, c, m, t: max(f) + max(b) + max(s)), "one process is the slowest as a whole"),
    ("seconds", late(2, lambda f, b, s, c, m, t: t + travel(f, c)), "older, not rarer"),
    ("seconds", late(2, lambda f, b, s, c, m, t: t + c), "older, not rarer"),
    ("seconds", lambda *of: simulated(*of)[0], "return three numbers"),
    ("seconds", lambda *of: (*simulated(*of)[:2], 1e4), r"decoupled: for 3 processes you say 10000.000 s, and it"),
    ("seconds", lambda *of: (0.0, *simulated(*of)[1:]), r"locked: for 3 processes you say 0.000 s, and it"),
    ("mixture", functools.partial(mixed, rest=False), r"add up to 0\.\d+: the last window"),
    ("mixture", lambda steps, lam: [lam**k for k in range(steps)], r"add up to \d\.\d+: of what is left"),
    ("mixture", lambda *of: shared(lambda lam, k: lam**k, *of), "powers that add up to one, but"),
    ("mixture", lambda *of: mixed(*of).flip(0), "the wrong way round"),
    ("mixture", functools.partial(mixed, rest=False, first=1), "one too large"),
    ("mixture", lambda steps, lam: [1 / steps] * steps, "that is the plain mean"),
    ("mixture", lambda *of: shared(lambda lam, k: k + 1, *of), r"add up to one, but with λ = 0.\d\d one is off by 0"),
    ("mixture", lambda *of: 2 * mixed(*of), r"with λ = 0.\d\d yours add up to 2.000; if all windows agree"),
    ("mixture", lambda *of: math.nan * mixed(*of), "add up to nan"),
    ("mixture", lambda steps, lam: mixed(steps + 1, lam), r"should have shape \(5,\)"),
]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("target", brought_down),
        ("target", lambda h, piece, g: slope(h, piece, g, lambda up: (up * g.detach()).sum())),
        ("predictions", said),
        ("leak", closing),
        ("leak", by_recursion),
        ("seconds", simulated),
        ("mixture", mixed),
    ],
)
def test_other_ways_to_the_right_answer(name, answer):
    assert getattr(chapter13, name).problem(answer) is None


def test_what_is_found_by_walking_is_what_detaching_does():
    a, b, c = (torch.randn(3).requires_grad_() for _ in range(3))

    def graph(detached):
        made = {}
        for name, make in {
            "p": lambda: a * b,
            "q": lambda: made["p"] + c.tanh(),
            "r": lambda: made["q"] * made["p"],
            "s": lambda: (made["r"] * b).sum(),
        }.items():
            made[name] = make().detach() if name == detached else make()
        return made

    for name, one in graph(None).items():
        s = graph(name)["s"]
        found = torch.autograd.grad(s, (a, b, c), allow_unused=True) if s.requires_grad else (None,) * 3
        reached = {leaf for leaf, slope in zip((a, b, c), found, strict=True) if slope is not None}
        assert chapter13._reached(graph(None)["s"]) == {a, b, c}
        whole = graph(None)
        assert chapter13._reached(whole["s"], whole[name]) == reached, one


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_the_mixture_of_windows_is_the_lambda_target(lam):
    torch.manual_seed(0)
    J, losses, g = torch.randn(5, 3, 3).double(), torch.randn(6, 3).double(), torch.randn(6, 3).double()
    g[-1], gamma, target = 0, 0.8, torch.zeros(3).double()

    def window(t, n):
        """The target of a window of n steps, which begins at step t."""
        after = window(t + 1, n - 1) if n > 1 else g[t + 1]
        return J[t].T @ (losses[t + 1] + gamma * after)

    (solution,) = conftest.printed(NOTEBOOK, GIVEN, "solution_mixture")
    for t in reversed(range(5)):
        target = J[t].T @ (losses[t + 1] + gamma * ((1 - lam) * g[t + 1] + lam * target))
        windows = torch.stack([window(t, n) for n in range(1, 6 - t)])
        torch.testing.assert_close(torch.as_tensor(solution(5 - t, lam)).double() @ windows, target)


def test_boxes_start_as_soon_as_they_can():
    (earliest_starts,) = printed("earliest_starts")
    boxes = {"a": ("m", 2, []), "b": ("n", 1, ["a"]), "c": ("m", 3, ["b"]), "d": ("m", 1, ["a"]), "e": ("n", 4, [])}
    assert earliest_starts(boxes) == {"a": 0, "b": 4, "c": 5, "d": 2, "e": 0}
    draw = np.random.default_rng(0)
    for _ in range(20):
        boxes = {
            k: (int(draw.integers(3)), int(draw.integers(1, 5)), [j for j in range(k) if draw.random() < 0.2])
            for k in range(15)
        }
        starts = earliest_starts(boxes)
        ends = {name: start + boxes[name][1] for name, start in starts.items()}
        for name, (machine, _, needs) in boxes.items():
            before = [ends[one] for one in boxes if boxes[one][0] == machine and starts[one] < starts[name]]
            before += [ends[one] for one in needs]
            assert starts[name] == max(before, default=0)


@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.parametrize("opened", [0, 2, 3])
def test_who_waits_for_whom_with_so_many_locks_opened(opened, depth):
    boxes_of, earliest_starts = printed("boxes_of", "earliest_starts")
    boxes = boxes_of(opened, 3, depth)

    @functools.cache
    def waited_for(name):
        return frozenset({name}).union(*map(waited_for, boxes[name][2]))

    extra = {0: 0, 2: 1.5, 3: 3}[opened] * (depth - 1)
    assert sum(duration for _, duration, _ in boxes.values()) == 3 * (3 * depth + extra)
    assert all(machine == layer for (_, layer, _), (machine, _, _) in boxes.items())
    for i, b in itertools.product(range(1, depth + 1), range(3)):
        reads, back = waited_for(("forward", i, b)), waited_for(("back", i, b))
        above = {layer for _, layer, batch in back if batch == b and layer > i}
        below = {layer for _, layer, batch in reads if batch == b and layer < i}
        assert above == (set(range(i + 1, depth + 1)) if opened == 0 else set())
        assert below == (set() if opened == 3 else set(range(1, i)))
        assert ("forward", i, b) in back
        assert b == 0 or ("back", i, b - 1) in reads
        if opened and i < depth:
            assert ("back", i + 1, b) in boxes["train", i, b][2]
    starts = earliest_starts(boxes)
    if opened == 0:
        assert max(starts[name] + boxes[name][1] for name in boxes) == 3 * 3 * depth
    if opened == 3:
        assert all(starts["predict input", i, 0] == 0 for i in range(2, depth + 1))


@pytest.mark.parametrize(("sizes", "classes"), [((4, 3), 0), ((4, 6, 2), 3), ((3, 5, 4, 5, 2), 3), ((2, 3, 4, 5), 0)])
def test_the_loop_is_a_decoupled_stack(sizes, classes):
    (one_way,) = printed("one_way")
    layers = [nn.Sequential(nn.Linear(a, b), nn.Sigmoid()) for a, b in itertools.pairwise(sizes)]
    guess = [GradientPredictor(n, classes, (4,) * (k % 2)) for k, n in enumerate(sizes[1:-1])]
    stack = drawn(DecoupledStack(layers, dict(enumerate(guess, 1))))
    x, y = doubles(6, sizes[0]), torch.arange(6) % 3 if classes else None
    seen = []
    found = one_way(
        layers, guess, x, y, lambda o: o.square().sum(1).exp(), lambda *of: seen.append([len(part) for part in of])
    )
    stack.backward(x, lambda o: o.square().sum(1).exp(), y)
    for mine, modules in zip(found, (layers, guess), strict=True):
        for ours, module in zip(mine, modules, strict=True):
            close(list(ours), gradients(module))
    assert seen == [[2, 2]] * len(layers)


def test_a_loop_that_updates_at_once_uses_no_new_weights():
    one_way, change = printed("one_way", "change")
    layers = [drawn(nn.Linear(3, 3), seed) for seed in range(3)]
    guess = [drawn(GradientPredictor(3), seed) for seed in (3, 4)]
    twin, x = copy.deepcopy(layers), doubles(5, 3)
    found, _ = one_way(layers, guess, x, None, lambda o: o.square().sum(1))
    one_way(twin, guess, x, None, lambda o: o.square().sum(1), at_once=functools.partial(change, step=0.1))
    for layer, new, grads in zip(layers, twin, found, strict=True):
        close(
            [p.data for p in new.parameters()],
            [p.data - 0.1 * g for p, g in zip(layer.parameters(), grads, strict=True)],
        )


def test_leaves_of_a_graph_are_what_is_reached():
    (leaves,) = printed("leaves")
    a, b, c, d = (torch.randn(3, requires_grad=True) for _ in range(4))
    joined = (a * b + a.exp()).cumsum(0)
    for tensor, wanted in [
        (joined.sum(), {a, b}),
        (joined * c, {a, b, c}),
        (joined.detach() * c, {c}),
        (torch.stack([joined, c])[1] @ d, {a, b, c, d}),
    ]:
        assert leaves(tensor.grad_fn) == synthetic_gradients.reached(tensor) == wanted
    assert leaves(joined.detach().grad_fn) == set()


def gaussian(inputs=5, units=3, outputs=2, count=60, seed=0):
    """W_1, W_2, C, Σ and a straightened sample of x and of noise."""
    (straightened,) = printed("straightened")
    white, noise = straightened(count, inputs, outputs, generator=torch.Generator().manual_seed(seed))
    root = torch.eye(inputs).double() + doubles(inputs, inputs, seed=1) / 3
    W_1, W_2, C = doubles(units, inputs, seed=2), doubles(outputs, units, seed=3), doubles(outputs, inputs, seed=4)
    return W_1, W_2, C, root @ root.T, white @ root.T, noise


def test_straightened_columns_have_the_moments_of_white_noise():
    *_, Sigma, xs, noise = gaussian()
    close(xs.T @ xs / 60, Sigma)
    close(noise.T @ noise / 60, torch.eye(2).double())
    close(xs.T @ noise, torch.zeros(5, 2).double())


def test_averages_given_h_are_regressions():
    (average_of_delta,) = printed("average_of_delta")
    W_1, W_2, C, Sigma, xs, noise = gaussian()
    A, unknown = average_of_delta(W_1, W_2, C, Sigma)
    h, delta = xs @ W_1.T, (xs @ (W_2 @ W_1 - C).T - 0.7 * noise) @ W_2
    close(A, torch.linalg.lstsq(h, delta).solution.T)
    left = xs - h @ torch.linalg.lstsq(h, xs).solution
    close(unknown, left.T @ left / 60)
    missed = delta - h @ A.T
    close(missed.T @ missed / 60, W_2.T @ (C @ unknown @ C.T + 0.49 * torch.eye(2)) @ W_2)


def test_what_the_first_layer_wants_and_gets():
    W_1, W_2, C, Sigma, xs, noise = gaussian()
    both_gradients, scatter, average_of_delta = printed(
        "both_gradients", "scatter", "average_of_delta", Sigma=Sigma, xs=xs, noise=noise
    )
    G, G_hat = both_gradients(W_1, W_2, C)
    delta = (xs @ (W_2 @ W_1 - C).T - 0.5 * noise) @ W_2
    A, unknown = average_of_delta(W_1, W_2, C, Sigma)
    close(G, delta.T @ xs / 60)
    close(G_hat, A @ W_1 @ Sigma)
    close(G - G_hat, -W_2.T @ C @ unknown)
    each = torch.stack([torch.outer(d, x).flatten() for d, x in zip(delta, xs, strict=True)])
    close(scatter(delta), torch.cov(each.T).trace())


def test_the_average_gradient_is_the_true_one_in_the_plane():
    generator, towards = torch.Generator(), torch.linspace(0, 0.9, 4)
    normal = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    (cosines_between,) = printed("cosines_between", normal=normal, towards=towards)
    generator.manual_seed(3)
    found = cosines_between(2, inputs=5, outputs=3, repeats=1)
    generator.manual_seed(3)
    C, W_1, first = normal(3, 5) / 5**0.5, normal(2, 5) / 5**0.5, normal(3, 2) / 2**0.5
    inverse = torch.linalg.pinv(W_1)
    for share, cosine in zip(towards.tolist(), found[0], strict=True):
        W_2 = (1 - share) * first + share * C @ inverse
        G = W_2.T @ (W_2 @ W_1 - C)
        assert cosine == pytest.approx(((G @ inverse @ W_1).norm() / G.norm()).item())
    assert cosines_between(5, inputs=5, repeats=3) == pytest.approx(np.ones((3, 4)))


def test_a_pair_without_labels_stays_in_its_plane():
    (straightened,) = printed("straightened")
    x, noise = straightened(40, 8, 2, generator=torch.Generator().manual_seed(0))
    C, start = doubles(2, 8) / 3, (doubles(2, 8, seed=1) / 3, doubles(2, 2, seed=2))
    y = x @ C.T + 0.2 * noise
    more = {"plane_C": C, "plane_x": x, "plane_y": y, "plane_loss": lambda o: (o - y).square().sum(1) / 2}
    (descend,) = printed("descend", **more)
    W_1, W_2, losses = *(one.clone().requires_grad_() for one in start), []
    for _ in range(12):
        loss = (x @ W_1.T @ W_2.T - y).square().sum(1).mean() / 2
        losses.append(loss.item())
        with torch.no_grad():
            for W, g in zip((W_1, W_2), torch.autograd.grad(loss, (W_1, W_2)), strict=True):
                W -= 0.3 * g
    for kind in ("backpropagation", "perfect, sees y"):
        found, last = descend(kind, start, updates=12, step=0.3)
        assert found == pytest.approx(losses)
        close(last, W_1.detach())
    plane = torch.linalg.pinv(start[0]) @ start[0]
    for kind in ("perfect", "learnt", "zero"):
        last = descend(kind, start, updates=12, step=0.3)[1]
        close(last @ plane, last)
        assert torch.equal(last, start[0]) == (kind == "zero")
    last = descend("learnt, sees y", start, updates=12, step=0.3)[1]
    assert (last - last @ plane).norm() > 0.01


METHODS = ["nothing below", "backprop", "no label", "label", "label only", "random feedback", "direct feedback"]
METHODS += ["local losses", "slope", "slope, tanh", "loss", "loss, tanh", "loss predicted above", "loss less the mean"]
METHODS += ["loss less what is said below"]
PREDICTING = [one for one in METHODS if "label" in one or one.startswith(("slope", "loss"))]


@pytest.mark.parametrize("depth", [2, 5])
def test_stacks_of_all_methods(depth):
    stack_of, RandomFeedback = with_tables("stack_of", "RandomFeedback")
    for method in METHODS:
        stack = stack_of(method, depth, 9)
        assert stack.places == (list(range(1, depth)) if method in PREDICTING else []), method
        shapes = [tuple(p.shape) for p in stack.layers.parameters() if p.ndim == 2]
        assert shapes == [(12, 9), *[(12, 12)] * (depth - 2), (10, 12)]
        assert stack(torch.randn(3, 9)).shape == (3, 10)
        linear = [one for one in stack.layers.modules() if isinstance(one, nn.Linear)]
        assert {isinstance(one, RandomFeedback) for one in linear} == {method == "random feedback"}
        learning = [p for p in stack.layers.parameters() if p.requires_grad]
        assert len(learning) == (2 if method == "nothing below" else 4 * depth - 2)
        weights = sum(p.numel() for p in stack.predictors.parameters()) / (depth - 1)
        if method in PREDICTING:
            tanh, linear = (12 + 10) * 12 + 12 + 13, 12 * 12 + 12 + 120 * (method != "no label")
            gradient = method in ("no label", "label", "label only")
            assert weights == (linear if gradient else tanh if "tanh" in method else 22 * 22 + 22), method
        helpers = {"direct feedback": (12, 10), "local losses": (10, 12)}
        shapes = [tuple(one.weight.shape) for one in stack.helpers]
        assert shapes == [helpers[method]] * (depth - 1) if method in helpers else not shapes


def test_a_predictor_of_the_label_alone():
    (LabelOnly,) = printed("LabelOnly")
    predictor, labels = drawn(LabelOnly(12, classes=10)), torch.tensor([3, 3, 7])
    h = doubles(3, 12)
    said = predictor(h, labels)
    assert torch.equal(said, predictor(doubles(3, 12, seed=1), labels))
    close(said[0], said[1])
    assert not torch.allclose(said[0], said[2])
    close(said[2], predictor.network[0].weight[:, 12 + 7] + predictor.network[0].bias)
    predictor.error(h, labels, said.detach() + 1, None).backward()
    close(gradients(predictor)[0][:, :12], torch.zeros(12, 12).double())


@pytest.mark.parametrize("method", ["label", "no label", "slope"])
def test_cosines_are_with_true_gradients_of_the_whole_batch(method):
    stack_of, cosines_of = with_tables("stack_of", "cosines_of")
    stack, x, labels = drawn(stack_of(method, 4, 9)), doubles(7, 9), torch.arange(7)
    found = cosines_of(stack, x, labels)
    activations = []
    hooks = [one.register_forward_hook(lambda *seen: activations.append(seen[2])) for one in stack.layers]
    loss = cross_entropy(stack(x), labels)
    true = torch.autograd.grad(loss, activations[-4:-1])
    for hook in hooks:
        hook.remove()
    for cosine, h, delta, M in zip(found, activations[-4:-1], true, stack.predictors, strict=True):
        said = M(h.detach(), None if method == "no label" else labels)
        assert cosine == pytest.approx(((said * delta).sum() / (said.norm() * delta.norm())).item())
    assert len(set(found)) == 3
    assert all(grad is None for grad in gradients(stack))


def test_images_kept_apart_and_what_adam_gets():
    data = types.SimpleNamespace(
        train_images=torch.rand(23, 3, 3), train_labels=torch.arange(23), test_images=torch.rand(4, 3, 3), test_labels=8
    )
    fake = types.SimpleNamespace(load=lambda name, fallback: data)
    pictures_of, stack_of, adam_for = with_tables("pictures_of", "stack_of", "adam_for", datasets=fake)
    x, labels, x_kept, labels_kept = pictures_of("any", True)
    assert labels.tolist() == list(range(19))
    assert labels_kept.tolist() == [19, 20, 21, 22]
    assert torch.equal(torch.cat((x, x_kept)), data.train_images.flatten(1))
    x, labels, x_test, _ = pictures_of("any", False)
    assert len(x) == len(labels) == 23
    assert torch.equal(x_test, data.test_images.flatten(1))
    for method, learning in [("nothing below", 2), ("label", 14), ("local losses", 20), ("direct feedback", 17)]:
        stack = stack_of(method, 4, 9)
        network, predictors = adam_for(stack, 0.1, 0.2).param_groups
        assert (network["lr"], predictors["lr"]) == (0.1, 0.2)
        assert (len(network["params"]), len(predictors["params"])) == (learning, 6 * (method == "label"))


@pytest.mark.parametrize("method", ["backprop", "label"])
def test_a_training_sees_no_image_that_it_is_tested_on(method):
    (trained,) = with_tables("trained")
    real = datasets.load("digits")
    poisoned = types.SimpleNamespace(**{n: getattr(real, n) for n in ("train_labels", "test_images", "test_labels")})
    poisoned.train_images = real.train_images.clone()
    poisoned.train_images[-(len(real.train_images) // 5) :] = torch.nan
    results = []
    for data, held_out in ((real, True), (poisoned, True), (real, False)):
        trained.__globals__["datasets"] = types.SimpleNamespace(load=lambda *of, data=data, **more: data)
        torch.manual_seed(0)
        results.append(trained(method, 3, 0.01, 0.003, 120, held_out=held_out))
    held, blind, final = results
    assert held["error"] < 40
    assert final["error"] < 40
    assert blind["error"] > 80
    if method == "label":
        moments = np.array(held["cosines"])
        assert moments.shape == (7, 2)
        assert np.array_equal(moments, blind["cosines"])
        assert not np.allclose(moments[0], moments[-1])
    else:
        assert held["cosines"] == []
    whole = len(real.train_images) // 5, len(real.test_images)
    for one, count in ((held, whole[0]), (final, whole[1])):
        assert one["error"] * count / 100 == pytest.approx(round(float(one["error"]) * count / 100), abs=1e-3)


def test_a_trained_stack_is_asked_as_it_will_be_used():
    trained, stack_of = with_tables("trained", "stack_of")
    kept, data = [], datasets.load("digits")
    trained.__globals__["stack_of"] = lambda *of: kept.append(stack_of(*of)) or kept[-1]
    torch.manual_seed(0)
    run = trained("label", 3, 0.01, 0.003, 15)
    (stack,) = kept
    assert not stack.training
    answers = stack(data.test_images.flatten(1)).argmax(1)
    assert run["error"] == pytest.approx(100 * (answers != data.test_labels).double().mean().item())


def test_claims_have_the_sign_that_they_say():
    class Gap(np.ndarray):
        def between(self, low, high):
            return (low < self) & (self < high)

    told = []
    fake = types.SimpleNamespace(
        over_seeds=lambda gap, **about: np.asarray(gap).view(Gap),
        claim=lambda *of, **about: told.append(about),
    )
    frame = pd.DataFrame({"method": list("aabb"), "depth": [3, 5, 5, 5], "error": [9.0, 1.0, 3.0, 2.5]})
    frame["cosines"] = [np.full((2, 2), k) + np.arange(2) for k in range(4)]
    images = types.SimpleNamespace(name="some")
    names = ("errors_of", "gap_claim", "cosine_claim", "cosines_at", "alignment")
    errors_of, gap_claim, cosine_claim, cosines_at, alignment = printed(*names, ledger=fake, images=images)
    assert errors_of(frame, "b").tolist() == [3.0, 2.5]
    assert errors_of(frame, "a", 3).tolist() == [9.0]
    assert cosines_at(frame, "b", 5).shape == (2, 2, 2)
    assert alignment(frame, "b", 5).tolist() == [2.5, 3.5]
    gap = np.array([0.5, -0.5, 2.0])
    gap_claim("a", "", gap, frame)
    gap_claim("b", "", gap, frame, -1.0, 1.0)
    cosine_claim("c", "", gap)
    assert [about["holds"].tolist() for about in told] == [
        [True, False, True],
        [True, True, False],
        [True, False, True],
    ]
    assert all(about["measured"].tolist() == gap.tolist() for about in told)


@pytest.mark.parametrize("form", ["quadratic", "tanh"])
def test_what_critics_say_is_the_slope_of_their_value(form):
    Critic, Bootstrapped, Sloped = printed("Critic", "Bootstrapped", "Sloped")
    below, h, labels = drawn(Critic("loss", form), 1), doubles(5, 12), torch.tensor([1, 1, 4, 9, 0])
    losses, grads = doubles(5, seed=2).exp(), doubles(5, 12, seed=3)
    below(doubles(5, 12, seed=4), labels)
    for critic in (
        Critic("loss", form),
        Critic("less below", form, below),
        Bootstrapped("loss", form),
        Sloped("g", form),
    ):
        drawn(critic, std=0.2)
        inside = h.clone().requires_grad_()
        value = critic.value(inside, labels)
        slope = torch.autograd.grad(value.sum(), inside)[0]
        close(critic(h, labels), slope)
        close(critic.said, value.detach())
        for k in range(3):
            ahead = h.clone()
            ahead[:, k] += 1e-5
            close((critic.value(ahead, labels) - value) / 1e-5, slope[:, k], atol=1e-3, rtol=1e-3)
        wanted = grads if isinstance(critic, Sloped) else losses
        error = critic.error(h, labels, grads, losses)
        close(error, (slope if isinstance(critic, Sloped) else value).sub(wanted).square().mean())
        error.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in list(critic.parameters())[:-1])
    assert hasattr(Bootstrapped("loss"), "loss")
    assert not hasattr(Critic("loss"), "loss")
    assert all(grad is None for grad in gradients(below))
    assert sum(p.numel() for p in Critic("less below", form, below).parameters()) == sum(
        p.numel() for p in below.parameters()
    )


def test_a_quadratic_form_is_one():
    (QuadraticForm,) = printed("QuadraticForm")
    assert all(p.abs().max() == 0 for p in QuadraticForm(5).parameters())
    form, z = drawn(QuadraticForm(5)), doubles(3, 5)
    A, a = form.map.weight, form.map.bias
    close(form(z)[:, 0], torch.stack([one @ A @ one + a @ one for one in z]))


def test_a_critic_that_is_fitted_to_a_difference():
    (Critic,) = printed("Critic")
    below, labels = drawn(Critic("loss"), 1), torch.arange(6)
    losses, h, h_below = doubles(6, seed=2).exp(), doubles(6, 12), doubles(6, 12, seed=3)
    above = drawn(Critic("less below", below=below), 2)
    below(h_below, labels)
    baseline, alone = below.value(h_below, labels).detach(), above.scalar.loss(h, labels)
    close(above.error(h, labels, None, losses), mse_loss(alone, losses - baseline))
    mean = drawn(Critic("less mean"), 2)
    close(mean.error(h, labels, None, losses), mse_loss(mean.scalar.loss(h, labels), losses - losses.mean()))
    close(mean(h, labels), above(h, labels))


@pytest.mark.parametrize("method", ["loss", "loss predicted above", "loss less what is said below"])
def test_what_critics_in_a_stack_are_fitted_to(method):
    stack_of, by_prediction = with_tables("stack_of", "by_prediction")
    stack, x, labels = drawn(stack_of(method, 4, 9), std=0.3), doubles(6, 9), torch.arange(6)
    by_prediction(stack, x, labels)
    found = [[p.grad.clone() for p in one.parameters()] for one in stack.predictors]
    given = list(itertools.accumulate(stack.layers, lambda h, layer: layer(h).detach(), initial=x))[1:]
    losses = cross_entropy(given.pop(), labels, reduction="none")
    said, below = [], 0
    for h, critic in zip(given, stack.predictors, strict=True):
        below = critic.scalar.loss(h, labels) + (below if method.endswith("below") else 0)
        said.append(below)
        below = below.detach()
    for k, critic in enumerate(stack.predictors):
        target = said[k + 1].detach() if method.endswith("above") and k < 2 else losses
        close(found[k], list(torch.autograd.grad(mse_loss(said[k], target), list(critic.parameters()))))


def test_what_predictors_explain_of_a_network_that_stands_still():
    images = types.SimpleNamespace(train_images=torch.rand(121, 3, 3), train_labels=torch.arange(121) % 10)
    frozen_network, fitted = with_tables("frozen_network", "fitted", images=images, fit_updates=30)
    torch.manual_seed(0)
    h, labels, losses, grads = frozen_network()
    assert h.shape == grads.shape == (121, 12)
    assert not any(one.requires_grad for one in (h, losses, grads))
    asked = []

    class Zero(GradientPredictor):
        def error(self, h, labels, gradients, losses):
            asked.append(gradients)
            return super().error(h, labels, gradients, losses) * 0

    one = fitted.__globals__
    one["PREDICTORS"] = {"label": lambda below: Zero(12, 10)}
    one["frozen_network"] = lambda: (h, labels, losses, grads)
    assert fitted("gradient", 10**4, 0.01, 0)["slopes"].item() == pytest.approx(0, abs=1e-6)
    seen = torch.cat(asked)
    assert {tuple(row) for row in seen.tolist()} <= {tuple(row) for row in grads[:100].tolist()}
    asked.clear()
    fitted("gradient", 3, 0.01, 0)
    assert {tuple(row) for row in torch.cat(asked).tolist()} == {tuple(row) for row in grads[:3].tolist()}

    class Right(nn.Module):
        def __init__(self):
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(()))

        def forward(self, h, labels):
            return grads[-21:]

        def value(self, h, labels):
            return losses[-21:]

        def error(self, *of):
            return self.nothing

    one["PREDICTORS"] = {"loss": lambda below: Right()}
    assert fitted("loss", 10, 0.01, 0) == {"slopes": 1, "values": 1}


def test_random_feedback_goes_back_through_its_matrices():
    (RandomFeedback,) = printed("RandomFeedback")
    torch.manual_seed(0)
    layers = [RandomFeedback(a, b).double() for a, b in ((4, 6), (6, 5), (5, 3))]
    x = doubles(7, 4).requires_grad_()
    given = list(itertools.accumulate(layers, lambda h, layer: layer(h).tanh(), initial=x))
    given[-1].square().sum().backward()
    error = 2 * given[-1]
    for layer, h, out in zip(reversed(layers), given[-2::-1], given[:0:-1], strict=True):
        error = error * (1 - out**2)
        close(layer.weight.grad, error.T @ h)
        close(layer.bias.grad, error.sum(0))
        error = error @ layer.feedback
    close(x.grad, error)
    assert all(not torch.allclose(layer.feedback, layer.weight) for layer in layers)
    assert all(len(list(layer.parameters())) == 2 for layer in layers)


@pytest.mark.parametrize("method", ["direct feedback", "local losses"])
def test_layers_that_are_told_nothing_from_above(method):
    stack_of, LEARN = with_tables("stack_of", "LEARN")
    stack, x, labels = drawn(stack_of(method, 4, 9)), doubles(6, 9), torch.tensor([0, 1, 2, 2, 9, 5])
    LEARN[method](stack, x, labels)
    *hidden, top = stack.layers
    scores = stack(x)
    errors = (scores.softmax(1) - torch.eye(10)[labels]).detach() / 6
    h = x
    for layer, helper in zip(hidden, stack.helpers, strict=True):
        h, own = layer(h.detach()), list(layer.parameters())
        if method == "local losses":
            own += helper.parameters()
            loss = cross_entropy(h @ helper.weight.T + helper.bias, labels)
        else:
            loss = (h * (errors @ helper.weight.T.detach())).sum()
            assert helper.weight.grad is None
        close([p.grad for p in own], list(torch.autograd.grad(loss, own)))
    loss = cross_entropy(top(h.detach()), labels)
    close(gradients(top), list(torch.autograd.grad(loss, list(top.parameters()))))


@pytest.mark.parametrize(("steps", "batch", "inputs", "hidden"), [(1, 1, 2, 3), (5, 3, 1, 4), (7, 2, 4, 2)])
def test_a_window_by_hand(steps, batch, inputs, hidden):
    (window_by_hand,) = printed("window_by_hand")
    cell, x, h = drawn(TanhCell(inputs, hidden)), doubles(steps, batch, inputs), doubles(batch, hidden, seed=1)
    A = doubles(hidden, hidden, seed=2)
    h.requires_grad_()
    states, last = unroll(cell, x, h)
    ahead = (last @ A).detach()
    loss = (states.square().sum() / 2 + (ahead * last).sum()) / batch
    *right, arrived = torch.autograd.grad(loss, (cell.U, cell.W, cell.b, h))
    with torch.no_grad():
        found, end, delta = window_by_hand(cell, x, h, lambda state: state @ A)
    close(list(found), right)
    close(end, last.detach())
    close(delta, batch * arrived)


@pytest.mark.parametrize("n", [1, 4, 9])
def test_windows_with_the_truth_at_their_edges_are_all_of_it(n):
    cell, x = drawn(TanhCell(2, 3)), doubles(9, 4, 2)
    in_windows, by_hand, says_zero = printed("in_windows", "window_by_hand", "says_zero", cell=cell, x=x)
    found = in_windows(lambda k: lambda h: by_hand(cell, x[k:], h, says_zero)[2], n)
    loss = unroll(cell, x)[0].square().sum() / 2 / 4
    close(list(found), list(torch.autograd.grad(loss, (cell.U, cell.W, cell.b))))


def test_a_line_moves_on_by_one_place():
    (DelayLine,) = printed("DelayLine")
    line, x = DelayLine(4), torch.arange(1.0, 8)[:, None, None]
    line.gain.data.fill_(2)
    y, s = unroll(line, x)
    assert y.flatten().tolist() == [0, 0, 0, 2, 4, 6, 8]
    assert s.tolist() == [[14, 12, 10, 8]]


@pytest.mark.parametrize(("places", "n", "alpha"), [(10, 2, 0.3), (8, 3, 0.15)])
def test_credit_goes_back_a_window_at_a_visit(places, n, alpha):
    (delay_line_credit,) = printed("delay_line_credit")
    learnt, of_gain = delay_line_credit(places, n, alpha, visits=40, batch=3000)
    for k, i in itertools.product((1, 2, 7, 20, 40), range(places - 1)):
        block = math.ceil((places - 1 - i) / n)
        tail = sum(math.comb(k, j) * alpha**j * (1 - alpha) ** (k - j) for j in range(block, k + 1))
        assert learnt[k - 1, i].item() == pytest.approx(tail, abs=0.06)
    assert learnt[:, -1].abs().max() < 0.06
    assert of_gain[0] == 0
    ahead = learnt[:-1, :n].sum(1)  # what is said of the places at which the numbers of a window are at its end
    close(of_gain[1:], ahead, atol=0.1 * n, rtol=0)


def test_lstms_abreast_are_lstms():
    (Abreast,) = printed("Abreast")
    torch.manual_seed(0)
    cell, x = Abreast(2, 3, 3), torch.randn(6, 4, 9)
    assert (cell.b[:, 0, 3:6] == 1).all()
    x[..., 2::3] = (torch.rand(6, 4, 3) < 0.3).float()  # a sequence begins
    state = tuple(torch.randn(4, 3, 3) for _ in "hc")
    y, end = unroll(cell, x, state)
    for r in range(3):
        alone = LSTMCell(3, 3)
        with torch.no_grad():
            alone.U.copy_(cell.U[r].T), alone.W.copy_(cell.W[r].T), alone.b.copy_(cell.b[r, 0])
        own, begins = tuple(one[:, r] for one in state), x[..., 3 * r + 2 :][..., :1]
        for t in range(6):
            own = tuple(one * (1 - begins[t]) for one in own)
            own = unroll(alone, x[t : t + 1, :, 3 * r : 3 * r + 3], own)[1]
            close(y[t, r], torch.cat(own, 1))
        for one, mine in zip(end, own, strict=True):
            close(one[:, r], mine)


def test_the_adam_of_this_page_is_the_usual_one():
    (adam_abreast,) = printed("adam_abreast")
    P = [doubles(2, 3, 4).requires_grad_(), doubles(2, 1, 4).requires_grad_()]
    alone = [[one[r].detach().clone().requires_grad_() for one in P] for r in range(2)]
    adams = [torch.optim.Adam(one, rate) for one, rate in zip(alone, (0.02, 0.3), strict=True)]
    moments = [[torch.zeros_like(p) for p in P] for _ in range(2)]
    rates = [torch.tensor([0.02, 0.3]).double().view(-1, 1, 1)] * 2
    for t in range(1, 6):
        for i, p in enumerate(P):
            p.grad = doubles(*p.shape, seed=t) * 10.0 ** (-4 * (t == 3))
            for r, one in enumerate(alone):
                one[i].grad = p.grad[r].clone()
        adam_abreast(moments, P, rates, t)
        for r, (one, adam) in enumerate(zip(alone, adams, strict=True)):
            adam.step()
            close([p[r].detach() for p in P], [p.detach() for p in one])
        assert all(p.grad.abs().max() == 0 for p in P)


def test_predictors_abreast_say_as_much_as_they_are_allowed_to():
    (PredictorAbreast,) = printed("PredictorAbreast")
    M = PredictorAbreast(3, [0.0, 0.5, 1.0])
    assert all(p.abs().max() == 0 for p in M.parameters())
    drawn(M)
    M.discounts = M.discounts.double()
    h, c = doubles(4, 3, 3), doubles(4, 3, 3, seed=1)
    state, target = torch.cat((h.flatten(1), c.flatten(1)), 1), doubles(4, 18, seed=2)
    said, wanted = M(state).view(4, 2, 3, 3), target.view(4, 2, 3, 3)
    M.error(state, None, target, None).backward()
    for r, factor in enumerate((0, 0.5, 1)):
        own, A = torch.cat((h[:, r], c[:, r]), 1), M.A[r].detach().requires_grad_()
        learnt = own @ A + M.b[r].detach()
        close(torch.cat((said[:, 0, r], said[:, 1, r]), 1), factor * learnt.detach())
        error = mse_loss(learnt, torch.cat((wanted[:, 0, r], wanted[:, 1, r]), 1))
        close(M.A.grad[r], (factor > 0) * torch.autograd.grad(error, A)[0])


def test_networks_abreast_learn_as_they_would_alone():
    NetworksAbreast, window_of = printed("NetworksAbreast", "window_of")
    ways, rates = ["chunks", "predicted", "auxiliary"], [0.02, 0.05, 0.1]
    together = NetworksAbreast(ways, rates, 0, 2, 3, 4, 3, share=0.5)
    alone = [NetworksAbreast([way], [rate], 0, 1, 3, 4, 3, share=0.5) for way, rate in zip(ways, rates, strict=True)]
    for way, one in enumerate(alone):
        whose = dict(zip(one.parameters, together.parameters, strict=False))  # the auxiliary map comes last
        for mine, theirs in whose.items():
            mine.data = theirs.data[2 * way + 1][None].clone()
    state, states = None, [None] * 3
    for t in range(6):
        torch.manual_seed(t)
        x, y = torch.randn(3, 5, 6, 4), torch.randint(3, (6, 3, 5))
        x[..., -1] = (x[..., -1] > 1).float()
        state, said, losses = window_of(together, x.flatten(2), y, state)
        together.update()
        for way, one in enumerate(alone):
            r = 2 * way + 1
            states[way], own, loss = window_of(one, x[:, :, r], y[r : r + 1], states[way])
            one.update()
            assert torch.equal(said[r], own[0])
            close(losses[r], loss[0], atol=1e-4, rtol=1e-4)
            for mine, theirs in zip(one.parameters, together.parameters, strict=False):
                close(mine[0], theirs[r], atol=2e-3, rtol=2e-3)
    assert together.M.A[:2].abs().max() == 0
    assert together.M.A[2:].abs().max() > 0.01
    assert together.auxiliary.A[:4].abs().max() == 0
    assert together.auxiliary.A[4:].abs().max() > 0.01


def copy_tasks(*names, **more):
    """As `printed`, with the two tasks."""
    for cell in code_cells(NOTEBOOK):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "COPY_TASKS":
                more["COPY_TASKS"] = eval(
                    compile(ast.Expression(node.value), "a chapter's cell", "eval"), {"tasks": tasks}
                )
    return printed(*names, **more)


@pytest.mark.parametrize(("task", "level"), [("copy", 1), ("copy", 4), ("repeat copy", 1), ("repeat copy", 3)])
def test_a_stream_of_sequences_in_rows_out_of_step(task, level):
    (task_stream,) = copy_tasks("task_stream")
    rows, T, count = 4, (2 * level + 1 if task == "copy" else 4 + 3 * level), level if task == "copy" else 3
    x, y = task_stream(task, level, rows, torch.Generator().manual_seed(0))
    assert x.shape == (len(y), rows, 5 + (task == "repeat copy"))
    assert len(x) > 590
    symbols, firsts, seen = x[..., :4].argmax(-1), [], set()
    for r in range(rows):
        flagged = x[:, r, -1].nonzero()[:, 0].tolist()
        idle = r * T // rows  # blanks, in which the state is wiped at every step
        assert flagged[: idle + 1] == list(range(idle + 1))
        assert (symbols[:idle, r] == 2).all()
        assert (y[:idle, r] == 2).all()
        begins = flagged[idle:]
        assert all(b - a == T for a, b in itertools.pairwise(begins))
        firsts.append(begins[0])
        for k in begins[:-1]:
            shown = symbols[k : k + count, r]
            seen.add((*shown.tolist(),))
            assert symbols[k + count, r] == 3
            assert (y[k : k + count + 1, r] == 2).all()
            assert y[k + count + 1 : k + T, r].tolist() == shown.tolist() * (level if task == "repeat copy" else 1)
            if task == "repeat copy":
                assert x[k + count, r, 4].item() == pytest.approx(level / 10)
    assert firsts == [r * T // rows for r in range(rows)]
    assert seen == set(itertools.product(range(2), repeat=count))


def test_how_well_windows_are_aligned():
    NetworksAbreast, copy_alignment, task_stream = copy_tasks("NetworksAbreast", "copy_alignment", "task_stream")
    networks = NetworksAbreast(["chunks", "predicted"], [0.1] * 2, 0, 1, 4, 6, 3)
    nn.init.normal_(networks.readout.A)
    data = [task_stream("copy", 2, 3, torch.Generator().manual_seed(r)) for r in range(2)]
    whole, _, _ = copy_alignment(networks, 12, data, steps=12)
    assert whole == pytest.approx([1, 1])
    without, with_M, added = copy_alignment(networks, 3, data, steps=12)
    assert without == pytest.approx(with_M)
    assert added == [0, 0]
    assert max(without) < 0.999
    nn.init.normal_(networks.M.A)
    again, with_M, added = copy_alignment(networks, 3, data, steps=12)
    assert again == pytest.approx(without)
    assert with_M[0] == pytest.approx(without[0])
    assert abs(with_M[1] - without[1]) > 1e-3
    assert added[1] != 0
    assert networks.M.discounts.flatten().tolist() == [0, pytest.approx(0.3)]
    assert all(grad.abs().max() == 0 for grad in (p.grad for p in networks.parameters))


def test_a_length_is_solved_when_nine_tenths_are_right():
    (copying,) = copy_tasks("copying")
    levels = []

    def oracle(networks, x, y, state):
        """The first network is always right, the second is never."""
        levels.append(y.shape)
        said = y.clone()
        said[1] = (y[1] + 1) % 2
        return None, said, torch.zeros(2)

    copying.__globals__["window_of"] = oracle
    run = copying("copy", 3, ["chunks", "predicted"], [0.1, 0.1], 150, seed=0, seeds=1)
    assert run["solved"][..., 0].tolist() == [[1, 0], [2, 0], [3, 0]]
    assert run["scores"][..., 0].tolist() == [[1, 0], [2, 0], [3, 0]]
    assert set(levels) == {(2, 3, 16)}


def test_all_windows_read_the_same_text():
    text = types.SimpleNamespace(text="to be or not to be " * 60)
    reading, last_fifth = printed("reading", "last_fifth", book_text=text)
    runs = {n: reading(n, ["chunks", "predicted"], [0.02, 0.02], 4, 0, 2)["losses"] for n in (2, 5, 20)}
    letters = len(set(text.text))
    for n, losses in runs.items():
        assert losses.shape == (2, 2, 4)
        close(losses[..., 0], torch.full((2, 2), math.log(letters)))
        close(losses[..., 1], runs[20][..., 1])  # in the first update only the readouts can learn
        assert (losses[..., -1] < losses[..., 0]).all(), n
    assert not torch.allclose(runs[2][0, :, 2:], runs[20][0, :, 2:], rtol=1e-5)
    assert last_fifth(np.arange(20.0).reshape(2, 10)).tolist() == [8.5, 18.5]
    assert last_fifth([3.0, 4.0]) == 4


@pytest.mark.parametrize(("steps", "batch", "hidden"), [(1, 2, 3), (4, 1, 2), (6, 3, 4)])
@pytest.mark.parametrize(("lam", "gamma"), [(0.0, 0.7), (0.6, 0.9), (1.0, 1.0)])
def test_both_views_of_the_lambda_target(steps, batch, hidden, lam, gamma):
    backward_view, forward_view = printed("backward_view", "forward_view")
    cell, x, first = drawn(TanhCell(2, hidden)), doubles(steps, batch, 2), doubles(batch, hidden, seed=1)
    wanted, believer = doubles(steps, batch, hidden, seed=2), drawn(GradientPredictor(hidden))

    def losses(y, t):
        return (y - wanted[t]).square().sum(1) / 2

    def M(s):
        return believer(s).detach()

    states = torch.cat((first[None], unroll(cell, x, first)[0])).detach()
    ell = torch.cat((torch.zeros(1, batch, hidden), states[1:] - wanted))
    G = backward_view(cell, states, ell, M, lam, gamma)
    close(G, synthetic_gradients.lambda_targets(cell, x, losses, believer, lam, gamma, first).targets)
    barred = torch.cat((states, torch.ones(steps + 1, batch, 1)), 2)[:-1]
    said = torch.stack([M(s) for s in states[:-1]])
    close(forward_view(cell, states, ell, M, lam, gamma), torch.einsum("tbi,tbf->if", G - said, barred).detach())


LAMBDA_WAYS = [("λ", 0.3), ("λ", 1.0), ("n", 3), ("n", 2)]


def a_sequence(situation, count=1, seed=1):
    fixed_network, sequences = printed("fixed_network", "sequences")
    network = fixed_network(situation, torch.Generator().manual_seed(0), size=6)
    return network, *sequences(situation, network, count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("situation", ["one loss, late", "a loss at each step"])
def test_sequences_of_a_network_that_is_not_trained(situation):
    (U, W, R), states, ell = a_sequence(situation, 3)
    close(W @ W.T, torch.eye(6), atol=1e-5, rtol=0)
    bits = 2.0 * torch.randint(2, (12, 3, len(R)), generator=torch.Generator().manual_seed(1)) - 1
    lag = 11 if "late" in situation else 4
    assert states.shape == ell.shape == (12, 3, 6)
    assert (ell[:lag] == 0).all()
    close(states[0], torch.tanh(bits[0] @ U.T))
    for t in range(lag, 12):
        s = states[t].clone().requires_grad_()
        loss = (s @ R.T - bits[t - lag]).square().sum() / 2
        close(ell[t], torch.autograd.grad(loss, s)[0])
    inputs = torch.stack([torch.atanh(states[t]) - states[t - 1] @ W.T for t in range(1, 12)])
    if "late" not in situation:
        close(inputs, bits[1:] @ U.T, atol=1e-4, rtol=1e-4)
    else:
        assert 0.25 < (inputs @ torch.linalg.pinv(U).T).std() < 0.35


def test_targets_of_windows_are_those_of_windows():
    (U, W, R), states, ell = a_sequence("a loss at each step")
    targets_of, plan = printed("targets_of", "plan", WAYS=LAMBDA_WAYS, RATES=[1, 2])
    cell, believer = TanhCell(1, 6), drawn(GradientPredictor(6)).float()
    cell.U.data, cell.W.data, cell.b.data = U, W, torch.zeros(6)
    bits = 2.0 * torch.randint(2, (12, 1, 1), generator=torch.Generator().manual_seed(1)) - 1
    said = believer(states[:-1, 0]).detach().expand(8, -1, -1)

    def misses(y, t):
        return (y @ R.T - bits[t - 3]).square().sum(1) / 2 * (t >= 3)

    for offset in (0, 1, 5):
        lam, trained = plan(offset)
        assert lam.shape == trained.shape == (8, 11)
        found = targets_of(W, states[:, 0], ell[:, 0], said, lam)
        for run, (name, value) in enumerate(way for way in LAMBDA_WAYS for _ in range(2)):
            if name == "λ":
                assert (trained[run] == 1).all()
                right = synthetic_gradients.lambda_targets(
                    cell, bits[1:], misses, believer, float(lam[run, 0]), state=states[0]
                )
                assert lam[run, 0] == pytest.approx(value)
                close(found[run], right.targets[:, 0], atol=1e-5, rtol=1e-4)
                continue
            edges = trained[run].nonzero()[:, 0].tolist()
            assert edges == [t for t in range(11) if (t + offset) % value == 0]
            for t in edges:
                stop = min(t + value, 11)
                slopes = ell[t + 1 : stop + 1]
                wanted = functools.partial(lambda slopes, y: (slopes * y).sum((0, 2)), slopes)
                window = window_backward(cell, bits[t + 1 : stop + 1], wanted, believer, states[t], last=stop == 11)
                close(found[run, t], window.target[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("situation", ["a loss at each step", "one loss, late, with a clock"])
def test_one_update_of_all_predictors_side_by_side(situation):
    more = {"WAYS": [("λ", 0.0), ("λ", 1.0), ("n", 3)], "RATES": [0.1, 0.4]}
    names = ("learn_gradients", "fixed_network", "best_linear", "sequences", "plan", "targets_of")
    learn_gradients, fixed_network, best_linear, sequences, plan, targets_of = printed(*names, **more)
    run = learn_gradients(0, situation, 1, [1])
    generator = torch.Generator().manual_seed(0)
    network = fixed_network(situation, generator)
    seen, true, _ = best_linear(situation, network, generator)
    states, ell = (one[:, 0] for one in sequences(situation, network, 1, generator))
    lam, trained = plan(torch.randint(10, (1,), generator=generator).item())
    G = targets_of(network[1], states, ell, torch.zeros(6, 11, 24), lam) * trained[..., None]
    barred = torch.cat((states[:-1], torch.ones(11, 1)), 1)
    assert run["cosines"].shape == (1, 3, 2, 11)
    for way, (k, rate) in itertools.product(range(3), enumerate((0.1, 0.4))):
        steps = rate * torch.einsum("tf,ti->tfi", barred, G[2 * way + k])
        said = seen @ steps if "clock" in situation else seen @ steps.mean(0)
        close(run["errors"][0, way, k], (said - true).norm() / true.norm())
        close(run["cosines"][0, way, k], torch.cosine_similarity(said, true, dim=-1).mean(1))
    assert run["best"].mean() > run["cosines"].mean()


@pytest.mark.parametrize("situation", ["a loss at each step", "one loss, late, with a clock"])
def test_the_best_linear_predictor_is_fitted_to_others(situation):
    (best_linear, fixed_network) = printed("best_linear", "fixed_network")
    generator = torch.Generator().manual_seed(0)
    network = fixed_network(situation, generator, size=5)
    seen, true, best = best_linear(situation, network, generator)
    assert seen.shape == (11, 300, 6)
    assert true.shape == (11, 300, 5)

    def wrong(matrix):
        return (seen @ matrix - true).square().mean()

    pair = (seen, true) if "clock" in situation else (seen.flatten(0, 1), true.flatten(0, 1))
    own = torch.linalg.lstsq(*(one.double() for one in pair), driver="gelsd").solution.float()
    assert 1.001 * wrong(own) < wrong(best) < 1.2 * wrong(own)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_two_pieces_in_a_few_lines_and_as_a_timeline(k):
    (two_decoupled,) = printed("two_decoupled")
    draw = np.random.default_rng(k)
    for _ in range(10):
        lower, upper = ("forward", "predict", "backward", "update", "learn"), ("forward", "backward", "update")
        work = [{kind: float(draw.uniform(0.1, 3)) for kind in kinds} for kinds in (lower, upper)]
        c = float(draw.choice([0.0, draw.uniform(0, 5)]))
        events = synthetic_gradients.timeline("decoupled", work, 12, staleness=k, delay=c)
        for piece, found in enumerate(two_decoupled(work, 12, k, c)):
            assert found == pytest.approx([one.stop for one in events if one[:2] == (piece, "update")])


@pytest.mark.parametrize(("hidden_layers", "width"), [(1, 7), (4, 13)])
def test_multiplications_are_counted_by_weights(hidden_layers, width):
    layered, multiply_adds = printed("layered", "multiply_adds")
    layers, linear, with_hidden = multiply_adds(hidden_layers, width)
    stack = layered(hidden_layers, width)
    weights = [sum(p.numel() for p in one.parameters() if p.ndim == 2) for one in stack]
    assert layers == [2 * weights[0], *(3 * one for one in weights[1:])]

    def of(hidden):
        return [p.numel() for p in GradientPredictor(width, 4, hidden).parameters() if p.ndim == 2]

    assert linear == 3 * of(())[0]
    assert with_hidden == 3 * of((width,))[0] + 4 * of((width,))[1]
    assert nn.Sequential(*stack)(torch.randn(3, 11)).shape == (3, 4)


@pytest.mark.parametrize("pixels", [5, 60])
@pytest.mark.parametrize("predictors", [0, 1])
def test_no_other_cut_is_cheaper(predictors, pixels):
    best_cut, multiply_adds = printed("best_cut", "multiply_adds", PIXELS=pixels)
    layers, linear, _ = multiply_adds(5, 7)
    dearer = [max(sum(layers[:k]) + predictors * linear, sum(layers[k:])) for k in range(1, 6)]
    assert dearer[best_cut(predictors) - 1] == min(dearer)


def test_when_an_error_is_first_below():
    (first_below,) = printed("first_below")
    assert first_below(5, [9, 8, 6], [1, 2, 3]) == 3  # never
    assert first_below(9, [9, 8, 6], [1, 2, 3]) == 1  # at once
    assert first_below(5, [9, 7, 3, 8, 1], [1, 2, 4, 8, 16]) == 3
    assert first_below(7, [9, 7, 3, 8, 1], [1, 2, 4, 8, 16]) == 2


def test_all_methods_begin_alike_and_see_the_same_batches():
    own = {
        "one thread": {"schedule": "locked", "cut": 6},
        "8 parts": {"schedule": "pipelined", "cut": 3, "micro_batches": 8},
    }
    own["decoupled"] = {"schedule": "decoupled", "cut": 2, "staleness": 2}
    inputs, labels = torch.rand(600, 11), torch.randint(4, (600,))
    (split_training,) = printed("split_training", METHODS=own, process_inputs=inputs, process_labels=labels)
    runs = {name: split_training(lambda *of, **more: (of, more), name, 5, seed=3, delay=0.5) for name in own}
    weights, batches = [], []
    for name, ((pieces, predictors, x, y, chosen), more) in runs.items():
        assert (x is inputs, y is labels) == (True, True)
        weights.append(torch.cat([p.flatten() for piece in pieces for p in piece.parameters()]))
        batches.append(chosen)
        cut = own[name]["cut"]
        assert [len(piece) for piece in pieces] == [part for part in (cut, 6 - cut) if part]
        assert [one.features for one in predictors] == [7] * (name == "decoupled")
        assert more["schedule"] == own[name]["schedule"]
        assert more["delay"] == 0.5
        assert "cut" not in more
        rates = [
            more[which]([nn.Parameter(torch.zeros(1))]).defaults["lr"] for which in ("optimizer", "predictor_optimizer")
        ]
        assert min(rates) > 0
    assert all(torch.equal(one, weights[0]) for one in weights)
    assert all(torch.equal(one, batches[0]) for one in batches)
    assert batches[0].shape == (5, 256)
    assert len(batches[0][:2].unique()) == len(batches[0][2:4].unique()) == 512
    assert own["decoupled"]["cut"] == 2  # what is popped is popped from a copy
