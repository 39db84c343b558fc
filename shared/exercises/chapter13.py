"""Checkers for the exercises of chapter 13, synthetic gradients."""

import math

import torch
from torch import nn
from torch.nn.functional import one_hot

from shared.exercises import Wrong, checker, like, off

CASES = 15
TINY = 1e-6


def _same(ours, wrong):
    return ours.shape == wrong.shape and (ours - wrong).abs().max() < TINY


@checker("13.1", "One vector-Jacobian product, and nothing else was touched.")
def target(answer):
    """`answer(h, piece, predicted)` returns the target, (batch, features), of the predictor of `h`."""
    for case in range(CASES):
        batch, features = 3 + case % 4, 4 + case % 3
        after = features + 2 * (case % 2)
        piece = nn.Sequential(nn.Linear(features, after), nn.Tanh(), nn.Linear(after, after)).double()
        above, h = nn.Linear(after, after).double(), torch.randn(batch, features).double()
        nn.init.normal_(piece[0].weight, 0, 1 / features**0.5)
        nn.init.normal_(piece[2].weight, 0, 1)
        fresh = h.clone().requires_grad_()
        up = piece(fresh)
        slopes = [torch.autograd.grad(up[:, j].sum(), fresh, retain_graph=True)[0] for j in range(after)]
        J, said = torch.stack(slopes, 1), above(up.detach())  # J (batch, after, features)
        g, up = said.detach(), up.detach()
        modules = {"the piece": piece, "the predictor above": above}
        held = {one: torch.randn_like(one) if case % 3 else None for m in modules.values() for one in m.parameters()}
        for one, gradient in held.items():
            one.grad = None if gradient is None else gradient.clone()
        right, apart = (torch.einsum("bji,bj->bi", J, one) for one in (g, up - g))
        returned = torch.as_tensor(answer(h.clone(), piece, said))
        if _same(returned, g):
            raise Wrong("that is what was predicted above the piece; below it, the chain rule makes another of it.")
        ours = like(returned, right)
        for wrong, advice in (
            (right / batch, f"yours is {batch} times too small: each row is a gradient of an example's own loss."),
            (right * batch, f"yours is {batch} times too large: each row is an example's own already."),
            (right / g.numel(), "you took a mean somewhere; each row is a gradient of an example's own loss."),
            (-right, "the sign is wrong: a target is a gradient; the minus comes with the step."),
            (J.sum(1), "that is the slope of the sum of all activations: the prediction is not in it."),
            (J.sum(1) / g.numel(), "that is the slope of the mean of all activations: the prediction is not in it."),
            (torch.einsum("bji,bi->bj", J, g[:, :features]), "that is J times the prediction; going down, it is Jᵀ."),
            *((k * apart, "the prediction is a gradient, not an activation to come near.") for k in (2, 2 / g.numel())),
        ):
            if not off(ours, right) < TINY and _same(ours, wrong):
                raise Wrong(advice)
        if not off(ours, right) < TINY:
            raise Wrong(f"off by {off(ours, right):.2g} of the largest entry.")
        for name, module in modules.items():
            for one in module.parameters():
                if (one.grad is None) != (held[one] is None) or (one.grad is not None and off(one.grad, held[one]) > 0):
                    raise Wrong(f"right, but it left something in the .grad of {name}: use torch.autograd.grad.")
        if returned.requires_grad:
            raise Wrong("right, but it hangs on a graph still: who learns to meet it could move it. Detach it.")


@checker("13.2", "With the label nothing is missed; without it, nobody can do better.")
def predictions(answer):
    """`answer(h, W, bias, labels, chances)` returns δ seen with the label, the best guess without, and what it misses."""
    for case in range(CASES):
        batch, features, classes = 7 + case % 3, 5 + case % 2, 3 + case % 2
        h, W, bias = (torch.randn(*size).double() for size in ((batch, features), (classes, features), (classes,)))
        chances, labels = torch.randn(batch, classes).double().softmax(1), torch.randint(classes, (batch,))
        scores, y = h @ W.T + bias, one_hot(labels, classes).double()
        p, mean, second = scores.softmax(1), chances @ W, chances @ W.square()
        right = ((p - y) @ W, (p - chances) @ W, (second - mean.square()).sum(1))
        returned = answer(h.clone(), W.clone(), bias.clone(), labels.clone(), chances.clone())
        if not isinstance(returned, tuple | list) or len(returned) != 3:
            raise Wrong("return three tensors: with the label, without it, and the error that is left.")
        ours = [like(one, other) for one, other in zip(returned, right, strict=True)]
        likely = one_hot(chances.argmax(1), classes).double()
        slips = (
            (0, right[1], "the first sees the label: it needs no chances."),
            (0, (scores - y) @ W, "that is for squared errors; a cross-entropy has softmax(W h + b) here."),
            (0, ((h @ W.T).softmax(1) - y) @ W, "the bias of the scores is missing."),
            (0, (p - y) @ W / batch, "it is to be the gradient of each example's own loss, not of the mean."),
            (0, -right[0], "the sign is wrong: the label's score is to rise, so its share of the gradient is −W."),
            (0, -y @ W, "that is all that the label says; it also counts what the network says, softmax(W h + b)."),
            (1, torch.zeros_like(right[1]), "it is zero only if the network's softmax were the chances already."),
            (1, (p - likely) @ W, "the least squared error has the mean over labels, not the likeliest label's."),
            (1, right[0], "the second must not see the label: many gradients are possible, and it has one to say."),
            (1, p @ W, "it knows the chances of the labels, and they count like a label of which a part is sure."),
            (1, (p - chances.mean(0)) @ W, "every example has chances of its own; yours are those of the batch."),
            (2, right[2] / features, "that is the mean over features; the squared length is their sum."),
            (2, second.sum(1), "the square of the mean has to be taken off: what is guessed is not missed."),
            (2, (chances * (1 - chances)).sum(1), "that is how far the label itself is off; W makes a gradient of it."),
            (2, (right[0] - right[1]).square().sum(1), "that is for this label; take the mean over all of them."),
            (2, right[2].sqrt(), "that is the root; the expected *squared* length is asked for."),
            (2, ((p - chances) @ W).square().sum(1), "that is the guess's own squared length, not how much it misses."),
        )
        for i, name in enumerate(("with the label", "without the label", "the error that is left")):
            if off(ours[i], right[i]) < TINY:
                continue
            for place, wrong, advice in slips:
                if place == i and _same(ours[i], wrong):
                    raise Wrong(f"{name}: {advice}")
            raise Wrong(f"{name}: off by {off(ours[i], right[i]):.2g} of the largest entry.")


def _reached(tensor, cut=None):
    """The leaves that a gradient of `tensor` reaches, or would reach if the tensor `cut` were detached."""
    waiting, seen, leaves = [tensor.grad_fn], {None, None if cut is None else cut.grad_fn}, set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            leaves |= {node.variable} if hasattr(node, "variable") else set()
            waiting += [after for after, _ in node.next_functions]
    return leaves


def _leaky():
    """What went wrong in a network, the tensor that is differentiated, its leaves by name, those wanted, and candidates."""
    pieces = {name: nn.Linear(3, 3).double() for name in ("bottom", "top", "predictor")}
    bottom, top, predictor = pieces.values()
    leaves = {f"{name}.{kind}": one for name, piece in pieces.items() for kind, one in piece.named_parameters()}
    a = bottom(torch.randn(4, 3).double())
    h, half, cut = a.tanh(), a.relu(), a.detach().tanh().requires_grad_()
    leaves["h"] = cut
    scores, up, below, guess, said = top(h), top(cut), top(h + half), predictor(h), predictor(cut)
    target = torch.autograd.grad(up.square().mean(), cut, create_graph=True)[0]
    (lost, seen, missed, error) = (up.square().mean() for up in (scores, below, guess, said - target))
    of = {name: [*piece.parameters()] for name, piece in pieces.items()}
    handed = {"a": a, "h": h, "scores": scores, "loss": lost}
    yield "the activation was not detached on its way up", lost, leaves, of["top"], handed
    trained = {"h": h, "prediction": guess, "error": missed}
    yield "the predictor was trained on what had its graph still", missed, leaves, of["predictor"], trained
    met = {"scores": up, "prediction": said, "target": target, "error": error}
    yield "the target had its graph still", error, leaves, [*of["predictor"], cut], met | {"a": a}
    met = {"h": h, "prediction": said}
    yield "the prediction was not detached on its way down", (h * said).sum(), leaves, [*of["bottom"], cut], met
    halves = {"h": h, "the other half": half, "scores": below}
    yield "two activations were handed up with their graphs", seen, leaves, of["top"], halves
    yield "two activations were handed up with their graphs", seen, leaves, of["top"], halves | {"a": a}
    for _ in range(CASES):
        leaves = {f"leaf {k}": torch.randn(3).requires_grad_() for k in range(4)}
        made = list(leaves.values())
        for k in range(8):
            one, other = (made[k + int(torch.randint(4, ()))] for _ in range(2))
            made.append(one * other)
        candidates = {f"tensor {k}": one for k, one in enumerate(made[4:-1])}
        last = (made[-1] + made[-2]).sum()
        wanted = _reached(last, made[4 + int(torch.randint(7, ()))])
        if wanted and wanted != _reached(last):  # else it would be too easy
            yield "somebody drew a graph at random", last, leaves, [*wanted], candidates


@checker("13.3", "Detached there, and nowhere else.")
def leak(answer):
    """`answer(tensor, wanted, candidates)` returns the names of the candidates that, detached, leave just `wanted` reached."""
    for what, tensor, leaves, wanted, candidates in _leaky():
        found = list(answer(tensor, list(wanted), dict(candidates)))
        wanted, of = set(wanted), f"where {what}, of {', '.join(candidates)}"

        def names(those, leaves=leaves):
            return " and ".join(name for name, leaf in leaves.items() if leaf in those)

        for name in found:
            if not isinstance(name, str) or name not in candidates:
                raise Wrong("return a list of names, keys of `candidates`.")
            left = _reached(tensor, candidates[name])
            if left - wanted:
                raise Wrong(f"{of}: when “{name}” is detached, this is still reached: {names(left - wanted)}.")
            if wanted - left:
                raise Wrong(f"{of}: when “{name}” is detached, this is lost: {names(wanted - left)}.")
        for name, candidate in candidates.items():
            if _reached(tensor, candidate) == wanted and name not in found:
                raise Wrong(f"{of}: “{name}” would do: detached, it leaves exactly what is wanted.")


@checker("13.4", "Waiting twice, queueing, and the slowest alone.")
def seconds(answer):
    """`answer(forward, backward, predictor, delay, parts)` returns seconds per batch locked, pipelined and decoupled."""
    for case in range(CASES):
        P, m, c = 2 + (case + 1) % 4, 2 + case % 5, 0.1 + torch.rand(()).item()
        f, b, s = (torch.rand(P).double().add(0.2).tolist() for _ in range(3))
        s[-1] = 0.0
        work = [sum(one) for one in zip(f, b, s, strict=True)]
        once, travel, slowest = sum(f + b), 2 * (P - 1) * c, max(f) + max(b)
        no_predictor = max(map(sum, zip(f, b, strict=True)))
        right = (once + travel, (once + (m - 1) * slowest) / m + travel, max(work))
        returned = answer(list(f), list(b), list(s), c, m)
        if not isinstance(returned, tuple | list) or len(returned) != 3:
            raise Wrong("return three numbers: the seconds of a batch locked, pipelined and decoupled.")
        stale = "a delay makes what arrives older, not rarer: all are at work on other batches meanwhile."
        slips = (
            (0, once + travel / 2, "what goes up has to come down again, so a batch pays for every border twice."),
            (0, once + travel + 2 * c, "P processes have P − 1 borders."),
            (0, once, "while the only batch is under way, nobody can work."),
            (0, once + travel + sum(s), "without decoupling there are no predictors to pay for."),
            (0, no_predictor + travel, "one process works at a time, so that all their seconds add up."),
            (1, m * right[1] - (m - 1) * travel, "a part takes an m-th of the seconds."),
            (1, once / m + travel, "the parts queue for the slowest process; only the first finds every one free."),
            (1, once / P + travel, "the pipeline has to fill and to empty, and its slowest process sets the pace."),
            (1, right[1] + slowest / m, "the first part is in the sum already; m − 1 queue behind it."),
            (1, right[1] - travel + travel / m, "a message takes its delay, however small the part."),
            (1, right[1] + (m - 1) * travel, "while one part travels others do, too; the delay is paid once a border."),
            (2, sum(work), "the processes work at the same time."),
            (2, sum(work) / P, "who has done its work waits for the next batch; the slowest sets the pace."),
            (2, no_predictor, "the predictor is work, too, for the process that has it."),
            (2, slowest + max(s), "one process is the slowest as a whole; yours may be put together from three."),
            *((2, max(work) + late, stale) for late in (travel, travel / 2, c, 2 * c)),
        )
        for i, name in enumerate(("locked", "pipelined", "decoupled")):
            ours = float(returned[i])
            if math.isclose(ours, right[i]):
                continue
            for place, wrong, advice in slips:
                if place == i and math.isclose(ours, wrong):
                    raise Wrong(f"{name}: {advice}")
            raise Wrong(f"{name}: for {P} processes you say {ours:.3f} s, and it should be {right[i]:.3f} s.")


@checker("13.5", "What one window does not get, the longer ones share in the same way.")
def mixture(answer):
    """`answer(steps, lam)` returns the weights (steps,) of the windows of 1, 2, … steps in the λ-target."""
    for case in range(CASES):
        steps, lam = 5 - case % 5, (0.3 + 0.5 * torch.rand(()).item(), 0.0, 1.0)[max(0, case - CASES + 3)]
        powers = torch.tensor([lam**k for k in range(steps)]).double()
        right = (1 - lam) * powers
        right[-1] = powers[-1]
        ours = like(answer(steps, lam), right)
        if off(ours, right) < TINY:
            continue
        total = ours.sum().item()
        for wrong, advice in (
            (
                (1 - lam) * powers,
                f"yours add up to {total:.3f}: the last window, which guesses nothing, gets the rest.",
            ),
            (powers, f"yours add up to {total:.3f}: of what is left, each window gets 1 − λ, and hands on λ."),
            (powers / powers.sum(), "powers that add up to one, but the last window gets all that no other has taken."),
            (
                right.flip(0),
                "the wrong way round: the first is for the window of one step, which leans most on a guess.",
            ),
            ((1 - lam) * lam * powers, "the exponents are one too large: the window of one step gets 1 − λ."),
            (torch.full_like(right, 1 / steps), "that is the plain mean; λ says how much the long ones count."),
        ):
            if off(ours, wrong) < TINY:
                raise Wrong(advice)
        if not abs(total - 1) < TINY:
            raise Wrong(f"with λ = {lam:.2f} yours add up to {total:.3f}; if all windows agree, so must the mixture.")
        raise Wrong(f"they add up to one, but with λ = {lam:.2f} one is off by {(ours - right).abs().max():.2g}.")
