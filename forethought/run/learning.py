"""Whether a run still learns, and the end of one that does not: a rule on the lines of ``metrics.jsonl``.

    outcome     of a batch                                                   ends the run after
    learned     a gradient that is not 0 updated the weights                 -
    failed      nothing learned: at least half of its tasks failed, or no    learner.max_failed_batches
                optimizer pass had a finite loss and gradient
    unlearned   nothing learned for another reason: filters dropped every    learner.max_unlearned_batches
                group, or all rewards of each group were equal

Both are counted since the last learned batch; a failed batch is an unlearned one too. A run of fewer steps
than the first limit has failed if it learned nothing at all and a batch of it failed.

Design: two limits, because a failure repeats until its cause is removed, while a model can be all right or
all wrong for a while and learn later. The price: a run in which one task in a thousand succeeds goes on;
the alarm ``failures`` reports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

_NO_GRADIENT = 1e-9
"""A norm below it is rounding: equal rewards minus their mean are not always exactly 0."""


class Outcome(Enum):
    """What a batch came to; see the table above."""

    LEARNED = "learned"
    FAILED = "failed"
    UNLEARNED = "unlearned"


def outcome(values: Mapping[str, Any]) -> Outcome:
    """The outcome of a step, from its line of ``metrics.jsonl``."""
    grad_norm = values.get("grad_norm")
    has_gradient = grad_norm is None or grad_norm > _NO_GRADIENT
    if not values.get("skipped") and has_gradient:
        return Outcome.LEARNED
    is_failed = _has_failed(values) or _is_non_finite(values)
    return Outcome.FAILED if is_failed else Outcome.UNLEARNED


def reason(values: Mapping[str, Any]) -> str:
    """Why nothing was learned from a step's batch."""
    if _has_failed(values):
        return str(values.get("failure") or "its tasks failed")
    if _is_non_finite(values):
        return (
            "its loss or gradient was not finite: the weights are corrupt, they overflow in model.dtype, "
            "or learner.learning_rate is too high"
        )
    dropped = [f"{key.removeprefix('dropped/')} {n}" for key, n in values.items() if _drops(key, n)]
    if dropped:
        return f"the filters dropped every group ({', '.join(dropped)})"
    return "its gradient was 0: the rewards within each group are equal, or no thought was to be imitated"


class LearningWatch:
    """Counts a run's batches since the last that was learned from. A limit of 0 never ends the run.

    Example:
        ``watch = LearningWatch(max_failed_batches=5, max_unlearned_batches=100)``
    """

    def __init__(self, max_failed_batches: int, max_unlearned_batches: int) -> None:
        self._limits = (
            (Outcome.FAILED, max_failed_batches, "learner.max_failed_batches"),
            (Outcome.UNLEARNED, max_unlearned_batches, "learner.max_unlearned_batches"),
        )
        self._counts = dict.fromkeys((Outcome.FAILED, Outcome.UNLEARNED), 0)
        self._counts_before = dict(self._counts)  # of earlier learners
        self._first_reasons: dict[Outcome, str] = {}
        self._has_learned = False

    @property
    def num_unlearned(self) -> int:
        """The number of batches since the last learned one, or since the run's start."""
        return self._counts[Outcome.UNLEARNED]

    def see(self, values: Mapping[str, Any]) -> str:
        """Add a step's metrics; returns its reason if it is the first with such an outcome, else empty."""
        found = outcome(values)
        if found is Outcome.LEARNED:
            self._has_learned = True
            self._first_reasons.clear()
            for counts in (self._counts, self._counts_before):
                counts.update(dict.fromkeys(counts, 0))
            return ""
        for kind in {found, Outcome.UNLEARNED}:
            self._counts[kind] += 1
            self._first_reasons.setdefault(kind, reason(values))
        is_first = self._counts[found] - self._counts_before[found] == 1
        return reason(values) if is_first else ""

    def resume(self) -> None:
        """A further learner starts: it gets the limits anew, because the cause may have been removed."""
        self._counts_before = dict(self._counts)
        self._first_reasons.clear()

    def failure(self, is_done: bool) -> str:
        """Why the run ends without success; empty if it does not. ``is_done``: no step remains."""
        for kind, limit, setting in self._limits:
            num = self._counts[kind] - (0 if is_done else self._counts_before[kind])
            is_hopeless = is_done and not self._has_learned and kind is Outcome.FAILED
            if limit and num >= (1 if is_hopeless else limit):
                return (
                    f"nothing was learned in the last {self.num_unlearned} batches, of which "
                    f"{self._counts[Outcome.FAILED]} failed ({setting} = {limit}); the first reason: "
                    f"{self._first_reasons[kind]}; remove the cause and run the same command again to "
                    "resume, or start in another run.directory if the checkpoint's weights are the cause"
                )
        return ""


def _has_failed(values: Mapping[str, Any]) -> bool:
    num_failed: int = values.get("tasks_failed", 0)
    return num_failed > 0 and num_failed >= values.get("tasks_trained", 0)


def _is_non_finite(values: Mapping[str, Any]) -> bool:
    return bool(values.get("skipped") and values.get("skipped_passes"))


def _drops(key: str, value: Any) -> bool:
    return key.startswith("dropped/") and bool(value)
