"""The documentation says what the code does: generated pages, links, examples, pins."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

import fqx

ROOT = Path(__file__).resolve().parents[1]
PAGES = tuple(sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))))


def generated() -> Mapping[str, str]:
    """The texts of the generated pages, by file name."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: Mapping[str, str] = module.pages()
    return pages


def page_name(path: Path) -> str:
    """A page's path below the repository."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("name", ["defects.md", "faults.md", "matrix.md", "support.md"])
def test_a_generated_page_is_up_to_date(name: str) -> None:
    written = (ROOT / "docs" / name).read_text()
    assert written == generated()[name], "run `make docs`"


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if not target.startswith(("https://", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("0*.md")}


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {"__name__": "readme"})
    accuracy = float(capsys.readouterr().out.splitlines()[0])
    assert accuracy > 0.8


def test_the_examples_of_the_reports_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "reports.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "reports.md", "exec"), {"__name__": "reports"})
    shown = capsys.readouterr().out
    assert "Comparison isolated calibrated" in shown
    assert "Advice on 10 operators" in shown
    assert shown.splitlines()[-1] == "fqx.int8_static()"


def test_public_names_have_docstrings() -> None:
    for name in fqx.__all__:
        if name != "__version__":
            text = getattr(fqx, name).__doc__
            assert text, name


def test_every_dependency_is_pinned_and_the_pins_are_installed() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = (*project["dependencies"], *extras["demo"], *extras["test"], *extras["docs"])
    for requirement in wanted:
        match = re.match(r"[\w-]+", requirement)
        assert match is not None
        name = match.group()
        assert name in pins, name
        assert version(name).split("+")[0] == pins[name], name


def test_the_makefile_has_the_targets_the_guide_names() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert {"demo", "test", "lint", "types", "properties", "bench", "clean", "docs"} <= targets
    guide = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
    assert set(re.findall(r"^make (\w+)", guide, re.MULTILINE)) <= targets


def test_the_examples_of_deploying_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "deploy"}
    for block in blocks:
        exec(compile(block, "deploy.md", "exec"), names)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
