"""What a process makes of given graphs and statistics, as digests: for comparing processes.

    python -m fqx.testing.digests THREADS TRAIL...

prints, as one JSON object, the digest after every pass from each trail's base graph up to observe,
and from its last, calibrated graph down to the kernels of every target; and the digests of a model
captured by both front ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fqx.edge.artefact import read
from fqx.edge.capture import capture
from fqx.ir.graph import Graph
from fqx.passes.clean import clean
from fqx.passes.convert import convert
from fqx.passes.equalize import equalize
from fqx.passes.fold import fold
from fqx.passes.fuse import fuse
from fqx.passes.lower import lower
from fqx.passes.observe import observe
from fqx.passes.pipeline import Pipeline
from fqx.passes.smooth import smooth
from fqx.policy.recipe import int8_static
from fqx.policy.target import Target
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference
from fqx.testing.models import Instruction, ModelSample

MODEL = ModelSample(
    (
        Instruction("module:block:0", 0, (0,)),
        Instruction("unary_:relu", 0, (2,)),
        Instruction("binary:join", 0, (3, 1)),
    ),
    "tuple",
    11,
)
"""A model with children, a write in place and a cat."""


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a pass led, under a name that tells trail, target and pass."""

    name: str
    digest: str


def targets() -> tuple[Target, ...]:
    """The targets, as their makers promise them: what this machine has plays no part."""
    return (onednn(), onednn().narrowed(), native("fbgemm").unwrap(), reference())


def reached(paths: list[str]) -> Iterator[Reached]:
    """The digests of all trails, and of the captured model."""
    for how in ("export", "symbolic"):
        taken = capture(_model(), MODEL.inputs(), how=how)
        yield Reached(f"captured by {how}", taken.unwrap().graph.digest)
    for index, path in enumerate(paths):
        trail = read(path).unwrap().trail
        for target in targets():
            above = clean() | fuse() | equalize() | observe(int8_static(), target)
            below = smooth() | convert(target) | fold() | lower(target)
            for road, start in ((above, trail.base), (below, trail.graph)):
                yield from _steps(f"trail {index}, {target.label}", road, start)


def _model() -> nn.Module:
    """The model, its weights by division alone: torch.randn's bits depend on the machine."""
    model = MODEL.model()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.arange(1, tensor.numel() + 1).reshape(tensor.shape) / 7)
    return model


def _steps(prefix: str, road: Pipeline, start: Graph) -> Iterator[Reached]:
    for step in road.run(start).unwrap().steps:
        yield Reached(f"{prefix}, {step.name}", step.after)


def main(arguments: list[str]) -> int:
    """The command line."""
    torch.set_num_threads(int(arguments[0]))
    print(json.dumps({item.name: item.digest for item in reached(arguments[1:])}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
