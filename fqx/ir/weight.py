"""Tensors of a graph, seen from outside: equal when their fingerprints are."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from fqx.ir.arg import DType, Json, canonical
from fqx.ir.names import Digest


class Role(Enum):
    """What a weight is for the module it came from."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    STATISTIC = "statistic"


class Layout(Enum):
    """Memory format of a weight."""

    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"
    CHANNELS_LAST_3D = "channels_last_3d"


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor by dtype, shape, layout, role and SHA-256 of its content.

    `payload` is the tensor itself, opaque here; it may be absent (a detached artefact) and takes no
    part in equality. Nor does `shared`: that the payload is the caller's own tensor, lent and not
    copied, whose values may change. `fqx.num.tensors` makes weights of tensors and reads them.
    """

    dtype: DType
    shape: tuple[int, ...]
    role: Role
    fingerprint: Digest
    layout: Layout = Layout.CONTIGUOUS
    persistent: bool = True
    requires_grad: bool = False
    payload: object = field(default=None, compare=False, repr=False)
    shared: bool = field(default=False, compare=False, repr=False)
    _code: list[str] = field(default_factory=list, init=False, compare=False, repr=False)

    def to_json(self) -> Json:
        """Everything but the payload and whose it is."""
        return {
            "dtype": self.dtype.value,
            "shape": list(self.shape),
            "role": self.role.value,
            "fingerprint": self.fingerprint,
            "layout": self.layout.value,
            "persistent": self.persistent,
            "requires_grad": self.requires_grad,
        }

    @property
    def code(self) -> str:
        """Canonical encoding; computed once."""
        if not self._code:
            self._code.append(canonical(self.to_json()))
        return self._code[0]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A module kept whole: the graph holds its class and state fingerprint, never its code.

    `shared` as in `Weight`: the payload is the caller's own module.
    """

    type: str
    fingerprint: Digest
    reason: str
    payload: object = field(default=None, compare=False, repr=False)
    shared: bool = field(default=False, compare=False, repr=False)

    def to_json(self) -> Json:
        """Everything but the payload and whose it is."""
        return {"type": self.type, "fingerprint": self.fingerprint, "reason": self.reason}
