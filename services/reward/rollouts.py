"""A run's rollouts as queries of the scorer: one per position, with what its reward needs.

Design: a rollout carries its task, so that nothing but the rollout and the served version decides what is
scored. The price is that the document's tokens travel through Redis twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from forethought.conformance import versions_of
from forethought.corpus.token_decoder import TokenDecoder
from forethought.errors import InvalidInput, Stale
from forethought.objectives import Objective
from forethought.types import Rollout, Thought, WeightManifest
from services.reward.groups import GroupQuery, predictions_of


def wants_baseline(rollout: Rollout) -> bool:
    """Whether its rewards need the baseline's likelihoods."""
    return rollout.error is None and "baseline" in rollout.task.models


def check_versions(rollout: Rollout, served: WeightManifest) -> None:
    """All thoughts of a task are scored by one policy, at least as new as their newest token.

    Raises:
        Stale: what is served is older, of another run or epoch, or newer than on-policy scoring allows.
    """
    task, versions = rollout.task, versions_of(rollout)
    if task.origin != served.origin or max(versions, default=0) > served.version:
        raise Stale(
            f"task {task.task_id} of run {task.run_id!r} was sampled in epoch {task.epoch} by version "
            f"{max(versions, default=0)}; this replica serves run {served.run_id!r}, epoch "
            f"{served.epoch}, version {served.version}; expected the same epoch of the same run and a "
            "version at least as new"
        )
    if task.max_staleness == 0 and not versions <= {served.version}:
        raise Stale(
            f"task {task.task_id} is strictly on-policy and was sampled by versions "
            f"{sorted(versions)}; this replica serves {served.version}; expected exactly that one"
        )


def queries_of(rollout: Rollout, policy_version: int) -> tuple[GroupQuery, ...]:
    """One query per position, without what grading needs.

    What the sampler handed on is used if all thoughts are by ``policy_version``, the one that would score.

    Raises:
        InvalidInput: it has other than one group of thoughts per position.
    """
    task = rollout.task
    if not task.positions_K or len(task.positions_K) != len(rollout.thoughts_KG):
        raise InvalidInput(
            f"task {task.task_id} has {len(task.positions_K)} positions and "
            f"{len(rollout.thoughts_KG)} groups of thoughts; expected one group per position"
        )
    trunk = task.document.token_ids_N
    is_same = versions_of(rollout) == {policy_version}
    return tuple(
        GroupQuery(
            trunk[: position.index],
            position.target_ids_H,
            task.prompting,
            thoughts_G,
            task.wants_target,
            wants_predictions="prediction" in task.models,
            target_logprobs_G=_handed_on(thoughts_G) if is_same else (),
        )
        for position, thoughts_G in zip(task.positions_K, rollout.thoughts_KG, strict=True)
    )


def _handed_on(thoughts_G: Sequence[Thought]) -> tuple[float, ...]:
    """The sampler's log p(target | context, thought), if it has them for the whole group. Shape [G]."""
    if not all(thought.target_logprobs_H for thought in thoughts_G):
        return ()
    return tuple(math.fsum(thought.target_logprobs_H) for thought in thoughts_G)


def graded(
    queries_K: Sequence[GroupQuery], rollout: Rollout, objective: Objective, decoder: TokenDecoder
) -> tuple[GroupQuery, ...]:
    """The queries with what grading needs: predictions, and all that follows in the document."""
    document = rollout.task.document
    return tuple(
        replace(
            query,
            predictions_G=predictions_of(query.thoughts_G, objective, decoder),
            truth=decoder.ground_truth(
                document.token_ids_N[position.index :],
                document.token_bytes_N[position.index :],
                without_end=objective.prediction_ends,
            ),
        )
        for query, position in zip(queries_K, rollout.task.positions_K, strict=True)
    )
