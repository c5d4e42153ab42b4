"""Laws of the values: arguments, dimensions, graphs and diffs, on drawn programs of made-up ops."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from fqx.ir.arg import (
    Arg,
    Dots,
    DType,
    NodeRef,
    Slice,
    Training,
    WeightRef,
    canonical,
    decode_arg,
    encode_arg,
    map_refs,
    same,
)
from fqx.ir.diff import (
    Added,
    Changed,
    Diff,
    Edit,
    Moved,
    Removed,
    Rewritten,
    Staged,
    TieAt,
    UpdateAt,
    WeightAt,
    apply,
    invert,
    invert_edit,
    rewritten,
    then,
)
from fqx.ir.graph import Graph, graph_of
from fqx.ir.names import Digest, NodeId, OpName, Path, RuleName, Stage
from fqx.ir.node import Node
from fqx.ir.signature import (
    Dim,
    Poly,
    Signature,
    Tree,
    add_dims,
    decode_dim,
    div_dims,
    encode_dim,
    mod_dims,
    mul_dims,
    named,
    sub_dims,
)
from fqx.ir.weight import Role, Weight
from fqx.kit.frozen import FrozenMap

BY = RuleName("drawn")

scalars: st.SearchStrategy[Arg] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(list(DType)),
    st.sampled_from(["a", "b.c"]).map(lambda name: NodeRef(NodeId(name))),
    st.sampled_from(["a", "b.c"]).map(lambda name: WeightRef(Path(name))),
    st.just(Dots()),
    st.just(Training()),
)


def _nested(inner: st.SearchStrategy[Arg]) -> st.SearchStrategy[Arg]:
    return st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(FrozenMap),
        st.builds(Slice, inner, inner, inner),
    )


args: st.SearchStrategy[Arg] = st.recursive(scalars, _nested, max_leaves=6)


@given(args)
@example(math.nan)
@example(-math.inf)
@example(-0.0)
def test_an_argument_survives_its_encoding(arg: Arg) -> None:
    code = canonical(encode_arg(arg))
    assert canonical(encode_arg(decode_arg(encode_arg(arg)))) == code
    assert same(arg, decode_arg(encode_arg(arg)))


@given(args)
def test_replacing_references_by_themselves_gives_the_same_object(arg: Arg) -> None:
    assert map_refs(arg, lambda ref: ref) is arg


def test_one_is_not_one_point_zero_is_not_true() -> None:
    ones: tuple[Arg, ...] = (1, 1.0, True)
    zeros: tuple[Arg, ...] = (0, 0.0, -0.0, False)
    assert [[same(a, b) for b in ones] for a in ones] == [
        [i == j for j in range(3)] for i in range(3)
    ]
    assert sum(same(a, b) for a in zeros for b in zeros) == len(zeros)
    assert same(math.nan, math.nan)


dims = st.recursive(
    st.one_of(st.integers(-6, 12), st.sampled_from(["n", "m"]).map(named)),
    lambda inner: st.builds(
        lambda f, a, b: f(a, b), st.sampled_from([add_dims, mul_dims]), inner, inner
    ),
    max_leaves=5,
)


def _value(dim: Dim, sizes: dict[str, int]) -> int:
    if isinstance(dim, Poly):
        return sum(
            factor * math.prod(_atom(atom, sizes) for atom in atoms) for atoms, factor in dim.terms
        )
    assert dim is not None
    return dim


def _atom(atom: str, sizes: dict[str, int]) -> int:
    if atom in sizes:
        return sizes[atom]
    return int(eval(atom, {}, sizes))  # an atom is written as a Python expression of the names


@given(dims, dims, st.integers(1, 9), st.integers(1, 9))
def test_dimension_arithmetic_is_integer_arithmetic(one: Dim, two: Dim, n: int, m: int) -> None:
    sizes = {"n": n, "m": m}
    a, b = _value(one, sizes), _value(two, sizes)
    assert _value(add_dims(one, two), sizes) == a + b
    assert _value(sub_dims(one, two), sizes) == a - b
    assert _value(mul_dims(one, two), sizes) == a * b
    if b != 0 and two != 0:
        assert _value(div_dims(one, two), sizes) == a // b
        assert _value(mod_dims(one, two), sizes) == a % b
    assert decode_dim(encode_dim(one)) == one


def _weight(index: int) -> Weight:
    return Weight(DType.FLOAT32, (index,), Role.PARAMETER, Digest(f"{index:064x}"))


def _node(name: str, factor: int) -> Node:
    return Node(NodeId(name), OpName("op"), (factor,))


@st.composite
def programs(draw: st.DrawFn) -> Graph:
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6))
    tree = Tree("tuple", items=())
    signature = Signature((), tree, tree, tree, FrozenMap())
    weights = {Path(f"w{i}"): _weight(i) for i in range(draw(st.integers(0, 2)))}
    return graph_of([_node(name, 0) for name in names], weights, signature)


def _after(names: list[NodeId], index: int) -> NodeId | None:
    return names[index - 1] if index else None


@st.composite
def edits(draw: st.DrawFn, graph: Graph) -> Edit:
    """One edit that fits the graph."""
    names = list(graph.order)
    free = [name for name in "abcdefgh" if name not in graph.nodes]
    kinds = (
        ["stage", "weight", "tie", "update"]
        + ["add"] * bool(free)
        + ["drop", "change", "move"] * bool(names)
    )
    match draw(st.sampled_from(kinds)):
        case "add":
            where = draw(st.integers(0, len(names)))
            return Added(_node(draw(st.sampled_from(free)), 0), BY, _after(names, where))
        case "drop":
            index = draw(st.integers(0, len(names) - 1))
            return Removed(graph[names[index]], BY, _after(names, index))
        case "change":
            node = graph[draw(st.sampled_from(names))]
            return Changed(node, _node(node.id, draw(st.integers(1, 3))), BY)
        case "move":
            index = draw(st.integers(0, len(names) - 1))
            rest = names[:index] + names[index + 1 :]
            return Moved(
                names[index],
                _after(names, index),
                _after(rest, draw(st.integers(0, len(rest)))),
                BY,
            )
        case "weight":
            path = Path(draw(st.sampled_from(["w0", "w1", "w2"])))
            held, new = graph.weights.get(path), WeightAt(path, _weight(draw(st.integers(3, 5))))
            if held is None:
                return Added(new, BY)
            changes: list[Edit] = [
                Removed(WeightAt(path, held), BY),
                Changed(WeightAt(path, held), new, BY),
            ]
            return draw(st.sampled_from(changes))
        case "tie":
            path = Path(draw(st.sampled_from(["t0", "t1"])))
            first = graph.ties.get(path)
            return (
                Added(TieAt(path, Path("w0")), BY)
                if first is None
                else Removed(TieAt(path, first), BY)
            )
        case "update":
            path, value = Path("u"), NodeRef(NodeId("a"))
            return (
                Added(UpdateAt(path, value), BY)
                if path not in graph.updates
                else Removed(UpdateAt(path, value), BY)
            )
        case _:
            return Staged(graph.stage, draw(st.sampled_from(list(Stage))), BY)


@st.composite
def walks(draw: st.DrawFn, graph: Graph) -> Rewritten:
    """A few edits, each fitting the graph the ones before it made."""
    made: list[Edit] = []
    now = graph
    for _ in range(draw(st.integers(0, 5))):
        edit = draw(edits(now))
        now = rewritten(now, [edit]).unwrap().graph
        made.append(edit)
    return rewritten(graph, made).unwrap()


@given(st.data())
def test_diffs_replay_invert_and_compose(data: st.DataObject) -> None:
    start = data.draw(programs())
    one = data.draw(walks(start))
    two = data.draw(walks(one.graph))
    three = data.draw(walks(two.graph))
    assert apply(one.diff, start).unwrap() == one.graph
    assert apply(invert(one.diff), one.graph).unwrap() == start
    assert tuple(one.graph.order) == tuple(rewritten(start, one.diff.edits).unwrap().graph.order)
    nothing = Diff(one.diff.edits[0:0], start.digest, start.digest)
    assert then(nothing, one.diff) == then(
        one.diff, replace(nothing, before=one.diff.after, after=one.diff.after)
    )
    assert len(then(one.diff, invert(one.diff)).unwrap()) == 0
    left = then(one.diff, two.diff).bind(lambda both: then(both, three.diff)).unwrap()
    right = then(two.diff, three.diff).bind(lambda both: then(one.diff, both)).unwrap()
    assert left == right
    assert apply(left, start).unwrap() == three.graph


@given(st.data())
def test_no_edits_give_the_same_object(data: st.DataObject) -> None:
    start = data.draw(programs())
    assert rewritten(start, []).unwrap().graph is start


@given(st.data())
def test_a_diff_fits_only_the_graph_it_was_made_from(data: st.DataObject) -> None:
    start, other = data.draw(programs()), data.draw(programs())
    walk = data.draw(walks(start))
    if other.digest != start.digest:
        assert apply(walk.diff, other).failure().kind.name == "DIFF_DOES_NOT_FIT"


@given(st.data())
def test_edits_undo_themselves(data: st.DataObject) -> None:
    edit = data.draw(edits(data.draw(programs())))
    assert invert_edit(invert_edit(edit)) == edit
