"""Synthetic gradients: a stack or a recurrent network is cut in pieces, and each learns from a predicted gradient at its end."""

from shared.synthetic_gradients.accumulate import Accumulated, LambdaTargets, accumulate_lambda, lambda_targets
from shared.synthetic_gradients.graph import reached
from shared.synthetic_gradients.pieces import Run, train_in_turn
from shared.synthetic_gradients.predictors import GradientPredictor, LossPredictor
from shared.synthetic_gradients.processes import Workers
from shared.synthetic_gradients.schedule import Event, period, timeline, typical_seconds
from shared.synthetic_gradients.stack import DecoupledStack, Interface, Step
from shared.synthetic_gradients.windows import Window, window_backward

__all__ = [
    "Accumulated",
    "DecoupledStack",
    "Event",
    "GradientPredictor",
    "Interface",
    "LambdaTargets",
    "LossPredictor",
    "Run",
    "Step",
    "Window",
    "Workers",
    "accumulate_lambda",
    "lambda_targets",
    "period",
    "reached",
    "timeline",
    "train_in_turn",
    "typical_seconds",
    "window_backward",
]
