"""Aggregation: the weight of every thought token in the loss, for a whole batch at once.

With B groups, n thoughts in all and |c| tokens of a thought:

    sequence_mean  1 / (n |c|)               equal weight per thought     RLP eq. 8, GRPO
    token_mean     1 / (sum of all |c|)      equal weight per token       arXiv 2503.14476
    group_mean     1 / (B sum |c| of group)  equal weight per group       arXiv 2510.13786
    constant       1 / (n budget)            independent of all lengths   arXiv 2503.20783

Design: weights are computed here, before batching, from the lengths of the *whole* batch, so that
micro-batches simply add up and none normalises by its own contents. Masked thoughts are excluded from the
denominators too, and under the objective's own weighting all remaining thoughts count equally.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Lengths = Sequence[Sequence[int]]
"""Token count of every thought, ragged: [B][G]; 0 for a masked thought."""

OwnWeights = Callable[[Sequence[int]], Sequence[float]]


def weights(name: str, lengths_BG: Lengths, budget: int, own: OwnWeights) -> list[list[float]]:
    """The weight of each token of each thought, 0 for masked ones. Shape [B][G].

    ``name`` "" uses ``own``, the objective's weights of one group, in the mean over thoughts.
    ``budget`` is the maximum number of tokens in a thought.
    """
    kept_BG = [[length for length in lengths_G if length] for lengths_G in lengths_BG]
    num_groups = sum(map(bool, kept_BG))
    num_thoughts, num_tokens = sum(map(len, kept_BG)), sum(map(sum, kept_BG))

    def of_group(kept_G: list[int]) -> Sequence[float]:
        if name == "token_mean":
            return [1.0 / num_tokens] * len(kept_G)
        if name == "group_mean":
            return [1.0 / (num_groups * sum(kept_G))] * len(kept_G)
        if name == "constant":
            return [1.0 / (num_thoughts * budget)] * len(kept_G)
        each_G = [1.0 / size for size in kept_G] if name == "sequence_mean" else own(kept_G)
        return [weight / num_thoughts for weight in each_G]

    return [
        _at_kept(lengths_G, of_group(kept_G)) if kept_G else [0.0] * len(lengths_G)
        for lengths_G, kept_G in zip(lengths_BG, kept_BG, strict=True)
    ]


def _at_kept(lengths_G: Sequence[int], weights_G: Sequence[float]) -> list[float]:
    remaining = iter(weights_G)
    return [next(remaining) if length else 0.0 for length in lengths_G]
