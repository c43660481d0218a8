"""Keyed random numbers: Philox written out from its paper, hashes as other programs give them, and keys that nothing shares."""

import numpy as np
import pytest

from openwavlm.batches.batch import MicroBatchId
from openwavlm.runtime.randomness import integers, permutation, stable_hash, uniform, words

_MASK = 2**64 - 1
MASK_COUNT = int.from_bytes(bytes.fromhex("272f4baadce3de83"), "little")  # printf mask.count | b2sum -l 64


def philox(counter: list[int], key: list[int]) -> list[int]:
    """One block of Philox-4x64-10 (Salmon et al. 2011, §4.3), in Python's integers."""
    for _ in range(10):
        high_0, low_0 = divmod(0xD2E7470EE14C6C93 * counter[0], 2**64)
        high_1, low_1 = divmod(0xCA5A826395121157 * counter[2], 2**64)
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0]
        key = [(key[0] + 0x9E3779B97F4A7C15) & _MASK, (key[1] + 0xBB67AE8584CAA73B) & _MASK]
    return counter


def test_a_hash_is_the_little_endian_number_of_its_blake2b_bytes():
    assert stable_hash("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little")  # printf '' | b2sum -l 64
    assert stable_hash("mask.count") == MASK_COUNT


def test_words_are_philox_blocks_of_seed_purpose_micro_batch_source_and_epoch():
    # NumPy's bit generator counts its first block as 1.
    expected = [
        word
        for block in range(1, 4)
        for word in philox(
            [block, 7 << 32 | 11, 2**63 + 5, 2], [3, MASK_COUNT]
        )  # (block, micro-batch, source, epoch), (seed, purpose)
    ]
    found = words(3, "mask.count", 10, source=2**63 + 5, epoch=2, micro=7 << 32 | 11)
    assert found.dtype == np.uint64 and found.tolist() == expected[:10]
    assert words(-1, "mask.count", 1).tolist() == philox([1, 0, 0, 0], [_MASK, MASK_COUNT])[:1]


@pytest.mark.parametrize("change", ["seed", "purpose", "source", "epoch", "micro"])
def test_no_two_keys_share_a_word(change):
    seen: set[int] = set()
    for value in range(20):
        keys = {"seed": 1, "purpose": "mix.start", "source": 2, "epoch": 3, "micro": 4}
        keys[change] = str(value) if change == "purpose" else value
        seen.update(words(**keys, count=50).tolist())
    assert len(seen) == 20 * 50


def test_a_micro_batch_is_keyed_by_its_stream_above_its_index():
    assert MicroBatchId("a", 9, 0, 5).place == {"source": stable_hash("a"), "epoch": 9, "micro": 5}
    assert MicroBatchId("a", 9, 3, 5).place["micro"] == 3 * 2**32 + 5


def test_words_become_numbers_by_their_high_bits():
    raw = np.array([0, 2**11, 2**63, 2**64 - 1, 2**64 - 2**11], dtype=np.uint64)
    assert uniform(raw).tolist() == [0.0, 2.0**-53, 0.5, 1 - 2.0**-53, 1 - 2.0**-53]
    assert uniform(raw).dtype == np.float64
    for high in (1, 2, 7, 1000, 2**32 - 1):
        assert integers(raw, high).tolist() == [(int(word) >> 32) * high >> 32 for word in raw]
    assert integers(raw, np.array([5, 5, 5, 5, 9])).tolist() == [0, 0, 2, 4, 8]
    assert permutation(np.array([5, 1, 5, 2**64 - 1, 0], dtype=np.uint64)).tolist() == [4, 1, 0, 2, 3]
