"""The recipe of the tiny model: it learns, it resumes bit for bit, it never sees held-out text."""

import dataclasses
import json
import random
import shutil
import sys
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from qlab.data import DOMAINS, SPLITS, problems, texts  # noqa: E402
from qlab.models.hub import read_folder  # noqa: E402
from qlab.models.transformer import Config, Transformer  # noqa: E402
from training import export, fast, muon, train  # noqa: E402

SMALL = Config(64, 32, 48, 2, 4, 2, 8, max_position_embeddings=16, tie_word_embeddings=True)

THIN = dataclasses.replace(SMALL, num_hidden_layers=1)  # compiles faster


def small_data(seed: int = 0) -> train.Data:
    """Two hundred windows of a pattern that a small model can learn."""
    tokens = (np.arange(16 * 200 + 1) * 7 % 61).astype(np.uint16)
    return train.Data(tokens, seed, batch=4, window=16)


def plain_loss(model: Transformer, rows: jax.Array) -> jax.Array:
    """The same loss from the library's own float32 model."""
    scores = jax.nn.log_softmax(model(rows[:, :-1]))
    return -jnp.mean(jnp.take_along_axis(scores, rows[:, 1:, None], axis=-1))


@pytest.fixture
def one_device(monkeypatch):
    """The suite may run with any number of devices; batches of 4 rows need 1, 2 or 4."""
    if jax.device_count() not in (1, 2, 4):
        monkeypatch.setattr(jax, "device_count", lambda: 1)


# ------------------------------------------------------------------------------------- the run


def test_loss_falls_and_a_resumed_run_is_bit_identical(tmp_path, one_device):
    whole = list(train.run(small_data(), 12, tmp_path / "whole", config=THIN))
    assert [r["step"] for r in whole] == list(range(1, 13))
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.3
    assert whole[-1]["rate"] < 0.2
    parts = list(train.run(small_data(), 12, tmp_path / "parts", config=THIN, stop=5))
    parts += train.run(small_data(), 12, tmp_path / "parts", config=THIN)
    assert [r["loss"] for r in parts] == [r["loss"] for r in whole]
    with (
        np.load(train.checkpoints(tmp_path / "whole")[-1]) as a,
        np.load(train.checkpoints(tmp_path / "parts")[-1]) as b,
    ):
        assert a.files == b.files and len(a.files) > 20
        for name in a.files:
            if name != "seconds":
                assert a[name].tobytes() == b[name].tobytes(), name


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    state = train.start(SMALL, 0)
    for step in (3, 20, 100):
        train.save(tmp_path, state, step, 1.0)
    assert [p.name for p in train.checkpoints(tmp_path)] == [
        "checkpoint-0000020.npz",
        "checkpoint-0000100.npz",
    ]
    assert not list(tmp_path.glob("*.partial"))


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    path = train.save(tmp_path, train.start(SMALL, 0), 1, 0.0)
    wider = Config(64, 64, 48, 2, 4, 2, 8)
    with pytest.raises(ValueError, match=r"array \d+ is .*, the model's is"):
        train.restore(path, train.start(wider, 0))


def test_rate_warms_up_stays_and_falls_to_zero():
    rates = [train.rate(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / train.WARM_UP)
    assert set(rates[train.WARM_UP : int(1000 * train.FLAT)]) == {1.0}
    assert rates[700] == pytest.approx(0.5)
    assert rates[1000] == 0.0
    # a shortened run still cools down, and no step of it is hotter than before
    assert all(train.rate(s, 600) <= rates[s] for s in range(600))


def test_every_window_comes_once_a_pass_in_an_order_that_the_seed_decides():
    data = small_data()
    data.tokens = np.repeat(np.arange(200), 16).astype(np.uint16)  # window i is all i
    data.tokens = np.append(data.tokens, 200).astype(np.uint16)
    seen = [data.rows(step)[:, 0].tolist() for step in range(50)]
    assert sorted(sum(seen, [])) == list(range(200))
    assert data.rows(50)[:, 0].tolist() != seen[0]
    assert small_data(1).rows(0).tolist() != small_data(0).rows(0).tolist()
    with pytest.raises(ValueError, match="hold 2 windows, fewer than one batch of 4"):
        train.Data(np.zeros(33, np.uint16), 0, batch=4, window=16)


# ------------------------------------------------------------------------------------- products


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 4e-2)])
def test_fast_loss_has_the_gradients_of_the_plain_one(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(fast, "BF16", dtype)
    model = Transformer.init(SMALL, jax.random.key(3))
    model = jax.tree.map(lambda w: w * 3, model)  # larger than at the start: attention matters
    rows = jnp.asarray(small_data().rows(0))
    value, gradient = jax.value_and_grad(train.loss)(model, rows)
    expected, reference = jax.value_and_grad(plain_loss)(model, rows)
    assert float(value) == pytest.approx(float(expected), rel=tolerance)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(reference), strict=True):
        assert float(jnp.linalg.norm(a - b)) <= tolerance * float(jnp.linalg.norm(b))


def test_cross_entropy_by_chunks_is_cross_entropy(monkeypatch):
    monkeypatch.setattr(fast, "BF16", jnp.float32)
    monkeypatch.setattr(fast, "CHUNK", 4)
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, table = jax.random.normal(keys[0], (12, 8)), jax.random.normal(keys[1], (20, 8))
    targets = jax.random.randint(keys[2], (12,), 0, 20)

    def plain(hidden, table):
        scores = jax.nn.log_softmax(hidden @ table.T)
        return -jnp.mean(scores[jnp.arange(12), targets])

    def chunked(hidden, table):
        return fast.cross_entropy(hidden, table, targets)

    a, da = jax.value_and_grad(plain, argnums=(0, 1))(hidden, table)
    b, db = jax.value_and_grad(chunked, argnums=(0, 1))(hidden, table)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    for x, y in zip(da, db, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_muon_makes_matrices_nearly_orthogonal():
    x = jax.random.normal(jax.random.key(0), (3, 32, 96))
    values = jnp.linalg.svd(muon.orthogonalise(x), compute_uv=False)
    assert 0.5 < float(values.min()) and float(values.max()) < 1.4
    directions = muon.directions({"a": x[0], "b": x[1].T}, None)
    for path, shape in (("a", (32, 96)), ("b", (96, 32))):
        assert directions[path].shape == shape
        scale = float(jnp.sqrt(jnp.mean(directions[path] ** 2)))
        assert scale == pytest.approx(muon.RMS, rel=0.3)


def test_muon_takes_the_linear_layers_and_adam_the_rest():
    matrices, rest = muon.split(Transformer.init(SMALL, jax.random.key(0)))
    assert len(matrices) == 14 and len(rest) == 6
    assert "embed_tokens.weight" in rest and "norm.weight" in rest


# --------------------------------------------------------------------------------------- corpus


def test_exercises_of_the_corpus_are_all_of_the_training_part():
    corpus = pytest.importorskip("training.corpus", reason="needs lxml")
    held = corpus.held_lines()
    sentence = "A record of every meeting shall be kept by the committee"
    exercises = corpus.drawers({g: [("x", sentence)] for g in corpus.GROUPS})
    for group, draw in exercises.items():
        seen = []

        def watched(rng: random.Random, draw=draw, seen=seen):
            seen.append(draw(rng))
            return seen[-1]

        # `part` looks at the problem alone, so a line is right if its own problem is
        documents = corpus.exercise_documents(group, watched, held)
        lines = next(documents)[1].split("\n") if group != "cloze" else []
        part_of = {p.line: problems.part(p) for p in seen if p}
        assert {part_of[line] for line in lines} <= {"training"}
        assert group == "cloze" or len(lines) == 40
        assert not held & {line for line in lines if len(line) >= 40}


def test_lines_of_the_bundled_splits_are_dropped():
    corpus = pytest.importorskip("training.corpus", reason="needs lxml")
    held = corpus.held_lines()
    for domain in DOMAINS:
        for split in SPLITS:
            long = [x for x in texts(domain, split).split("\n") if len(x.strip()) >= 40][:20]
            text = "kept above\n" + "\n".join(long) + "\nkept below"
            assert corpus.without(text, held) == "kept above\nkept below"


def test_no_held_out_problem_repeats_a_trained_one():
    rng = random.Random(1)
    trained = {
        p.line
        for p in (problems.arithmetic(rng) for _ in range(4000))
        if problems.part(p) == "training"
    }
    held = {p.line for p in islice(problems.problems(problems.arithmetic, 2), 2000)}
    assert trained and held and not trained & held


# ---------------------------------------------------------------------------------------- export


def test_export_is_deterministic_and_loads(tmp_path):
    shutil.copy(export.TARGET / "tokenizer.json", tmp_path)
    state = train.start(train.CONFIG, 0)
    path = train.save(tmp_path / "checkpoints", state, 7, 1.0)
    record = {
        "step": 7,
        "tokens": 7 * 4096,
        "loss": 8.3,
        "rate": 1.0,
        "seconds": 1.0,
        "held_out": dict.fromkeys(DOMAINS, 8.3),
    }
    (path.parent / "log.jsonl").write_text(json.dumps(record) + "\n")
    for name in ("a", "b"):
        export.export(tmp_path, path, tmp_path / name)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "training.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    model = read_folder(tmp_path / "a", "tiny")
    assert model.config == train.CONFIG
    expected = np.asarray(state[0].layers[2].mlp.down_proj.weight.astype(jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(model.layers[2].mlp.down_proj.weight, expected)


def test_the_bundled_weights_have_the_recorded_loss():
    """The record's last held-out loss comes from float32 weights: bfloat16 may move it a little."""
    record = json.loads((export.TARGET / "training.json").read_text())
    model = read_folder(export.TARGET, "tiny")
    measured = jax.jit(plain_loss)
    for domain, rows in train.held_out_rows(export.TARGET).items():
        assert float(measured(model, jnp.asarray(rows))) == pytest.approx(
            record["held_out"][-1][domain], abs=0.03 if record["finished"] else 0.6
        )
