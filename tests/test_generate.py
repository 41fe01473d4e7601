"""Generation: the cached loop writes what repeated whole passes would, streams it, and ends."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.models.generate import _sample, _until_stop, bucket, generate, generate_tokens
from qlab.models.quantize import quantize_model
from qlab.models.tokenizer import Tokenizer
from tests.models_for_tests import CONFIG, random_model

MODEL = random_model()


def by_whole_passes(model, ids, count) -> list[int]:
    """The likeliest next token of the whole text so far, again and again; no cache."""
    ids = list(ids)
    for _ in range(count):
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(model(jnp.asarray(padded)))
        ids.append(int(logits[0, len(ids) - 1].argmax()))
    return ids[-count:]


@pytest.mark.parametrize("prompt", ["a", "the cat in the hat", "x" * 31])
def test_equals_repeated_whole_passes(prompt):
    ids = MODEL.tokenizer.encode(prompt)
    expected = by_whole_passes(MODEL, ids, 20)
    if 0 in expected:  # the end token ends the loop and is not part of the text
        expected = expected[: expected.index(0)]
    assert list(generate_tokens(MODEL, ids, 20)) == expected
    assert generate(MODEL, prompt, max_new_tokens=20) == MODEL.tokenizer.decode(expected)


def test_quantized_models_generate():
    q = quantize_model(MODEL, "rtn", "int8_channel", progress=False)
    ids = MODEL.tokenizer.encode("the")
    assert list(generate_tokens(q, ids, 6)) == by_whole_passes(q, ids, 6)


def test_ends_at_the_end_token_and_at_stop():
    ids = MODEL.tokenizer.encode("the cat")
    first = list(generate_tokens(MODEL, ids, 8))
    ending = jax.tree.map(lambda leaf: leaf, MODEL)
    tokenizer = Tokenizer(MODEL.tokenizer.definition, eos_ids=(7, first[3]))
    ending.label = dataclasses.replace(MODEL.label, tokenizer=tokenizer)
    assert list(generate_tokens(ending, ids, 8)) == first[: first.index(first[3])]
    text = generate(MODEL, "the cat", max_new_tokens=8)
    stop = text[3:5]
    assert generate(MODEL, "the cat", max_new_tokens=8, stop=stop) == text[: text.index(stop)]


def test_streams_pieces_that_join_to_the_text(capsys):
    pieces = []
    text = generate(MODEL, "a cat", max_new_tokens=12, stream=pieces.append)
    assert "".join(pieces) == text and len(pieces) > 1
    generate(MODEL, "a cat", max_new_tokens=12, stream=True)
    assert capsys.readouterr().out == text


def test_stop_text_across_pieces():
    pieces = iter(["ab", "c<", "e", "nd", ">x"])
    assert "".join(_until_stop(pieces, ("<end>",))) == "abc"
    assert "".join(_until_stop(iter(["a<", "b", "<en"]), ("<end>",))) == "a<b<en"


def test_sampling_is_seeded_and_follows_the_distribution():
    ids = MODEL.tokenizer.encode("in the")
    settings = {"temperature": 1.0, "key": jax.random.key(5)}
    once = list(generate_tokens(MODEL, ids, 12, **settings))
    assert once == list(generate_tokens(MODEL, ids, 12, **settings))
    assert once != list(generate_tokens(MODEL, ids, 12, temperature=1.0, key=jax.random.key(6)))
    # A nucleus of almost nothing holds the likeliest token alone.
    greedy = list(generate_tokens(MODEL, ids, 12))
    assert list(generate_tokens(MODEL, ids, 12, top_p=1e-6, **settings)) == greedy

    logits = jnp.log(jnp.array([0.1, 0.6, 0.3]))
    keys = jax.random.split(jax.random.key(0), 3000)
    draw = jax.vmap(lambda k, t, p: _sample(logits, k, t, p), (0, None, None))
    share = np.bincount(draw(keys, 1.0, 1.0), minlength=3) / 3000
    np.testing.assert_allclose(share, [0.1, 0.6, 0.3], atol=0.03)
    share = np.bincount(draw(keys, 1.0, 0.7), minlength=3) / 3000  # 0.6 alone is not yet 0.7
    np.testing.assert_allclose(share, [0.0, 2 / 3, 1 / 3], atol=0.03)


def test_buckets():
    assert [bucket(n) for n in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]


def test_stops_at_the_models_context():
    short = random_model(dataclasses.replace(CONFIG, max_position_embeddings=20))
    assert len(list(generate_tokens(short, [5] * 15, 50))) <= 5
    with pytest.raises(ValueError, match="the prompt has 25 tokens, the model's context 20"):
        generate(short, "x" * 25)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"temperature": 0.5}, "give key="),
        ({"temperature": -1.0}, "must be ≥ 0"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"max_new_tokens": 0}, "less than 1"),
        ({"chat": True}, "ChatML"),
    ],
)
def test_bad_arguments(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(MODEL, **{"prompt": "the", **settings})


def test_no_tokenizer_is_one_sentence():
    bare = jax.tree.map(lambda leaf: leaf, MODEL)
    bare.label = dataclasses.replace(MODEL.label, tokenizer=None)
    with pytest.raises(ValueError, match="no tokenizer"):
        generate(bare, "the")
