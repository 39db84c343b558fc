"""Chapter 5: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import functools
import inspect
import itertools
import math
import time

import conftest
import numpy as np
import pytest
import torch

from shared import datasets, ledger, recurrent, runtime, tasks
from shared.exercises import chapter05
from shared.recurrent import LSTMCell, TanhCell, unroll
from tools.book import chapter_paths, read

NOTEBOOK = read(chapter_paths("05")[0])
GIVEN = {"np": np, "torch": torch, "math": math, "itertools": itertools, "tasks": tasks, "ledger": ledger, "time": time}
GIVEN |= {"recurrent": recurrent, "LSTMCell": LSTMCell, "TanhCell": TanhCell, "unroll": unroll, "runtime": runtime}
GIVEN |= {"chapter05": chapter05, "datasets": datasets, "inspect": inspect}
GIVEN["CELLS"] = {
    "tanh": TanhCell,
    "prototype": recurrent.PrototypeCell,
    "GRU": recurrent.GRUCell,
    "pseudo LSTM": recurrent.PseudoLSTMCell,
    "LSTM": LSTMCell,
    "peepholes": recurrent.PeepholeLSTMCell,
    "minimal GRU": recurrent.MinGRUCell,
}
printed = functools.partial(conftest.printed, NOTEBOOK, GIVEN)


def logistic(z):
    return 1 / (1 + np.exp(-z))


def step(x, h, c, U, W, b, order=(0, 1, 2, 3), seen=None, read=np.tanh):
    rows = np.split(x @ U.T + h @ W.T + b, 4, axis=1)
    i, f, candidate, o = (rows[k] for k in order)
    new = logistic(f) * c + logistic(i) * np.tanh(candidate)
    return logistic(o) * read(new if seen is None else seen(c)), new


def backward(h_bar, c_bar, c, i, f, candidate, o, through_h=True, slope=1.0):
    phi = np.tanh(f * c + i * candidate)
    a = c_bar + through_h * h_bar * o * (1 - phi**2)
    parts = [a * candidate * i * (1 - i), a * c * f * (1 - f), a * i * (1 - slope * candidate**2)]
    return np.concatenate([*parts, h_bar * phi * o * (1 - o)], 1), f * a


def gate(steps, share):
    return share ** (1 / steps)


WRONG = [
    ("lstm_step", lambda *given: step(*given)[::-1], "changed places: h comes first"),
    ("lstm_step", lambda *given: step(*given, order=(1, 0, 2, 3)), "input gate and the forget gate have changed"),
    ("lstm_step", lambda *given: step(*given, order=(0, 1, 3, 2)), "candidate and the output gate have changed"),
    ("lstm_step", lambda *given: step(*given, seen=lambda c: c), "read from the old cell"),
    ("lstm_step", lambda *given: step(*given, read=lambda c: c), "read without squashing"),
    ("lstm_step", lambda *given: step(*given)[0], "return the new h and the new c"),
    ("lstm_step", lambda *given: (step(*given)[0][:, :1], step(*given)[1]), "should have shape"),
    ("lstm_step", lambda *given: (step(*given)[0], 2 * step(*given)[1]), "your c is off by 100%"),
    ("lstm_step", lambda *given: (2 * step(*given)[0], step(*given)[1]), "your h is off by 100%"),
    ("lstm_backward_step", lambda *given: backward(*given, through_h=False), "lacks the way through h"),
    (
        "lstm_backward_step",
        lambda *given: (backward(*given)[0], backward(*given)[1] / given[4]),
        "must pass the forget",
    ),
    ("lstm_backward_step", lambda *given: backward(*given, slope=0.0), "rows of the candidate"),
    ("lstm_backward_step", lambda *given: backward(*given)[::-1], "δ should have shape"),
    ("lstm_backward_step", lambda *given: backward(*given)[0], "return δ and the adjoint"),
    ("lstm_backward_step", lambda *given: (backward(*given)[0], 3 * backward(*given)[1]), "off by 200%"),
    ("largest_state", lambda f, i, T: i / (1 - f), "limit after infinitely many"),
    ("largest_state", lambda f, i, T: i * T, "some of it is lost again"),
    ("largest_state", lambda f, i, T: i * (1 - f ** (T + 1)) / (1 - f), "one step too many"),
    ("largest_state", lambda f, i, T: -1.0, "your answer is -1"),
    ("bias_for", lambda steps, share: -math.log(gate(steps, share) / (1 - gate(steps, share))), "wrong sign"),
    ("bias_for", gate, "the value of the gate"),
    ("bias_for", lambda steps, share: 50.0, "is left after"),
]


def test_networks_trained_together_are_those_trained_alone():
    network, train, drawn, last_loss = printed("network", "train", "drawn", "last_loss")
    make, draw = lambda: network("LSTM", 2, 1, 300), drawn(tasks.adding, 6, 4)
    both, losses = train(make, draw, last_loss, 0.01, 5, range(2))
    for seed in range(2):
        (alone,), of_one = train(make, draw, last_loss, 0.01, 5, range(seed, seed + 1))
        torch.testing.assert_close(losses[:, [seed]], of_one)
        torch.testing.assert_close(dict(alone.named_parameters()), dict(both[seed].named_parameters()))


def test_a_network_alone_is_trained_as_torch_does_it():
    network, train, drawn, last_loss = printed("network", "train", "drawn", "last_loss")
    make, draw = lambda: network("GRU", 2, 1, 300), drawn(tasks.adding, 6, 4)
    (ours,), _ = train(make, draw, lambda *a: 100 * last_loss(*a), 0.01, 3, [5])
    runtime.seed_everything(5)
    net, generator = make(), torch.Generator().manual_seed(10_005)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(3):
        inputs, targets = draw(generator)
        optimiser.zero_grad()
        (100 * last_loss(net(inputs, net.cell.initial_state(4))[0], targets)).backward()
        assert torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0) > 1
        optimiser.step()
    torch.testing.assert_close(dict(ours.named_parameters()), dict(net.named_parameters()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["tanh", "GRU", "LSTM", "minimal GRU"])
def test_a_network_has_as_many_parameters_as_it_may(name):
    (network,) = printed("network")
    net = network(name, 3, 2, 1_000)
    larger = type(net)(type(net.cell)(3, net.cell.hidden_size + 1), 2)
    counts = [sum(p.numel() for p in one.parameters()) for one in (net, larger)]
    assert counts[0] <= 1_000 < counts[1]
    torch.manual_seed(3)
    first = network(name, 3, 2, 1_000)
    torch.manual_seed(3)
    assert torch.equal(first.cell.U, type(net.cell)(3, net.cell.hidden_size).U)


@pytest.mark.parametrize("name", ["tanh", "prototype", "pseudo LSTM", "LSTM", "peepholes"])
def test_errors_by_distance_are_the_product_of_jacobians(name):
    network, error_by_distance, last_loss = printed("network", "error_by_distance", "last_loss")
    net, data = network(name, 2, 1, 200).double(), tasks.adding(7, 3, torch.Generator().manual_seed(0))
    x = data.inputs.double()
    states = [net.cell.initial_state(3)]
    for x_t in x:
        states.append(net.cell(x_t, states[-1])[1])
    sizes = []
    for t in range(1, 7):
        parts = states[t] if isinstance(states[t], tuple) else (states[t],)
        parts = tuple(part.detach().requires_grad_() for part in parts)
        state = parts if isinstance(states[t], tuple) else parts[0]
        output, _ = unroll(net.cell, x[t:], state)
        grads = torch.autograd.grad(last_loss(net.readout(output), data.targets.double()), parts)
        sizes.append(sum(g.square().sum(1).mean() for g in grads).sqrt())
    right = (torch.stack(sizes) / sizes[-1]).flip(0)
    torch.testing.assert_close(error_by_distance(net, x, data.targets.double()), right)


@pytest.mark.parametrize("kind", ["PrototypeCell", "PseudoLSTMCell", "GRUCell", "LSTMCell"])
def test_gate_values_are_those_of_the_step(kind):
    (gate_values,) = printed("gate_values")
    cell = getattr(recurrent, kind)(3, 4)
    state, x = cell.initial_state(2), torch.randn(5, 2, 3)
    for x_t in x[:-1]:
        _, state = cell(x_t, state)
    values = gate_values(cell, cell.project(x[-1]), state)
    gates = [part for part in cell.parts if part != "candidate"]
    assert values.shape == (2, len(gates), 4)
    seen = torch.tanh(state) if kind == "PseudoLSTMCell" else state[0] if kind == "LSTMCell" else state
    for at, part in enumerate(gates):
        rows = slice(4 * cell.parts.index(part), 4 * cell.parts.index(part) + 4)
        right = torch.sigmoid(x[-1] @ cell.U[rows].T + seen @ cell.W[rows].T + cell.b[rows])
        torch.testing.assert_close(values[:, at], right)


def test_properties_of_a_text():
    (properties,) = printed("properties")
    found = properties("Ab c\n\nDe\nf")
    assert found["how far into the line"].tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 0]
    assert found["how far into the word"].tolist() == [1, 2, 0, 1, 0, 0, 1, 2, 0, 1]
    assert found["in a word with a capital"].tolist() == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0]
    assert found["first line after an empty one"].tolist() == [1, 1, 1, 1, 1, 0, 1, 1, 1, 0]
    assert found["lines since an empty one"].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
