"""`make bench`: pass times for growing graphs, a deep chain, and whole networks."""

from __future__ import annotations

import sys

from fqx.bench.networks import HEAD, rows
from fqx.bench.passes import chain_seconds, road, table

SIZES = (1_000, 3_000, 10_000)


def main() -> int:
    """Print the measurements; nothing is checked."""
    print("Seconds of each pass over a float graph, on one batch")
    print(table([road(size) for size in SIZES]))
    deep = chain_seconds()
    print(f"\n{deep.name}: {deep.seconds:.1f} s, processor {deep.processor:.1f} s")
    print("\nNetworks of the zoo, 1 × 3 × 224 × 224, one thread")
    print(HEAD)
    for row in rows():
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
