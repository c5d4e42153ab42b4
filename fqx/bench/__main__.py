"""Pass times for growing graphs and a deep chain, and what a trail holds in memory.

`python -m fqx.bench [picture]`; `fqx bench` measures what comes out of the passes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import fqx
from fqx.bench.curves import curves
from fqx.bench.memory import held, held_table
from fqx.bench.passes import Road, chain_seconds, road, table
from fqx.testing import zoo

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)


def main(args: Sequence[str] = ()) -> int:
    """Print the measurements, and draw them where a picture is named; nothing is checked."""
    print("Seconds of each pass over a float graph, on one batch")
    roads = [road(size) for size in SIZES]
    print(table(roads))
    if args:
        _draw(args[0], roads)
    deep = chain_seconds()
    print(f"\n{deep.name}: {deep.seconds:.1f} s, processor {deep.processor:.1f} s")
    pictures = zoo.pictures(1, 224, 0)
    model = zoo.seeded(zoo.resnet50, zoo.pictures(2, 224, 2)).eval()
    done = fqx.quantize(model, (pictures,), calibration=[pictures], progress=False).unwrap()
    print("\nWeights in the trail of ResNet-50")
    print(held_table(held(done.trail)))
    return 0


def _draw(path: str, roads: Sequence[Road]) -> None:
    try:
        curves(roads, path)
    except ModuleNotFoundError as missing:
        print(f"no picture: {missing}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
