"""Writes the pages of docs/ that are made from tables; a test checks that they are up to date.

python docs/generate.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fqx.compat.differences import DIFFERENCES, Difference
from fqx.ir.fault import FaultKind
from fqx.ops.catalogue import OPS
from fqx.ops.schema import Op
from fqx.policy.target import Target
from fqx.policy.units import Mode
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.recurrent import CELLS as RECURRENT_CELLS
from fqx.targets.reference import reference

DOCS = Path(__file__).resolve().parent
SOURCES = DOCS.parent / "fqx"
TESTS = DOCS.parent / "tests" / "compat"
NOTE = "<!-- Made by docs/generate.py; do not edit. -->"


def faults() -> str:
    """The page of all faults, with the layers that report each."""
    where: dict[str, set[str]] = {kind.name: set() for kind in FaultKind}
    for path in sorted(SOURCES.rglob("*.py")):
        layer = path.relative_to(SOURCES).parts[0].removesuffix(".py")
        for kind in re.findall(r"FaultKind\.([A-Z_]+)", path.read_text()):
            where[kind].add(layer)
    rows = [
        f"| `{_camel(kind)}` | {kind.value} | {', '.join(sorted(where[kind.name]))} |"
        for kind in FaultKind
    ]
    return "\n".join((*_FAULTS_HEAD, *rows, ""))


def matrix() -> str:
    """The page that says how every operator of the catalogue runs on every target."""
    targets = _targets()
    head = "| operator | " + " | ".join(f"`{target.label}`" for target in targets) + " |"
    rule = "|---|" + "---|" * len(targets)
    rows = [
        f"| `{op.text}` | " + " | ".join(_cell(op, target) for target in targets) + " |"
        for _, op in sorted(OPS.items())
    ]
    types = [
        f"| `{target.label}` | {_range(target.activation)} | {_range(target.weight)} | "
        f"{target.form} |"
        for target in targets
    ]
    return "\n".join((*_MATRIX_HEAD, *types, "", *_MATRIX_LEGEND, head, rule, *rows, ""))


def pages() -> Mapping[str, str]:
    """File name to text of every generated page."""
    made = {"defects.md": defects, "faults.md": faults, "matrix.md": matrix, "support.md": support}
    return MappingProxyType({name: page() for name, page in made.items()})


def defects() -> str:
    """The page of torch.ao's defects, from the docstrings of the tests that show them."""
    lines = list(_DEFECTS_HEAD)
    for title, name in _DEFECTS:
        tree = ast.parse((TESTS / f"{name}.py").read_text())
        lines += ["", f"## {title}", "", f"Shown by `tests/compat/{name}.py`.", ""]
        lines += ["| torch.ao | fqx | test |", "|---|---|---|"]
        for item in tree.body:
            text = ast.get_docstring(item) if isinstance(item, ast.FunctionDef) else None
            if isinstance(item, ast.FunctionDef) and text and item.name.startswith("test_"):
                theirs, ours = (" ".join(part.split()) for part in text.split("\n\n"))
                lines.append(f"| {theirs} | {ours} | `{item.name.removeprefix('test_')}` |")
    return "\n".join((*lines, ""))


def support() -> str:
    """The page that holds torch.ao's FX flow against fqx, row by row."""
    targets = _targets()[:-1]
    head = "| torch.ao's patterns | units | " + " | ".join(f"`{t.label}`" for t in targets)
    head += " | why not everywhere |"
    rule = "|---|---|" + "---|" * (len(targets) + 1)
    rows = [_support_row(what, names, targets) for what, names in _FX_OPS]
    differ = (line for sort in _SORTS for line in _differing(*sort))
    return "\n".join((*_SUPPORT_HEAD, head, rule, *rows, "", *differ, *_SUPPORT_REST, ""))


def _differing(sort: str, said: str) -> tuple[str, ...]:
    """The differences of one sort, each row of torch.ao's flow with the reason."""
    found = [item for item in DIFFERENCES if item.sort == sort]
    rows = (f"| {_names(item)} | {_where(item)} | {item.why} |" for item in found)
    return (said, "", "| rows | kinds, engines | why |", "|---|---|---|", *rows, "")


def _names(item: Difference) -> str:
    return ", ".join(f"`{name.replace('[*]', '*')}`" for name in item.rows)


def _where(item: Difference) -> str:
    return ", ".join((*item.kinds, *item.engines)) or "all"


def _support_row(what: str, names: tuple[str, ...], targets: tuple[Target, ...]) -> str:
    """What the targets have of some units, and why not all of it; a gap without a reason raises."""
    cells = [_units_cell(names, target) for target in targets]
    units, why = ", ".join(f"`{name}`" for name in names), _WHY.get(what, "")
    if bool(why) != any(cell != "works" for cell in cells):
        raise ValueError(
            f"{what}: {'nothing is left to explain' if why else 'a gap has no reason'}"
        )
    return "| " + " | ".join((what, units, *cells, why)) + " |"


def _units_cell(names: tuple[str, ...], target: Target) -> str:
    """How many of the units the target has, and whether a recipe has to ask for them."""
    known = {kind.name: kind for kind in target.units}
    found = [known[name] for name in names if name in known]
    if not found:
        return "float"
    lone = [f"`{kind.name}`" for kind in found if kind.asked]
    asked = f", {', '.join(lone)} when `lone`" if lone else ""
    asked = " when `lone`" if len(lone) == len(found) else asked
    part = "" if len(found) == len(names) else f" {len(found)} of {len(names)}"
    return f"works{part}{asked}"


def _targets() -> tuple[Target, ...]:
    engines = (native(engine).unwrap() for engine in ("x86", "fbgemm", "onednn", "qnnpack"))
    return (onednn(), *engines, reference())


def _cell(op: Op, target: Target) -> str:
    others = {kind.mode for kind in target.kinds(op.name)} - {Mode.STATIC}
    named = ", ".join(sorted(mode.value for mode in others))
    return " · ".join(part for part in (_static_cell(op, target, named), named) if part)


def _static_cell(op: Op, target: Target, others: str) -> str:
    kinds = tuple(kind for kind in target.kinds(op.name) if kind.mode is Mode.STATIC)
    if not kinds:
        absorbed = any(op.name in kind.absorbs for kind in target.units)
        return "in a unit" if absorbed else "" if others else "float"
    if all(kind.shares for kind in kinds):
        return "integers"
    tails = sorted({" + ".join(kind.absorbs) for kind in kinds if kind.absorbs})
    word = "int8" if any(kind.kernel for kind in kinds) else "q/dq"
    return f"**{word}**" + (f", + {'; + '.join(tails)}" if tails else "")


def _range(ints: object) -> str:
    dtype, low, high = (getattr(ints, name) for name in ("dtype", "qmin", "qmax"))
    return f"{dtype.value} {low}…{high}"


def _camel(kind: FaultKind) -> str:
    return "".join(word.capitalize() for word in kind.name.split("_"))


_DEFECTS = (
    ("Wrong without a word", "test_original_defects"),
    ("Failures on ordinary models", "test_original_failures"),
    ("Changes to what is handed in", "test_original_mutation"),
)

_DEFECTS_HEAD = (
    "# Defects of torch.ao's FX quantization",
    "",
    NOTE,
    "",
    "Each row is a test that runs torch.ao and fqx on the same model and shows the first wrong, or",
    "failing, and the second right, or reporting what is wrong with the model. torch is that of",
    "`constraints.txt`. `tests/test_purity.py` watches every public function of fqx for changes to",
    "what it is given.",
)

_FAULTS_HEAD = (
    "# Faults",
    "",
    NOTE,
    "",
    "Every public function that can fail returns a `Result`; its failure is a `Halt`, which holds",
    "a `Fault` and the trail so far. A fault names the node, the module path and your own source",
    "line where there is one, says why, and says what to do next. `result.unwrap()` raises an",
    "`UnwrapFailedError` whose cause is the `Halt`: the traceback shows all of it.",
    "",
    "| fault | meaning | reported by |",
    "|---|---|---|",
)

_MATRIX_HEAD = (
    "# Operators and targets",
    "",
    NOTE,
    "",
    "| target | activations | weights | a quantized value is |",
    "|---|---|---|---|",
)

_MATRIX_LEGEND = (
    "The ranges are those of a machine whose int8 products are summed exactly (VNNI);",
    "`fqx.probe(target)` narrows activations to 0…127 on others.",
    "",
    "**int8**: an integer kernel, and what it can absorb behind it. **q/dq**: float arithmetic",
    "between dequantize and quantize, the portable reference. integers: runs on the quantized",
    "values as they are. in a unit: runs as a part of the operator before it. float: stays float.",
    "dynamic: integers scaled to each call's range. weight only, float16: the weight alone is held",
    "in int8, in rows of 8 or 4 bits, or in half precision.",
    "An operator that is not listed is captured as a foreign call and stays float.",
    "",
)


_FX_OPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("conv1d/2d/3d, module or function", ("conv1d", "conv2d", "conv3d")),
    ("conv + relu, conv + bn + relu", ("conv1d_relu", "conv2d_relu", "conv3d_relu")),
    ("conv + add, conv + add + relu (two inputs)", ("conv2d_add", "conv2d_add_relu")),
    ("conv_transpose1d/2d/3d", tuple(f"conv_transpose{n}d" for n in (1, 2, 3))),
    ("linear, linear + bn1d", ("linear",)),
    ("linear + relu", ("linear_relu",)),
    ("linear + leaky_relu, linear + tanh", ("linear_leaky_relu", "linear_tanh")),
    ("add, add + relu", ("add", "add_relu")),
    ("mul, mul + relu", ("mul", "mul_relu")),
    ("add and mul with a number", ("add_number", "mul_number")),
    ("matmul, bmm, `@`", ("matmul", "bmm")),
    ("cat, stack", ("cat", "stack")),
    ("batch_norm alone, with relu", ("batch_norm", "batch_norm_relu")),
    ("layer_norm", ("layer_norm",)),
    ("group_norm, instance_norm", ("group_norm", "instance_norm")),
    ("sigmoid, hardsigmoid, tanh (known ranges)", ("sigmoid", "hardsigmoid", "tanh")),
    ("softmax (known range)", ("softmax",)),
    ("elu, leaky_relu, hardswish, prelu", ("elu", "leaky_relu", "hardswish", "prelu")),
    ("gelu, silu alone (float in torch.ao)", ("gelu", "silu")),
    ("relu in every spelling, relu6, clamp, hardtanh", ("relu", "clamp")),
    ("max pools", ("max_pool1d", "max_pool2d", "max_pool3d")),
    ("average pools, mean", ("avg_pool2d", "adaptive_avg_pool2d", "mean")),
    ("reshape, flatten, permute, squeeze, …", ("reshape", "flatten", "permute", "squeeze")),
    ("chunk, split, getitem (float in torch.ao)", ("chunk", "split", "getitem")),
    ("interpolate, pixel_shuffle, pad", ("interpolate", "pixel_shuffle", "pad")),
    ("linear, dynamic", ("linear_dynamic", "linear_relu_dynamic")),
    ("conv1d/2d/3d, dynamic", tuple(f"conv{n}d_dynamic" for n in (1, 2, 3))),
    (
        "embedding, embedding_bag, 8 and 4 bits",
        ("embedding_weight_only", "embedding_bag_weight_only"),
    ),
    ("linear, weight only", ("linear_weight_only",)),
    ("linear, float16 dynamic", ("linear_float16", "linear_relu_float16")),
    (
        "linear, float16 static",
        ("linear_float16_static", "linear_relu_float16_static"),
    ),
    (
        "add, mul, matmul, fixed ranges, averages, float16 static (reference form in both)",
        tuple(
            f"{name}_float16_static"
            for name in ("add", "mul", "matmul", "sigmoid", "tanh", "softmax", "clamp", "mean")
        ),
    ),
    ("LSTM, GRU, dynamic", ("lstm_dynamic", "gru_dynamic")),
    (
        "LSTMCell, GRUCell, RNNCell, dynamic",
        tuple(f"{name}_dynamic" for name in RECURRENT_CELLS),
    ),
    ("LSTM, GRU, float16", ("lstm_float16", "gru_float16")),
    (
        "LSTMCell, GRUCell, RNNCell, float16",
        tuple(f"{name}_float16" for name in RECURRENT_CELLS),
    ),
)
"""torch.ao's rows by the units of fqx that run them."""

_IN_FLOAT32 = "torch's kernels compute it in float32, so it pays for nobody who does not ask"

_WHY: Mapping[str, str] = MappingProxyType(
    {
        "conv + add, conv + add + relu (two inputs)": "torch has it for its engine onednn alone, "
        "whose kernel rearranges the weight in every call where the input has a zero point: one "
        "that asks takes it, the others a convolution and a sum",
        "linear + leaky_relu, linear + tanh": "torch has them for its engine onednn alone; "
        "elsewhere the linear and the function are two kernels on integers",
        "matmul, bmm, `@`": _IN_FLOAT32,
        "batch_norm alone, with relu": _IN_FLOAT32,
        "layer_norm": _IN_FLOAT32,
        "group_norm, instance_norm": _IN_FLOAT32,
        "softmax (known range)": _IN_FLOAT32,
        "elu, leaky_relu, hardswish, prelu": "several slopes are computed in float32, which pays "
        "for nobody who does not ask",
        "gelu, silu alone (float in torch.ao)": "a table of 256 integers is faster than float32 "
        "on plain integers of any size, on torch's quantized tensors only from some 60,000 on",
        "average pools, mean": "an average has a narrower range than its values, whose scale it "
        "would keep",
        "conv1d/2d/3d, dynamic": "torch's own saturate; onednn's, which run for the other "
        "engines, are not where qnnpack is",
    }
)
"""Why a row does not work everywhere, or only where a scheme asks for it."""

_SUPPORT_HEAD = (
    "# torch.ao's FX flow, row by row",
    "",
    NOTE,
    "",
    "What fqx's targets run of what torch's FX graph-mode quantization runs. *works*: an integer",
    "kernel; *when `lone`*: taken for schemes with `lone=True`, because alone it does not pay;",
    "*float*: stays float with a verdict that says so. What a row lacks has its reason at the end.",
    "",
)

_SORTS = (
    (
        "closer",
        "## Other bits than torch.ao\n\n"
        "The drop-in gives torch.ao's bits on the same engine in every row of its flow, with\n"
        "ranges as they were seen, and runs no fewer operators on integers. A test\n"
        "(`tests/compat/test_differential.py`) holds each row to that, and these to what is\n"
        "said of them here. `?` is any one character, `*` any number of them.\n\n"
        "Where fqx is closer to the float model:",
    ),
    ("wrong", "Where torch's kernel computes something else:"),
    ("fails", "Where torch.ao fails and fqx works:"),
)
"""The sorts of differences, and what is said of each."""

_SUPPORT_REST = (
    "## Different on purpose",
    "",
    "| torch.ao | fqx | why |",
    "|---|---|---|",
    "| light operators are int8 wherever they are matched | only between int8 neighbours, "
    "or `lone` | a quantize, a kernel and a dequantize cost more than the float operator "
    "|",
    "| `conv2d_add`, `linear_leaky_relu`, `linear_tanh` on the engine onednn | oneDNN's kernels on "
    "the integers, the same bits | torch's need their engine to be the global one in every call, "
    "which two threads cannot set |",
    "| dynamic convolutions (`quantized.conv2d_dynamic`) | onednn's kernels with float "
    "results | torch's write the result in the scale of the input, which saturates |",
    "| transposed convolutions | convolutions of the input with zeros between, but for "
    "qnnpack's of one and two dimensions | torch 2.13's are wrong: onednn's (x86 takes those "
    "too) from one call to the next, fbgemm's of two dimensions for windows of 2, qnnpack's "
    "of three everywhere |",
    "| dynamic linears of modules use 7 bits always | 8 bits where sums are exact | one "
    "bit more of accuracy for nothing |",
    "| one scale for all steps of a quantizable LSTM, whose states must be given | a scale for "
    "each step of `decompose_recurrent`, states as in the model | steps differ in range |",
    "| quantizable attention keeps its two products float | integers where a recipe asks, "
    "behind `decompose_attention` | there are kernels |",
    "| quantized bags always sum and forget `padding_idx` | every mode, and padding | "
    "they are wrong otherwise |",
    "| reference float16 weights are not rounded | rounded | reference and kernel agree |",
    "| float16 static rounds what shape operators and max pools read and give | only what "
    "computes | a value that only moves is as round as it was |",
    "| masks in front of a softmax are quantized with the scores, and histograms drop infinities | "
    "float from the mask to the softmax | one scale for both leaves nothing of the scores |",
    "| float values made of integers and constants alone are quantized | float | they are the same "
    "for any data, and often not finite |",
    "| weights of half precision beyond 65504 | clamped to it | infinity otherwise |",
    "",
    "## Not there yet",
    "",
    "| torch.ao | here | until then |",
    "|---|---|---|",
    "| packed sequences | not captured: a fault names the module | pad them, or keep the module "
    "whole with `leaves=` |",
    "| a dynamic scale for each token | per tensor only | static with smoothing keeps more |",
    "| quantization-aware training | `prepare_qat_fx` raises | – |",
    "",
    "What the drop-in does differently, and which misuses it names: "
    "[migration_fx.md](migration_fx.md).",
)


def main() -> None:
    """Write every generated page."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
