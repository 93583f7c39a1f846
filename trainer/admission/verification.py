"""Verification: a result counts only if it answers the learner's own task.

Design: a result carries a copy of its task, on which a replica could have changed anything. The learner
keeps its tasks (:mod:`trainer.admission.ledger`), so the copy is only compared, and the verified result
holds the learner's own. So a replica decides nothing but thoughts and rewards, and those must conform
(:mod:`forethought.conformance`). The price is to encode every task a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from forethought import wire
from forethought.conformance import rollout_fault, score_fault
from forethought.errors import InvalidInput
from forethought.queue.interface import Message, check_size
from forethought.types import Rollout, ScoredRollout, Task

_MAX_REASON = 1000  # characters of a replica's error


@dataclass(frozen=True, slots=True)
class Verification:
    """What results are verified against: the model's embeddings and the learner's current version.

    Example:
        ``Verification(vocabulary=50_257, newest_version=lambda: learner.version)``
    """

    vocabulary: int
    newest_version: Callable[[], int]

    def verified(self, message: Message, task: Task) -> ScoredRollout:
        """The result of ``task`` in a message. A replica's error is a result too, without thoughts unless
        they conform: they are counted as work.

        Raises:
            InvalidInput: the message is no result, or it does not fit the task; it says why.
        """
        check_size(message)
        scored = wire.decode_scored(message.body)
        if scored.failure is not None:
            return self._failed(scored, task)
        if fault := _difference(scored.rollout.task, task) or self._fault(scored):
            raise InvalidInput(
                f"replica {_printable(scored.replica)!r} gave an invalid result for the rollout of "
                f"{_printable(scored.rollout.replica)!r}: {fault}"
            )
        rollout = _of_task(scored.rollout, task)
        return replace(scored, rollout=rollout, replica=_printable(scored.replica), error=None)

    def _failed(self, scored: ScoredRollout, task: Task) -> ScoredRollout:
        rollout = _of_task(scored.rollout, task)
        if rollout_fault(rollout, self.vocabulary, self.newest_version()):
            rollout = replace(rollout, thoughts_KG=())
        reason = _printable(scored.failure or "") or "a replica gave no reason"
        return ScoredRollout(rollout, replica=_printable(scored.replica), error=reason)

    def _fault(self, scored: ScoredRollout) -> str | None:
        newest_version = self.newest_version()
        return rollout_fault(scored.rollout, self.vocabulary, newest_version) or score_fault(
            scored, newest_version
        )


def _of_task(rollout: Rollout, task: Task) -> Rollout:
    return replace(rollout, task=task, replica=_printable(rollout.replica), error=None)


def _difference(theirs: Task, mine: Task) -> str | None:
    """The fields in which a task differs from the admitted one, as they are on the wire."""
    if wire.encode_task(theirs) == wire.encode_task(mine):
        return None
    sent = wire.decode_task(wire.encode_task(mine))  # log-probs and weights are rounded on the wire
    names = [f.name for f in fields(Task) if getattr(theirs, f.name) != getattr(sent, f.name)]
    return f"its task differs from the admitted one in {', '.join(names)}"


def _printable(text: str) -> str:
    """Text of a replica, fit for logs and terminals."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return plain if len(plain) <= _MAX_REASON else f"{plain[:_MAX_REASON]}…"
