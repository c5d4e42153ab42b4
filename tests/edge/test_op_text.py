"""The text of a call holds its attributes and the places of its tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fqx.edge.op_text import read_call, write_call


def test_a_call_is_read_as_it_was_written() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    attrs = {
        "dtype": torch.bfloat16,
        "scale": 0.1,
        "bound": -math.inf,
        "stride": (2, 1),
        "steps": (("relu", (), {"low": None}),),
        "name": "a",
    }
    given = (x, (y, None, 2.5), 3)
    tensors, text = write_call(
        given,
        attrs,
        lambda item: isinstance(item, Tensor),
        lambda item: (0.5, 3) if item is y else None,
    )
    call = read_call(text)
    assert [item is wanted for item, wanted in zip(tensors, (x, y), strict=True)] == [True, True]
    assert call.attrs == attrs
    assert call.seen == (None, (0.5, 3))
    assert call.arrange(tensors) == given
