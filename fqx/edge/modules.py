"""Names for torch's module classes, for layers that mention them and make none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import fx, nn

Module: TypeAlias = nn.Module
"""Any torch module."""

GraphModule: TypeAlias = fx.GraphModule
"""What `materialize` gives."""

Modules: TypeAlias = Mapping[str, nn.Module]
"""Modules by their paths: the leaves of a graph."""
