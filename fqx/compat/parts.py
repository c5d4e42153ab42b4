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

from fqx.compat.assignment import Assignment, any_of, assign, recipe_of
from fqx.compat.custom import Backend, PrepareConfig, Standalone, Swap
from fqx.compat.mapping import mapping_of
from fqx.ir.fault import Fault, FaultKind
from fqx.ir.graph import Graph
from fqx.ir.names import NodeId, Path
from fqx.ir.node import Node
from fqx.kit.frozen import Table, row
from fqx.kit.result import Failure, Result, Success, gather
from fqx.passes.decompose import decompose_recurrent
from fqx.passes.pipeline import Pipeline
from fqx.policy.recipe import Choice, Recipe, Rule, resolve
from fqx.policy.selectors import Selector, everything, path
from fqx.policy.target import Target
from fqx.policy.units import Mode


@dataclass(frozen=True, slots=True)
class Region:
    """A standalone module, or with an empty path the model: its config, and its own mapping and
    backend or None for those of what is around it."""

    path: str
    config: PrepareConfig
    mapping: Any = None
    backend: Backend | None = None

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

    Faults: BAD_RECIPE for a standalone module that is not there, an observed class without
    `from_float`, or a replaced LSTM that chooses the observers of its parts itself.
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
    inner = [
        Region(
            at,
            entry.prepare or PrepareConfig(),
            entry.mapping and mapping_of(entry.mapping),
            entry.backend,
        )
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


@dataclass(frozen=True, slots=True)
class Site:
    """A model with its parts and its graph, and what is asked of the whole."""

    parts: Parts
    mapping: Any
    backend: Backend
    model: nn.Module
    graph: Graph
    target: Target
    leveling: Any = None

    def assignment(self, region: Region) -> Result[Assignment, Fault]:
        """What a region's nodes get; faults as of `assign`."""
        above = region.path
        regions = (item.path for item in self.parts.regions if item.path)
        replaced = (*self.parts.customs, *self.parts.layers, *regions)
        return assign(
            self.mapping_of(region),
            self.backend_of(region),
            self.model.get_submodule(above),
            _relative(self.graph, above),
            self.target,
            _below(self.parts.kept, above),
            None if above else self.leveling,
            _below(replaced, above),
        )

    def mapping_of(self, region: Region) -> Any:
        """The region's own mapping, else its QConfig around it for everything, as in torch.ao."""
        from torch.ao.quantization import QConfigMapping

        if not region.path or region.mapping is not None:
            return region.mapping or self.mapping
        return QConfigMapping().set_global(self.qconfig_at(region.path))

    def backend_of(self, region: Region) -> Backend:
        """The region's own backend, else that of what is around it."""
        if region.backend is not None or not region.path:
            return region.backend or self.backend
        return self.backend_of(_region_of(self.parts.regions, region.path))

    def qconfig_at(self, at: str) -> Any:
        """The QConfig that the module at a path gets from the region around it."""
        outer = _region_of(self.parts.regions, at)
        (inner,) = _below((at,), outer.path)
        nodes = [
            node.id
            for node in _relative(self.graph, outer.path)
            if any(path == inner for path, _ in node.origin.scope)
        ]
        chosen = self.assignment(outer).map(lambda found: found.chosen).value_or({})
        return next((chosen[name].qconfig for name in nodes if name in chosen), None)


def schemes_of_parts(site: Site, whole: Assignment) -> Result[Recipe, Fault]:
    """The recipe of a mapping for a graph, with what the parts of the model have instead.

    `whole` is the assignment of the model itself. Faults as of `recipe_of`, and BAD_RECIPE for a
    replaced module whose QConfig is not static.
    """
    root, *inner = site.parts.regions
    made = _resolved(site, root, whole)
    for region in inner:
        made = made.bind(
            lambda held, region=region: (  # type: ignore[misc]
                site.assignment(region)
                .bind(lambda found: _resolved(site, region, found))
                .map(lambda told: {**held, **told})
            )
        )
    return made.bind(lambda held: _with_parts(site.parts, held, site.graph)).map(_recipe)


def _resolved(
    site: Site, region: Region, assignment: Assignment
) -> Result[dict[NodeId, Choice], Fault]:
    graph = _relative(site.graph, region.path)
    return recipe_of(site.mapping_of(region), assignment).bind(
        lambda recipe: resolve(recipe, graph).map(
            lambda told: {
                name: _at_home(choice, region.home) for name, choice in told.choices.items()
            }
        )
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
    """One rule for each choice; the most frequent one is that of everything."""
    groups: defaultdict[Choice, list[NodeId]] = defaultdict(list)
    for name, choice in choices.items():
        groups[choice].append(name)
    rules: list[Rule] = []
    for choice in sorted(groups, key=lambda held: -len(groups[held])):
        select = any_of(groups[choice]) if rules else everything()
        rules.append(Rule(select, choice.scheme, "QConfigMapping", note=choice.rule))
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
