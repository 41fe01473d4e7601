"""Our own folder for a model, quantized or not: safetensors with codes packed densely, and JSON
beside them.

    model.safetensors   every leaf of the model under its tree path; codes as dense bytes
    (`qlab.packing`)
    config.json, tokenizer.json, qlab.json (Specs, shapes, notes, report, provenance), times.json

Saving the same model twice gives the same bytes: what changes from run to run is in times.json
alone. Not here: how tensors become a model again (`models.load`), and other people's layouts.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qlab.activations import Act
from qlab.formats import FORMATS, Format
from qlab.packing import pack, unpack
from qlab.qtensor import QTensor, Spec
from qlab.rules import RULES

MANIFEST = "qlab.json"
WEIGHTS = "model.safetensors"
VERSION = 1
_PARTS = ("codes", "scale", "zero", "offset", "perm", "channel_scale")


# ---- Specs as JSON -------------------------------------------------------------------------------


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """A Spec as plain JSON values: formats and rules by their names, a scale's Spec nested.

    Raises:
        ValueError: a format or rule that FORMATS or RULES do not name.

    Example:
        >>> from qlab.formats import INT4
        >>> spec_to_json(Spec(INT4, 64, "float16"))["scale"]
        'float16'
    """
    names = [name for name, rule in RULES.items() if rule is spec.rule]
    if not names:
        name = getattr(spec.rule, "__name__", spec.rule)
        raise ValueError(f"rule {name!r} is not in RULES, so a file cannot name it: add it there")
    block = list(spec.block) if isinstance(spec.block, tuple) else spec.block
    fields = {name: _how_to_json(getattr(spec, name)) for name in ("scale", "zero", "offset")}
    return {"format": _format_name(spec.format), "block": block, **fields, "rule": names[0]}


def spec_from_json(found: dict[str, Any]) -> Spec:
    """The Spec again.

    Raises:
        ValueError: a format or rule that this version does not know, or a field that is missing.

    Example:
        >>> from qlab.formats import INT4
        >>> spec_from_json(spec_to_json(Spec(INT4, 64))) == Spec(INT4, 64)
        True
    """
    try:
        block, rule = found["block"], RULES[found["rule"]]
        fields = {name: _how_from_json(found[name]) for name in ("scale", "zero", "offset")}
        block = tuple(block) if isinstance(block, list) else block
        return Spec(FORMATS[found["format"]], block, rule=rule, **fields)
    except KeyError as error:
        raise ValueError(f"a stored Spec needs or names {error.args[0]!r}, unknown here") from None


def act_to_json(act: Act) -> dict[str, Any]:
    """An Act as plain JSON values, without its ranges: those are tensors.

    Example:
        >>> from qlab.activations import ACTS
        >>> act_from_json(act_to_json(ACTS["llm_int8"])) == ACTS["llm_int8"]
        True
    """
    return {"spec": spec_to_json(act.spec), "threshold": act.threshold, "static": act.static}


def act_from_json(found: dict[str, Any], ranges: QTensor | None = None) -> Act:
    """The Act again, with ranges if it has any.

    Raises:
        ValueError: as `spec_from_json`.
    """
    spec = spec_from_json(found["spec"])
    return Act(spec, ranges, threshold=found["threshold"], static=found["static"])


def _format_name(format: Format) -> str:
    if FORMATS.get(format.name) != format:
        raise ValueError(
            f"format {format.name!r} is not in FORMATS, so a file cannot name it: add it there"
        )
    return format.name


def _how_to_json(how: str | Format | Spec | None) -> Any:
    if isinstance(how, Spec):
        return spec_to_json(how)
    return {"format": _format_name(how)} if isinstance(how, Format) else how


def _how_from_json(how: Any) -> Any:
    if not isinstance(how, dict):
        return how
    return spec_from_json(how) if "block" in how else FORMATS[how["format"]]


# ---- saving --------------------------------------------------------------------------------------


def save(model: Any, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Writes a model to a folder that `qlab.load` reads: the same model, the same logits, bit for
    bit.

    The folder appears whole or not at all: it is written beside its place and renamed.

    Args:
        model: a Transformer, quantized or not.
        folder: where to; must not exist or be empty, unless `overwrite`.
        overwrite: replace what is there.

    Returns:
        the folder.

    Raises:
        ValueError: the folder holds something already, or a Spec cannot be named in a file.

    Example:
        >>> q = qlab.quantize_model(qlab.load("tiny"), "rtn", "int4_g64")   # doctest: +SKIP
        >>> qlab.save(q, "tiny-int4")                          # doctest: +SKIP
        >>> qlab.load("tiny-int4").report                      # doctest: +SKIP
    """
    target = Path(folder).expanduser()
    if target.suffix == ".gguf":
        raise ValueError(
            f"{target.name} is the name of a GGUF file, which qlab.save writes; give a folder"
        )
    if target.is_file():
        raise ValueError(f"{target} is a file; give a folder")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ValueError(f"{target} is not empty; overwrite=True replaces it")
    tensors, quantized = leaves(model)
    manifest = _manifest(model, quantized)
    with _atomic_folder(target) as part:
        save_file(tensors, part / WEIGHTS)
        _write_json(part / "config.json", {"model_type": model.config.model_type, **_config(model)})
        _write_json(part / MANIFEST, manifest)
        if model.tokenizer is not None:
            (part / "tokenizer.json").write_text(model.tokenizer.to_json(), encoding="utf-8")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        _write_json(part / "times.json", {"saved": now})
    return target


def leaves(model: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a file keeps of a model, or of any tree of arrays and QTensors.

    Returns:
        every array by tree path, codes packed; and {path: {"spec", "shape"}} of every QTensor,
        nested ones too.

    Raises:
        ValueError: as `spec_to_json`.

    Example:
        >>> from qlab import SPECS, quantize
        >>> tensors, quantized = leaves({"a": quantize(jnp.ones((2, 64)), SPECS["int4_g64"])})
        >>> sorted(tensors), tensors["a.codes"].nbytes, quantized["a"]["shape"]
        (['a.codes', 'a.scale'], 64, [2, 64])
    """
    tensors: dict[str, np.ndarray] = {}
    quantized: dict[str, Any] = {}

    def visit(path: str, node: Any) -> None:
        if not isinstance(node, QTensor):
            tensors[path] = np.ascontiguousarray(node)
            return
        quantized[path] = {"spec": spec_to_json(node.spec), "shape": list(node.shape)}
        for name in _PARTS:
            part = getattr(node, name)
            if name == "codes" and part is not None:
                tensors[f"{path}.codes"] = pack(np.asarray(part), node.spec.format)
            elif part is not None:
                visit(f"{path}.{name}", part)

    is_q = lambda node: isinstance(node, QTensor)  # noqa: E731
    for keys, node in jax.tree_util.tree_flatten_with_path(model, is_leaf=is_q)[0]:
        visit(jax.tree_util.keystr(keys, simple=True, separator="."), node)
    return tensors, quantized


def _manifest(model: Any, quantized: dict[str, Any]) -> dict[str, Any]:
    tokenizer, report = model.tokenizer, model.report
    return {
        "version": VERSION,
        "name": model.name,
        "notes": list(model.notes),
        "provenance": model.label.provenance,
        "report": None if report is None else report.to_dict(),
        "eos_ids": list(tokenizer.eos_ids) if tokenizer else [],
        "bos_id": tokenizer.bos_id if tokenizer else None,
        "quantized": quantized,
        "acts": _acts(model),
    }


def _acts(model: Any) -> dict[str, Any]:
    """{path of the linear: its Act} of every linear whose inputs are quantized."""
    is_act = lambda node: isinstance(node, Act)  # noqa: E731
    return {
        jax.tree_util.keystr(keys, simple=True, separator=".").removesuffix(".act"): (
            act_to_json(node)
        )
        for keys, node in jax.tree_util.tree_flatten_with_path(model, is_leaf=is_act)[0]
        if is_act(node)
    }


def _config(model: Any) -> dict[str, Any]:
    return {name: getattr(model.config, name) for name in model.config.__dataclass_fields__}


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place at the end, or vanishes on an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    old = part.with_name(part.name + ".old")
    try:
        part.chmod(0o755)
        yield part
        if target.exists():
            os.rename(target, old)
        os.rename(part, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


# ---- loading -------------------------------------------------------------------------------------


def load_tensors(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `save` wrote: arrays and QTensors by path, and the facts of qlab.json with "config"
    beside them.

    Raises:
        ValueError: a file is missing, damaged, or of a later version.
    """
    facts = read_json(folder / MANIFEST)
    if facts.get("version") != VERSION:
        raise ValueError(f"{folder} has version {facts.get('version')}, this qlab reads {VERSION}")
    config = read_json(folder / "config.json")
    tensors: dict[str, Any] = dict(read_safetensors(folder / WEIGHTS))
    try:
        # Nested QTensors have the longer paths: made first, they are parts of the outer ones.
        for path in sorted(facts["quantized"], key=len, reverse=True):
            tensors[path] = qtensor(path, facts["quantized"][path], tensors)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged: {error} is missing") from None
    return tensors, {**facts, "config": config}


def qtensor(path: str, entry: dict[str, Any], tensors: dict[str, Any]) -> QTensor:
    """One QTensor out of its parts.

    Args:
        path: its place in the tree; a nested QTensor must be in `tensors` already.
        entry: its Spec and shape, as `leaves` gives them.
        tensors: arrays by path; the parts leave it.

    Raises:
        ValueError: as `spec_from_json`.
        KeyError: the codes are missing.

    Example:
        >>> from qlab import SPECS, quantize
        >>> tensors, quantized = leaves({"a": quantize(jnp.ones((2, 64)), SPECS["int4_g64"])})
        >>> qtensor("a", quantized["a"], tensors).shape, tensors
        ((2, 64), {})
    """
    spec = spec_from_json(entry["spec"])
    codes = None  # ranges alone, of a linear's inputs
    if entry["shape"]:
        packed = np.asarray(tensors.pop(f"{path}.codes"))
        codes = jnp.asarray(unpack(packed, spec.format, tuple(entry["shape"])))
    rest = [tensors.pop(f"{path}.{name}", None) for name in _PARTS[1:]]
    return QTensor(codes, *rest, spec=spec)


def read_safetensors(path: Path) -> dict[str, jax.Array]:
    """The tensors of one file, in the dtypes it stores.

    Raises:
        ValueError: the file is missing, truncated or damaged.
    """
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}")
    try:
        with safe_open(path, framework="flax") as file:
            return {key: jnp.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; a clear sentence where there is none."""
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found
