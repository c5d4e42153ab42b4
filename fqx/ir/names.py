"""Typed names: a name of one kind is never taken for a name of another."""

from __future__ import annotations

from enum import Enum
from typing import NewType

NodeId = NewType("NodeId", str)
"""Stable, readable identity of a node, see `docs/concepts.md`: `layer1.0.conv1`, `layer1.0:add`."""

Path = NewType("Path", str)
"""A state_dict key, or the dotted path of a module: `layer1.0.conv1.weight`."""

OpName = NewType("OpName", str)
"""An operator of the catalogue (`conv2d`), a foreign call (`aten.cumsum.default`) or a kernel."""

RuleName = NewType("RuleName", str)
"""Who made an edit: `fuse.conv_bn`."""

BlockName = NewType("BlockName", str)
"""A sub-program of a graph."""

Digest = NewType("Digest", str)
"""SHA-256 in hexadecimal."""


class Stage(Enum):
    """How far a graph has come; each stage has a well-formedness spec of its own."""

    FLOAT = "float"
    FUSED = "fused"
    OBSERVED = "observed"
    CALIBRATED = "calibrated"
    QUANTIZED = "quantized"
    LOWERED = "lowered"
