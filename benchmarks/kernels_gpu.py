"""The GPU kernels where there is a GPU: are they right, and how near to its bandwidth are they?

Decode reads every weight once, so its limit is bytes over bandwidth: each row gives the bytes of
packed weights, inputs and outputs a second, beside what a plain copy of a gigabyte reads and writes
in the same run. It stands beside `jnp.dot` of bfloat16 weights and beside XLA's own unpacking and
multiplying, the reference. Prefill is limited by arithmetic: operations a second beside bfloat16's.

A call takes microseconds, less than starting it from Python, and a matrix may fit the cache; so one
compiled program multiplies by many matrices in turn, half a gigabyte of them, and is started many
times before anything is waited for.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import qlab
from qlab import kernels
from qlab.formats import FP8
from qlab.kernels.fp8.reference import fp8 as plain_fp8
from qlab.kernels.quantize_activations.api import spec_of
from qlab.kernels.quantize_activations.reference import quantize_activations as plain_rounding
from qlab.kernels.w4a16.reference import w4a16 as plain_w4a16
from qlab.kernels.w8a8.reference import w8a8 as plain_w8a8
from qlab.qtensor import Spec, quantize
from qlab.specs import SPECS

BLOCKS = Spec(FP8, 128)


class Sizes(NamedTuple):
    """What is measured."""

    decode: tuple[tuple[int, int], ...] = ((14336, 4096), (8192, 8192))  # (out, in)
    batches: tuple[int, ...] = (1, 4, 16, 64)
    prefill: int = 4096  # tokens, outputs and inputs
    checked: tuple[int, ...] = (1, 16, 100)  # tokens
    copied: int = 1 << 30  # bytes
    read: int = 1 << 29  # bytes of matrices in a program, at least
    calls: int = 20
    rounds: int = 7


TINY = Sizes(((256, 256),), (3,), 256, (3,), 1 << 12, 1 << 12, 2, 2)  # shows that the program runs


def refusal() -> str | None:
    """Why nothing is measured here, or None."""
    if jax.default_backend() == "gpu":
        return None
    device = jax.devices()[0]
    return (
        f"no GPU here, only {device.device_kind} ({device.platform}): "
        "`python -m benchmarks.kernels --gpu` measures the kernels on one"
    )


# ---- time ----------------------------------------------------------------------------------------


def seconds(run: Callable[..., Any], sizes: Sizes, *operands: Any) -> float:
    """Median seconds of a compiled call, many of them under way at once."""
    compiled = jax.jit(run)
    jax.block_until_ready(compiled(*operands))
    taken = []
    for _ in range(sizes.rounds):
        begin = time.perf_counter()
        for _ in range(sizes.calls - 1):
            compiled(*operands)
        jax.block_until_ready(compiled(*operands))
        taken.append((time.perf_counter() - begin) / sizes.calls)
    return statistics.median(taken)


def nbytes(tree: Any) -> int:
    """Bytes of all arrays, int4 counted as it is stored."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def each_of(op: Callable[..., Any], sizes: Sizes, inputs: tuple, w: Any) -> float:
    """Seconds of one product, measured over as many copies of w as leave every cache."""
    count = min(max(-(-sizes.read // nbytes(w)), 2), 64)
    copies = [jax.tree.map(jnp.copy, w) for _ in range(count)]
    taken = seconds(lambda inputs, ws: [op(*inputs, w) for w in ws], sizes, inputs, copies)
    return taken / count


def copy_speed(sizes: Sizes) -> float:
    """Bytes a second that a plain copy reads and writes."""
    x = jnp.zeros(sizes.copied // 4, jnp.float32)
    return 2 * nbytes(x) / seconds(lambda x: x + 1, sizes, x)


# ---- correctness ---------------------------------------------------------------------------------


def numbers(seed: int, *shape: int) -> jax.Array:
    """Normal numbers with a few outliers."""
    key = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(key[0], shape)
    return jnp.where(jax.random.uniform(key[1], shape) < 0.01, 20 * x, x)


def packed(name: str, out: int, inner: int) -> Any:
    q = quantize(numbers(1, out, inner) / 50, SPECS[name])
    return kernels.prepack(q, target="cuda")


def bounds_off(y: jax.Array, like: jax.Array, x: jax.Array, p: Any, kept: int = 24) -> float:
    """The largest error in units of what the order of sums and two steps of bfloat16 allow.

    Args:
        y: (tokens, out).
        like: what it should be.
        x: (tokens, in) float32.
        p: the weights.
        kept: bits of a sum that the hardware keeps.
    """
    w = jnp.abs(kernels.dequantize(p))
    size = jnp.matmul(jnp.abs(x), w.T, precision=jax.lax.Precision.HIGHEST)
    terms = x.shape[1] if kept == 24 else 32  # of one instruction; what comes after is float32
    bound = 2.0**-kept * terms * size + 1e-30
    if y.dtype == jnp.bfloat16:
        bound += 2 * 2.0**-8 * jnp.abs(like.astype(jnp.float32))
    return float((jnp.abs(y.astype(jnp.float32) - like.astype(jnp.float32)) / bound).max())


def checks(sizes: Sizes) -> dict[str, float]:
    """How far each op is from its reference: products in bounds (at most 1), codes in differing
    numbers (none), w8a8 in differing outputs (none). Rounding is compared with the CPU's.
    """
    out, inner = sizes.decode[0]
    found: dict[str, float] = {}
    for tokens in sizes.checked:
        x = numbers(tokens, tokens, inner)
        for name in ("int4_g128", "awq_g128", "nf4", "q4_k"):
            p, half = packed(name, out, inner), x.astype(jnp.bfloat16)
            op = kernels.q4_k if name == "q4_k" else kernels.w4a16
            off = bounds_off(op(half, p), plain_w4a16(half, p), half.astype(jnp.float32), p)
            found[f"{op.__name__} {name}, {tokens} tokens"] = off
        for act, name in (("int8_token", "int8_channel"), ("fp8_token", "fp8_channel"),
                          (BLOCKS, "fp8_block")):  # fmt: skip
            codes, scale = kernels.quantize_activations(x, act)
            label = act if isinstance(act, str) else "fp8 of 128"
            found[f"quantize_activations {label}, {tokens} tokens"] = differing(x, act)
            p = packed(name, out, inner)
            if name == "int8_channel":
                off = (kernels.w8a8(codes, scale, p) != plain_w8a8(codes, scale, p)).sum()
                found[f"w8a8, {tokens} tokens"] = float(off)
            else:
                y, like = kernels.fp8(codes, scale, p), plain_fp8(codes, scale, p)
                off = bounds_off(y, like, x, p, kept=14)  # all that Hopper keeps of an FP8 sum
                found[f"fp8 {name}, {tokens} tokens"] = off
    return found


def differing(x: jax.Array, act: str | Spec) -> float:
    """Codes and scales that are not the CPU's bits."""
    mine = kernels.quantize_activations(x, act)
    spec = spec_of(act)
    host = jax.device_put(np.asarray(x), jax.devices("cpu")[0])
    theirs = jax.jit(partial(plain_rounding, spec=spec))(host)
    return float(sum((np.asarray(a) != np.asarray(b)).sum() for a, b in zip(mine, theirs)))


# ---- speed ---------------------------------------------------------------------------------------


def decode_rows(sizes: Sizes, copied: float) -> list[dict[str, Any]]:
    """W4A16 at decode, beside bfloat16 and XLA."""
    rows = []
    for out, inner in sizes.decode:
        p, w = packed("int4_g128", out, inner), numbers(1, inner, out).astype(jnp.bfloat16)
        for batch in sizes.batches:
            x = numbers(2, batch, inner).astype(jnp.bfloat16)
            ours = each_of(kernels.w4a16, sizes, (x,), p)
            xla = each_of(plain_w4a16, sizes, (x,), p)
            half = each_of(jnp.dot, sizes, (x,), w)
            moved = nbytes((p, x)) + batch * out * 2
            rows.append({
                "out": out, "in": inner, "batch": batch, "microseconds": ours * 1e6,
                "gigabytes_per_second": moved / ours / 1e9, "of_copy": moved / ours / copied,
                "times_bfloat16": half / ours, "times_xla": xla / ours,
            })  # fmt: skip
    return rows


def prefill_rows(sizes: Sizes) -> list[dict[str, Any]]:
    """Products of as many tokens as outputs and inputs, alone and with the rounding of inputs."""
    n = sizes.prefill
    x = numbers(3, n, n).astype(jnp.bfloat16)
    named: dict[str, tuple[Callable[..., Any], tuple, Any]] = {
        "bfloat16": (jnp.dot, (x,), numbers(1, n, n).astype(jnp.bfloat16)),
        "w4a16 int4_g128": (kernels.w4a16, (x,), packed("int4_g128", n, n)),
    }
    for op, act, name in ((kernels.w8a8, "int8_token", "int8_channel"),
                          (kernels.fp8, "fp8_token", "fp8_channel"),
                          (kernels.fp8, BLOCKS, "fp8_block")):  # fmt: skip
        p, label = packed(name, n, n), f"{op.__name__} {name}"
        named[label] = (op, kernels.quantize_activations(x, act), p)
        named[f"{label}, inputs rounded"] = (partial(rounded_product, op, act), (x,), p)
    taken = {name: each_of(op, sizes, inputs, w) for name, (op, inputs, w) in named.items()}
    return [
        {"kernel": name, "microseconds": s * 1e6, "teraops": 2 * n**3 / s / 1e12,
         "times_bfloat16": taken["bfloat16"] / s}
        for name, s in taken.items()
    ]  # fmt: skip


def rounded_product(op: Callable[..., Any], act: Any, x: jax.Array, p: Any) -> jax.Array:
    """Inputs to bytes, then the product."""
    return op(*kernels.quantize_activations(x, act), p)


def measure(sizes: Sizes | None = None) -> dict[str, Any]:
    """Everything, on the first device of this process."""
    sizes = sizes or Sizes()
    copied = copy_speed(sizes)
    device = jax.devices()[0]
    client = getattr(device, "client", None)
    return {
        "device": device.device_kind,
        "versions": {m.__name__: m.__version__ for m in (jax, np, qlab)},
        "platform_version": getattr(client, "platform_version", ""),
        "kernels": kernels.support(),
        "copy_bytes_per_second": copied,
        "checks": checks(sizes),
        "decode": decode_rows(sizes, copied),
        "prefill_size": sizes.prefill,
        "prefill": prefill_rows(sizes),
    }


def wrong(found: dict[str, Any]) -> list[str]:
    """The checks that failed: a product beyond its bound, any differing code or exact output."""

    def allowed(name: str) -> float:
        return 0.0 if name.startswith(("quantize_activations", "w8a8")) else 1.0

    return [f"{name}: {off:.3g}" for name, off in found["checks"].items() if off > allowed(name)]


def table(found: dict[str, Any]) -> str:
    lines = [
        "# Kernels on a GPU",
        "",
        f"{found['device']}, jax {found['versions']['jax']}. A copy reads and writes "
        f"{found['copy_bytes_per_second'] / 1e9:.0f} GB/s. `python -m benchmarks.kernels --gpu`",
        "",
        f"{len(found['checks'])} checks against the references, "
        + (f"wrong: {'; '.join(wrong(found))}." if wrong(found) else "none of them wrong."),
        "",
        "## Decode, W4A16 (int4_g128, 4.125 bits)",
        "",
        "| w (out, in) | tokens | µs | GB/s | of the copy | × bfloat16 | × XLA's unpacking |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in found["decode"]:
        lines.append(
            f"| ({r['out']}, {r['in']}) | {r['batch']} | {r['microseconds']:.1f} | "
            f"{r['gigabytes_per_second']:.0f} | {r['of_copy']:.0%} | {r['times_bfloat16']:.2f} | "
            f"{r['times_xla']:.2f} |"
        )
    n = found["prefill_size"]
    lines += [
        "",
        f"## Prefill, {n} tokens × {n} × {n}",
        "",
        "| kernel | µs | tera-operations/s | × bfloat16 |",
        "|---|---:|---:|---:|",
    ]
    for r in found["prefill"]:
        lines.append(
            f"| {r['kernel']} | {r['microseconds']:.0f} | {r['teraops']:.0f} | "
            f"{r['times_bfloat16']:.2f} |"
        )
    return "\n".join(lines) + "\n"
