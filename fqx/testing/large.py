"""Large programs for timing: a float graph of any number of nodes, a module of any depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fqx.ir.arg import DType, NodeRef, WeightRef
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node, Origin
from fqx.ir.signature import Input, Signature, TensorType, Tree, named
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import weight_of
from fqx.ops.catalogue import make_node
from fqx.testing.zoo.parts import conv_norm
from fqx.testing.zoo.seeded import seeded

NODES_PER_BLOCK = 7
X = NodeId("@x")


def large_graph(nodes: int, channels: int = 8, side: int = 8, seed: int = 0) -> Graph:
    """A FLOAT graph of about `nodes` nodes, its one input float32 [batch, channels, side, side].

    Residual blocks conv, batch norm, relu, conv, batch norm, add, relu, each with weights of its
    own, so that every pass has something to do at every node.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: dict[Path, Weight] = {}
    listed = [make_node("input", X)]
    value = X
    for index in range(max(1, nodes // NODES_PER_BLOCK)):
        block = _block(f"block{index}", value, channels, generator, weights)
        listed += block
        value = block[-1].id
    return graph_of(listed, weights, _signature(value, channels, side))


def image(channels: int = 8, side: int = 8, batch: int = 2, seed: int = 0) -> Tensor:
    """An input of `large_graph`, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, side, side, generator=generator)


def chain(blocks: int, channels: int = 8, seed: int = 0) -> nn.Module:
    """`blocks` times convolution, batch norm, relu, in eval mode; takes what `image` gives."""

    def make() -> nn.Module:
        return nn.Sequential(*(conv_norm(channels, channels, 3) for _ in range(blocks)))

    return seeded(make, image(channels), seed)


def _block(
    name: str,
    x: NodeId,
    channels: int,
    generator: torch.Generator,
    weights: dict[Path, Weight],
) -> list[Node]:
    first = _conv_norm(f"{name}.conv1", f"{name}.bn1", x, channels, generator, weights)
    relu = make_node("relu", NodeId(f"{name}.relu"), _origin(name), x=NodeRef(first[-1].id))
    second = _conv_norm(
        f"{name}.conv2", f"{name}.bn2", relu.id, channels, generator, weights, gain=0.0
    )
    add = make_node(
        "add", NodeId(f"{name}:add"), _origin(name), x=NodeRef(second[-1].id), y=NodeRef(x)
    )
    last = make_node("relu", NodeId(f"{name}.relu@1"), _origin(name), x=NodeRef(add.id))
    return [*first, relu, *second, add, last]


def _conv_norm(
    conv: str,
    norm: str,
    x: NodeId,
    channels: int,
    generator: torch.Generator,
    weights: dict[Path, Weight],
    gain: float = 1.0,
) -> list[Node]:
    """`gain` is the mean of the norm's weight; near zero, a residual branch lets depth be deep."""

    def draw(path: str, *shape: int, scale: float = 0.1, shift: float = 0.0) -> WeightRef:
        tensor = torch.randn(shape, generator=generator) * scale + shift
        weights[Path(path)] = weight_of(tensor, Role.PARAMETER, share=True)
        return WeightRef(Path(path))

    kernel = draw(f"{conv}.weight", channels, channels, 3, 3, scale=0.1)
    made = make_node(
        "conv2d", NodeId(conv), _origin(conv), x=NodeRef(x), weight=kernel, padding=(1, 1)
    )
    norms = {
        "weight": draw(f"{norm}.weight", channels, scale=0.02, shift=gain),
        "bias": draw(f"{norm}.bias", channels, scale=0.02),
        "mean": draw(f"{norm}.running_mean", channels),
        "var": draw(f"{norm}.running_var", channels, scale=0.01, shift=1.0),
    }
    return [made, make_node("batch_norm", NodeId(norm), _origin(norm), x=NodeRef(made.id), **norms)]


def _origin(path: str) -> Origin:
    return Origin(((Path(path), "Block"),), 0, f"{path}:1")


def _signature(output: NodeId, channels: int, side: int) -> Signature:
    kind = TensorType(DType.FLOAT32, (named("batch"), channels, side, side))
    args = Tree("tuple", items=(Tree("leaf", 0),))
    out = Tree("leaf", NodeRef(output))
    dims: FrozenMap[tuple[int, int | None]] = FrozenMap({"batch": (1, None)})
    return Signature((Input("x", X, kind),), args, Tree("dict"), out, dims, ("x",))
