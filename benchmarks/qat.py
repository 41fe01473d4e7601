"""One training step of `tiny`, float and while quantized: here and in torch, in one run.

2,048 tokens a batch, next-token loss, AdamW, float32, the same shapes and threads. torch's side is
a plain Llama with scaled_dot_product_attention, fused AdamW, and w + (ŵ − w).detach(). Sides take
turns, so that whatever else the machine does meets all of them; processor time stands beside.

    python benchmarks/qat.py                    float, ste and lsq here
    python benchmarks/qat.py --torch PYTHON     beside torch; writes results/qat.json and qat.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULT = Path(__file__).resolve().parent / "results" / "qat.json"
BATCH, TIME = 8, 256
THREADS = len(os.sched_getaffinity(0))
VOCAB, WIDTH, INNER, LAYERS, HEADS, KV, DIM = 4096, 256, 768, 4, 4, 2, 64
PRODUCTS = "matrix products alone"  # of the linears and the head, forward and backward
KINDS = {"qlab": ("float", "ste int4_g128", "ste int2_g64", "lsq int4_g128", "lsq int2_g64"),
         "torch": ("float", "ste int4_g128", "ste int2_g64", PRODUCTS)}  # fmt: skip
Step = Callable[[], float]  # takes one step and returns its loss


def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (BATCH, TIME + 1)).astype(np.int32)


# ---- the sides -----------------------------------------------------------------------------------


def qlab_side(kind: str) -> Step:
    import jax

    import qlab
    from qlab.models.objective import Mix
    from qlab.models.qat import Optimizer, Settings, make_step
    from qlab.models.train_state import State, trainable

    method, _, spec = kind.partition(" ")
    model = qlab.load("tiny")
    if spec:
        model = qlab.models.prepare(model, spec, method=method)
    how = Optimizer.own(Settings(1, BATCH, 3e-4, 3e-3, 0.01, 0.0, 1.0, 0))
    params = jax.tree.map(jax.numpy.copy, trainable(model))
    state = State(params, how.transform.init(params))
    step = make_step(jax.sharding.Mesh(np.array(jax.devices()), ("data",)), how, True)
    one = np.float32(1e-4)
    numbers = {"mix": Mix(*map(np.float32, (1, 0, 1))), "rates": {"weights": one, "steps": one}}
    text, weights = rows(), np.full((BATCH, TIME), 1 / (BATCH * TIME), np.float32)

    def run() -> float:
        nonlocal state
        state, loss = step(state, model, None, text, weights, numbers)
        return float(jax.block_until_ready((state, loss))[1])

    return run


def torch_side(kind: str) -> Step:
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    if kind == PRODUCTS:
        return torch_products()
    _, _, spec = kind.partition(" ")
    bits, group = (int(x.lstrip("intg")) for x in spec.split("_")) if spec else (0, 0)

    def fake(w: torch.Tensor) -> torch.Tensor:
        high = 2 ** (bits - 1) - 1
        blocks = w.reshape(-1, group)
        scale = (blocks.detach().abs().amax(1, keepdim=True) / high).half().float()
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        rounded = (torch.clamp(torch.round(blocks / safe), -high - 1, high) * scale).view_as(w)
        return w + (rounded - w).detach()

    class Linear(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, fake(self.weight) if bits else self.weight)

    def linear(inner: int, out: int) -> Linear:
        return Linear(inner, out, bias=False)

    angle = torch.arange(TIME)[:, None] * 10_000.0 ** (-torch.arange(DIM // 2) / (DIM // 2))
    cos, sin = torch.cos(angle).repeat(1, 2), torch.sin(angle).repeat(1, 2)

    def turn(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.RMSNorm(WIDTH, 1e-5), nn.RMSNorm(WIDTH, 1e-5)
            self.q, self.o = linear(WIDTH, HEADS * DIM), linear(HEADS * DIM, WIDTH)
            self.k, self.v = linear(WIDTH, KV * DIM), linear(WIDTH, KV * DIM)
            self.gate, self.up = linear(WIDTH, INNER), linear(WIDTH, INNER)
            self.down = linear(INNER, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.before(x)
            q, k, v = (
                f(h).view(len(x), TIME, -1, DIM).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=True)
            x = x + self.o(y.transpose(1, 2).reshape(x.shape[0], TIME, -1))
            h = self.after(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(VOCAB, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm = nn.RMSNorm(WIDTH, 1e-5)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return F.linear(self.norm(self.blocks(self.table(tokens))), self.table.weight)

    model = Llama()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    text = torch.from_numpy(rows()).long()

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(text[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, VOCAB), text[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def torch_products() -> Step:
    """The products of a step and nothing else: below this no step can be, at this rate."""
    import torch

    one = [(WIDTH, HEADS * DIM), (WIDTH, KV * DIM), (WIDTH, KV * DIM), (HEADS * DIM, WIDTH),
           (WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)]  # fmt: skip
    tokens, shapes = BATCH * TIME, one * LAYERS + [(WIDTH, VOCAB)]
    parts = [(torch.randn(tokens, i), torch.randn(o, i), torch.randn(tokens, o)) for i, o in shapes]

    def run() -> float:
        for x, w, g in parts:
            x @ w.T, g @ w, g.T @ x
        return 0.0

    return run


# ---- a worker: this file, run by the Python of a side; a line in, a line out ---------------------


def serve(side: str) -> None:
    """For every line "kind count" takes so many steps, and answers with seconds of one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    names = ("torch",) if side == "torch" else ("qlab", "jax", "jaxlib", "optax")
    print(json.dumps({name: version(name) for name in names}), file=answers, flush=True)
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        kind, _, count = line.strip().rpartition(" ")
        if kind not in steps:
            steps[kind] = (torch_side if side == "torch" else qlab_side)(kind)
        wall, busy, loss = time.perf_counter(), time.process_time(), 0.0
        for _ in range(int(count)):
            loss = steps[kind]()
        found = {"wall": time.perf_counter() - wall, "busy": time.process_time() - busy}
        found = {name: seconds / int(count) for name, seconds in found.items()}
        print(json.dumps({**found, "loss": loss}), file=answers, flush=True)


@contextmanager
def worker(side: str, python: str, devices: int) -> Iterator[Callable[[str], dict[str, Any]]]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    process = subprocess.Popen(
        [python, __file__, "--worker", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env={**os.environ, "XLA_FLAGS": flags},
    )  # fmt: skip
    assert process.stdin and process.stdout
    to, answers = process.stdin, process.stdout

    def ask(line: str) -> dict[str, Any]:
        if line:
            to.write(line + "\n")
            to.flush()
        answer = answers.readline()
        if not answer:
            raise RuntimeError(f"{side} stopped at {line!r}")
        return json.loads(answer)

    try:
        yield ask
    finally:
        to.close()
        process.wait()


# ---- the measurement -----------------------------------------------------------------------------


def measure(sides: dict[str, str], rounds: int, steps: int, devices: int) -> dict[str, Any]:
    """Seconds of a step, of every side and kind, in turn."""
    found: dict[str, Any] = {"versions": {}, "seconds": {}, "busy": {}, "losses": {}}
    with ExitStack() as stack:
        asks = {s: stack.enter_context(worker(s, p, devices)) for s, p in sides.items()}
        for side, ask in asks.items():
            found["versions"] |= ask("")
            for kind in KINDS[side]:  # compiles, and warms up
                found["losses"][f"{side} {kind}"] = ask(f"{kind} 2")["loss"]
        for _ in range(rounds):
            for side, ask in asks.items():
                for kind in KINDS[side]:
                    answer = ask(f"{kind} {steps}")
                    found["seconds"].setdefault(f"{side} {kind}", []).append(answer["wall"])
                    found["busy"].setdefault(f"{side} {kind}", []).append(answer["busy"])
    return found


def ratio(found: dict[str, Any], clock: str, a: str, b: str) -> float:
    """Median over rounds of a's time by b's."""
    pairs = zip(found[clock][a], found[clock][b], strict=True)
    return statistics.median(x / y for x, y in pairs)


def _bound(found: dict[str, Any]) -> list[str]:
    """How fast a step could be at all, if torch took part."""
    name = f"torch {PRODUCTS}"
    if name not in found["seconds"]:
        return []
    alone, whole = (1000 * statistics.median(found["seconds"][n]) for n in (name, "torch float"))
    return [
        f"The matrix products of a step alone take torch {alone:.0f} of its {whole:.0f} ms. A step "
        f"that did nothing else at that rate would be {whole / alone:.2f} times as fast.", "",
    ]  # fmt: skip


def write(found: dict[str, Any], rounds: int, steps: int, devices: int) -> None:
    """Prints the result and keeps it."""
    lines = []
    for name, seconds in found["seconds"].items():
        side, _, kind = name.partition(" ")
        row = [side, kind, f"{1000 * statistics.median(seconds):.0f}", f"{1000 * min(seconds):.0f}"]
        row += [f"{ratio(found, c, name, f'{side} float'):.2f}" for c in ("seconds", "busy")]
        both = f"torch {kind}" in found["seconds"] and side == "qlab"
        for clock in ("seconds", "busy"):
            row.append(f"{ratio(found, clock, f'torch {kind}', name):.2f}" if both else "–")
        lines.append("| " + " | ".join(row) + " |")
    facts = {
        "what": f"a training step of tiny, {BATCH} × {TIME} tokens, float32",
        "rounds": rounds, "steps_a_round": steps, "devices": devices, "threads": THREADS,
        "load_average": os.getloadavg()[0],
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        **found,
    }  # fmt: skip
    said = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    page = [
        "# A training step, float and while quantized", "",
        f"Written by `python benchmarks/qat.py --torch PYTHON`; not edited by hand. "
        f"{facts['what']}, next-token loss, AdamW; {rounds} rounds in turn of {steps} steps each; "
        f"{said}; "
        f"{facts['device']}, load average {facts['load_average']:.1f}.", "",
        "| side | step | median ms | best ms | by its float step | the same, processor time "
        "| times torch's speed | the same, processor time |",
        "|---|---|--:|--:|--:|--:|--:|--:|", *lines, "", *_bound(found),
    ]  # fmt: skip
    for path, text in ((RESULT, json.dumps(facts, indent=1) + "\n"),
                       (RESULT.with_suffix(".md"), "\n".join(page))):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        os.replace(part, path)
    print("\n".join(page))


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step, float and while quantized.")
    parser.add_argument("--torch", metavar="PYTHON", help="the Python that has torch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--devices", type=int, default=THREADS, help="that split the batch")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        serve(given.worker)
        return
    sides = {"qlab": sys.executable} | ({"torch": given.torch} if given.torch else {})
    found = measure(sides, given.rounds, given.steps, given.devices)
    write(found, given.rounds, given.steps, given.devices)


if __name__ == "__main__":
    main()
