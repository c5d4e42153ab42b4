"""Corrections of biases, each wrong in one way, and the law that must say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fqx.ir.arg import NodeRef
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.num.tensors import tensor_of, weight_of
from fqx.passes.calibrate import calibrate
from fqx.passes.convert import convert
from fqx.passes.correct_bias import correct_bias
from fqx.passes.observe import observe
from fqx.policy.recipe import int8_static
from fqx.targets.onednn import onednn
from fqx.testing.correction import Correction
from fqx.testing.draft import Draft


@dataclass(frozen=True, slots=True)
class Planted:
    """A wrong correction and the law it breaks."""

    law: str
    title: str
    spoil: Callable[[Correction], Graph]

    def subject(self) -> Correction:
        """The right correction, spoilt."""
        right = honest()
        return replace(right, after=self.spoil(right))


def honest() -> Correction:
    """Two linears with a relu between, quantized for onednn and corrected."""
    draft, random = Draft(), torch.Generator().manual_seed(11)
    x = draft.input("x", "batch", 8)
    for index, size in enumerate((6, 4)):
        weight = torch.randn(size, 8 if not index else 6, generator=random)
        name = f"fc{index}"
        bias = draft.weight(f"{name}.bias", torch.randn(size, generator=random))
        x = _linear(draft, name, x, weight, bias)
    graph = draft.graph(x)
    inputs = (torch.randn(32, 8, generator=random),)
    road = observe(int8_static(), onednn()) | calibrate([inputs], progress=False)
    trail = (road | convert(onednn())).run(graph).unwrap()
    reference = trail.graphs()[-2]
    made = correct_bias(reference, [inputs], progress=False).run(trail.graph).unwrap()
    return Correction(reference, trail.graph, made.graph, inputs)


def _linear(draft: Draft, name: str, x: NodeRef, weight: torch.Tensor, bias: object) -> NodeRef:
    held = draft.weight(f"{name}.weight", weight)
    y = draft.call("linear", name, x=x, weight=held, bias=bias)  # type: ignore[arg-type]
    return draft.call("relu", f"{name}:relu", x=y)


def _by(right: Correction, path: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Graph:
    """The corrected program with one weight changed further."""
    held = right.after.weights[Path(path)]
    made = weight_of(change(tensor_of(held).unwrap()), held.role)
    return replace(right.after, weights=right.after.weights.put(Path(path), made))


def _the_wrong_way(right: Correction) -> Graph:
    """Adds the error where it should have been taken away."""
    path = Path("fc1.bias")
    old, new = (tensor_of(g.weights[path]).unwrap() for g in (right.before, right.after))
    return _by(right, path, lambda _: 2 * old - new)


def _all_at_once(right: Correction) -> Graph:
    """Corrects the second layer alone, and leaves the first as it was."""
    path = Path("fc0.bias")
    return _by(right, path, lambda _: tensor_of(right.before.weights[path]).unwrap())


def _a_scale(right: Correction) -> Graph:
    """Leaves the means alone and changes what it may not: the name of what a relu reads."""
    relu = right.after[NodeId("fc1:relu")]
    return replace(
        right.after,
        nodes=right.after.nodes.edit({relu.id: replace(relu, op=type(relu.op)("abs"))}),
    )


CASES: tuple[Planted, ...] = (
    Planted("centres_errors", "shifts the wrong way", _the_wrong_way),
    Planted("centres_errors", "forgets the first layer", _all_at_once),
    Planted("changes_biases_only", "changes an activation too", _a_scale),
)
"""At least one for every law of corrections."""
