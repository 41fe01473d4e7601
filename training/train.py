"""Trains the tiny model: next-token loss, Muon (Jordan et al. 2024) on matrices, AdamW on the rest.

One step is a function of (weights, optimizer state, step number) alone: batch, rates and order of
the data follow from the step, so a run resumed from a checkpoint continues bit for bit. The rate
warms up, stays flat, then falls linearly to zero at `--tokens`; a resumed run may name a smaller
total and still cool down. Speed on CPU comes from `training.fast`.
"""

import argparse
import functools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One host device per core, and freed memory kept: fresh pages cost a fifth of a step.
DEVICES = min(2, os.cpu_count() or 1)
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={DEVICES}")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from qlab.data import DOMAINS, texts  # noqa: E402
from qlab.models.transformer import Config, Transformer  # noqa: E402
from training import fast, muon  # noqa: E402

CONFIG = Config(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    rope_theta=10_000.0,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
BATCH, WINDOW = 16, 256
WARM_UP, FLAT = 30, 0.4  # steps; share of the whole before the rate falls
MUON_RATE, ADAM_RATE = 8e-3, 6e-3

State = tuple[Transformer, Any]  # weights, optimizer state


def rate(step: int, steps: int) -> float:
    """Share of the full learning rate: up over WARM_UP steps, flat, linearly to zero."""
    up = (step + 1) / WARM_UP
    down = (steps - step) / max(1.0, steps * (1 - FLAT))
    return max(0.0, min(1.0, up, down))


class Data:
    """Windows of the token stream in one seeded order, a pass after another."""

    def __init__(self, tokens: np.ndarray, seed: int, batch: int = BATCH, window: int = WINDOW):
        self.tokens, self.seed, self.batch, self.window = tokens, seed, batch, window
        self.windows = (len(tokens) - 1) // window
        if self.windows < batch:
            raise ValueError(
                f"{len(tokens)} tokens hold {self.windows} windows, fewer than one batch of {batch}"
            )

    def rows(self, step: int) -> np.ndarray:
        """Returns the (batch, window + 1) int32 token ids of one step."""
        steps = self.windows // self.batch
        order = np.random.default_rng((self.seed, step // steps)).permutation(self.windows)
        start = step % steps * self.batch
        chosen = order[start : start + self.batch]
        return np.stack([self.tokens[i * self.window :][: self.window + 1] for i in chosen]).astype(
            np.int32
        )


def loss(model: Transformer, rows: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of `rows[:, 1:]` in nats; products in bfloat16."""
    hidden = fast.swap(model).hidden(rows[:, :-1])
    return fast.cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), model.embed_tokens.weight, rows[:, 1:].reshape(-1)
    )


@functools.cache
def make_step(mesh: jax.sharding.Mesh):
    """Returns the compiled `step(state, rows, share) -> (state, loss)`; the batch is split over
    the mesh, and so is Muon's orthogonalisation.
    """

    def local(state: State, rows: jax.Array, share: jax.Array):
        model, optimizer = state
        value, gradient = jax.value_and_grad(loss)(model, rows)
        value, gradient = jax.lax.pmean((value, gradient), "data")
        model, optimizer = muon.update(
            model, gradient, optimizer, share * MUON_RATE, share * ADAM_RATE, axis="data"
        )
        return (model, optimizer), value

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=(P(), P()), check_vma=False
    )
    return jax.jit(mapped, donate_argnums=0)


@functools.cache
def make_held_out(mesh: jax.sharding.Mesh):
    """Returns the compiled `held_out(model, rows) -> loss`."""
    mapped = jax.shard_map(
        lambda m, r: jax.lax.pmean(loss(m, r), "data"),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(mapped)


# -------------------------------------------------------------------------------- checkpoints


def save(folder: Path, state: State, step: int, seconds: float, kept: int = 2) -> Path:
    """Writes `checkpoint-{step}.npz` whole or not at all, and keeps the last `kept`."""
    folder.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves(state)
    arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    partial = folder / "checkpoint.partial"
    with open(partial, "wb") as file:
        np.savez(file, step=step, seconds=seconds, **arrays)
    path = folder / f"checkpoint-{step:07d}.npz"
    os.replace(partial, path)
    for old in checkpoints(folder)[:-kept]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, oldest first."""
    return sorted(folder.glob("checkpoint-*.npz"))


def restore(path: Path, like: State) -> tuple[State, int, float]:
    """Returns the state, the next step and the seconds spent, from a checkpoint.

    Raises:
        ValueError: the checkpoint belongs to a model of another shape.
    """
    leaves, tree = jax.tree_util.tree_flatten(like)
    with np.load(path) as file:
        arrays = [file[f"leaf{i}"] for i in range(len(leaves))]
        step, seconds = int(file["step"]), float(file["seconds"])
    for i, (old, new) in enumerate(zip(leaves, arrays, strict=True)):
        if old.shape != new.shape:
            raise ValueError(f"{path.name}: array {i} is {new.shape}, the model's is {old.shape}")
    return jax.tree_util.tree_unflatten(tree, map(jnp.asarray, arrays)), step, seconds


def newest(folder: Path, fresh: State) -> tuple[State, int, float]:
    """Returns what `restore` does of the last checkpoint, or a fresh state at step 0."""
    found = checkpoints(folder)
    return restore(found[-1], fresh) if found else (fresh, 0, 0.0)


# ----------------------------------------------------------------------------------- the run


def start(config: Config, seed: int) -> State:
    """Returns fresh weights and optimizer state."""
    model = Transformer.init(config, jax.random.key(seed))
    return model, muon.init(model)


def held_out_rows(folder: Path, windows: int = 16) -> dict[str, np.ndarray]:
    """Returns the first windows of each calibration text, (windows, WINDOW + 1) int32."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = {}
    for domain in DOMAINS:
        ids = tokenizer.encode(texts(domain, "calibration")).ids
        rows[domain] = np.array([ids[i * WINDOW :][: WINDOW + 1] for i in range(windows)], np.int32)
    return rows


def run(
    data: Data,
    steps: int,
    folder: Path,
    *,
    config: Config = CONFIG,
    seed: int = 0,
    held: dict[str, np.ndarray] | None = None,
    stop: int | None = None,
    every: int = 300,
    minutes: float = 3.0,
) -> Iterator[dict[str, Any]]:
    """Trains to `steps` in all, from the newest checkpoint in `folder` if there is one.

    The learning rate reaches zero at `steps`. `held` {domain: rows} is measured every `every`
    steps, a checkpoint written every so many `minutes`; `stop` leaves after that step, as an
    interruption would. Yields one record a step.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    step_function, held_out = make_step(mesh), make_held_out(mesh)
    state, step, spent = newest(folder, start(config, seed))
    state = jax.device_put(state, NamedSharding(mesh, P()))
    begun = last = time.monotonic()
    while step < steps:
        value = rate(step, steps)
        state, error = step_function(state, data.rows(step), np.float32(value))
        step += 1
        seconds = spent + time.monotonic() - begun
        record = {"step": step, "tokens": step * data.batch * data.window, "loss": float(error)}
        record |= {"rate": round(value, 6), "seconds": round(seconds, 2)}
        final = step == steps or step == stop
        if held and (step % every == 0 or final):
            record["held_out"] = {d: float(held_out(state[0], r)) for d, r in held.items()}
        if final or time.monotonic() - last > 60 * minutes:
            save(folder, state, step, seconds)
            last = time.monotonic()
        yield record
        if step == stop:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the folder given to fetch")
    parser.add_argument("--tokens", type=float, default=21e6, help="length of the whole run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", type=int, help="leave after this step (for measuring)")
    parser.add_argument("--checkpoints", default="checkpoints", help="name of their folder")
    arguments = parser.parse_args()
    folder, target = arguments.folder, arguments.folder / arguments.checkpoints
    data = Data(np.memmap(folder / "tokens.u16", dtype="<u2", mode="r"), arguments.seed)
    steps = round(arguments.tokens / (BATCH * WINDOW))
    target.mkdir(parents=True, exist_ok=True)
    with open(target / "log.jsonl", "a") as log:
        before = None
        for record in run(
            data,
            steps,
            target,
            seed=arguments.seed,
            held=held_out_rows(folder),
            stop=arguments.stop,
        ):
            if before:
                passed = record["seconds"] - before["seconds"]
                record["tokens_per_second"] = round(BATCH * WINDOW / max(passed, 1e-9))
            before = record
            log.write(json.dumps(record) + "\n")
            log.flush()
            if record["step"] % 20 == 0 or "held_out" in record:
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
