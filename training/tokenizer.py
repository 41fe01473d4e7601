"""Byte-level BPE with 4,096 tokens: digits one by one, every byte has a token, no text is lost."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer

VOCABULARY = 4096


def train_tokenizer(documents: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Learns merges from documents; the same documents give the same file.

    Args:
        documents: training texts.
        vocabulary: number of tokens, `<|endoftext|>` (id 0) and the 256 bytes included.

    Example:
        >>> train_tokenizer(["to be or not to be"], 300).decode([0], skip_special_tokens=False)
        '<|endoftext|>'
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer
