"""What an objective is: which positions, how to prompt, how to reward, how to weigh.

Design: objectives are pure and import no torch. The scorer hands them log-likelihoods, the learner takes
the per-thought weights they return. The price is that an objective needing more than these four decisions
has to name a new likelihood or weight first, which every process then carries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any, ClassVar

from pydantic import BaseModel

from forethought.errors import InvalidInput
from forethought.objectives.parts.grading import GroundTruth, TokenBytes
from forethought.objectives.parts.prompts import Template
from forethought.types import Document, Position, Prompting, Thought


class Mode(Enum):
    """What becomes of the sampled thoughts in the update."""

    REINFORCE = "reinforce"
    """The surrogate of every sampled token, and :meth:`Objective.imitation` beside it."""

    IMITATE = "imitate"
    """Next-token loss on what :meth:`Objective.imitation` picks, and no surrogate."""

    WRITE = "write"
    """Thoughts are inserted into their documents, which are then trained on by next-token loss."""

    NEXT_TOKEN = "next_token"
    """There are no thoughts: documents go to the learner directly."""

    WARM_UP = "warm_up"
    """The learner itself inserts thoughts that it samples, and trains by next-token loss: no rewards."""


@dataclass(frozen=True, slots=True)
class Group:
    """What an objective sees of one position when it rewards.

    ``policy_logprobs_G`` is log p(target | context, thought) in nats, ``baseline_logprob`` is
    log p(target | context); both are sums over the H target tokens, the first empty where the objective
    requested neither. An objective with predictions finds them (None: there is none) next to the truth,
    and, if requested, log p(first predicted token | context), -inf where that token has no id. ``decode``
    turns token ids into text; ``num_close_tokens`` are the close marker's.

    Example:
        ``Group((42,), thoughts_G, (-0.1, -1.3), -1.0)``
    """

    target_ids_H: tuple[int, ...]
    thoughts_G: tuple[Thought, ...]
    policy_logprobs_G: tuple[float, ...]
    baseline_logprob: float
    predictions_G: tuple[TokenBytes | None, ...] = ()
    truth: GroundTruth | None = None
    prediction_logprobs_G: tuple[float, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    num_close_tokens: int = 1

    @property
    def texts_G(self) -> tuple[str, ...]:
        """Every thought as text, its sampled close marker and its prediction left out. Decoded on access.

        Raises:
            InvalidInput: the group was made without ``decode``.
        """
        if self.decode is None:
            raise InvalidInput(
                "got a group without decode, expected one with a tokenizer behind it; "
                "pass decode=tokenizer.decode"
            )
        return tuple(
            self.decode(thought.thought_ids[: -self.num_close_tokens if thought.closed else None])
            for thought in self.thoughts_G
        )


@dataclass(frozen=True, slots=True)
class Imitation:
    """Next-token loss beside, or instead of, reinforcement. [G] each, before the mean over groups.

    A thought's weight is that of the mean over its tokens, an answer's that of log p(target | context,
    thought). Both are learned at temperature 1.

    Example:
        ``Imitation(thought_weights_G=(0.0, 1.0), answer_weights_G=(0.0, 0.0))`` clones the second thought
    """

    thought_weights_G: tuple[float, ...]
    answer_weights_G: tuple[float, ...]


class Objective(ABC):
    """One way to learn from text. Subclass it once per file.

    Attributes:
        Config: its parameters, a pydantic model that forbids unknown keys.
        models: the likelihoods it asks the scorer for: "policy" (of the target, after each thought),
            "baseline" (of the target, without one), "prediction" (of each prediction's first token,
            without a thought, by the policy). A reward of bytes alone needs none.
        estimator: the advantage estimator (one of :mod:`forethought.estimators`).
        mode: what becomes of the sampled thoughts in the update.
        thought_weight: the next-token weight of a thought's tokens in ``Mode.WRITE``, the text's being 1.
        template: the text around a context, None for the think markers alone.
        prediction_tokens: how many tokens are sampled after a thought's close; 0: no prediction.
        prediction_ends: whether a prediction may end early, at the model's end-of-text token.
    """

    Config: ClassVar[type[BaseModel]]
    models: frozenset[str] = frozenset({"policy", "baseline"})
    estimator: ClassVar[str] = "leave_one_out"
    mode: ClassVar[Mode] = Mode.REINFORCE
    thought_weight: float = 1.0
    template: Template | None = None
    prediction_tokens: int = 0
    prediction_ends: bool = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def thinks(self) -> bool:
        """Whether rollout replicas sample thoughts that are rewarded."""
        return self.mode not in (Mode.NEXT_TOKEN, Mode.WARM_UP)

    @property
    def needs_markers(self) -> bool:
        """Whether there are thoughts at all."""
        return self.mode is not Mode.NEXT_TOKEN

    def of_batch(self, batch: int) -> Objective:
        """The objective that tasks of a batch carry: where a schedule goes, as a scorer knows no step."""
        return self

    def of_task(self, rng: Random) -> Objective:
        """The objective that one task carries: where a mixture goes. ``rng`` is the task's own, and is
        what :meth:`positions` is given next."""
        return self

    @abstractmethod
    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """Where to think in ``document``, indices strictly increasing; empty: this document has none."""

    def max_positions(self, window_tokens: int) -> int:
        """The most positions that :meth:`positions` gives for a window: a task's size follows from it."""
        return int(getattr(self.config, "num_positions", 1))

    def prompting(self, open_ids: tuple[int, ...], close_ids: tuple[int, ...]) -> Prompting:
        """The tokens around a thought, :attr:`template` and the tokenizer's BOS left out; the plain form is
        the two markers, of one token or several each. The bridge ends with the one, the close begins with
        the other; their lengths are noted by what asks."""
        return Prompting(bridge_ids=open_ids, close_ids=close_ids)

    def prediction(self, answer: TokenBytes) -> TokenBytes | None:
        """What is predicted by ``answer``, the tokens after a thought's close: all of it, unless empty."""
        return answer if answer.text else None

    def can_predict(self, token: TokenBytes) -> bool:
        """Whether some answer makes exactly this token the prediction.

        Positions whose next token cannot be predicted are not drawn: no thought could be right there.
        """
        return True

    @abstractmethod
    def rewards(self, group: Group) -> tuple[float, ...]:
        """One finite reward per thought, independent of the order of thoughts. Shape [G]."""

    def token_weights(self, num_tokens_G: Sequence[int]) -> tuple[float, ...]:
        """The weight of each token of each thought before the mean over groups. Shape [G].

        The default is the per-thought mean 1/|c| of RLP eq. 8.
        """
        return tuple(1.0 / num_tokens for num_tokens in num_tokens_G)

    def imitation(self, rewards_G: Sequence[float]) -> Imitation | None:
        """What of a group is learned by next-token loss; by default nothing."""
        return None
