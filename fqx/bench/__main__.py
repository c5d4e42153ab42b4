"""Pass times for growing graphs and a deep chain; `fqx bench` measures what comes out."""

from __future__ import annotations

import sys

from fqx.bench.passes import chain_seconds, road, table

SIZES = (1_000, 3_000, 10_000)


def main() -> int:
    """Print the measurements; nothing is checked."""
    print("Seconds of each pass over a float graph, on one batch")
    print(table([road(size) for size in SIZES]))
    deep = chain_seconds()
    print(f"\n{deep.name}: {deep.seconds:.1f} s, processor {deep.processor:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
