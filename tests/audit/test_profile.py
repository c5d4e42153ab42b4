"""A profile names every call of a program, and what it adds up to."""

from __future__ import annotations

from fqx.audit.macs import count_macs
from fqx.audit.profile import profile
from fqx.edge.materialize import materialize
from fqx.ir.names import NodeId
from fqx.passes.lower import lower
from fqx.targets.onednn import onednn
from fqx.testing.small import batches, quantized_trail


def test_a_profile_holds_every_node_with_its_work() -> None:
    trail = lower(onednn()).run(quantized_trail()).unwrap()
    module = materialize(trail.graph).unwrap()
    x = batches()[0]
    found = profile(module, (x,), walks=3)
    ids = [node.node for node in found.nodes]
    assert ids == [str(node.id) for node in trail.graph if node.op != "input"]
    assert (found.walks, found.seconds > 0, found.whole > 0) == (3, True, True)
    whole = count_macs(module, (x,))
    assert sum(node.int8_macs for node in found.nodes) == whole.int8
    assert sum(node.float_macs for node in found.nodes) == whole.floating
    conv = next(node for node in found.nodes if node.node == "conv")
    assert (conv.module, conv.kernel) == ("conv", trail.graph.nodes[NodeId("conv")].op)
    assert conv.group == "int8"
    assert {total.name for total in found.groups()} == {"quantize", "dequantize", "int8", "other"}
    assert sum(total.nodes for total in found.kernels()) == sum(
        total.nodes for total in found.groups()
    )
