"""Checkers for the exercises of chapter 12, fast weights."""

import itertools
import math
from collections import Counter

import torch

from shared.exercises import Wrong, checker, like, off

CASES = 20
TINY = 1e-6

SLIPS = {  # wrong steps of the cell, and what to say of them
    "written first": "the matrix is read before it is written: A h is asked of what the last step left.",
    "decayed first": "the matrix is read as the last step left it; it decays when the new state is written.",
    "of the batch": "the normalisation's mean and deviation are over the units of one example, not over the batch.",
    "unbiased": "the variance is the sum of squares divided by the number of units, not by one less.",
    "no mean": "layer normalisation takes the mean off before it divides.",
    "no ε": "ε is missing: 1e-5 is added to the variance.",
    "ε outside": "ε stands under the root, with the variance.",
    "no z": "z stays there in every inner step; your inner loop has only A h.",
    "z replaced": "every inner step adds A h to the same z, not to the last state.",
    "z grows": "every inner step begins with the same z; yours adds one reading on top of another.",
    "preliminary normalised": "the preliminary state is the ReLU of z as it is; only the inner steps are normalised.",
    "no normalisation": "the sum z + A h is to be normalised, by equation 12.6, before the ReLU.",
    "plain": "after the division comes the gain of each unit, and then its bias.",
    "no ReLU": "every inner step ends with a ReLU.",
    "one inner step": "there are `inner_steps` inner steps, and each asks with the state that the one before it made.",
    "one more": "you made an inner step too many: the preliminary state is none.",
    "transposed": "that is Aᵀh, which is A h only as long as A is symmetric.",
    "preliminary written": "what is written is the last h, not the preliminary state.",
    "written each time": "the matrix is written once a step, after the inner loop.",
    "no decay": "h is right, but what the matrix held has to be multiplied by the decay.",
    "no rate": "h is right, but the outer product has to be multiplied by the rate.",
    "mean": "h is right, but every sequence has a matrix of its own: take no mean over the batch.",
}


def _normalised(a, gain, bias, slip):
    axis = 0 if slip == "of the batch" else -1
    centred = a - a.mean(axis, keepdim=True) * (slip != "no mean")
    variance = centred.square().mean(axis, keepdim=True)
    if slip == "unbiased":
        variance *= a.shape[-1] / (a.shape[-1] - 1)
    if slip == "no normalisation":
        return gain * a + bias
    scaled = centred / (variance.sqrt() + 1e-5 if slip == "ε outside" else (variance + 1e-5 * (slip != "no ε")).sqrt())
    return scaled if slip == "plain" else gain * scaled + bias


def _step(z, A, gain, bias, inner_steps, decay, rate, slip=""):
    """h and the new A, (batch, hidden) and (batch, hidden, hidden), by equations 12.4 to 12.6 and 12.1 but for one slip."""

    def written(A, h):
        outer = h[:, :, None] * h[:, None]
        outer = outer.mean(0).expand_as(outer) if slip == "mean" else outer
        return (1 if slip in ("no decay", "decayed first") else decay) * A + (1 if slip == "no rate" else rate) * outer

    preliminary = h = (_normalised(z, gain, bias, slip) if slip == "preliminary normalised" else z).relu()
    if slip in ("written first", "decayed first"):
        A = written(A, h) if slip == "written first" else decay * A
    for _ in range({"one inner step": 1, "one more": inner_steps + 1}.get(slip, inner_steps)):
        read = ((A.mT if slip == "transposed" else A) @ h[..., None])[..., 0]
        total = read + {"no z": 0, "z replaced": h}.get(slip, z)
        z = total if slip == "z grows" else z
        h = _normalised(total, gain, bias, slip)
        h = h if slip == "no ReLU" else h.relu()
        A = written(A, h) if slip == "written each time" else A
    if slip in ("written first", "written each time"):
        return h, A
    return h, written(A, preliminary if slip == "preliminary written" else h)


@checker("12.1", "Asked before it was written, for each sequence its own matrix.")
def step(answer):
    """`answer(z, A, gain, bias, inner_steps, decay, rate)` returns the state h_t and the matrix A_t of a batch."""
    for case in range(CASES):
        batch, hidden, inner_steps = 3 + case % 4, 5 + case % 5, 1 + (case + 1) % 3
        z, A = 0.2 * torch.randn(batch, hidden).double(), 0.2 * torch.randn(batch, hidden, hidden).double()
        gain, bias = 0.5 + torch.rand(hidden).double(), 0.5 * torch.rand(hidden).double()
        decay, rate = 0.5 + 0.4 * torch.rand(()).item(), 0.3 + 0.4 * torch.rand(()).item()
        given = (gain, bias, inner_steps, decay, rate)
        right = _step(z, A, *given)
        returned = answer(z.clone(), A.clone(), gain.clone(), bias.clone(), inner_steps, decay, rate)
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise Wrong("return two tensors: the state h and the new A.")
        ours = [like(one, other) for one, other in zip(returned, right, strict=True)]
        gap = [off(one, other) for one, other in zip(ours, right, strict=True)]
        if max(gap) < TINY:
            continue
        size = f"With S = {inner_steps} your h is off by {gap[0]:.2g} of its largest entry, and A by {gap[1]:.2g}."
        for slip, advice in SLIPS.items():
            wrong = _step(z, A, *given, slip)
            if all((one - other).abs().max() < TINY for one, other in zip(ours, wrong, strict=True)):
                raise Wrong(f"{advice} {size}")
        raise Wrong(f"{'h is right. ' if gap[0] < TINY else ''}{size}")


@checker("12.2", "The matrix was never needed.")
def attention_weights(answer):
    """`answer(h, q, decay, rate)` returns the weights (T,) with which A_T q is a sum of the states h, (T, hidden)."""
    for case in range(CASES):
        T = 4 + case % 5
        hidden = T + 1 + case % 3
        h, q = torch.randn(T, hidden).double(), torch.randn(hidden).double()
        decay, rate = 0.5 + 0.4 * torch.rand(()).item(), 0.2 + 0.5 * torch.rand(()).item()
        match, fading = h @ q, decay ** torch.arange(T - 1, -1, -1).double()
        right = rate * fading * match
        returned = torch.as_tensor(answer(h.clone(), q.clone(), decay, rate))
        if returned.shape == (T - 1,):
            raise Wrong(f"{T} states were written, and the newest is among them; you return {T - 1} weights.")
        if returned.shape == (hidden,):
            raise Wrong("return a weight for each state; as many numbers as a state has, A q itself has.")
        ours = like(returned, right)
        if off(ours, right) < TINY:
            continue
        for wrong, advice in (
            (right * decay, f"all are {decay:.2f} times what they should be: the newest has not faded, λ⁰ = 1."),
            (right / decay, f"all are {1 / decay:.2f} times what they should be: the newest has λ⁰, not 1/λ."),
            (rate * fading.flip(0) * match, "the ages run the wrong way: it is the oldest state that has faded most."),
            (rate * match, "nothing fades: without λ the oldest state counts as much as the newest."),
            (right / rate, "the rate is missing."),
            (right / hidden**0.5, "nothing is divided by the root of the number of units here."),
            (right / right.sum(), "yours add up to one; these weights need not."),
            (rate * fading * match.abs(), "a state that points away from q has a negative weight."),
            (rate * fading, "a state counts by how much it resembles q, not by its age alone."),
        ):
            if off(ours, wrong) < TINY:
                raise Wrong(advice)
        if any(one.min() > 0 and abs(one.sum() - 1) < TINY for one in (ours, ours / (rate * fading))):
            raise Wrong("that is a softmax; these weights may be negative, and add up to anything.")
        if ours[-1].abs() < TINY:
            raise Wrong(f"the newest state has no weight, but A_{T} has h_{T} in it: its weight is {right[-1]:.2g}.")
        apart = off(ours @ h, right @ h)
        raise Wrong(f"off by {off(ours, right):.2g} of the largest, so that weights @ h misses A q by {apart:.2g}.")


@checker("12.3", "Each step of attention was dearer long before, but it had been saving up.")
def crossover(answer):
    """`answer(hidden, inner_steps)` returns the T after which attention has touched as many numbers as the matrix form."""
    cases = [(int(torch.randint(5, 200, ())), inner_steps) for inner_steps in (1, 2, 3, 4, 5) for _ in range(5)]
    ours = [float(answer(*case)) for case in cases]

    def where(matrix, attention):
        """The T at which T (T − 1) · attention · H reaches T · matrix · H², for all cases."""
        return [1 + -(-H * matrix(S) // attention(S)) for H, S in cases]

    def same(one, other):
        return all(map(math.isclose, one, other))

    right = where(lambda S: S + 2, lambda S: S)
    if same(ours, right):
        return
    for wrong, advice in (
        (
            [1 + (S + 2) * H / S for H, S in cases],
            "steps are whole: round up to the T at which attention has caught up.",
        ),
        (
            [(S + 2) * H / S for H, S in cases],
            "near, but count exactly: step t finds t − 1 states, and steps are whole.",
        ),
        ([T - 1 for T in right], "step t finds t − 1 states, not t: its own is not written yet when it reads."),
        ([1 + (S + 2) * H // S for H, S in cases], "round up: that many steps are not always enough."),
        ([2 + (S + 2) * H // S for H, S in cases], "where both have cost the same, attention has cost as much."),
        (
            where(lambda S: S + 2, lambda S: 2 * S),
            "from there on a *step* of attention costs more; the sums over all steps meet about twice as late.",
        ),
        (
            where(lambda S: S, lambda S: S),
            "the matrix has to be written too, and to be written it is gone through twice.",
        ),
        ([H for H, _ in cases], "that is one read of each form; the matrix has to be written too."),
        (where(lambda S: S + 1, lambda S: S), "to write the matrix is to read it and to store it: twice H² a step."),
        (where(lambda S: S + 2, lambda S: 1), "attention goes through its states anew in each of the S inner steps."),
        (where(lambda S: 3, lambda S: 1), "right for S = 1; else the matrix is read S times a step, but written once."),
        (
            where(lambda S: 2 * (S + 2), lambda S: S),
            "each read goes through the states twice, to compare them and to add them up.",
        ),
    ):
        if same(ours, wrong):
            raise Wrong(advice)
    (H, S), T, wanted = next(one for one in zip(cases, ours, right, strict=True) if one[1] != one[2])
    raise Wrong(
        f"with {H} units and S = {S} you say T = {T:,.10g}. By then attention has touched {S * T * (T - 1) * H:,.0f} "
        f"numbers and the matrix form {T * (S + 2) * H**2:,.0f}, so that T should be {'larger' if wanted > T else 'smaller'}."
    )


def _plateaus(pairs, digits):
    """The error and the nats asked for, under "", and what other guessers or slips make of them."""
    strings = list(itertools.product(range(digits), repeat=pairs))
    bags = {tuple(sorted(string)) for string in strings}

    def mean(of, among=strings):
        return sum(of([count / pairs for count in Counter(string).values()]) for string in among) / len(among)

    def entropy(shares):
        return -sum(share * math.log(share) for share in shares)

    error, nats, known = 1 - mean(max), mean(entropy), 1 / pairs + (1 - 1 / pairs) / digits
    return {
        "": (error, nats),
        "exchanged": (nats, error),
        "right": (1 - error, nats),
        "per cent": (100 * error, nats),
        "bits": (error, nats / math.log(2)),
        "sum": (len(strings) * error, len(strings) * nats),
        "bags": (1 - mean(max, bags), mean(entropy, bags)),
        "sets": (mean(lambda shares: 1 - 1 / len(shares)), mean(lambda shares: math.log(len(shares)))),
        "different": (1 - 1 / pairs, math.log(pairs)),
        "nothing": (1 - 1 / digits, math.log(digits)),
        "one pair": (1 - known, entropy([known] + [(1 - known) / (digits - 1)] * (digits - 1) * (known < 1))),
        "surprise": (error, -mean(lambda shares: math.log(max(shares)))),
    }


GUESSERS = {
    "exchanged": "the error comes first, then the nats.",
    "right": "that is the share of right answers; the error is what is missing to 1.",
    "per cent": "the error should be a share, not per cent.",
    "bits": "the loss is in bits; nats are asked for.",
    "sum": "divide by the number of strings.",
    "bags": "not all bags are equally likely: two different digits come in two orders, two equal ones in one.",
    "sets": "your guesser knows which digits occurred, but not how often each did.",
    "different": "digits are drawn with replacement: one may stand beside two letters.",
    "nothing": "your guesser has seen nothing; this one has seen the digits.",
    "one pair": "your guesser remembers one pair, and this one all digits.",
    "surprise": "the loss is that of whatever digit is right, not only of the one that was answered.",
}


@checker("12.4", "A network that stands there need not have bound anything.")
def plateau(answer):
    """`answer(pairs, digits)` returns the error and the nats of who knows how often each digit occurred, and no more."""
    cases = [(pairs, int(torch.randint(2, 7, ()))) for pairs in (2, 3, 4, 1)]
    returned = [answer(*case) for case in cases]
    if any(not isinstance(one, tuple | list) or len(one) != 2 for one in returned):
        raise Wrong("return two numbers: the error, as a share, and the cross-entropy in nats.")
    known = [_plateaus(*case) for case in cases]
    right = torch.tensor([one[""] for one in known]).double()
    ours = like([[float(number) for number in one] for one in returned], right)
    if (ours - right).abs().max() < TINY:
        return
    for guesser, advice in GUESSERS.items():
        if (ours - torch.tensor([one[guesser] for one in known])).abs().max() < TINY:
            raise Wrong(advice)
    worst = int((ours - right).abs().amax(1).argmax())
    (pairs, digits), (error, nats) = cases[worst], ours[worst]
    raise Wrong(
        f"for {pairs} pairs and {digits} digits you say {100 * error:.2f} % and {nats:.3f} nats, and it should be "
        f"{100 * right[worst, 0]:.2f} % and {right[worst, 1]:.3f} nats."
    )


@checker("12.5", "What it said of other directions, it still says.")
def corrected(answer):
    """`answer(A, k, v, beta)` returns A after one writing of the delta rule, for a key of any length."""
    for case in range(CASES):
        values, keys = 5 - case % 3, 5
        A, k, v = torch.randn(values, keys).double(), torch.randn(keys).double(), torch.randn(values).double()
        beta, length = 0.2 + 0.6 * torch.rand(()).item(), k.norm()
        written, said = torch.outer(v, k) / length**2, torch.outer(A @ k, k) / length**2
        right = A + beta * (written - said)
        ours = like(answer(A.clone(), k.clone(), v.clone(), beta), right)
        if off(ours, right) < TINY:
            continue
        for wrong, advice in (
            (
                A + beta * (written - said) * length**2,
                f"divide by the key's squared length; this one is {length:.2f} long.",
            ),
            (A + beta * (written - said) * length, "divide by the key's *squared* length, since k comes in twice."),
            (A + (written - said), "β is missing: you always write the whole difference."),
            (A - beta * (written - said), "the sign is wrong: the memory moves away from v."),
            (A + beta * written, "that puts v on top of what the memory said before; write the difference."),
            (A + beta * written * length**2, "that is the sum rule: what the memory said before stays in it."),
            (A + beta * written - said, "β scales both: what is written and what is taken away."),
            (A + written - beta * said, "β scales both: what is written and what is taken away."),
            ((1 - beta) * A + beta * written, "only what A says of k should fade; yours forgets everything."),
            (beta * (written - said), "that is the change; add it to A."),
        ):
            if off(ours, wrong) < TINY:
                raise Wrong(advice)
        if values == keys and off(ours, A + beta * (written - said).T) < TINY:
            raise Wrong("the outer product is the wrong way round: a row of A belongs to an entry of v.")
        aside = torch.randn(keys).double()
        aside -= (aside @ k) / length**2 * k
        if (apart := off(ours @ aside, A @ aside)) > TINY:
            raise Wrong(f"a key at right angles to k gets another answer than before; they differ by {apart:.2g}.")
        raise Wrong(f"asked with k, the memory is off by {off(ours @ k, right @ k):.2g} with β = {beta:.2f}.")
