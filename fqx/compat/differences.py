"""Where the drop-in's results are not torch.ao's, bit for bit, and why: one table.

The differential test holds every row of torch.ao's flow to this table, and the documentation prints
it. A row that is not listed gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

Sort: TypeAlias = Literal["closer", "fails", "wrong"]
"""`closer`: the drop-in is closer to float. `fails`: torch.ao raises, the drop-in works. `wrong`:
torch's kernel does not compute the operator, and so counts for nothing."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows that differ, by patterns of their names, in some kinds and on some engines.

    Empty `kinds` and `engines` mean all of them.
    """

    sort: Sort
    rows: tuple[str, ...]
    why: str
    kinds: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    models: int = 3
    """Over how many models of other weights errors are summed, so that no one rounding decides."""

    def takes(self, row: str, kind: str, engine: str) -> bool:
        """Whether the difference speaks of this row."""
        return (
            any(fnmatchcase(row, pattern) for pattern in self.rows)
            and (not self.kinds or kind in self.kinds)
            and (not self.engines or engine in self.engines)
        )


def differences_of(row: str, kind: str, engine: str) -> tuple[Difference, ...]:
    """What is listed of a row; a table in order lists nothing twice."""
    return tuple(item for item in DIFFERENCES if item.takes(row, kind, engine))


_RELU = (
    "torch.ao has no pattern of this relu behind a layer: it quantizes the layer's result first, "
    "negative values included"
)
_SEVEN = (
    "torch.ao quantizes inputs of each call to 7 bits, in modules always and in functions under "
    "x86 and fbgemm; here they have 8"
)
_SHARED = (
    "torch.ao observes the value and the result together, which coarsens the scale of both, and "
    "rounds an added number to that scale"
)

DIFFERENCES: tuple[Difference, ...] = (
    Difference("closer", ("Conv?d + torch.relu", "Conv?d + .relu()"), _RELU),
    Difference(
        "closer", ("Linear + torch.relu", "Linear, .relu()", "Linear, .relu_()"), _RELU, ("static",)
    ),
    Difference(
        "closer",
        ("Linear called twice",),
        "torch.ao's module has one scale for its results, that of its last call",
    ),
    Difference(
        "closer",
        ("x ? number*", "number ? x", "x ? negative number"),
        _SHARED,
        engines=("x86", "fbgemm"),
    ),
    Difference("closer", ("x [*] number",), _SHARED, (), ("onednn", "qnnpack")),
    # with 8 bits for both the gain is a tenth of what rounding the number may be off
    Difference("closer", ("x + number",), _SHARED, (), ("onednn", "qnnpack"), models=24),
    Difference(
        "closer",
        ("Dropout", "F.dropout", "Identity"),
        "what computes nothing is taken out; torch.ao quantizes around it",
    ),
    Difference(
        "closer",
        ("Hardsigmoid of an input", "Sigmoid of an input", "Tanh of an input"),
        "torch.ao cuts the input to the range of the result",
    ),
    Difference(
        "closer",
        ("torch.repeat_interleave",),
        "alone it stays float; torch.ao quantizes around it",
    ),
    Difference(
        "closer",
        ("Linear, torch.chunk, Linear", "Conv2d, pool, .flatten(), Linear"),
        "the integers themselves are moved; torch.ao makes floats of them and quantizes again",
        models=12,
    ),
    Difference(
        "closer",
        ("Linear, Tanh",),
        "one kernel computes both; torch.ao's native backend config rounds between them",
        ("static",),
        ("onednn",),
    ),
    Difference("closer", ("Linear*",), _SEVEN, ("dynamic",), ("x86", "fbgemm", "onednn")),
    Difference("closer", ("F.linear", "F.linear + *"), _SEVEN, ("dynamic",), ("x86", "fbgemm")),
    Difference(
        "wrong",
        ("ConvTranspose?d of other channels",),
        "torch 2.13's kernel mixes up channels where not as many go out as come in",
        engines=("x86", "onednn"),
    ),
    Difference(
        "wrong",
        ("ConvTranspose3d*",),
        "torch 2.13's kernel mixes up the values of volumes",
        engines=("qnnpack",),
    ),
    Difference("wrong", ("torch.add with alpha",), "torch.ao forgets `alpha`"),
    Difference("wrong", ("PReLU*",), "torch 2.13's kernel misreads its slopes on every engine"),
    Difference(
        "closer",
        ("Embedding", "EmbeddingBag sum"),
        "torch's rows of 4 bits hold scale and offset in half precision",
        ("4 bits",),
    ),
    Difference("wrong", ("EmbeddingBag mean",), "torch.ao's quantized bag sums in every mode"),
    Difference(
        "fails",
        ("F.conv?d, defaults",),
        "torch.ao packs the weight with the arguments written out, and misses the others",
        ("static",),
    ),
    Difference("fails", ("F.linear by keywords",), "torch.ao looks for weights by position"),
    Difference(
        "fails",
        ("Linear, .sigmoid_()", "Linear, .tanh_()"),
        "torch has no kernel that writes into a quantized tensor",
    ),
    Difference("fails", ("x // number",), "torch has no such kernel for quantized tensors"),
    Difference(
        "fails",
        ("Conv2d, .view()",),
        "torch's kernel gives another memory layout, of which there is no such view",
    ),
)
"""What differs, each row once for a kind and an engine."""
