"""Mixtures: what llama.cpp calls a file's type is a rule that gives every tensor its own.

"Q4_K_M" says Q4_K for most, Q6_K for some layers of attn_v and ffn_down and for the head, and
something else again where a width is no multiple of 256. The rules are data here (`MIXTURES`);
`plan` applies them. Source: llama.cpp src/llama-quant.cpp, `llama_tensor_get_type` and
`tensor_type_fallback` (the version of llama-cpp-python 0.3.36). The mixtures of IQ2 are planned,
for their sizes, and not written: their codebooks are searched by none here. Not here: routers and
the exceptions for eight experts, Falcon, and the mixtures of IQ1, IQ3 and ternary types.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from qlab.io.gguf import FLOATS, TYPE_SPECS, TYPES, row_bytes
from qlab.suggest import near

# ---- when a rule applies -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where a tensor stands: the i-th of n of its kind, in a model of `shared` query heads to a
    key-value head, quantized with an importance matrix or without.
    """

    i: int
    n: int
    shared: int
    importance: bool


When = Callable[[Layer], bool]


def always(_: Layer) -> bool:
    """Every layer."""
    return True


def more_bits(at: Layer) -> bool:
    """The first and last eighth, and every third layer between."""
    eighth = at.n // 8
    return at.i < eighth or at.i >= 7 * at.n // 8 or (at.i - eighth) % 3 == 2


def first(count: int) -> When:
    """The first `count` layers."""
    return lambda at: at.i < count


def share(parts: int) -> When:
    """The first of so many parts."""
    return lambda at: at.i < at.n // parts


def eighth_without(at: Layer) -> bool:
    """The first eighth, without an importance matrix."""
    return not at.importance and at.i < at.n // 8


def eighth_with(at: Layer) -> bool:
    """The first eighth, with an importance matrix."""
    return at.importance and at.i < at.n // 8


def shared_by_4(at: Layer) -> bool:
    """Four query heads or more share a key-value head: attn_v is small, and much depends on it."""
    return at.shared >= 4


# ---- the rules -----------------------------------------------------------------------------------

Rules = tuple[tuple[When, str], ...]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """One mixture: the type of most tensors, and who departs from it; the first rule that applies
    wins.

    Attributes:
        number: general.file_type in a file (enum llama_ftype of llama.h).
        base: the type of all that no rule names.
        attn_v, attn_output, ffn_down: rules of a kind of tensor.
        output: the type of the head, or of a table that is also the head.
        token_embd: the type of a table that is not; "" is the base.
        seventy: whether the small attn_v of Llama's 70B get more bits.
    """

    number: int
    base: str
    attn_v: Rules = ()
    ffn_down: Rules = ()
    attn_output: Rules = ()
    output: str = "Q6_K"
    token_embd: str = ""
    seventy: bool = True


_IQ2: dict[str, Any] = {
    "attn_v": ((shared_by_4, "Q4_K"), (always, "Q2_K")),
    "ffn_down": ((share(8), "Q2_K"),),
    "output": "Q5_K",
    "token_embd": "Q2_K",
    "seventy": False,
}

MIXTURES: dict[str, Mixture] = {
    "F32": Mixture(0, "F32"),
    "F16": Mixture(1, "F16"),
    "BF16": Mixture(32, "BF16"),
    "Q8_0": Mixture(7, "Q8_0", output="Q8_0"),
    "Q5_1": Mixture(9, "Q5_1"),
    "Q5_0": Mixture(8, "Q5_0", ffn_down=((eighth_with, "Q5_1"),)),
    "Q4_1": Mixture(3, "Q4_1"),
    "Q4_0": Mixture(2, "Q4_0", ffn_down=((eighth_with, "Q4_1"),)),
    "IQ4_NL": Mixture(25, "IQ4_NL", ((shared_by_4, "Q5_K"),), ((eighth_without, "Q5_K"),)),
    "IQ4_XS": Mixture(30, "IQ4_XS", ((shared_by_4, "Q5_K"),), ((eighth_without, "Q5_K"),)),
    "Q2_K": Mixture(
        10,
        "Q2_K",
        attn_v=((shared_by_4, "Q4_K"), (always, "Q3_K")),
        ffn_down=((always, "Q3_K"),),
        attn_output=((always, "Q3_K"),),
    ),
    "Q3_K_S": Mixture(11, "Q3_K"),
    "Q3_K_M": Mixture(
        12,
        "Q3_K",
        attn_v=((first(2), "Q5_K"), (always, "Q4_K")),
        ffn_down=((share(16), "Q5_K"), (always, "Q4_K")),
        attn_output=((always, "Q4_K"),),
    ),
    "Q3_K_L": Mixture(13, "Q3_K", ((always, "Q5_K"),), ((always, "Q5_K"),), ((always, "Q5_K"),)),
    "Q4_K_S": Mixture(14, "Q4_K", ((first(4), "Q5_K"),), ((share(8), "Q5_K"),)),
    "Q4_K_M": Mixture(15, "Q4_K", ((more_bits, "Q6_K"),), ((more_bits, "Q6_K"),)),
    "Q5_K_S": Mixture(16, "Q5_K"),
    "Q5_K_M": Mixture(17, "Q5_K", ((more_bits, "Q6_K"),), ((more_bits, "Q6_K"),)),
    "Q6_K": Mixture(18, "Q6_K"),
    "IQ2_XXS": Mixture(19, "IQ2_XXS", **_IQ2),
    "IQ2_XS": Mixture(20, "IQ2_XS", **_IQ2),
}

# Those that `qlab.save` can write; the others are planned, for their sizes.
WRITTEN = tuple(n for n, rules in MIXTURES.items() if rules.base in (*FLOATS, *TYPE_SPECS))

# What takes the place of a type whose blocks do not divide a row; F16 where that does not either.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
FALLBACK |= {"IQ4_XS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_XXS": "IQ4_NL"}


def mixture(name: str) -> Mixture:
    """The mixture of a name.

    Raises:
        ValueError: an unknown one; the nearest that can be written is named.

    Example:
        >>> mixture("Q4_K_M").base
        'Q4_K'
    """
    if name not in MIXTURES:
        raise ValueError(f"no mixture is called {name!r}; {near(name, WRITTEN)}")
    return MIXTURES[name]


# ---- applied to a model --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a plan.

    Attributes:
        name: GGUF's.
        shape: ends with the columns.
        type: what it will be stored as.
        wanted: what the mixture asked for; another than `type` where the width did not allow it.
        bytes: it takes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    wanted: str
    bytes: int

    @property
    def fell_back(self) -> bool:
        """Whether the width did not allow what the mixture asked for."""
        return self.type != self.wanted

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.bytes / self.weights


def plan(
    name: str,
    tensors: Iterable[tuple[str, tuple[int, ...], str]],
    config: Any,
    importance: bool = False,
) -> list[Row]:
    """Which type every tensor gets.

    Args:
        name: a key of `MIXTURES`.
        tensors: (GGUF name, shape, type now) each; what is not quantized keeps its type.
        config: of the model: layers and heads.
        importance: whether there is an importance matrix; some rules ask.

    Returns:
        one Row a tensor, in the order given.

    Raises:
        ValueError: an unknown mixture, or a model with experts.

    Example:
        >>> from qlab.models.transformer import Config
        >>> config = Config(64, 512, 1024, 8, 8, 2, 64)
        >>> rows = plan("Q4_K_M", [("blk.0.attn_v.weight", (128, 512), "F32")], config)
        >>> rows[0].type, rows[0].bits
        ('Q6_K', 6.5625)
    """
    rules, tensors = mixture(name), list(tensors)
    names = [one for one, _, _ in tensors]
    experts = [one for one in names if re.search(r"ffn_\w+_(exps|inp)\b", one)]
    if experts:
        raise ValueError(f"{experts[0]!r} belongs to experts; mixtures of models without are known")
    tied = "output.weight" not in names
    # llama.cpp walks by layer, then by name, and counts every kind as it goes.
    order = sorted(names, key=lambda one: (layer_of(one), one))
    places = {
        kind: [one for one in order if one.endswith(f".{kind}.weight")]
        for kind in ("attn_v", "ffn_down", "attn_output")
    }
    shared = config.num_attention_heads // config.num_key_value_heads
    rows = []
    for one, shape, now in tensors:
        wanted = now
        if quantizable(one, shape):
            all_of_it = places.get(one.split(".")[-2], [one])
            n = len(all_of_it) if one in places["attn_v"] else config.num_hidden_layers
            at = Layer(all_of_it.index(one), n, shared, importance)
            wanted = _wanted(rules, one, shape, at, tied, config)
        kind = fitting(wanted, shape[-1])
        size = math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
        rows.append(Row(one, tuple(shape), kind, wanted, size))
    return rows


def layer_of(name: str) -> int:
    """The layer of a tensor; −1 for what belongs to none.

    Example:
        >>> layer_of("blk.12.attn_v.weight"), layer_of("token_embd.weight")
        (12, -1)
    """
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def quantizable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a mixture touches a tensor: matrices, but neither norms nor positions.

    Example:
        >>> quantizable("blk.0.ffn_up.weight", (8, 4)), quantizable("output_norm.weight", (4,))
        (True, False)
    """
    matrix = math.prod(shape[:-1]) > 1
    return matrix and name.endswith("weight") and not name.endswith("_norm.weight")


def _wanted(
    rules: Mixture, name: str, shape: tuple[int, ...], at: Layer, tied: bool, config: Any
) -> str:
    """What the mixture asks for, whatever the width."""
    base = rules.base
    if base in FLOATS:
        return base
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q8_0" if shape[-1] % TYPES[base][1] else rules.output
    kind = name.split(".")[-2]
    if kind == "token_embd":
        return rules.token_embd or base
    chosen = next((to for when, to in getattr(rules, kind, ()) if when(at)), base)
    # Eighty layers with shared heads are Llama's 70B, which has an exception of its own.
    seventy = rules.seventy and config.num_hidden_layers == 80 and at.shared > 1
    if kind == "attn_v" and seventy and chosen in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return chosen


def fitting(kind: str, columns: int) -> str:
    """The type itself, or what takes its place where its blocks do not divide the columns.

    Example:
        >>> fitting("Q4_K", 512), fitting("Q4_K", 576), fitting("Q4_K", 80)
        ('Q4_K', 'Q5_0', 'F16')
    """
    for one in (kind, FALLBACK.get(kind, kind)):
        if columns % TYPES[one][1] == 0:
            return one
    return "F16"


def bits_per_weight(rows: Iterable[Row]) -> float:
    """Bits a weight over all tensors of a plan.

    Example:
        >>> bits_per_weight([Row("w", (2, 32), "Q8_0", "Q8_0", 68)])
        8.5
    """
    rows = list(rows)
    return 8 * sum(row.bytes for row in rows) / sum(row.weights for row in rows)


def as_it_is(name: str, shape: tuple[int, ...], kind: str) -> Row:
    """The Row of a tensor that keeps its type.

    Example:
        >>> as_it_is("w", (2, 32), "Q8_0").bytes
        68
    """
    size = math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
    return Row(name, tuple(shape), kind, kind, size)
