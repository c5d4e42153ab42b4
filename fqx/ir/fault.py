"""What can go wrong, as values.

Every public failure is a `Fault`: a kind from a closed list, the node it happened at with its
module path and the user's source line, the reason, and the next step to take.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from fqx.ir.names import NodeId, Path


class FaultKind(Enum):
    """The closed list of faults; `docs/faults.md` is generated from it."""

    # capture
    UNCAPTURABLE = "the model's code cannot be captured as a graph"
    MODEL_IN_TRAINING = "a module whose meaning depends on it is in training mode"
    BATCH_IS_FIXED = "the model fixes its batch size"
    AMBIENT_AUTOCAST = "capture was called, or the model runs, under autocast"
    CONTROL_FLOW = "the model branches on values in a way a graph cannot hold"
    UNFUNCTIONAL_WRITE = "an in-place write cannot be turned into a value"
    RANDOM_OP = "the model draws random numbers"
    UNCOPYABLE_MODEL = "the model's structure cannot be copied"
    UNINITIALIZED_PARAMETER = "a lazy module has not seen an input yet"
    UNKNOWN_LEAF = "a path given as a leaf names no module"
    STORAGE_CHANGED = "a shared weight was changed after capture"
    INPUT_DOES_NOT_FIT = "an input does not fit the signature"
    # graphs
    UNBOUND_NAME = "a node or weight is used that is not defined before it"
    DUPLICATE_NAME = "a name is defined twice"
    MALFORMED_NODE = "a node does not fit its operator's schema"
    TYPE_DISAGREES = "a type rule and the graph disagree"
    WRONG_STAGE = "a pass was given a graph of a stage it does not take"
    BROKEN_CONTRACT = "a pass produced a graph that breaks the spec of its stage"
    DIFF_DOES_NOT_FIT = "a diff was applied to a graph it was not made from"
    UNREADABLE_TEXT = "a text is not a program"
    OUT_OF_FUEL = "a rewrite did not come to rest"
    # recipes and plans
    UNMATCHED_RULE = "a recipe rule matches nothing"
    SHADOWED_RULE = "later rules take everything a recipe rule matches"
    BAD_RECIPE = "a recipe asks for something that does not exist"
    UNSUPPORTED_TARGET = "the target cannot run on this machine or with this graph"
    CONFLICTING_PLAN = "a plan contradicts itself or its graph"
    NO_BORDER = "an input or output cannot be exposed as integers"
    # calibration
    EMPTY_CALIBRATION = "the calibration set has no batches"
    EMPTY_BATCH = "a calibration batch holds no elements"
    BATCH_DOES_NOT_FIT = "a calibration batch does not fit the signature"
    NOT_FINITE = "an observed tensor holds NaN or infinity"
    MISSING_STATISTICS = "an observer saw no data"
    INTERRUPTED = "calibrating or saving was interrupted"
    CALIBRATION_FAILED = "the model raised during calibration"
    # kernels, modules
    NO_KERNEL = "the target has no kernel for a unit"
    NO_IMPLEMENTATION = "an operator cannot be executed here"
    MISSING_LEAF = "a leaf module was not handed in"
    STATE_DOES_NOT_FIT = "a state_dict does not fit the module"
    MISSING_PAYLOAD = "a weight's values are not loaded"
    # files
    UNREADABLE_FILE = "a file cannot be read or is truncated"
    CORRUPT_FILE = "a fingerprint or digest does not fit"
    UNKNOWN_VERSION = "a file was written by a format version this library does not know"
    UNLISTED_OP = "a file calls an operator that is not allowed"
    UNWRITABLE_FILE = "a file cannot be written"
    WIDER_MACHINE = "an artefact was made for a machine with more capable kernels"
    DIGEST_DIFFERS = "a replay or a pinned digest does not give the same digest"
    # command line
    BAD_ARGUMENT = "an argument names nothing that can be used"


@dataclass(frozen=True, slots=True)
class Fault:
    """One failure, with its place and its remedy.

    `kept` is what was done before it and can be taken up again (the statistics of an interrupted
    calibration); it takes no part in equality.
    """

    kind: FaultKind
    reason: str
    remedy: str = ""
    at: NodeId | None = None
    module: Path | None = None
    source: str | None = None
    detail: str = ""
    kept: object = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The kind as a name users can search for: `MissingStatistics`."""
        return "".join(word.capitalize() for word in self.kind.name.split("_"))

    def __str__(self) -> str:
        places = [
            f"node {self.at}" if self.at else "",
            f"module {self.module or '(root)'}" if self.module is not None else "",
            f"at {self.source}" if self.source else "",
        ]
        place = ", ".join(part for part in places if part)
        lines = [f"{self.name}: {self.reason}"]
        lines += [f"  {place}"] if place else []
        lines += [f"  next: {self.remedy}"] if self.remedy else []
        return "\n".join(lines)

    def located(self, at: NodeId, module: Path | None, source: str | None) -> Fault:
        """The same fault with its place filled in where it was open."""
        return replace(
            self,
            at=self.at or at,
            module=self.module if self.module is not None else module,
            source=self.source or source,
        )
