r"""RLVR, reinforcement with verifiable rewards: a question, a thought, and an answer, right or wrong.

    reward      r = 1 if the verifier finds the answer equal to the document's text; else 0
    advantage   A_i = (r_i - mean r) / (std r + 1e-6), GRPO's (arXiv 2402.03300)
    gradient    on the whole response, thought and answer; no KL term

RLP (arXiv 2510.01265, table 1) and RPT (arXiv 2506.08007, table 2) apply it after pretraining, to test
whether their gains persist. A document is a question and its answer, as for SFT: a source with
``prompt_field`` (the question) and ``text_field`` (the final answer only). The position is the first token
of the text. A thought's answer is the full string inside the last ``\boxed{}`` after its close, or
everything sampled after it; a thought that does not close within its budget has no answer.

Question and text are concatenated without a separator, and no token holds the end of one and the start of
the other (:mod:`forethought.corpus.windows`), so that the truth is the whole answer.
A question and its answer are never cut: the corpus leaves out and counts those longer than
``corpus.window_tokens`` (:mod:`forethought.corpus.windows`).

Design: the corpus, the response and the grading are RPT's; the differences are that each document has one
position, and that equality is decided by the verifier. An answer on which the verifier fails or times out
counts as wrong, and is counted and logged. The price: verdicts of the ``math`` verifier are not bit for bit
reproducible, because they depend on timing.
"""

from __future__ import annotations

from random import Random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from forethought.objectives.parts import positions
from forethought.objectives.parts.base import Group, Objective
from forethought.objectives.parts.grading import TokenBytes, boxed
from forethought.objectives.parts.prompts import Template
from forethought.types import Document, Position
from forethought.verification.answers import ExactVerifier, Verifier
from forethought.verification.mathematics import MathVerifier

_WHOLE_TOKENS = 1
_BOXED_TOKENS = 1024

TEMPLATE = Template(
    after=(
        "\n\nSolve this problem. Reason step by step, then write a short solution and put the final "
        "answer, and nothing else, inside \\boxed{}."
    )
)
"""The text after the question, in our own wording."""


class RlvrConfig(BaseModel):
    r"""The prompt, the form of the answer, and the verifier.

    ``prompt`` "plain" uses only the think markers, for base models and after an SFT without a template.
    ``answer`` "" means boxed with the template, and with the plain prompt the ``prediction_tokens`` after
    the close; ``prediction_tokens`` 0 means 1024 for a boxed answer and 1 for a whole one. The model's
    end-of-text token ends an answer early.

    Example:
        ``RlvrConfig(prompt="plain", verifier="exact")``
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Literal["boxed", "plain"] = "boxed"
    answer: Literal["", "boxed", "whole"] = ""
    verifier: Literal["math", "exact"] = "math"
    prediction_tokens: Annotated[int, Field(ge=0)] = 0
    verify_timeout_s: Annotated[float, Field(gt=0)] = 5.0

    @property
    def is_boxed(self) -> bool:
        r"""Whether the answer is the content of the last ``\boxed{}``."""
        return self.answer == "boxed" or (not self.answer and self.prompt == "boxed")


class Rlvr(Objective):
    """Reward a thought when the answer after it is right."""

    Config = RlvrConfig
    models = frozenset()
    estimator = "group_std"
    prediction_ends = True

    def __init__(self, config: RlvrConfig) -> None:
        super().__init__(config)
        self.template = TEMPLATE if config.prompt == "boxed" else None
        usual = _BOXED_TOKENS if config.is_boxed else _WHOLE_TOKENS
        self.prediction_tokens = config.prediction_tokens or usual
        self._verifier: Verifier = (
            MathVerifier(config.verify_timeout_s) if config.verifier == "math" else ExactVerifier()
        )

    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """The start of the text after the question; none without a question before it."""
        weights_N = document.nll_weights_N
        index = next((i for i, weight in enumerate(weights_N) if weight), 0)
        return positions.at(document, [index], 1) if index else ()

    def prediction(self, answer: TokenBytes) -> TokenBytes | None:
        r"""The content of the last ``\boxed{}``, or the whole answer; None if it is empty."""
        found = boxed(answer) if self.config.is_boxed else answer
        return found if found and found.text.strip() else None

    def rewards(self, group: Group) -> tuple[float, ...]:
        """1 for a right answer, 0 for a wrong or missing one. Shape [G]."""
        predictions_G = group.predictions_G or (None,) * len(group.thoughts_G)
        truth = _text(group.truth.text) if group.truth else ""
        answers_G = ["" if p is None else _text(p.text) for p in predictions_G]
        return tuple(map(float, self._verifier.are_right(truth, answers_G)))


def _text(text: bytes) -> str:
    # A partial character becomes a replacement character, which no truth contains.
    return text.decode("utf-8", errors="replace").strip()
