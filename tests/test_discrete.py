"""Codes, the autoencoder whose embedding they are, and statistics, against hand-written gradients and closed forms."""

import copy
import math
import re

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from torch import nn
from torch.nn.functional import one_hot

from shared.discrete import (
    DiscreteAutoencoder,
    entropy,
    mutual_information,
    pairwise_information,
    perplexity,
    shares,
    statistics,
    to_codes,
    to_symbols,
    visible,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(size, shape, generator=seeded(seed))


# Codes and symbols


@settings(max_examples=100, deadline=None)
@given(
    batch=st.lists(st.integers(0, 3), max_size=2),
    neurons=st.integers(1, 7),
    size=st.integers(2, 9),
    seed=st.integers(0, 1000),
)
def test_symbols_in_any_order_give_the_codes_back(batch, neurons, size, seed):
    codes = drawn(*batch, neurons, size=size, seed=seed)
    symbols = to_symbols(codes, size)
    assert symbols.dtype == torch.int64
    order = torch.rand(symbols.shape, generator=seeded(seed)).argsort(-1)  # another one for each code
    assert to_codes(symbols.gather(-1, order), size).equal(codes)
    assert to_codes(to_symbols(codes.to(torch.uint8), size).short(), size).equal(codes)
    seen = visible(codes, size)
    assert seen.equal(one_hot(codes, size)[..., 1:].reshape(*batch, neurons * (size - 1)).float())


def test_symbols_are_those_of_the_definition():
    codes = torch.tensor([[3, 0, 7], [0, 0, 1]])
    assert to_symbols(codes, 8).tolist() == [[3, 8, 23], [0, 8, 17]]
    assert to_codes(torch.tensor([23, 3, 8]), 8).tolist() == [3, 0, 7]
    assert visible(torch.tensor([2, 0, 1]), 3).tolist() == [0, 1, 0, 0, 1, 0]
    assert visible(codes, 8, torch.float64).dtype == torch.float64
    assert visible(torch.zeros(2, 80, dtype=torch.long), 8).shape == (2, 560)
    assert not visible(torch.zeros(2, 80, dtype=torch.long), 8).any()


ONE = torch.tensor([[0, 1, 2]])
BAD_CODES = {
    "a slot above": (lambda: to_symbols(ONE, 2), "codes must be slots from 0 to 1 (got 0 to 2)"),
    "a slot below": (lambda: visible(ONE - 1, 3), "codes must be slots from 0 to 2 (got -1 to 1)"),
    "real codes": (lambda: to_symbols(ONE.float(), 3), "codes must be a tensor of whole numbers (got torch.float32)"),
    "truth values": (lambda: visible(ONE > 0, 3), "codes must be a tensor of whole numbers (got torch.bool)"),
    "an array": (lambda: to_symbols(ONE.numpy(), 3), "codes must be a tensor of whole numbers (got ndarray)"),
    "a number": (lambda: to_symbols(torch.tensor(1), 3), "codes must have the shape (*batch, neurons)"),
    "no neuron": (lambda: to_symbols(ONE[:, :0], 3), "with a neuron (got (1, 0))"),
    "one slot": (lambda: to_symbols(ONE * 0, 1), "size must be at least 2, the silent slot and one more (got 1)"),
    "part of a slot": (lambda: to_codes(ONE, 2.5), "size must be a whole number of at least 1 (got 2.5)"),
    "a symbol above": (
        lambda: to_codes(torch.tensor([3, 8]), 4),
        "symbols must be from 0 to 7, as 2 neurons of 4 slots",
    ),
    "a symbol below": (lambda: to_codes(torch.tensor([3, -1]), 4), "have them (got -1)"),
    "real symbols": (lambda: to_codes(ONE / 2, 4), "symbols must be a tensor of whole numbers (got torch.float32)"),
    "a neuron twice": (
        lambda: to_codes(torch.tensor([8, 1, 9]), 4),
        "symbols must have each of the 3 neurons once (got neuron 2 2 times and neuron 1 not at all)",
    ),
    "a neuron twice in the second": (
        lambda: to_codes(torch.tensor([[[0, 4], [4, 0]], [[0, 4], [1, 2]]]), 4),
        "(got neuron 0 2 times and neuron 1 not at all, at [1, 1])",
    ),
}


@pytest.mark.parametrize(("call", "text"), BAD_CODES.values(), ids=BAD_CODES)
def test_what_are_no_codes_or_symbols_is_named(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


# The autoencoder


def autoencoder(neurons: int = 5, size: int = 4, seed: int = 0, dtype=torch.float64) -> DiscreteAutoencoder:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, neurons * size, dtype=dtype))
    decoder = nn.Sequential(nn.Linear(neurons * (size - 1), 12, dtype=dtype), nn.Tanh())
    return DiscreteAutoencoder(encoder, decoder, neurons, size, generator=seeded())


X = torch.randn(7, 3, 4, dtype=torch.float64, generator=seeded(3))


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_the_gradient_is_that_of_the_probabilities(temperature):
    """By hand: of the loss with respect to visible values, through the Jacobian of the softmax, to the encoder's weights."""
    net = autoencoder()
    net.temperature = temperature
    target = torch.randn(7, 12, dtype=torch.float64, generator=seeded(1))
    loss = (net(X) - target).square().sum()
    loss.backward()

    with torch.no_grad():
        a = net.encoder(X).view(7, 5, 4)
        p = torch.exp(a / temperature) / torch.exp(a / temperature).sum(-1, keepdim=True)
        u = torch.rand(7, 5, 1, dtype=torch.float64, generator=seeded())
        slot = (p.cumsum(-1) <= u).sum(-1)
        values = torch.eye(4, dtype=torch.float64)[slot]
        linear = net.decoder[0]
        y = torch.tanh(values[..., 1:].reshape(7, 15) @ linear.weight.T + linear.bias)
        assert (y - target).square().sum().item() == pytest.approx(loss.item())
        to_visible = (2 * (y - target) * (1 - y**2)) @ linear.weight
        to_values = torch.zeros(7, 5, 4, dtype=torch.float64)
        to_values[..., 1:] = to_visible.view(7, 5, 3)
        jacobian = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
        to_logits = (jacobian @ to_values[..., None]).squeeze(-1) / temperature
        by_hand = to_logits.view(7, 20).T @ X.flatten(1)
    torch.testing.assert_close(net.encoder[1].weight.grad, by_hand)
    assert net.encoder[1].weight.grad[::4].abs().max() > 0  # the silent slot's logit matters, through the softmax


def test_what_the_silent_slot_holds_never_reaches_the_decoder():
    net, seen = autoencoder(), []
    net.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.layer.register_forward_hook(
        lambda _, inputs, values: torch.cat([values[..., :1] + math.pi, values[..., 1:]], -1)
    )
    plain = autoencoder()
    assert net(X).equal(plain(X))
    assert seen[0].shape == (7, 15)
    assert not (seen[0] == 1 + math.pi).any()
    silent = torch.zeros(2, 5, dtype=torch.long)
    assert plain.decode(silent).equal(plain.silence().expand(2, 12))
    blind = plain.decoder(torch.zeros(1, 15, dtype=torch.float64))
    assert plain.silence().equal(blind)


def test_silence_can_be_trained_to_be_blank():
    net = autoencoder()
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    for _ in range(50):
        optimizer.zero_grad()
        net.silence().square().sum().backward()
        optimizer.step()
    assert net.silence().abs().max() < 1e-6
    assert net.encoder[1].weight.grad is None


def test_evaluation_decides_and_training_draws():
    net = autoencoder().eval()
    codes = net.encode(X)
    assert codes.dtype == torch.int64
    assert codes.equal(net.logits(X).argmax(-1))
    assert codes.equal(net.encoder(X).view(7, 5, 4).argmax(-1))
    assert net(X).equal(net(X))
    torch.testing.assert_close(net(X), net.decode(codes))
    torch.testing.assert_close(net.decode(codes), net.decoder(visible(codes, 4, torch.float64)))
    net.train()
    assert not net(X).equal(net(X))
    assert net.encode(X).equal(codes)
    graphs = []
    net.encoder.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    net.encode(X)
    assert graphs == [False]
    assert net.logits(X).requires_grad
    assert net.decode(codes).requires_grad


def test_draws_have_the_probabilities_of_their_temperature():
    net = DiscreteAutoencoder(nn.Identity(), nn.Identity(), 1, 3, generator=seeded())
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(40_000, 3)
    for temperature in (1.0, 0.5, 3.0):
        net.temperature = temperature
        assert net.temperature == pytest.approx(temperature)
        assert net.layer.slope == pytest.approx(1 / temperature)
        found = net(logits).mean(0)
        torch.testing.assert_close(found, (logits[0] / temperature).softmax(-1)[1:], atol=0.01, rtol=0)
        assert net.logits(logits)[0, 0].equal(logits[0])
    assert "temperature=3" in repr(net)


def test_one_generator_gives_one_sequence_and_leaves_torchs_own_alone():
    first, second = autoencoder(), autoencoder()
    before = torch.get_rng_state()
    outputs = [first(X) for _ in range(3)]
    assert torch.get_rng_state().equal(before)
    assert all(a.equal(second(X)) for a in outputs)
    assert not outputs[0].equal(outputs[1])
    second.layer.generator = seeded(1)
    assert not second(X).equal(outputs[0])


def test_its_state_goes_to_another_one():
    net, other = autoencoder(), autoencoder(seed=1)
    assert not other.silence().equal(net.silence())
    other.load_state_dict(net.state_dict())
    assert set(net.state_dict()) == {
        f"{part}.{name}" for part in ("encoder.1", "decoder.0") for name in ("weight", "bias")
    }
    assert other.eval()(X).equal(net.eval()(X))
    assert copy.deepcopy(other.state_dict()).keys() == net.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_has_the_dtype_of_its_parts(dtype):
    net = autoencoder(dtype=dtype)
    x = X.to(dtype)
    assert {net(x).dtype, net.decode(net.encode(x)).dtype, net.silence().dtype, net.logits(x).dtype} == {dtype}
    assert net(x[:0]).shape == (0, 12)
    assert net.encode(x[:0]).shape == (0, 5)


PARTS = nn.Linear(3, 8), nn.Linear(6, 3)
BAD_NETS = {
    "no neurons": (lambda: DiscreteAutoencoder(*PARTS, 0, 4), "neurons must be a whole number of at least 1 (got 0)"),
    "one slot": (
        lambda: DiscreteAutoencoder(*PARTS, 2, 1),
        "size must be at least 2, the silent slot and one more (got 1)",
    ),
    "too few logits": (
        lambda: DiscreteAutoencoder(*PARTS, 3, 4)(torch.zeros(5, 3)),
        "encoder must return logits of shape (batch, neurons * size), (5, 12) for inputs of shape (5, 3) (got (5, 8))",
    ),
    "logits of images too large": (
        lambda: DiscreteAutoencoder(nn.Flatten(), nn.Identity(), 2, 8).encode(torch.zeros(5, 4, 5)),
        "(5, 16) for inputs of shape (5, 4, 5) (got (5, 20))",
    ),
    "a state beside the logits": (
        lambda: DiscreteAutoencoder(nn.RNN(3, 8), nn.Identity(), 2, 4)(torch.zeros(5, 3)),
        "(5, 8) for inputs of shape (5, 3) (got tuple)",
    ),
    "a slot above": (
        lambda: DiscreteAutoencoder(*PARTS, 2, 4).decode(torch.tensor([[0, 4]])),
        "codes must be slots from 0 to 3 (got 0 to 4)",
    ),
    "codes of other neurons": (
        lambda: DiscreteAutoencoder(*PARTS, 2, 4).decode(torch.tensor([[0, 1, 2]])),
        "codes must have the shape (*batch, 2) (got (1, 3))",
    ),
}


@pytest.mark.parametrize(("call", "text"), BAD_NETS.values(), ids=BAD_NETS)
def test_bad_parts_inputs_and_codes_are_named(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "1", None, True])
def test_a_temperature_that_is_none_is_named_and_not_taken(value):
    net = autoencoder()
    net.temperature = 2.0
    with pytest.raises(ValueError, match=r"temperature must be a number above 0 \(got "):
        net.temperature = value
    assert net.temperature == 2.0


# Statistics


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 60),
    neurons=st.integers(1, 5),
    size=st.integers(2, 6),
    seed=st.integers(0, 1000),
    chunk=st.integers(1, 70),
)
def test_statistics_are_those_of_scipy_and_sklearn(items, neurons, size, seed, chunk):
    codes = drawn(items, neurons, size=size, seed=seed)
    codes[:, -1] = (codes[:, 0] + codes[:, -1] // 2) % size  # the last tells something about the first
    labels = (codes.sum(-1) % 3 - 1) * 1000
    share = np.stack([np.bincount(column, minlength=size) for column in codes.numpy().T]) / items
    bits = scipy.stats.entropy(share, base=2, axis=1)
    np.testing.assert_allclose(shares(codes, size), share)
    np.testing.assert_allclose(entropy(codes, size), bits, atol=1e-12)
    np.testing.assert_allclose(perplexity(codes, size), 2**bits)
    columns = codes.T.tolist()
    told = [mutual_info_score(labels.tolist(), column) / math.log(2) for column in columns]
    np.testing.assert_allclose(mutual_information(codes, labels, size), told, atol=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "CHUNK", chunk)
        pairs = pairwise_information(codes, size)
    expected = [[mutual_info_score(one, other) / math.log(2) for one in columns] for other in columns]
    np.testing.assert_allclose(pairs, expected, atol=1e-12)
    np.testing.assert_allclose(pairs.diagonal(), bits, atol=1e-12)
    for found in (shares(codes, size), entropy(codes, size), mutual_information(codes, labels, size), pairs):
        assert found.dtype == torch.float64
        assert (found >= 0).all()


def test_closed_forms():
    every = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    codes = torch.cat([every, every[:, :1], torch.zeros(64, 1, dtype=torch.long)], -1)
    assert entropy(codes, 8).tolist() == pytest.approx([3, 3, 3, 0], abs=1e-14)
    assert perplexity(codes, 8).tolist() == pytest.approx([8, 8, 8, 1])
    expected = torch.tensor([[3, 0, 3, 0], [0, 3, 0, 0], [3, 0, 3, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(pairwise_information(codes, 8), expected, atol=1e-14, rtol=0)
    parity = codes[:, 0] % 2
    assert mutual_information(codes, parity, 8).tolist() == pytest.approx([1, 0, 1, 0], abs=1e-14)
    assert mutual_information(codes, parity * 0, 8).tolist() == pytest.approx([0] * 4, abs=1e-14)
    assert (
        mutual_information(codes, parity * 2**60 - 2**59, 8).tolist() == mutual_information(codes, parity, 8).tolist()
    )
    assert mutual_information(codes, 7 - codes[:, 1], 8).tolist() == pytest.approx([0, 3, 0, 0], abs=1e-14)
    assert shares(codes, 9)[:, 8].tolist() == [0] * 4


@pytest.mark.parametrize(("first", "second"), [(2, 6), (3, 3), (3, 8), (6, 3)])
def test_information_that_rounds_to_below_zero_is_zero(first, second):
    codes = torch.cartesian_prod(torch.arange(first), torch.arange(second))
    assert (pairwise_information(codes, 8) >= 0).all()
    assert (mutual_information(codes[:, :1], codes[:, 1], 8) >= 0).all()


def test_a_finite_sample_biases_as_the_docstring_says():
    items, size, classes = 500, 8, 10
    codes = drawn(items, 4000, size=size)
    labels = drawn(items, size=classes, seed=1)
    unit = 2 * items * math.log(2)
    assert 3 - entropy(codes, size).mean().item() == pytest.approx((size - 1) / unit, rel=0.05)
    told = mutual_information(codes, labels, size).mean().item()
    assert told == pytest.approx((size - 1) * (classes - 1) / unit, rel=0.05)
    pairs = pairwise_information(codes[:, :150], size)
    off = pairs[~torch.eye(150, dtype=torch.bool)].mean().item()
    assert off == pytest.approx((size - 1) ** 2 / unit, rel=0.05)


TWO = torch.tensor([[0, 1], [1, 1]])
BAD_COLLECTIONS = {
    "one code": (lambda: entropy(TWO[0], 2), "codes must have the shape (items, neurons), with an item (got (2,))"),
    "no items": (lambda: shares(TWO[:0], 2), "with an item (got (0, 2))"),
    "no items, pairs": (lambda: pairwise_information(TWO[:0], 2), "with an item (got (0, 2))"),
    "a slot above": (lambda: pairwise_information(TWO + 1, 2), "codes must be slots from 0 to 1 (got 1 to 2)"),
    "labels of other items": (
        lambda: mutual_information(TWO, TWO[0, :1], 2),
        "labels must be one whole number for each of the 2 items (got shape (1,), torch.int64)",
    ),
    "real labels": (lambda: mutual_information(TWO, torch.zeros(2), 2), "(got shape (2,), torch.float32)"),
}


@pytest.mark.parametrize(("call", "text"), BAD_COLLECTIONS.values(), ids=BAD_COLLECTIONS)
def test_what_is_no_collection_is_named(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
