"""KIVI: the key-value cache in 8, 4 or 2 bits (Liu et al. 2024, arXiv 2402.02750).

    keys    x ≈ s ⊙ codes + m, one (s, m) for 32 tokens of a channel: some channels are far larger
    values  one (s, m) for 32 channels of a token

The last tokens, a window, stay float. A query sees the cache as the tokens before it left it, and
its own key and value in float: at position t the first `closed(t)` tokens are codes. Scoring a
whole sequence and generating it token by token so compute the same.
Not here: named recipes' place in a model (`transformer`), bytes on a machine (`evaluation.fits`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qlab.formats import FORMATS
from qlab.models.checks import check_model
from qlab.qtensor import QTensor, Spec, bits_per_weight, dequantize, quantize
from qlab.rules import minmax
from qlab.stats import PRECISION
from qlab.suggest import near

GROUP, WINDOW = 32, 128  # KIVI's own
FLOAT_BITS = 16  # of a number in the window, as a deployment keeps it; here it is float32


@dataclasses.dataclass(frozen=True)
class Side:
    """How the keys, or the values, of a cache are kept; static under jit.

    Attributes:
        spec: of a block of numbers along tokens ("channel") or along channels ("token"); None:
            float.
        by: "channel": a channel of `spec.block` tokens shares a scale; "token": `spec.block`
            channels of a token do.
        window: the last tokens that stay float.
    """

    spec: Spec | None
    by: str
    window: int

    @property
    def group(self) -> int:
        """Tokens that are encoded together."""
        if self.spec is None or self.by == "token":
            return 1
        assert isinstance(self.spec.block, int)
        return self.spec.block

    @property
    def kept(self) -> int:
        """Tokens that there must be room for in float."""
        return max(self.window, self.group)

    def closed(self, stored: Any) -> Any:
        """How many of the first `stored` tokens are codes: an int or an array.

        Values leave the window one by one; keys by channel all at once, when the window is full,
        as in KIVI's algorithm 1.

        Example:
            >>> Side(KVS["kivi2"].keys, "channel", 128).closed(300)
            256
            >>> Side(KVS["kivi2"].values, "token", 128).closed(300)
            172
        """
        if self.spec is None:
            return 0 * stored
        if self.by == "channel":
            return stored // self.kept * self.kept
        return (stored - self.window) * (stored > self.window)

    @property
    def code_bits(self) -> float:
        """Bits of a number that has left the window, scale and minimum counted."""
        return float(FLOAT_BITS) if self.spec is None else bits_per_weight(self.spec)

    def bits(self, tokens: int) -> float:
        """Bits that one channel of one head takes for `tokens` tokens, the window held whole."""
        if self.spec is None:
            return float(FLOAT_BITS * tokens)
        return self.code_bits * self.closed(tokens) + FLOAT_BITS * min(tokens, self.kept)


@dataclasses.dataclass(frozen=True)
class KV:
    """A recipe for a quantized key-value cache; frozen, hashable, static under jit.

    Attributes:
        keys, values: the Spec of each, with a block along tokens ("channel") or along the head's
            channels ("token"); None: float.
        window: the last tokens that stay float. Keys by channel become codes `window` at a time.
        keys_by, values_by: "channel" or "token".

    Raises:
        ValueError: a Spec without a block of its own or with scales that are quantized again; an
            unknown direction; a window that is negative or that a block along tokens does not
            divide.

    Example:
        >>> KVS["kivi2"].replace(window=32).bytes(2048, kv_heads=8, head_dim=128)
        811008.0
    """

    keys: Spec | None
    values: Spec | None
    window: int = WINDOW
    keys_by: str = "channel"
    values_by: str = "token"

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"window {self.window} is less than 0")
        for name, side in (("keys", self.key_side), ("values", self.value_side)):
            _check(name, side)

    @property
    def key_side(self) -> Side:
        return Side(self.keys, self.keys_by, self.window)

    @property
    def value_side(self) -> Side:
        return Side(self.values, self.values_by, self.window)

    def replace(self, **changes: Any) -> KV:
        """A copy with some fields changed: `KVS["kivi2"].replace(window=32)`."""
        return dataclasses.replace(self, **changes)

    def bytes(self, tokens: int, kv_heads: int, head_dim: int) -> float:
        """Bytes of one layer's cache of one sequence: codes packed, scales and minima counted,
        the window as float16 and whole.
        """
        bits = self.key_side.bits(tokens) + self.value_side.bits(tokens)
        return kv_heads * head_dim * bits / 8

    def check_head(self, head_dim: int) -> None:
        """Raises ValueError where a block along the channels does not divide `head_dim`."""
        for name, side in (("keys", self.key_side), ("values", self.value_side)):
            if side.spec is None or side.by == "channel":
                continue
            block = side.spec.block
            assert isinstance(block, int)
            if head_dim % block:
                raise ValueError(
                    f"head_dim {head_dim} is not a multiple of block {block} of the {name}: "
                    f"qlab.models.kivi(bits, group={math.gcd(head_dim, block)}) has one that fits"
                )


def _check(name: str, side: Side) -> None:
    if side.by not in ("channel", "token"):
        raise ValueError(f"{name}_by {side.by!r}: {near(side.by, ('channel', 'token'))}")
    spec = side.spec
    if spec is None:
        return
    if not isinstance(spec, Spec):
        raise ValueError(f"{name} need a Spec, not {spec!r}; named recipes are in KVS")
    plain = all(x is None or isinstance(x, str) for x in (spec.zero, spec.offset))
    plain = plain and isinstance(spec.scale, str)
    if not isinstance(spec.block, int) or not plain or spec.offset == "mean":
        raise ValueError(
            f"{name} need a block that is a number and scales of a dtype, because tokens come one "
            f"by one; this Spec has block {spec.block!r} and scale {spec.scale!r}"
        )
    if side.by == "channel" and side.window % side.group:
        raise ValueError(f"window {side.window} is not a multiple of block {side.group} of {name}")


def kivi(
    bits: int,
    *,
    group: int = GROUP,
    window: int = WINDOW,
    keys_by: str = "channel",
    values_by: str = "token",
) -> KV:
    """KIVI's recipe: asymmetric codes, scale and minimum as float16.

    Args:
        bits: of a code, 1 … 8: 8, 4, 2.
        group: numbers that share a scale.
        window: the last tokens that stay float; 0: all but an open group become codes.
        keys_by: "channel" (KIVI) or "token".
        values_by: "token" (KIVI) or "channel".

    Raises:
        ValueError: bits without an unsigned Format; as `KV`.

    Example:
        >>> kivi(2) == KVS["kivi2"], bits_per_weight(kivi(2).keys)
        (True, 3.0)
    """
    name = f"UINT{bits}"
    if name not in FORMATS:
        raise ValueError(f"bits {bits}: {near(name, [f for f in FORMATS if f[:4] == 'UINT'])}")
    spec = Spec(FORMATS[name], group, "float16", offset="float16", rule=minmax)
    return KV(spec, spec, window, keys_by, values_by)


# "token": keys by token too, what KIVI compares with.
KVS: dict[str, KV] = {f"kivi{bits}": kivi(bits) for bits in (8, 4, 2)}
KVS |= {f"token{bits}": kivi(bits, keys_by="token") for bits in (8, 4, 2)}


def find(recipe: str | KV | None) -> KV | None:
    """A recipe by its name in KVS, or itself.

    Example:
        >>> find("kivi4").window
        128
    """
    if recipe is None or isinstance(recipe, KV):
        return recipe
    if recipe in KVS:
        return KVS[recipe]
    if not isinstance(recipe, str):
        raise ValueError(f"a KV recipe is a KV or a name, not {type(recipe).__name__}")
    raise ValueError(f"no KV recipe is called {recipe!r}: there are {', '.join(KVS)}")


def name_of(recipe: KV) -> str:
    """The name of a recipe in KVS, with its window if that is another; or its fields.

    Example:
        >>> name_of(kivi(2)), name_of(kivi(2, window=32))
        ('kivi2', 'kivi2, window 32')
    """
    for name, known in KVS.items():
        if recipe.replace(window=known.window) == known:
            return name if recipe == known else f"{name}, window {recipe.window}"
    said = []
    for what, side in (("keys", recipe.key_side), ("values", recipe.value_side)):
        if side.spec is None:
            said.append(f"{what} float")
        else:
            said.append(f"{what} {side.spec.format} by {side.by}, block {side.spec.block}")
    return ", ".join([*said, f"window {recipe.window}"])


# ---- a whole sequence at once --------------------------------------------------------------------


def turned(x: jax.Array, side: Side) -> jax.Array:
    """(batch, time, heads, d) with what shares a scale last: (batch, heads, d, time) by channel,
    (batch, heads, time, d) by token.
    """
    return x.transpose((0, 2, 3, 1) if side.by == "channel" else (0, 2, 1, 3))


def back(x: jax.Array, side: Side) -> jax.Array:
    """The reverse of `turned`."""
    return x.transpose((0, 3, 1, 2) if side.by == "channel" else (0, 2, 1, 3))


def encoded(x: jax.Array, side: Side) -> QTensor:
    """The codes of x, which is `turned`. A NaN makes its block's scale NaN, here by hand: a fused
    minimum on a CPU may pass over it (`xla_cpu_enable_fast_min_max`).
    """
    spec = side.spec
    assert spec is not None
    q = quantize(x, spec)
    nan = jnp.isnan(x.reshape(*q.scale.shape, spec.block)).any(axis=-1)
    return q.replace(scale=jnp.where(nan, jnp.nan, q.scale))


def coded(x: jax.Array, side: Side) -> jax.Array:
    """The numbers that stand for x once all of it are codes; an open group is filled up by its
    last token, and nobody reads it before it is closed.

    Args:
        x: (batch, time, heads, d) floating point.
        side: how.

    Returns:
        float32, as x.
    """
    if side.spec is None:
        return x
    time = x.shape[1]
    x = jnp.pad(x, [(0, 0), (0, -time % side.group), (0, 0), (0, 0)], mode="edge")
    return back(dequantize(encoded(turned(x, side), side)), side)[:, :time]


def attend(
    q: jax.Array,
    k: tuple[jax.Array, jax.Array],
    v: tuple[jax.Array, jax.Array],
    position: jax.Array,
    kv: KV,
    causal: bool = False,
) -> jax.Array:
    """softmax(q kᵀ / √d) v, where the query at position t reads the first `closed(t)` keys and
    values as codes and the others, up to its own, in float.

    Args:
        q: (batch, time, heads, d).
        k: keys in float and as codes have them, (batch, seen, kv_heads, d) each.
        v: as `k`, the values.
        position: (time,) int32, of the queries.
        kv: the recipe.
        causal: promises that query i stands at position i; what it may not read is then not
            computed.

    Returns:
        (batch, time, heads, d).
    """
    batch, time, _, d = q.shape
    seen, kv_heads = k[0].shape[1:3]
    at, sides = jnp.arange(seen), (kv.key_side, kv.value_side)
    allowed = at <= position[:, None]  # (time, seen)
    in_codes = [at < side.closed(position)[:, None] for side in sides]

    def one(q: jax.Array, k: jax.Array, kc: jax.Array, v: jax.Array, vc: jax.Array) -> jax.Array:
        """One key-value head of one sequence: (group, time, d), (seen, d) four times."""
        size = max(128, -(-time // 8)) if causal else time  # queries at a time
        parts = []
        for first in range(0, time, size):
            last = min(first + size, time)
            end = last if causal else seen
            # Before these nobody needs the float keys, the float values.
            k0, v0 = (min(side.closed(first), end) if causal else 0 for side in sides)
            masks = [m[first:last, :end] for m in (allowed, *in_codes)]
            heads = (k[:end], kc[:end], v[:end], vc[:end])
            rows = q[:, first:last]
            parts.append(_block_of_queries(rows, *heads, *masks, k0=k0, v0=v0))
        return jnp.concatenate(parts, axis=1)

    q = q.reshape(batch, time, kv_heads, -1, d).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch * kv_heads, -1, time, d)
    heads = [x.transpose(0, 2, 1, 3).reshape(batch * kv_heads, seen, d) for x in (*k, *v)]
    y = jax.lax.platform_dependent(  # head by head on a CPU, as `transformer.attend`
        q, *heads, cpu=lambda *x: jax.lax.map(lambda y: one(*y), x), default=jax.vmap(one)
    )
    return y.reshape(batch, -1, time, d).transpose(0, 2, 1, 3)


def _block_of_queries(
    q: jax.Array,
    k: jax.Array,
    kc: jax.Array,
    v: jax.Array,
    vc: jax.Array,
    allowed: jax.Array,
    k_in_codes: jax.Array,
    v_in_codes: jax.Array,
    k0: int,
    v0: int,
) -> jax.Array:
    """Some queries of one head, (group, count, d), that read the same keys.

    k and v (seen, d) are in float, kc and vc what their codes stand for. Of (count, seen):
    `allowed` says what each query may read, the others which of it as codes. Float keys are read
    from k0 on, float values from v0 on.
    """
    rows, count, d = q.reshape(-1, q.shape[-1]), q.shape[1], q.shape[-1]

    def scores(keys: jax.Array) -> jax.Array:
        score = jnp.matmul(rows, keys.T, precision=PRECISION) / d**0.5
        return score.reshape(-1, count, len(keys))

    score = scores(kc)
    recent = jnp.where(k_in_codes[:, k0:], score[..., k0:], scores(k[k0:]))
    score = jnp.concatenate([score[..., :k0], recent], axis=-1)
    weight = jax.nn.softmax(jnp.where(allowed, score, -jnp.inf), axis=-1)
    old, new = jnp.where(v_in_codes, weight, 0.0), jnp.where(v_in_codes, 0.0, weight)[..., v0:]
    y = jnp.matmul(old, vc, precision=PRECISION)
    return y + jnp.matmul(new, v[v0:], precision=PRECISION)


def over_sequence(q: jax.Array, k: jax.Array, v: jax.Array, kv: KV) -> jax.Array:
    """`attend` of a whole sequence to itself: what generation would have computed token by token.

    Args:
        q: (batch, time, heads, d).
        k: (batch, time, kv_heads, d).
        v: as `k`.
        kv: the recipe.
    """
    keys, values = (k, coded(k, kv.key_side)), (v, coded(v, kv.value_side))
    return attend(q, keys, values, jnp.arange(q.shape[1]), kv, causal=True)


# ---- token by token ------------------------------------------------------------------------------


class Store(nnx.Module):
    """One side of one layer's cache: codes by position, and the last tokens in float.

    Codes are written when a token comes and read once it is closed; before that the token is read
    from `recent`, a ring in which position p has slot p mod its length.
    """

    def __init__(self, side: Side, codes: QTensor | None, recent: jax.Array, length: int):
        self.side, self.length = side, length
        self.codes = nnx.data(codes)  # uint8 and float16, in the order of `turned`
        self.recent = nnx.data(recent)  # (batch, kept, kv_heads, d) float32

    @staticmethod
    def empty(side: Side, batch: int, length: int, kv_heads: int, d: int) -> Store:
        """Zeros for `length` positions, which must be a multiple of `side.group`."""
        if side.spec is None:
            return Store(side, None, jnp.zeros((batch, length, kv_heads, d)), length)
        kept = min(side.kept, length)
        nothing = jnp.zeros((batch, length, kv_heads, d))
        codes = encoded(turned(nothing, side), side)
        return Store(side, codes, jnp.zeros((batch, kept, kv_heads, d)), length)

    def _positions(self, stored: jax.Array) -> jax.Array:
        """The position that every slot of the ring holds after `stored` tokens; < 0: none yet."""
        kept = self.recent.shape[1]
        return stored - 1 - (stored - 1 - jnp.arange(kept)) % kept

    def put(self, x: jax.Array, start: jax.Array, count: jax.Array | int):
        """Tokens at positions `start …`, of which the first `count` are real.

        Args:
            x: (batch, time, kv_heads, d) float32.
            start: how many tokens are stored.
            count: how many come; what lies behind them is padding, never read.

        Returns:
            The new Store, and all positions in float and as codes have them, (batch, length,
            kv_heads, d) each, right where `closed` says that they are read.
        """
        at = self._positions(start)
        rows = jnp.zeros((len(x), self.length, *x.shape[2:]), x.dtype)
        rows = rows.at[:, jnp.where(at < 0, self.length, at)].set(self.recent, mode="drop")
        rows = jax.lax.dynamic_update_slice_in_dim(rows, x, start, axis=1)
        recent = jnp.take(rows, jnp.maximum(self._positions(start + count), 0), axis=1)
        if self.codes is None:
            return Store(self.side, None, recent, self.length), rows, rows
        codes = self._encode(rows, start, x.shape[1])
        new = Store(self.side, codes, recent, self.length)
        return new, rows, back(dequantize(codes), self.side)

    def _encode(self, rows: jax.Array, start: jax.Array, time: int) -> QTensor:
        """The codes with every group that tokens `start : start + time` touch encoded again."""
        group, axis = self.side.group, -1 if self.side.by == "channel" else -2
        size = min(-(-(time + group - 1) // group) * group, self.length)
        first = start // group * group
        base = jnp.minimum(first, self.length - size)
        piece = jax.lax.dynamic_slice_in_dim(rows, base, size, axis=1)
        fresh = encoded(turned(piece, self.side), self.side)

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            unit = size // new.shape[axis]  # tokens of one entry: 1, or a group
            here = jax.lax.dynamic_slice_in_dim(old, base // unit, size // unit, axis=axis)
            index = base // unit + jnp.arange(size // unit)
            touched = index >= first // unit
            touched = touched if axis == -1 else touched[:, None]
            new = jnp.where(touched, new, here)
            return jax.lax.dynamic_update_slice_in_dim(old, new, base // unit, axis=axis)

        return jax.tree.map(write, self.codes, fresh)


class KVCache(nnx.Module):
    """The quantized keys and values of one layer: what `transformer.Cache` is for float ones."""

    def __init__(self, keys: Store, values: Store, kv: KV):
        self.keys, self.values, self.kv = keys, values, kv

    @staticmethod
    def empty(kv: KV, batch: int, length: int, kv_heads: int, d: int) -> KVCache:
        """Room for at least `length` positions: whole groups."""
        kv.check_head(d)
        group = math.lcm(kv.key_side.group, kv.value_side.group)
        length = -(-length // group) * group
        sides = (kv.key_side, kv.value_side)
        return KVCache(*(Store.empty(side, batch, length, kv_heads, d) for side in sides), kv=kv)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, count: Any):
        """Stores k and v, and what q (batch, time, heads, d) reads: ((batch, time, heads, d), new
        cache).
        """
        keys, k_float, k_coded = self.keys.put(k, start, count)
        values, v_float, v_coded = self.values.put(v, start, count)
        position = start + jnp.arange(q.shape[1])
        y = attend(q, (k_float, k_coded), (v_float, v_coded), position, self.kv)
        return y, KVCache(keys, values, self.kv)


@dataclasses.dataclass(frozen=True)
class CacheSize:
    """Bytes of a cache that holds `tokens` tokens.

    `packed`: codes packed, the window as float16; `memory`: the arrays as they are here, with room
    for tokens to come, a byte a code; `float16`: what they would take unquantized.
    """

    tokens: int
    packed: int
    memory: int
    float16: int


def cache_size(caches: list[Any], tokens: int) -> CacheSize:
    """What the caches of a model take, all sequences and layers together.

    Args:
        caches: as `model.caches` makes them, quantized or not.
        tokens: how many tokens are stored in each sequence.

    Example:
        >>> cache = KVCache.empty(kivi(2, window=32), batch=1, length=64, kv_heads=1, d=32)
        >>> cache_size([cache], 64).packed, cache_size([cache], 64).float16
        (5504, 8192)
    """
    packed, plain = 0.0, 0
    for cache in caches:
        rows = cache.keys.recent if isinstance(cache, KVCache) else cache.keys
        batch, _, heads, d = rows.shape
        one = 2 * heads * d * tokens * FLOAT_BITS // 8
        packed += batch * (cache.kv.bytes(tokens, heads, d) if isinstance(cache, KVCache) else one)
        plain += batch * one
    memory = sum(leaf.nbytes for leaf in jax.tree.leaves(caches))
    return CacheSize(tokens, math.ceil(packed), memory, plain)


# ---- in a model ----------------------------------------------------------------------------------

_NOTE = "KV cache: "


def quantize_kv(model: Any, recipe: str | KV | None) -> Any:
    """A model whose keys and values are quantized as they leave the window; `model` stays as it
    was.

    Scoring, generation and calibration of the new model all read the quantized cache; weights and
    parameters are shared with the old one. Departs from the paper: KIVI lets the tokens of a prompt
    read one another in float and quantizes afterwards; here a token reads what it would have read
    had the prompt been generated, so that a result does not depend on where the prompt ends.

    Args:
        model: any Transformer.
        recipe: a name in `qlab.models.KVS` ("kivi2"), a `qlab.models.KV`, or None: float again.

    Returns:
        A Transformer with `.kv` the recipe.

    Raises:
        ValueError: an unknown name, with the nearest; a head_dim that a block does not divide,
            naming both.

    Example:
        >>> model = qlab.load("tiny")                                             # doctest: +SKIP
        >>> q = qlab.quantize_kv(model, "kivi2")                                  # doctest: +SKIP
        >>> qlab.evaluate(q, reference=model, tokens=4096)                        # doctest: +SKIP

    Source: Liu et al. 2024, arXiv 2402.02750, algorithm 1.
    """
    check_model(model)
    kv = find(recipe)
    if kv is not None:
        kv.check_head(model.config.head_dim)
    model = jax.tree.map(lambda leaf: leaf, model)
    for block in model.layers:
        block.self_attn.kv = kv
    notes = tuple(note for note in model.label.notes if not note.startswith(_NOTE))
    notes += () if kv is None else (f"{_NOTE}{name_of(kv)}",)
    model.label = dataclasses.replace(model.label, notes=notes)
    return model


def check_no_recipe(model: Any) -> None:
    """Raises ValueError for a model whose keys and values are quantized: no file says so."""
    if model.kv is not None:
        raise ValueError(
            "a KV recipe is no part of a file: save qlab.quantize_kv(model, None), and give the "
            f"loaded model {name_of(model.kv)!r} again"
        )
