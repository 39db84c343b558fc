"""Stacks cut in pieces: the limits in which they are backpropagation, what predictors learn from, and what reaches what."""

import copy
import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recurrent import CLOSELY, all_close
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from shared.synthetic_gradients import DecoupledStack, GradientPredictor, LossPredictor, reached

WIDTHS, CLASSES, BATCH = (5, 7, 6, 8, 3), 3, 10
HALVES = {"rtol": 1e-4, "atol": 1e-6}  # float32
CUTS = st.sets(st.integers(1, 3))


class Told(nn.Module):
    """A predictor that has been told the answer, and has nothing to learn: its error has no graph."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, h, labels):
        return self.answer

    def error(self, h, labels, gradients, losses):
        return mse_loss(self(h, labels), gradients)


def layers_of(dtype=torch.float64, batch_norm=False):
    torch.manual_seed(0)
    blocks = []
    for before, after in itertools.pairwise(WIDTHS[:-1]):
        blocks.append(nn.Sequential(nn.Linear(before, after), *[nn.BatchNorm1d(after)] * batch_norm, nn.Tanh()))
    return nn.Sequential(*blocks, nn.Linear(*WIDTHS[-2:])).to(dtype)


def talkative(predictor, dtype=torch.float64):
    """A predictor says zero when it is made; this one says something."""
    for one in predictor.parameters():
        nn.init.normal_(one, std=0.3)
    return predictor.to(dtype)


def example(places=(1, 2, 3), dtype=torch.float64, classes=CLASSES, kind=GradientPredictor, **options):
    layers = layers_of(dtype, **options)
    predictors = {place: talkative(kind(WIDTHS[place], classes), dtype) for place in places}
    return DecoupledStack(layers, predictors)


def data(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, WIDTHS[0], generator=generator, dtype=dtype)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return x, lambda o: cross_entropy(o, labels, reduction="none"), labels


def gradients(module):
    return [None if one.grad is None else one.grad.clone() for one in module.parameters()]


def backprop(layers, x, losses_of, places):
    """Gradients of the parameters, and B times those of the activations below the places."""
    layers.zero_grad()
    activations = list(itertools.accumulate(layers, lambda h, layer: layer(h), initial=x))
    for place in places:
        activations[place].retain_grad()
    losses_of(activations[-1]).mean().backward()
    found, deltas = gradients(layers), {place: BATCH * activations[place].grad for place in places}
    layers.zero_grad()
    return found, deltas


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("dtype", "closely"), [(torch.float64, CLOSELY), (torch.float32, HALVES)])
@given(places=CUTS)
@settings(max_examples=8, deadline=None)
def test_with_perfect_predictors_it_is_backpropagation(dtype, closely, batch_norm, places):
    layers = layers_of(dtype, batch_norm)
    x, losses_of, labels = data(dtype)
    whole, deltas = backprop(layers, x, losses_of, places)
    stack = DecoupledStack(layers, {place: Told(delta) for place, delta in deltas.items()})
    step = stack.backward(x, losses_of, labels)
    all_close(gradients(layers), whole, **closely)
    for place, met in zip(sorted(places), step.interfaces, strict=True):
        all_close([met.target, met.predicted], [deltas[place]] * 2, **closely)
    all_close([step.loss, step.outputs], [losses_of(layers(x)).mean(), layers(x)], **closely)
    assert not step.loss.requires_grad
    assert not step.outputs.requires_grad


@given(places=st.sets(st.integers(1, 3), min_size=1), labelled=st.booleans())
@settings(max_examples=10, deadline=None)
def test_predictors_say_zero_when_they_are_made_and_then_only_the_top_piece_learns(places, labelled):
    layers = layers_of()
    x, losses_of, labels = data()
    whole, _ = backprop(layers, x, losses_of, ())
    classes = CLASSES if labelled else 0
    predictors = {place: GradientPredictor(WIDTHS[place], classes, (4,)).double() for place in places}
    stack = DecoupledStack(layers, predictors)
    stack.backward(x, losses_of, labels if labelled else None)
    top = max(places)
    assert all((one == 0).all() for one in gradients(layers[:top]))
    all_close(gradients(layers[top:]), whole[2 * top :], **CLOSELY)
    for place, predictor in predictors.items():  # truth sinks by one cut at a time
        assert any((one != 0).any() for one in gradients(predictor)) == (place == top)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_predictors_descend_on_the_mean_squared_error_to_the_bootstrapped_target(classes):
    stack = example(classes=classes)
    x, losses_of, labels = data()
    seen = labels if classes else None
    activations = [one.detach() for one in itertools.accumulate(stack.layers, lambda h, f: f(h), initial=x)]
    said = [predictor(h, seen).detach() for predictor, h in zip(stack.predictors, activations[1:], strict=False)]
    targets = []
    for i in (1, 2, 3):  # written with Jacobians of one example after the other
        rows = []
        for b in range(BATCH):
            if i == 3:
                rows.append(
                    torch.func.grad(lambda h, b=b: losses_of_one(stack.layers[3](h), labels[b]))(activations[3][b])
                )
            else:
                jacobian = torch.func.jacrev(stack.layers[i])(activations[i][b])
                rows.append(said[i][b] @ jacobian)
        targets.append(torch.stack(rows).detach())
    step = stack.backward(x, losses_of, seen)
    for i, (predictor, met) in enumerate(zip(stack.predictors, step.interfaces, strict=True)):
        all_close([*met], [activations[i + 1], said[i], targets[i]], **CLOSELY)
        inputs = torch.cat((activations[i + 1], one_hot(labels, CLASSES)), 1) if classes else activations[i + 1]
        linear = predictor.network[-1]
        off = inputs @ linear.weight.T + linear.bias - targets[i]
        scale = 2 / off.numel()  # a mean over batch and features
        all_close([linear.weight.grad, linear.bias.grad], [scale * off.T @ inputs, scale * off.sum(0)], **CLOSELY)


def losses_of_one(o, label):
    return cross_entropy(o[None], label[None])


@given(places=CUTS, labelled=st.booleans())
@settings(max_examples=10, deadline=None)
def test_updating_each_piece_before_the_next_is_run_gives_the_same(places, labelled):
    places, classes = sorted(places), CLASSES if labelled else 0
    stack = example(places, classes=classes)
    x, losses_of, labels = data()
    seen = labels if labelled else None
    at_once = copy.deepcopy(stack)
    stack.backward(x, losses_of, seen)
    torch.optim.SGD(stack.parameters(), 0.5).step()
    h, below = x, None
    edges = [0, *places, len(at_once.layers)]
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        piece = at_once.layers[start:stop]
        out = piece(h)
        if i < len(places):
            going_back = at_once.predictors[i](out.detach(), seen).detach() / BATCH
        else:
            going_back = torch.autograd.grad(losses_of(out).mean(), out)[0]
        out.backward(going_back)
        update(piece)
        if below is not None:
            error = (below(h.detach(), seen) - BATCH * h.grad).square().mean()
            error.backward()
            update(below)
        h, below = out.detach().requires_grad_(), at_once.predictors[i] if i < len(places) else None
    all_close(list(stack.parameters()), list(at_once.parameters()), **CLOSELY)


def update(module):
    for one in module.parameters():
        one.data -= 0.5 * one.grad


def test_gradients_add_up_and_nothing_is_updated():
    stack = example()
    before = copy.deepcopy(stack.state_dict())
    stack.backward(*data())
    once = gradients(stack)
    stack.backward(*data())
    all_close(gradients(stack), [2 * one for one in once], **CLOSELY)
    all_close(list(stack.state_dict().values()), list(before.values()), rtol=0, atol=0)


def test_the_size_of_targets_does_not_depend_on_the_batch():
    stack = example(classes=0)
    x, _, labels = data()
    whole = stack.backward(x, lambda o: cross_entropy(o, labels, reduction="none")).interfaces
    for i in (0, 4):
        alone = stack.backward(x[i : i + 1], lambda o, i=i: cross_entropy(o, labels[i : i + 1], reduction="none"))
        for one, all_of_them in zip(alone.interfaces, whole, strict=True):
            all_close([*one], [tensor[i : i + 1] for tensor in all_of_them], **CLOSELY)


# What reaches what


class Watched(GradientPredictor):
    """A predictor that notes what its error reaches, and is given nothing that has a graph."""

    def error(self, h, labels, gradients, losses):
        found = super().error(h, labels, gradients, losses)
        self.met = reached(found)
        assert not any(one.requires_grad for one in (h, gradients, losses))
        return found


@given(places=CUTS)
@settings(max_examples=16, deadline=None)
def test_nothing_leaks_across_a_cut(places):
    stack = example(places, kind=Watched)
    x, losses_of, labels = data()
    outputs = {}
    for i, layer in enumerate(stack.layers):
        layer.register_forward_hook(lambda module, inputs, output, i=i: outputs.update({i: output}))
    met = set()

    def watching(o):
        met.update(reached(o))
        return losses_of(o)

    stack.backward(x, watching, labels)
    edges = [0, *sorted(places), 4]
    for start, stop in itertools.pairwise(edges):
        piece = {one for layer in stack.layers[start:stop] for one in layer.parameters()}
        found = reached(outputs[stop - 1])
        assert found & set(stack.parameters()) == piece
        assert len(found - piece) == (start > 0)  # the activation that came in, as a leaf
    assert met == found
    for predictor in stack.predictors:
        assert predictor.met == set(predictor.parameters())
    assert x.grad is None


@pytest.mark.parametrize("kind", [GradientPredictor, LossPredictor])
def test_the_error_of_a_predictor_reaches_its_parameters_alone(kind):
    predictor, h = talkative(kind(4)), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    error = predictor.error(h * 2, None, (h * 3), (h * 4).sum(1))
    assert reached(error) == set(predictor.parameters())


@given(place=st.integers(1, 3))
@settings(max_examples=3, deadline=None)
def test_what_lies_above_a_cut_does_not_matter_to_what_lies_below(place):
    one, other = example([place]), example([place])
    for parameter in other.layers[place:].parameters():
        parameter.data += 1
    for stack in (one, other):
        stack.backward(*data())
    all_close(gradients(one.layers[:place]), gradients(other.layers[:place]), rtol=0, atol=0)
    assert (one.layers[place][0] if place < 3 else one.layers[3]).weight.grad.abs().sum() > 0


def test_called_it_is_the_layers_without_cuts():
    stack = example()
    x, losses_of, _ = data()
    torch.testing.assert_close(stack(x), stack.layers(x), rtol=0, atol=0)
    assert reached(stack(x)) == set(stack.layers.parameters())
    step = DecoupledStack(stack.layers, {}).backward(x, losses_of)
    assert step.interfaces == ()
    all_close(gradients(stack.layers), backprop(stack.layers, x, losses_of, ())[0], **CLOSELY)


def test_an_input_with_a_graph_gets_what_the_bottom_piece_sends():
    stack, encoder = example([2]), nn.Linear(5, 5).double()
    x, losses_of, labels = data()
    stack.backward(encoder(x), losses_of, labels)
    h = encoder(x).detach().requires_grad_()
    out = stack.layers[:2](h)
    out.backward(stack.predictors[0](out.detach(), labels).detach() / BATCH)
    all_close([encoder.weight.grad], [h.grad.T @ x], **CLOSELY)


def test_reached_by_hand():
    a, b = (torch.ones(2, requires_grad=True) for _ in "ab")
    c = torch.ones(2)
    assert reached(a) == {a}
    assert reached(c) == set()
    assert reached((a * c).sum() + b.detach().sum()) == {a}
    assert reached((a * b).sum()) == {a, b}
    assert reached(torch.cat((a, b)).split(2)[0]) == {a, b}  # it can, even if it does not
    with torch.no_grad():
        assert reached(a * b) == set()
    y = a
    for _ in range(60):  # 2 ** 60 paths
        y = y + y
    assert reached(y) == {a}
    with pytest.raises(TypeError, match=re.escape("tensor must be a tensor (got list)")):
        reached([a])


# Predictors


def test_conditioned_predictors_see_the_label_and_others_do_not():
    h = torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    predictor = GradientPredictor(4, CLASSES)
    assert [tuple(p.shape) for p in predictor.parameters()] == [(4, 7), (4,)]
    assert (predictor(h, labels) == 0).all()
    with torch.no_grad():
        predictor.network[-1].weight[:, 4:] = torch.arange(3.0)
    torch.testing.assert_close(predictor(h, labels), labels[:, None].expand(6, 4).float())
    layers = [type(one) for one in GradientPredictor(4, 0, (5, 6)).network]
    assert layers == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert (LossPredictor(4)(h) == 0).all()


def test_a_linear_conditioned_predictor_is_exact_where_theory_says_so():
    """A squared error on a linear layer: the gradient is linear in h and the one-hot target."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES, bias=False)).double()
    x, _, labels = data()
    predictor, W = GradientPredictor(4, CLASSES).double(), layers[2].weight.detach()
    predictor.network[-1].weight.data = torch.cat((W.T @ W, -W.T), 1)
    half_squares = lambda o: (o - one_hot(labels, CLASSES)).square().sum(1) / 2  # noqa: E731
    met = DecoupledStack(layers, {2: predictor}).backward(x, half_squares, labels).interfaces[0]
    all_close([met.predicted], [met.target], **CLOSELY)


@pytest.mark.parametrize("classes", [0, CLASSES])
def test_a_loss_predictor_says_the_slope_of_the_loss_it_predicts(classes):
    predictor = talkative(LossPredictor(4, classes, (6, 5)))
    h, labels = torch.randn(BATCH, 4, dtype=torch.float64), data()[2] if classes else None
    with torch.no_grad():
        slopes = predictor(h, labels)
    for j in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[j] = 1e-6
        numeric = (predictor.loss(h + step, labels) - predictor.loss(h - step, labels)) / 2e-6
        all_close([slopes[:, j]], [numeric], rtol=1e-6, atol=1e-8)
    assert slopes.abs().max() > 0.01
    assert all(one.grad is None for one in predictor.parameters())


def test_predictors_of_losses_bootstrap_from_the_nearest_one_above():
    class Careful(LossPredictor):
        def error(self, h, labels, gradients, losses):
            assert not any(one.requires_grad for one in (h, gradients, losses))
            return super().error(h, labels, gradients, losses)

    stack = example(kind=Careful)
    stack.predictors[1] = talkative(GradientPredictor(WIDTHS[2], CLASSES))  # in between: it predicts no loss
    x, losses_of, labels = data()
    h = [one.detach() for one in itertools.accumulate(stack.layers, lambda h, f: f(h), initial=x)]
    bottom, _, top = stack.predictors
    stack.backward(x, losses_of, labels)
    for predictor, at, target in [(bottom, 1, top.loss(h[3], labels)), (top, 3, losses_of(h[4]))]:
        error = (predictor.loss(h[at], labels) - target.detach()).square().mean()
        right = torch.autograd.grad(error, list(predictor.parameters()))
        all_close(gradients(predictor), right, **CLOSELY)


# Unusual pieces


def test_activations_of_more_dimensions_are_flattened_for_the_predictor():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 3)).double()
    x, losses_of, _ = data()
    x = x[:, None]
    whole, deltas = backprop(layers, x, losses_of, (1, 3))
    assert deltas[1].shape == (BATCH, 2, 4)
    told = {place: Told(delta.flatten(1)) for place, delta in deltas.items()}
    step = DecoupledStack(layers, told).backward(x, losses_of)
    all_close(gradients(layers), whole, **CLOSELY)
    assert [one.target.shape for one in step.interfaces] == [(BATCH, 8), (BATCH, 9)]
    stack = DecoupledStack(layers, {1: GradientPredictor(8).double()})
    assert stack.backward(x, losses_of).interfaces[0].h.shape == (BATCH, 8)


def test_a_sequential_within_counts_as_one_layer():
    stack = example([3])
    assert [len(piece) for piece in stack.pieces()] == [3, 1]
    assert stack.pieces()[0][2] is stack.layers[2]
    inner = DecoupledStack([nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 3)], {1: GradientPredictor(4)})
    inner.backward(*data(torch.float32)[:2])
    with pytest.raises(ValueError, match="below 2, the number of layers"):
        DecoupledStack(inner.layers, {2: GradientPredictor(4)})


def test_places_may_be_given_in_any_order():
    stack = example([3, 1])
    assert stack.places == [1, 3]
    assert [predictor.features for predictor in stack.predictors] == [WIDTHS[1], WIDTHS[3]]
    assert len(stack.backward(*data()).interfaces) == 2


def test_pieces_without_parameters_and_layers_that_pass_nothing_down():
    x, losses_of, _ = data()
    layers = [nn.Tanh(), nn.Linear(5, 4), nn.Identity(), nn.Linear(4, 3)]
    stack = DecoupledStack(layers, {1: GradientPredictor(5), 2: GradientPredictor(4), 3: GradientPredictor(4)}).double()
    stack.backward(x, losses_of)
    assert stack.layers[1].weight.grad is not None

    class Deaf(nn.Linear):
        def forward(self, h):
            return super().forward(h.detach())

    stack = DecoupledStack([nn.Linear(5, 4), Deaf(4, 3)], {1: GradientPredictor(4)}).double()
    assert (stack.backward(x, losses_of).interfaces[0].target == 0).all()


def test_frozen_predictors_still_predict():
    stack, x = example().requires_grad_(True), data()
    stack.predictors.requires_grad_(False)
    stack.backward(*x)
    assert all(one is None for one in gradients(stack.predictors))
    assert all(one is not None for one in gradients(stack.layers))


# Bad input

SIZES = [
    (lambda: GradientPredictor(0), ValueError, "features must be a whole number of at least 1 (got 0)"),
    (lambda: GradientPredictor(4, -1), ValueError, "classes must be a whole number, 0 for"),
    (lambda: GradientPredictor(4, True), ValueError, "classes must be a whole number, 0 for"),
    (lambda: GradientPredictor(4, hidden=(3, 0)), ValueError, "each of hidden must be a whole number"),
    (lambda: GradientPredictor(4, hidden=3), TypeError, "hidden must be a sequence of widths, such as (64,) (got 3)"),
    (lambda: LossPredictor(4, hidden=()), ValueError, "hidden must name at least one layer"),
]


@pytest.mark.parametrize(("make", "error", "says"), SIZES)
def test_predictors_of_impossible_sizes(make, error, says):
    with pytest.raises(error, match=re.escape(says)):
        make()


@pytest.mark.parametrize("place", [0, -1, 4, 5, 1.0, True, "1", None])
def test_a_place_that_does_not_exist(place):
    with pytest.raises(
        ValueError,
        match=re.escape(f"at least 1 and below 4, the number of layers: place k lies below layers[k] (got {place!r})"),
    ):
        DecoupledStack(layers_of(), {place: GradientPredictor(7)})


MADE = [
    (lambda: DecoupledStack(nn.Linear(2, 2), {}), TypeError, "layers must be modules in a row"),
    (lambda: DecoupledStack([nn.Linear(2, 2)] * 2, [GradientPredictor(2)]), TypeError, "a mapping from places to"),
    (lambda: DecoupledStack([], {}), ValueError, "layers must hold at least one module (got none)"),
    (lambda: DecoupledStack([nn.Tanh(), torch.tanh], {}), TypeError, "layers and predictors must be modules"),
    (lambda: DecoupledStack([nn.Tanh()] * 2, {1: torch.tanh}), TypeError, "layers and predictors must be modules"),
    (lambda: DecoupledStack([nn.Tanh()] * 2, {1: nn.Linear(2, 2)}), TypeError, "at place 1: Linear is no predictor"),
]


@pytest.mark.parametrize(("make", "error", "says"), MADE)
def test_what_is_no_stack(make, error, says):
    with pytest.raises(error, match=re.escape(says)):
        make()


class Narrowing(nn.Module):
    """An activation whose width changes between calls."""

    keep = 6

    def forward(self, h):
        return h[:, : self.keep]


class Wide(GradientPredictor):
    def forward(self, h, labels=None):
        return super().forward(h, labels)[:1]


def whole_stack(place=2, predictor=None, classes=0, after=None):
    layers = [nn.Linear(5, 7), after or Narrowing(), nn.Linear(6, 3)]
    return DecoupledStack(layers, {1: GradientPredictor(7, classes), place: predictor or GradientPredictor(6, classes)})


def narrowed():
    stack = whole_stack()
    stack.backward(*data(torch.float32)[:2])
    stack.zero_grad()
    stack.layers[1].keep = 5
    return stack


X, LOSSES_OF, LABELS = data(torch.float32)
NOT_A_TENSOR = nn.RNN(7, 6, batch_first=True)
CALLS = [
    (
        narrowed,
        (X, LOSSES_OF),
        ValueError,
        "at place 2: h must have shape (batch, 6), as this predictor was made (got (10, 5))",
    ),
    (
        lambda: whole_stack(predictor=GradientPredictor(5)),
        (X, LOSSES_OF),
        ValueError,
        "at place 2: h must have shape (batch, 5)",
    ),
    (
        lambda: whole_stack(predictor=Wide(6)),
        (X, LOSSES_OF),
        ValueError,
        "at place 2: the predictor must return the shape of the activation, (10, 6) (got (1, 6))",
    ),
    (
        lambda: whole_stack(predictor=GradientPredictor(6).double()),
        (X, LOSSES_OF),
        TypeError,
        "at place 2: h must be torch.float64 on cpu, as this predictor is (got torch.float32 on cpu)",
    ),
    (
        lambda: whole_stack(predictor=GradientPredictor(6).to("meta")),
        (X, LOSSES_OF),
        TypeError,
        "at place 2: h must be torch.float32 on meta",
    ),
    (
        whole_stack,
        (X, LOSSES_OF, LABELS),
        ValueError,
        "at place 1: labels must be None: this predictor was made without classes",
    ),
    (
        lambda: whole_stack(classes=3),
        (X, LOSSES_OF),
        ValueError,
        "at place 1: labels must be given: this predictor is conditioned on one of 3 classes",
    ),
    (
        lambda: whole_stack(classes=2),
        (X, LOSSES_OF, LABELS),
        ValueError,
        "at place 1: labels must lie between 0 and 1 (got 0 to 2)",
    ),
    (
        lambda: whole_stack(classes=3),
        (X, LOSSES_OF, LABELS - 1),
        ValueError,
        "labels must lie between 0 and 2 (got -1 to 1)",
    ),
    (lambda: whole_stack(classes=3), (X, LOSSES_OF, LABELS[:-1]), ValueError, "labels must be 10 whole numbers"),
    (lambda: whole_stack(classes=3), (X, LOSSES_OF, LABELS.float()), ValueError, "(got torch.float32 of shape (10,))"),
    (
        lambda: whole_stack(after=NOT_A_TENSOR),
        (X, LOSSES_OF),
        TypeError,
        "at place 2: the activation must be a tensor of real numbers (got tuple)",
    ),
    (
        lambda: whole_stack(after=nn.Flatten(0)),
        (X, LOSSES_OF),
        ValueError,
        "at place 2: the activation must have a row for each of the 10 examples (got (70,))",
    ),
    (
        lambda: whole_stack(after=nn.Unflatten(0, (5, 2))),
        (X, LOSSES_OF),
        ValueError,
        "a row for each of the 10 examples (got (5, 2, 7))",
    ),
    (whole_stack, (X[:0], LOSSES_OF), ValueError, "x must be a tensor of at least one example (got shape (0, 5))"),
    (whole_stack, (X.tolist(), LOSSES_OF), ValueError, "x must be a tensor of at least one example (got list)"),
    (
        whole_stack,
        (X, lambda o: LOSSES_OF(o).mean()),
        ValueError,
        "losses_of must return one loss for each example, shape (10,) (got ())",
    ),
    (whole_stack, (X, lambda o: o), ValueError, "shape (10,) (got (10, 3))"),
    (whole_stack, (X, lambda o: 1.0), ValueError, "shape (10,) (got float)"),
    (whole_stack, (X, lambda o: LOSSES_OF(o.detach())), ValueError, "losses_of must return losses with a graph"),
]


@pytest.mark.parametrize(("make", "given", "error", "says"), CALLS)
def test_bad_input_is_named_and_leaves_no_gradient_touched(make, given, error, says):
    stack = make()
    with pytest.raises(error, match=re.escape(says)):
        stack.backward(*given)
    assert all(one is None for one in gradients(stack))


def test_without_autograd_nothing_happens():
    stack = whole_stack()
    with torch.no_grad(), pytest.raises(ValueError, match="losses_of must return losses with a graph"):
        stack.backward(X, LOSSES_OF)


def test_a_layer_above_a_cut_that_works_in_place_is_refused():
    stack = DecoupledStack([nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)], {1: GradientPredictor(6)})
    with pytest.raises(RuntimeError, match="in-place"):
        stack.backward(X, LOSSES_OF)
    assert all(one is None for one in gradients(stack))


@pytest.mark.parametrize("kind", [GradientPredictor, LossPredictor])
def test_targets_of_another_shape_are_not_broadcast(kind):
    h, losses = torch.ones(3, 4), torch.ones(3)
    with pytest.raises(ValueError, match=r"(gradients|losses) must have shape \(3.*\) \(got \(1.*\)\)"):
        kind(4).error(h, None, h[:1], losses[:1])
