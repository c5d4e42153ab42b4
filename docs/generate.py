"""Writes the pages of docs/ that are made from tables; a test checks that they are up to date.

python docs/generate.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fqx.ir.fault import FaultKind
from fqx.ops.catalogue import OPS
from fqx.ops.schema import Op
from fqx.policy.target import Target
from fqx.policy.units import Mode
from fqx.targets.native import native
from fqx.targets.onednn import onednn
from fqx.targets.reference import reference

DOCS = Path(__file__).resolve().parent
SOURCES = DOCS.parent / "fqx"
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
    return MappingProxyType({"faults.md": faults(), "matrix.md": matrix()})


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


def main() -> None:
    """Write every generated page."""
    for name, text in pages().items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
