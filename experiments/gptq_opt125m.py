"""GPTQ's table for OPT-125M by the paper's protocol: what the paper prints, what is measured here.

Frantar et al. 2022, arXiv 2210.17323, and its code, IST-DASLab/gptq `opt.py`, `datautils.py`:
calibrate on 128 random segments of 2048 tokens of C4's first shard (seed 0), quantize every linear
of the blocks per row and asymmetric, score WikiText-2's test text in windows of 2048 side by side.

    python experiments/gptq_opt125m.py                              everything from the hub
    python experiments/gptq_opt125m.py --folder opt --calibration c4.json.gz --evaluation wiki.raw
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qlab
from qlab.cli import keep_compiled_programs
from qlab.suggest import counted

# The paper's numbers, as it prints them, for OPT-125M on WikiText-2. None of them is measured here.
PAPER = {"float": "27.65", "RTN 4": "37.28", "GPTQ 4": "31.12", "RTN 3": "1.3e3", "GPTQ 3": "53.85"}
MODEL = "facebook/opt-125m"
SAMPLES, CONTEXT, SEED = 128, 2048, 0
C4 = ("allenai/c4", "en/c4-train.00000-of-01024.json.gz")
WIKITEXT = ("ggml-org/ci", "wikitext-2-raw-v1.zip")  # raw text: no reader of parquet is needed
DRAWS = 2_000  # documents drawn for one segment, most of them too short, before giving up


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=MODEL, help="a hub id (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="a local folder in the hub's layout instead")
    parser.add_argument("--calibration", type=Path, help="instead of C4: JSON lines or plain text")
    parser.add_argument("--evaluation", type=Path, help="instead of WikiText-2: a row in each line")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="segments to calibrate on")
    parser.add_argument("--context", type=int, help="tokens in a segment and in a window")
    parser.add_argument("--tokens", type=int, help="how many tokens to score (default: all)")
    parser.add_argument("--rows", nargs="+", choices=list(PAPER), default=list(PAPER))
    parser.add_argument("--out", type=Path, help="keep what was measured in this JSON file")
    given = parser.parse_args(arguments)
    keep_compiled_programs()
    try:
        model, documents, text = ingredients(given)
        context = given.context or min(CONTEXT, model.config.max_position_embeddings)
        batches = None
        if documents:
            batches = segments(documents, model.tokenizer, given.samples, context)
        found = measure(model, batches, text, given, context)
    except (ConnectionError, OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(table(found, differences(model, given, context)))
    return 0


# ---- what is needed ------------------------------------------------------------------------------


def ingredients(given: argparse.Namespace) -> tuple[Any, list[str], str]:
    """Model, calibration documents and evaluation text: local where a path is given, else the
    hub's. Rows without GPTQ need no calibration.

    Raises:
        ConnectionError: the hub is needed and cannot be reached; the sentence lists what for.
    """
    wanted = [
        (given.evaluation, "WikiText-2's raw test text", "--evaluation"),
        (given.folder, f"the model {given.model}", "--folder"),
    ]
    calibrates = any(name.startswith("GPTQ") for name in given.rows)
    if calibrates:
        wanted.append((given.calibration, "C4's first training shard", "--calibration"))
    model = qlab.load(given.folder) if given.folder else None  # a wrong one is told before all
    try:
        evaluation = given.evaluation or from_hub(*WIKITEXT)
        model = model or qlab.load(given.model)
        calibration = given.calibration or (from_hub(*C4) if calibrates else None)
    except ConnectionError as error:
        missing = [(what, option) for path, what, option in wanted if path is None]
        raise ConnectionError(
            f"nothing was measured: the hub is needed for {listed(m[0] for m in missing)} "
            f"and cannot be reached ({error}); {listed(m[1] for m in missing)} can name local "
            "copies"
        ) from None
    if model.tokenizer is None:
        raise ValueError(f"the model {model.name!r} has no tokenizer: its folder lacks the files")
    documents = read(read_documents, calibration) if calibration else []
    return model, documents, read(read_rows, evaluation)


def read(how: Callable[[Path], Any], path: Path) -> Any:
    """`how(path)`, where a damaged file is told by its name.

    Raises:
        ValueError: it is.
    """
    try:
        return how(path)
    except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}, {error}") from None


def listed(words: Any) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def from_hub(repository: str, name: str) -> Path:
    """A file of one of the hub's data sets, fetched once."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # it would tell of every attempt; what comes of them is said once
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except Exception as error:  # the client's errors come from several libraries
        raise ConnectionError(f"{repository}/{name}: {type(error).__name__}") from None


def read_documents(path: Path) -> list[str]:
    """The documents of a file: the "text" of each line of .json, .jsonl (or .gz of them), else the
    whole file as one.
    """
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    with opened as file:
        if any(suffix in (".json", ".jsonl") for suffix in path.suffixes):
            return [json.loads(line)["text"] for line in file if line.strip()]
        return [file.read().decode()]


def read_rows(path: Path) -> str:
    """WikiText's rows joined by a blank line, as the paper joins them; an empty line is an empty
    row.
    """
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("wiki.test.raw")]
            text = archive.read(name).decode()
    else:
        text = path.read_bytes().decode()
    rows = io.StringIO(text, newline=None)  # a row keeps its own line's end
    return "\n\n".join(row if row.strip() else "" for row in rows)


def segments(documents: list[str], tokenizer: Any, samples: int, context: int) -> np.ndarray:
    """Random pieces of random documents, drawn in the original's order, (samples, context) int32.

    Documents that are too short are drawn again. The original takes those of exactly `context`
    tokens too, and then finds no place to start: here they are too short.

    Raises:
        ValueError: hardly a document is long enough.
    """
    draw, rows = random.Random(SEED), []
    for _ in range(DRAWS * samples):
        ids = tokenizer.encode(documents[draw.randint(0, len(documents) - 1)], special=True)
        if len(ids) > context:
            start = draw.randint(0, len(ids) - context - 1)
            rows.append(ids[start : start + context])
        if len(rows) == samples:
            return np.array(rows, np.int32)
    raise ValueError(
        f"{DRAWS * samples} draws from {counted(len(documents), 'document')} gave {len(rows)} "
        f"of {samples} segments: the others have no more than {context} tokens"
    )


# ---- measuring -----------------------------------------------------------------------------------


def measure(
    model: Any, batches: np.ndarray | None, text: str, given: argparse.Namespace, context: int
) -> dict[str, Any]:
    """{row: Evaluation}, one after another; written to --out after each."""
    tokenizer, found = model.tokenizer, {}
    # The original's tokenizer puts one begin token before the whole text (OPT's is `</s>`).
    text = tokenizer.decode(tokenizer.encode("", special=True)) + text
    for name in given.rows:
        candidate = quantized(model, name, batches)
        found[name] = qlab.evaluate(
            candidate, texts={"text": text}, context=context, tokens=given.tokens, name=name
        )
        print(f"{name}: {ppl(found[name])}", file=sys.stderr)
        if given.out:
            keep(given.out, model, found)
    return found


def quantized(model: Any, name: str, batches: np.ndarray | None) -> Any:
    """The model of one row: "float", "RTN 4", "GPTQ 3", …"""
    if name == "float":
        return model
    method, bits = name.lower().split()
    spec = qlab.specs.gptq(int(bits), None, sym=False)
    if method == "rtn":
        return qlab.quantize_model(model, "rtn", spec)
    return qlab.quantize_model(model, "gptq", spec, batches, held_out=0.0, damp=0.01)


def ppl(evaluation: Any) -> str:
    estimate = evaluation.texts[0].ppl
    bar = "" if estimate.bar is None else f" ± {estimate.bar:.2g}"  # None: fewer than 8 windows
    return f"{estimate.value:.2f}{bar}"


def keep(path: Path, model: Any, found: dict[str, Any]) -> None:
    """Writes what was measured so far, and nothing else: the paper's numbers stay out of it."""
    rows = {name: evaluation.to_dict() for name, evaluation in found.items()}
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps({"model": model.label.provenance, "measured": rows}, indent=1))
    os.replace(part, path)


# ---- saying it -----------------------------------------------------------------------------------


def differences(model: Any, given: argparse.Namespace, context: int) -> list[str]:
    """What was done otherwise than in the paper, whose numbers are then no goal."""
    found = []
    if given.folder or given.model != MODEL:
        found.append(f"the model is {model.name!r}, the paper's is {MODEL!r}")
    if given.calibration:
        found.append(f"calibrated on {given.calibration.name}, the paper on C4's first shard")
    if given.evaluation:
        found.append(f"scored on {given.evaluation.name}, the paper on WikiText-2's test text")
    if given.samples != SAMPLES:
        found.append(f"{counted(given.samples, 'segment')}, the paper's {SAMPLES}")
    if context != CONTEXT:
        found.append(f"{context} tokens in a window, the paper's {CONTEXT}")
    if given.tokens:
        found.append(f"only the first {given.tokens} tokens are scored")
    found.append("computed in float32, the paper's in float16")
    found.append(
        "GPTQ sees the inputs of each stage of a block after quantizing the stage before it; the "
        "original's opt.py quantizes all linears of a block from the inputs of the float block"
    )
    return found


def table(found: dict[str, Any], differ: list[str]) -> str:
    """Perplexities as text, the paper's and those measured here side by side."""
    some = next(iter(found.values()))
    score = some.texts[0]
    lines = [("perplexity", "paper (OPT-125M)", "here (measured)")]
    lines += [(name, PAPER[name], ppl(evaluation)) for name, evaluation in found.items()]
    body = [f"{a:<12}{b:>18}{c:>22}" for a, b, c in lines]
    tail = [
        "",
        "paper: printed in Frantar et al. 2022, arXiv 2210.17323; not measured here.",
        f"here: {counted(score.windows, 'window')}, {counted(score.tokens, 'token')} scored, text "
        f"sha256 {score.text_hash[:16]}, weights {some.weights_hash[:16]}; ± is one standard "
        "error.",
        "Not as in the paper:",
        *(f"  · {line}" for line in differ),
    ]
    return "\n".join(body + tail)


if __name__ == "__main__":
    sys.exit(main())
