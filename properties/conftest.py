"""Hypothesis profiles: `ci` is quick and derandomized, `deep` draws new examples on every run.

`FQX_EXAMPLES` scales a law's number of examples in the deep profile; failures land in
`.hypothesis/`, so an interrupted deep run takes up its known failures again.
"""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, Phase, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=25, suppress_health_check=_QUIET
)
settings.register_profile(
    "deep",
    deadline=None,
    derandomize=False,
    max_examples=int(os.environ.get("FQX_EXAMPLES", "1000")),
    suppress_health_check=_QUIET,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    print_blob=True,
)
settings.load_profile(os.environ.get("FQX_PROFILE", "ci"))
torch.set_num_threads(1)
