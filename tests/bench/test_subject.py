"""Calls of another batch size hold the same samples."""

from __future__ import annotations

import pytest
import torch

from fqx.audit.measure import Call
from fqx.bench.subject import Loaded, resized, sized
from fqx.testing.small import batches, small_net


def test_a_call_is_cut_or_repeated() -> None:
    call: Call = ((torch.arange(6.0).reshape(3, 2),), {"mask": torch.arange(3)})
    (cut,), named = sized(call, 2)
    assert torch.equal(torch.as_tensor(cut), torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert torch.equal(named["mask"], torch.tensor([0, 1]))  # type: ignore[arg-type]
    (longer,), _ = sized(call, 4)
    assert torch.equal(longer[3], longer[0])  # type: ignore[index]
    assert sized(call, None) is call
    with pytest.raises(ValueError, match="one batch axis"):
        sized(((torch.ones(2), torch.ones(3)), {}), 1)


def test_calls_are_cut_to_the_size_of_another() -> None:
    calls: list[Call] = [((torch.arange(start, start + 3),), {}) for start in (0, 3)]
    like: Call = ((torch.zeros(2),), {})
    assert [call[0][0].tolist() for call in resized(calls, like)] == [[0, 1], [2, 3], [4, 5]]  # type: ignore[attr-defined]
    few = resized(calls[:1], ((torch.zeros(4),), {}))
    assert [call[0][0].tolist() for call in few] == [[0, 1, 2, 0]]  # type: ignore[attr-defined]


def test_token_numbers_are_quantized_dynamically() -> None:
    images = ((batches()[0],), dict[str, object]())
    tokens = ((torch.ones(1, 4, dtype=torch.int64),), dict[str, object]())
    assert Loaded(small_net(), (), (), images).kind == "static"
    assert Loaded(small_net(), (), (), images).images
    assert Loaded(small_net(), (), (), tokens).kind == "dynamic"
