"""The command `qlab`: the library's calls from a shell; tables, progress, errors of one sentence.

Each command imports what it needs when it runs. Compiled programs are kept in the cache folder, so
a second run starts quickly; `import qlab` alone does not switch that on.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="A laboratory for LLM quantization. Begin with [bold]qlab demo[/].",
)
console = Console()

Model = Annotated[
    str,
    typer.Argument(
        help="'tiny', 'smollm2-135m', a hub id such as org/model, a folder, or a .gguf file."
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text", "-t", help="english, code, math, korean, or a file; may be given several times."
    ),
]
Tokens = Annotated[int | None, typer.Option(help="Tokens of each text; default: all of it.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result here as JSON too.")]


def _tell_versions(asked: bool) -> None:
    if asked:
        from qlab.models.provenance import versions

        found = {**versions(), "Python": platform.python_version()}
        said = ", ".join(f"{name} {found[name]}" for name in ("qlab", "jax", "Python"))
        console.print(said, highlight=False)
        raise typer.Exit


@app.callback()
def _start(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the whole traceback of an error.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Say which qlab, jax and Python this is.",
            callback=_tell_versions,
            is_eager=True,
        ),
    ] = False,
) -> None:
    keep_compiled_programs()


def keep_compiled_programs() -> None:
    """Keeps what XLA compiles in the cache folder, unless the environment already says where."""
    import jax

    from qlab.cache import cache_dir

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="The model to round.")] = "smollm2-135m",
    tokens: Annotated[int, typer.Option(help="Tokens of each of the two texts.")] = 2048,
    json_file: Json = None,
    figures: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("figures"),
) -> None:
    """Load a real model, quantize it seven ways, print what was lost, with error bars."""
    from qlab.demo import demo

    demo(model, tokens, json_file, figures, console)


@app.command()
def evaluate(
    model: Model,
    reference: Annotated[
        str | None, typer.Option(help="Compare with this model: KL divergence, same top-1.")
    ] = None,
    spec: Annotated[
        list[str] | None,
        typer.Option(help="Quantize first; the model as given is then the reference. Repeatable."),
    ] = None,
    method: Annotated[str, typer.Option(help="How to quantize for --spec.")] = "rtn",
    kv: Annotated[
        list[str] | None,
        typer.Option(help="Quantize keys and values: a name in qlab.models.KVS. Repeatable."),
    ] = None,
    text: Texts = None,
    tokens: Tokens = None,
    context: Annotated[int | None, typer.Option(help="Tokens in a window.")] = None,
    protocol: Annotated[
        str, typer.Option(help="gptq (all positions) or llama.cpp (second halves).")
    ] = "gptq",
    json_file: Json = None,
) -> None:
    """Perplexity, bits per byte and divergence of a model on texts, with error bars.

    Example: qlab evaluate tiny --spec int4_g64 --spec int2_g64 --text english --tokens 8192

    Example: qlab evaluate smollm2-135m --kv kivi4 --kv kivi2 --tokens 16384
    """
    import qlab

    loaded = _load(model)
    against = _load(reference) if reference else loaded if spec or kv else None
    settings: dict[str, Any] = {
        "texts": _texts(text or ["english"]),
        "tokens": tokens,
        "context": context,
        "protocol": protocol,
        "progress": console.is_terminal,
    }
    rows = [qlab.evaluate(loaded, reference=against, **settings)]
    for name in spec or []:
        quantized = qlab.quantize_model(loaded, method, name, progress=console.is_terminal)
        rows.append(qlab.evaluate(quantized, reference=against, name=name, **settings))
    caches = []
    for name in kv or []:
        quantized = qlab.quantize_kv(loaded, name)
        rows.append(qlab.evaluate(quantized, reference=against, name=f"kv {name}", **settings))
        caches.append(_cache_words(name, quantized, rows[-1].protocol.context))
    _show(qlab.compare(rows, show=False), json_file)
    for line in caches:
        console.print(line, highlight=False, soft_wrap=True)


def _cache_words(name: str, model: Any, tokens: int) -> str:
    """What the keys and values of one window take."""
    from qlab.models.kv import cache_size

    size = cache_size(model.caches(1, tokens), tokens)
    return (
        f"{name}: keys and values of {tokens:,} tokens take {_bytes(size.packed)}, "
        f"{_bytes(size.float16)} as float16 ({size.float16 / size.packed:.1f}×)"
    )


@app.command()
def qat(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    spec: Annotated[str, typer.Option(help="A name in qlab.SPECS, such as int2_g64.")],
    method: Annotated[
        str, typer.Option(help="How gradients pass: ste, clipped, lsq, pact or bitnet.")
    ] = "ste",
    act: Annotated[
        str | None, typer.Option(help="Quantize the linears' inputs too: a name in qlab.ACTS.")
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", help="Text to train on: a domain, or a file. Repeatable."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the optimizer.")] = 200,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    context: Annotated[int | None, typer.Option(help="Tokens in a sequence.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of the weights.")] = 1e-3,
    distill: Annotated[
        bool, typer.Option("--distill", help="Learn from the float model, not the next token.")
    ] = False,
    skip: Annotated[list[str] | None, typer.Option(help="Paths that stay float.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the sequences.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder from which a run that was stopped goes on.")
    ] = None,
    every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    overwrite: Annotated[bool, typer.Option(help="Replace what the folder holds.")] = False,
) -> None:
    """Train a model while it is quantized, and save the quantized one.

    Example: qlab qat tiny --spec int2_g64 --distill --steps 100 --checkpoint run -o tiny-int2
    """
    import qlab

    _check_target(output, checkpoint, overwrite, "--checkpoint")
    with _stoppable(checkpoint, "--checkpoint", "checkpoint"):
        loaded = _load(model)
        trained = qlab.qat(
            loaded,
            spec,
            _texts(text or ["english"], "calibration"),
            teacher=loaded if distill else None,
            act=act,
            steps=steps,
            method=method,
            learning_rate=learning_rate,
            batch=batch,
            skip=skip or (),
            context=context,
            seed=seed,
            checkpoint=checkpoint,
            every=every,
            progress=console.is_terminal,
        )
        qlab.save(trained, output, overwrite=overwrite)
    _wrote(output, trained)


@app.command()
def compare(
    files: Annotated[list[Path], typer.Argument(help="Files that `qlab evaluate --json` wrote.")],
) -> None:
    """Put rows measured at different times into one table; unlike rows are refused by name."""
    import qlab
    from qlab.evaluation import Evaluation

    rows = []
    for file in files:
        found = json.loads(file.read_text())
        if "rows" not in found:
            raise ValueError(f"{file} is not a file that `qlab evaluate --json` wrote")
        rows += [Evaluation.from_dict(row) for row in found["rows"]]
    _show(qlab.compare(rows, show=False), None)


@app.command()
def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder or GGUF file to write.")],
    spec: Annotated[
        str | None, typer.Option(help="A name in qlab.SPECS, such as int4_g64: writes a folder.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="A mixture, such as Q4_K_M: writes a GGUF file instead.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="For --to: importance of the columns, .gguf or .dat.")
    ] = None,
    as_stored: Annotated[
        bool, typer.Option("--as-stored", help="For --to: smollm2-135m on the grid it came on.")
    ] = False,
    method: Annotated[str, typer.Option(help="A name in qlab.METHODS.")] = "rtn",
    act: Annotated[
        str | None,
        typer.Option(help="Quantize the linears' inputs too: a name in qlab.ACTS, as int8_token."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What AWQ searches on: linear, or block (slower, the paper's).")
    ] = "linear",
    skip: Annotated[
        list[str] | None, typer.Option(help="Paths that stay float, such as '*.down_proj'.")
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Text to calibrate on: a domain such as english, or a file. Repeatable."),
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens of it in all.")] = 16_384,
    context: Annotated[
        int | None, typer.Option(help="Tokens in a sequence; default: 512, or the model's most.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the places where sequences begin.")] = 0,
    propagate: Annotated[
        str | None,
        typer.Option(
            help="Inputs to calibrate on: quantized, float or none; default: the method's."
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the sequences that only judge the layers.")
    ] = 0.125,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting of the method, as damp=0.1 or quantizer=gptq. Repeatable."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder from which a run that was stopped goes on.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what the folder holds.")] = False,
) -> None:
    """Quantize a model's linear layers and save it; or write a GGUF file by one of llama.cpp's
    mixtures.

    Example: qlab quantize smollm2-135m --method gptq --spec int4_g64 --calibration english
    --set act_order=true --cache smollm2-run -o smollm2-int4

    Example: qlab quantize smollm2-135m --to Q4_K_M -o smollm2-Q4_K_M.gguf
    """
    import qlab

    if to is not None:
        options = {"--spec": spec, "--act": act, "--skip": skip, "--calibration": calibration,
                   "--set": settings, "--cache": cache}  # fmt: skip
        return _to_gguf(model, output, to, imatrix, as_stored, overwrite, options)
    if spec is None or imatrix is not None or as_stored:
        raise ValueError("give --spec for a folder, or --to (then --imatrix, --as-stored) for GGUF")
    _check_target(output, cache, overwrite)
    with _stoppable(cache):
        loaded, batches = _load(model), None
        if calibration:
            named = _texts(calibration, "calibration")
            batches = qlab.calibration_batches(loaded, named, calibration_tokens, context, seed)
        elif getattr(qlab.METHODS.get(method), "propagate", "none") != "none":
            raise ValueError(f"method {method!r} needs text: --calibration english, or a file")
        quantized = qlab.quantize_model(
            loaded,
            method,
            spec,
            batches,
            act=act,
            objective=objective,
            skip=skip or (),
            propagate=propagate,
            cache=cache,
            progress=console.is_terminal,
            held_out=held_out,
            **_settings(settings or []),
        )
        qlab.save(quantized, output, overwrite=overwrite)
    _wrote(output, quantized)


def _wrote(output: Path, quantized: Any) -> None:
    """The report of a model, and where it lies now."""
    from qlab.evaluation.memory import size

    cost = size(quantized)
    console.print(str(quantized.report), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"wrote [bold]{output}[/]: {cost.words}, "
        f"{_bytes(cost.linears.bytes_packed)} of linears packed; look at it with "
        f"[bold]qlab inspect {output}[/]",
        highlight=False,
        soft_wrap=True,
    )


def _to_gguf(
    model: str,
    output: Path,
    mixture: str,
    imatrix: Path | None,
    as_stored: bool,
    overwrite: bool,
    others: dict[str, Any],
) -> None:
    """`qlab quantize --to`: one tensor after another into a GGUF file."""
    from qlab.io import imatrix as files
    from qlab.models import mixtures, to_gguf

    given = [option for option, value in others.items() if value]
    if given:
        raise ValueError(f"{given[0]} does not go with --to, whose types and rounding are ggml's")
    if output.suffix != ".gguf":
        raise ValueError(f"--to writes a GGUF file; {output} does not end in .gguf")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} is there already; --overwrite replaces it")
    mixtures.mixture(mixture)
    importance = None if imatrix is None else files.read(imatrix)
    for line in importance.problems()[:8] if importance else ():
        console.print(f"{imatrix}: {line}", style="dim", markup=False, highlight=False)
    rows = to_gguf(
        _source(model, as_stored),
        output,
        mixture,
        imatrix=importance,
        overwrite=overwrite,
        progress=console.is_terminal,
    )
    console.print(
        f"wrote [bold]{output}[/]: {_bytes(output.stat().st_size)}, "
        f"{_file_bits(rows)}; {_fell_back(rows)}",
        highlight=False,
        soft_wrap=True,
    )


def _file_bits(rows: list[Any]) -> str:
    """Bits per weight of a planned or written file, and of which of its weights."""
    from qlab.evaluation.memory import bits_words
    from qlab.models import mixtures

    linears = [row for row in rows if mixtures.layer_of(row.name) >= 0 and len(row.shape) > 1]
    return bits_words(mixtures.bits_per_weight(linears), mixtures.bits_per_weight(rows), "file")


def _source(name: str, as_stored: bool) -> Any:
    """What a GGUF file is written from: a GGUF file itself, or a loaded model."""
    from qlab.models.load import smollm2_file

    if Path(name).suffix == ".gguf" and Path(name).is_file():
        return Path(name)
    if as_stored and name == "smollm2-135m":
        return smollm2_file()
    if as_stored:
        raise ValueError(f"--as-stored is of smollm2-135m and of GGUF files, not of {name}")
    return _load(name)


def _fell_back(rows: list[Any]) -> str:
    """How many tensors, and how much of the weights, got another type for their width."""
    matrices = [row for row in rows if len(row.shape) > 1]
    fell = [row for row in matrices if row.fell_back]
    if not fell:
        return "every width fits its type"
    share = sum(row.weights for row in fell) / sum(row.weights for row in rows)
    return (
        f"{len(fell)} of {len(matrices)} matrices ({share:.0%} of the weights) fell back to "
        "another type, because no block of 256 divides their width"
    )


def _check_target(
    output: Path, cache: Path | None, overwrite: bool, option: str = "--cache"
) -> None:
    """Minutes of work should not end at a folder that is taken."""
    if cache is not None and output.resolve() == cache.resolve():
        raise ValueError(f"-o and {option} are both {output}: give unfinished work another folder")
    if not overwrite and output.is_dir() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; --overwrite replaces it")


@contextlib.contextmanager
def _stoppable(
    cache: Path | None, option: str = "--cache", what: str = "finished block"
) -> Iterator[None]:
    """Ctrl-C ends with a line on how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        option = option if cache is None else f"{option} {cache}"
        said = f"stopped; with {option} the same command goes on from the last {what}"
        Console(stderr=True, soft_wrap=True).print(said, markup=False, highlight=False)
        raise typer.Exit(130) from None


BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _settings(given: list[str]) -> dict[str, Any]:
    """`name=value` as Python values: true, yes, on and false, no, off; numbers; else words."""
    found: dict[str, Any] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not (name.isidentifier() and equals and text):
            raise ValueError(f"--set {one!r} is not of the form name=value, such as damp=0.1")
        if name in found:
            raise ValueError(f"--set {name} is given twice: {found[name]} and {text}")
        try:
            found[name] = BOOLEANS[text.lower()] if text.lower() in BOOLEANS else json.loads(text)
        except ValueError:
            found[name] = text
    return found


@app.command()
def imatrix(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .gguf or .dat.")],
    calibration: Annotated[
        list[str] | None, typer.Option(help="Text: a domain, or a file. Repeatable.")
    ] = None,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens of it in all.")] = 16_384,
    overwrite: Annotated[bool, typer.Option(help="Replace the file.")] = False,
) -> None:
    """Measure how much every column matters on a text, for `quantize --to … --imatrix`.

    Example: qlab imatrix smollm2-135m --calibration english -o smollm2-imatrix.gguf
    """
    import qlab
    from qlab.io import imatrix as files

    if output.exists() and not overwrite:
        raise ValueError(f"{output} is there already; --overwrite replaces it")
    loaded, named = _load(model), _texts(calibration or ["english"], "calibration")
    batches = qlab.calibration_batches(loaded, named, calibration_tokens)
    found = qlab.imatrix(loaded, batches, progress=console.is_terminal)
    files.write(output, found, overwrite=overwrite)
    problems = found.problems()
    for line in problems[:8]:
        console.print(line, style="dim", markup=False, highlight=False)
    console.print(
        f"wrote [bold]{output}[/]: {found!r}, {len(problems)} with columns never seen",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def inspect(
    model: Model,
    plan: Annotated[
        str | None,
        typer.Option(help="Show what a mixture such as Q4_K_M would make of every tensor instead."),
    ] = None,
) -> None:
    """What is in a model: its shape, tensors by kind, sizes, how it was quantized."""
    import dataclasses

    from qlab.evaluation.memory import size

    if plan is not None:
        return _show_plan(model, plan)
    loaded = _load(model)
    console.print(f"[bold]{loaded.name}[/]")
    facts = Table(box=None, show_header=False, pad_edge=False)
    for field in dataclasses.fields(loaded.config):
        facts.add_row(field.name, str(getattr(loaded.config, field.name)))
    if loaded.tokenizer is not None:
        facts.add_row("tokenizer", repr(loaded.tokenizer))
    console.print(facts)
    console.print(_tensors(loaded))
    cost = size(loaded)
    for name, part in (("linears", cost.linears), ("embedding", cost.embedding)):
        console.print(
            f"{name}: {part.weights:,} weights, {part.bits_per_weight:.3f} bits each, "
            f"{_bytes(part.bytes_packed)} packed, {_bytes(part.bytes_memory)} in memory",
            highlight=False,
        )
    console.print(f"together: {cost.words}", highlight=False, soft_wrap=True)
    for note in loaded.notes:
        console.print(f"· {note}", style="dim", markup=False, highlight=False)
    for key, value in loaded.label.provenance.items():
        console.print(f"{key}: {value}", style="dim", markup=False, highlight=False)
    if loaded.report is not None:
        console.print(str(loaded.report), markup=False, highlight=False, soft_wrap=True)


def _show_plan(model: str, mixture: str) -> None:
    """The tensors of a model by kind, with the type that a mixture gives each."""
    from qlab.models import mixtures
    from qlab.models.export_gguf import plan_of, tensors_of

    mixtures.mixture(mixture)
    config, tensors = tensors_of(_source(model, model == "smollm2-135m"))
    rows = plan_of(tensors, config, mixture)
    kinds: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        name = row.name.removesuffix(".weight")
        kind = name.split(".", 2)[2] if mixtures.layer_of(name) >= 0 else name
        stored = f"{row.type} for {row.wanted}" if row.fell_back else row.type
        kinds.setdefault((kind, "×".join(map(str, row.shape)), stored), []).append(row)
    table = Table(box=None, pad_edge=False)
    for name in ("tensor", "out×in", "stored as"):
        table.add_column(name, no_wrap=True)
    for name in ("layers", "bits", "MB"):
        table.add_column(name, justify="left" if name == "layers" else "right")
    for (kind, shape, stored), found in sorted(kinds.items()):
        layers = _ranges(sorted(mixtures.layer_of(row.name) for row in found))
        size = f"{sum(row.bytes for row in found) / 1e6:.2f}"
        table.add_row(kind, shape, stored, layers, f"{found[0].bits:.4g}", size)
    console.print(table)
    total = sum(row.bytes for row in rows)
    console.print(
        f"{mixture}: {len(rows)} tensors, {_bytes(total)}, {_file_bits(rows)}; {_fell_back(rows)}",
        highlight=False,
        soft_wrap=True,
    )
    if mixture not in mixtures.WRITTEN:
        known = ", ".join(mixtures.WRITTEN)
        console.print(
            f"· read only: {mixture} is planned for its size; qlab quantize --to writes {known}",
            style="dim", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _ranges(layers: list[int]) -> str:
    """Layers as people write them: 0–3, 6, 9; nothing for what belongs to none."""
    runs: list[list[int]] = []
    for i in layers:
        if runs and i == runs[-1][-1] + 1:
            runs[-1][1:] = [i]
        else:
            runs.append([i])
    said = (f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return "" if layers[0] < 0 else ", ".join(said)


def _tensors(model: Any) -> Table:
    """One line for each kind of matrix: how many, their shape, how they are stored."""
    from qlab.models.surgery import linears
    from qlab.qtensor import QTensor, bits_per_weight
    from qlab.specs import name_of

    def stored(w: Any) -> tuple[str, str, str]:
        if isinstance(w, QTensor):
            return str(w.shape), name_of(w.spec), f"{bits_per_weight(w):.3f}"
        return str(w.shape), str(w.dtype), f"{8 * w.dtype.itemsize}"

    kinds: dict[tuple[str, ...], int] = {}
    matrices = [("embed_tokens", model.embed_tokens.weight)]
    matrices += [(path.split(".")[-1], layer.weight) for path, layer in linears(model).items()]
    if model.lm_head is not None:
        matrices.append(("lm_head", model.lm_head.weight))
    for kind, w in matrices:
        key = (kind, *stored(w))
        kinds[key] = kinds.get(key, 0) + 1
    table = Table("matrix", "count", "(out, in)", "stored as", "bits a weight")
    for (kind, shape, spec, bits), count in kinds.items():
        table.add_row(kind, str(count), shape, spec, bits)
    return table


@app.command()
def explain(
    spec: Annotated[str, typer.Argument(help="A name in qlab.SPECS, such as nf4_double.")],
) -> None:
    """One sentence, the picture of the bits, and their sum, for a quantized format."""
    import qlab

    console.print(str(qlab.explain(spec)), markup=False, highlight=False)


@app.command()
def advise(
    model: Annotated[
        str, typer.Argument(help="A size such as 70B, a name such as llama-3.1-8b, or a file.")
    ],
    memory: Annotated[
        str | None, typer.Option(help="'24 GB', '24 GiB', '2x24 GB'; default: the hardware's.")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="'RTX 4090', 'Apple M4 Max', 'CPU DDR5' …, for the speed.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of each sequence; default: 8192, or the model's most."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    task: Annotated[
        str, typer.Option(help="general, 'high stakes', benchmark, math or multilingual.")
    ] = "general",
    kv_bits: Annotated[
        float, typer.Option(help="Of a number in the KV cache: 16, 8.5 (q8_0), 4.5 (q4_0).")
    ] = 16,
    kv: Annotated[
        str | None, typer.Option(help="Or a KV recipe, such as kivi2: its window is float.")
    ] = None,
) -> None:
    """Which file of a model to download for a memory, with the arithmetic and the evidence.

    Example: qlab advise 70B --memory "24 GB" --context 8192
    """
    import qlab

    asked = _load(model) if model == "tiny" or Path(model).exists() else model
    answer = qlab.advise(asked, memory, hardware, context, batch, task, kv_bits, kv)
    console.print(str(answer), markup=False, highlight=False, soft_wrap=True)


@app.command()
def bench(
    models: Annotated[
        list[str], typer.Argument(help="Names, folders or files; the first is compared with.")
    ],
    spec: Annotated[
        list[str] | None,
        typer.Option(help="Quantize the first too, by rounding: a name in qlab.SPECS. Repeatable."),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Multiply quantized models from packed weights.")
    ] = False,
    kv: Annotated[
        list[str] | None,
        typer.Option(help="Quantize the first's keys and values: a name in qlab.models.KVS."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Sequences at once, as 1 or 1,4,16.")] = "1",
    context: Annotated[int | None, typer.Option(help="Tokens of every prompt.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Decode steps of a round.")] = 16,
    prompt: Annotated[str | None, typer.Option(help="A text; default: a bundled one.")] = None,
    rounds: Annotated[int, typer.Option(help="How often everything is timed.")] = 8,
    json_file: Json = None,
) -> None:
    """Speed of prompts and decode, beside what this machine's memory and products allow.

    Example: qlab bench smollm2-135m --spec int4_g64 --kernels --batch 1,4,16

    Example: qlab bench smollm2-135m --kv kivi4 --context 1024
    """
    import qlab

    rows = [_load(name) for name in models]
    for name in spec or []:
        rows.append(qlab.quantize_model(rows[0], "rtn", name, progress=console.is_terminal))
    rows += [qlab.quantize_kv(rows[0], name) for name in kv or []]
    if kernels:
        rows = _packed(rows)
    settings: dict[str, Any] = {"new_tokens": new_tokens, "prompt": prompt, "rounds": rounds}
    settings["progress"] = console.is_terminal
    _show(qlab.bench(rows, _numbers("--batch", batch), context, **settings), json_file)


def _packed(models: list[Any]) -> list[Any]:
    """Quantized models with packed weights, the others as they are."""
    import qlab
    from qlab.models.surgery import linears
    from qlab.qtensor import QTensor

    def quantized(model: Any) -> bool:
        return any(isinstance(layer.weight, QTensor) for layer in linears(model).values())

    if not any(map(quantized, models)):
        names = ", ".join(model.name for model in models)
        raise ValueError(f"--kernels packs quantized models, and {names} is not: --spec int4_g64")
    return [qlab.with_kernels(model) if quantized(model) else model for model in models]


def _numbers(option: str, text: str) -> list[int]:
    """`1,4,16` as whole numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        said = f"{option} {text!r} is not a number, or several with commas such as 1,4,16"
        raise ValueError(said) from None


@app.command(context_settings={"ignore_unknown_options": True})
def lab(
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed on to JupyterLab.")] = None,
) -> None:
    """Open the notebooks in JupyterLab."""
    from qlab.cache import cache_dir

    kept = {  # a kernel compiles once what it compiled in an earlier session
        "JAX_COMPILATION_CACHE_DIR": str(cache_dir() / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    folder = _checkout("notebooks")
    command = [sys.executable, "-m", "jupyter", "lab", str(folder), *(arguments or [])]
    raise typer.Exit(subprocess.call(command, env={**kept, **os.environ}))


@app.command()
def figures() -> None:
    """Draw the figures of the documentation into figures/."""
    raise typer.Exit(subprocess.call([sys.executable, str(_checkout("figures/make_figures.py"))]))


def _checkout(part: str) -> Path:
    """A file or folder of the repository, which an installed package does not carry."""
    for root in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if (root / part).exists():
            return root / part
    raise ValueError(f"{part} is not here: run this inside a checkout of the repository")


def _load(name: str) -> Any:
    import qlab

    with console.status(f"loading {name}"):
        return qlab.load(name)


def _texts(names: list[str], split: str = "evaluation") -> dict[str, str]:
    """Bundled texts by name; files by theirs, or by their path where that name is taken."""
    from qlab.data import DOMAINS, texts
    from qlab.suggest import near

    names = list(dict.fromkeys(names))
    stems = [Path(name).stem for name in names]
    found = {}
    for name, stem in zip(names, stems, strict=True):
        path = Path(name)
        if name in DOMAINS:
            found[name] = texts(name, split)
        elif not (path.suffix or path.is_file()):
            known = near(name, DOMAINS)
            raise ValueError(f"no domain and no text file is called {name!r}: {known}")
        elif not path.is_file():
            raise ValueError(f"there is no text file {name}")
        else:
            taken = stem in DOMAINS or stem in names or stems.count(stem) > 1
            found[name if taken else stem] = path.read_text(encoding="utf-8")
    return found


def _show(table: Any, json_file: Path | None) -> None:
    table.print(console)
    if json_file:
        from qlab.io.atomic import atomic_file

        with atomic_file(json_file, overwrite=True) as sink:
            sink.write(table.to_json().encode())
        console.print(f"wrote [bold]{json_file}[/]", highlight=False)


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _as_options(said: str) -> str:
    """An error of the library, with what to type here."""
    for call, option in (
        ("overwrite=True", "--overwrite"),
        ("calibration_batches(model, …, tokens=…)", "a smaller --calibration-tokens"),
        ("context=… shorter ones", "--context shorter ones"),
        ("as imatrix=…", "with --imatrix, as in qlab quantize MODEL --to Q4_K_M --imatrix FILE"),
    ):
        said = said.replace(call, option)
    return said


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns 0, 2 after an error told in one sentence, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]  # accepted anywhere
    try:
        return int(app(args=given, prog_name="qlab", standalone_mode=False) or 0)
    except (ValueError, OSError, NotImplementedError) as error:
        if debug:
            raise
        said = _as_options(" ".join(str(error).split()))
        Console(stderr=True, soft_wrap=True).print(said, style="red", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # how typer says that the command line itself is wrong
        if debug or not hasattr(error, "format_message"):
            raise
        said = f"{error.format_message().rstrip('.')}. See qlab --help."  # type: ignore[attr-defined]
        Console(stderr=True, soft_wrap=True).print(said, style="red", markup=False, highlight=False)
        return 2
