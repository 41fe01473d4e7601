"""What a quantized model is made of, in words and hashes: enough to do it again, or to see that it
was done otherwise.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.activations import name_of as act_name
from qlab.io.safetensors import act_to_json, spec_to_json
from qlab.methods import METHODS
from qlab.models.calibrate import Batches
from qlab.models.plan import Job, Task, method_name
from qlab.specs import name_of
from qlab.stats import Stats

# Modules whose numbers a run depends on, beside all methods and models.
ARITHMETIC = (
    *("arithmetic", "formats", "rules", "qtensor", "ranges", "specs", "stats"),
    *("activations", "observers"),
)


def weights_hash(model: Any) -> str:
    """sha256 over every array of a model (or any pytree) and its place in the tree, and over how
    it quantizes keys and values; labels do not matter.

    Example:
        >>> weights_hash(model) == weights_hash(model)   # doctest: +SKIP
        True
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        x = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode())
        digest.update(np.ascontiguousarray(x).view(np.uint8).data)
    digest.update(repr(getattr(model, "config", "")).encode())
    if getattr(model, "kv", None) is not None:
        digest.update(_kv_in_words(model.kv).encode())
    return digest.hexdigest()


def _kv_in_words(recipe: Any) -> str:
    """A KV recipe in words that are the same in every run."""
    sides = (recipe.key_side, recipe.value_side)
    specs = [None if side.spec is None else spec_to_json(side.spec) for side in sides]
    return json.dumps([specs, [side.by for side in sides], recipe.window])


def versions(*more: str) -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {name: _version(name) for name in ("qlab", "jax", "flax", "numpy", *more)}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def said(hyper: Mapping[str, Any]) -> dict[str, str]:
    """Settings in words that are the same in every run: a function by its name, an array by its
    hash.
    """
    return {name: _in_words(x) for name, x in sorted(hyper.items())}


def _in_words(x: Any) -> str:
    if hasattr(x, "__array__") and np.ndim(x):
        x = np.asarray(x)
        return f"{x.dtype} {x.shape} sha256 {hashlib.sha256(x.tobytes()).hexdigest()}"
    return getattr(x, "__name__", None) or repr(x)


def code_hash(run: Callable) -> str:
    """sha256 over the source of this package's arithmetic, methods and models, and over a method of
    one's own with all that it names: what a half-finished run must not mix.

    Raises:
        ValueError: the method holds something whose changes cannot be seen.
    """
    package = Path(__file__).resolve().parent.parent
    files = [package / f"{name}.py" for name in ARITHMETIC]
    files += [*package.glob("methods/*.py"), *package.glob("models/*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    code = getattr(inspect.unwrap(run), "__code__", None)
    ours = any(run is method for method in METHODS.values())
    if not (ours and code and Path(code.co_filename).resolve().is_relative_to(package)):
        digest.update(fingerprint_of(run, f"method {method_name(run)!r}", "cache").encode())
    return digest.hexdigest()


# ---- has it changed? -----------------------------------------------------------------------------


def fingerprint_of(value: Any, name: str, asked: str = "checkpoint") -> str:
    """sha256 of anything a method, or an optimizer, may be made of."""
    digest = hashlib.sha256()
    try:
        fingerprint(value, digest, [])
    except (TypeError, RecursionError) as error:
        raise ValueError(
            f"{asked}= cannot tell whether {name} changed: {error}; leave {asked} out"
        ) from error
    return digest.hexdigest()


def fingerprint(value: Any, digest: Any, seen: list) -> None:
    """Feeds a hash with a value: code by its bytecode and all that it names, an object by its type
    and fields, an array by its bytes.

    Args:
        value: anything.
        digest: of hashlib.
        seen: functions, classes and objects met so far; each is followed once.

    Raises:
        TypeError: a value that hides what it holds.
    """
    digest.update(f"{type(value).__qualname__} ".encode())
    if isinstance(value, PLAIN):
        digest.update(repr(value).encode())
        return
    if isinstance(value, tuple | list):
        parts = list(value)
    elif isinstance(value, set | frozenset):
        parts = sorted(value, key=repr)
    elif isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, types.CodeType):
        parts = [value.co_code, value.co_consts, value.co_names, value.co_varnames]
    elif isinstance(value, types.ModuleType):
        parts = [value.__name__, b"" if _library(value) else _source(value)]
    elif hasattr(value, "__array__") and not isinstance(value, type):
        x = np.asarray(jax.random.key_data(value) if _is_key(value) else value)
        if x.dtype.hasobject:
            raise TypeError("an array of Python objects")
        parts = [str(x.dtype), x.shape, x.tobytes()]
    elif any(value is one for one in seen):
        parts = [next(i for i, one in enumerate(seen) if one is value)]
    else:
        seen.append(value)
        parts = _parts(value)
    digest.update(f"{len(parts)}(".encode())
    for part in parts:
        fingerprint(part, digest, seen)


PLAIN = (
    *(type(None), type(...), bool, int, float, complex, str, bytes),
    *(range, slice, np.dtype, PurePath),
)


def _parts(value: Any) -> list:
    """What a function, class or object is made of."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        if _library(value):
            return [value.__module__, value.__qualname__, cells]
        named = {n: value.__globals__[n] for n in _globals(value.__code__) & {*value.__globals__}}
        defaults = [value.__defaults__, value.__kwdefaults__]
        return [value.__code__, cells, defaults, sorted(named.items()), vars(value)]
    if isinstance(value, type):
        found = [value.__module__, value.__qualname__]
        if _library(value):
            return found
        hidden = ("__dict__", "__weakref__", "__module__", "__doc__")
        return [*found, value.__bases__, {k: x for k, x in vars(value).items() if k not in hidden}]
    if isinstance(value, property | staticmethod | classmethod):
        return [getattr(value, name, None) for name in ("fget", "fset", "__func__")]
    if hasattr(value, "__wrapped__"):  # jax.jit, functools.cache
        return [value.__wrapped__]
    if isinstance(value, types.BuiltinFunctionType | np.ufunc):
        return [getattr(value, "__module__", None), value.__name__, getattr(value, "__self__", 0)]
    if dataclasses.is_dataclass(value):  # without what it remembers beside its fields
        return [type(value), *(getattr(value, f.name) for f in dataclasses.fields(value))]
    if hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
        return [type(value), vars(value)]
    raise TypeError(f"a {type(value).__name__} does not show what it holds")


def _globals(code: types.CodeType) -> set[str]:
    """Names of the globals that code reads, nested functions included."""
    read = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    nested = (one for one in code.co_consts if isinstance(one, types.CodeType))
    return read.union(*map(_globals, nested))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is bound later
        return None


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _library(value: Any) -> bool:
    """Whether code was installed: then its version stands for it."""
    if isinstance(value, types.FunctionType):
        file = value.__code__.co_filename
    else:
        name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        if name == "__main__":
            return False
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            return name in sys.builtin_module_names
    path = Path(str(file)).resolve()
    places = (Path(__file__).resolve().parent.parent, Path(os.__file__).resolve().parent)
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return bool(installed) or any(path.is_relative_to(place) for place in places)


def _source(module: types.ModuleType) -> bytes:
    file = getattr(module, "__file__", None)
    return b"" if file is None else Path(file).read_bytes()


# ---- all of it -----------------------------------------------------------------------------------


def provenance_of(
    job: Job, mode: str, kinds: Mapping[str, Batches], stats: Mapping[str, Stats] | None
) -> dict[str, Any]:
    """What the result is made of, as JSON values."""
    model = job.model
    specs = dict.fromkeys(name_of(task.spec) for task in job.tasks)
    acts = dict.fromkeys(act_name(task.act) for task in job.tasks if task.act is not None)
    found = {
        "model": dict(model.label.provenance, name=model.name, weights=weights_hash(model)),
        "method": job.method,
        "spec": list(specs),
        "hyper": said(job.hyper),
        "propagate": mode,
        "versions": versions(),
    }
    if acts:
        found["act"] = list(acts)
    if job.objective != "linear":
        found["objective"] = job.objective
    if stats is not None:
        found["stats"] = weights_hash(dict(stats))
    if kinds:
        text = kinds["calibration"]
        found["calibration"] = dict(text.provenance, sequences=len(text), token_sha256=text.hash)
    if "held_out" in kinds:
        held = kinds["held_out"]
        found["held_out"] = {
            "sequences": len(held),
            "tokens": held.count,
            "token_sha256": held.hash,
        }
    return found


def facts(job: Job, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the result, one short value for each reason why a folder may not fit."""
    plan = {
        path: "float" if task is None else task_in_words(task) for path, task in job.plan.items()
    }
    return {
        **provenance,
        "plan": plan,
        "code": [code_hash(run) for run in job.runs],
        "settings": fingerprint_of(dict(job.hyper), "a setting", "cache"),
        "device": f"{jax.devices()[0].platform} ({jax.devices()[0].device_kind})",
    }


def task_in_words(task: Task) -> str:
    """A linear's task in words, with a hash of what they do not say; its settings are told apart
    elsewhere.
    """
    act = None if task.act is None else act_to_json(task.act)
    ranges = None
    if task.act is not None and task.act.ranges is not None:
        ranges = weights_hash(task.act.ranges)
    method, spec = method_name(task.run), spec_to_json(task.spec)
    whole = hashlib.sha256(json.dumps([method, spec, act, ranges]).encode()).hexdigest()
    read = "" if task.act is None else f", inputs {act_name(task.act)}"
    return f"{method}, {name_of(task.spec)}{read} ({whole[:16]})"
