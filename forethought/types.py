"""The values that flow through Forethought, each wrapping the one before it.

    corpus -> Document -> Task -> Rollout -> ScoredRollout -> (learner)

Design: every value *contains* its input unchanged, so the last one carries the full provenance and no
stage needs a join by id. The price is that a task's trunk travels all the way to the learner: 8 KiB
per task at 2,048 tokens, negligible for Redis.

Axes in names: ``N`` tokens of a document, ``K`` positions, ``G`` thoughts of a group, ``L`` tokens
of one thought, ``H`` target tokens. Log-probs are natural logarithms; names say under which model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True, slots=True)
class Document:
    """A window of corpus tokens.

    Long documents are cut into consecutive windows that do not overlap; ``document_id`` identifies the
    window. ``marks`` are token indices (into ``token_ids_N``) that the corpus marks as worth predicting;
    ``nll_weights_N`` weights the next-token loss per token (empty: 1 everywhere; SFT masks its prompt).

    Example:
        ``Document("notes.txt#3:0", "notes", (5, 17, 9), (1, 4, 2), marks=(2,))``
    """

    document_id: str
    source: str
    token_ids_N: tuple[int, ...]
    token_bytes_N: tuple[
        int, ...
    ] = ()  # byte length of each token; empty if the tokenizer has none
    marks: tuple[int, ...] = ()
    entropies_N: tuple[float, ...] = ()  # nats, annotated offline; empty if not annotated
    nll_weights_N: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Position:
    """A position to think at: context ``trunk[:index]``, ground-truth continuation ``target_ids_H``.

    Example:
        ``Position(index=10, target_ids_H=(42,))``
    """

    index: int
    target_ids_H: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompting:
    """The tokens around a thought; prompting is data, so no process needs a template.

    A thinking branch is ``head + context + bridge | thought | close + target``; the no-think branch
    is ``no_think_head + context | target``, each after ``bos_ids``, what the tokenizer puts before every
    text. The last ``num_open_tokens`` of ``bridge_ids`` are the marker that opens the thought, the first
    ``num_close_tokens`` of ``close_ids`` the one that closes it; what follows that is a template's. Scoring
    and sampling assemble them with the methods below; the learner keeps the parts apart, because each has
    weights of its own.

    Example:
        ``Prompting(head_ids=(), bridge_ids=(39,), close_ids=(40,), no_think_head_ids=())``
    """

    head_ids: tuple[int, ...] = ()
    bridge_ids: tuple[int, ...] = ()
    close_ids: tuple[int, ...] = ()
    no_think_head_ids: tuple[int, ...] = ()
    bos_ids: tuple[int, ...] = ()
    num_open_tokens: int = 1
    num_close_tokens: int = 1

    @property
    def open_id(self) -> int | None:
        """The think-open token, whose probability mass the no-think scorer removes; None if the marker is
        ordinary text of several tokens. Its first is then an ordinary word, whose mass is the text's, and
        the probability of all of them is that of no next token: nothing can be removed."""
        return self.bridge_ids[-1] if self.num_open_tokens == 1 else None

    @property
    def close_marker_ids(self) -> tuple[int, ...]:
        """The tokens that a closed thought ends with."""
        return self.close_ids[: self.num_close_tokens]

    @property
    def num_thinking_tokens(self) -> int:
        """Tokens a thinking branch has in addition to its context, thought and target."""
        before = len(self.bos_ids) + len(self.head_ids)
        return before + len(self.bridge_ids) + len(self.close_ids)

    @property
    def num_no_think_tokens(self) -> int:
        """Tokens a no-think branch has in addition to its context and target."""
        return len(self.bos_ids) + len(self.no_think_head_ids)

    def thinking_prefix(self, context_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The prompt a thought is sampled from: ``bos + head + context + bridge``."""
        return self.bos_ids + self.head_ids + context_ids + self.bridge_ids

    def remaining_close(self, closed: bool) -> tuple[int, ...]:
        """The tokens between a thought and its target. A closed thought already ends with its sampled
        close marker; a truncated one gets the whole marker appended, even if its budget ended within it."""
        return self.close_ids[self.num_close_tokens :] if closed else self.close_ids

    def target_prefix(
        self, context_ids: tuple[int, ...], thought_ids: tuple[int, ...], closed: bool
    ) -> tuple[int, ...]:
        """The prefix of a thinking branch's target: ``bos + head + context + bridge + thought + close``."""
        return self.thinking_prefix(context_ids) + thought_ids + self.remaining_close(closed)

    def no_think_prefix(self, context_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The prefix of the target without a thought: ``bos + no_think_head + context``."""
        return self.bos_ids + self.no_think_head_ids + context_ids


@dataclass(frozen=True, slots=True)
class Sampling:
    """How thoughts are sampled: until one of ``stop_ids`` is sampled, or all of one of ``stop_sequences``
    (they are part of the thought), or the budget ``max_thought_tokens``, stop included, is used up. No
    top-p or top-k: log-probs of a truncated distribution differ from those the learner computes.

    After the stop, up to ``prediction_tokens`` more are sampled the same way: RPT's prediction,
    which is part of the response. One of ``prediction_stop_ids`` ends it early.

    Example:
        ``Sampling(group_size=8, max_thought_tokens=9, temperature=1.0, stop_ids=(40,))``
    """

    group_size: int
    max_thought_tokens: int
    temperature: float = 1.0
    stop_ids: tuple[int, ...] = ()
    prediction_tokens: int = 0
    prediction_stop_ids: tuple[int, ...] = ()
    stop_sequences: tuple[tuple[int, ...], ...] = ()

    @property
    def max_response_tokens(self) -> int:
        """Thought and prediction together."""
        return self.max_thought_tokens + self.prediction_tokens


@dataclass(frozen=True, slots=True)
class Task:
    """One document and K positions to think at: the unit of work, batching and delivery.

    ``task_id`` increases by one per task of a run; batch k is exactly tasks kN to (k+1)N-1. Only a
    policy of this :attr:`origin` and of version ``min_version`` or newer may serve it. ``models`` are
    those whose likelihoods the reward needs (see :attr:`forethought.objectives.Objective.models`); with
    "policy" and without "baseline", the policy itself scores the no-think branch.

    Example:
        ``Task(task_id=70, epoch=1, batch=2, min_version=2, objective="rlp",``
        ``objective_json="{}", document=doc, positions_K=(Position(10, (42,)),), prompting=p,``
        ``sampling=s, seed=17)``
    """

    task_id: int
    epoch: int
    batch: int
    min_version: int
    objective: str
    objective_json: str
    document: Document
    positions_K: tuple[Position, ...]
    prompting: Prompting
    sampling: Sampling
    seed: int
    max_staleness: int = 0
    models: tuple[str, ...] = ("policy", "baseline")
    traceparent: str = ""
    run_id: str = ""

    @property
    def origin(self) -> tuple[str, int]:
        """The run and epoch whose learner admitted it."""
        return (self.run_id, self.epoch)

    @property
    def wants_target(self) -> bool:
        """Whether the reward needs log p(target) with and without a thought."""
        return not {"policy", "baseline"}.isdisjoint(self.models)

    @classmethod
    def unread(cls, task_id: int, epoch: int) -> Self:
        """Stands for a task whose message cannot be decoded: a failed result needs no more than its ids."""
        nothing = Document("", "", ())
        return cls(task_id, epoch, 0, 0, "", "{}", nothing, (), Prompting(), Sampling(0, 0), 0)


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """``num_tokens`` consecutive thought tokens sampled by policy ``version``.

    Example:
        ``VersionSpan(version=3, num_tokens=7)``
    """

    version: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Thought:
    """One sampled thought. A *closed* thought ends with its sampled close marker; a *truncated* one ran
    out of budget, and the marker is appended outside ``token_ids_L``, without gradient. The last
    ``num_prediction_tokens`` were sampled after the marker: the prediction, if one was requested.

    ``behaviour_logprobs_L`` are at the sampling temperature. ``target_logprobs_H`` are those of the target
    after this thought and its close, at temperature 1, by the version that sampled all its tokens; a
    sampler that has them at hand hands them on, else they are empty.

    Example:
        ``Thought((4, 6, 40), (-0.1, -0.7, -0.01), (VersionSpan(3, 3),), closed=True)``
    """

    token_ids_L: tuple[int, ...]
    behaviour_logprobs_L: tuple[float, ...]
    version_spans: tuple[VersionSpan, ...]
    closed: bool
    num_prediction_tokens: int = 0
    target_logprobs_H: tuple[float, ...] = ()

    @property
    def thought_ids(self) -> tuple[int, ...]:
        """The thought without the prediction, including a sampled close marker."""
        return self.token_ids_L[: len(self.token_ids_L) - self.num_prediction_tokens]

    @property
    def prediction_ids(self) -> tuple[int, ...]:
        """The tokens sampled after the close marker."""
        return self.token_ids_L[len(self.token_ids_L) - self.num_prediction_tokens :]

    @property
    def newest_version(self) -> int:
        """The newest policy version among the tokens."""
        return max(span.version for span in self.version_spans)


@dataclass(frozen=True, slots=True)
class Rollout:
    """G thoughts for each of a task's K positions, or the error that replaces them.

    Example:
        ``Rollout(task, thoughts_KG=((thought, other),), replica="rollout-a1")``
    """

    task: Task
    thoughts_KG: tuple[tuple[Thought, ...], ...] = ()
    replica: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout with its rewards and the log-likelihoods behind them.

    ``policy_logprobs_KG`` is log p(target | context, thought) under ``policy_version``;
    ``baseline_logprobs_K`` is log p(target | context), think-open mass removed, under
    ``baseline_version``. For a target of H tokens it is the teacher-forced sum. If the reward needs no
    target likelihood, every group's ``policy_logprobs`` are empty and its baseline log-prob is 0.

    Example:
        ``ScoredRollout(rollout, ((0.9, -0.2),), ((-0.1, -1.2),), (-1.0,), 3, 3, "reward-b2")``
    """

    rollout: Rollout
    rewards_KG: tuple[tuple[float, ...], ...] = ()
    policy_logprobs_KG: tuple[tuple[float, ...], ...] = ()
    baseline_logprobs_K: tuple[float, ...] = ()
    policy_version: int = 0
    baseline_version: int = 0
    replica: str = ""
    error: str | None = None

    @property
    def failure(self) -> str | None:
        """The error of the scoring or the sampling stage, or None."""
        return self.error or self.rollout.error


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Identifies a set of published weights. Within a run ordered by (epoch, version), lexicographically.

    ``sha256`` is of the safetensors payload; ``model_files_sha256`` of the configuration and tokenizer
    it belongs to; ``run_id`` of the run directory (empty: no run's, or of an unknown one).

    Example:
        ``WeightManifest("policy", 1, 12, "9f…", "4c…", "float32", 430_000)``
    """

    model: str
    epoch: int
    version: int
    sha256: str
    model_files_sha256: str
    dtype: str
    num_bytes: int
    run_id: str = ""

    @property
    def order(self) -> tuple[int, int]:
        """The key by which a newer manifest of a run replaces an older one."""
        return (self.epoch, self.version)

    @property
    def origin(self) -> tuple[str, int]:
        """The run and epoch whose learner published it."""
        return (self.run_id, self.epoch)


@dataclass(frozen=True, slots=True)
class Replica:
    """A registered replica: its address, the models it serves, and each one's (epoch, version).

    ``run_id`` is that of the policy it serves.

    Example:
        ``Replica("rollout-a1", "rollout", "10.0.0.7:50051", ("policy",), {"policy": (1, 12)})``
    """

    replica_id: str
    kind: str
    address: str
    models: tuple[str, ...]
    serving: dict[str, tuple[int, int]] = field(default_factory=dict)
    num_tasks_done: int = 0
    draining: bool = False
    run_id: str = ""


_ATTEMPT = 1 << 40


def attempt_of(task_id: int) -> int:
    """The attempt number encoded in a task id: 0 for an original task."""
    return task_id // _ATTEMPT


def original_of(task_id: int) -> int:
    """The id of the original task that this one replaces; the id itself for an original task."""
    return task_id % _ATTEMPT


def next_attempt(task_id: int) -> int:
    """The id of the task that replaces this one."""
    return task_id + _ATTEMPT
