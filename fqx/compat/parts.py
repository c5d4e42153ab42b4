"""The parts of a model that a prepare config singles out: standalone modules, which are quantized
by themselves, and modules that others are put in the place of.

torch.ao's own replacements for LSTM and attention are what fqx makes of the layers themselves, so
those stay in the program; every other class is kept whole and its observed form runs in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fqx.compat.assignment import any_of, asked_of, recipe_of
from fqx.compat.custom import PrepareConfig, Standalone, Swap, is_stock
from fqx.compat.mapping import mapping_of
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node
from fqx.kit.frozen import Table, row
from fqx.kit.result import Failure, Result, Success, gather
from fqx.passes.decompose import decompose_recurrent
from fqx.passes.pipeline import Pipeline
from fqx.policy.recipe import Choice, Recipe, Rule, Scheme, resolve
from fqx.policy.selectors import Selector, everything, path
from fqx.policy.units import Mode


@dataclass(frozen=True, slots=True)
class Region:
    """A standalone module, or with an empty path the model: its config, and its own mapping or
    None for that of what is around it."""

    path: str
    config: PrepareConfig
    mapping: Any = None

    @property
    def home(self) -> str:
        """The module's path where values are float at its border; empty where integers pass."""
        passes = self.config.quantized_inputs or self.config.quantized_outputs
        return "" if passes else self.path


@dataclass(frozen=True, slots=True)
class Parts:
    """What a config singles out: `leaves` are kept whole, `customs` of them replaced; `layers` are
    written out, `attentions` have float products."""

    regions: tuple[Region, ...]
    leaves: tuple[str, ...]
    customs: Mapping[str, Swap]
    layers: tuple[str, ...]
    attentions: tuple[str, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """Paths of the modules that torch.ao does not look into."""
        return (*self.leaves, *(region.path for region in self.regions if region.path))

    def rewrites(self) -> Pipeline:
        """The passes behind `fuse`."""
        if not self.layers:
            return Pipeline()
        return Pipeline((decompose_recurrent(_paths(self.layers)),))


def parts_of(config: PrepareConfig, model: nn.Module) -> Result[Parts, Fault]:
    """What a config singles out in a model.

    Faults: BAD_RECIPE for a standalone module that is not there, a backend of its own that is none
    of torch's, an observed class without `from_float`, or a replaced LSTM that chooses the
    observers of its parts itself.
    """
    return _regions(Region("", config), model).bind(lambda found: _parts(found, model))


def _regions(outer: Region, model: nn.Module) -> Result[tuple[Region, ...], Fault]:
    chosen: dict[str, Standalone] = {}
    named = {entry.select: entry for entry in outer.config.standalone}
    inside = _inside(model, outer.path)
    for at, module in inside:
        entry = named.get(at[len(outer.path) :].lstrip("."), named.get(type(module)))
        if entry is not None and not any(at.startswith(f"{above}.") for above in chosen):
            chosen[at] = entry
    absent = [key for key in named if isinstance(key, str) and named[key] not in chosen.values()]
    if absent:
        return Failure(_bad(f"there is no module {absent[0]!r} to be standalone"))
    odd = [entry.backend for entry in chosen.values() if entry.backend is not None]
    unknown = next((backend for backend in odd if not is_stock(backend)), None)
    if unknown is not None:
        return Failure(_bad(f"the backend {unknown.name!r} of a standalone module is not torch's"))
    inner = [
        Region(at, entry.prepare or PrepareConfig(), entry.mapping and mapping_of(entry.mapping))
        for at, entry in chosen.items()
    ]
    return gather(_regions(region, model) for region in inner).map(
        lambda found: (outer, *(region for listed in found for region in listed))
    )


def _inside(model: nn.Module, above: str) -> list[tuple[str, nn.Module]]:
    """The modules below a path, outermost first."""
    listed = model.named_modules(remove_duplicate=False)
    before = f"{above}." if above else ""
    return [
        (at, module) for at, module in listed if at.startswith(before) and at not in ("", above)
    ]


def _parts(regions: tuple[Region, ...], model: nn.Module) -> Result[Parts, Fault]:
    from torch.ao.nn import quantizable

    leaves: list[str] = []
    customs: dict[str, Swap] = {}
    layers: list[str] = []
    attentions: list[str] = []
    for at, module in model.named_modules(remove_duplicate=False):
        region = _region_of(regions, at)
        if not at or any(at.startswith(f"{leaf}.") for leaf in leaves):
            continue
        inner = at[len(region.path) :].lstrip(".")
        swap = next((it for it in region.config.observed if type(module) is it.given), None)
        if inner and region.config.is_leaf(inner, module):
            leaves.append(at)
        elif swap is not None and issubclass(swap.made, quantizable.LSTM):
            if _maker(swap.made) is not _maker(quantizable.LSTM):
                return Failure(_own_observers(swap))
            layers.append(at)
        elif swap is not None and issubclass(swap.made, quantizable.MultiheadAttention):
            attentions.append(at)
        elif swap is not None:
            if not hasattr(swap.made, "from_float"):
                return Failure(_bad(f"{swap.made.__qualname__} has no from_float"))
            leaves.append(at)
            customs[at] = swap
        elif isinstance(module, nn.MultiheadAttention):
            attentions.append(at)
    for region in regions:
        for name in region.config.leaf_names:
            full = f"{region.path}.{name}" if region.path else name
            if full not in leaves:
                leaves.append(full)
    return Success(Parts(regions, tuple(leaves), customs, tuple(layers), tuple(attentions)))


def _maker(kind: Any) -> object:
    """The function behind the class's `from_float`."""
    return kind.from_float.__func__


def _region_of(regions: tuple[Region, ...], at: str) -> Region:
    """The innermost region around a module, which is not its own region's."""
    around = [region for region in regions if not region.path or at.startswith(f"{region.path}.")]
    return max(around, key=lambda region: len(region.path))


def schemes_of_parts(
    parts: Parts, mapping: Any, model: nn.Module, graph: Graph
) -> Result[Recipe, Fault]:
    """The recipe of a mapping for a graph, with what the parts of the model have instead.

    Faults as of `recipe_of`, and BAD_RECIPE for a replaced module whose QConfig is not static.
    """
    made: Result[dict[NodeId, Choice], Fault] = Success({})
    for region in parts.regions:
        made = made.bind(
            lambda held, region=region: _in_region(  # type: ignore[misc]
                _Site(parts, mapping, model, graph), region, held
            )
        )
    return made.bind(lambda held: _with_parts(parts, held, graph)).map(_recipe)


def qconfig_at(parts: Parts, mapping: Any, model: nn.Module, graph: Graph, at: str) -> Any:
    """The QConfig of the module kept whole at a path; None leaves it as it is."""
    site = _Site(parts, mapping, model, graph)
    return site.asked(_region_of(parts.regions, at), at)


@dataclass(frozen=True, slots=True)
class _Site:
    """A model with its parts, its graph and its mapping."""

    parts: Parts
    mapping: Any
    model: nn.Module
    graph: Graph

    def mapping_of(self, region: Region) -> Any:
        """The region's own mapping, else its QConfig around it for everything, as in torch.ao."""
        from torch.ao.quantization import QConfigMapping

        if not region.path or region.mapping is not None:
            return region.mapping or self.mapping
        outer = _region_of(self.parts.regions, region.path)
        return QConfigMapping().set_global(self.asked(outer, region.path))

    def inner(self, region: Region) -> tuple[nn.Module, Graph, tuple[str, ...], tuple[str, ...]]:
        """The region's module, its nodes, and paths from it on: kept whole, and replaced."""
        parts, above = self.parts, region.path
        replaced = (*parts.customs, *parts.layers)
        graph = _relative(self.graph, above)
        module = self.model.get_submodule(above)
        return module, graph, _below(parts.kept, above), _below(replaced, above)

    def asked(self, region: Region, at: str) -> Any:
        """The QConfig that the module at a path gets from the region around it."""
        module, graph, kept, replaced = self.inner(region)
        (inner,) = _below((at,), region.path)
        told = asked_of(self.mapping_of(region), module, graph, kept, replaced)
        nodes = (node.id for node in graph if any(where == inner for where, _ in node.origin.scope))
        return told.map(lambda held: next((held[name].qconfig for name in nodes), None)).value_or(
            None
        )


def _in_region(
    site: _Site, region: Region, held: dict[NodeId, Choice]
) -> Result[dict[NodeId, Choice], Fault]:
    module, graph, kept, replaced = site.inner(region)
    recipe = recipe_of(site.mapping_of(region), module, graph, kept, replaced)
    return recipe.bind(lambda found: resolve(found, graph)).map(
        lambda told: {
            **held,
            **{name: _at_home(choice, region.home) for name, choice in told.choices.items()},
        }
    )


def _below(paths: tuple[str, ...], above: str) -> tuple[str, ...]:
    """Those of the paths that lie below one, from it on."""
    before = f"{above}." if above else ""
    return tuple(at[len(before) :] for at in paths if at.startswith(before))


def _at_home(choice: Choice, home: str) -> Choice:
    if choice.scheme is None:
        return choice
    return replace(choice, scheme=replace(choice.scheme, home=home))


def _relative(graph: Graph, above: str) -> Graph:
    """The nodes of a module as that module's own program would name their places."""
    if not above:
        return graph
    inner = [node for node in graph if any(at == above for at, _ in node.origin.scope)]
    moved = {node.id: _moved(node, above) for node in inner}
    return replace(graph, nodes=Table(moved), order=row(moved))


def _moved(node: Node, above: str) -> Node:
    scope = tuple(
        (Path(at[len(above) :].lstrip(".")), kind)
        for at, kind in node.origin.scope
        if at == above or at.startswith(f"{above}.")
    )
    return replace(node, origin=replace(node.origin, scope=scope))


def _with_parts(
    parts: Parts, held: dict[NodeId, Choice], graph: Graph
) -> Result[dict[NodeId, Choice], Fault]:
    made = dict(held)
    for node in graph:
        choice = made.get(node.id)
        if choice is None or choice.scheme is None:
            continue
        if node.op == "leaf" and node.attrs["path"] in parts.customs:
            if choice.scheme.mode is not Mode.STATIC:
                return Failure(_not_static(str(node.attrs["path"])))
            made[node.id] = replace(choice, scheme=replace(choice.scheme, custom=True))
        elif node.op != "linear" and _is_in(node, parts.attentions):
            # torch.ao's attention multiplies and normalizes floats; masks hold infinities
            made[node.id] = replace(choice, scheme=None)
    return Success(made)


def _is_in(node: Node, paths: tuple[str, ...]) -> bool:
    return bool(paths) and any(at in paths for at, _ in node.origin.scope)


def _recipe(choices: Mapping[NodeId, Choice]) -> Recipe:
    """One rule for each scheme; the most frequent one is that of everything."""
    groups: defaultdict[Scheme | None, list[NodeId]] = defaultdict(list)
    for name, choice in choices.items():
        groups[choice.scheme].append(name)
    ordered = sorted(groups, key=lambda scheme: -len(groups[scheme]))
    rules = [Rule(everything(), scheme, "QConfigMapping") for scheme in ordered[:1]]
    rules += [Rule(any_of(groups[scheme]), scheme, "QConfigMapping") for scheme in ordered[1:]]
    return Recipe(tuple(rules))


def _paths(listed: tuple[str, ...]) -> Selector:
    first, *rest = map(path, listed)
    for other in rest:
        first = first | other
    return first


def _own_observers(swap: Swap) -> Fault:
    return _bad(
        f"{swap.made.__qualname__}.from_float chooses the observers of the parts of an LSTM, "
        "which is not read: map to torch.ao.nn.quantizable.LSTM, or give the parts rules of an "
        "fqx recipe behind decompose_recurrent"
    )


def _not_static(at: str) -> Fault:
    return _bad(f"{at} is replaced for static quantization, and its QConfig is not static")


def _bad(reason: str) -> Fault:
    return Fault(
        FaultKind.BAD_RECIPE, reason, "see torch.ao.quantization.fx.custom_config for its parts"
    )
