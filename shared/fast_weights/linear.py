"""Fast weights without a nonlinearity between reading and writing, computed chunk by chunk: linear attention, delta rule.

Keys, queries and values are given, so no step waits for another's output. In a chunk of C steps that begins with A_0, with
γ_i the product of its decays α_1 … α_i,

    A_i = γ_i A_0 + Σ_{j≤i} (γ_i/γ_j) u_j k_jᵀ.

What is written, u, is v for the sum rule. For the delta rule u_i = β_i (v_i − α_i A_{i−1} k_i), in which A_{i−1} stands for
the same sum: C equations, (I + M) u = β (v − γ A_0 k), with M_jl = β_j (γ_j/γ_l) k_j·k_l for l < j, as in Yang, Wang, Zhang,
Shen and Kim (2024). So outputs and last state of a chunk are affine in A_0. Their coefficients are found for all chunks at
once; what remains to be done in order is one product a chunk.
"""

import numbers

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

Vectors = Float[Tensor, "time batch d"]
PerStep = float | Float[Tensor, "time batch"]
FastWeights = Float[Tensor, "batch d_v d_k"]


def linear_attention(
    q: Vectors, k: Vectors, v: Vectors, decay: PerStep = 1.0, state: FastWeights | None = None, *, chunk: int = 32
) -> tuple[Vectors, FastWeights]:
    """The sum rule: A_t = α_t A_{t−1} + v_t k_tᵀ, read by o_t = A_t q_t. Returns o (time, batch, d_v) and the last A.

    q, k: queries and keys (time, batch, d_k); v: values (time, batch, d_v). Heads go into the batch.
    decay: α, above 0 and at most 1, a number or a tensor (time, batch).
    state: A_0 (batch, d_v, d_k), such as the last A of the part before; zeros by default.
    chunk: the steps that are computed at once. It changes the time and the rounding, not the result.
    Work is linear in time, batch·time·(d_k + d_v)·(chunk + d), and so is memory: a graph keeps products of keys within
    chunks and one A a chunk. Ratios of decays are sums of logarithms: none overflows. Differentiable any number of times.

    Raises TypeError for what is no tensor of real floating-point numbers or not of q's dtype and device, and ValueError
    for other shapes, no steps, a decay outside (0, 1], or a chunk that is not a whole number of at least 1.
    """
    return _run(q, k, v, None, decay, state, chunk, delta=False)


def delta_rule(
    q: Vectors,
    k: Vectors,
    v: Vectors,
    strength: PerStep,
    decay: PerStep = 1.0,
    state: FastWeights | None = None,
    *,
    chunk: int = 32,
) -> tuple[Vectors, FastWeights]:
    """The delta rule: A_t = α_t A_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ, read by o_t = A_t q_t; else like `linear_attention`.

    strength: β, a finite number or tensor (time, batch). With a key of length 1 and β = 1, a write replaces what the key
        recalled by v_t; β = 0 writes nothing. From 0 to 2/|k|², erasing never lengthens a state.
    With α = 1 after Schlag, Irie and Schmidhuber (2021); with decay it is the gated delta rule of Yang, Kautz and
    Hatamizadeh (2024).

    Raises the errors of `linear_attention`, and ValueError for a strength that is not finite.
    """
    return _run(q, k, v, strength, decay, state, chunk, delta=True)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    strength: PerStep | None,
    decay: PerStep,
    state: Tensor | None,
    chunk: int,
    delta: bool,
) -> tuple[Tensor, Tensor]:
    """The delta rule, or the sum rule, which has no strength. Inside, a state is S = Aᵀ (batch, d_k, d_v)."""
    _check(q, k, v, state, chunk)
    log_decay = _per_step("decay", decay, q).log()
    steps, chunk = len(q), min(chunk, len(q))

    def chunked(x: Tensor) -> Tensor:
        """(time, batch, d) -> (chunks, batch, chunk, d), the last chunk filled up by zeros, which neither write nor decay."""
        if steps % chunk:
            x = pad(x, (0, 0, 0, 0, 0, -steps % chunk))
        return x.unflatten(0, (-1, chunk)).transpose(1, 2).contiguous()

    beta = chunked(_per_step("strength", strength, q)) if delta else None
    q, k, v, log_decay = (chunked(x) for x in (q, k, v, log_decay))
    gamma = log_decay.cumsum(-2).exp()
    # γ_i/γ_j for j ≤ i, from sums over the steps between, since a difference of two long sums would lose digits
    ratios = log_decay.expand(-1, -1, -1, chunk).tril(-1).cumsum(-2).exp().tril()
    attention = q @ k.mT * ratios
    keys_at_end = (k * ratios[..., -1, :, None]).mT
    last_gamma = gamma[..., -1:, :]

    if delta:
        both = torch.linalg.solve_triangular(  # which reads M below its diagonal only
            beta * (k @ k.mT) * ratios, beta * torch.cat([v, gamma * k], -1), upper=False, unitriangular=True
        )
        u, w = both.split([v.shape[-1], k.shape[-1]], -1)  # what is written is u − w S_0
        read = gamma * q - attention @ w
        keep = last_gamma * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - keys_at_end @ w
    else:
        read, keep, u = gamma * q, last_gamma, v

    advance = torch.matmul if delta else torch.mul
    S = q.new_zeros(q.shape[1], q.shape[-1], v.shape[-1]) if state is None else state.mT
    before = []
    for keep_chunk, write_chunk in zip(keep.unbind(0), (keys_at_end @ u).unbind(0), strict=True):
        before.append(S)
        S = advance(keep_chunk, S) + write_chunk
    outputs = attention @ u + read @ torch.stack(before)
    return outputs.transpose(1, 2).flatten(0, 1)[:steps], S.mT


def _per_step(name: str, value: PerStep, q: Tensor) -> Tensor:
    """The checked decay or strength, (time, batch, 1), or (time, 1, 1) if it is a number."""
    allowed = "above 0 and at most 1" if name == "decay" else "finite"
    if isinstance(value, Tensor):
        _check_kind(name, value, q)
        if value.shape != q.shape[:2]:
            raise ValueError(f"{name} must have shape {tuple(q.shape[:2])}, as q has (got {tuple(value.shape)})")
    elif not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number or a tensor (time, batch) (got {type(value).__name__})")
    values = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=q.dtype)
    wrong = ~((values > 0) & (values <= 1)) if name == "decay" else ~values.isfinite()
    if wrong.any():
        got = values[wrong][0].item() if isinstance(value, Tensor) else value
        raise ValueError(f"{name} must be {allowed} (got {got})")
    if isinstance(value, Tensor):
        return value[..., None]
    return q.new_full((len(q), 1, 1), float(value))


def _check(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, chunk: int) -> None:
    for name, value in (("q", q), ("k", k), ("v", v), ("state", state)):
        if name != "state" or value is not None:
            _check_kind(name, value, q)
    if q.ndim != 3 or len(q) == 0:
        raise ValueError(f"q must have shape (time, batch, d_k) with at least one time step (got {tuple(q.shape)})")
    if k.shape != q.shape:
        raise ValueError(f"k must have shape {tuple(q.shape)}, as q has (got {tuple(k.shape)})")
    if v.ndim != 3 or v.shape[:2] != q.shape[:2]:
        raise ValueError(f"v must have shape {(*q.shape[:2], 'd_v')} for this q (got {tuple(v.shape)})")
    wanted = (q.shape[1], v.shape[2], q.shape[2])
    if state is not None and state.shape != wanted:
        raise ValueError(f"state must have shape {wanted} for this q and v (got {tuple(state.shape)})")
    if not isinstance(chunk, numbers.Integral) or isinstance(chunk, bool) or chunk < 1:
        raise ValueError(f"chunk must be a whole number of at least 1 (got {chunk!r})")


def _check_kind(name: str, value: Tensor, q: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of real floating-point numbers (got {kind})")
    if (value.dtype, value.device) != (q.dtype, q.device):
        raise TypeError(f"{name} must be {q.dtype} on {q.device}, like q (got {value.dtype} on {value.device})")
