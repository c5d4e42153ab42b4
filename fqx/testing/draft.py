"""A few lines of Python that write a graph down, for examples and tests.

draft = Draft()
x = draft.input("x", 2, 3)
w = draft.weight("fc.weight", torch.ones(4, 3))
y = draft.call("linear", "fc", x=x, weight=w)
graph = draft.graph(y)
"""

from __future__ import annotations

import torch

from fqx.ir.arg import Arg, DType, NodeRef, WeightRef
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import NodeId, OpName, Path, Stage
from fqx.ir.node import Node
from fqx.ir.signature import Dim, Input, Signature, TensorType, Tree, named
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap
from fqx.num.tensors import weight_of
from fqx.ops.catalogue import make_node


class Draft:
    """A program as it is written down, node by node."""

    def __init__(self, stage: Stage = Stage.FLOAT) -> None:
        self._stage = stage
        self._nodes: list[Node] = []
        self._inputs: list[Input] = []
        self._weights: dict[Path, Weight] = {}
        self._ties: dict[Path, Path] = {}
        self._updates: dict[Path, NodeRef] = {}

    def input(self, name: str, *dims: Dim | str, dtype: DType = DType.FLOAT32) -> NodeRef:
        """A tensor input; a dim given as text is a free one of that name."""
        sizes = tuple(named(dim) if isinstance(dim, str) else dim for dim in dims)
        node = Node(NodeId(f"@{name}"), OpName("input"))
        self._nodes.append(node)
        self._inputs.append(Input(name, node.id, TensorType(dtype, sizes)))
        return NodeRef(node.id)

    def weight(
        self, path: str, tensor: torch.Tensor, role: Role = Role.PARAMETER, grad: bool = False
    ) -> WeightRef:
        """A weight holding a copy of the tensor."""
        self._weights[Path(path)] = weight_of(tensor, role, requires_grad=grad)
        return WeightRef(Path(path))

    def tie(self, path: str, first: str) -> None:
        """A second path of a weight."""
        self._ties[Path(path)] = Path(first)

    def update(self, path: str, value: NodeRef) -> None:
        """A buffer's value after the call."""
        self._updates[Path(path)] = value

    def call(self, op: str, name: str, /, **given: Arg) -> NodeRef:
        """A node of the catalogue; defaults are filled in."""
        node = make_node(op, NodeId(name), **given)
        self._nodes.append(node)
        return NodeRef(node.id)

    def graph(self, *outputs: Arg) -> Graph:
        """The program; several outputs make a tuple."""
        free = {
            str(dim): (1, None)
            for item in self._inputs
            if isinstance(item.type, TensorType)
            for dim in item.type.dims or ()
            if dim is not None and not isinstance(dim, int)
        }
        leaves = tuple(Tree("leaf", output) for output in outputs)
        signature = Signature(
            tuple(self._inputs),
            Tree("tuple", items=tuple(Tree("leaf", index) for index in range(len(self._inputs)))),
            Tree("dict"),
            leaves[0] if len(leaves) == 1 else Tree("tuple", items=leaves),
            FrozenMap(free),
            tuple(item.name for item in self._inputs),
        )
        return graph_of(
            self._nodes,
            self._weights,
            signature,
            ties=self._ties,
            updates=self._updates,
            stage=self._stage,
        )
