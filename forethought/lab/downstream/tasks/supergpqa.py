"""The prompt of SuperGPQA (arXiv 2502.14739): four to ten options, lettered from A."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any


def doc_to_text(doc: dict[str, Any]) -> str:
    """The prompt: the question, its options, and the instruction."""
    options = "\n".join(
        f"{letter}) {option}"
        for letter, option in zip(ascii_uppercase, doc["options"], strict=False)
    )
    return (
        f"{doc['question']}\n\n{options}\n\nOne option is right. Reason step by step, then end with a line "
        '"Answer: X", where X is its letter.'
    )
