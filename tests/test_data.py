"""The bundled texts: what they are, that their splits are apart, that their licences are named."""

import hashlib
import json
import math
import random
import re
import unicodedata
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest

from qlab.cache import cache_dir
from qlab.data import DOMAINS, SPLITS, problems, text_hash, texts

ROOT = Path(__file__).parent.parent
DATA = ROOT / "qlab" / "data"


# --------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_text_is_the_one_the_corpus_was_cleaned_of(domain, split):
    recorded = json.loads((ROOT / "training" / "corpus.json").read_text())["texts_sha256"]
    text = texts(domain, split)
    assert text_hash(text) == recorded[f"{domain}.{split}.txt"]
    assert 170_000 < len(text.encode()) < 220_000
    assert "\r" not in text and text.endswith("\n")
    if domain == "korean":
        assert unicodedata.is_normalized("NFC", text)


@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_share_no_long_line(domain):
    lines = [
        {line.strip() for line in texts(domain, split).split("\n") if len(line.strip()) >= 60}
        for split in SPLITS
    ]
    if domain != "math":  # problems are shorter; they are told apart below
        assert min(map(len, lines)) > 200
    assert not lines[0] & lines[1]


def test_default_split_is_evaluation():
    assert texts("code") == texts("code", split="evaluation") != texts("code", "calibration")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("englsh",), r"no domain is called 'englsh'; did you mean 'english'\?"),
        (("Korean",), r"did you mean 'korean'\?"),
        (("math", "eval"), r"no split is called 'eval'; did you mean 'evaluation'\?"),
        (("qqq",), r"no domain is called 'qqq'; known are english, code, math, korean"),
    ],
)
def test_unknown_names_suggest_the_nearest(arguments, message):
    with pytest.raises(ValueError, match=message):
        texts(*arguments)


def test_text_hash_is_sha256_of_utf8():
    assert text_hash("한글") == hashlib.sha256("한글".encode()).hexdigest()


# -------------------------------------------------------------------------------------- licences


def test_every_data_file_has_its_licence_named_and_no_other():
    page = (ROOT / "DATA_LICENSES.md").read_text(encoding="utf-8")
    bundled, after = page.split("## Attribution")
    named = dict(re.findall(r"^\| `(qlab/data/[^`]+)` \| ([^|]+) \|", bundled, re.M))
    files = {
        path.relative_to(ROOT).as_posix()
        for path in DATA.rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert set(named) == files
    known = {"Apache-2.0", "PSF-2.0", "CC-BY-SA-3.0", "MIT", "LicenseRef-public-domain"}
    assert {part for spdx in named.values() for part in spdx.strip().split(" AND ")} <= known
    assert "조성호" in after and "Hertzog" in after


def test_every_source_of_the_training_is_named():
    page = (ROOT / "DATA_LICENSES.md").read_text(encoding="utf-8").split("## What trained")[1]
    sources = json.loads((ROOT / "training" / "sources.json").read_text())
    trained = json.loads((ROOT / "training" / "corpus.json").read_text())["groups"]
    used = {source for group in trained.values() for source in group} - {"generated"}
    assert used <= set(sources)
    for name, facts in sources.items():
        assert re.search(rf"(^|[ |,]){re.escape(name)}[ ,|(]", page, re.M), name
        assert len(facts["sha256"]) == 64


# -------------------------------------------------------------------------------------- problems


def lcm(a: int, b: int) -> int:
    return next(m for m in range(max(a, b), a * b + 1) if m % a == 0 == m % b)


def gcd(a: int, b: int) -> int:
    return max(d for d in range(1, min(a, b) + 1) if a % d == 0 == b % d)


# question -> kind, operands as `problems.part` hashes them, answer found anew
SOLVERS = {
    r"What is (\d+) \+ (\d+)\?": lambda a, b: ("add", tuple(sorted((a, b))), a + b),
    r"What is (\d+) - (\d+)\?": lambda a, b: ("subtract", (a, b), a - b),
    r"What is (\d+) \* (\d+)\?": lambda a, b: ("multiply", tuple(sorted((a, b))), a * b),
    r"What is (\d+) / (\d+)\?": lambda a, b: ("divide", (a, b), Fraction(a, b)),
    r"What is the remainder when (\d+) is divided by (\d+)\?": lambda a, b: (
        "remainder",
        (a, b),
        a - a // b * b,
    ),
    r"What is the greatest common divisor of (\d+) and (\d+)\?": lambda a, b: (
        "gcd",
        tuple(sorted((a, b))),
        gcd(a, b),
    ),
    r"What is the least common multiple of (\d+) and (\d+)\?": lambda a, b: (
        "lcm",
        tuple(sorted((a, b))),
        lcm(a, b),
    ),
    r"Which is larger, (\d+) or (\d+)\?": lambda a, b: ("larger", tuple(sorted((a, b))), max(a, b)),
    r"Solve (\d+)x \+ (\d+) = (\d+) for x\.": lambda a, b, c: (
        "solve",
        (a, b, c),
        Fraction(c - b, a),
    ),
    r"What comes next: (\d+), (\d+), (\d+), (\d+)\?": lambda a, b, c, d: (
        "sequence",
        (a, b - a),
        d + (d - c),
    ),
    r"What is (\d+)% of (\d+)\?": lambda a, b: ("percent", (a, b), Fraction(a * b, 100)),
    r"How many minutes are (\d+) hours and (\d+) minutes\?": lambda a, b: (
        "minutes",
        (a, b),
        sum([60] * a) + b,
    ),
}
SHARE = re.compile(r"(\w+) has (\d+) (\w+) and gets (\d+) more\. How many \3 are there now\?")


def solve(question: str) -> tuple[str, tuple, Fraction | int]:
    if match := SHARE.fullmatch(question):
        name, a, thing, b = match.groups()
        return "share", (name, thing, int(a), int(b)), int(a) + int(b)
    found = [
        solver(*map(int, match.groups()))
        for pattern, solver in SOLVERS.items()
        if (match := re.fullmatch(pattern, question))
    ]
    assert len(found) == 1, question
    return found[0]


@pytest.mark.parametrize("split", SPLITS)
def test_math_answers_are_right_and_problems_belong_to_their_split(split):
    lines = texts("math", split).rstrip("\n").split("\n")
    assert len(lines) > 4000
    kinds = set()
    for line in lines:
        question, answer = line.removeprefix("Q: ").split(" A: ")
        kind, operands, value = solve(question)
        kinds.add(kind)
        assert Fraction(answer) == value, line
        assert problems.part(problems.Problem(kind, operands, "", "")) == split, line
    assert kinds == set(problems.ARITHMETIC) and len(kinds) == 13


def test_a_commutative_problem_is_in_one_part_both_ways_round():
    for seed in range(300):
        problem = problems.arithmetic(random.Random(seed), "add")
        a, b = map(int, re.findall(r"\d+", problem.question))
        assert problem.operands == (min(a, b), max(a, b))


@pytest.mark.parametrize("wanted", problems.PARTS)
def test_problems_are_seeded_and_of_one_part(wanted):
    draws = [list(islice(problems.problems(problems.recall, 3, wanted), 30)) for _ in range(2)]
    assert draws[0] == draws[1]
    assert {problems.part(p) for p in draws[0]} == {wanted}
    with pytest.raises(ValueError, match="unknown part 'test'"):
        next(problems.problems(problems.recall, 0, "test"))


def test_about_one_problem_in_sixteen_is_held_out_for_each_split():
    rng = random.Random(0)
    parts = [problems.part(problems.arithmetic(rng)) for _ in range(8000)]
    for split in SPLITS:
        assert 400 < parts.count(split) < 600


def test_brackets_close_and_recall_and_names_answer():
    for seed in range(300):
        rng = random.Random(seed)
        problem = problems.brackets(rng)
        text = problem.line.removeprefix("Close: ").replace(" A: ", "").replace(" ", "")
        while text:
            shorter = re.sub(r"\(\)|\[\]|\{\}|<>", "", text)
            assert shorter != text, problem.line
            text = shorter
        problem = problems.recall(rng)
        pairs, asked = problem.question.split(" ; ")
        assert dict(p.split("=") for p in pairs.split())[asked[0]] == problem.answer
        problem = problems.names(rng)
        first, second, giver = problem.operands[:3]
        assert {giver, problem.answer[1:-1]} == {first, second}


def test_cloze_puts_back_the_sentence():
    sentence = "The committee shall keep a record of every meeting"
    for seed in range(20):
        problem = problems.cloze(random.Random(seed), sentence)
        assert problem is not None
        holed = problem.question.removeprefix("Fill: ").removesuffix(" A: ")
        assert holed.replace("___", problem.answer) == sentence
    assert problems.cloze(random.Random(0), "too short") is None


# --------------------------------------------------------------------------------- cache, tiny


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("QLAB_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b" and cache_dir().is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="is a file; set QLAB_CACHE"):
        cache_dir()


def test_tiny_is_the_model_its_record_tells_of():
    folder = DATA / "tiny"
    record = json.loads((folder / "training.json").read_text())
    raw = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == record["weights_sha256"]
    assert len(raw) <= 16_000_000
    assert record["parameters"] == 4_196_608
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    corpus = json.loads((ROOT / "training" / "corpus.json").read_text())
    assert digest == record["data"]["tokenizer_sha256"] == corpus["tokenizer_sha256"]
    assert record["data"]["sha256"] == corpus["sha256"]
    config = json.loads((folder / "config.json").read_text())
    for name in ("vocab_size", "hidden_size", "intermediate_size"):
        assert config[name] % 256 == 0
    assert math.isfinite(record["loss"][-1]["loss"])


def test_tokenizer_loses_nothing():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DATA / "tiny" / "tokenizer.json"))
    for domain in DOMAINS:
        text = texts(domain)[:20_000]
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    odd = bytes(range(1, 128)).decode() + "\u0080ÿ漢字🙂\n\n\t  x"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd
