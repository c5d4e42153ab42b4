"""Hypothesis strategies: arguments for every aten overload the catalogue can spell.

`arguments(name)` draws what a call of the overload may be given, by schema name; what it leaves out
takes the schema's default. Tensors are small and may hold NaN, infinities and −0.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from hypothesis import strategies as st

Arguments: TypeAlias = dict[str, object]

FLOATS: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTS: Final = (torch.int64, torch.int32, torch.int8, torch.uint8)
SINGLE: Final = (torch.float32, torch.float64)
NUMBERS: Final = (torch.float32, torch.float64, torch.int64)
ANY: Final = (torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool)


@dataclass(frozen=True, slots=True)
class Draw:
    """A draw in progress, with the vocabulary the makers below are written in."""

    draw: st.DrawFn

    def integer(self, least: int, most: int) -> int:
        """An int within bounds."""
        return self.draw(st.integers(least, most))

    def flag(self) -> bool:
        """True or False."""
        return self.draw(st.booleans())

    def pick(self, *options: object) -> object:
        """One of the options."""
        return self.draw(st.sampled_from(options))

    def kind(self, kinds: Sequence[torch.dtype]) -> torch.dtype:
        """One of the dtypes."""
        return self.draw(st.sampled_from(kinds))

    def shape(self, least: int = 0, most: int = 4, side: int = 4) -> list[int]:
        """Sizes of at least one."""
        count = self.integer(least, most)
        return [self.integer(1, side) for _ in range(count)]

    def axis(self, rank: int) -> int:
        """An axis, counted from either end."""
        return self.integer(-rank, rank - 1)

    def axes(self, rank: int, least: int = 0) -> list[int]:
        """Different axes, counted from either end."""
        chosen = self.draw(st.lists(st.integers(0, rank - 1), min_size=least, unique=True))
        return [axis - rank if self.flag() else axis for axis in chosen]

    def number(self) -> float:
        """A Python number: an int or a short float."""
        return self.draw(st.one_of(st.integers(-3, 3), st.integers(-12, 12).map(lambda n: n / 4)))

    def tensor(
        self, shape: Sequence[int], kinds: Sequence[torch.dtype] = SINGLE, odd: bool = True
    ) -> torch.Tensor:
        """A tensor of one of the dtypes; `odd` allows NaN, infinities and −0.0."""
        return self.of(shape, self.kind(kinds), odd)

    def of(self, shape: Sequence[int], kind: torch.dtype, odd: bool = True) -> torch.Tensor:
        """A tensor of this dtype."""
        seed = torch.Generator().manual_seed(self.integer(0, 2**16))
        if kind is torch.bool:
            return torch.randint(0, 2, tuple(shape), generator=seed).to(torch.bool)
        if not kind.is_floating_point:
            low = 0 if kind is torch.uint8 else -5
            return torch.randint(low, 6, tuple(shape), generator=seed).to(kind)
        made = (torch.randn(tuple(shape), generator=seed) * 2).to(kind)
        flat = made.reshape(-1)
        if odd and flat.numel() and self.integer(0, 4) == 0:
            flat[self.integer(0, flat.numel() - 1)] = self.draw(
                st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.0, 0.0])
            )
        return made

    def indices(self, shape: Sequence[int], below: int) -> torch.Tensor:
        """int64 indices below a bound."""
        seed = torch.Generator().manual_seed(self.integer(0, 2**16))
        return torch.randint(0, below, tuple(shape), generator=seed)

    def partner(self, shape: Sequence[int]) -> list[int]:
        """A shape that broadcasts with `shape`."""
        tail = list(shape)[self.integer(0, len(shape)) :] if shape else []
        return [1 if self.integer(0, 3) == 0 else side for side in tail]


Maker: TypeAlias = Callable[[Draw], Arguments]


def _unary(kinds: Sequence[torch.dtype], **more: Callable[[Draw], object]) -> Maker:
    def make(d: Draw) -> Arguments:
        return {"self": d.tensor(d.shape(), kinds), **{k: of(d) for k, of in more.items()}}

    return make


def _positive(d: Draw) -> float:
    return d.integer(1, 8) / 4


def _pair(kinds: Sequence[torch.dtype], other: str = "other") -> Maker:
    """Two tensors that broadcast, of dtypes of their own; one may have no axes."""

    def make(d: Draw) -> Arguments:
        shape = d.shape()
        return {"self": d.tensor(shape, kinds), other: d.tensor(d.partner(shape), kinds)}

    return make


def _with_number(kinds: Sequence[torch.dtype], other: str = "other") -> Maker:
    return lambda d: {"self": d.tensor(d.shape(), kinds), other: d.number()}


def _scaled(inner: Maker) -> Maker:
    def make(d: Draw) -> Arguments:
        return {**inner(d), "alpha": d.pick(1, 1, 2, 3)}

    return make


def _number_first(kinds: Sequence[torch.dtype], other: str = "other") -> Maker:
    return lambda d: {"self": d.number(), other: d.tensor(d.shape(), kinds)}


def _rounded(inner: Maker) -> Maker:
    return lambda d: {**inner(d), "rounding_mode": d.pick(None, "floor", "trunc")}


def _ints(inner: Maker) -> Maker:
    """Bitwise operators take integers only."""

    def make(d: Draw) -> Arguments:
        made = inner(d)
        return {k: int(v) if isinstance(v, float) else v for k, v in made.items()}

    return make


# -- convolutions and products


def _conv(count: int, transposed: bool = False) -> Maker:
    def make(d: Draw) -> Arguments:
        groups, kind = d.integer(1, 2), d.kind(SINGLE)
        inner, outer = groups * d.integer(1, 2), groups * d.integer(1, 2)
        sides = [d.integer(4, 6) for _ in range(count)]
        kernel = [d.integer(1, 3) for _ in range(count)]
        rows = [inner, outer // groups] if transposed else [outer, inner // groups]
        batch = [d.integer(1, 3)] if d.integer(0, 4) else []
        made: Arguments = {
            "input": d.of([*batch, inner, *sides], kind, odd=False),
            "weight": d.of([*rows, *kernel], kind, odd=False),
            "bias": d.of([outer], kind, odd=False) if d.flag() else None,
            "stride": [d.integer(1, 2) for _ in range(count)] if d.flag() else [d.integer(1, 2)],
            "padding": [d.integer(0, 2) for _ in range(count)],
            "dilation": [d.integer(1, 2)] * count,
            "groups": groups,
        }
        if transposed:
            made |= {"stride": [2] * count, "output_padding": [d.integer(0, 1)] * count}
        return made

    return make


def _padded(count: int) -> Maker:
    def make(d: Draw) -> Arguments:
        made = _conv(count)(d)
        same = d.flag()
        return {**made, "padding": "same" if same else "valid", **({"stride": [1]} if same else {})}

    return make


def _convolution(d: Draw) -> Arguments:
    transposed, count = d.flag(), d.integer(1, 2)
    made = _conv(count, transposed)(d)
    x = made["input"]
    if isinstance(x, torch.Tensor) and x.dim() == count + 1:
        made["input"] = x.unsqueeze(0)
    made["stride"] = [2] * count
    flags = {"benchmark": False, "deterministic": False, "cudnn_enabled": True, "allow_tf32": True}
    return {"output_padding": [0] * count, **made, "transposed": transposed, **flags}


def _linear(d: Draw) -> Arguments:
    kind, inner, outer = d.kind(SINGLE), d.integer(1, 4), d.integer(1, 4)
    return {
        "input": d.of([*d.shape(0, 3), inner], kind),
        "weight": d.of([outer, inner], kind),
        "bias": d.of([outer], kind) if d.flag() else None,
    }


def _matmul(d: Draw) -> Arguments:
    kind, inner = d.kind(SINGLE), d.integer(1, 4)
    x = [*d.shape(0, 2), d.integer(1, 3), inner] if d.flag() else [inner]
    if len(x) > 1 and d.flag():
        y = [*d.partner(x[:-2]), inner, d.integer(1, 3)]
    else:
        y = [inner] if d.flag() else [inner, d.integer(1, 3)]
    return {"self": d.of(x, kind), "other": d.of(y, kind)}


def _product(batch: int, names: tuple[str, str], added: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        kind, lead = d.kind(SINGLE), [d.integer(1, 3) for _ in range(batch)]
        rows, inner, columns = d.integer(1, 3), d.integer(1, 3), d.integer(1, 3)
        made: Arguments = {
            names[0]: d.of([*lead, rows, inner], kind, odd=False),
            names[1]: d.of([*lead, inner, columns], kind, odd=False),
        }
        if added:
            made["self"] = d.of(d.partner([*lead, rows, columns]) or [1], kind, odd=False)
            made |= {"beta": d.pick(1, 2), "alpha": d.pick(1, 0.5)}
        return made

    return make


def _einsum(d: Draw) -> Arguments:
    i, j, k, b = (d.integer(1, 3) for _ in range(4))
    equation, shapes = d.draw(
        st.sampled_from(
            [
                ("ij,jk->ik", [[i, j], [j, k]]),
                ("bij,bjk->bik", [[b, i, j], [b, j, k]]),
                ("ij,jk", [[i, j], [j, k]]),
                ("...i,ji->...j", [[b, k, i], [j, i]]),
                ("bi->ib", [[b, i]]),
                ("i,j->ij", [[i], [j]]),
            ]
        )
    )
    return {"equation": equation, "tensors": [d.of(s, torch.float32) for s in shapes]}


def _attention(d: Draw) -> Arguments:
    lead, length, other, size = (
        [d.integer(1, 2), d.integer(1, 2)],
        d.integer(1, 4),
        d.integer(1, 4),
        d.integer(1, 4),
    )
    made: Arguments = {
        "query": d.of([*lead, length, size], torch.float32, odd=False),
        "key": d.of([*lead, other, size], torch.float32, odd=False),
        "value": d.of([*lead, other, d.integer(1, 4)], torch.float32, odd=False),
        "scale": d.pick(None, 0.5),
    }
    if d.flag():
        return made | {"attn_mask": d.of([length, other], torch.float32, odd=False)}
    return made | {"is_causal": d.flag()}


def _embedding(d: Draw) -> Arguments:
    rows = d.integer(1, 5)
    return {
        "weight": d.tensor([rows, d.integer(1, 3)], FLOATS),
        "indices": d.indices(d.shape(0, 3), rows),
        "padding_idx": d.pick(-1, 0),
    }


def _bag(d: Draw) -> Arguments:
    rows, count, mode = d.integer(1, 5), d.integer(1, 5), d.integer(0, 2)
    last, weighed = d.flag(), mode == 0 and d.flag()
    middle = sorted(d.integer(0, count) for _ in range(d.integer(0, 2)))
    offsets = [0, *middle, *([count] if last else [])]
    return {
        "weight": d.of([rows, d.integer(1, 3)], torch.float32, odd=False),
        "indices": d.indices([count], rows),
        "offsets": torch.tensor(offsets),
        "scale_grad_by_freq": False,
        "mode": mode,
        "sparse": False,
        "per_sample_weights": d.of([count], torch.float32, odd=False) if weighed else None,
        "include_last_offset": last,
        "padding_idx": d.pick(-1, 0),
    }


# -- norms


def _norm(names: Mapping[str, object], running: bool = True) -> Maker:
    def make(d: Draw) -> Arguments:
        kind, channels, affine = d.kind(SINGLE), d.integer(1, 3), d.flag()
        x = [d.integer(1, 3), channels, *(d.integer(2, 4) for _ in range(d.integer(1, 2)))]
        made: Arguments = {
            "input": d.of(x, kind, odd=False),
            "weight": d.of([channels], kind) if affine else None,
            "bias": d.of([channels], kind) if affine else None,
            "running_mean": d.of([channels], kind, odd=False) if running else None,
            "running_var": d.of([channels], kind, odd=False).abs() if running else None,
        }
        return made | {"momentum": 0.1, "eps": d.pick(1e-5, 1e-3), **names}

    return make


def _last_axes_norm(d: Draw) -> Arguments:
    kind, shape = d.kind(SINGLE), d.shape(1, 4)
    tail = shape[d.integer(0, len(shape) - 1) :]
    affine = d.flag()
    return {
        "input": d.of(shape, kind),
        "normalized_shape": tail,
        "weight": d.of(tail, kind) if affine else None,
        "bias": d.of(tail, kind) if affine else None,
        "eps": d.pick(1e-5, 1e-3),
    }


def _rms_norm(d: Draw) -> Arguments:
    made = _last_axes_norm(d)
    return {k: v for k, v in made.items() if k != "bias"} | {"eps": d.pick(None, 1e-5)}


def _group_norm(d: Draw) -> Arguments:
    kind, groups = d.kind(SINGLE), d.integer(1, 2)
    x = [d.integer(1, 3), groups * d.integer(1, 2), *d.shape(1, 2)]
    affine = d.flag()
    return {
        "input": d.of(x, kind, odd=False),
        "num_groups": groups,
        "weight": d.of([x[1]], kind) if affine else None,
        "bias": d.of([x[1]], kind) if affine else None,
    }


def _native_group_norm(d: Draw) -> Arguments:
    made = _group_norm(d)
    x = made["input"]
    sizes = list(x.shape) if isinstance(x, torch.Tensor) else []
    inner = 1
    for side in sizes[2:]:
        inner *= side
    made |= {"N": sizes[0], "C": sizes[1], "HxW": inner, "group": made["num_groups"], "eps": 1e-5}
    return {k: v for k, v in made.items() if k != "num_groups"}


def _softmax(d: Draw) -> Arguments:
    shape = d.shape(1, 4)
    kind = d.pick(None, torch.float64)
    return {"self": d.tensor(shape, FLOATS), "dim": d.axis(len(shape)), "dtype": kind}


def _plain_softmax(d: Draw) -> Arguments:
    made = _softmax(d)
    return {"self": made["self"], "dim": made["dim"], "half_to_float": False}


# -- activations


def _clamp(d: Draw) -> Arguments:
    low, high = d.pick(None, 0, -1.5, -0.0), d.pick(None, 2, 6.0)
    if low is None and high is None:
        low = 0
    return {"self": d.tensor(d.shape(), (*FLOATS, torch.int64)), "min": low, "max": high}


def _clamp_by_tensors(d: Draw) -> Arguments:
    shape, both = d.shape(), d.integer(0, 2)
    kinds = (torch.float32, torch.int64)
    made: Arguments = {"self": d.tensor(shape, kinds)}
    low, high = d.tensor(d.partner(shape), kinds), d.tensor(d.partner(shape), kinds)
    return made | {"min": None if both == 1 else low, "max": None if both == 2 else high}


def _hardtanh(d: Draw) -> Arguments:
    x = d.tensor(d.shape(), (*FLOATS, torch.int64))
    return {"self": x, "min_val": d.pick(-1, 0.0, 0), "max_val": d.pick(1, 6.0)}


def _prelu(d: Draw) -> Arguments:
    kind, shape = d.kind(SINGLE), d.shape(2, 4)
    return {"self": d.of(shape, kind), "weight": d.of([1 if d.flag() else shape[1]], kind)}


def _dropout(d: Draw) -> Arguments:
    return {"input": d.tensor(d.shape(2, 3), FLOATS), "p": d.pick(0.0, 0.5), "train": False}


# -- choice, joining, taking apart


def _where(x: bool, y: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape()
        return {
            "condition": d.of(d.partner(shape), torch.bool),
            "self": d.tensor(shape, NUMBERS) if x else d.number(),
            "other": d.tensor(d.partner(shape), NUMBERS) if y else d.number(),
        }

    return make


def _masked_fill(by_tensor: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        shape, kind = d.shape(), d.kind((torch.float32, torch.float16, torch.int64))
        value = d.of([], kind) if by_tensor else d.pick(-float("inf"), 0, 1.5)
        if not by_tensor and not kind.is_floating_point:
            value = d.integer(-2, 2)
        mask = d.of(d.partner(shape), torch.bool)
        return {"self": d.of(shape, kind), "mask": mask, "value": value}

    return make


def _joined(least: int, along: bool, named: bool) -> Maker:
    """Tensors of one shape; `along` lets them differ on the joined axis."""

    def make(d: Draw) -> Arguments:
        shape = d.shape(least, 3)
        axis = d.axis(len(shape) if along else len(shape) + 1)
        tensors = []
        for _ in range(d.integer(1, 3)):
            sides = list(shape)
            if along and named:
                sides[axis] = d.integer(1, 3)
            tensors.append(d.tensor(sides, (torch.float32, torch.float16, torch.int64)))
        return {"tensors": tensors, **({"dim": axis} if named else {})}

    return make


def _cut(argument: str, sizes: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(1, 3, 6)
        axis = d.axis(len(shape))
        count = d.integer(1, 4)
        first = d.integer(0, shape[axis])
        value: object = [first, shape[axis] - first] if sizes else count
        return {"self": d.tensor(shape, ANY), argument: value, "dim": axis}

    return make


# -- pools and reductions


def _pool(count: int, average: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        kernel = [d.integer(2, 3) for _ in range(count)]
        lead = [d.integer(1, 2)] * d.integer(0, 1)
        x = [*lead, d.integer(1, 2), *(d.integer(4, 7) for _ in range(count))]
        made: Arguments = {
            "self": d.of(x, torch.float32, odd=False),
            "kernel_size": kernel,
            "stride": [] if d.flag() else [d.integer(1, 3) for _ in range(count)],
            "padding": [d.integer(0, 1)] * count,
            "ceil_mode": d.flag(),
        }
        if not average:
            return made | {"dilation": [d.integer(1, 2)]}
        made["count_include_pad"] = d.flag()
        return made if count == 1 else made | {"divisor_override": d.pick(None, 3)}

    return make


def _adaptive(count: int) -> Maker:
    def make(d: Draw) -> Arguments:
        x = [
            *[d.integer(1, 2)] * d.integer(0, 1),
            d.integer(1, 2),
            *(d.integer(3, 6) for _ in range(count)),
        ]
        sizes = [d.integer(1, 3) for _ in range(count)]
        return {"self": d.of(x, torch.float32, odd=False), "output_size": sizes}

    return make


def _whole(kinds: Sequence[torch.dtype]) -> Maker:
    return lambda d: {"self": d.tensor(d.shape(), kinds)}


def _reduced(
    kinds: Sequence[torch.dtype], one: bool = False, dtype: bool = False, optional: bool = True
) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(1, 4)
        axes: object = d.axis(len(shape)) if one else d.axes(len(shape), 0 if optional else 1)
        made: Arguments = {"self": d.tensor(shape, kinds), "dim": axes, "keepdim": d.flag()}
        return made | ({"dtype": d.pick(None, torch.float64)} if dtype else {})

    return make


def _variance(how: str) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = [d.integer(2, 4) for _ in range(d.integer(1, 3))]
        made: Arguments = {"self": d.of(shape, torch.float32)}
        if how != "plain":
            made |= {"dim": d.axes(len(shape), 1), "keepdim": d.flag()}
        return made | (
            {"correction": d.pick(None, 0, 1)} if how == "correction" else {"unbiased": d.flag()}
        )

    return make


def _vector_norm(d: Draw) -> Arguments:
    made = _reduced(SINGLE)(d)
    return made | {"ord": d.pick(1, 2, float("inf"))}


def _argmax(d: Draw) -> Arguments:
    made = _reduced(NUMBERS, one=True)(d)
    return made if d.flag() else {"self": made["self"]}


def _cumsum(d: Draw) -> Arguments:
    made = _reduced((torch.float32, torch.int32, torch.bool), one=True, dtype=True)(d)
    return {k: v for k, v in made.items() if k != "keepdim"}


# -- shapes


def _reshape(argument: str) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(1, 4)
        cut = d.integer(0, len(shape))
        sizes = [-1, *shape[cut:]] if d.flag() else [*shape[::-1]]
        return {"self": d.tensor(shape, ANY), argument: sizes}

    return make


def _reshape_as(d: Draw) -> Arguments:
    shape = d.shape(1, 4)
    return {"self": d.tensor(shape, ANY), "other": d.tensor(shape[::-1], ANY)}


def _flatten(d: Draw) -> Arguments:
    shape = d.shape(0, 4)
    if not shape:
        return {"self": d.tensor(shape, ANY)}
    start = d.integer(0, len(shape) - 1)
    end = d.integer(start, len(shape) - 1)
    return {
        "self": d.tensor(shape, ANY),
        "start_dim": start - len(shape) * d.integer(0, 1),
        "end_dim": end - len(shape) * d.integer(0, 1),
    }


def _unflatten(d: Draw) -> Arguments:
    shape, one, two = d.shape(1, 3), d.integer(1, 3), d.integer(1, 3)
    axis = d.axis(len(shape))
    shape[axis] = one * two
    sizes = d.draw(st.sampled_from([[one, two], [-1, two], [one, -1]]))
    return {"self": d.tensor(shape, ANY), "dim": axis, "sizes": sizes}


def _permute(d: Draw) -> Arguments:
    shape = d.shape(1, 4)
    order = d.draw(st.permutations(range(len(shape))))
    return {"self": d.tensor(shape, ANY), "dims": [i - len(shape) * d.integer(0, 1) for i in order]}


def _swap(one: str, two: str) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(1, 4)
        rank = len(shape)
        return {"self": d.tensor(shape, ANY), one: d.axis(rank), two: d.axis(rank)}

    return make


def _turned(least: int, most: int) -> Maker:
    return lambda d: {"self": d.tensor(d.shape(least, most), (torch.float32, torch.int64))}


def _moved(d: Draw) -> Arguments:
    shape = d.shape(1, 4)
    count = d.integer(1, len(shape))
    orders = [list(d.draw(st.permutations(range(len(shape)))))[:count] for _ in range(2)]
    source, destination = ([i - len(shape) * d.integer(0, 1) for i in order] for order in orders)
    return {"self": d.tensor(shape, ANY), "source": source, "destination": destination}


def _squeeze(how: str) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = [d.integer(1, 2) for _ in range(d.integer(1, 4))]
        made: Arguments = {"self": d.tensor(shape, ANY)}
        if how == "dim":
            return made | {"dim": d.axis(len(shape))}
        return made if how == "all" else made | {"dim": d.axes(len(shape))}

    return make


def _unsqueeze(d: Draw) -> Arguments:
    shape = d.shape()
    return {"self": d.tensor(shape, ANY), "dim": d.axis(len(shape) + 1)}


def _expand(d: Draw) -> Arguments:
    shape = d.shape()
    sizes = [d.integer(1, 3) if side == 1 else d.pick(side, -1) for side in shape]
    return {"self": d.tensor(shape, ANY), "size": [*d.shape(0, 2), *sizes]}


def _broadcast_to(d: Draw) -> Arguments:
    shape = d.shape()
    sizes = [d.integer(1, 3) if side == 1 else side for side in shape]
    return {"self": d.tensor(shape, ANY), "size": [*d.shape(0, 2), *sizes]}


def _expand_as(d: Draw) -> Arguments:
    other = d.shape()
    return {"self": d.tensor(d.partner(other), ANY), "other": d.tensor(other, ANY)}


def _repeat(argument: str, fewer: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(0, 3)
        count = d.integer(0, 3) if fewer else len(shape) + d.integer(0, 1)
        times = [d.integer(1, 2) for _ in range(count)]
        return {"self": d.tensor(shape, ANY), argument: times}

    return make


def _layout(*formats: torch.memory_format | None) -> Maker:
    def make(d: Draw) -> Arguments:
        x = d.tensor([d.integer(1, 3) for _ in range(4)], ANY)
        turned = x.permute(0, 2, 3, 1) if d.flag() else x
        return {"self": turned, "memory_format": d.pick(*formats)}

    return make


def _pad(how: str) -> Maker:
    def make(d: Draw) -> Arguments:
        mode = d.pick("constant", "reflect", "replicate", "circular") if how == "any" else how
        if mode == "constant":
            shape = d.shape(1, 4)
            count = d.integer(1, len(shape))
            amounts = [d.integer(0, 2) for _ in range(2 * count)]
            made: Arguments = {"self": d.tensor(shape, (torch.float32, torch.int64))}
            value: object = d.pick(0, 1) if how == "constant" else d.pick(None, 0.0, 2.0)
            return made | {
                "pad": amounts,
                "value": value,
                **({"mode": mode} if how == "any" else {}),
            }
        count = d.integer(1, 2)
        x = d.of(
            [d.integer(1, 2), d.integer(1, 2), *(d.integer(3, 4) for _ in range(count))],
            torch.float32,
        )
        return {"self": x, "pad": [d.integer(0, 2) for _ in range(2 * count)], "mode": mode}

    return make


def _edge_pad(count: int) -> Maker:
    def make(d: Draw) -> Arguments:
        x = d.of(
            [d.integer(1, 2), d.integer(1, 2), *(d.integer(3, 4) for _ in range(count))],
            torch.float32,
        )
        return {"self": x, "padding": [d.integer(0, 2) for _ in range(2 * count)]}

    return make


def _roll(d: Draw) -> Arguments:
    shape = d.shape(1, 3)
    if d.flag():
        return {"self": d.tensor(shape, ANY), "shifts": [d.integer(-3, 3)], "dims": []}
    axes = d.axes(len(shape), 1)
    return {"self": d.tensor(shape, ANY), "shifts": [d.integer(-3, 3) for _ in axes], "dims": axes}


def _flip(d: Draw) -> Arguments:
    shape = d.shape(1, 3)
    return {"self": d.tensor(shape, ANY), "dims": d.axes(len(shape))}


def _shuffle(argument: str, up: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        r, c, h, w = (d.integer(1, 3) for _ in range(4))
        tail = [c * r * r, h, w] if up else [c, h * r, w * r]
        return {"self": d.tensor([*d.shape(0, 2), *tail], SINGLE), argument: r}

    return make


def _channel_shuffle(d: Draw) -> Arguments:
    groups = d.integer(1, 3)
    x = [d.integer(1, 2), groups * d.integer(1, 2), *d.shape(1, 2)]
    return {"self": d.of(x, torch.float32), "groups": groups}


def _triangle(d: Draw) -> Arguments:
    return {
        "self": d.tensor(d.shape(2, 3), (torch.float32, torch.int64)),
        "diagonal": d.integer(-2, 2),
    }


def _resized(count: int, form: str, corners: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        x = d.of(
            [d.integer(1, 2), d.integer(1, 2), *(d.integer(2, 4) for _ in range(count))],
            torch.float32,
        )
        sizes = [d.integer(1, 6) for _ in range(count)]
        scales = [d.integer(2, 9) / 4 for _ in range(count)]
        by_size = form == "" or d.flag()
        made: Arguments = {"self" if form == "" else "input": x}
        made["output_size"] = sizes if by_size else None
        if form:
            made["scale_factors"] = None if by_size else scales
        return made | ({"align_corners": d.flag()} if corners else {})

    return make


# -- indexing


def _slice(source: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(1, 3, 6)
        axis, step = d.axis(len(shape)), d.integer(1, 3)
        ends = [None, *range(-7, 8), 2**63 - 1]
        start, end = d.pick(*ends), d.pick(*ends)
        x = d.tensor(shape, ANY)
        made: Arguments = {"self": x, "dim": axis, "start": start, "end": end, "step": step}
        if source:
            hole = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
            made["src"] = d.of(list(hole.shape), x.dtype)
        return made

    return make


def _narrow(d: Draw) -> Arguments:
    shape = d.shape(1, 3, 6)
    axis = d.axis(len(shape))
    start = d.integer(-shape[axis], shape[axis])
    length = d.integer(0, shape[axis] - (start % shape[axis] if start < shape[axis] else start))
    return {"self": d.tensor(shape, ANY), "dim": axis, "start": start, "length": length}


def _select(source: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(1, 3)
        axis = d.axis(len(shape))
        x, index = d.tensor(shape, ANY), d.axis(shape[axis])
        made: Arguments = {"self": x, "dim": axis, "index": index}
        rest = [side for at, side in enumerate(shape) if at != axis % len(shape)]
        return made | ({"src": d.of(rest, x.dtype)} if source else {})

    return make


def _places(d: Draw, shape: Sequence[int], masks: bool) -> list[object]:
    made: list[object] = []
    count = d.integer(1, len(shape))
    sides = d.shape(0, 2, 3)
    for at in range(count):
        if at + 1 < count and d.flag():
            made.append(None)
        elif masks and d.integer(0, 3) == 0:
            made.append(d.of([shape[at]], torch.bool))
            break
        else:
            made.append(d.indices(sides, shape[at]))
    return made


def _index(optional: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(1, 4)
        places = _places(d, shape, masks=True)
        kept = places if optional else [place for place in places if place is not None]
        if not optional:
            kept = [d.indices([2], side) for side in shape[: len(kept)]]
        return {"self": d.tensor(shape, ANY), "indices": kept}

    return make


def _index_put(d: Draw) -> Arguments:
    shape = d.shape(1, 3)
    x = d.tensor(shape, (torch.float32, torch.int64))
    places = [d.indices([2], side) for side in shape[: d.integer(1, len(shape))]]
    return {"self": x, "indices": places, "values": d.of([], x.dtype), "accumulate": d.flag()}


def _gather(d: Draw) -> Arguments:
    shape = d.shape(1, 3)
    axis = d.axis(len(shape))
    sides = [d.integer(1, side) for side in shape]
    index = d.indices(sides, shape[axis])
    return {"self": d.tensor(shape, ANY), "dim": axis, "index": index}


def _index_select(d: Draw) -> Arguments:
    shape = d.shape(1, 3)
    axis = d.axis(len(shape))
    index = d.indices([d.integer(1, 4)], shape[axis])
    return {"self": d.tensor(shape, ANY), "dim": axis, "index": index}


def _index_copy(d: Draw) -> Arguments:
    made = _index_select(d)
    x, axis = made["self"], made["dim"]
    if not isinstance(x, torch.Tensor) or not isinstance(axis, int):
        return made
    order = torch.tensor(d.draw(st.permutations(range(x.shape[axis]))))
    return {"self": x, "dim": axis, "index": order, "source": d.of(list(x.shape), x.dtype)}


def _scatter(by_number: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        shape = d.shape(1, 3)
        axis = d.axis(len(shape))
        x = d.tensor(shape, (torch.float32, torch.int64))
        places = [d.draw(st.permutations(range(shape[axis])))[0]]
        index = torch.full([1] * len(shape), places[0], dtype=torch.int64)
        made: Arguments = {"self": x, "dim": axis, "index": index}
        source = d.of(shape, x.dtype)
        return made | ({"value": d.integer(-2, 2)} if by_number else {"src": source})

    return make


# -- casts, factories, recurrent networks


def _cast(d: Draw) -> Arguments:
    layout = d.pick(None, torch.preserve_format, torch.channels_last, torch.contiguous_format)
    x = d.tensor(
        [d.integer(1, 3) for _ in range(4)], (torch.float32, torch.int64, torch.bool), False
    )
    kind = d.kind((torch.float32, torch.float16, torch.int64, torch.bool))
    return {"self": x, "dtype": kind, "memory_format": layout}


def _cast_on(d: Draw) -> Arguments:
    return {**_cast(d), "device": torch.device("cpu")}


def _cast_as(d: Draw) -> Arguments:
    x = d.tensor(d.shape(), (torch.float32, torch.int64), odd=False)
    return {"self": x, "other": d.tensor(d.shape(), (torch.float16, torch.float32, torch.bool))}


def _filled(like: bool, value: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        kind = d.pick(None, torch.float32, torch.int64, torch.bool)
        made: Arguments = {"size": d.shape(), "dtype": kind}
        if like:
            made["self"] = d.tensor(d.shape(), ANY)
        return made | ({"fill_value": d.pick(1, 0, 2.5, True)} if value else {})

    return make


def _filled_like(value: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        kind = d.pick(None, torch.float32, torch.int64)
        made: Arguments = {"self": d.tensor(d.shape(), ANY), "dtype": kind}
        return made | ({"fill_value": d.pick(0, 1, 2.5)} if value else {})

    return make


def _fill(by_tensor: bool) -> Maker:
    def make(d: Draw) -> Arguments:
        x = d.tensor(d.shape(), (torch.float32, torch.int64))
        return {"self": x, "value": d.of([], x.dtype) if by_tensor else d.integer(-2, 2)}

    return make


def _copy(d: Draw) -> Arguments:
    shape, kinds = d.shape(), (torch.float32, torch.int64, torch.float16)
    return {"self": d.tensor(shape, kinds), "src": d.tensor(d.partner(shape), kinds, odd=False)}


def _arange(*names: str) -> Maker:
    def make(d: Draw) -> Arguments:
        floats = d.flag()
        one = d.integer(-4, 4)
        made: Arguments = {
            "start": one / 2 if floats else one,
            "end": one / 2 + d.integer(0, 9) / 4 if floats else one + d.integer(0, 5),
            "step": d.pick(0.5, 1.0) if floats else d.integer(1, 2),
        }
        if "start" not in names:
            made["end"] = d.integer(0, 9) / 4 if floats else d.integer(0, 5)
        return {name: made[name] for name in names} | {"dtype": d.pick(None, torch.float64)}

    return make


def _recurrent(gates: int, states: int) -> Maker:
    def make(d: Draw) -> Arguments:
        sides, length, batch, size, hidden = d.integer(1, 2), *(d.integer(1, 3) for _ in range(4))
        first = d.flag()
        x = [batch, length, size] if first else [length, batch, size]
        shapes = [[gates * hidden, size], [gates * hidden, hidden], *[[gates * hidden]] * 2] * sides
        hx = [d.of([sides, batch, hidden], torch.float32, odd=False) for _ in range(states)]
        return {
            "input": d.of(x, torch.float32, odd=False),
            "hx": hx if states > 1 else hx[0],
            "params": [d.of(shape, torch.float32, odd=False) for shape in shapes],
            "has_biases": True,
            "num_layers": 1,
            "dropout": 0.0,
            "train": False,
            "bidirectional": sides == 2,
            "batch_first": first,
        }

    return make


def _cell(gates: int, states: int) -> Maker:
    def make(d: Draw) -> Arguments:
        batch, size, hidden = (d.integer(1, 3) for _ in range(3))
        hx = [d.of([batch, hidden], torch.float32, odd=False) for _ in range(states)]
        biases = d.flag()
        return {
            "input": d.of([batch, size], torch.float32, odd=False),
            "hx": hx if states > 1 else hx[0],
            "w_ih": d.of([gates * hidden, size], torch.float32, odd=False),
            "w_hh": d.of([gates * hidden, hidden], torch.float32, odd=False),
            "b_ih": d.of([gates * hidden], torch.float32, odd=False) if biases else None,
            "b_hh": d.of([gates * hidden], torch.float32, odd=False) if biases else None,
        }

    return make


def _size(d: Draw) -> Arguments:
    shape = d.shape(1, 4)
    return {"self": d.tensor(shape, ANY), "dim": d.axis(len(shape))}


def _int_pair(d: Draw) -> Arguments:
    return {"a": d.integer(1, 9), "b": d.integer(1, 4)}


_FLOAT_UNARY = """exp expm1 log log2 log1p sqrt rsqrt reciprocal erf sin cos sigmoid tanh
special_expit special_erf special_expm1 special_log1p"""
_ACTIVATIONS = "selu silu mish hardswish hardsigmoid log_sigmoid"
_COMPARISONS = "eq ne not_equal lt less le less_equal gt greater ge greater_equal"
_RESIZERS = (
    *(("upsample_nearest", count, False) for count in (1, 2, 3)),
    *(("_upsample_nearest_exact", count, False) for count in (1, 2, 3)),
    ("upsample_linear", 1, True),
    ("upsample_bilinear", 2, True),
    ("upsample_trilinear", 3, True),
    ("upsample_bicubic", 2, True),
)


def _each(names: str, maker: Maker) -> dict[str, Maker]:
    return dict.fromkeys(names.split(), maker)


_MAKERS: Final[Mapping[str, Maker]] = {
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "conv3d": _conv(3),
    "conv1d.padding": _padded(1),
    "conv2d.padding": _padded(2),
    "conv3d.padding": _padded(3),
    "conv_transpose1d": _conv(1, transposed=True),
    "conv_transpose2d.input": _conv(2, transposed=True),
    "conv_transpose3d.input": _conv(3, transposed=True),
    **_each("convolution _convolution", _convolution),
    "linear": _linear,
    "matmul": _matmul,
    "mm": _product(0, ("self", "mat2"), added=False),
    "bmm": _product(1, ("self", "mat2"), added=False),
    "addmm": _product(0, ("mat1", "mat2"), added=True),
    "baddbmm": _product(1, ("batch1", "batch2"), added=True),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "embedding": _embedding,
    **_each("embedding_bag _embedding_bag", _bag),
    "embedding_bag.padding_idx": lambda d: {**_bag(d), "padding_idx": d.pick(None, 0, -1)},
    "batch_norm": _norm({"training": False, "cudnn_enabled": False}),
    "_native_batch_norm_legit_no_training": _norm({}),
    "instance_norm": _norm({"use_input_stats": True, "cudnn_enabled": False}, running=False),
    "layer_norm": _last_axes_norm,
    "native_layer_norm": _last_axes_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "native_group_norm": _native_group_norm,
    **_each("softmax.int special_softmax log_softmax.int special_log_softmax", _softmax),
    **_each("_softmax _log_softmax", _plain_softmax),
    **_each(_FLOAT_UNARY, _unary((*FLOATS, torch.int64, torch.bool))),
    **_each(_ACTIVATIONS, _unary(FLOATS)),
    **_each("relu relu6", _unary((*FLOATS, torch.int64))),
    **_each("abs absolute neg negative sign", _unary((*FLOATS, *INTS))),
    **_each("square", _unary((*FLOATS, torch.int32))),
    **_each("floor ceil round special_round", _unary((*FLOATS, torch.int64))),
    "bitwise_not": _unary((torch.bool, *INTS)),
    **_each("logical_not isnan isinf", _unary(ANY)),
    "leaky_relu": _unary(FLOATS, negative_slope=lambda d: d.pick(0.01, 0.2)),
    "elu": _unary(FLOATS, alpha=_positive, scale=_positive, input_scale=_positive),
    "celu": _unary(FLOATS, alpha=_positive),
    "prelu": _prelu,
    "gelu": _unary(FLOATS, approximate=lambda d: d.pick("none", "tanh")),
    "softplus": _unary(FLOATS, beta=lambda d: d.pick(1, 2), threshold=lambda d: d.pick(20, 1)),
    "threshold": _unary(FLOATS, threshold=lambda d: d.number(), value=lambda d: d.number()),
    "rrelu": _unary(FLOATS, lower=lambda d: d.pick(0.125, 0.1), upper=lambda d: d.pick(0.25, 0.3)),
    "hardtanh": _hardtanh,
    **_each("clamp clip", _clamp),
    **_each("clamp.Tensor clip.Tensor", _clamp_by_tensors),
    "clamp_min": _unary((torch.float32, torch.int64), min=lambda d: d.pick(0, 0.0, -1.5, 2)),
    "clamp_max": _unary((torch.float32, torch.int64), max=lambda d: d.pick(0, 0.0, -1.5, 2)),
    "clamp_min.Tensor": _pair((torch.float32, torch.int64), "min"),
    "clamp_max.Tensor": _pair((torch.float32, torch.int64), "max"),
    **_each("dropout feature_dropout alpha_dropout", _dropout),
    "add.Tensor": _scaled(_pair((*FLOATS, *INTS))),
    "add.Scalar": _scaled(_with_number(NUMBERS)),
    **_each("sub.Tensor subtract.Tensor rsub.Tensor", _scaled(_pair((*FLOATS, *INTS)))),
    **_each("sub.Scalar subtract.Scalar rsub.Scalar", _scaled(_with_number(NUMBERS))),
    **_each("mul.Tensor multiply.Tensor", _pair(ANY)),
    **_each("mul.Scalar multiply.Scalar", _with_number(ANY)),
    **_each("div.Tensor divide.Tensor true_divide.Tensor", _pair((*FLOATS, torch.int64))),
    **_each("div.Scalar divide.Scalar true_divide.Scalar", _with_number(NUMBERS)),
    **_each("div.Tensor_mode divide.Tensor_mode", _rounded(_pair(SINGLE))),
    **_each("div.Scalar_mode divide.Scalar_mode", _rounded(_with_number(SINGLE))),
    "floor_divide": _pair(SINGLE),
    "floor_divide.Scalar": _with_number(SINGLE),
    "remainder.Tensor": _pair(SINGLE),
    "remainder.Scalar": _with_number(SINGLE),
    "remainder.Scalar_Tensor": _number_first(SINGLE),
    "pow.Tensor_Tensor": _pair(SINGLE, "exponent"),
    "pow.Tensor_Scalar": _with_number(SINGLE, "exponent"),
    "pow.Scalar": _number_first(SINGLE, "exponent"),
    **_each("maximum minimum max.other min.other", _pair((*FLOATS, torch.int64))),
    **{f"{name}.Tensor": _pair(ANY) for name in _COMPARISONS.split()},
    **{f"{name}.Scalar": _with_number(ANY) for name in _COMPARISONS.split()},
    **_each("logical_and logical_or logical_xor", _pair(ANY)),
    **{
        f"{stem}.{form}": _ints(maker)
        for stem in ("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__")
        for form, maker in (
            ("Tensor", _pair((torch.bool, torch.int64, torch.uint8))),
            ("Scalar", _with_number((torch.bool, torch.int64))),
            ("Scalar_Tensor", _number_first((torch.bool, torch.int64))),
        )
    },
    "where.self": _where(x=True, y=True),
    "where.ScalarOther": _where(x=True, y=False),
    "where.ScalarSelf": _where(x=False, y=True),
    "where.Scalar": _where(x=False, y=False),
    "masked_fill.Scalar": _masked_fill(by_tensor=False),
    "masked_fill.Tensor": _masked_fill(by_tensor=True),
    **_each("cat concat concatenate", _joined(1, along=True, named=True)),
    "stack": _joined(0, along=False, named=True),
    "hstack": _joined(1, along=True, named=False),
    "vstack": _joined(2, along=True, named=False),
    **_each("chunk unsafe_chunk", _cut("chunks", sizes=False)),
    **_each("split.Tensor unsafe_split.Tensor", _cut("split_size", sizes=False)),
    "split.sizes": _cut("split_size", sizes=True),
    **_each("split split_with_sizes unsafe_split_with_sizes", _cut("split_sizes", sizes=True)),
    "tensor_split.sections": _cut("sections", sizes=False),
    "unbind.int": _size,
    **{f"max_pool{n}d{form}": _pool(n, False) for n in (1, 2, 3) for form in ("", "_with_indices")},
    **{f"avg_pool{n}d": _pool(n, average=True) for n in (1, 2, 3)},
    **{f"adaptive_{how}_pool{n}d": _adaptive(n) for how in ("avg", "max") for n in (1, 2, 3)},
    "mean": _unary(SINGLE, dtype=lambda d: d.pick(None, torch.float64)),
    "mean.dim": _reduced(SINGLE, dtype=True),
    "sum": _unary((*FLOATS, torch.int32, torch.bool)),
    "sum.dim_IntList": _reduced((*FLOATS, torch.int32, torch.bool), dtype=True),
    **_each("amax amin", _reduced(NUMBERS)),
    **_each("max min", _whole(NUMBERS)),
    **_each("max.dim min.dim", _reduced(NUMBERS, one=True)),
    "var": _variance("plain"),
    "var.dim": _variance("dim"),
    "var.correction": _variance("correction"),
    "linalg_vector_norm": _vector_norm,
    "argmax": _argmax,
    **_each("all any", _whole(ANY)),
    **_each("all.dim any.dim", _reduced(ANY, one=True)),
    **_each("all.dims any.dims", _reduced(ANY, optional=False)),
    "cumsum": _cumsum,
    "reshape": _reshape("shape"),
    **_each("view _unsafe_view", _reshape("size")),
    **_each("view_as reshape_as", _reshape_as),
    "ravel": _whole(ANY),
    "flatten.using_ints": _flatten,
    "unflatten.int": _unflatten,
    "permute": _permute,
    "transpose.int": _swap("dim0", "dim1"),
    "swapdims": _swap("dim0", "dim1"),
    "swapaxes": _swap("axis0", "axis1"),
    "t": _turned(0, 2),
    "numpy_T": _turned(2, 2),
    **_each("mT adjoint", _turned(2, 4)),
    "mH": _turned(2, 2),
    **_each("movedim.int moveaxis.int", _swap("source", "destination")),
    **_each("movedim.intlist moveaxis.intlist", _moved),
    "squeeze": _squeeze("all"),
    "squeeze.dim": _squeeze("dim"),
    "squeeze.dims": _squeeze("dims"),
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "broadcast_to": _broadcast_to,
    "expand_as": _expand_as,
    "repeat": _repeat("repeats", fewer=False),
    "tile": _repeat("dims", fewer=True),
    "contiguous": _layout(torch.contiguous_format, torch.channels_last),
    "clone": _layout(None, torch.preserve_format, torch.channels_last, torch.contiguous_format),
    "pad": _pad("any"),
    "constant_pad_nd": _pad("constant"),
    **{f"{how}_pad{n}d": _edge_pad(n) for how in ("reflection", "replication") for n in (1, 2, 3)},
    "roll": _roll,
    "flip": _flip,
    "pixel_shuffle": _shuffle("upscale_factor", up=True),
    "pixel_unshuffle": _shuffle("downscale_factor", up=False),
    **_each("channel_shuffle native_channel_shuffle", _channel_shuffle),
    **_each("tril triu", _triangle),
    **{
        f"{name}{count}d{form}": _resized(count, form, corners)
        for name, count, corners in _RESIZERS
        for form in ("", ".vec")
    },
    **{
        f"_upsample_{name}2d_aa{form}": _resized(2, form, corners=True)
        for name in ("bilinear", "bicubic")
        for form in ("", ".vec")
    },
    "slice.Tensor": _slice(source=False),
    "slice_scatter": _slice(source=True),
    "narrow": _narrow,
    "select.int": _select(source=False),
    "select_scatter": _select(source=True),
    "index.Tensor": _index(optional=True),
    "index.Tensor_hacked_twin": _index(optional=False),
    **_each("index_put index_put.hacked_twin _index_put_impl", _index_put),
    "gather": _gather,
    "index_select": _index_select,
    "index_copy": _index_copy,
    "scatter.src": _scatter(by_number=False),
    "scatter.value": _scatter(by_number=True),
    **_each("to.dtype to.dtype_layout _to_copy", _cast),
    "to.device": _cast_on,
    **_each("to.other type_as", _cast_as),
    "full": _filled(like=False, value=True),
    **_each("zeros ones empty.memory_format", _filled(like=False, value=False)),
    "new_full": _filled(like=True, value=True),
    **_each("new_zeros new_ones new_empty", _filled(like=True, value=False)),
    "full_like": _filled_like(value=True),
    **_each("zeros_like ones_like empty_like", _filled_like(value=False)),
    "fill.Scalar": _fill(by_tensor=False),
    "fill.Tensor": _fill(by_tensor=True),
    "zero": _whole(ANY),
    "copy": _copy,
    "scalar_tensor": lambda d: {"s": d.number(), "dtype": d.pick(None, torch.int64)},
    "arange": _arange("end"),
    "arange.start": _arange("start", "end"),
    "arange.start_step": _arange("start", "end", "step"),
    "lstm.input": _recurrent(4, 2),
    "gru.input": _recurrent(3, 1),
    "rnn_tanh.input": _recurrent(1, 1),
    "rnn_relu.input": _recurrent(1, 1),
    "lstm_cell": _cell(4, 2),
    "gru_cell": _cell(3, 1),
    **_each("rnn_tanh_cell rnn_relu_cell", _cell(1, 1)),
    "sym_size.int": _size,
    "sym_numel": _whole(ANY),
    **_each("detach alias lift_fresh lift_fresh_copy positive", _whole(FLOATS)),
    **_each("""operator.add operator.sub operator.mul operator.floordiv operator.mod""", _int_pair),
    "operator.neg": lambda d: {"a": d.integer(-3, 9)},
}


def _key(name: str) -> str:
    return name if name.startswith("operator.") else name.removeprefix("aten.")


def covers(name: str) -> bool:
    """Whether arguments can be drawn for the overload."""
    return _key(name).removesuffix(".default") in _MAKERS


@st.composite
def arguments(draw: st.DrawFn, name: str) -> Arguments:
    """Arguments for aten overload `name` (`aten.add.Tensor`), by schema name."""
    return _MAKERS[_key(name).removesuffix(".default")](Draw(draw))
