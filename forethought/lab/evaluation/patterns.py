"""Reasoning patterns of a thought, by keywords (RPT, arXiv 2506.08007, section 4.5 and appendix).

A thought counts for a pattern if it contains one of its keywords; the keywords are the paper's. Since
that share grows with the length of thoughts, the number of keywords per 1,000 tokens is reported as well.

Design: keywords are matched as whole words, ignoring case. The price: they are English, uninformative about
models that do not reason in natural language, and "either" counts in any context.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

KEYWORDS = {
    "transition": ("alternatively", "think differently"),
    "reflection": (
        "wait",
        "initial answer",
        "original answer",
        "looking back",
        "thought process",
    ),
    "breakdown": ("break down", "break this down"),
    "hypothesis": ("probably", "something like"),
    "divergent_thinking": (
        "etc.",
        "or something",
        "either",
        "sometimes it refers",
        "otherwise",
        "exploring",
        "options",
    ),
    "deduction": (
        "summarize",
        "conclusion",
        "conclude",
        "finally",
        "logically",
        "consequently",
    ),
}
_EXPRESSIONS = {
    kind: re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)", re.IGNORECASE)
    for kind, words in KEYWORDS.items()
}


@dataclass(frozen=True, slots=True)
class PatternRates:
    """The share of thoughts with a pattern, and keywords per 1,000 tokens, by pattern.

    Example:
        ``PatternRates({"hypothesis": 0.5}, {"hypothesis": 12.5})``
    """

    per_thought: dict[str, float]
    per_1000_tokens: dict[str, float]


def count_patterns(text: str) -> dict[str, int]:
    """The number of keywords in a thought, by pattern."""
    return {kind: len(found.findall(text)) for kind, found in _EXPRESSIONS.items()}


def pattern_rates(counts_R: Sequence[dict[str, int]], num_tokens: int) -> PatternRates:
    """The rates over R thoughts with ``num_tokens`` tokens in total."""
    return PatternRates(
        {kind: sum(counts[kind] > 0 for counts in counts_R) / len(counts_R) for kind in KEYWORDS},
        {
            kind: 1000 * sum(counts[kind] for counts in counts_R) / max(1, num_tokens)
            for kind in KEYWORDS
        },
    )
