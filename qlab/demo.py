"""`qlab demo`: a real language model, quantized eleven ways, and what that cost, with bars.

The float model, the same weights at another batch size (the noise floor of the arithmetic), INT8,
three times INT4, INT3, INT2 by rounding; INT3 by HQQ, AWQ and GPTQ, W8A8 by SmoothQuant, which the
cache keeps. Then one sentence continued by some of them, and the pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax import devices
from rich.console import Console

import qlab
from qlab.cache import cache_dir
from qlab.io.atomic import atomic_file
from qlab.io.safetensors import spec_to_json
from qlab.models.provenance import code_hash, versions, weights_hash
from qlab.suggest import counted

TEXTS = ("english", "korean")
CONTEXT = 256
TOKENS = 2048  # of each text: eight windows, the fewest that carry bars
FLOOR = "float, other batch"
ROWS = {
    "INT8 channel": "int8_channel",
    "INT4 channel": "int4_channel",
    "INT4 g64": "int4_g64",
    "INT4 g32": "int4_g32",
    "INT3 g64": "int3_g64",
    "INT2 g64": "int2_g64",
}
# name -> method, Spec, quantized inputs; calibrated on the calibration halves of TEXTS
METHODS: dict[str, tuple[str, qlab.Spec, str | None]] = {
    "HQQ INT3 g64": ("hqq", qlab.specs.hqq(3), None),
    "AWQ INT3 g64": ("awq", qlab.SPECS["int3_g64"], None),
    "GPTQ INT3 g64": ("gptq", qlab.SPECS["int3_g64"], None),
    "SmoothQuant W8A8": ("smoothquant", qlab.SPECS["int8_channel"], "int8_token"),
}
CALIBRATION = 8192  # tokens
SPOKEN = ("float", "INT4 g64", "INT3 g64", "GPTQ INT3 g64", "INT2 g64")
PROMPT = "Once upon a time, a little robot"


def demo(
    name: str = "smollm2-135m",
    tokens: int = TOKENS,
    json_file: str | os.PathLike | None = None,
    figures: str | os.PathLike = "figures",
    console: Console | None = None,
) -> qlab.evaluation.Comparison:
    """Runs the demo and returns its table.

    Args:
        name: anything `qlab.load` takes; if "smollm2-135m" cannot be had, the demo says so and goes
            on with "tiny".
        tokens: of each text.
        json_file: where to write everything as JSON.
        figures: folder for the pictures.
        console: where to print.
    """
    began = time.perf_counter()
    console = console or Console()
    model = _load(name, console)
    rows, spoken = _measure(model, tokens, console)
    table = qlab.compare(rows, show=False)
    table.print(console)
    said = _continue(spoken, console)
    written = _draw(model.name, rows, said, Path(figures))
    for path in written:
        console.print(f"wrote [bold]{path}[/] (and .svg, .txt beside it)", highlight=False)
    seconds, memory = time.perf_counter() - began, peak_memory()
    if json_file:
        facts = {"seconds": seconds, "peak_memory_bytes": memory, "prompt": PROMPT, "said": said}
        _write_json(Path(json_file), table.to_dict() | facts)
        console.print(f"wrote [bold]{json_file}[/]", highlight=False)
    console.print(
        f"\n{len(rows)} rows in {seconds:.0f} s, peak memory {memory / 2**30:.2f} GiB. "
        "Open the notebooks with [bold]make lab[/] or [bold]qlab lab[/].",
        highlight=False,
    )
    return table


def _load(name: str, console: Console) -> Any:
    with console.status(f"loading {name}"):
        try:
            model = qlab.load(name)
        except (OSError, ValueError) as error:
            if name != "smollm2-135m":
                raise
            console.print(f"[bold red]SmolLM2 cannot be had: {error}[/]")
            console.print("[bold red]The demo goes on with the small bundled model, tiny.[/]")
            model = qlab.load("tiny")
    config = model.config
    console.print(
        f"[bold]{model.name}[/]: {counted(config.num_hidden_layers, 'layer')} of width "
        f"{config.hidden_size}, "
        f"a vocabulary of {config.vocab_size:,}",
        highlight=False,
    )
    return model


def _measure(model: Any, tokens: int, console: Console) -> tuple[list, dict[str, Any]]:
    """The evaluations, and the models that will speak."""
    settings: dict[str, Any] = {"texts": TEXTS, "tokens": tokens, "context": CONTEXT}
    settings |= {"reference": model, "progress": console.is_terminal}
    spoken = {"float": model}
    steps: list[tuple[str, Callable[[], Any], dict[str, Any]]] = [
        ("float", lambda: model, {}),
        (FLOOR, lambda: model, {"batch": 1}),
    ]
    for name, spec in ROWS.items():
        steps.append(
            (name, lambda s=spec: qlab.quantize_model(model, "rtn", s, progress=False), {})
        )
    rows = []
    for i, (name, make, extra) in enumerate(steps, 1):
        began = time.perf_counter()
        candidate = make()
        rows.append(qlab.evaluate(candidate, name=name, **(settings | extra)))
        if name in SPOKEN:
            spoken[name] = candidate
        _took(console, i, name, began)
    batches = qlab.calibration_batches(model, TEXTS, CALIBRATION, CONTEXT)
    for i, name in enumerate(METHODS, len(steps) + 1):
        began = time.perf_counter()
        row, candidate = _kept(model, name, batches, settings, console)
        rows.append(row)
        if name in SPOKEN:
            spoken[name] = candidate()
        _took(console, i, name, began)
    return rows, {name: spoken[name] for name in SPOKEN}


def _took(console: Console, i: int, name: str, began: float) -> None:
    seconds, of = time.perf_counter() - began, len(ROWS) + len(METHODS) + 2
    console.print(f"  {i}/{of} {name}: {seconds:.1f} s", style="dim", highlight=False)


def _kept(
    model: Any, name: str, batches: Any, settings: dict[str, Any], console: Console
) -> tuple[Any, Callable[[], Any]]:
    """A method's row, and how to have its model: the cache keeps both, so only the first run
    works.
    """
    method, spec, act = METHODS[name]
    folder = _folder(model, name, batches, settings["tokens"])
    made = folder / f"block-{len(model.layers) - 1:04d}.json"
    text = batches if qlab.METHODS[method].propagate != "none" else None

    def candidate() -> Any:
        if not made.exists():
            what = f"{batches.count:,} tokens go through" if text is not None else "going through"
            console.print(
                f"  {name}: {what} {counted(len(model.layers), 'block')}; the result is kept for "
                "next time, and a run that stops goes on where it was",
                style="dim",
                highlight=False,
            )
        show = console.is_terminal
        return qlab.quantize_model(model, method, spec, text, act=act, cache=folder, progress=show)

    file = folder.with_suffix(".json")
    if file.exists() and made.exists():
        return qlab.evaluation.Evaluation.from_dict(json.loads(file.read_text())), candidate
    found = candidate()
    row = qlab.evaluate(found, name=name, **settings)
    _write_json(file, row.to_dict())
    return row, lambda: found


def _folder(model: Any, name: str, batches: Any, tokens: int) -> Path:
    """Where a row's blocks are kept: another place for everything that would change them, or what
    is measured on them.
    """
    method, spec, act = METHODS[name]
    package = Path(qlab.__file__).parent
    scoring = b"".join(file.read_bytes() for file in sorted(package.glob("evaluation/*.py")))
    texts = [qlab.texts(text, "evaluation") for text in TEXTS]
    what = [
        weights_hash(model),
        code_hash(qlab.METHODS[method]),
        hashlib.sha256(scoring).hexdigest(),
        versions(),
        batches.hash,
        *(name, method, spec_to_json(spec), act),
        *(texts, tokens, CONTEXT, str(devices())),
    ]
    return cache_dir() / "demo" / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _continue(models: dict[str, Any], console: Console) -> dict[str, str]:
    """The same sentence continued by each model, printed as it is written."""
    console.print(f"\n[bold]{PROMPT} …[/]")
    said = {}
    for name, model in models.items():
        console.print(f"  [bold]{name}[/]:", end=" ", highlight=False)
        said[name] = qlab.generate(model, PROMPT, max_new_tokens=24).replace("\n", " ")
        console.print(said[name], markup=False, highlight=False)
    return said


def _draw(model: str, rows: list, said: dict[str, str], folder: Path) -> list[Path]:
    series = {text: quality_points(rows, text) for text in TEXTS}
    floor = {text: row[text].kl.value for row in rows if row.name == FLOOR for text in TEXTS}
    pictures = {
        "demo_quality": qlab.plots.size_quality(series, floor=floor, model=model),
        "demo_words": qlab.plots.continuations(PROMPT, said, model=model),
    }
    pairs = paired_rows(rows, TEXTS[0])
    if pairs:  # fewer than eight windows carry no bars
        pictures["demo_pairs"] = qlab.plots.paired_bars(pairs, text=TEXTS[0])
    return [qlab.plots.save(figure, folder / name)[1] for name, figure in pictures.items()]


def quality_points(rows: list, text: str) -> list[dict[str, Any]]:
    """Rows of a table as points of `plots.size_quality`; the float rows lie off the picture."""
    return [
        {
            "name": row.name,
            "bits": row.size.linears.bits_per_weight,
            "loss": row[text].kl.value,
            "bar": row[text].kl.bar,
        }
        for row in rows
        if row.size.linears.bits_per_weight < 16
    ]


def paired_rows(rows: list, text: str, most: float = 1.0) -> list[dict[str, Any]]:
    """Rows for `plots.paired_bars`: differences from the first row, below `most`, and bars."""
    found = []
    for row in rows[1:]:
        paired = qlab.evaluation.paired_difference(rows[0], row, text)
        apart = qlab.evaluation.unpaired_difference(rows[0], row, text)
        if paired.bar and apart.bar and paired.value < most and row.name != FLOOR:
            found.append(
                {
                    "name": row.name,
                    "difference": paired.value,
                    "paired": paired.bar,
                    "unpaired": apart.bar,
                }
            )
    return found


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path, overwrite=True) as sink:
        sink.write(json.dumps(content, indent=1, ensure_ascii=False).encode())


def provenance(row: Any) -> dict[str, Any]:
    """The protocol of a row as a plain dict."""
    return dataclasses.asdict(row.protocol)
