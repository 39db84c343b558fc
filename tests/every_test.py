"""What every test runs under, also where only those of the package run and conftest.py is left out (`tools.versions`)."""

import signal

import pytest
import torch

# A command that a script starts in the background ignores Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_draws():
    """The same random numbers for a test in every run, whatever its process ran before: one in a thousand would fail by chance."""
    torch.manual_seed(0)
