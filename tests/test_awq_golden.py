"""AWQ against GPTQModel (tests/golden/make_awq.py): scales, the losses of all candidates, clipping
thresholds; on two linears that share an input, and on the attention and MLP of a small Llama.

Its losses are means over outputs of differences squared, ours are E‖…‖² from H: a factor.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab import specs
from qlab.methods.awq import awq_candidates, clipped, scaled_losses
from qlab.models.fold import _whole_losses
from qlab.models.transformer import Config, Linear, Transformer
from qlab.stats import Stats

FILE = np.load(Path(__file__).parent / "golden" / "awq.npz")
META = json.loads(str(FILE["meta"]))
SETTINGS = [tuple(setting) for setting in META["settings"]]


def key_of(bits, group, sym, duo) -> str:
    return f"b{bits}_g{group}_{'sym' if sym else 'asym'}_{'duo' if duo else 'plain'}"


def spec_of(bits, group, sym):
    return specs.awq(bits, group, sym=sym).replace(scale="float32")


@pytest.fixture(scope="module")
def stats() -> Stats:
    return Stats.from_inputs(jnp.asarray(FILE["x"]))


@pytest.mark.parametrize("bits, group, sym, duo", SETTINGS)
def test_scales_losses_and_thresholds(bits, group, sym, duo, stats):
    weights = tuple(jnp.asarray(FILE[f"w{i}"]) for i in range(2))
    chosen = (spec_of(bits, group, sym),) * 2
    key = key_of(bits, group, sym, duo)
    ratios, scales = awq_candidates(weights, stats, chosen, duo_scaling=duo)
    losses = np.asarray(scaled_losses(weights, stats, chosen, scales), np.float64)
    theirs = FILE[f"{key}_losses"] * sum(len(w) for w in weights)
    np.testing.assert_allclose(losses, theirs, rtol=2e-3, err_msg=str(META))
    best = int(losses.argmin())
    assert best == int(theirs.argmin()), (ratios[best], META)
    np.testing.assert_allclose(scales[best], FILE[f"{key}_scale"], rtol=1e-5)

    # thresholds on the very weights the peer clipped; where two shares cost the same to rounding,
    # either may win
    s = jnp.asarray(FILE[f"{key}_scale"])
    w, spec = weights[0] * s, chosen[0]
    cut = np.asarray(clipped(w, stats.divided(s).hessian, spec))
    groups = np.abs(cut).reshape(len(cut), -1, group).max(-1)
    agree = np.isclose(groups, FILE[f"{key}_clip"].reshape(groups.shape), rtol=1e-5)
    assert agree.mean() > 0.985, (agree.mean(), META)


@pytest.mark.parametrize("name, whole", [("attention", "self_attn"), ("mlp", "mlp")])
def test_the_real_output_of_a_block(name, whole):
    """The candidates' losses on the output of attention and MLP: the program's own objective."""
    config = Config(max_position_embeddings=64, **_config())
    model = Transformer.init(config, jax.random.key(0))
    block = model.layers[0]
    for path in (*block.STAGES[0], *block.STAGES[1], *block.STAGES[2], *block.STAGES[3]):
        part, leaf = path.split(".")
        w = jnp.asarray(FILE[f"model.layers.0.{path}.weight"])
        setattr(getattr(block, part), leaf, Linear(w))
    for norm in ("input_layernorm", "post_attention_layernorm"):
        getattr(block, norm).weight = jnp.asarray(FILE[f"model.layers.0.{norm}.weight"])
    x = jnp.asarray(FILE["model.embed_tokens.weight"])[FILE["tokens"]]
    feed = next(feed for feed in block.FEEDS if feed.whole == whole)
    read = block.input_layernorm(x)
    if name == "mlp":
        y, _ = block.self_attn(read, jnp.int32(0), None)
        read = block.post_attention_layernorm(x + y)
    weights = tuple(getattr(getattr(block, whole), p.split(".")[1]).weight for p in feed.consumers)
    chosen = (spec_of(3, 32, False),) * len(weights)
    _, scales = awq_candidates(weights, Stats.from_inputs(read), chosen)
    mask = jnp.ones(x.shape[:2], bool)
    losses = _whole_losses(block, x, mask, scales, whole, feed.consumers, chosen)
    losses = np.asarray(losses, np.float64) / x.size
    np.testing.assert_allclose(losses, FILE[f"{name}_losses"], rtol=2e-3, err_msg=str(META))
    best = int(losses.argmin())
    assert best == int(FILE[f"{name}_losses"].argmin())
    np.testing.assert_allclose(scales[best], FILE[f"{name}_scale"], rtol=1e-4)


def _config() -> dict:
    names = Config.__dataclass_fields__
    return {key: value for key, value in META["llama"].items() if key in names}
