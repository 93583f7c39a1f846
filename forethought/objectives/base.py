"""What an objective is: which positions, how to prompt, how to reward, how to weigh.

Objectives are pure and import no torch: the scorer hands them log-likelihoods, the learner takes the
arrays they weigh. The price is that an objective needing more than these four decisions has to name a
new likelihood or array first, which every process then carries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

from pydantic import BaseModel

from forethought.types import Document, Position, Prompting, Thought


@dataclass(frozen=True, slots=True)
class Group:
    """What an objective sees of one position when it rewards.

    ``policy_logprobs_G`` is log p(target | context, thought) in nats, ``baseline_logprob`` is
    log p(target | context); both are sums over the H target tokens.

    Example:
        ``Group((42,), thoughts_G, (-0.1, -1.3), -1.0)``
    """

    target_ids_H: tuple[int, ...]
    thoughts_G: tuple[Thought, ...]
    policy_logprobs_G: tuple[float, ...]
    baseline_logprob: float


class Objective(ABC):
    """One way to learn from text. Subclass it once per file.

    Attributes:
        Config: its parameters, a pydantic model that forbids unknown keys.
        models: the likelihoods it asks the scorer for, out of "policy" and "baseline".
        estimator: the advantage estimator (a file of :mod:`forethought.estimators`).
        thinks: False when documents go to the learner directly, without thoughts.
    """

    Config: ClassVar[type[BaseModel]]
    models: ClassVar[frozenset[str]] = frozenset({"policy", "baseline"})
    estimator: ClassVar[str] = "leave_one_out"
    thinks: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def positions(self, document: Document, rng: Random) -> tuple[Position, ...]:
        """Where to think in ``document``, indices strictly increasing; empty: this document has none."""

    def prompting(self, open_id: int, close_id: int) -> Prompting:
        """The tokens around a thought; the plain form is the two markers."""
        return Prompting(bridge_ids=(open_id,), close_ids=(close_id,))

    @abstractmethod
    def rewards(self, group: Group) -> tuple[float, ...]:
        """One finite reward per thought, independent of the order of thoughts. Shape [G]."""

    def token_weights(self, num_tokens_G: Sequence[int]) -> tuple[float, ...]:
        """The weight of each token of each thought before the mean over groups. Shape [G].

        The default is the per-thought mean 1/|c| of RLP eq. 8.
        """
        return tuple(1.0 / num_tokens for num_tokens in num_tokens_G)
