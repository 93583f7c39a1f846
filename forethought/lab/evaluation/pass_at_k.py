"""pass@k: the probability that at least one of k thoughts is followed by the correct next token.

Design: the unbiased estimator 1 - C(G-c, k) / C(G, k) of arXiv 2107.03374 (eq. 1), with c of G thoughts
correct; using only the first k would waste the others, and 1 - (1 - c/G)^k is biased. The price is that k
cannot exceed G.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from forethought.errors import InvalidInput


def pass_at_k(num_right: int, num_thoughts: int, k: int) -> float:
    """pass@k of one position, with ``num_right`` of ``num_thoughts`` (G) correct.

    Raises:
        InvalidInput: k is not from 1 to G.
    """
    check_k(k, num_thoughts)
    return 1.0 - comb(num_thoughts - num_right, k) / comb(num_thoughts, k)


def usual_k(num_thoughts: int) -> tuple[int, ...]:
    """1, 2, 4 … up to G, and G itself."""
    powers = {1 << i for i in range(num_thoughts.bit_length())}
    return tuple(sorted({k for k in powers if k <= num_thoughts} | {num_thoughts}))


def checked(k_list: Sequence[int], num_thoughts: int) -> tuple[int, ...]:
    """The requested values of k, ascending, or the usual ones.

    Raises:
        InvalidInput: a k is not from 1 to G.
    """
    for k in k_list:
        check_k(k, num_thoughts)
    return tuple(sorted(set(k_list))) or usual_k(num_thoughts)


def check_k(k: int, num_thoughts: int) -> None:
    """Check that pass@k can be computed from G thoughts.

    Raises:
        InvalidInput: k is not from 1 to G.
    """
    if not 1 <= k <= num_thoughts:
        raise InvalidInput(
            f"pass@{k} of {num_thoughts} thoughts; expected k from 1 to {num_thoughts}: raise "
            "--group-size or lower --pass-at"
        )
