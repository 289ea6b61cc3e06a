"""Fixtures that several folders use."""

import pytest
import torch


@pytest.fixture
def seeded():
    """Starts torch's random numbers anew, for every test of a file that uses it."""
    torch.manual_seed(0)
