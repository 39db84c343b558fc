"""Fast weights: a matrix A_t for each sequence, written at every step and read at once, which remembers the recent past."""

from shared.fast_weights.cell import FastWeightsCell
from shared.fast_weights.chunks import chunked_unroll
from shared.fast_weights.linear import delta_rule, linear_attention

__all__ = ["FastWeightsCell", "chunked_unroll", "delta_rule", "linear_attention"]
