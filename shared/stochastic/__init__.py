"""Neurons that decide, and what gradients are put in the place of the one a decision does not have.

A stochastic neuron draws its value from a distribution that depends on its logits a: a bit, `Binary`, with P(1) = σ(a), or
one of k categories, `OneHot`, with probabilities softmax(a). `Estimator` is the interface of all that can be done about the
gradient of the expected loss, ∂E[f(b)]/∂a; each of its kinds works with both neurons unless it says otherwise. `Ternary` is
a layer of neurons with the values −1, 0 and 1, which passes the gradient straight through.
"""

from shared.stochastic.estimators import (
    Arm,
    Concrete,
    DisArm,
    Enumeration,
    Estimator,
    LeaveOneOut,
    Rebar,
    Reinforce,
    RunningBaseline,
    StraightThrough,
)
from shared.stochastic.neurons import Binary, OneHot, straight_through
from shared.stochastic.schedules import Geometric, Linear
from shared.stochastic.ternary import Ternary, soft_staircase, ternary_activation, to_integers

__all__ = [
    "Arm",
    "Binary",
    "Concrete",
    "DisArm",
    "Enumeration",
    "Estimator",
    "Geometric",
    "LeaveOneOut",
    "Linear",
    "OneHot",
    "Rebar",
    "Reinforce",
    "RunningBaseline",
    "StraightThrough",
    "Ternary",
    "soft_staircase",
    "straight_through",
    "ternary_activation",
    "to_integers",
]
