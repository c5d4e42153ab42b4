"""A file is the old one or the whole new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from fqx.kit.files import replacing


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    place.write_text("old")
    with replacing(place) as made:
        assert made.suffix == ".txt"
        made.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new"
    with pytest.raises(KeyboardInterrupt):
        _broken_off(place)
    assert place.read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


def _broken_off(place: Path) -> None:
    with replacing(place) as made:
        made.write_text("half")
        raise KeyboardInterrupt
