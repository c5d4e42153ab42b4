"""Plain reimplementations of well-known architectures, small enough for tests.

Each is written from its paper with ordinary `nn.Module` code and public layers, takes its sizes as
arguments and runs on 32×32 or 64×64 images. `ZOO` lists one small instance of each, with weights
drawn from a seed and batch-norm statistics measured on pictures, so that values stay in a sane
range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fqx.testing.zoo.densenet import densenet
from fqx.testing.zoo.efficientnet import efficientnet
from fqx.testing.zoo.mobilenet_v2 import mobilenet_v2
from fqx.testing.zoo.mobilenet_v3 import mobilenet_v3_small
from fqx.testing.zoo.pictures import pictures
from fqx.testing.zoo.resnet import resnet18, resnet50
from fqx.testing.zoo.seeded import seeded
from fqx.testing.zoo.shufflenet_v2 import shufflenet_v2
from fqx.testing.zoo.vit import vit

__all__ = [
    "ZOO",
    "Specimen",
    "densenet",
    "efficientnet",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "pictures",
    "resnet18",
    "resnet50",
    "seeded",
    "shufflenet_v2",
    "vit",
]


@dataclass(frozen=True, slots=True)
class Specimen:
    """One model of the zoo: how to make it, the side of its square images, whether it is a CNN."""

    name: str
    make: Callable[[], nn.Module]
    side: int
    convolutional: bool = True

    def model(self, seed: int = 0) -> nn.Module:
        """The model in eval mode, its weights drawn from `seed`."""
        return seeded(self.make, self.images(64, seed + 1), seed)

    def images(self, count: int, seed: int = 0) -> Tensor:
        """Pictures, float32 [count, 3, side, side], drawn from `seed`."""
        return pictures(count, self.side, seed)


ZOO: tuple[Specimen, ...] = (
    Specimen("resnet18", lambda: resnet18(classes=10, width=16), 32),
    Specimen("resnet50", lambda: resnet50(classes=10, width=16), 32),
    Specimen("mobilenet_v2", lambda: mobilenet_v2(classes=10, width=0.35), 64),
    Specimen("mobilenet_v3_small", lambda: mobilenet_v3_small(classes=10, width=0.5), 64),
    Specimen("shufflenet_v2", lambda: shufflenet_v2(classes=10, widths=(24, 48, 96, 192)), 64),
    Specimen("densenet", lambda: densenet(classes=10, growth=8, blocks=(2, 4, 4)), 32),
    Specimen("efficientnet", lambda: efficientnet(classes=10, width=0.5, depth=0.5), 64),
    Specimen("vit", lambda: vit(classes=10, side=32, patch=8, dim=64, depth=3, heads=4), 32, False),
)
"""One small instance of each architecture."""
