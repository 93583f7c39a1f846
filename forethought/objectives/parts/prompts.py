"""Prompts as data: the text around a context, in our own wording.

RPT (arXiv 2506.08007, appendix D) tried seven templates and trained with ``v0``; RLP (arXiv 2510.01265
version 2, appendix) gives thoughts a system message. The structure of the templates is theirs, the wording
is not: the price is that initial success rates are comparable qualitatively, not exactly.

Design: a template is two texts and an optional system message. The learner tokenises it once, through the
model's chat template if it has one (:mod:`forethought.compute.prompting`), and inserts the context with the
corpus's tokens. No template mentions the think markers: the bridge opens the thought.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """A system message (or none), and the text before and after the context in the user message.

    Example:
        ``Template(before="### Context\\n", after="\\n### What comes next?")``
    """

    system: str = ""
    before: str = ""
    after: str = ""


_RULES = (
    "Think it through step by step, then give the next token inside \\boxed{}. A token may begin with a "
    "space; keep that space inside the braces. Do not put \\text{} around it."
)
_TASK = "Below is the beginning of a text. Work out which token comes right after it."
_FENCED_TASK = (
    "Below, between the fences, is the beginning of a text. Work out the token right after it."
)
_CANDIDATES = (
    "Consider what could come next, write down several candidate tokens, weigh them against the "
    "context, and choose the likeliest."
)
_BEFORE = "\n\n### Context\n"
_FENCE_OPEN, _FENCE_CLOSE = "\n\n### Context\n```\n", "\n```\n"
_EXAMPLES = """

Three examples of what is asked for:

Context: The capital of France is
Reasoning: The sentence names a country and asks for its capital, a word after a space.
Prediction: \\boxed{ Paris}

Context: 12 + 30 = 4
Reasoning: The sum is 42 and its first digit is written already.
Prediction: \\boxed{2}

Context: for i in range(10)
Reasoning: A loop's header in Python ends with a colon.
Prediction: \\boxed{:}"""

RPT = {
    "v0": Template(before=f"{_TASK} {_RULES}{_BEFORE}"),
    "v1": Template(before=f"{_FENCED_TASK} {_RULES}{_FENCE_OPEN}", after=_FENCE_CLOSE),
    "v2": Template(
        system="You are a careful assistant who predicts how texts go on.",
        before=f"{_FENCED_TASK} {_RULES}{_FENCE_OPEN}",
        after=_FENCE_CLOSE,
    ),
    "v3": Template(
        before=f"{_FENCED_TASK} {_CANDIDATES} {_RULES}{_FENCE_OPEN}", after=_FENCE_CLOSE
    ),
    "v4": Template(before=f"{_FENCED_TASK} {_RULES}{_EXAMPLES}{_FENCE_OPEN}", after=_FENCE_CLOSE),
    "v5": Template(
        before=(
            f"{_FENCED_TASK} Think it through step by step and give your final answer, the next token, "
            "inside \\boxed{}. It may begin with a space; do not put \\text{} around it."
            f"{_FENCE_OPEN}"
        ),
        after=_FENCE_CLOSE,
    ),
    "v6": Template(
        before="### Context\n```\n",
        after=f"{_FENCE_CLOSE}\n{_CANDIDATES} {_RULES}\n\nNow please predict the next token.",
    ),
}
"""RPT's seven templates; it trained with ``v0``, and ``v6`` had the best initial success rate."""

RLP_V2 = Template(
    system=(
        "You continue texts and you reason about them. You are given the beginning of a context, a problem "
        "or a solution. First think, briefly and to yourself, about what should come next. After your "
        "thought, go on with the text in its own style and notation for the next few steps: do not jump to "
        "a boxed final answer, do not repeat what is there, and do not comment on what you are doing."
    )
)
"""RLP's system message; the context is the entire user message."""
