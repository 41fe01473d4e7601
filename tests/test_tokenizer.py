"""The tokenizer: exact round trips, a stable fingerprint, pieces that join to the whole text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.models.tokenizer import from_gguf, from_json
from tests.models_for_tests import byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(st.text())
def test_round_trip(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert "".join(TOKENIZER.stream(ids)) == text


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_streamed_pieces_join_to_the_whole(ids):
    assert "".join(TOKENIZER.stream(ids)) == TOKENIZER.decode(ids)


def test_stream_never_shows_half_a_character():
    ids = TOKENIZER.encode("가나다 🙂!")
    assert len(ids) > 10  # several bytes a character
    assert all("\ufffd" not in piece for piece in TOKENIZER.stream(ids))


def test_fingerprint_survives_a_file_and_sees_a_change(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_json())
    again = from_json(path, (0,))
    assert again.fingerprint == TOKENIZER.fingerprint and len(again.fingerprint) == 64
    assert again.eos_ids == (0,)
    again.definition.add_special_tokens(["<|other|>"])
    assert again.fingerprint != TOKENIZER.fingerprint
    assert again.vocab_size == TOKENIZER.vocab_size + 1


def test_numpy_ids_decode():
    assert TOKENIZER.decode(np.array(TOKENIZER.encode("the end"))) == "the end"


def test_damaged_files_are_one_sentence(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match="is no tokenizer.json"):
        from_json(tmp_path / "tokenizer.json")


def gguf_metadata(**changes):
    g = "tokenizer.ggml."
    tokens = ["<|end|>", "<|im_start|>", *map(chr, range(97, 123)), "Ġ", "th", "the", "1", "2"]
    found = {
        g + "model": "gpt2",
        g + "pre": "smollm",
        g + "tokens": tokens,
        g + "token_type": [3, 3] + [1] * (len(tokens) - 2),
        g + "merges": ["t h", "th e"],
        g + "bos_token_id": 1,
        g + "eos_token_id": 0,
        g + "add_bos_token": False,
    }
    return found | {g + key: value for key, value in changes.items()}


def test_from_gguf():
    tokenizer = from_gguf(gguf_metadata())
    tokens = gguf_metadata()["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in tokenizer.encode("the 12")] == ["the", "Ġ", "1", "2"]
    assert tokenizer.encode("<|im_start|>the") == [1, tokens.index("the")]
    assert (tokenizer.eos_ids, tokenizer.bos_id) == ((0,), None)
    assert tokenizer.decode(tokenizer.encode("<|end|>the cat")) == "<|end|>the cat"


@pytest.mark.parametrize("change", [{"model": "llama"}, {"pre": "llama-bpe"}])
def test_other_gguf_tokenizers_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change.values()))):
        from_gguf(gguf_metadata(**change))
