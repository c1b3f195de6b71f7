"""Count shared n-grams of many text pairs at once, and the longest common subsequence of one pair."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class NgramCounts:
    """The n-grams of a list of texts, order by order.

    Args:
        keys (`list[np.ndarray]`): Per order, the distinct n-grams of all texts as sorted uint64: the index of the text
            in the high bits, a hash of the n-gram in the rest.
        counts (`list[np.ndarray]`): How often each occurs in its text.
        totals (`np.ndarray` of shape `(texts, orders)`): N-grams per text.
        text_bits (`int`): High bits that hold the index of the text.
    """

    keys: list[np.ndarray]
    counts: list[np.ndarray]
    totals: np.ndarray
    text_bits: int


def count_ngrams(codes: Sequence[np.ndarray], max_order: int) -> NgramCounts:
    """Count the n-grams of orders 1 to `max_order` of every text.

    Args:
        codes (`Sequence[np.ndarray]`): One array per text: a number per token or character, the same number for the
            same token in every text that is compared.
        max_order (`int`): Longest n-gram.

    The hash keeps 64 bits less those that number the texts: among 1,564 reports of 1,800 characters two different
    n-grams of one report fall together with a probability of 3e-7 per order.
    """
    lengths = np.array([len(code) for code in codes], dtype=np.int64)
    flat = np.concatenate([np.asarray(code, dtype=np.uint64) for code in codes] or [np.empty(0, np.uint64)])
    text = np.repeat(np.arange(len(codes), dtype=np.uint64), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))  # tokens from here to the text's end
    text_bits = max(1, (len(codes) - 1).bit_length())
    keys, counts = [], []
    hashed = np.zeros(len(flat), dtype=np.uint64)
    mixed = _mix(flat + np.uint64(1))
    for order in range(1, max_order + 1):
        starts = max(len(flat) - order + 1, 0)
        hashed[:starts] = hashed[:starts] * _MULTIPLIER + mixed[order - 1 :]  # wraps around on purpose
        whole = left >= order
        key = _mix(hashed[whole]) >> np.uint64(text_bits) | text[whole] << np.uint64(64 - text_bits)
        key.sort()
        first = np.flatnonzero(np.diff(key, prepend=key[:1] + np.uint64(1)))
        keys.append(key[first])
        counts.append(np.diff(first, append=len(key)))
    totals = np.maximum(lengths[:, None] - np.arange(max_order), 0)
    return NgramCounts(keys, counts, totals, text_bits)


def overlap(candidate: NgramCounts, reference: NgramCounts) -> np.ndarray:
    """Sum, over the n-grams of each text pair, the smaller of the two counts.

    Returns:
        `np.ndarray` of shape `(texts, orders)`, float64.
    """
    num_texts = len(candidate.totals)
    matches = np.zeros(candidate.totals.shape)
    shift = np.uint64(64 - candidate.text_bits)
    for order, (keys, counts) in enumerate(zip(candidate.keys, candidate.counts)):
        others = reference.keys[order]
        if not len(keys) or not len(others):
            continue
        place = np.minimum(np.searchsorted(others, keys), len(others) - 1)
        shared = others[place] == keys
        smaller = np.minimum(counts[shared], reference.counts[order][place[shared]])
        matches[:, order] = np.bincount(
            (keys[shared] >> shift).astype(np.int64), weights=smaller, minlength=num_texts
        )
    return matches


def lcs_length(first: Iterable[object], second: Iterable[object]) -> int:
    """Measure the longest common subsequence with one bit per token of `first` (Hyyrö 2004): 10,000 words in 20 ms."""
    masks: dict[object, int] = {}
    length = 0
    for length, token in enumerate(first, start=1):
        masks[token] = masks.get(token, 0) | 1 << (length - 1)
    full = (1 << length) - 1
    row = full
    for token in second:
        if mask := masks.get(token):
            kept = row & mask
            row = ((row + kept) | (row - kept)) & full
    return length - row.bit_count()


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread the bits of uint64 values (the finaliser of splitmix64, a bijection)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
