"""Span masking: frames that are replaced by the mask embedding (HuBERT §II-C, WavLM §III-A).

Three differences from fairseq's `compute_mask_indices`, all on rows of a few frames only:

- a row never holds more spans than its frames less one (fairseq then draws starts behind the row's end and clips them);
- a row is never masked completely: frames over the limit are unmasked at random (fairseq's newer code raises);
- rows below two frames carry no mask and, under `same_count`, do not thin the masks of the others.
"""

import numpy as np

from openwavlm.batches.settings import SpanMasking
from openwavlm.runtime.randomness import uniform, words

_NEVER = np.uint64((1 << 64) - 1)


def draw_span_mask(masking: SpanMasking, num_frames: np.ndarray, seed: int, purpose: str = "mask", /, **place: int) -> np.ndarray:
    """Draws the mask of one micro-batch, keyed by `seed` and `place` as `randomness.words`.

    A row of `n` frames gets `max(min_masks, ⌊prob · n / length + u⌋)` spans, u ~ U[0, 1) for each row. Their starts are drawn without
    replacement from the first `n − length` frames (one more frame than spans in a row too short for that): the frames with the
    smallest random words. Spans may overlap and are clipped at the row's end.

    Args:
        num_frames: Integers (batch,), frames of the planned rows, readable or not.
        purpose: Prefix of the draws' purposes, so that another mask of the same rows is independent.

    Returns:
        bool (batch, max frames), True = masked. A row of at least one frame keeps at least one unmasked.
    """
    frames = np.asarray(num_frames).astype(np.int64)
    width = int(frames.max(initial=0))
    rounding = uniform(words(seed, f"{purpose}.count", len(frames), **place))
    spans = np.floor(masking.prob * frames / masking.length + rounding).astype(np.int64)
    spans = np.clip(spans, masking.min_masks, np.maximum(frames - 1, 0))
    room = np.where(frames - masking.length > spans, frames - masking.length, spans + 1)

    position = np.arange(width)
    starts = _smallest(words(seed, f"{purpose}.starts", frames.size * width, **place), position < room[:, None], spans)
    started = np.cumsum(starts, axis=1)
    started[:, masking.length :] -= started[:, : -masking.length].copy()
    mask = (started > 0) & (position < frames[:, None])

    counts = np.count_nonzero(mask, axis=1)
    limits = np.maximum(frames - 1, 0)
    if masking.same_count:
        limits = np.minimum(limits, counts[frames > 1].min(initial=width))
    if np.any(counts > limits):
        mask = _smallest(words(seed, f"{purpose}.truncate", frames.size * width, **place), mask, np.minimum(counts, limits))
    return mask


def _smallest(raw: np.ndarray, allowed: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Marks in each row the `count` allowed places with the smallest words; bool (batch, width) like `allowed`.

    The last bits of a word are replaced by its place: no two are equal, so a sort of values (five times faster than a stable
    argsort) gives the same order on every machine.
    """
    batch, width = allowed.shape
    if allowed.size == 0:
        return np.zeros_like(allowed)
    bits = np.uint64(width.bit_length())
    ranked = raw.reshape(batch, width) >> bits << bits | np.arange(width, dtype=np.uint64)
    ranked[~allowed] = _NEVER
    threshold = np.sort(ranked, axis=1)[np.arange(batch), np.maximum(count - 1, 0)]
    return (ranked <= threshold[:, None]) & (count > 0)[:, None]
