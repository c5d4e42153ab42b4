"""A report as text: rows for a table on the screen, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fqx.audit.profile import Profile, Total
from fqx.bench.report import Attributed, Report, Row, Status

COLUMNS = ("model", "contestant", "batch", "median ms", "quartiles", "faster", "SQNR dB", "remark")
RIGHT = (2, 3, 4, 5, 6)
"""The columns of numbers."""

TOTALS = ("group", "nodes", "ms", "share", "GMAC")
NODES = ("node", "module", "kernel", "ms", "share", "of peak")
"""The columns of `total_rows` and of `node_rows`."""

START, END = "<!-- fqx bench: begin -->", "<!-- fqx bench: end -->"
"""Between these lines of a page `into_page` puts its tables."""


def screen_rows(report: Report, threads: int) -> list[tuple[str, ...]]:
    """A row of text for every row with this number of threads."""
    return [_cells(report, row) for row in report.rows if row.threads == threads]


def _cells(report: Report, row: Row) -> tuple[str, ...]:
    faster, found = report.faster(row), row.seconds
    remark = row.note if row.status is Status.MEASURED else f"{row.status.value}: {row.note}"
    return (
        row.model,
        row.contestant,
        "as given" if row.batch is None else str(row.batch),
        milliseconds(found.median) if found else "",
        f"{milliseconds(found.lower)} to {milliseconds(found.upper)}" if found else "",
        f"{faster:.2f}x" if faster else "",
        "" if row.sqnr is None else decibels(row.sqnr),
        remark.rstrip(": "),
    )


def total_rows(found: Profile, totals: Iterable[Total]) -> list[tuple[str, ...]]:
    """A row for every total."""
    return [
        (
            total.name,
            str(total.nodes),
            milliseconds(total.seconds),
            f"{total.seconds / found.seconds:.1%}",
            f"{(total.int8_macs + total.float_macs) / 1e9:.3f}",
        )
        for total in totals
    ]


def node_rows(found: Profile, peak: float, most: int) -> list[tuple[str, ...]]:
    """A row for each of the `most` slowest nodes, with the part of the int8 peak they reach."""
    slowest = sorted(found.nodes, key=lambda node: -node.seconds)[:most]
    return [
        (
            node.node,
            node.module,
            node.kernel,
            milliseconds(node.seconds),
            f"{node.seconds / found.seconds:.1%}",
            f"{node.int8_macs / node.seconds / peak:.0%}" if node.int8_macs else "",
        )
        for node in slowest
    ]


def milliseconds(seconds: float) -> str:
    """Three digits or more."""
    value = seconds * 1e3
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def decibels(sqnr: float) -> str:
    """One digit behind the point, and a word where nothing differs."""
    return f"{sqnr:.1f}" if math.isfinite(sqnr) else "exact" if sqnr > 0 else "none"


def markdown(report: Report) -> str:
    """The report as Markdown: the machine, then a table for every number of threads."""
    lines = [f"{report.surroundings}. {report.rounds} rounds.", ""]
    if report.interrupted:
        lines += ["The run was interrupted; this is what it had measured.", ""]
    for threads in dict.fromkeys(row.threads for row in report.rows):
        lines += [f"{threads} thread{'s' * (threads > 1)}:", "", *_table(report, threads), ""]
    if report.profiles:
        lines += ["Where the time goes:", "", *_attributed(report.profiles), ""]
    return "\n".join(lines)


def _table(report: Report, threads: int) -> list[str]:
    rows = screen_rows(report, threads)
    return [
        f"| {' | '.join(COLUMNS)} |",
        f"|{'|'.join('---:' if at in RIGHT else '---' for at in range(len(COLUMNS)))}|",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
    ]


def _attributed(profiles: Iterable[Attributed]) -> list[str]:
    head = "| model | contestant | threads | int8 peak | int8 kernels | convolutions | groups |"
    rows = [
        f"| {item.model} | {item.contestant} | {item.threads} | {item.peak / 1e9:.0f} GMAC/s "
        f"| {item.utilisation:.0%} of peak | {item.convolutions:.0%} of peak "
        f"| {', '.join(_share(total, item.profile.seconds) for total in item.profile.groups())} |"
        for item in profiles
    ]
    return [head, "|---|---|---:|---:|---:|---:|---|", *rows]


def _share(total: Total, seconds: float) -> str:
    return f"{total.name} {total.seconds / seconds:.0%}" if seconds else total.name


def into_page(page: str, text: str) -> str:
    """The page with the text between its two marks; a page without marks is replaced."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        return f"{text}\n"
    return f"{before}{START}\n\n{text.strip()}\n\n{END}{after}"
