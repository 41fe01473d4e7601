"""Calibration: which sequences, what each layer sees of them in each way of propagating, in bounded
memory; and runs that are killed and go on."""

import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.io.safetensors import save
from qlab.methods import gptq, rtn
from qlab.models.calibrate import Batches, as_batches, calibrate, calibration_batches
from qlab.models.load import load
from qlab.models.propagate import States
from qlab.models.provenance import ARITHMETIC, code_hash
from qlab.models.quantize import quantize_model
from qlab.models.report import LayerReport, Report
from qlab.models.resume import Folder
from qlab.models.surgery import get, linears, map_linears
from qlab.models.taps import layer_inputs, through
from qlab.models.transformer import Linear
from qlab.qtensor import dequantize, quantize
from qlab.stats import Stats, output_error
from tests.killed_run import run as killable
from tests.models_for_tests import CONFIG, OPT_CONFIG, random_model, tokens_for, with_biases

ROOT = Path(__file__).resolve().parent.parent
MODEL = random_model()
TOKENS = np.asarray(tokens_for(MODEL, batch=10, time=24))


def close(a: Stats, b: Stats) -> None:
    """Equal to rounding; a number at the edge of a bin may be counted on either side of it."""
    np.testing.assert_allclose(np.cumsum(a.histogram), np.cumsum(b.histogram), atol=4)
    for field in set(vars(a)) - {"histogram"}:
        np.testing.assert_allclose(getattr(a, field), getattr(b, field), rtol=1e-4, atol=1e-5)


def run(method, spec="int4_g32", batches=TOKENS, model=MODEL, **settings):
    return quantize_model(model, method, spec, batches, progress=False, **settings)


def noted(seen: list, own: str | None):
    """A method that rounds, and keeps the Stats it is given."""

    def remember(w, stats, spec):
        seen.append(stats)
        return rtn(w, None, spec)

    if own:
        remember.propagate = own
    return remember


# ---- batches -------------------------------------------------------------------------------------


def test_calibration_batches_are_windows_of_the_calibration_text():
    model = random_model()
    texts = {"a": "the first of two. " * 90, "b": "and another one! " * 90}
    found = calibration_batches(model, texts, tokens=400, context=32, seed=1)
    assert found.tokens.shape == (12, 32) and found.mask.all() and found.tokens.dtype == np.int32
    for i, name in enumerate(["a", "b"]):  # they take turns
        ids = model.tokenizer.encode(texts[name])
        whole = np.lib.stride_tricks.sliding_window_view(np.array(ids), 32)
        for row in found.tokens[i::2]:
            assert (whole == row).all(1).any()
    p = found.provenance
    assert (p["domains"], p["tokens"], p["context"], p["seed"]) == (["a", "b"], 384, 32, 1)
    assert p["text_sha256"]["a"] == hashlib.sha256(texts["a"].encode()).hexdigest()
    again = calibration_batches(model, texts, tokens=400, context=32, seed=1)
    other = calibration_batches(model, texts, tokens=400, context=32, seed=2)
    assert again.hash == found.hash != other.hash


def test_bundled_domains_and_defaults():
    model = random_model()
    found = as_batches(model, ["english", "code"])
    assert found.tokens.shape == (64, 256)  # at most what the model allows
    assert found.provenance["domains"] == ["english", "code"]
    assert as_batches(model, "math").provenance["domains"] == ["math"]


def test_no_window_twice():
    model = random_model()
    text = " ".join(str(i) for i in range(2000))
    found = calibration_batches(model, {"count": text}, tokens=4096, context=64)
    assert len(np.unique(found.tokens, axis=0)) == len(found) == 64


def test_every_form_of_ids_is_the_same():
    ragged = [[5, 6, 7], [8, 9], [1, 2, 3, 4]]
    padded = np.array([[5, 6, 7, 0], [8, 9, 0, 0], [1, 2, 3, 4]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    a = as_batches(MODEL, ragged)
    b = as_batches(MODEL, {"input_ids": padded + 3 * (1 - mask), "attention_mask": mask})
    assert a.hash == b.hash and a.count == 9
    np.testing.assert_array_equal(a.mask, mask.astype(bool))
    assert as_batches(MODEL, padded).count == 12 and as_batches(MODEL, a) is a


@pytest.mark.parametrize(
    "given, sentence",
    [
        ([], "at least one sequence, there are 0"),
        (np.zeros((0, 4), int), "at least one sequence, there are 0"),
        ([[1, 2], []], "sequence 1 has 0 tokens"),
        ([1, 2, 3], "one list of ids for each sequence"),
        ([[1, 320]], "token id 320 is not among the model's 320"),
        ([[1, -1]], "token id -1"),
        ([[0.5, 1.5]], "integers, not float64"),
        (np.zeros((1, 257), int), "257 tokens are longer than the model's 256 positions"),
        ({"input_ids": [[0, 1, 2]], "attention_mask": [[0, 1, 1]]}, "sequence 0 is padded on the"),
        ({"input_ids": [[0, 1, 2]], "attention_mask": [[1, 0, 1]]}, "left or in the middle"),
        ({"input_ids": [[0, 1, 2]], "attention_mask": [[1, 1]]}, r"\(2,\) for ids of .*\(3,\)"),
        ("englsh", "did you mean 'english'"),
        ({}, "no texts"),
        ({"short": "a few words"}, "'short' has 0 sequences of 256 tokens, fewer than .* 64"),
        ({"short": "a few words"}, r"calibration_batches\(model, …, tokens=…\) takes fewer"),
        ([[1, 2**32 + 5]], "token id 4294967301 is not among the model's 320"),
        ([[1, -(2**32) + 5]], "token id -4294967291 is not among"),
        (np.array([[1, 2**63 + 7]], np.uint64), "token id 9223372036854775815 is not among"),
        ({"input_ids": [[1, 2], [3]], "attention_mask": [[1], [1, 1]]}, "in sequence 0"),
        ({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1]]}, "has 1 sequence.* has 2"),
        ({"input_ids": [[1]], "attention_mask": 1}, "attention_mask=1 is not a mask for each"),
        (5, "batches=5 is not a domain.* or lists of token ids"),
        (None, "batches=None is not a domain"),
        (Path("mine.txt"), r"batches=\w*Path\('mine.txt'\) is not a domain"),
        ({"mine": ["a", "b"]}, r"takes two strings, not 'mine': \['a', 'b'\]"),
        (["english", 5], "such as 'english', not 5"),
        ("word " * 99, "no domain is called '(word ){8}'….*{'name': text}"),
    ],
)
def test_bad_batches(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        as_batches(MODEL, given)


def test_lists_of_any_lengths_with_a_mask():
    ids, mask = [[5, 6, 7, 2**40], [8, 9]], [[1, 1, 1, 0], [1, 1]]
    found = as_batches(MODEL, {"input_ids": ids, "attention_mask": mask})
    np.testing.assert_array_equal(found.tokens, [[5, 6, 7, 0], [8, 9, 0, 0]])
    np.testing.assert_array_equal(found.mask, [[1, 1, 1, 0], [1, 1, 0, 0]])


def test_parts_count_their_own_tokens():
    whole = as_batches(MODEL, [[1, 2, 3]] * 9 + [[4]])
    kept, held = whole.split(0.125)
    assert [b.provenance["tokens"] for b in (whole, kept, held)] == [28, 27, 1]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"tokens": 1024.0}, "tokens=1024.0 is not an integer"),
        ({"tokens": "many"}, "tokens='many' is not an integer"),
        ({"context": 64.5}, "context=64.5 is not an integer"),
        ({"seed": None}, "seed=None is not an integer"),
        ({"seed": True}, "seed=True is not an integer"),
        ({"seed": -1}, "seed=-1 is negative"),
    ],
)
def test_sizes_of_another_type(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        calibration_batches(MODEL, "math", **settings)


def test_numpy_integers_are_integers():
    sizes = {"tokens": np.int64(512), "context": np.int32(64), "seed": np.uint8(3)}
    found = calibration_batches(MODEL, "math", **sizes)
    assert json.loads(json.dumps(found.provenance))["context"] == 64 and len(found) == 8


def test_bad_sizes():
    with pytest.raises(ValueError, match="tokens=100 make 0 sequences of 256, fewer than one"):
        calibration_batches(MODEL, "english", tokens=100)
    with pytest.raises(ValueError, match="context 512 is not between 1 and the model's 256"):
        calibration_batches(MODEL, "english", context=512)
    for share in (1, -0.1, "0.1", None, float("nan")):
        with pytest.raises(ValueError, match="held_out=.* is not a share"):
            as_batches(MODEL, TOKENS).split(share)


@pytest.mark.parametrize(
    "count, share, held", [(10, 0.125, 1), (7, 0.125, 0), (8, 0.01, 1), (24, 0.25, 6), (10, 0, 0)]
)
def test_held_out_share(count, share, held):
    kept, out = as_batches(MODEL, np.arange(2 * count).reshape(count, 2)).split(share)
    assert len(kept) == count - held and (0 if out is None else len(out)) == held
    if out is not None:
        np.testing.assert_array_equal(out.tokens[-1], [2 * count - 2, 2 * count - 1])


# ---- what layers see -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, with_biases(MODEL)])
def test_calibrate_equals_the_inputs_at_once(model):
    found = calibrate(model, TOKENS)
    inputs = layer_inputs(model, TOKENS)
    assert list(found) == list(linears(model))
    for path, x in inputs.items():
        close(found[path], Stats.from_inputs(x))
    assert found["layers.0.mlp.up_proj"].tokens == 240
    assert found["layers.0.mlp.up_proj"] is found["layers.0.mlp.gate_proj"]


def test_padding_changes_nothing():
    whole = calibrate(MODEL, TOKENS[:3])
    padded = np.pad(TOKENS[:3], ((0, 0), (0, 9)), constant_values=7)
    mask = np.arange(33) < np.full((3, 1), 24)
    again = calibrate(MODEL, {"input_ids": padded, "attention_mask": mask})
    for path in whole:
        close(whole[path], again[path])


def test_stats_of_two_texts_merge_in_any_order():
    a, b, both = (calibrate(MODEL, TOKENS[i]) for i in (slice(0, 3), slice(3, 10), slice(0, 10)))
    shuffled = calibrate(MODEL, TOKENS[::-1])
    for path, stats in both.items():
        close(a[path].merge(b[path]), stats)
        close(shuffled[path], stats)


def test_sequences_that_fill_a_batch_up_are_not_counted():
    long = np.asarray(tokens_for(MODEL, batch=9, time=250))  # eight at a time: seven fill up
    found = calibrate(MODEL, long)["layers.1.mlp.down_proj"]
    assert (found.tokens, found.sequences) == (2250, 9)


# ---- propagation ---------------------------------------------------------------------------------


def test_float_inputs():
    seen: list[Stats] = []
    run(noted(seen, "float"), held_out=0)
    for stats, expected in zip(seen, calibrate(MODEL, TOKENS).values(), strict=True):
        close(stats, expected)


@pytest.mark.parametrize("model", [MODEL, random_model(OPT_CONFIG)], ids=["llama", "opt"])
def test_quantized_inputs_are_those_of_a_model_quantized_so_far(model):
    """Stage after stage: what a layer saw is what it reads in the model with every earlier stage
    rounded and nothing else."""
    seen: list[Stats] = []
    q = run(noted(seen, "quantized"), model=model, held_out=0)
    done, paths = linears(q), list(linears(model))
    for block in range(2):
        for stage in model.layers[block].STAGES:
            first = paths.index(f"layers.{block}.{stage[0]}")
            before = set(paths[:first])
            partly = map_linears(model, lambda p, x: done[p] if p in before else x)  # noqa: B023
            expected = Stats.from_inputs(layer_inputs(partly, TOKENS)[paths[first]])
            for i in range(len(stage)):
                close(seen[first + i], expected)
    last = calibrate(model, TOKENS)[paths[-1]].hessian
    off = np.linalg.norm(seen[-1].hessian - last) / np.linalg.norm(last)
    assert off > 0.01  # the float model's inputs are others


def test_one_hessian_for_the_layers_of_a_stage():
    seen: list[Stats] = []
    run(noted(seen, "quantized"))
    assert seen[0] is seen[1] is seen[2] and seen[4] is seen[5] and seen[3] is not seen[2]


def test_defaults():
    """A method's own way; a plain function gets text if there is any."""
    seen: list = []
    run(noted(seen, None), batches=None)
    assert seen == [None] * 14
    assert run(noted(seen, None)).label.provenance["propagate"] == "float"
    assert run("rtn").label.provenance["propagate"] == "float"
    assert run("gptq").label.provenance["propagate"] == "quantized"
    assert run("gptq", propagate="float").label.provenance["propagate"] == "float"
    for own, given, expected in [("none", "none", "float"), ("float", "quantized", "quantized")]:
        q = run(noted([], own), propagate=given)
        assert q.label.provenance["propagate"] == expected


def test_what_cannot_be_is_refused():
    stats = calibrate(MODEL, TOKENS)

    def refuse(sentence, *args, **settings):
        with pytest.raises(ValueError, match=sentence):
            run(*args, **settings)

    refuse("'gptq' with propagate='quantized' needs calibration text", "gptq", batches=None)
    refuse("batches='english'.*qlab.calibrate", "gptq", batches=None, propagate="none")
    refuse("needs calibration text", "rtn", batches=None, propagate="float")
    refuse("give batches=", "gptq", batches=None, stats=stats, propagate="quantized")
    refuse("exclude each other", "gptq", stats=stats)
    refuse("propagate='flaot' is unknown: did you mean 'float'", "gptq", propagate="flaot")
    refuse("takes no 'dmap': did you mean 'damp'", "gptq", dmap=0.1)
    refuse("'rtn' takes no 'damp': known are mse", "rtn", damp=0.1)
    wrong = {"layers.0.mlp.upproj": stats["layers.0.mlp.up_proj"]}
    refuse("no linear of this model: did you mean 'layers.0.mlp.up_proj'", "rtn", batches=None,
           stats=wrong)  # fmt: skip
    del stats["layers.1.mlp.down_proj"]
    refuse("lacks 'layers.1.mlp.down_proj'", "gptq", batches=None, stats=stats)


def test_given_stats_are_used_as_they_are():
    kept = calibrate(MODEL, TOKENS)
    a = run("gptq", batches=None, stats=kept)
    b = run("gptq", propagate="float", held_out=0)
    for path, layer in linears(a).items():
        np.testing.assert_array_equal(layer.weight.codes, linears(b)[path].weight.codes)
    assert any("Stats cannot follow" in note for note in a.report.notes)
    assert a.label.provenance["propagate"] == "given" and "stats" in a.label.provenance


def test_inputs_that_are_not_finite_name_the_layer():
    def poison(path, layer):
        bad = path == "layers.0.mlp.gate_proj"
        return Linear(layer.weight.at[2, 2].set(jnp.inf) if bad else layer.weight)

    with pytest.raises(ValueError, match="layers.0.mlp.down_proj: its inputs .* NaN or Inf"):
        calibrate(map_linears(MODEL, poison), TOKENS)


def test_mixed_rules_and_skipped_layers():
    """A stage, or a whole block, that stays float is passed through as it is."""
    rule = {"layers.1.mlp.*": "int4_g32", "layers.0.self_attn.o_proj": "int8_channel"}
    q = run("gptq", rule)
    assert [row.path for row in q.report.layers] == [
        "layers.0.self_attn.o_proj",
        "layers.1.mlp.gate_proj",
        "layers.1.mlp.up_proj",
        "layers.1.mlp.down_proj",
    ]
    only_first = run("gptq", skip=["layers.1.*"])
    assert len(only_first.report.layers) == 7 and len(only_first.report.float_layers) == 7
    with pytest.raises(ValueError, match="nothing is quantized: the model has 14"):
        run("gptq", lambda path: None)


def test_biases_and_quantized_models_go_through():
    model = run("rtn", "int8_channel", model=with_biases(MODEL))
    q = run("gptq", model=model)
    for path, layer in linears(q).items():
        np.testing.assert_array_equal(layer.bias, linears(model)[path].bias)
    assert np.isfinite(q(tokens_for(q))).all()


# ---- the report ----------------------------------------------------------------------------------


def test_losses_beside_rtn_on_seen_and_held_out_inputs():
    seen: list[Stats] = []
    q = run(noted(seen, "float"))
    kept, held = calibrate(MODEL, TOKENS[:9]), calibrate(MODEL, TOKENS[9:])
    for row in q.report.layers:
        w = linears(MODEL)[row.path].weight
        w_hat = dequantize(linears(q)[row.path].weight)
        for found, stats in ((row.loss, kept), (row.held_out_loss, held)):
            assert found == pytest.approx(float(output_error(w, w_hat, stats[row.path])), rel=1e-3)
        assert (row.rtn_loss, row.held_out_rtn_loss) == (row.loss, row.held_out_loss)
        assert row.tokens == 216 and row.worse_than_rtn is None
    g = run("gptq", "int3_g64")
    assert all(row.loss < row.rtn_loss for row in g.report.layers)
    assert all(row.damp is not None and row.rung == 0 for row in g.report.layers)
    assert run("gptq", held_out=0).report.layers[0].held_out_loss is None
    assert len(g.report.figure().axes) >= 1


def test_a_layer_worse_than_rtn_is_named_with_both_numbers():
    def clumsy(w, stats, spec):
        return quantize(w, quantize(w * 0.7, spec))

    report = run(clumsy).report
    row = report.layers[0]
    assert row.loss > row.rtn_loss
    said = f"{row.path} is worse than RTN (calibration: loss {row.loss:.4g}, RTN's"
    assert report.warnings[0].startswith(said) and f"{row.rtn_loss:.4g}" in report.warnings[0]
    assert f"{row.held_out_rtn_loss:.4g}" in report.warnings[0]
    assert str(report).splitlines()[1] == f"! {report.warnings[0]}"  # first of all
    assert "and 8 more" in str(report) and "is worse than RTN" in report._repr_html_()
    assert report._repr_html_().count("background:") == 14


def test_too_little_text_and_a_climbed_ladder_are_said():
    report = run("gptq", batches=TOKENS[:2]).report
    (line,) = [w for w in report.warnings if "down_proj" in w]
    assert line.startswith("2 × down_proj saw 48 tokens, fewer than their 128 inputs")
    assert not any("fewer than" in w for w in run("gptq").report.warnings)
    climbed = dataclasses.replace(report.layers[0], rung=2, damp=1.0)
    said = dataclasses.replace(report, layers=(climbed,)).warnings
    assert any("held at rung 2 (damping 1 of the mean)" in w for w in said)


def test_dead_channels_are_counted():
    def cut(path, layer):
        dead = path == "layers.0.self_attn.v_proj"
        return Linear(layer.weight.at[:3].set(0) if dead else layer.weight)

    report = run("gptq", model=map_linears(MODEL, cut)).report
    (row,) = [r for r in report.layers if r.path == "layers.0.self_attn.o_proj"]
    assert row.dead == 3 * 2  # each value head serves two query heads


def test_seconds_are_neither_saved_nor_compared():
    row = LayerReport("p", (2, 2), "int4_g64", 4.0, 0.1, 0.1, 0.0, seconds=1.0)
    assert row == dataclasses.replace(row, seconds=2.0)
    report = Report("m", "rtn", "int4_g64", (row,))
    assert "seconds" not in json.dumps(report.to_dict())
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_provenance_is_saved_beside_the_artifact(tmp_path):
    model = random_model()
    batches = calibration_batches(model, ["english", "korean"], tokens=1024, context=64, seed=3)
    q = run("gptq", batches=batches, damp=0.02)
    save(q, tmp_path / "q")
    p = load(tmp_path / "q").label.provenance
    assert p == q.label.provenance
    assert p["calibration"]["domains"] == ["english", "korean"] and p["calibration"]["seed"] == 3
    assert p["calibration"]["context"] == 64 and p["held_out"]["sequences"] == 2
    assert p["hyper"] == {"damp": "0.02"} and len(p["model"]["weights"]) == 64
    assert {"jax", "qlab"} <= set(p["versions"])
    assert load(tmp_path / "q").report == q.report


# ---- compilations and memory ---------------------------------------------------------------------


def count_compilations(work) -> int:
    seen: list[str] = []

    def listen(event: str, duration: float, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


@pytest.mark.parametrize("propagate", ["float", "quantized"])
def test_compilations_do_not_grow_with_layers(propagate):
    def model(layers):
        return random_model(dataclasses.replace(CONFIG, num_hidden_layers=layers))

    jax.clear_caches()
    two, five = model(2), model(5)
    jax.clear_caches()
    programs = 5 if propagate == "quantized" else 1  # one a stage and one for the output
    first = count_compilations(lambda: run("gptq", model=two, propagate=propagate))
    assert first > programs and through._cache_size() == programs
    assert count_compilations(lambda: run("gptq", model=five, propagate=propagate)) == 0
    assert through._cache_size() == programs


# ---- killed and resumed --------------------------------------------------------------------------


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "times.json"
    }


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """An error after each of the first blocks in turn; no finished block is done again."""
    save(killable(), tmp_path / "whole")
    cache = tmp_path / "cache"
    started: list[int] = []
    from qlab.models.propagate import Quantized

    seen = Quantized.seen
    limit = 0

    def stop(self, index, block, stage):
        if stage == block.STAGES[0]:
            started.append(index)
        if index >= limit and stage == block.STAGES[2]:
            raise KeyboardInterrupt
        return seen(self, index, block, stage)

    with monkeypatch.context() as patch:
        patch.setattr(Quantized, "seen", stop)
        for limit in (1, 1, 2):  # noqa: B007
            with pytest.raises(KeyboardInterrupt):
                killable(cache)
    assert started == [0, 1, 1, 1, 2]
    assert sorted(p.name for p in (cache / "states").iterdir()) == ["0002"]
    save(killable(cache), tmp_path / "resumed")
    assert bytes_of(tmp_path / "resumed") == bytes_of(tmp_path / "whole")
    assert list((cache / "states").iterdir()) == []

    def never(*_):
        raise AssertionError("a finished run is read, not done again")

    monkeypatch.setattr("qlab.models.quantize.quantize_layer", never)
    (cache / "states" / "0003").mkdir()  # as if killed just before it was removed
    save(killable(cache), tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "whole")
    assert list((cache / "states").iterdir()) == []


def start(cache: Path, output: Path) -> subprocess.Popen:
    code = [sys.executable, "-m", "tests.killed_run", str(cache), str(output)]
    return subprocess.Popen(code, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_killed_at_three_random_moments_gives_the_same_bytes(tmp_path):
    """Each time at a moment in the next block, which takes at least 0.35 s."""
    assert start(tmp_path / "calm", tmp_path / "whole").wait() == 0
    cache, output, random_number = tmp_path / "cache", tmp_path / "resumed", random.Random(0)
    for block in range(3):
        process = start(cache, output)
        while not (cache / f"block-{block:04d}.json").exists():
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(random_number.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        print(f"killed with {len(list(cache.glob('block-*.json')))} of 4 blocks finished")
    assert start(cache, output).wait() == 0
    assert bytes_of(output) == bytes_of(tmp_path / "whole")


def test_the_code_that_a_run_depends_on_is_part_of_its_key():
    """Every module that methods and models compute with is hashed; those that only show, and FP8
    training, which neither uses, are not."""
    for name in ARITHMETIC:
        assert (ROOT / "qlab" / f"{name}.py").is_file()
    shown = {"__init__", "__main__", "cli", "demo", "describe", "cache", "suggest", "packing"}
    shown |= {"fp8"}
    there = {path.stem for path in (ROOT / "qlab").glob("*.py")}
    assert there - shown == set(ARITHMETIC)
    assert code_hash(gptq) == code_hash(rtn) != code_hash(killable)


def test_a_folder_of_another_run_is_refused(tmp_path):
    cache = tmp_path / "cache"
    run("gptq", cache=cache)

    def refuse(sentence, *args, **settings):
        with pytest.raises(ValueError, match=sentence):
            run(*args, cache=cache, **settings)

    refuse('spec was \\["int4_g32"\\], is \\["int3_g64"\\]', "gptq", "int3_g64")
    refuse('hyper.damp was not set, is "0.02"', "gptq", damp=0.02)
    refuse('method was "gptq", is "rtn"', "rtn")
    refuse('propagate was "quantized", is "float"', "gptq", propagate="float")
    refuse("calibration.token_sha256 was .* held_out.token_", "gptq", batches=TOKENS[::-1])
    refuse('held_out was {"seq.*, is not set', "gptq", held_out=0)
    refuse(
        'model.weights was "[0-9a-f]{64}", is "[0-9a-f]{64}"', "gptq", model=random_model(seed=1)
    )
    refuse(
        'plan.layers.1.self_attn.q_proj was "gptq, int4_g32 \\([0-9a-f]{16}\\)", is "float"; .*; '
        "and 3 more",
        "gptq",
        skip=["layers.1.*"],
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else"):
        run("gptq", cache=tmp_path / "mine")
    with pytest.raises(ValueError, match="is a file"):
        run("gptq", cache=tmp_path / "mine" / "thesis.txt")


def test_a_run_that_finished_no_block_gives_its_folder_up(tmp_path, monkeypatch):
    """Killed in the first block: other settings may take the folder; they read none of its
    states.
    """
    cache = tmp_path / "cache"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qlab.models.quantize.quantize_layer", stop)
        with pytest.raises(KeyboardInterrupt):
            run("gptq", cache=cache)
    assert {p.name for p in cache.iterdir()} == {"run.json", "states"}
    assert list((cache / "states").iterdir())  # of the first run's text
    other = {"batches": TOKENS[::-1], "damp": 0.02}
    save(run("gptq", cache=cache, **other), tmp_path / "taken")
    save(run("gptq", **other), tmp_path / "alone")
    assert bytes_of(tmp_path / "taken") == bytes_of(tmp_path / "alone")
    with pytest.raises(ValueError, match='hyper.damp was "0.02", is not set'):
        run("gptq", cache=cache)  # from its first block on the folder is the other run's


def test_a_run_whose_folder_was_taken_stops(tmp_path):
    first = Folder(tmp_path, {"spec": "a"})
    second = Folder(tmp_path, {"spec": "b"})
    second.finish(0, ({}, []))
    with pytest.raises(ValueError, match='another run: spec was "b", is "a"'):
        first.finish(0, ({}, []))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text('{"years of": "work"}')
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds another run"):
        Folder(tmp_path / "mine", {"spec": "a"})


def test_hidden_and_half_written_files_are_nobodys(tmp_path):
    """In a folder that is new, in one that is taken over, and among the states."""
    for name in (".DS_Store", "run.json.part", "block.part"):
        (tmp_path / name).write_text("half")
    Folder(tmp_path, {"spec": "a"})
    (tmp_path / "block-0000.safetensors").write_text("of a block that has no rows yet")
    Folder(tmp_path, {"spec": "b"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"spec": "b"}
    (tmp_path / "states" / ".DS_Store").write_text("hidden")
    States(tmp_path / "states", {"calibration": as_batches(MODEL, TOKENS)}).clear()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match='spec was "b", is "c"'):
        Folder(tmp_path, {"spec": "c"})


def test_other_ways_of_propagating_resume_too(tmp_path):
    for propagate in ("float", "quantized"):
        a = run("gptq", cache=tmp_path / propagate, propagate=propagate)
        b = run("gptq", cache=tmp_path / propagate, propagate=propagate)
        save(a, tmp_path / propagate / "a")
        save(b, tmp_path / propagate / "b")
        assert bytes_of(tmp_path / propagate / "a") == bytes_of(tmp_path / propagate / "b")
    q = run("rtn", batches=None, cache=tmp_path / "none")
    assert run("rtn", batches=None, cache=tmp_path / "none").report == q.report


# ---- the command line ----------------------------------------------------------------------------


def test_quantize_from_a_shell(tmp_path, capsys):
    from qlab.cli import main

    def said(*arguments):
        code = main(["quantize", "tiny", "--spec", "int4_g64", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    few = ["--calibration", "english", "--calibration", "code", "--calibration-tokens", "1024"]
    few += ["--context", "64", "--held-out", "0.25", "--method", "gptq"]
    target = ["-o", str(tmp_path / "q")]
    kept = ["--cache", str(tmp_path / "cache"), "--set", "damp=0.02", "--set", "act_order=true"]
    code, out = said(*few, *target, *kept)
    assert code == 0 and "768 tokens (english, code)" in out and "held out" in out, out
    p = load(tmp_path / "q").label.provenance
    assert p["hyper"] == {"act_order": "True", "damp": "0.02"} and p["calibration"]["context"] == 64
    assert (tmp_path / "cache" / "block-0003.json").exists()
    wrong = ["-o", str(tmp_path / "new")]
    for arguments, words in [
        ([*few, *target], "is not empty; --overwrite replaces it"),
        (["--method", "gptq", *wrong], "needs text: --calibration english"),
        ([*few, *wrong, "--set", "dmap=1"], "did you mean 'damp'"),
        ([*few, *wrong, "--set", "damp"], "not of the form name=value"),
        ([*few, *wrong, "--set", "damp=1", "--set", "damp=2"], "damp is given twice: 1 and 2"),
        ([*few, *wrong, "--context", "512"], "context 512"),
        (["--calibration", "englsh", *wrong], "did you mean 'english'"),
    ]:
        code, out = said(*arguments)
        assert code == 2 and words in out and len(out.strip().splitlines()) == 1, out


def test_batches_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        as_batches(MODEL, TOKENS).tokens = TOKENS  # type: ignore[misc]
    assert isinstance(as_batches(MODEL, TOKENS), Batches)
    assert gptq.propagate == "quantized" and get(MODEL.layers[0], "mlp.up_proj") is not None
