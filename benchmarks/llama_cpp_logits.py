"""How near llama.cpp's logits are to qlab's on the same file, and what lies between.

    python benchmarks/llama_cpp_logits.py          writes results/llama_cpp_logits.json
    python benchmarks/llama_cpp_logits.py --model tiny

Needs llama-cpp-python. A file is written by qlab, run by llama.cpp, and run by qlab in four ways:
the same weights as a float file (which leaves llama.cpp only its half-precision cache), float
inputs, inputs rounded to 8 bits as ggml's products round them, and llama.cpp again, one token at a
time, which changes nothing but the order of its sums. A rounding at the edge between two codes
falls either way for the least of reasons, and the layers after it see another input: so the last
row is as near as any two programs come that round inputs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qlab
from qlab.activations import Act
from qlab.evaluation.scoring import versions
from qlab.io import gguf
from qlab.io.atomic import atomic_file
from qlab.models import to_gguf
from qlab.models.load import smollm2_file
from qlab.models.surgery import map_linears
from qlab.models.transformer import Linear, Transformer
from qlab.qtensor import QTensor

OUT = Path(__file__).resolve().parent / "results" / "llama_cpp_logits.json"
CASES = {"tiny": ("Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M"), "smollm2-135m": ("Q4_K_M",)}
TEXTS = ("english", "korean")
TOKENS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", action="append", choices=list(CASES), help="default: both")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.model or CASES:
            source = source_of(name, Path(folder))
            for mixture in CASES[name]:
                rows += [{"model": name, **row} for row in compare(source, mixture, Path(folder))]
                print(*(json.dumps(row) for row in rows[-len(TEXTS) :]), sep="\n", flush=True)
    found = {"what": __doc__, "tokens": TOKENS, "versions": peers(), "rows": rows}
    with atomic_file(OUT, overwrite=True) as sink:
        sink.write((json.dumps(found, indent=1) + "\n").encode())
    print(f"wrote {OUT}")


def peers() -> dict[str, str]:
    """What computed: qlab's versions and llama-cpp-python's."""
    import llama_cpp

    return {**versions(), "llama-cpp-python": llama_cpp.__version__}


def source_of(name: str, folder: Path) -> Path:
    """The file that is quantized: SmolLM2's as it is stored, the bundled model in float32."""
    if name == "smollm2-135m":
        return smollm2_file()
    return qlab.save(qlab.load(name), folder / f"{name}.gguf", overwrite=True)


def compare(
    source: Path, mixture: str, folder: Path, texts: tuple[str, ...] = TEXTS, tokens: int = TOKENS
) -> list[dict[str, Any]]:
    """One row a text: llama.cpp's predictions on qlab's file against each way of running it.

    Args:
        source: a GGUF file.
        mixture: a key of MIXTURES.
        folder: for the files that are written.
        texts: bundled ones, the evaluation halves.
        tokens: of each.

    Returns:
        for each way the mean KL from llama.cpp's predictions in nats, the share of equal top-1, and
        the largest gap between llama.cpp's two best log-probabilities where they are not equal.
    """
    path, plain = folder / f"{mixture}.gguf", folder / f"{mixture}-float.gguf"
    to_gguf(source, path, mixture, overwrite=True)
    model = qlab.load(path)
    qlab.save(qlab.models.dense(model), plain, overwrite=True)
    rounded = round_inputs(model)
    rows = []
    for text in texts:
        ids = model.tokenizer.encode(qlab.texts(text))[:tokens]
        theirs, batch = run(path, ids), jnp.asarray([ids])
        ours = {"float inputs": predict(model, batch), "rounded inputs": predict(rounded, batch)}
        rows.append({"mixture": mixture, "text": text, "tokens": len(ids)})
        rows[-1] |= {name: distance(theirs, other) for name, other in ours.items()}
        rows[-1]["llama.cpp, a token at a time"] = distance(theirs, run(path, ids, 1))
        rows[-1]["both as a float file"] = distance(run(plain, ids), ours["float inputs"])
        rows[-1]["rounded from float inputs"] = distance(*reversed(ours.values()))
    return rows


def round_inputs(model: Transformer) -> Transformer:
    """The model with the inputs of its matrices rounded as ggml rounds them: 8 bits, one float16
    scale for 32 of them (Q8_0), or one float32 scale for 256 where weights lie in super-blocks
    (Q8_K).
    """

    def act(w: Any) -> Act | None:
        if not isinstance(w, QTensor):
            return None
        size = next(gguf.BLOCKS[k][0] for k, spec in gguf.TYPE_SPECS.items() if spec == w.spec)
        int8 = qlab.SPECS["q8_0"]
        return Act(int8.replace(block=256, scale="float32") if size == 256 else int8)

    made = map_linears(model, lambda _, x: Linear(x.weight, x.bias, act(x.weight)))
    head = made.lm_head or Linear(made.embed_tokens.weight)
    made.lm_head = Linear(head.weight, head.bias, act(head.weight))
    return made


def predict(model: Transformer, batch: jax.Array) -> jax.Array:
    """Log-probabilities of the next token, (time, vocab)."""
    return jax.nn.log_softmax(model(batch)[0], axis=-1)


def run(path: Path, ids: list[int], batch: int = 512) -> jax.Array:
    """llama.cpp's, `batch` tokens at a time."""
    import llama_cpp

    peer = llama_cpp.Llama(
        str(path), n_ctx=512, n_batch=batch, logits_all=True, verbose=False, n_threads=2
    )
    peer.eval(ids)
    return jax.nn.log_softmax(np.array(peer.scores[: len(ids)]), axis=-1)


def distance(a: jax.Array, b: jax.Array) -> dict[str, float]:
    """KL(a ‖ b) in nats, the share of equal top-1, and the largest gap in a where they differ."""
    first, second = jax.lax.top_k(a, 2)[0].T
    same = a.argmax(-1) == b.argmax(-1)
    return {
        "kl": float((jnp.exp(a) * (a - b)).sum(-1).mean()),
        "top1": float(same.mean()),
        "gap": float(jnp.where(same, 0.0, first - second).max()),
    }


if __name__ == "__main__":
    main()
