"""What graphs, edits and faults look like, and that programs can be read back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fqx.ir.arg import Arg, Block, Dots, DType, NodeRef, Slice, Training, WeightRef, same
from fqx.ir.diff import (
    Added,
    BlockAt,
    Changed,
    Edit,
    LeafAt,
    Moved,
    Staged,
    TieAt,
    UpdateAt,
    WeightAt,
)
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import BlockName, Digest, NodeId, OpName, Path, RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.read import read
from fqx.ir.show import show, show_diff, show_edit, show_fault
from fqx.ir.signature import (
    Dim,
    Input,
    IntType,
    OpaqueType,
    Signature,
    TensorType,
    Tree,
    TupleType,
    Type,
    add_dims,
    div_dims,
    mul_dims,
    named,
)
from fqx.ir.text import WIDTH, show_arg, show_dim, show_type, wrap
from fqx.ir.text import read_dim as read_dim_text
from fqx.ir.weight import Layout, Leaf, Role, Weight
from fqx.kit.frozen import FrozenMap
from fqx.ops.catalogue import check_node
from fqx.ops.types import types
from fqx.passes.clean import clean
from fqx.testing.draft import Draft

BY = RuleName("test.rule")

ARGS: list[Arg] = [
    None,
    True,
    False,
    0,
    -3,
    10**30,
    1.0,
    -0.0,
    1e-05,
    1e300,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "a 'b' \"c\" \n ü # no remark",
    DType.FLOAT32,
    DType.INT8,
    Dots(),
    Training(),
    Slice(None, -1, 2),
    Slice(NodeRef(NodeId("n")), None, None),
    Block(BlockName("body")),
    NodeRef(NodeId("layer1.0:add.2")),
    NodeRef(NodeId(":add")),
    NodeRef(NodeId("@x")),
    NodeRef(NodeId("0")),
    NodeRef(NodeId("0.1")),
    NodeRef(NodeId("-1")),
    NodeRef(NodeId("None")),
    NodeRef(NodeId("float32")),
    NodeRef(NodeId("slice")),
    NodeRef(NodeId("training")),
    NodeRef(NodeId("inf")),
    NodeRef(NodeId("a b;(c)")),
    NodeRef(NodeId("%")),
    WeightRef(Path("md.a b.weight")),
    WeightRef(Path("0.weight")),
    (),
    (1,),
    (1, (2.0, None), NodeRef(NodeId("x"))),
    FrozenMap(),
    FrozenMap({"a": 1, "b c": (True,), "d": FrozenMap({"e:f": "g"})}),
]

SIGNATURE = Signature((), Tree("tuple"), Tree("dict"), Tree("leaf"), FrozenMap())


def read_back(graph: Graph) -> Graph:
    made = read(show(graph)).unwrap()
    assert made == graph
    assert show(made) == show(graph)
    return made


@pytest.mark.parametrize("arg", ARGS, ids=repr)
def test_an_argument_is_read_back(arg: Arg) -> None:
    node = Node(NodeId("n"), OpName("op"), (arg, 1), FrozenMap({"k": arg, "l": arg}))
    made = read_back(graph_of([node], {}, SIGNATURE))
    (again,) = made
    assert same(again.args[0], arg)


def test_texts_of_arguments_differ_as_the_arguments_do() -> None:
    assert len({show_arg(arg) for arg in ARGS}) == len(ARGS)


BATCH = named("batch")

DIMS: list[Dim] = [
    0,
    7,
    None,
    BATCH,
    add_dims(mul_dims(2, BATCH), -1),
    mul_dims(BATCH, named("time")),
    add_dims(div_dims(add_dims(BATCH, -1), 2), 1),
    named("a,b]"),
    named("2"),
    named('quote"'),
    named("-1"),
    named("?"),
]


@pytest.mark.parametrize("dim", DIMS, ids=repr)
def test_a_dimension_is_read_back(dim: Dim) -> None:
    assert read_dim_text(show_dim(dim)) == dim


TYPES: list[Type] = [
    TensorType(DType.FLOAT32, ()),
    TensorType(DType.FLOAT32, None),
    TensorType(DType.BOOL, tuple(DIMS)),
    IntType(None),
    OpaqueType('a "b" ] # c'),
    TupleType(()),
    TupleType(tuple(IntType(dim) for dim in DIMS)),
    TupleType((TupleType((TensorType(DType.INT64, (1, 2)),)), OpaqueType())),
]


@pytest.mark.parametrize("kind", TYPES, ids=show_type)
def test_a_type_is_read_back(kind: Type) -> None:
    given = Input("x y", NodeId("@x"), kind)
    read_back(graph_of([], {}, replace(SIGNATURE, inputs=(given, given))))


TREES = [
    Tree("leaf", NodeRef(NodeId("y"))),
    Tree("leaf", (1, 2)),
    Tree("leaf", FrozenMap({"a": 1})),
    Tree("leaf", "text"),
    Tree("tuple"),
    Tree("tuple", items=(Tree("leaf", 1),)),
    Tree("list", items=(Tree("leaf", NodeRef(NodeId("0"))), Tree("tuple"))),
    Tree("dict", keys=("a", 1, True), items=(Tree("leaf", 1), Tree("list"), Tree("leaf"))),
    Tree("named", keys=("logits",), items=(Tree("leaf", 1.5),), name="models.Output of x"),
]


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_a_tree_is_read_back(tree: Tree) -> None:
    nodes = [Node(NodeId("graph"), OpName("op")), Node(NodeId("return"), OpName("op"))]
    read_back(graph_of(nodes, {}, replace(SIGNATURE, args=tree, kwargs=tree, output=tree)))


def whole() -> Graph:
    """A graph that has everything a graph can have."""
    weight = Weight(DType.FLOAT32, (2, 3), Role.PARAMETER, Digest("0f" * 32), requires_grad=True)
    buffer = replace(weight, role=Role.BUFFER, layout=Layout.CHANNELS_LAST, persistent=False)
    inputs = (
        Input("x", NodeId("@x"), TensorType(DType.FLOAT32, (BATCH, 3))),
        Input("n", None, OpaqueType(), 3),
        Input("flag", NodeId("@flag"), OpaqueType("bool"), True),
    )
    signature = Signature(
        inputs,
        Tree("tuple", items=(Tree("leaf", 0),)),
        Tree("dict", keys=("n", "flag"), items=(Tree("leaf", 1), Tree("leaf", 2))),
        Tree("leaf", NodeRef(NodeId("y"))),
        FrozenMap({"batch": (1, None), "time": (2, 64)}),
        ("x", "n"),
    )
    body = graph_of([Node(NodeId("}"), OpName("a.b"))], {Path("w"): weight}, SIGNATURE)
    return graph_of(
        [
            Node(NodeId("@x"), OpName("input")),
            Node(NodeId("weight"), OpName("op"), (NodeRef(NodeId("@x")),)),
            Node(NodeId("y"), OpName("aten.foo.default"), (NodeRef(NodeId("weight")),) * 30),
        ],
        {Path("a"): weight, Path("b c"): buffer},
        signature,
        ties={Path("second"): Path("a")},
        updates={Path("b c"): NodeRef(NodeId("y"))},
        blocks={BlockName("body"): body, BlockName("x y"): body},
        leaves={Path("m"): Leaf("pkg.Class", Digest("ab"), 'it says "no"')},
        stage=Stage.QUANTIZED,
    )


def test_everything_in_a_graph_is_read_back() -> None:
    read_back(whole())


def test_lines_are_no_longer_than_the_page() -> None:
    assert all(len(line) <= WIDTH for line in show(whole()).splitlines())


def test_remarks_are_no_part_of_the_program() -> None:
    graph = example()
    text = show(graph, types(graph), sources=True)
    assert "# float32[batch, 2]" in text
    assert read(text).unwrap() == graph


def example() -> Graph:
    draft = Draft()
    weight = draft.weight("fc.weight", torch.arange(6.0).reshape(2, 3), grad=True)
    y = draft.call("linear", "fc", x=draft.input("x", "batch", 3), weight=weight)
    z = draft.call("relu", "act", x=draft.call("dropout", "drop", x=y, p=0.5))
    return draft.graph(z)


def test_a_program_is_pleasant_to_read() -> None:
    fingerprint = example().weights[Path("fc.weight")].fingerprint
    assert show(example()).splitlines() == [
        "graph float",
        "dim batch = 1..",
        "input x = @x of float32[batch, 3]",
        "args (0,)",
        "kwargs {}",
        'params ("x",)',
        "",
        "@x = input()",
        "fc = linear(@x, $fc.weight, None)",
        "drop = dropout(fc; p=0.5, training=False)",
        "act = relu(drop)",
        "return act",
        "",
        "weight fc.weight = float32[2, 3] parameter grad",
        f"    sha256:{fingerprint}",
    ]


def test_a_diff_reads_like_a_change_of_the_program() -> None:
    diff = clean().run(example()).unwrap().steps[0].diff
    head, *lines = show_diff(diff).splitlines()
    assert head == f"# 2 edits, {diff.before[:12]} -> {diff.after[:12]}"
    assert [line.rsplit(maxsplit=1) for line in lines] == [
        ["- drop = dropout(fc; p=0.5, training=False)", "[clean.dropout]"],
        ["~ act = relu(drop -> fc)", "[clean.dropout]"],
    ]
    assert {len(line) for line in lines} == {WIDTH}


def test_every_edit_has_a_line() -> None:
    graph = whole()
    weight = graph.weights[Path("a")]
    other = replace(weight, fingerprint=Digest("99" * 32))
    node = Node(NodeId("n"), OpName("op"), (1, 2), FrozenMap({"a": 1, "b": 2}))
    leaf = graph.leaves[Path("m")]
    body = graph.blocks[BlockName("body")]
    ended = replace(graph.signature, output=Tree("leaf", 1))
    edits: list[tuple[Edit, str]] = [
        (Added(node, BY), "+ n = op(1, 2; a=1, b=2)"),
        (
            Changed(node, replace(node, args=(1, 3), attrs=FrozenMap({"a": 1, "b": 5})), BY),
            "~ n = op(1, 2 -> 3; b=2 -> 5)",
        ),
        (
            Changed(node, replace(node, op=OpName("other")), BY),
            "~ n = op(1, 2; a=1, b=2) -> other(1, 2; a=1, b=2)",
        ),
        (
            Changed(WeightAt(Path("w"), weight), WeightAt(Path("w"), other), BY),
            "~ weight w = float32[2, 3] parameter grad 0f0f0f0f0f0f -> 999999999999",
        ),
        (Added(TieAt(Path("s"), Path("a")), BY), "+ tie s = a"),
        (Added(UpdateAt(Path("s"), NodeRef(NodeId("y"))), BY), "+ update s = y"),
        (Added(LeafAt(Path("m"), leaf), BY), "+ leaf m = pkg.Class ab"),
        (Added(BlockAt(BlockName("b"), body), BY), f"+ block b {body.digest[:12]}"),
        (Changed(graph.signature, ended, BY), "~ return y -> 1"),
        (Moved(NodeId("n"), None, NodeId("y"), BY), "> n behind y"),
        (Moved(NodeId("n"), NodeId("y"), None, BY), "> n behind nothing"),
        (Staged(Stage.FLOAT, Stage.FUSED, BY), "  stage float -> fused"),
    ]
    assert [show_edit(edit) for edit, _ in edits] == [text for _, text in edits]


def test_a_fault_shows_its_place() -> None:
    graph = example()
    text = show_fault(Fault(FaultKind.NO_KERNEL, "none fits", at=NodeId("drop")), graph, 1)
    assert text.splitlines()[:4] == [
        "  fc = linear(@x, $fc.weight, None)",
        "> drop = dropout(fc; p=0.5, training=False)",
        "  " + "^" * 41,
        "  act = relu(drop)",
    ]
    assert "NoKernel: none fits" in text


def test_wrapping_keeps_tuples_and_texts_whole() -> None:
    text = "f(" + ", ".join(["(1, 2, 3)", '"a, b; c"'] * 12) + ")"
    lines = wrap(text).splitlines()
    assert all(len(line) <= WIDTH for line in lines)
    assert all(
        line.count("(1, 2, 3)") * 2 in (line.count(")") * 2, line.count(")") * 2 - 2)
        for line in lines
    )
    assert " ".join(line.strip() for line in lines) == text


@pytest.mark.parametrize(
    "text, place, why",
    [
        ("", "line 1, column 1", "expected the word 'graph'"),
        ("graph dim", "line 1", "'dim' is not a valid Stage"),
        ("graph float\nnonsense", "line 2, column 1", "expected a statement, found 'nonsense'"),
        ("graph float\nx = relu(", "line 2", "expected an argument"),
        ("graph float\nx = relu(1; a)", "line 2", "expected '='"),
        ("graph float\nx = relu(1", "line 2", "expected ')'"),
        ("graph float\nweight w = float32[2] parameter", "line 2", "expected a name"),
        ("graph float\nweight w = quux[2] parameter sha256:0", "line 2", "'quux'"),
        ('graph float\nx = relu("open)', "line 2", "expected a quoted text"),
        ("graph float\nupdate a = 1", "line 2", "expected a node"),
        ("graph float\nreturn {1.5: a}", "line 2", "expected"),
        ("graph float\nblock b {\ngraph float", "line 3", "expected"),
    ],
)
def test_what_is_no_program_says_where(text: str, place: str, why: str) -> None:
    fault = read(text).failure()
    assert fault.kind is FaultKind.UNREADABLE_TEXT
    assert place in fault.reason
    assert why in fault.reason


def test_reading_asks_whether_nodes_are_known() -> None:
    graph = example()
    assert read(show(graph), check_node).unwrap() == graph
    fault = read("graph float\nx = relu(1, 2, 3)\nreturn x", check_node).failure()
    assert fault.kind is FaultKind.MALFORMED_NODE
