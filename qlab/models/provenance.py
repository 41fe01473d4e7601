"""What a quantized model is made of, in words and hashes: enough to do it again, or to see that it
was done otherwise.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qlab.io.safetensors import spec_to_json
from qlab.models.calibrate import Batches
from qlab.models.plan import Job, method_name
from qlab.specs import name_of
from qlab.stats import Stats

# Modules whose numbers a run depends on, beside all methods and models.
ARITHMETIC = ("arithmetic", "formats", "rules", "qtensor", "ranges", "specs", "stats")


def weights_hash(model: Any) -> str:
    """sha256 over every array of a model (or any pytree) and its place in the tree; labels do not
    matter.

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
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    return {name: _version(name) for name in ("qlab", "jax", "flax", "numpy")}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def said(hyper: Mapping[str, Any]) -> dict[str, str]:
    """Settings in words that are the same in every run: a function by its name, not its address."""
    return {name: getattr(x, "__name__", None) or repr(x) for name, x in sorted(hyper.items())}


def code_hash(run: Callable) -> str:
    """sha256 over the source of this package's arithmetic, methods and models, and of the file of a
    method of one's own: what a half-finished run must not mix.
    """
    package = Path(__file__).resolve().parent.parent
    files = [package / f"{name}.py" for name in ARITHMETIC]
    files += [*package.glob("methods/*.py"), *package.glob("models/*.py")]
    try:
        own = inspect.getsourcefile(inspect.unwrap(run))
    except TypeError:  # an object with __call__
        own = inspect.getsourcefile(type(run))
    if own is not None and Path(own).is_file():
        files.append(Path(own).resolve())
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def provenance_of(
    job: Job, mode: str, kinds: Mapping[str, Batches], stats: Mapping[str, Stats] | None
) -> dict[str, Any]:
    """What the result is made of, as JSON values."""
    model = job.model
    specs = dict.fromkeys(name_of(spec) for spec in job.plan.values() if spec is not None)
    found = {
        "model": dict(model.label.provenance, name=model.name, weights=weights_hash(model)),
        "method": method_name(job.run),
        "spec": list(specs),
        "hyper": said(job.hyper),
        "propagate": mode,
        "versions": versions(),
    }
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
    plan = {p: None if s is None else spec_to_json(s) for p, s in job.plan.items()}
    return {
        **provenance,
        "plan": hashlib.sha256(json.dumps(plan).encode()).hexdigest(),
        "code": code_hash(job.run),
        "device": f"{jax.devices()[0].platform} ({jax.devices()[0].device_kind})",
    }
