"""Programs for torch.export: `.pt2` files that load without the model, and without a graph of fqx.

The integers of the weights are in the file as they are in the program; a kernel packs them when it
first sees them. A process that loads the file with `torch.export.load` imports
`fqx.edge.custom_ops` before, which defines the kernels; `load_pt2` does both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from fqx.edge import custom_ops
from fqx.edge.exported import exported
from fqx.edge.materialize import materialize
from fqx.edge.program import Program
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.trail import Halt, Trail
from fqx.kit.files import replacing
from fqx.kit.result import Result, attempt

FilePath: TypeAlias = str | os.PathLike[str]

NEEDED = custom_ops.__name__
"""The module that defines the operators; import it before `torch.export.load`."""


def export_pt2(
    graph: Graph,
    path: FilePath | None = None,
    example_inputs: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    leaves: Mapping[str, nn.Module] | None = None,
) -> Result[torch.export.ExportedProgram, Halt]:
    """The graph as a program of `torch.export`, written to `path` if one is given.

    The exported program gives the bits of the materialized module, for every batch size the
    signature admits; parameters keep their paths. It calls `torch.ops.fqx.*` on plain integers and
    unpacked weights: graphs of all targets are exported so, and no quantized dtype is left.
    `example_inputs` are needed only where the signature leaves sizes open. The file is written
    under a temporary name beside `path` and renamed. `leaves` as for `materialize`. Faults: those
    of `materialize`, INPUT_DOES_NOT_FIT, UNCAPTURABLE where torch.export cannot trace the program
    (a module kept whole, an output in a class torch does not know), UNWRITABLE_FILE.
    """
    halt = _halting(graph)
    return materialize(graph, leaves).bind(
        lambda module: (
            _exported(module, example_inputs, kwargs or {})
            .bind(lambda made: _written(made, path))
            .alt(halt)
        )
    )


def load_pt2(path: FilePath) -> Result[nn.Module, Halt]:
    """The module in a `.pt2` file of `export_pt2`. Fails with UNREADABLE_FILE."""
    return attempt(
        lambda: torch.export.load(os.fspath(path)).module(),
        lambda error: Halt(
            Fault(
                FaultKind.UNREADABLE_FILE,
                f"{os.fspath(path)} is no exported program: {_first_line(error)}",
                "give a .pt2 file written by fqx.export_pt2",
            )
        ),
        (Exception,),
    )


def _exported(
    module: nn.Module, given: tuple[object, ...] | None, kwargs: Mapping[str, Any]
) -> Result[torch.export.ExportedProgram, Fault]:
    assert isinstance(module, Program)
    return exported(module, given, kwargs)


def _written(
    made: torch.export.ExportedProgram, path: FilePath | None
) -> Result[torch.export.ExportedProgram, Fault]:
    def save() -> torch.export.ExportedProgram:
        if path is not None:
            with replacing(path) as place:
                torch.export.save(made, os.fspath(place))
        return made

    return attempt(save, lambda error: _unwritable(path, error), (OSError, RuntimeError))


def _unwritable(path: FilePath | None, error: Exception) -> Fault:
    return Fault(
        FaultKind.UNWRITABLE_FILE,
        f"{os.fspath(path or '')} cannot be written: {_first_line(error)}",
        "give a path in a folder that exists and can be written to, ending in .pt2",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _halting(graph: Graph) -> Any:
    return lambda fault: Halt(fault, Trail(graph))
