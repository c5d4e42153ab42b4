"""A table gives what the function gives, in every size, layout and place in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fqx.edge.lookups import Lookup, lookup

TABLE = torch.randint(0, 256, (256,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LAST = torch.channels_last


def codes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


LARGE = codes(3, 16, 40, 20)
VIEWS: dict[str, Tensor] = {
    "empty": codes(0, 4),
    "scalar": codes(),
    "small": codes(3, 5),
    "odd": codes(200, 101)[:, :],
    "odd and large": codes(20001),
    "large": LARGE,
    "channels last": LARGE.contiguous(memory_format=LAST),
    "channels last 3d": codes(2, 8, 16, 10, 10).contiguous(memory_format=torch.channels_last_3d),
    "transposed": LARGE.transpose(1, 3),
    "every other": LARGE[:, ::2],
    "expanded": codes(1, 200).expand(300, 200),
    "at an odd place": codes(40001)[1:],
    "one channel": codes(4, 1, 100, 100).contiguous(memory_format=LAST),
}


@pytest.mark.parametrize("case", VIEWS)
def test_a_lookup_is_an_index(case: str) -> None:
    x = VIEWS[case]
    made, kept = Lookup(TABLE)(x), x.clone()
    assert torch.equal(made, TABLE[x.long()])
    assert torch.equal(x, kept)
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=LAST))
    assert not dense or made.stride() == x.stride()


def test_a_table_is_computed_once() -> None:
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(x.numel())
        return 255 - x

    run = lookup(function)
    assert torch.equal(run(LARGE), 255 - LARGE)
    assert torch.equal(run(LARGE), 255 - LARGE)
    assert calls == [256]
