"""A picture of a report: latency against SQNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fqx.bench.report import Report, Row
from fqx.kit.files import replacing

MARKS = "os^vDP*Xp<>hd"
WIDTH, HEIGHT = 5.0, 4.0
"""Inches of one panel."""


def plot(report: Report, path: str) -> None:
    """Write a picture whose format is that of the path's suffix (.png, .svg, .pdf).

    A panel for every model, number of threads and batch size; a point for every contestant that has
    both numbers, lines over its quartiles. An exact contestant stands at the upper border. Raises
    ModuleNotFoundError without matplotlib, ValueError for a suffix it does not know, OSError.
    """
    panels = _panels(report)
    columns = min(3, len(panels)) or 1
    lines = max(1, math.ceil(len(panels) / columns))
    figure = sheet(columns, lines)
    names = list(dict.fromkeys(row.contestant for row in report.rows))
    for index, (title, rows) in enumerate(panels.items()):
        _panel(figure.add_subplot(lines, columns, index + 1), title, rows, names)
    save(figure, path)


def sheet(columns: int, lines: int) -> Any:
    """An empty figure with room for so many panels; ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str) -> None:
    """Write a figure whole or not at all; ValueError for a suffix it does not know, OSError."""
    with replacing(path) as made:
        figure.savefig(made, dpi=120)


def _panels(report: Report) -> dict[str, list[Row]]:
    panels: dict[str, list[Row]] = {}
    for row in report.rows:
        size = "as given" if row.batch is None else f"batch {row.batch}"
        title = f"{row.model}, {size}, {row.threads} thread{'s' * (row.threads > 1)}"
        panels.setdefault(title, [])
        if row.seconds is not None and row.sqnr is not None:
            panels[title].append(row)
    return panels


def _panel(axes: Any, title: str, rows: Sequence[Row], names: Sequence[str]) -> None:
    top = max((row.sqnr for row in rows if row.sqnr and row.sqnr < CLEAR), default=40.0)
    roof = 1.15 * max(top, 10.0)
    for row in rows:
        found, sqnr = row.seconds, row.sqnr
        if found is None or sqnr is None:
            continue
        at, mark = names.index(row.contestant), MARKS[names.index(row.contestant) % len(MARKS)]
        height = min(max(sqnr, -10.0), roof)
        axes.errorbar(
            [found.median * 1e3],
            [height],
            xerr=[[(found.median - found.lower) * 1e3], [(found.upper - found.median) * 1e3]],
            fmt=mark,
            color=f"C{at % 10}",
            label=row.contestant,
        )
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(_digits)
    axes.set_title(title)
    axes.set_xlabel("ms a call: median and quartiles")
    axes.set_ylabel(f"SQNR in dB ({CLEAR:.0f} and more at the upper border)")
    axes.grid(visible=True, alpha=0.3)
    if rows:
        axes.legend(fontsize="x-small")


def _digits(value: float, _: object) -> str:
    """A tick of the logarithmic axis: the first digits 1, 2, 3 and 5 are labelled."""
    return f"{value:g}" if f"{value:e}"[0] in "1235" else ""


CLEAR = 80.0
"""From here on outputs differ by float32 rounding alone, and the scale stops."""
