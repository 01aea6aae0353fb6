from __future__ import annotations

import numpy as np
import pytest

from xpeft_server.model.sampling.uniforms import philox, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_it_is_the_published_generator(counter: list[int], key: list[int], words: list[int]) -> None:
    """Known answers of Random123, the authors' own code (kat_vectors, philox4x32 10)."""
    beside = [[each, 7] for each in counter], [[each, 8] for each in key]
    found = philox(np.array(beside[0], np.uint64), np.array(beside[1], np.uint64))
    assert found[:, 0].tolist() == words
    assert found[:, 1].tolist() != words


def test_a_number_has_its_53_bits_from_the_first_two_words() -> None:
    words = philox(np.array([[5], [1], [0], [0]], np.uint64), np.array([[9], [3]], np.uint64))[:, 0].tolist()
    (number,) = uniforms([(3 << 32) + 9], [(1 << 32) + 5]).tolist()
    assert number == ((words[0] << 32 | words[1]) >> 11) / 2**53


def test_numbers_are_even_over_steps_and_over_seeds() -> None:
    count = 100_000
    for numbers in (uniforms([7] * count, range(count)), uniforms(range(count), [7] * count)):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        observed = np.bincount((numbers * 100).astype(int), minlength=100)
        assert ((observed - count / 100) ** 2 / (count / 100)).sum() < 150
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.01


def test_a_pair_has_one_number_whatever_stands_beside_it() -> None:
    seeds, steps = [0, 1, 2**64 - 1, 2**63, 5], [3, 2**40, 0, 1, 3]
    together = uniforms(seeds, steps).tolist()
    assert together == [uniforms([seed], [step])[0] for seed, step in zip(seeds, steps, strict=True)]
    assert len(set(together)) == 5


def test_only_64_bits_of_a_seed_count() -> None:
    assert uniforms([-1, 2**64 + 3], [0, 0]).tolist() == uniforms([2**64 - 1, 3], [0, 0]).tolist()
    assert uniforms([], []).shape == (0,)
