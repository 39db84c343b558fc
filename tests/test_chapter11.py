"""Chapter 11: wrong answers to its exercises, and what is printed in it is right on more than its own cases."""

import bisect
import functools
import itertools
import math
import sqlite3
import time
import types

import conftest
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csgraph

from shared import datasets, discrete, stochastic
from shared.exercises import chapter11
from shared.stochastic import OneHot, StraightThrough, straight_through
from tools.book import chapter_paths, read

NOTEBOOK = read(chapter_paths("11")[0])
GIVEN = {"math": math, "np": np, "torch": torch, "time": time, "sqlite3": sqlite3}
GIVEN |= {"datasets": datasets, "discrete": discrete, "stochastic": stochastic, "chapter11": chapter11}
GIVEN |= {"OneHot": OneHot, "StraightThrough": StraightThrough, "straight_through": straight_through}
GIVEN |= {"dataset": "digits", "height": 8, "width": 8, "neurons": 12, "size": 8, "batch_size": 50}
GIVEN |= {"lengths": [6, 12], "trial_size": 300, "trial_passes": 2, "updates": 150, "price": 0.1}
GIVEN |= {"itertools": itertools, "csgraph": csgraph, "lm_hidden": 8, "prompts": 20, "reach": 0}
GIVEN |= {"passes": 1, "step_size": 0.02}
GIVEN |= {"POST": "", "post": {}}  # for what the chapter sets beside its functions that write claims
KINDS = {"free": {"price": 0.0, "additive": False}, "strokes": {"price": 0.1, "additive": True}}
GIVEN |= {"KINDS": KINDS}


def printed(*names, **more):
    """What the chapter defines under these names, where it may use `more` beside what is given to all."""
    return conftest.printed(NOTEBOOK, GIVEN | more, *names)


def silent(a, g, temperature, cold=False, first=True, centre="weighted", scale=True):
    p = (a if cold else a / temperature).softmax(-1)
    zero = torch.zeros_like(g[..., :1])
    g = torch.cat([zero, g] if first else [g, zero], -1)
    means = {"weighted": (p * g).sum(-1, keepdim=True), "plain": g.mean(-1, keepdim=True), "none": 0}
    return p * (g - means[centre]) / (temperature if scale else 1)


def without_silence(a, g, temperature):
    return torch.cat([torch.zeros_like(a[..., :1]), silent(a, g, temperature)[..., 1:]], -1)


def without_softmax(a, g, temperature):
    return silent(a, g, temperature) / (a / temperature).softmax(-1)


def entropies(codes, size, log=torch.log2):
    q = torch.stack([(codes == slot).double().mean(0) for slot in range(size)])
    return -(q * log(q.clamp(min=1e-300))).sum(0)


def undefined(codes, size):
    q = torch.stack([(codes == slot).double().mean(0) for slot in range(size)])
    return -(q * q.log2()).sum()


def pooled(codes, size):
    return codes.shape[1] * entropies(codes.flatten()[:, None], size).sum()


def most_frequent(codes, size):
    return -discrete.shares(codes, size).max(1).values.log2().sum()


def parts(scores, symbols, size, normalised=True, interleaved=False):
    log_p = scores.log_softmax(-1) if normalised else scores
    by_neuron = log_p.view(len(scores), -1, size)
    owner = symbols // size
    if interleaved:
        by_neuron, owner = log_p.view(len(scores), size, -1).mT, symbols % (log_p.shape[1] // size)
    neuron = by_neuron.logsumexp(-1).gather(1, owner[:, None])[:, 0]
    return -neuron, neuron - log_p.gather(1, symbols[:, None])[:, 0]


def whole(scores, symbols, size):
    neuron, slot = parts(scores, symbols, size)
    return neuron, neuron + slot


def any_neuron(scores, symbols, size):
    p = scores.softmax(-1).view(len(scores), -1, size).sum(1)
    return parts(scores, symbols, size)[0], -p.gather(1, symbols[:, None] % size)[:, 0].log()


def halving(short, long, there=lambda long, at, position: at < len(long) and long[at] == position):
    return [position for position in short if there(long, bisect.bisect_left(long, position), position)]


def walk(short, long):
    found, j = [], 0
    for position in short:
        while j < len(long) and long[j] < position:
            j += 1
        if j < len(long) and long[j] == position:
            found.append(position)
    return found


WRONG = [
    ("silent_gradient", functools.partial(silent, scale=False), "divide by the temperature"),
    ("silent_gradient", lambda a, g, temperature: -silent(a, g, temperature), "the sign is wrong"),
    ("silent_gradient", functools.partial(silent, cold=True), "depend on the temperature too"),
    ("silent_gradient", functools.partial(silent, centre="none"), "the mean of the gradients is missing"),
    ("silent_gradient", functools.partial(silent, centre="none", scale=False), "the mean of the gradients is missing"),
    ("silent_gradient", without_silence, "the silent slot's logit has a gradient"),
    ("silent_gradient", functools.partial(silent, first=False), "the first, not the last"),
    ("silent_gradient", functools.partial(silent, centre="plain"), "with the probabilities as weights"),
    ("silent_gradient", without_softmax, r"sums to 0 \(yours to"),
    ("silent_gradient", lambda a, g, temperature: silent(a, g, temperature) * temperature**2, "off by .* entry"),
    ("silent_gradient", lambda a, g, temperature: silent(a, g, temperature)[..., 1:], "should have shape"),
    ("bits", undefined, "NaN: a slot that is never taken"),
    ("bits", lambda codes, size: entropies(codes, size, torch.log).sum(), "divide by ln 2"),
    ("bits", lambda codes, size: entropies(codes, size).mean(), "that is the mean of the 2 neurons"),
    ("bits", lambda codes, size: codes.shape[1] * math.log2(size), "what the code could say"),
    ("bits", pooled, "the slots of all neurons together"),
    ("bits", lambda codes, size: -entropies(codes, size).sum(), "the sign is wrong"),
    ("bits", entropies, r"return one number, the sum over neurons \(got shape \(2,\)\)"),
    ("bits", most_frequent, "for 2 neurons of 3 slots you return .* should be"),
    ("two_parts", lambda *of: sum(parts(*of)), "return two tensors"),
    ("two_parts", lambda *of: parts(*of)[::-1], "the two are exchanged"),
    ("two_parts", lambda *of: [-one for one in parts(*of)], "the sign is wrong"),
    ("two_parts", lambda *of: [one / math.log(2) for one in parts(*of)], "those are bits"),
    ("two_parts", whole, "take off what was paid for the neuron"),
    ("two_parts", functools.partial(parts, normalised=False), "they do not add up to 1"),
    ("two_parts", functools.partial(parts, interleaved=True), "stand side by side"),
    ("two_parts", any_neuron, "the first is off by 0, the second by|the first is off by .*e-1., the second by"),
    ("two_parts", lambda *of: [one.sum() for one in parts(*of)], "should have shape"),
    ("intersection", lambda short, long: [i for i in short if i in long], "halving needs about 15 looks for each"),
    ("intersection", walk, "right, but you looked at"),
    ("intersection", lambda short, long: sorted({*short} & {*long}), "right, but you looked at"),
    ("intersection", lambda short, long: halving(short, long)[::-1], "not in order, or not once each"),
    ("intersection", lambda short, long: 2 * halving(short, long), "not in order, or not once each"),
    ("intersection", lambda short, long: short, "you miss 0 positions and return [1-9]"),
    ("intersection", lambda short, long: halving(short[::2], long), "you miss [1-9].* return 0 wrong ones"),
    ("intersection", functools.partial(halving, there=lambda long, at, i: long[at] == i), "stopped with IndexError"),
]


def test_what_the_reader_may_do_to_the_short_list_is_his_own_affair():
    def emptied(short, long):
        found = halving(short, long)
        short.clear()
        return found

    assert chapter11.intersection.problem(emptied) is None


def test_parts_are_disjoint_and_complete():
    (part,) = printed("part")
    data = datasets.load("digits")
    (x, labels), (y, more), (z, test) = (part(name) for name in ("train", "tune", "test"))
    assert (len(x), len(y), len(z)) == (1100, 100, 597)
    assert torch.equal(torch.cat([x, y]), data.train_images.flatten(1))
    assert torch.equal(torch.cat([labels, more]), data.train_labels)
    assert torch.equal(z, data.test_images.flatten(1))
    assert torch.equal(test, data.test_labels)


def network(neurons=12, pixels=64, seed=0):
    (autoencoder,) = printed("autoencoder")
    torch.manual_seed(seed)
    return autoencoder(neurons, pixels, seed)


def error(net, x):
    with torch.no_grad():
        return (net.decode(net.encode(x)) - x).square().sum(1).mean().item()


def test_temperatures_fall_as_in_the_post():
    (falling,) = printed("falling")
    assert [falling(t) for t in (0, 0.033, 0.034, 0.333, 0.334, 0.999)] == [3, 3, 2, 2, 1, 1]


def test_each_batch_has_the_temperature_of_its_time():
    (fit,) = printed("fit")
    net, times, seen = network(), [], []
    net.encoder.register_forward_hook(lambda *_: seen.append(net.temperature))
    x = torch.rand(120, 64)  # three batches, of which the last is smaller
    fit(net, x, 4, 0.01, temperature=lambda t: times.append(t) or 2 - t)
    torch.testing.assert_close(times, [i / 12 for i in range(12)])
    torch.testing.assert_close(seen, [2 - t for t in times])
    assert net.temperature == 1


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_error_and_ends_in_evaluation_at_temperature_1(kind):
    part, fit = printed("part", "fit")
    x, net = part("train")[0], network()
    before = error(net, x)
    fit(net, x, 5, 0.02, **KINDS[kind])
    assert error(net, x) < 0.75 * before
    assert (net.training, net.temperature) == (False, 1)
    lowest = net.decoder[0].weight.min()
    assert lowest >= 0 if KINDS[kind]["additive"] else lowest < 0
    assert net.silence().square().sum() < 2  # of 64 pixels


def test_what_is_said_has_its_price():
    part, fit = printed("part", "fit")
    x, said = part("train")[0][:400], []
    for price in (0.0, 2.0):
        net = network()
        fit(net, x, 4, 0.02, price=price)
        said.append((net.encode(x) > 0).double().mean())
    assert said[1] < said[0] / 2


def test_silence_is_trained_to_be_blank():
    part, fit = printed("part", "fit")
    blank = []
    for silence in (0.0, 30.0):
        net = network()
        net.decoder[0].bias.data += 2
        fit(net, part("train")[0][:400], 4, 0.05, silence=silence)
        blank.append(net.silence().square().sum().item())
    assert blank[1] < blank[0] / 2


def test_a_run_gives_its_weights_back():
    part, trained, restored = printed("part", "trained", "restored")
    torch.manual_seed(0)
    run = trained("strokes", 12, 3)
    net = restored([weight.detach().numpy() for weight in run["weights"]])
    assert not net.training
    assert error(net, part("test")[0]) == pytest.approx(run["error"].item(), rel=1e-5)


def test_the_strokes_of_a_code_make_up_its_picture():
    (strokes_of,) = printed("strokes_of")
    net, code = network(), torch.tensor([0, 1, 7, 3, 0, 0, 2, 2, 5, 6, 0, 4])
    said, drawn = strokes_of(net, code)
    assert sorted(said) == [(n, slot) for n, slot in enumerate(code.tolist()) if slot > 0]
    torch.testing.assert_close((net.decoder[0].bias + drawn.sum(0)).sigmoid(), net.decode(code[None])[0])
    sizes = drawn.square().sum(1)
    assert torch.equal(sizes, sizes.sort(descending=True).values)
    torch.testing.assert_close(drawn[0], net.decoder[0].weight[:, 7 * said[0][0] + said[0][1] - 1])


def test_spread_is_the_share_of_pixels_with_nine_tenths_of_the_ink():
    part, spread = printed("part", "spread")
    inked = (part("train")[0].amax(0) > 0).nonzero().flatten()  # pixels that are always white do not count
    net, shares = network(neurons=2, pixels=64), torch.zeros(2, 8)
    drawings = net.decoder[0].weight.data.fill_(0)
    drawings[(part("train")[0].amax(0) == 0)] = 9.0
    shares[:, 0] = 1
    for symbol, ink in [(0, [5.0]), (3, [-1.0, 1.0, -1.0, 1.0]), (7 + 2, [5.0, -10, 85]), (7 + 6, [1.0] * 16)]:
        drawings[inked[: len(ink)], symbol] = torch.tensor(ink)
        if symbol != 7 + 6:  # a symbol that is hardly used does not count
            shares[symbol // 7, symbol % 7 + 1] = 0.001
    assert spread(net, shares) == pytest.approx((1 + 2 + 1) / 3 / len(inked))


@pytest.mark.parametrize("in_training", [True, False])
def test_levels_are_whole_numbers_with_the_gradient_of_the_sigmoid(in_training):
    (Levels,) = printed("Levels")
    layer, a = Levels(in_training), torch.linspace(-6, 6, 401, dtype=torch.float64, requires_grad=True)
    right = 7 * a.detach().sigmoid()
    for training in (True, False):
        values, codes, pull = layer.train(training)(a)
        rounded = in_training or not training
        torch.testing.assert_close(values.detach(), right.round() if rounded else right)
        (slope,) = torch.autograd.grad(values.sum(), a)
        torch.testing.assert_close(slope, right * (1 - right / 7))
        assert pull == 0
        if rounded:
            assert codes.unique().tolist() == list(range(8))
            assert torch.equal(codes, values.long())


def vectors(groups=3, dim=4, items=20):
    """A layer of vectors, what arrives at it, the slots of the nearest vectors and these."""
    (Nearest,) = printed("Nearest")
    torch.manual_seed(0)
    layer = Nearest(groups, dim)
    a = torch.randn(items, groups * dim, requires_grad=True)
    z = a.detach().view(items, groups, dim)
    distances = (z[:, :, None] - layer.vectors.detach()).norm(dim=-1)
    slots = distances.argmin(-1)
    nearest = torch.stack([layer.vectors[g, slots[:, g]] for g in range(groups)], 1).detach()
    return layer, a, z, slots, nearest


def test_the_nearest_vectors_are_passed_on_and_the_gradient_goes_straight_through():
    layer, a, z, slots, nearest = vectors()
    values, codes, pull = layer(a)
    assert torch.equal(codes, slots)
    torch.testing.assert_close(values, nearest.flatten(1))
    torch.testing.assert_close(pull, 1.25 * (z - nearest).square().sum() / 20)
    upstream = torch.randn_like(values)
    of_values = torch.autograd.grad(values, [a, layer.vectors], upstream, retain_graph=True, allow_unused=True)
    assert torch.equal(of_values[0], upstream)
    assert of_values[1] is None or not of_values[1].any()
    of_a, of_vectors = torch.autograd.grad(pull, [a, layer.vectors])
    torch.testing.assert_close(of_a, (0.5 / 20 * (z - nearest)).flatten(1))
    right = torch.zeros_like(layer.vectors)
    for item in range(20):
        for g in range(3):
            right[g, slots[item, g]] += 2 / 20 * (nearest - z)[item, g]
    torch.testing.assert_close(of_vectors, right)


def test_only_vectors_that_nothing_chose_are_put_elsewhere():
    layer, a, z, slots, _ = vectors(items=6)
    before = layer.vectors.detach().clone()
    layer(a)
    layer.revive(a)
    chosen = torch.stack([torch.bincount(slots[:, g], minlength=8) > 0 for g in range(3)])
    assert 0 < chosen.sum() < chosen.numel()
    assert torch.equal(layer.vectors[chosen], before[chosen])
    for g in range(3):
        moved = layer.vectors[g][~chosen[g]]
        assert (moved[:, None] == z[None, :, g]).all(-1).any(1).all()  # each is what arrived from some image
    assert not layer.chosen.any()


@pytest.mark.parametrize(("groups", "dim"), [(1, 1), (5, 7), (9, 2)])
def test_a_vq_network_is_a_one_hot_network(groups, dim):
    as_one_hot, Nearest = printed("as_one_hot", "Nearest")
    torch.manual_seed(groups)
    layer = Nearest(groups, dim).double().eval()
    encoder, ink = torch.nn.Linear(30, groups * dim).double(), torch.nn.Linear(groups * dim, 30).double()
    x = torch.randn(200, 30, dtype=torch.float64)
    with torch.no_grad():
        values, codes, _ = layer(encoder(x))
        weights = [*encoder.parameters(), layer.vectors, *ink.parameters()]
        net = as_one_hot([weight.numpy() for weight in weights])
        assert codes.unique().tolist() == list(range(8))
        assert torch.equal(net.encode(x), codes)
        torch.testing.assert_close(net(x), ink(values).sigmoid())
        torch.testing.assert_close(net.decode(codes), ink(values).sigmoid())


def with_rivals(*names, **more):
    Levels, Nearest = printed("Levels", "Nearest")
    rivals = {"vector quantisation": (lambda n: Nearest(n, 7), 7), "rounded in training": (lambda n: Levels(True), 1)}
    return printed(*names, RIVALS=rivals | {"rounded afterwards": (lambda n: Levels(False), 1)}, **more)


@pytest.mark.parametrize(
    "kind", ["one-hot neurons", "vector quantisation", "rounded in training", "rounded afterwards"]
)
def test_every_kind_of_code_is_billed(kind):
    billed, as_one_hot, part = with_rivals("billed", "as_one_hot", "part")
    torch.manual_seed(0)
    bill = billed(kind, 12, 0.02, "tune", 0)
    unseen = part("tune")[0]
    assert bill["error"] < (unseen + 1).square().sum(1).mean() / 5
    assert 0 < bill["bits"] <= 36
    assert bool(bill["weights"]) == (kind == "vector quantisation")
    if bill["weights"]:
        weights = [weight.detach().numpy() for weight in bill["weights"]]
        net = as_one_hot(weights)
        assert error(net, unseen) == pytest.approx(bill["error"].item(), rel=1e-4)
        assert discrete.entropy(net.encode(unseen), 8).sum() == pytest.approx(bill["bits"].item())


def principal():
    (part,) = printed("part")
    x = part("train")[0]
    centre = x.mean(0)
    return {"centre": centre, "directions": torch.linalg.eigh((x - centre).T @ (x - centre)).eigenvectors}


def test_a_finer_grid_of_components_costs_bits_and_saves_error():
    components, part = printed("components", "part", **principal())
    errors, bits = np.array([components(grid) for grid in (0.001, 0.5, 1.0, 2.0)]).T
    assert errors[0] < 1e-4
    assert (np.diff(errors) > 0).all()
    assert (np.diff(bits) < 0).all()
    unseen, (centre, directions) = part("test")[0], principal().values()
    output = ((unseen - centre) @ directions).round() @ directions.T + centre
    assert errors[2] == pytest.approx((output.clamp(0, 1) - unseen).square().sum(1).mean().item(), rel=1e-4)


@pytest.fixture(scope="module")
def readers():
    """What the functions that read and search need of the chapter's networks; here they are untrained."""
    (part,) = printed("part")
    net = network()
    codes = {name: net.encode(part(name)[0]).to(torch.uint8) for name in ("train", "tune", "test")}
    real = types.SimpleNamespace(weight=[np.full((12, 64), 0.01, np.float32)], bias=[np.zeros(12, np.float32)])
    given = {"REAL": real, "NETS": [net], "FREE": [net], "CODES": [codes], "FREE_CODES": [codes]}
    return given | {"INDEX": [discrete.SymbolIndex(codes["train"], 8)]} | principal()


WIDTHS = {"strokes": 84, "free": 84, "real values": 12, "components": 12, "pixels": 64}


@pytest.mark.parametrize("kind", WIDTHS)
def test_features_are_one_row_an_image(readers, kind):
    (features,) = printed("features", **readers)
    for name, count in [("train", 1100), ("tune", 100), ("test", 597)]:
        found = features(kind, name, 0)
        assert found.shape == (count, WIDTHS[kind])
        assert found.dtype == torch.float32
    if kind in ("strokes", "real values"):
        assert found.min() >= 0
        assert found.max() <= 1


@pytest.mark.parametrize("kind", ["pixels", "strokes"])
def test_a_linear_reader_reads_better_with_more_labels(readers, kind):
    (reader,) = printed("read", **readers)
    few, many = (reader(kind, count, 0) for count in (20, 1100))
    assert few["accuracy"] + 5 < many["accuracy"]
    assert many["accuracy"] > (85 if kind == "pixels" else 60)
    assert {few["penalty"], many["penalty"]} <= {0.0, 1e-4, 1e-3, 1e-2, 1e-1}


def test_the_unit_of_features_does_not_matter(readers):
    accuracy = []
    for factor in (1.0, 0.01):
        (reader,) = printed("read", **readers | {"directions": factor * readers["directions"]})
        accuracy.append(reader("components", 1100, 0)["accuracy"])
    assert accuracy[0] == pytest.approx(accuracy[1], abs=1)


ASCENDING = st.sets(st.integers(0, 60)).map(sorted)


@settings(max_examples=300, deadline=None)
@given(ASCENDING, ASCENDING)
def test_two_lists_share_what_their_sets_share(a, b):
    assert BOTH(a, b) == BOTH(b, a) == sorted({*a} & {*b})


(BOTH,) = printed("both")


def test_all_ways_of_searching_find_the_same():
    rng = np.random.default_rng(0)
    codes = torch.as_tensor(rng.integers(0, 8, (3000, 12)) * (rng.random((3000, 12)) < 0.7)).to(torch.uint8)
    postings_of, in_arrays, scanned, full_text, asked = printed(
        "postings_of", "in_arrays", "scanned", "full_text", "asked"
    )
    index, postings, columns = discrete.SymbolIndex(codes, 8), postings_of(codes), codes.T.numpy()
    assert [index.postings(symbol).tolist() for symbol in range(96)] == postings
    base = full_text(codes)
    for neuron in range(10):
        symbols = [8 * n + int(rng.integers(0, 3)) for n in (neuron, neuron + 1, neuron + 2)]
        right = index.find(discrete.All(*symbols)).tolist()
        lists = [postings[symbol] for symbol in symbols]
        assert BOTH(BOTH(lists[0], lists[1]), lists[2]) == right
        assert in_arrays([np.array(one, np.int32) for one in lists]).tolist() == right
        assert scanned(columns, symbols).tolist() == right
        assert base is None or asked(base, symbols) == right


@pytest.mark.parametrize("shared_items", [[], [0], [999], [0, 7, 999]])
def test_arrays_at_their_ends(shared_items):
    (in_arrays,) = printed("in_arrays")
    arrays = [np.array(sorted({*shared_items, *others})) for others in ([], [1, 998], range(2, 998, 2))]
    assert in_arrays(arrays).tolist() == sorted(set.intersection(*(set(one.tolist()) for one in arrays)))


def test_many_codes_are_drawn_with_the_networks_probabilities(readers):
    part, many_codes = printed("part", "many_codes", **readers)
    codes = many_codes(2500, torch.Generator().manual_seed(0))
    assert codes.shape == (2500, 12)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes, many_codes(2500, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        p = readers["NETS"][0].logits(part("train")[0]).softmax(-1).mean(0)
    assert (discrete.shares(codes[:2200], 8) - p).abs().max() < 0.05  # five standard deviations


def test_a_line_has_ink_along_its_way_and_nowhere_else():
    line, ring = printed("line", "ring", height=28, width=28)
    stem = line((0.5, 0.2), (0.5, 0.8)).view(28, 28)
    assert stem.nonzero().amin(0).tolist() == [4, 12]
    assert stem.nonzero().amax(0).tolist() == [23, 15]
    assert (stem[6:22, 13:15] == 1).all()
    assert (stem[:, [12, 15]] < 0.2).all()
    torch.testing.assert_close(line((0.2, 0.5), (0.8, 0.5)).view(28, 28), stem.T)
    a, b, c = (0.3, 0.1), (0.8, 0.4), (0.2, 0.9)
    torch.testing.assert_close(line(a, b, c), torch.maximum(line(a, b), line(c, b)))
    y, x = (torch.arange(784) // 28 + 0.5) / 28, (torch.arange(784) % 28 + 0.5) / 28
    for at, down, r in [(0.5, 0.4, 0.3), (0.3, 0.7, 0.15)]:
        away = ((x - at).square() + (y - down).square()).sqrt() - r
        drawn = ring(at, down, r)
        assert (drawn[away.abs() < 0.013] == 1).all()  # a polygon of 16 corners is within 0.02 r of its circle
        assert (drawn[away.abs() > 0.064] == 0).all()


def test_a_line_between_two_columns_of_a_small_picture_is_seen():
    (line,) = printed("line")
    assert (line((0.5, 0.2), (0.5, 0.8)).view(8, 8)[2:6, 3:5] > 0.9).all()


def test_a_question_has_the_symbols_that_are_said(readers):
    (ask,) = printed("question", **readers)
    net, pixels = readers["NETS"][0], datasets.load("digits").test_images.flatten(1)
    for one in pixels[:5]:
        code = net.encode(one[None])[0].tolist()
        assert ask(net, one) == [8 * n + slot for n, slot in enumerate(code) if slot]


def test_ink_that_has_grown_reaches_the_neighbours():
    (grown,) = printed("grown", height=28, width=28, reach=1)
    page = torch.zeros(2, 28, 28)
    page[0, 0, 5], page[1, 10, 27] = 0.7, 1.0
    right = torch.zeros(2, 28, 28)
    right[0, :2, 4:7], right[1, 9:12, 26:] = 0.7, 1.0
    assert torch.equal(grown(page.flatten(1)), right.flatten(1))


def test_the_share_of_a_symbols_ink_under_a_picture():
    under, net = *printed("under"), network()
    drawings, pixels = net.decoder[0].weight.detach(), torch.rand(3, 64)
    drawings[:, 5] = -1.0  # a symbol that adds nothing
    shares = under(net, pixels)
    assert shares.shape == (3, 84)
    for i, symbol in itertools.product(range(3), range(84)):
        ink = drawings[:, symbol].clamp(min=0)
        right = ink[pixels[i] > 0.5].sum() / ink.sum() if symbol != 5 else 0
        assert shares[i, symbol].item() == pytest.approx(float(right), abs=1e-5)
    torch.testing.assert_close(under(net, torch.ones(1, 64))[0, 6:], torch.ones(78))


def test_scores_have_a_row_for_each_question(readers):
    part, scores, under = printed(
        "part",
        "scores",
        "under",
        **readers,
        RANKERS={"pixels": lambda q, x, seed: printed("cosine")[0](q, x)},
    )
    x, q = part("train")[0], part("test")[0][:5]
    found = scores(q, x, 0)
    assert {name: tuple(one.shape) for name, one in found.items()} == dict.fromkeys(found, (5, 1100))
    symbols = {"strokes, by the encoder", "strokes, by the atlas", "free code, by the encoder"}
    assert {*found} == {"pixels", *symbols}
    right = [[torch.cosine_similarity(one, other, dim=0) for other in x[:20]] for one in q]
    torch.testing.assert_close(found["pixels"][:, :20], torch.tensor(right))
    net, codes = readers["NETS"][0], readers["CODES"][0]["train"].long()
    own = net.encode(q)[:, None]
    assert torch.equal(found["strokes, by the encoder"].round(), ((own == codes) & (own > 0)).sum(-1).float())
    shares = under(net, q).view(5, 12, 7)
    for i in range(20):
        said = [(n, slot) for n, slot in enumerate(codes[i].tolist()) if slot]
        right = sum(shares[:, n, slot - 1] for n, slot in said)
        torch.testing.assert_close(found["strokes, by the atlas"][:, i], right)


def test_halves_blank_below_above_right_and_left():
    (halves,) = printed("halves")
    before = torch.ones(9, 64)
    kept = halves(before).view(9, 8, 8)
    assert before.all()
    where = [kept[i].nonzero() for i in range(9)]
    corners = [(*one.amin(0).tolist(), *one.amax(0).tolist()) for one in where]
    assert corners[:4] == [(0, 0, 3, 7), (4, 0, 7, 7), (0, 0, 7, 3), (0, 4, 7, 7)]
    assert corners[4:] == [*corners[:4], corners[0]]
    assert all(len(one) == 32 for one in where)


def test_depths_and_phrases_are_judged_by_labels():
    rng = np.random.default_rng(0)
    y, shown = torch.as_tensor(rng.integers(0, 3, 400)), torch.as_tensor(rng.integers(0, 3, 8))
    same = y == shown[:, None]
    depths, phrases = printed("depths", "phrases", same=same, x=y)
    found = torch.as_tensor(rng.random((8, 400)))
    order = found.argsort(1, descending=True)
    right = [np.mean([same[i, order[i, :depth]].double().mean() for i in range(8)]) for depth in (1, 10, 100, 1000)]
    assert depths(found) == pytest.approx(right)
    assert depths(same.double() + found) == pytest.approx([1, 1, 1, same.double().mean().item()])
    # Neighbours answer to neighbouring halves more often than by chance: these are phrases that were found.
    found = torch.stack([found[0].roll(i % 3) for i in range(8)]) + 0.02 * found
    answers, places = found >= found.sort(1, descending=True).values[:, 19:20], []
    for first in (0, 3):  # phrases of the halves 0, 1, 2 and 3, 4, 5
        for i in range(398):
            if all(answers[first + j, i + j] for j in range(3)):
                places.append(all(same[first + j, i + j] for j in range(3)))
    assert 0 < sum(places) < len(places)
    assert phrases(found) == pytest.approx(sum(places) / max(1, len(places)))
    perfect = torch.where(same, 1.0, 0.0)  # ties at the threshold all answer
    assert phrases(perfect) == 1


@pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
def test_as_strict_as_leaves_the_share(share):
    (strict,) = printed("strict")
    codes = np.random.default_rng(0).integers(0, 3, (2000, 12))
    index, symbols = discrete.SymbolIndex(codes, 8), [8 * n + 1 for n in range(12)]
    query = strict(index, symbols, share)
    assert query.queries == tuple(symbols)
    assert len(index.find(query)) >= share * 2000
    assert len(index.find(discrete.AtLeast(query.k + 1, query.queries))) < share * 2000


def test_a_question_that_few_answer_is_not_void():
    (strict,) = printed("strict")
    codes = np.zeros((100, 2), int)
    codes[:3, 1] = 5
    assert strict(discrete.SymbolIndex(codes, 8), [13], 0.05) == discrete.AtLeast(1, (13,))


def drawn(items=400, neurons=3, size=3, seed=0):
    """Codes in which each neuron mostly says what the one before it says."""
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, size, items)]
    for _ in range(neurons - 1):
        codes.append(np.where(rng.random(items) < 0.7, codes[-1], rng.integers(0, size, items)))
    return torch.tensor(np.stack(codes, 1))


EVERY = torch.cartesian_prod(*[torch.arange(3)] * 3)  # all codes of three neurons of three slots


@pytest.mark.parametrize(("neurons", "size"), [(1, 2), (3, 5), (12, 8)])
def test_the_nats_of_a_symbol_split_in_two(neurons, size):
    (split,) = printed("split")
    torch.manual_seed(size)
    scores = torch.randn(6, 5, neurons * size, dtype=torch.float64)
    symbols = torch.randint(neurons * size, (6, 5))
    which, what = split(scores, symbols, size)
    nats = torch.nn.functional.cross_entropy(scores.flatten(0, 1), symbols.flatten(), reduction="none").view(6, 5)
    torch.testing.assert_close(which + what, nats)
    own = (torch.arange(neurons * size) // size) == (symbols // size)[..., None]
    torch.testing.assert_close(which, -(scores.softmax(-1) * own).sum(-1).log())


def writer(neurons=4, size=3, seed=0):
    (Writer,) = printed("Writer")
    torch.manual_seed(seed)
    net = Writer(neurons, size, 7).double()
    torch.nn.init.normal_(net.bias)
    return net


def test_a_writer_asks_each_neuron_after_what_was_read():
    net = writer()
    coming = torch.rand(8, 5).argsort(0) % 4  # each neuron twice, in another order in each column
    symbols = 3 * coming + torch.randint(3, coming.shape)
    nats = net(symbols, coming)
    before = torch.cat([torch.full((1, 5), 12), symbols[:-1]])
    for column, t in itertools.product(range(5), range(8)):
        read = net.symbol(before[: t + 1, column]) + net.coming(coming[: t + 1, column])
        neuron, slot = coming[t, column], symbols[t, column] % 3
        scores = net.recurrent(read)[0][-1] @ net.weight[neuron] + net.bias[neuron, 0]
        torch.testing.assert_close(nats[t, column], -scores.log_softmax(-1)[slot])


def test_a_writers_probabilities_of_all_codes_add_up_to_1():
    net = writer(neurons=3)
    for order in itertools.permutations(range(3)):
        coming = torch.tensor(order)[:, None].expand(-1, len(EVERY))
        symbols = (EVERY + 3 * torch.arange(3)).T.gather(0, coming)
        assert (-net(symbols, coming).sum(0)).exp().sum().item() == pytest.approx(1)


def test_codes_are_put_in_order():
    in_order, codes = *printed("in_order"), torch.randint(8, (50, 12), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    symbols, coming = in_order(codes, False, generator)
    assert torch.equal(symbols, discrete.to_symbols(codes, 8).T)
    assert torch.equal(coming, torch.arange(12)[:, None].expand(-1, 50))
    symbols, coming = in_order(codes, True, generator)
    assert torch.equal(discrete.to_codes(symbols.T, 8), codes.long())
    assert torch.equal(coming, symbols // 8)
    assert len(coming.unique(dim=1).T) == 50  # a fresh order for each


@pytest.mark.parametrize("kind", ["neuron and slot", "told the neuron", "fixed order"])
def test_every_kind_of_language_model_is_trained_and_weighed(readers, kind):
    torch.manual_seed(0)
    language, Reader, Writer, loaded = printed("language", "Reader", "Writer", "loaded", **readers)
    run = language(kind, 0.02, 500, "tune", 0)
    positions = 11 if kind == "neuron and slot" else 12  # a Reader is not asked for the first
    assert run["which"].shape == run["what"].shape == (positions,)
    torch.testing.assert_close(run["nats"], (run["which"] + run["what"]).mean())
    assert run["which"].any() == (kind == "neuron and slot")
    assert run["what"].mean() < math.log(8)
    loaded((Reader if kind == "neuron and slot" else Writer)(12, 8, 8), run["weights"])


def test_tables_are_of_counts_and_one_half():
    counted, looked_up = printed("counted", "looked_up", size=3)
    codes, context = drawn(), torch.randint(2, (400, 3))
    table = counted(codes, context, 2)
    for neuron, kind, slot in itertools.product(range(3), range(2), range(3)):
        here = codes[:, neuron][context[:, neuron] == kind]
        right = ((here == slot).sum() + 0.5) / (len(here) + 1.5)
        assert table[neuron, kind, slot].exp() == pytest.approx(right.item())
    nats = looked_up(table, codes[:4], context[:4])
    assert nats[3, 1] == -table[1, context[3, 1], codes[3, 1]]


def test_tables_give_all_codes_together_the_probability_1():
    of_classes, of_tree, labels = *printed("of_classes", "of_tree", size=3), torch.randint(4, (400,))
    codes = {"train": drawn(), "test": EVERY}
    for nats in (of_classes(codes, {"train": labels}), of_tree(codes)):
        assert nats.shape == (27,)
        assert (-nats).exp().sum().item() == pytest.approx(1)


def test_classes_are_mixed_by_their_shares():
    (of_classes,) = printed("of_classes", size=3)
    codes, labels = torch.tensor([[0], [0], [2]]), torch.tensor([0, 0, 1])
    nats = of_classes({"train": codes, "test": torch.tensor([[2]])}, {"train": labels})
    assert nats.exp().item() == pytest.approx(1 / (2 / 3 * 0.5 / 3.5 + 1 / 3 * 1.5 / 2.5))


def test_no_tree_is_better_than_the_tree():
    of_tree, counted, looked_up = printed("of_tree", "counted", "looked_up", size=3)
    for seed in range(3):
        codes = drawn(neurons=4, seed=seed)[:, torch.tensor(np.random.default_rng(seed).permutation(4))]
        nats = []
        for parents in itertools.product(range(4), repeat=3):  # of neurons 1, 2 and 3, where 0 is the root
            up = torch.tensor([0, *parents])
            if not up[up[up]].any():  # else there is a circle
                context = torch.where(torch.arange(4) == 0, 0, codes[:, up])
                nats.append(looked_up(counted(codes, context, 3), codes, context).sum(1).mean())
        assert len(nats) == 16
        assert (
            of_tree({"train": codes, "test": codes}).mean() <= min(nats) + 1e-3
        )  # trees differ by more, roots by less


def test_a_logistic_model_sees_earlier_neurons_only():
    (Logistic,) = printed("Logistic", size=3)
    model = Logistic(drawn())
    frequencies = -((discrete.shares(drawn(), 3) * 400 + 0.5) / 401.5).log().float()
    torch.testing.assert_close(model(EVERY), frequencies[torch.arange(3), EVERY])  # at first
    torch.nn.init.normal_(model.weight)
    assert (-model(EVERY).sum(1)).exp().sum().item() == pytest.approx(1, rel=1e-4)
    changed = EVERY.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 3
    same = (model.scores(EVERY) == model.scores(changed)).all(-1)
    assert same[:, :2].all()
    assert not same[:, 2].any()


def test_what_is_written_has_the_writers_probabilities():
    (write,) = printed("write")
    net, count = writer(neurons=2), 20_000
    for order in ([0, 1], [1, 0]):
        coming = torch.tensor(order)[:, None].expand(-1, count)
        symbols = write(net, coming, torch.full_like(coming, -1), torch.Generator().manual_seed(0))
        assert torch.equal(symbols // 3, coming)
        kinds, counts = symbols.unique(dim=1, return_counts=True)
        p = (-net(kinds, coming[:, : kinds.shape[1]]).sum(0)).exp()
        assert (counts / count - p).abs().max() < 0.02  # five standard deviations


def test_a_prompt_is_kept_and_read():
    write, net = *printed("write"), writer()
    coming = torch.rand(4, 30).argsort(0)
    prompt = torch.where(torch.rand(4, 30) < 0.5, 3 * coming + torch.randint(3, (4, 30)), -1)
    symbols = write(net, coming, prompt, torch.Generator().manual_seed(0))
    assert torch.equal(symbols[prompt >= 0], prompt[prompt >= 0])
    assert torch.equal(symbols // 3, coming)
    net.weight.data *= 5  # so that what is read matters
    coming, shares = torch.arange(4)[:, None].expand(-1, 2000), []
    for first in range(3):
        prompt = torch.cat([torch.full((1, 2000), first), torch.full((3, 2000), -1)])
        symbols = write(net, coming, prompt, torch.Generator().manual_seed(0))
        shares.append(torch.bincount(symbols[1] - 3, minlength=3) / 2000)
        told = torch.tensor([[first] * 3, [3, 4, 5], [6] * 3, [9] * 3])
        assert (shares[-1] - (-net(told, coming[:, :3])[1]).exp()).abs().max() < 0.06  # five standard deviations
    assert torch.stack(shares).std(0).max() > 0.1


def test_distance_to_the_nearest_code():
    (nearest,) = printed("nearest")
    codes, others = torch.randint(8, (150, 12)), torch.randint(8, (40, 12), dtype=torch.uint8)
    right = (codes[:, None] != others).sum(-1).amin(1)
    assert torch.equal(nearest(codes, others).long(), right)


def test_ink_in_the_upper_half_and_what_is_kept_of_it(readers):
    net = network(seed=1)
    Writer, ink_above = printed("Writer", "ink_above")
    weights = [one.detach() for one in Writer(12, 8, 8).parameters()]
    language = {"told the neuron": types.SimpleNamespace(weights=[weights])}
    (continued,) = printed("continued", NETS=[net], LANGUAGE=language)
    drawings = net.decoder[0].weight.data.zero_().view(64, 12, 7)
    drawings[:32, :6] = 1.0  # neurons 0 to 5 draw above, 6 to 8 below, 9 to 11 nothing
    drawings[32:, 6:9] = 1.0
    above = ink_above(net)
    assert above.shape == (12, 8)
    right = torch.zeros(12, 8)
    right[:6, 1:] = 1
    torch.testing.assert_close(above, right)
    pixels = torch.rand(40, 64)
    filled, kept = continued(0, pixels, torch.Generator().manual_seed(0))
    codes = net.encode(pixels * (torch.arange(64) < 32))  # the lower half is lost before anything is said
    keep = (codes > 0) & (torch.arange(12) < 6)
    assert torch.equal(kept, torch.where(keep, codes, 0))
    assert torch.equal(filled[keep], codes[keep])
    assert 0.05 < (filled == codes)[~keep].double().mean() < 0.25  # drawn by an untrained network


def test_rows_count_upwards():
    (rows_of,) = printed("rows_of")
    labels = torch.arange(200) % 10
    codes = torch.stack([labels, torch.arange(200)], 1).to(torch.uint8)
    rows = rows_of(codes, labels, 500, torch.Generator().manual_seed(0)).view(500, 4, 2).long()
    digits = rows[..., 0]
    assert (digits.diff(dim=1) % 10 == 1).all()
    assert torch.equal(digits[:, 0].unique(), torch.arange(10))
    assert torch.equal(rows[..., 1] % 10, digits)
    assert len(rows[..., 1].unique()) == 200


def test_a_row_goes_on_from_a_test_image(readers):
    codes = readers["CODES"]
    (counting,) = printed("counting", SMALL_CODES=codes)
    torch.manual_seed(0)
    pictures = counting(0.02, 50, 8, 0)["pictures"]
    assert pictures.shape == (20, 4, 12)
    assert torch.equal(pictures[:, 0], codes[0]["test"][:20])
    assert pictures.max() < 8
