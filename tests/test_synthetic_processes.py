"""Stacks split over processes: results as in one process, the model of time, and ends that leave no orphan."""

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import pairwise

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from shared.synthetic_gradients import (
    DecoupledStack,
    GradientPredictor,
    LossPredictor,
    Workers,
    period,
    processes,
    timeline,
    train_in_turn,
    typical_seconds,
)
from shared.synthetic_gradients.schedule import in_order, operations, slots

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
STEPS, BATCH = 7, 12


def example(cuts=1, dtype=torch.float64, steps=STEPS):
    """Pieces, predictors that say something, inputs, labels and an order."""
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Linear(5, 8), nn.Tanh()),
        *(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(cuts)),
    ]
    layers[-1].append(nn.Linear(8, 3))
    predictors = [GradientPredictor(8, 3) for _ in range(cuts)]
    for predictor in predictors:
        nn.init.normal_(predictor.network[-1].weight, std=0.1)
    for one in (*layers, *predictors):
        one.to(dtype)
    return (
        layers,
        predictors,
        torch.randn(40, 5, dtype=dtype),
        torch.randint(3, (40,)),
        torch.randint(40, (steps, BATCH)),
    )


def copies(modules):
    return [copy.deepcopy(one) for one in modules]


def backpropagated(pieces, inputs, labels, order):
    """The plain loop: the trained stack and its losses."""
    stack = nn.Sequential(*copies(pieces))
    optimizer, losses = SGD(stack.parameters()), []
    for rows in order:
        loss = cross_entropy(stack(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return stack, losses


def simulated(pieces, predictors, inputs, labels, order, staleness):
    """Decoupled training written down again: linear conditioned predictors by hand, targets that come late."""
    pieces, predictors, losses = copies(pieces), copies(predictors), []
    optimizers = [SGD(one.parameters()) for one in pieces]
    theirs = [SGD(one.parameters()) for one in predictors]
    lines = [[] for _ in predictors]  # for each predictor what waits to be learnt
    last = len(pieces) - 1

    def learn(i):
        read, target = lines[i].pop(0)
        theirs[i].zero_grad()
        (predictors[i].network(read) - target).square().mean().backward()
        theirs[i].step()

    for rows in order:
        hot = one_hot(labels[rows], 3).to(inputs.dtype)
        entries, said, reads, gradients = [inputs[rows]], [], [], []
        outs = []
        for piece in pieces:
            outs.append(piece(entries[-1]))
            entries.append(outs[-1].detach().requires_grad_())
        for i in range(last):
            reads.append(torch.cat((outs[i].detach(), hot), 1))
            said.append(predictors[i].network(reads[-1]).detach())
        for i in range(last + 1):
            optimizers[i].zero_grad()
            if i == last:
                loss = cross_entropy(outs[i], labels[rows])
                losses.append(loss.item())
                loss.backward()
            else:
                outs[i].backward(said[i] / BATCH)
            gradients.append(entries[i].grad)
        for one in optimizers:
            one.step()
        for i in range(last):
            lines[i].append((reads[i], BATCH * gradients[i + 1]))
            if len(lines[i]) > staleness:
                learn(i)
    for i in range(last):
        while lines[i]:
            learn(i)
    return pieces, predictors, losses


def assert_same(found, wanted, tolerance=1e-12):
    found = [p for one in found for p in one.parameters()]
    wanted = [p for one in wanted for p in one.parameters()]
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def workers():
    with Workers(2, timeout=30) as made:
        yield made


# What comes out.


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {"schedule": "locked"}),
        (2, {"schedule": "locked"}),
        (2, {"schedule": "pipelined", "micro_batches": 5}),
        (2, {"schedule": "pipelined", "micro_batches": BATCH}),
    ],
)
def test_lockstep_and_pipeline_are_backpropagation(workers, count, options):
    pieces, _, *data = example()
    before = copies(pieces)
    given = pieces if count == 2 else [nn.Sequential(*pieces)]
    stack, losses = backpropagated(pieces, *data)
    for run in (
        workers.train(given, [], *data, optimizer=SGD, **options),
        train_in_turn(given, [], *data, optimizer=SGD, **options),
    ):
        assert_same([run.layers], [stack])
        assert run.losses == pytest.approx(losses, abs=1e-12)
        assert run.predictors == ()
    assert_same(pieces, before, 0)


@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_without_staleness_it_is_the_decoupled_stack(workers, cuts, dtype, tolerance):
    pieces, predictors, inputs, labels, order = example(cuts, dtype)
    stack = DecoupledStack(copies(pieces), dict(enumerate(copies(predictors), 1)))
    optimizers, losses = [SGD(stack.layers.parameters()), SGD(stack.predictors.parameters())], []
    for rows in order:
        for one in optimizers:
            one.zero_grad()
        step = stack.backward(
            inputs[rows], lambda out, rows=rows: cross_entropy(out, labels[rows], reduction="none"), labels[rows]
        )
        losses.append(step.loss.item())
        for one in optimizers:
            one.step()
    train = workers.train if cuts == 1 else train_in_turn
    run = train(pieces, predictors, inputs, labels, order, optimizer=SGD, staleness=0)
    assert_same([run.layers, *run.predictors], [stack.layers, *stack.predictors], tolerance)
    assert run.losses == pytest.approx(losses, abs=tolerance)


@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize("staleness", [1, 3, STEPS + 1])
def test_stale_targets_as_simulated(workers, cuts, staleness):
    pieces, predictors, *data = example(cuts)
    below, models, losses = simulated(pieces, predictors, *data, staleness)
    runs = [train_in_turn(pieces, predictors, *data, optimizer=SGD, staleness=staleness)]
    if cuts == 1:
        runs.append(workers.train(pieces, predictors, *data, optimizer=SGD, staleness=staleness, delay=0.003))
    for run in runs:
        assert_same([run.layers, *run.predictors], [*below, *models])
        assert run.losses == pytest.approx(losses, abs=1e-12)


def test_predictors_have_their_own_optimizer_and_may_see_no_labels():
    pieces, _, *data = example()
    predictor = GradientPredictor(8).double()
    still = train_in_turn(
        pieces, [predictor], *data, optimizer=SGD, predictor_optimizer=partial(torch.optim.SGD, lr=0.0)
    )
    assert_same(still.predictors, [predictor], 0)
    assert_same([still.layers[0]], [pieces[0]], 0)  # it was told zero all the time
    moved = train_in_turn(pieces, [predictor], *data, optimizer=SGD)
    assert moved.predictors[0].network[0].weight.abs().max() > 0


def test_snapshots_and_clock(workers):
    pieces, predictors, *data = example()
    inputs, labels, order = data
    run = workers.train(pieces, predictors, *data, optimizer=SGD, snapshots=[3, STEPS])
    short = train_in_turn(pieces, predictors, inputs, labels, order[:3], optimizer=SGD)
    assert list(run.snapshots) == [3, STEPS]
    assert_same([run.snapshots[3]], [short.layers])
    assert_same([run.snapshots[STEPS]], [run.layers], 0)
    assert (run.seconds[1:] > run.seconds[:-1]).all()
    assert run.seconds[-1] == max(event.stop for event in run.events if event.kind == "update")


def test_events_keep_order_and_delay(workers):
    pieces, predictors, *data = example()
    delay = 0.02
    run = workers.train(pieces, predictors, *data, optimizer=SGD, staleness=2, delay=delay)
    at = {(event.piece, event.kind, event.step): event for event in run.events}
    for piece in range(2):
        mine = [event for event in run.events if event.piece == piece]
        assert [(e.kind, e.step, e.part) for e in mine] == list(operations("decoupled", piece, 2, STEPS, staleness=2))
        assert all(one.start <= one.stop <= two.start for one, two in pairwise(mine))
    for step in range(STEPS):
        assert at[1, "forward", step].start >= at[0, "forward", step].start + delay
        assert at[0, "learn", step].start >= at[1, "backward", step].start + delay


# The model of time.


def seconds(*pairs, update=0.0, **more):
    return [{"forward": f, "backward": b, "update": update, "predict": 0.0, "learn": 0.0} | more for f, b in pairs]


def test_the_model_of_lockstep_adds_everything_up():
    found = timeline("locked", seconds((1, 2), (3, 5), (2, 4)), 6, delay=0.25)
    assert period(found) == pytest.approx(1 + 2 + 3 + 5 + 2 + 4 + 4 * 0.25)
    assert period(timeline("locked", seconds((1, 2), update=0.5), 6)) == pytest.approx(3.5)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_the_model_of_a_pipeline_fills_and_empties(pieces, parts):
    found = timeline("pipelined", seconds(*[(1 / parts, 2 / parts)] * pieces), 6, micro_batches=parts)
    assert period(found) == pytest.approx((parts + pieces - 1) / parts * 3)


def test_typical_times_are_medians_and_give_the_model_back():
    work = seconds((1, 2), (3, 5), predict=0.5, learn=0.25)
    found = typical_seconds(timeline("decoupled", work, 9, staleness=1, delay=2.0))
    assert found[0] == pytest.approx(work[0])
    assert found[1] == pytest.approx({"forward": 3, "backward": 5, "update": 0})


def test_the_model_of_decoupling_waits_only_for_the_slowest_until_the_delay_shows():
    work = seconds((1, 2), (2, 3), (1, 1), predict=0.5, learn=1.0)
    assert period(timeline("decoupled", work, 40, staleness=2)) == pytest.approx(2 + 3 + 1.5)
    two = seconds((1, 2), (1, 2))
    for delay, staleness, wanted in [
        (1, 2, 3),
        (1, 0, 1 + 1 + 1 + 2 + 1),
        (10, 1, (1 + 10 + 3 + 10) / 2),
        (10, 6, 24 / 7),
    ]:
        found = period(timeline("decoupled", two, 200, staleness=staleness, delay=delay))
        assert found == pytest.approx(max(3, wanted), rel=1e-2)
    for steps in (16, 60, 61):  # over whole bursts it does not matter where the second half begins
        bursts = timeline("decoupled", two, steps, staleness=2, delay=100)
        assert period(bursts, 3) == pytest.approx((1 + 100 + 3 + 100) / 3)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["locked", "pipelined", "decoupled"]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 3),
    st.data(),
)
def test_orders_are_complete_and_possible(schedule, pieces, steps, staleness, data):
    parts = data.draw(st.integers(1, 3)) if schedule == "pipelined" else 1
    options = {"micro_batches": parts, "staleness": staleness}
    done = list(in_order(schedule, pieces, steps, **options))
    for piece in range(pieces):
        assert [op for one, op in done if one == piece] == list(operations(schedule, piece, pieces, steps, **options))
    place = {(piece, op.kind, op.step, op.part): i for i, (piece, op) in enumerate(done)}
    assert len(place) == len(done)
    for (piece, kind, *which), i in place.items():
        if kind == "forward" and piece:
            assert place[(piece - 1, "forward", *which)] < i
        if kind == ("learn" if schedule == "decoupled" else "backward") and piece < pieces - 1:
            assert place[(piece + 1, "backward", *which)] < i


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["locked", "pipelined", "decoupled"]), st.integers(2, 4), st.integers(0, 3), st.integers(1, 3))
def test_no_slot_is_filled_again_before_it_has_been_read(schedule, pieces, staleness, parts):
    """Whatever the order, two messages of one link in the same slot never wait at the same time: the earlier has been used up."""
    parts = parts if schedule == "pipelined" else 1
    count = slots(schedule, parts, staleness)
    programs = [
        list(operations(schedule, i, pieces, 6, micro_batches=parts, staleness=staleness)) for i in range(pieces)
    ]
    last = {
        "forward": "backward",
        "backward": "learn" if schedule == "decoupled" else "backward",
    }  # with what a slot is done
    for sender in range(pieces):
        for kind, receiver in (("forward", sender + 1), ("backward", sender - 1)):
            if not 0 <= receiver < pieces:
                continue
            messages = [op for op in programs[sender] if op.kind == kind]
            for old, new in zip(messages, messages[count:], strict=False):
                needed = _before(programs, schedule, sender, new)
                assert (receiver, last[kind], old.step, old.part) in needed


def _before(programs, schedule, piece, operation):
    """All operations that must be over before this one begins."""
    found, todo = set(), [(piece, operation)]
    while todo:
        piece, op = todo.pop()
        place = programs[piece].index(op)
        following = [(piece, programs[piece][place - 1])] if place else []
        if op.kind == "forward" and piece:
            following.append((piece - 1, type(op)("forward", op.step, op.part)))
        if op.kind == ("learn" if schedule == "decoupled" else "backward") and piece < len(programs) - 1:
            following.append((piece + 1, type(op)("backward", op.step, op.part)))
        for one in following:
            key = (one[0], *one[1])
            if key not in found:
                found.add(key)
                todo.append(one)
    return found


# Bad input.


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"schedule": "free"}, ValueError, "schedule must be one of locked, pipelined, decoupled"),
        ({"schedule": "locked"}, ValueError, "predictors must be 0 for 2 pieces locked"),
        ({"predictors": []}, ValueError, "predictors must be 1 for 2 pieces decoupled"),
        ({"predictors": [LossPredictor(8, 3)]}, TypeError, "must be GradientPredictors"),
        ({"pieces": [nn.Linear(5, 8), "top"]}, TypeError, "must be modules"),
        ({"staleness": -1}, ValueError, "staleness must be a whole number, 0 or more"),
        ({"micro_batches": 2}, ValueError, "micro_batches must be 1 unless"),
        (
            {"schedule": "pipelined", "predictors": [], "micro_batches": 13},
            ValueError,
            "micro_batches must be at most 12",
        ),
        ({"delay": -0.1}, ValueError, "delay must be seconds, zero or more"),
        ({"threads": 0}, ValueError, "threads must be a whole number, 1 or more"),
        ({"snapshots": [0, 3]}, ValueError, "snapshots must be numbers of steps from 1 to 7"),
        ({"order": torch.tensor([[0, 40]])}, ValueError, "order must name examples from 0 to 39"),
        ({"order": torch.zeros(3)}, ValueError, "order must hold whole numbers"),
        ({"labels": torch.zeros(40)}, ValueError, "labels must be 40 whole numbers"),
        ({"optimizer": lambda p: SGD(p)}, TypeError, "must be known to pickle"),
        ({"pieces": [nn.Linear(5, 8)] * 3}, ValueError, "pieces must be 1 to 2"),
    ],
)
def test_bad_input_is_refused_and_harms_nobody(workers, change, error, words):
    names = ("pieces", "predictors", "inputs", "labels", "order")
    good = dict(zip(names, example(), strict=True)) | {"optimizer": SGD}
    with pytest.raises(error, match=words):
        workers.train(**{**good, **change})
    assert len(workers.processes) == 2
    assert all(process.is_alive() for process in workers.processes)


def test_workers_and_model_refuse_bad_numbers():
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="size must be"):
            Workers(size)
    with pytest.raises(ValueError, match="timeout must be"):
        Workers(1, timeout=0)
    with pytest.raises(ValueError, match="delay must be"):
        timeline("locked", seconds((1, 1)), 4, delay=-1)
    with pytest.raises(ValueError, match="four updates"):
        period(timeline("locked", seconds((1, 1)), 3))


def test_a_link_uses_its_slots_in_turn_and_refuses_what_is_too_large():
    here, there = multiprocessing.Pipe()
    rooms = [multiprocessing.RawArray("b", 1024) for _ in range(2)]
    plan = processes._Plan("decoupled", 2, None, None, None, SGD, SGD, 1, 2, 0.0, frozenset(), 1)
    one, two = (processes._Link(pipe, *both, 0.1, "piece 1") for pipe, both in ((here, rooms), (there, rooms[::-1])))
    for link in (one, two):
        link.begin(plan)
    sent = [torch.arange(6.0).view(2, 3) + i for i in range(5)]
    for i, tensor in enumerate(sent):
        one.send(tensor)
        two.send(-tensor)
        assert torch.equal(two.receive(), tensor), i
        assert torch.equal(one.receive(), -tensor), i
    with pytest.raises(ValueError, match="more than the 320"):
        one.send(torch.zeros(81))
    with pytest.raises(TimeoutError, match=r"waited 0\.1 seconds for piece 1"):
        two.receive()
    there.close()
    with pytest.raises(processes._GoneError):
        one.receive()


# Ends.


def gone(pids, within=5.0):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.02)
    return False


class Ended:
    """A process that is over."""

    def __init__(self, exitcode):
        self.exitcode = exitcode

    def join(self, timeout=None):
        pass


@pytest.mark.parametrize(
    ("exitcode", "said", "words"),
    [
        (0, ("failed", "ValueError: odd"), "piece 1 failed: ValueError: odd"),
        (-9, None, "the process of piece 1 was killed by SIGKILL"),
        (processes._LEFT, None, "the process of piece . ended by itself, with exit code 3"),
    ],
)
def test_who_ended_because_a_neighbour_did_is_not_blamed(exitcode, said, words):
    workers = Workers.__new__(Workers)
    ours, theirs = zip(*(multiprocessing.Pipe() for _ in range(2)), strict=True)
    workers.controls, workers.processes = ours, [Ended(processes._LEFT), Ended(exitcode)]
    if said:
        theirs[1].send(said)
    for pipe in theirs:
        pipe.close()
    with pytest.raises(RuntimeError, match=words):
        workers._gather("done", 2, 1.0)


def idle(steps=60_000):
    """A stack without parameters, so that starting is quick (torch's optimizers take seconds to be imported)."""
    _, _, *data = example(steps=steps)
    return [nn.Tanh().double(), nn.Tanh().double()], [], *data


def test_an_error_in_a_piece_names_it_and_ends_all():
    pieces, none, *data = idle(3)
    with Workers(2, timeout=20) as workers:
        pids = [process.pid for process in workers.processes]
        with pytest.raises(RuntimeError, match=r"piece 1 failed: RuntimeError in forward of step 0: .*unflatten"):
            workers.train([pieces[0], nn.Unflatten(1, (2, 9))], none, *data, optimizer=SGD, schedule="locked")
        assert gone(pids)
        with pytest.raises(RuntimeError, match="these workers have ended"):
            workers.train(pieces, none, *data, optimizer=SGD, schedule="locked")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "the process of piece 1 was killed by SIGKILL"),
        (signal.SIGSTOP, "piece 0 failed: TimeoutError in .*: it waited 1 seconds for piece 1"),
        (signal.SIGINT, None),
    ],
)
def test_whoever_ends_no_process_is_left(number, words):
    pieces, none, inputs, labels, order = idle()
    with Workers(2, timeout=1 if number == signal.SIGSTOP else 20) as workers:
        pids = [process.pid for process in workers.processes]
        workers.train(pieces, none, inputs, labels, order[:1], optimizer=SGD, schedule="locked")
        target = os.getpid() if number == signal.SIGINT else pids[1]
        timer = threading.Timer(0.7, os.kill, (target, number))
        timer.start()
        with pytest.raises(KeyboardInterrupt if words is None else RuntimeError, match=words):
            workers.train(pieces, none, inputs, labels, order, optimizer=SGD, schedule="locked")
        assert gone(pids)


def test_a_process_that_does_not_read_its_work_is_waited_for_no_longer_than_starting_may_take(monkeypatch):
    pieces, none, *data = idle()
    with Workers(2) as workers:
        pids = [process.pid for process in workers.processes]
        os.kill(pids[1], signal.SIGSTOP)
        monkeypatch.setattr(processes, "STARTING", 0.5)
        with pytest.raises(RuntimeError, match=r"no sign of life from .*piece 1 in 0\.5 seconds"):
            workers.train(pieces, none, *data, optimizer=SGD, schedule="locked")
        assert gone(pids)


ORPHANS = """
import test_synthetic_processes as tests
if __name__ == "__main__":
    pieces, none, *data = tests.idle()
    with tests.Workers(2) as workers:
        print(*(process.pid for process in workers.processes), flush=True)
        workers.train(pieces, none, *data, optimizer=tests.SGD, schedule="locked")
"""


def test_processes_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    here = os.path.dirname(__file__)
    paths = os.pathsep.join((here, os.path.dirname(here)))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        pids = [int(one) for one in parent.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.7)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert gone(pids)
