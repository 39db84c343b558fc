"""Discrete embeddings: an input as a code of one-hot neurons, and what symbols allow: counting, comparing, searching.

A code has one slot for each of its neurons, 0 to size − 1. Slot 0 is silent: the decoder does not see it. The symbol of a
neuron's slot is size · neuron + slot, so that `neurons` neurons of `size` slots have a vocabulary of neurons · size. After
R2RT, "Deconstruction with discrete embeddings" (2017), with 80 neurons of 8 slots.
"""

from shared.discrete.autoencoder import DiscreteAutoencoder
from shared.discrete.codes import to_codes, to_symbols, visible
from shared.discrete.index import SymbolIndex
from shared.discrete.queries import All, Any, AtLeast
from shared.discrete.statistics import entropy, mutual_information, pairwise_information, perplexity, shares

__all__ = [
    "All",
    "Any",
    "AtLeast",
    "DiscreteAutoencoder",
    "SymbolIndex",
    "entropy",
    "mutual_information",
    "pairwise_information",
    "perplexity",
    "shares",
    "to_codes",
    "to_symbols",
    "visible",
]
