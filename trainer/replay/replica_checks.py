"""The check of every rollout replica: a few of its tokens, replayed before any of them is learned.

    checked     at its first version, and at its first version after a flip
    when        a batch has been taken and its step has not begun: the learner's weights are then those of
                its version, and stay so until the replay is done
    compared    with S = 0 tokens of the batch itself: all are of the learner's version. With S > 0 likewise
                where it has some of that version, as the first batch always does; else the replica is asked
                for some, for at most ``_REQUEST_S``
    quarantined beyond the tolerance: it gets no weights and takes no tasks any more (it reads that in the
                run's manifest), and no result of it is learned from, those in flight included

Design: before the step, so that nothing is learned from a replica until it was compared. The price: with
S > 0 a step may wait once or twice per replica for a push and a few tokens. A request that fails is
repeated after ``_REQUEST_EVERY_VERSIONS``; until then the replica's results are learned from unchecked,
which a metric and an alarm report. What a replica computes later is not compared again. A replica that is
restarted has a new id, and is checked anew; so is every replica by a learner that is restarted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forethought.auth import Bearer
from forethought.background import run_until, wait_for_event
from forethought.config import Settings
from forethought.conformance import versions_of
from forethought.errors import ForethoughtError, Unreachable
from forethought.run.alarms import QUARANTINE_REMEDY
from forethought.types import Rollout, ScoredRollout
from trainer.learner.learner import Learner
from trainer.publisher import Publisher
from trainer.replay.comparison import Comparison, compare, tolerance_of
from trainer.replay.excerpt import Excerpt, excerpts_of
from trainer.replay.request import requested_rollout

log = logging.getLogger(__name__)

_REQUEST_S = 20.0
_REQUEST_EVERY_VERSIONS = 10

JOINING_S = 30.0
"""How long a run whose rollout replicas are all quarantined waits for another one to register."""

_LOOK_S = 0.25


@dataclass(slots=True)
class _Record:
    """What is known of one replica; versions are -1 before the first.

    Example:
        ``_Record(first_version=40)``
    """

    first_version: int
    checked_version: int = -1
    requested_version: int = -1
    comparison: Comparison | None = None

    def is_due(self, version: int) -> bool:
        """Whether tokens of ``version`` are to be replayed: its first check, or its first after a flip."""
        return self.checked_version <= self.first_version and version > self.checked_version

    def may_be_asked(self, version: int) -> bool:
        """Whether no recent request failed."""
        return self.requested_version < 0 or (
            version >= self.requested_version + _REQUEST_EVERY_VERSIONS
        )


class ReplicaChecks:
    """Decides whose results are learned from.

    ``announce`` stores the run's manifest, of which :attr:`quarantined` is a part.
    """

    def __init__(
        self,
        learner: Learner,
        settings: Settings,
        publisher: Publisher,
        announce: Callable[[], Awaitable[None]],
        stop: asyncio.Event,
    ) -> None:
        self._learner, self._publisher = learner, publisher
        self._announce, self._stop = announce, stop
        self._bearer = Bearer.of_run(settings.auth)
        self._max_batch_tokens = settings.learner.micro_batch_tokens
        self._whole_only = settings.rollout.keep_kv
        self._tolerance_nats = settings.learner.replay_tolerance_nats or tolerance_of(
            learner.model, settings.sampling.temperature
        )
        self._records: dict[str, _Record] = {}
        self._is_any_new = False
        self.num_unchecked = 0  # replicas with results in the newest batch whose check is overdue
        self.failure = ""  # why the run cannot go on; empty while it can

    @property
    def quarantined(self) -> dict[str, str]:
        """The reason by replica id."""
        return self._publisher.unsound

    def differences(self) -> dict[tuple[str], float]:
        """The newest mean absolute difference in nats by live replica's id; for metrics."""
        live = (replica.replica_id for replica in self._publisher.registered)
        known = {i: self._records[i].comparison for i in live if i in self._records}
        return {(i,): comparison.difference for i, comparison in known.items() if comparison}

    def values(self) -> dict[str, Any]:
        """What the metrics log records of a step."""
        quarantined = {"quarantined": dict(self.quarantined)} if self.quarantined else {}
        return {"unchecked_replicas": self.num_unchecked, **quarantined}

    async def checked(self, results: Sequence[ScoredRollout]) -> list[ScoredRollout]:
        """Check the replicas of a batch that are due; returns its results, failed if of quarantined ones.

        The learner must not step meanwhile.
        """
        version, rollouts = self._learner.version, self._by_replica(results)
        due = [i for i in rollouts if self._record(i, rollouts[i]).is_due(version)]
        gathered = await asyncio.gather(*(self._excerpts(i, rollouts[i]) for i in due))
        excerpts = {i: found for i, found in zip(due, gathered, strict=True) if found}
        self.num_unchecked = len(due) - len(excerpts)
        comparisons = await asyncio.to_thread(self._compare, excerpts, version)
        for replica_id, comparison in comparisons.items():
            self._note(replica_id, comparison)
        if not all(c.is_within(self._tolerance_nats) for c in comparisons.values()):
            await self._announce_quarantine()
        return [self._result(result) for result in results]

    async def wait_for_sound(self) -> None:
        """After a quarantine, wait until a sound rollout replica is registered; :attr:`failure` if none is.

        A replica that leaves later is waited for like any other.
        """
        until_s = _now_s() + JOINING_S
        while self._is_any_new and not self._is_any_sound() and not self._stop.is_set():
            if _now_s() > until_s:
                self.failure = _failure(self.quarantined)
                break
            await wait_for_event(self._stop, _LOOK_S)  # the registry is polled as well
        self._is_any_new = False

    def _by_replica(self, results: Sequence[ScoredRollout]) -> dict[str, list[Rollout]]:
        rollouts: dict[str, list[Rollout]] = {}
        for result in results:
            replica_id = result.rollout.replica
            if result.failure is None and replica_id not in self.quarantined:
                rollouts.setdefault(replica_id, []).append(result.rollout)
        return rollouts

    def _record(self, replica_id: str, rollouts: Sequence[Rollout]) -> _Record:
        oldest = min(min(versions_of(rollout)) for rollout in rollouts)
        record = self._records.setdefault(replica_id, _Record(oldest))
        if record.checked_version < 0:
            record.first_version = min(record.first_version, oldest)
        return record

    async def _excerpts(self, replica_id: str, rollouts: Sequence[Rollout]) -> list[Excerpt]:
        """Excerpts of the learner's version: of the batch, or else on request; empty if there are none."""
        version, record = self._learner.version, self._records[replica_id]
        found = excerpts_of(rollouts, version, whole_only=self._whole_only)
        addresses = {replica.replica_id: replica.address for replica in self._publisher.registered}
        address = addresses.get(replica_id)
        if found or address is None or not record.may_be_asked(version):
            return found
        try:
            rollout = await run_until(
                self._stop,
                requested_rollout(
                    address,
                    self._bearer,
                    rollouts[0].task,
                    version=version,
                    vocabulary=self._learner.language_model.vocabulary,
                    timeout_s=_REQUEST_S,
                ),
            )
        except ForethoughtError as error:
            record.requested_version = version
            log.warning("%s is not compared with the learner yet: %s", replica_id, error)
            return []
        return excerpts_of([rollout] if rollout else [], version)

    def _compare(self, excerpts: dict[str, list[Excerpt]], version: int) -> dict[str, Comparison]:
        return {
            replica_id: compare(self._learner.model, found, version, self._max_batch_tokens)
            for replica_id, found in excerpts.items()
        }

    def _note(self, replica_id: str, comparison: Comparison) -> None:
        record = self._records[replica_id]
        record.checked_version, record.comparison = comparison.version, comparison
        log.info("replay of %s: %s", replica_id, comparison)
        if comparison.is_within(self._tolerance_nats):
            return
        self._is_any_new = True
        self._publisher.quarantine(
            replica_id,
            f"rollout replica {replica_id} is quarantined, because it does not compute what the learner "
            f"computes: {comparison} (learner.replay_tolerance_nats is {self._tolerance_nats:g})",
        )

    async def _announce_quarantine(self) -> None:
        try:
            await self._announce()
        except Unreachable as error:  # it is announced again with the next version
            log.warning("the quarantine is not announced yet: %s", error)

    def _is_any_sound(self) -> bool:
        """Whether a rollout replica is registered that is neither quarantined nor leaving."""
        return any(
            replica.kind == "rollout"
            and not replica.draining
            and replica.replica_id not in self.quarantined
            for replica in self._publisher.registered
        )

    def _result(self, result: ScoredRollout) -> ScoredRollout:
        reason = self.quarantined.get(result.rollout.replica)
        if reason is None or result.failure is not None:
            return result
        return ScoredRollout(result.rollout, replica=result.replica, error=reason)


def _failure(quarantined: Mapping[str, str]) -> str:
    *others, newest = quarantined.values()
    more = f" (and {len(others)} more before it)" if others else ""
    return (
        f"no sound rollout replica is left: {newest}{more}; {QUARANTINE_REMEDY}; then run the same command "
        "again to resume"
    )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
