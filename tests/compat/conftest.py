"""What tests beside torch.ao share: its engine chosen and put back, its warnings unheard."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture
def on_x86() -> Iterator[None]:
    """torch's engine is x86 until the test is over."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "x86"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.backends.quantized.engine = before


@pytest.fixture
def seeded() -> Iterator[None]:
    """Draws are the same in every run, and nothing is differentiated."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def use_engine() -> Callable[[str], None]:
    """Chooses torch's engine for the rest of the test; `on_x86` puts it back."""

    def choose(name: str) -> None:
        torch.backends.quantized.engine = name

    return choose
