"""The progress bar yields what it is given and is silent where nobody looks."""

from __future__ import annotations

import io
import sys

import pytest

from fqx.kit.progress import track


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("shown", [True, False])
def test_nothing_is_drawn_without_a_terminal(
    shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track(range(3), "work", shown)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    assert list(track(iter("ab"), "work")) == ["a", "b"]
    assert "work" in screen.getvalue()
