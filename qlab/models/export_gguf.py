"""A model as a GGUF file that llama.cpp runs: its metadata, its tensors under GGUF's names, each in
the type that a mixture asks for.

Tensors go through one at a time. q and k rows are interleaved again, a tied head is left out, and
what a model brought from a GGUF file (chat template, licence, tokenizer) goes along. Not here:
which tensor gets which type (`mixtures`), how a block is filled and how a file lies on disk
(`io.gguf`).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from qlab.io import gguf
from qlab.io import imatrix as files
from qlab.io.gguf_values import Value
from qlab.models import architectures, kv, mixtures, tokenizer
from qlab.models.load import NOTES
from qlab.models.surgery import linears
from qlab.models.transformer import Config, Transformer, as_array
from qlab.qtensor import QTensor
from qlab.specs import name_of

# What a file says of itself, which is no longer true of the next one.
_OWN = ("general.file_type", "general.alignment", "split.", "quantize.imatrix.", "qlab.")


@dataclasses.dataclass(frozen=True)
class Source:
    """One tensor on its way into a file.

    Attributes:
        name, shape: as GGUF has them; `type` what it is stored as now.
        numbers: makes the float32 numbers, in `shape`.
        blocks: makes the bytes of `type`.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    numbers: Callable[[], np.ndarray]
    blocks: Callable[[], np.ndarray]


def to_gguf(
    source: Transformer | str | os.PathLike,
    path: str | os.PathLike,
    mixture: str | None = None,
    *,
    imatrix: files.Imatrix | str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> list[mixtures.Row]:
    """Writes a model as a GGUF file, quantized by a mixture or as it is.

    Args:
        source: a model of the Llama family, or a GGUF file of one: its weights as stored.
        path: the file to write.
        mixture: a key of `mixtures.MIXTURES`, such as "Q4_K_M". What is quantized already is
            decoded and rounded again, unless it has the wanted type. None: every tensor as it is,
            floats as F32.
        imatrix: importance of the columns (`qlab.imatrix`), or a file of it.
        overwrite: replace a file that is there.
        progress: show a bar.

    Returns:
        the plan that was carried out, one Row a tensor.

    Raises:
        ValueError: an architecture or tokenizer that llama.cpp does not have, inputs that are
            quantized, a QTensor that is not ggml's, an imatrix of other widths, or a file that is
            there.

    Example:
        >>> rows = to_gguf(load("tiny"), "tiny.gguf", "Q4_K_M")   # doctest: +SKIP
        >>> round(mixtures.bits_per_weight(rows), 2)              # doctest: +SKIP
        5.26
    """
    config, sources = tensors_of(source)
    values = gguf_metadata(source)
    if imatrix is not None and not isinstance(imatrix, files.Imatrix):
        imatrix = files.read(imatrix)
    rows = plan_of(sources, config, mixture, imatrix is not None)
    _check_writable(sources, rows)
    means = _means(imatrix, rows)
    values |= _said(rows, mixture, imatrix, means)
    again = Counter(
        s.type for s, row in zip(sources, rows) if s.type not in gguf.FLOATS and row.type != s.type
    )
    for kind, count in again.items():
        told = values[NOTES].value if NOTES in values else []
        note = f"{count} tensors were {kind} before and were rounded again"
        values[NOTES] = Value.of("[str]", [*told, note])
    bar = tqdm(total=len(rows), disable=not progress, file=sys.stderr, unit=" tensors")
    with bar:
        entries = [
            (row.name, row.type, row.shape, _data(s, row.type, means.get(row.name), bar))
            for s, row in zip(sources, rows, strict=True)
        ]
        gguf.write(path, values, entries, overwrite=overwrite)
    return rows


def _check_writable(sources: list[Source], rows: list[mixtures.Row]) -> None:
    """Refuses, before any work, a type that is read and not written."""
    for source, row in zip(sources, rows, strict=True):
        if row.type not in (source.type, *gguf.FLOATS, *gguf.TYPE_SPECS):
            raise ValueError(
                f"{row.name!r} would be {row.type}, which is read, not written: its codebook is "
                "searched by none here; llama.cpp's llama-quantize does"
            )


def plan_of(
    sources: list[Source], config: Config, mixture: str | None, importance: bool = False
) -> list[mixtures.Row]:
    """The type and size of every tensor: a mixture's, or as they are."""
    if mixture is not None:
        now = [(s.name, s.shape, s.type) for s in sources]
        return mixtures.plan(mixture, now, config, importance)
    rows = []
    for s in sources:
        if s.type not in gguf.TYPES:
            raise ValueError(
                f"tensor {s.name!r} is {s.type}, which no GGUF file holds: give a mixture, save a "
                "folder, or take qlab.models.dense(model)"
            )
        rows.append(mixtures.as_it_is(s.name, s.shape, s.type))
    return rows


def tensors_of(source: Transformer | str | os.PathLike) -> tuple[Config, list[Source]]:
    """The config of a model or of a GGUF file, and its tensors under GGUF's names, rows in GGUF's
    order.

    Raises:
        ValueError: an architecture that llama.cpp does not have, linears whose inputs are
            quantized, or a damaged file.

    Example:
        >>> config, tensors = tensors_of(load("tiny"))   # doctest: +SKIP
        >>> tensors[0].name, tensors[0].shape            # doctest: +SKIP
        ('token_embd.weight', (4096, 256))
    """
    if isinstance(source, Transformer):
        _check_architecture(source)
        return source.config, _of_model(source)
    files.refuse(source)
    file = gguf.read(source)
    config = architectures.gguf_config(file.metadata, "output.weight" not in file.tensors)
    return config, [
        Source(t.name, t.shape, t.type, t.decode, lambda t=t: t.raw) for t in file.tensors.values()
    ]


def _of_model(model: Transformer) -> list[Source]:
    kv.check_no_recipe(model)
    for path, layer in linears(model).items():
        if layer.act is not None:
            raise ValueError(f"{path} quantizes its inputs, which no GGUF file says: save a folder")
    is_q = lambda node: isinstance(node, QTensor)  # noqa: E731
    leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_q)[0]
    paths = [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in leaves]
    return [_source(path, leaf, model.config) for path, (_, leaf) in zip(paths, leaves)]


def _source(path: str, leaf: Any, config: Config) -> Source:
    heads = architectures.turned(path, config)
    order = slice(None)
    if heads:  # the inverse of what loading does
        order = np.argsort(architectures.half_split_rows(heads, leaf.shape[0]))

    def numbers() -> np.ndarray:
        return np.asarray(as_array(leaf), np.float32)[order]

    name, shape = architectures.gguf_name(path), tuple(leaf.shape)
    if not isinstance(leaf, QTensor):
        return Source(name, shape, "F32", numbers, numbers)
    kind = next((kind for kind, spec in gguf.TYPE_SPECS.items() if spec == leaf.spec), None)
    plain = leaf.perm is None and leaf.channel_scale is None
    if kind is None or not plain:
        return Source(name, shape, name_of(leaf.spec), numbers, numbers)  # only a mixture stores it
    return Source(name, shape, kind, numbers, lambda: gguf.from_qtensor(leaf, kind)[order])


# ---- metadata ------------------------------------------------------------------------------------


def gguf_metadata(model: Transformer | str | os.PathLike) -> dict[str, Value]:
    """All that llama.cpp needs to know of a model, and what the model brought from a GGUF file.

    Args:
        model: of the Llama family, with a tokenizer; or a GGUF file of one.

    Returns:
        values by key: general.*, llama.*, tokenizer.*, and the model's notes as qlab.notes.

    Raises:
        ValueError: an architecture or tokenizer that llama.cpp does not have.

    Example:
        >>> gguf_metadata(load("tiny"))["llama.block_count"]   # doctest: +SKIP
        Value.of('u32', 4)
    """
    if not isinstance(model, Transformer):
        found = gguf.read(model).values
        return _carried(found) | {key: found[key] for key in (NOTES,) if key in found}
    _check_architecture(model)
    if model.tokenizer is None:
        raise ValueError(f"the model {model.name!r} has no tokenizer: llama.cpp cannot do without")
    header = _carried(model.label.header)
    values = {
        "general.architecture": Value.of("str", "llama"),
        "general.type": Value.of("str", "model"),
        "general.name": Value.of("str", model.name),
    }
    values |= header | _architecture(model.config)
    if "tokenizer.ggml.tokens" not in header:
        facts = tokenizer.to_gguf(model.tokenizer, model.config.vocab_size)
        values |= {key: Value.of(*value) for key, value in facts.items()}
    return values | {NOTES: Value.of("[str]", list(model.notes))}


def _architecture(c: Config) -> dict[str, Value]:
    counts = {
        "vocab_size": c.vocab_size,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "rope.dimension_count": c.head_dim,
    }
    if c.head_dim * c.num_attention_heads != c.hidden_size:
        counts |= {"attention.key_length": c.head_dim, "attention.value_length": c.head_dim}
    reals = {"rope.freq_base": c.rope_theta, "attention.layer_norm_rms_epsilon": c.rms_norm_eps}
    values = {key: Value.of("u32", n) for key, n in counts.items()}
    values |= {key: Value.of("f32", x) for key, x in reals.items()}
    return {f"llama.{key}": value for key, value in values.items()}


def _carried(values: Mapping[str, Value]) -> dict[str, Value]:
    """What another file's metadata say that stays true."""
    return {key: value for key, value in values.items() if not key.startswith(_OWN)}


def _said(
    rows: list[mixtures.Row],
    mixture: str | None,
    imatrix: files.Imatrix | None,
    means: Mapping[str, np.ndarray],
) -> dict[str, Value]:
    """What the new file says of its quantization, under llama.cpp's keys."""
    values = {"general.quantization_version": Value.of("u32", 2)}
    number = _file_type(rows) if mixture is None else mixtures.mixture(mixture).number
    if number is not None:  # llama.cpp guesses where nothing is said
        values["general.file_type"] = Value.of("u32", number)
    if imatrix is not None:
        said = {
            "dataset": ("str", ", ".join(imatrix.datasets)),
            "entries_count": ("u32", len(means)),
            "chunks_count": ("u32", imatrix.chunks),
        }
        values |= {f"quantize.imatrix.{key}": Value.of(*value) for key, value in said.items()}
    return values


def _file_type(rows: list[mixtures.Row]) -> int | None:
    """The mixture that llama.cpp would guess from the type of most matrices; None: it has none."""
    matrices = Counter(row.type for row in rows if mixtures.quantizable(row.name, row.shape))
    kind = matrices.most_common(1)[0][0] if matrices else "F32"
    found = mixtures.MIXTURES.get(f"{kind}_M") or mixtures.MIXTURES.get(kind)
    return None if found is None else found.number


def _check_architecture(model: Transformer) -> None:
    if not isinstance(model.config, Config):
        raise ValueError(
            f"llama.cpp knows no architecture {model.config.model_type!r}: GGUF files are written "
            "of the Llama family; save a folder"
        )


# ---- blocks --------------------------------------------------------------------------------------


def _means(imatrix: files.Imatrix | None, rows: list[mixtures.Row]) -> dict[str, np.ndarray]:
    """Importance by tensor, where its columns are those of the tensor."""
    if imatrix is None:
        return {}
    columns = {row.name: row.shape[-1] for row in rows}
    means = imatrix.means()
    for name in means.keys() & columns.keys():
        if means[name].shape != (columns[name],):
            raise ValueError(
                f"the imatrix has {means[name].size} columns of {name!r}, the model {columns[name]}"
            )
    strangers = sorted(means.keys() - columns.keys())
    if strangers and len(strangers) == len(means):
        raise ValueError(f"the imatrix is of another model: {strangers[0]!r} is no tensor of it")
    return {name: mean for name, mean in means.items() if name in columns}


def _data(
    source: Source, kind: str, importance: np.ndarray | None, bar: tqdm
) -> Callable[[], np.ndarray]:
    """A function that makes a tensor's bytes when its turn comes."""

    def make() -> np.ndarray:
        bar.set_postfix_str(f"{source.name} {kind}", refresh=False)
        raw = source.blocks() if kind == source.type else None
        raw = encode(source.numbers(), kind, importance, source.name) if raw is None else raw
        bar.update()
        return raw

    return make


def encode(
    w: np.ndarray, kind: str, importance: np.ndarray | None = None, name: str = "w"
) -> np.ndarray:
    """`io.gguf.encode` for a tensor of any number of axes; what it cannot hold is refused by name.

    Args:
        w: (..., cols) float32.
        kind: a key of `io.gguf.TYPES`.
        importance: (cols,) float32 or None.
        name: of the tensor, for the sentence of an error.

    Returns:
        (rows, bytes) uint8.

    Raises:
        ValueError: NaN or Inf, or numbers beyond the largest of half precision.

    Example:
        >>> encode(np.array([[1.0]], np.float32), "BF16").tolist()
        [[128, 63]]
    """
    w = np.ascontiguousarray(w, np.float32).reshape(-1, w.shape[-1])
    if not np.isfinite(w).all():
        raise ValueError(f"tensor {name!r} holds NaN or Inf")
    if kind == "F16" and (most := np.abs(w).max()) >= 65520:
        raise ValueError(f"tensor {name!r} reaches {most:g}, half precision 65504")
    return gguf.encode(w, kind, importance)
