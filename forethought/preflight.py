"""Checks that need the loaded objective; they run before any process starts and without torch."""

from __future__ import annotations

from forethought import estimators, objectives
from forethought.auth import Guard
from forethought.config.sections import Settings
from forethought.errors import InvalidInput
from forethought.estimators import Estimator
from forethought.objectives import Objective
from forethought.queue.interface import MAX_VALUE_BYTES, BrokerMemory
from forethought.queue.keys import MAX_DEAD_LETTERS

_OVERHEAD_BYTES = 4096


def check_run(settings: Settings) -> Objective:
    """Load the configured objective and check the settings against it.

    Raises:
        InvalidInput: a group too small for the estimator, or a result that could exceed 1 MiB in Redis.
    """
    configured = settings.objective
    objective = objectives.load(configured.name, configured.parameters, configured.folder)
    if objective.thinks:
        _check_group_size(settings, objective)
        _check_value_size(settings, objective)
    else:
        _check_no_next_token_steps(settings)
    return objective


def estimator_name(settings: Settings, objective: Objective) -> str:
    """The advantage estimator of a run: the configured one, else the objective's own."""
    return settings.objective.estimator or objective.estimator


def load_estimator(settings: Settings, objective: Objective) -> Estimator:
    """The estimator of :func:`estimator_name`.

    Raises:
        InvalidInput: no estimator has that name.
    """
    return estimators.load(estimator_name(settings, objective))


def check_corpus(settings: Settings) -> None:
    """Refuse a run without a corpus.

    Raises:
        InvalidInput: no source is configured.
    """
    if not settings.corpus.resolved_sources():
        raise InvalidInput(
            "no corpus is configured; expected corpus.path=FILE_OR_FOLDER (text, .jsonl, .parquet, …, "
            "also compressed, or a saved Hugging Face dataset) or [[corpus.sources]]"
        )


def largest_value_bytes(settings: Settings, objective: Objective) -> int:
    """Upper bound on the wire size of a scored rollout: five arrays over the trunk, plus K x G thoughts."""
    num_positions = objective.max_positions(settings.corpus.window_tokens)
    target_tokens = getattr(objective.config, "target_tokens", 1)
    num_tokens = settings.sampling.max_thought_tokens + objective.prediction_tokens
    per_thought = 8 * num_tokens + 64
    per_position = settings.sampling.group_size * per_thought + 4 * target_tokens + 64
    return 20 * settings.corpus.window_tokens + num_positions * per_position + _OVERHEAD_BYTES


def check_redis(settings: Settings, objective: Objective) -> None:
    """Refuse a thinking run without Redis.

    Raises:
        InvalidInput: ``redis.url`` is empty and the objective thinks.
    """
    if objective.thinks and not settings.redis.url:
        raise InvalidInput(
            f"objective {settings.objective.name!r} needs Redis and replicas; expected redis.url, such "
            "as redis.url=redis://127.0.0.1:6379 (`forethought up` starts everything itself)"
        )


def most_queued_bytes(settings: Settings, objective: Objective) -> int:
    """Upper bound on what a run keeps in Redis: a value for each of N(1+S) tasks, and the dead letters."""
    section = settings.learner
    num_tasks = section.batch_tasks * (1 + section.max_staleness)
    return (num_tasks + MAX_DEAD_LETTERS) * largest_value_bytes(settings, objective)


def check_memory(settings: Settings, objective: Objective, memory: BrokerMemory) -> str:
    """Compare what Redis may hold with what the run may put there; returns a warning, or "".

    Raises:
        InvalidInput: the run may need more than all of it, or Redis may evict the run's keys.
    """
    needed = most_queued_bytes(settings, objective)
    if not (objective.thinks and memory.max_bytes):
        return ""
    if memory.policy.startswith("allkeys"):
        raise InvalidInput(
            f"Redis's maxmemory-policy is {memory.policy}, which deletes tasks and results when its "
            f"memory is full; expected noeviction: CONFIG SET maxmemory-policy noeviction"
        )
    section = settings.learner
    need = (
        f"this run may put {needed:,} bytes there: {section.batch_tasks} tasks x (1 + max_staleness "
        f"{section.max_staleness}) and {MAX_DEAD_LETTERS} dead letters, each of up to "
        f"{largest_value_bytes(settings, objective):,} bytes"
    )
    remedy = (
        "raise maxmemory, or lower learner.batch_tasks, learner.max_staleness, sampling.group_size or "
        "sampling.max_thought_tokens"
    )
    if needed > memory.max_bytes:
        raise InvalidInput(f"Redis's maxmemory is {memory.max_bytes:,} bytes; {need}; {remedy}")
    free_bytes = memory.max_bytes - memory.used_bytes
    if needed > free_bytes:
        return (
            f"Redis holds {memory.used_bytes:,} of at most {memory.max_bytes:,} bytes; {need}; "
            f"admission waits while its memory is full: {remedy}"
        )
    return ""


def check_token(settings: Settings, objective: Objective) -> None:
    """Refuse a thinking run whose weight pushes every replica with authentication would reject.

    Raises:
        InvalidInput: ``auth.open`` is false and the run has no token, or its token file is unusable.
    """
    if objective.thinks:
        Guard.of_replica(settings.auth)


def _check_group_size(settings: Settings, objective: Objective) -> None:
    least = load_estimator(settings, objective).min_group_size
    if settings.sampling.group_size < least:
        raise InvalidInput(
            f"sampling.group_size is {settings.sampling.group_size}; expected at least {least} for the "
            f"{estimator_name(settings, objective)} advantage of objective "
            f"{settings.objective.name!r}, which compares the thoughts within a group"
        )


def _check_no_next_token_steps(settings: Settings) -> None:
    section = settings.learner
    if section.next_token_every_steps or section.next_token_coef:
        raise InvalidInput(
            f"objective {settings.objective.name!r} does not think, so every step is a next-token step; "
            "expected learner.next_token_every_steps = 0 and learner.next_token_coef = 0"
        )


def _check_value_size(settings: Settings, objective: Objective) -> None:
    size = largest_value_bytes(settings, objective)
    if size > MAX_VALUE_BYTES:
        raise InvalidInput(
            f"one task's result could take {size} bytes in Redis; expected at most {MAX_VALUE_BYTES}: "
            "lower the objective's num_positions (and use more tasks), sampling.group_size, "
            "sampling.max_thought_tokens or corpus.window_tokens"
        )
