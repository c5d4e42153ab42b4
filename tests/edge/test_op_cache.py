"""Packs are kept as long as weights live and stay as they are, and no longer."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fqx.edge.kernels import BINDERS
from fqx.edge.op_cache import OpCache
from fqx.edge.op_text import OpCall, write_call
from fqx.ir.names import OpName

LINEAR = OpName("onednn.linear")
ATTRS = {
    "activation": "none",
    "activation_args": (),
    "output": "float32",
    "qmax": 0,
    "qmin": 0,
    "scale": 1.0,
    "x_scale": 0.125,
    "x_zero_point": 3,
    "zero_point": 0,
}


def operands() -> list[Tensor]:
    x = torch.randint(0, 255, (4, 16), dtype=torch.uint8)
    weight = torch.randint(-127, 127, (8, 16), dtype=torch.int8)
    return [x, weight, torch.rand(8), torch.rand(8)]


def as_they_are(_: OpCall, tensors: Sequence[Any]) -> Sequence[Any]:
    return tensors


def cached(cache: OpCache, given: list[Tensor]) -> Tensor:
    tensors, text = write_call(given, ATTRS, lambda x: isinstance(x, Tensor), lambda _: None)
    made: Tensor = cache.run(LINEAR, tensors, text, as_they_are)
    return made


def wanted(given: list[Tensor]) -> Tensor:
    made: Tensor = BINDERS[LINEAR](ATTRS)(*given)
    return made


def test_a_weight_is_packed_once_and_found_by_its_storage() -> None:
    cache, given = OpCache(), operands()
    for _ in range(3):
        assert torch.equal(cached(cache, given), wanted(given))
    # other tensors over the same memory
    views = [given[0], *(tensor.detach() for tensor in given[1:])]
    assert torch.equal(cached(cache, views), wanted(given))
    assert len(cache) == 1


def test_a_weight_that_is_written_to_is_packed_again() -> None:
    cache, given = OpCache(), operands()
    for number in (1, 2, 3):
        before = cached(cache, given)
        given[number].mul_(-1)
        assert torch.equal(cached(cache, given), wanted(given))
        assert not torch.equal(cached(cache, given), before)
    assert len(cache) == 1


def test_the_cache_keeps_no_weight_alive() -> None:
    cache, given = OpCache(), operands()
    kept = operands()
    cached(cache, given)
    source = torch.multiprocessing.reductions.StorageWeakRef(  # type: ignore[no-untyped-call]
        given[1].untyped_storage()
    )
    del given
    gc.collect()
    assert source.expired()  # type: ignore[no-untyped-call]
    cached(cache, kept)
    assert len(cache) == 1


def test_threads_share_packs() -> None:
    cache, many = OpCache(), [operands() for _ in range(4)]
    answers = [wanted(given) for given in many]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: (n % 4, cached(cache, many[n % 4])), range(64)))
    assert all(torch.equal(made, answers[which]) for which, made in found)
    assert len(cache) == 4
