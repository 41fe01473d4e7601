"""save and load: the same model bit for bit, the same bytes twice, whole or not at all."""

import hashlib
import json
import os

import jax
import numpy as np
import pytest

from qlab.formats import FORMATS, INT4, TERNARY, Format
from qlab.io.safetensors import save, spec_from_json, spec_to_json
from qlab.models.load import load
from qlab.models.quantize import quantize_model
from qlab.models.surgery import linears, map_linears
from qlab.models.transformer import Linear
from qlab.packing import packed_size
from qlab.qtensor import Spec, quantize
from qlab.rules import absmax
from qlab.specs import SPECS
from tests.models_for_tests import random_model, tokens_for, with_biases

MODEL = with_biases(random_model())


def quantized(spec="int4_g64", model=MODEL):
    return quantize_model(model, "rtn", spec, progress=False)


def leaves(model):
    return jax.tree_util.tree_flatten_with_path(model)


def assert_same(a, b):
    (x, tree), (y, other) = leaves(a), leaves(b)
    assert tree == other
    for (path, first), (_, second) in zip(x, y, strict=True):
        assert first.dtype == second.dtype, path
        np.testing.assert_array_equal(first, second, err_msg=str(path))


# Every way of storing scales, zeros and offsets; nested, two-dimensional, ternary.
KINDS = ["int4_g64", "uint4_g32", "nf4_double", "nvfp4", "mxfp4", "fp8_block", "hqq4_g64", "q8_0"]
KINDS += ["gptq4_sym_channel", "int3_g64", "int8_channel"]


def test_round_trip_of_every_kind_of_spec(tmp_path):
    """One kind a linear, all in one file."""
    paths = list(linears(MODEL))
    kinds = dict(zip(paths, KINDS, strict=False))
    q = quantized(kinds)
    save(q, tmp_path / "q")
    again = load(tmp_path / "q")
    assert_same(q, again)
    np.testing.assert_array_equal(q(tokens_for(q)), again(tokens_for(q)))
    assert again.report == q.report and again.label.provenance == q.label.provenance
    assert (again.name, again.notes, again.config) == (q.name, q.notes, q.config)
    assert again.tokenizer.fingerprint == q.tokenizer.fingerprint
    assert again.tokenizer.eos_ids == (0,)


def test_column_order_and_channel_scales_travel_too(tmp_path):
    def change(path, layer):
        q = quantize(layer.weight, SPECS["int4_g64"])
        order = np.arange(layer.weight.shape[1], dtype=np.int32)[::-1]
        return Linear(q.replace(perm=order.copy(), channel_scale=np.float32(1 + order)), layer.bias)

    q = map_linears(MODEL, change)
    save(q, tmp_path / "q")
    np.testing.assert_array_equal(q(tokens_for(q)), load(tmp_path / "q")(tokens_for(q)))


def test_float_models_are_saved_too(tmp_path):
    save(MODEL, tmp_path / "m")
    assert_same(MODEL, load(tmp_path / "m"))
    assert load(tmp_path / "m").report is None


def test_codes_are_packed(tmp_path):
    save(quantized("int3_g64"), tmp_path / "q")
    size = (tmp_path / "q" / "model.safetensors").stat().st_size
    weights = sum(x.weight.size for x in linears(MODEL).values())
    floats = sum(leaf.size for leaf in jax.tree.leaves(MODEL)) - weights
    expected = packed_size(weights, SPECS["int3_g64"].format) + weights // 64 * 2 + 4 * floats
    assert expected <= size < expected + 10_000  # the header


def digest(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "times.json"
    }


def test_same_model_same_bytes(tmp_path):
    save(quantized("nf4_double"), tmp_path / "a")
    save(quantized("nf4_double"), tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    save(load(tmp_path / "a"), tmp_path / "c")
    assert digest(tmp_path / "a") == digest(tmp_path / "c")
    assert "saved" in json.loads((tmp_path / "a" / "times.json").read_text())


def test_never_replaces_unasked_and_never_by_half(tmp_path, monkeypatch):
    target = tmp_path / "q"
    q = quantized()
    save(q, target)
    before = digest(target)
    with pytest.raises(ValueError, match="is not empty; overwrite=True replaces it"):
        save(MODEL, target)
    assert digest(target) == before

    def broken(*_args, **_settings):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("qlab.io.safetensors._write_json", broken)
        with pytest.raises(OSError, match="disk full"):
            save(MODEL, target, overwrite=True)
    rename = os.rename
    with monkeypatch.context() as patch:  # the second rename fails: the old folder comes back
        calls = []
        patch.setattr(
            os,
            "rename",
            lambda a, b: calls.append(a) or (broken() if len(calls) == 2 else rename(a, b)),
        )
        with pytest.raises(OSError, match="disk full"):
            save(MODEL, target, overwrite=True)
    assert digest(target) == before and [p.name for p in tmp_path.iterdir()] == ["q"]
    save(MODEL, target, overwrite=True)
    assert_same(MODEL, load(target))
    assert [p.name for p in tmp_path.iterdir()] == ["q"]
    (tmp_path / "empty").mkdir()
    save(MODEL, tmp_path / "empty")  # an empty folder is nobody's work


def test_bad_targets(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        save(MODEL, tmp_path / "file")
    with pytest.raises(ValueError, match="name of a GGUF file, which qlab.save writes"):
        save(MODEL, tmp_path / "m.gguf")


def test_damaged_artifacts_are_one_sentence(tmp_path):
    target = tmp_path / "q"
    save(quantized(), target)
    data = (target / "model.safetensors").read_bytes()
    (target / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load(target)
    (target / "model.safetensors").write_bytes(data)
    manifest = json.loads((target / "qlab.json").read_text())

    def edited(**changes):
        (target / "qlab.json").write_text(json.dumps(manifest | changes))

    path = "layers.0.mlp.up_proj.weight"
    edited(version=99)
    with pytest.raises(ValueError, match="has version 99, this qlab reads 1"):
        load(target)
    entry = manifest["quantized"][path]
    edited(quantized=manifest["quantized"] | {path: entry | {"shape": [128, 65]}})
    with pytest.raises(ValueError, match="take .* bytes, not"):
        load(target)
    wrong = entry | {"spec": entry["spec"] | {"format": "INT99"}}
    edited(quantized=manifest["quantized"] | {path: wrong})
    with pytest.raises(ValueError, match="INT99"):
        load(target)
    edited(quantized=manifest["quantized"] | {"layers.9.weight": entry})
    with pytest.raises(ValueError, match="layers.9.weight.codes"):
        load(target)
    edited()
    assert load(target).name == "random rtn int4_g64"


@pytest.mark.parametrize("name", list(SPECS))
def test_every_named_spec_survives_json(name):
    text = json.dumps(spec_to_json(SPECS[name]))
    assert spec_from_json(json.loads(text)) == SPECS[name]


def test_specs_that_no_file_can_name():
    def own_rule(blocks, format):
        return absmax(blocks, format)

    with pytest.raises(ValueError, match="rule 'own_rule' is not in RULES"):
        spec_to_json(Spec(INT4, 64, rule=own_rule))
    own = Format("MINE", 2, np.array([-1, 0, 1, 2], np.float32))
    with pytest.raises(ValueError, match="format 'MINE' is not in FORMATS"):
        spec_to_json(Spec(own, 64))
    with pytest.raises(ValueError, match="'rule'"):
        spec_from_json({"format": "INT4", "block": 64})
    assert FORMATS["TERNARY"] == TERNARY
