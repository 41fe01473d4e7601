"""llama.cpp itself: it runs what qlab writes, and its quantizer writes the same file."""

import numpy as np
import pytest

import qlab
from qlab.io import gguf
from qlab.models.export_gguf import to_gguf

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.peer

FTYPES = {"F16": 1, "BF16": 32}
if hasattr(gguf, "encode"):
    FTYPES |= {"Q8_0": 7, "Q4_0": 2, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q6_K": 18}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model = qlab.load("tiny")
    return model, qlab.save(model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("text", ["english", "code", "math", "korean"])
def test_it_runs_tiny_as_we_do(tiny, text):
    """The same ids; and logits apart only by its half-precision cache of keys and values."""
    model, path = tiny
    peer = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False)
    words = qlab.texts(text)[:4000]
    ids = model.tokenizer.encode(words)
    assert peer.tokenize(words.encode(), add_bos=False, special=False) == ids
    peer.reset()
    peer.eval(ids[:200])
    theirs, ours = np.array(peer.scores[:200]), np.asarray(model(np.array([ids[:200]])))[0]
    assert np.abs(theirs - ours).max() < 0.01 * ours.std()
    assert (theirs.argmax(-1) == ours.argmax(-1)).mean() > 0.99


@pytest.mark.parametrize("mixture", list(FTYPES))
def test_its_quantizer_writes_the_same_tensors(tiny, mixture, tmp_path):
    _, path = tiny
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[mixture]
    target = tmp_path / "theirs.gguf"
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), params) == 0
    to_gguf(path, tmp_path / "ours.gguf", mixture)
    theirs, ours = gguf.read(target), gguf.read(tmp_path / "ours.gguf")
    assert theirs.values == {key: v for key, v in ours.values.items() if key in theirs.values}
    assert set(theirs.tensors) == set(ours.tensors)
    for name, tensor in theirs.tensors.items():
        assert tensor.type == ours.tensors[name].type, name
        np.testing.assert_array_equal(tensor.raw, ours.tensors[name].raw, err_msg=name)
