"""The scorer behind queue, HTTP and gRPC: log-likelihoods of the target with and without a thought.

    policy:    log p(target | BOS + head + context + bridge + thought + close)        S_pred, RLP eq. 3
    baseline:  log p(target | BOS + no-think head + context), think-open mass removed  S_ema,  RLP eq. 4

Design: all thinking branches of all groups go through the policy together, all no-think branches
through the baseline, and both models are held for the whole batch, so that everything in it is of
one pair of versions. The price is that a flip of either model waits for both. An invalid group or rollout
is detected before the forward pass and returned as an error, so the rest of the batch is still scored.

A task names the models its reward needs. Without a baseline the policy itself scores the no-think
branch ("current" baseline): the reward keeps its meaning, and in RLP's group-centred advantage the
baseline cancels anyway. A task that names no model is graded by bytes alone, without a forward pass.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import ParamSpec, TypeAlias, TypeVar, cast

from forethought import objectives
from forethought.compute.device_failures import device_failures
from forethought.compute.entropy import EntropyQuery, entropies
from forethought.compute.forms import forms_of
from forethought.compute.logprob import Continuation, ContinuationScore, score_continuations
from forethought.compute.served_model import ServedModel, Serving
from forethought.corpus.token_decoder import decoder_of
from forethought.errors import (
    EngineLost,
    ForethoughtError,
    InvalidInput,
    NotReady,
    status_of,
)
from forethought.objectives import Group, Objective
from forethought.replica.progress import Progress
from forethought.scatter import compute_flat, compute_valid
from forethought.types import Rollout, ScoredRollout, WeightManifest
from services.reward.groups import (
    GroupLikelihoods,
    GroupOutcome,
    GroupQuery,
    HeldModels,
    baseline_branches,
    branch_fault,
    fault_of,
    likelihoods_of,
    policy_branches,
)
from services.reward.rollouts import check_versions, graded, queries_of, wants_baseline
from services.reward.scored_branches import ScoredBranches

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_Planned: TypeAlias = tuple[Rollout, tuple[GroupQuery, ...]]

_MAX_OBJECTIVES = 64  # configured objectives kept; a run has one
_MAX_SCORED = 65_536  # no-think branches of one version, 16 MB


class Scorer:
    """Scores groups and rollouts with the policy and baseline as published.

    Args:
        policy: the served policy.
        baseline: the served baseline, or None: the policy scores the no-think branch too.
        max_batch_tokens: padded tokens of one forward pass.
        deterministic: score one group (or one rollout) at a time, so that shapes never depend on
            timing.
        objectives: the names loaded at start; rollouts that name others are refused.
        objective_folder: the folder of those that do not ship with the package.
        replica: the id written into scored rollouts.
    """

    def __init__(
        self,
        policy: ServedModel,
        baseline: ServedModel | None,
        max_batch_tokens: int,
        deterministic: bool = False,
        *,
        objectives: Collection[str] = (),
        objective_folder: str = "",
        replica: str = "",
    ) -> None:
        self.policy = policy
        self.baseline = None if baseline is policy else baseline
        self._max_batch_tokens = max_batch_tokens
        self._deterministic = deterministic
        self._objective_names = frozenset(objectives)
        self._objective_folder = objective_folder
        self._load_objective = lru_cache(maxsize=_MAX_OBJECTIVES)(_load_objective)
        self._replica = replica
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._scored = ScoredBranches(_MAX_SCORED)
        self.progress = Progress()

    @property
    def models(self) -> dict[str, ServedModel]:
        """The models that accept weights, by name."""
        held = {"policy": self.policy}
        return held | {"baseline": self.baseline} if self.baseline else held

    @property
    def shares(self) -> bool:
        """Whether the models that have weights compute a context once for all its thoughts."""
        held = (self.policy, *filter(None, [self.baseline]))
        models = (one.now.language_model.model for one in held if one.is_ready)
        return all(forms_of(model).shares for model in models)

    @property
    def decode(self) -> Callable[[Sequence[int]], str]:
        """Token ids as text, by the policy's tokenizer."""
        decode: Callable[[Sequence[int]], str] = self.policy.now.language_model.tokenizer.decode
        return decode

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``function`` on the one compute thread, which queue, HTTP and gRPC share."""

        def call() -> R:
            try:
                return function(*args, **kwargs)
            finally:
                self.progress.note()

        return await asyncio.get_running_loop().run_in_executor(self._compute, call)

    async def close(self) -> None:
        """Let the current batch finish and stop the compute thread."""
        await asyncio.to_thread(self._compute.shutdown)

    def score_groups(self, queries: Sequence[GroupQuery]) -> list[GroupOutcome]:
        """Likelihoods of every group, in order; a group that cannot be scored yields its error.

        The baseline is the published one if it is of the policy's epoch, else the policy.
        Blocking: call it through :meth:`run`.

        Raises:
            NotReady: no policy weights yet.
        """
        with self._hold(self._has_baseline()) as held:
            if self._deterministic:
                return [outcome for query in queries for outcome in self._score([query], held)]
            return self._score(queries, held)

    def score_rollouts(self, rollouts: Sequence[Rollout]) -> list[ScoredRollout]:
        """Reward every rollout by its task's objective, in order. Blocking.

        A rollout with an error passes through. One that cannot be scored (by these versions, by
        this model, or because its objective fails on it) becomes a ``ScoredRollout`` with that
        error.

        Raises:
            NotReady: policy and baseline are not of one epoch yet.
            EngineLost: the GPU failed.
        """
        with self._hold(any(wants_baseline(r) for r in rollouts)) as held:
            if not self._deterministic:
                try:
                    return self._score_together(rollouts, held)
                except EngineLost:
                    raise
                except Exception:
                    log.exception(
                        "a batch failed; scoring its %d rollouts one by one", len(rollouts)
                    )
            return [self._score_alone(rollout, held) for rollout in rollouts]

    def score_continuations(
        self, name: str, jobs: Sequence[tuple[Continuation, ...]]
    ) -> tuple[list[tuple[ContinuationScore, ...] | ForethoughtError], WeightManifest]:
        """Plain log-probs of every job's continuations by one model, and its manifest. Blocking.

        Raises:
            NotReady: that model has no weights yet.
        """
        with self._served(name).hold() as serving:
            errors = [
                _refusal(*(branch_fault(c, serving.language_model) for c in job)) for job in jobs
            ]
            score = partial(
                score_continuations,
                serving.language_model.model,
                max_batch_tokens=self._max_batch_tokens,
            )
            outcomes = compute_valid(
                jobs, errors, lambda valid: map(tuple, compute_flat(valid, score))
            )
            return outcomes, serving.manifest

    def entropies(
        self, queries: Sequence[EntropyQuery]
    ) -> tuple[list[tuple[float, ...] | ForethoughtError], WeightManifest]:
        """Entropies of the policy's predictions of every query's tokens. Blocking.

        Raises:
            NotReady: no policy weights yet.
        """
        with self.policy.hold() as serving:
            errors = [
                _refusal(
                    branch_fault(Continuation(q.prefix_ids, q.token_ids_N), serving.language_model)
                )
                for q in queries
            ]
            compute = partial(
                entropies, serving.language_model.model, max_batch_tokens=self._max_batch_tokens
            )
            return compute_valid(queries, errors, compute), serving.manifest

    def _served(self, name: str) -> ServedModel:
        if name not in self.models:
            raise NotReady(
                f"no {name} is served here, only {', '.join(self.models)}; request one of those"
            )
        return self.models[name]

    def _has_baseline(self) -> bool:
        policy = self.policy.manifest
        baseline = self.baseline.manifest if self.baseline else None
        return policy is not None and baseline is not None and baseline.origin == policy.origin

    @contextmanager
    def _hold(self, with_baseline: bool) -> Iterator[HeldModels]:
        with ExitStack() as stack:
            policy = stack.enter_context(self.policy.hold())
            separate = self.baseline if with_baseline else None
            baseline = stack.enter_context(separate.hold()) if separate else policy
            if policy.manifest.origin != baseline.manifest.origin:
                raise NotReady(
                    f"the policy is of epoch {policy.manifest.epoch}, the baseline of epoch "
                    f"{baseline.manifest.epoch}, of runs {policy.manifest.run_id!r} and "
                    f"{baseline.manifest.run_id!r}; expected the same: retry when both have arrived"
                )
            yield HeldModels(policy, baseline)

    def _score(self, queries: Sequence[GroupQuery], held: HeldModels) -> list[GroupOutcome]:
        errors = [_refusal(fault_of(query, held)) for query in queries]
        return compute_valid(queries, errors, lambda valid: self._score_valid(valid, held))

    def _score_valid(self, queries: Sequence[GroupQuery], held: HeldModels) -> list[GroupOutcome]:
        """Thinking branches by the policy, no-think branches by the baseline, all groups together."""
        branches = [policy_branches(query) for query in queries]
        plain = [baseline_branches(query) for query in queries]
        if held.baseline is held.policy:  # one pass, in which both share their contexts
            together = [p + b for p, b in zip(branches, plain, strict=True)]
            totals = compute_flat(together, partial(self._totals, held.policy))
            policy = [t[: len(p)] for t, p in zip(totals, branches, strict=True)]
            baseline = [t[len(p) :] for t, p in zip(totals, branches, strict=True)]
        else:
            policy = compute_flat(branches, partial(self._totals, held.policy))
            baseline = compute_flat(plain, partial(self._baseline_totals, held.baseline))
        return [
            likelihoods_of(query, policy_logprobs, baseline_logprobs, held)
            for query, policy_logprobs, baseline_logprobs in zip(
                queries, policy, baseline, strict=True
            )
        ]

    def _baseline_totals(self, serving: Serving, branches: list[Continuation]) -> list[float]:
        version = (serving.manifest.origin, serving.manifest.version)
        return self._scored.totals(version, branches, partial(self._totals, serving))

    def _totals(self, serving: Serving, branches: list[Continuation]) -> list[float]:
        model = serving.language_model.model
        with device_failures():
            scored = score_continuations(model, branches, self._max_batch_tokens)
        self.progress.note()
        return [branch.total for branch in scored]

    def _score_alone(self, rollout: Rollout, held: HeldModels) -> ScoredRollout:
        try:
            return self._score_together([rollout], held)[0]
        except EngineLost:
            raise
        except Exception as error:
            log.exception("task %d cannot be scored", rollout.task.task_id)
            return self._failed(rollout, error)

    def _score_together(self, rollouts: Sequence[Rollout], held: HeldModels) -> list[ScoredRollout]:
        plans = [self._plan(rollout, held.policy) for rollout in rollouts]
        failed = [plan if isinstance(plan, ScoredRollout) else None for plan in plans]
        return compute_valid(
            list(zip(rollouts, plans, strict=True)),
            failed,
            lambda valid: self._reward_all(cast("list[_Planned]", valid), held),
        )

    def _reward_all(self, planned: list[_Planned], held: HeldModels) -> list[ScoredRollout]:
        outcomes = compute_flat(
            [queries_K for _, queries_K in planned], lambda queries: self._score(queries, held)
        )
        return [
            self._reward(rollout, queries_K, outcomes_K)
            for (rollout, queries_K), outcomes_K in zip(planned, outcomes, strict=True)
        ]

    def _plan(self, rollout: Rollout, served: Serving) -> tuple[GroupQuery, ...] | ScoredRollout:
        """The K queries of a rollout, or what it becomes without any."""
        if rollout.error is not None:
            return ScoredRollout(rollout, replica=self._replica)
        try:
            check_versions(rollout, served.manifest)
            objective = self._objective_of(rollout)
            queries = queries_of(rollout, served.manifest.version)
            if not objective.prediction_tokens:
                return queries
            return graded(queries, rollout, objective, decoder_of(served.language_model.tokenizer))
        except ForethoughtError as error:
            return self._failed(rollout, error)

    def _reward(
        self, rollout: Rollout, queries_K: Sequence[GroupQuery], outcomes_K: Sequence[GroupOutcome]
    ) -> ScoredRollout:
        for outcome in outcomes_K:
            if isinstance(outcome, ForethoughtError):
                return self._failed(rollout, outcome)
        likelihoods_K = [o for o in outcomes_K if isinstance(o, GroupLikelihoods)]
        try:
            objective = self._objective_of(rollout)
            rewards_KG = tuple(
                rewards_of(objective, query, likelihoods, self.decode)
                for query, likelihoods in zip(queries_K, likelihoods_K, strict=True)
            )
        except ForethoughtError as error:
            return self._failed(rollout, error)
        return ScoredRollout(
            rollout=rollout,
            rewards_KG=rewards_KG,
            policy_logprobs_KG=tuple(group.policy_logprobs_G for group in likelihoods_K),
            baseline_logprobs_K=tuple(group.baseline_logprob for group in likelihoods_K),
            policy_version=likelihoods_K[0].policy_version,
            baseline_version=likelihoods_K[0].baseline_version,
            replica=self._replica,
        )

    def _objective_of(self, rollout: Rollout) -> Objective:
        name = rollout.task.objective
        if name not in self._objective_names:
            loaded = ", ".join(sorted(self._objective_names)) or "none"
            raise InvalidInput(
                f"task {rollout.task.task_id} requests objective {name!r}; loaded at start: "
                f"{loaded}; start the reward service with it"
            )
        return self._load_objective(name, rollout.task.objective_json, self._objective_folder)

    def _failed(self, rollout: Rollout, error: Exception) -> ScoredRollout:
        return ScoredRollout(rollout, replica=self._replica, error=status_of(error).message)


def rewards_of(
    objective: Objective,
    query: GroupQuery,
    likelihoods: GroupLikelihoods,
    decode: Callable[[Sequence[int]], str] | None = None,
) -> tuple[float, ...]:
    """The objective's rewards for one group, whose thoughts ``decode`` turns into text. Shape [G].

    Raises:
        ForethoughtError: the objective failed, or gave other than one finite number per thought.
    """
    group = Group(
        query.target_ids_H,
        query.thoughts_G,
        likelihoods.policy_logprobs_G,
        likelihoods.baseline_logprob,
        query.predictions_G,
        query.truth,
        likelihoods.prediction_logprobs_G,
        decode,
        query.prompting.num_close_tokens,
    )
    try:
        rewards_G = tuple(objective.rewards(group))
    except Exception as error:  # third-party code: its failure must stay with its group
        log.exception("objective %s failed: %s", type(objective).__name__, error)
        raise ForethoughtError(
            f"objective {type(objective).__name__} failed ({type(error).__name__}); "
            "see the server's log"
        ) from error
    if len(rewards_G) != len(query.thoughts_G) or not all(map(math.isfinite, rewards_G)):
        raise ForethoughtError(
            f"objective {type(objective).__name__} gave rewards {list(rewards_G)} for "
            f"{len(query.thoughts_G)} thoughts; expected one finite number each"
        )
    return rewards_G


def _load_objective(name: str, objective_json: str, folder: str) -> Objective:
    try:
        parameters = json.loads(objective_json or "{}")
    except ValueError as error:
        raise InvalidInput(f"the parameters of objective {name!r} are not JSON: {error}") from error
    if not isinstance(parameters, dict):
        raise InvalidInput(f"the parameters of objective {name!r} are not a JSON object")
    return objectives.load(name, parameters, folder)


def _refusal(*faults: str | None) -> ForethoughtError | None:
    """The first fault as an error, or None where there is none."""
    return next((InvalidInput(fault) for fault in faults if fault), None)
