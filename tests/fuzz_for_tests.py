"""Damaged files by the thousand: mutations of a good one, each with a sentence or a good answer."""

import time
import tracemalloc
from collections import Counter

import numpy as np

SECONDS = 1.0
CONSTANT = 1 << 18  # bytes: Python's own objects, the sentence of the error among them
NUMBERS = [0, 1, 2, 7, 8, 9, 31, 64, 255, 256, 65535, 1 << 24, 1 << 31, (1 << 32) - 1, 1 << 40,
           1 << 60, (1 << 63) - 1, (1 << 64) - 1]  # fmt: skip


def mutate(good: bytes, rng: np.random.Generator) -> bytes:
    """A good file after one to four accidents: bytes, fields, cuts, doublings, swaps."""
    data = bytearray(good)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, max(1, len(data))))
        match int(rng.integers(0, 7)):
            case 0:  # one byte
                data[at : at + 1] = bytes([int(rng.integers(256))])
            case 1 | 2:  # a count, length, type or offset: small files are all fields
                width = int(rng.choice([4, 8]))
                value = NUMBERS[int(rng.integers(len(NUMBERS)))] % (1 << 8 * width)
                data[at : at + width] = value.to_bytes(width, "little")
            case 3:  # ends early
                del data[at:]
            case 4:  # a piece is lost
                del data[at : at + int(rng.integers(1, 40))]
            case 5:  # a piece stands there twice
                piece = data[at : at + int(rng.integers(1, 60))]
                data[at:at] = piece
            case 6:  # a piece of random bytes
                width = int(rng.integers(1, 17))
                data[at : at + width] = rng.bytes(width)
    return bytes(data)


def outcomes(
    good: bytes, folder, read, count: int, seed: int = 0, suffix=".gguf", rest=b"", limits=True
) -> Counter:
    """Reads `count` mutations: how many were read, how many refused with a ValueError.

    `rest` follows and stays as it is. Without `limits` neither time nor memory is judged: what is
    read may compile a program.

    Raises:
        AssertionError: another error, more than a second, or memory beyond twice the file.
    """
    found: Counter = Counter()
    path = folder / f"mutated{suffix}"
    tracemalloc.start()
    try:
        for i in range(count):
            data = mutate(good, np.random.default_rng([seed, i])) + rest
            path.unlink(missing_ok=True)  # an earlier map of it stays what it was
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before, begin = tracemalloc.get_traced_memory()[0], time.perf_counter()
            try:
                read(path)
                found["read"] += 1
            except ValueError as error:
                assert len(str(error)) < 2000, f"mutation {i}: {error}"
                found["refused"] += 1
                found["told a byte"] += "byte" in str(error)
            except Exception as error:
                raise AssertionError(f"mutation {i} of seed {seed}: {error!r}") from error
            seconds = time.perf_counter() - begin
            peak = tracemalloc.get_traced_memory()[1] - before
            if not limits:
                continue
            assert seconds < SECONDS, f"mutation {i} took {seconds:.2f} s"
            assert peak <= 2 * len(data) + CONSTANT, f"mutation {i}: {peak} bytes for {len(data)}"
    finally:
        tracemalloc.stop()
    return found
