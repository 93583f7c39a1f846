"""Which replica is checked when, and what becomes of one that fails, with a real learner and publisher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from forethought.compute.model import load_language_model
from forethought.config import Settings, load_settings
from forethought.config.sections import BaselineSection
from forethought.errors import Unreachable
from forethought.types import Replica, ScoredRollout, Thought, VersionSpan
from services.rollout.grpc_server import RolloutServicer
from services.rollout.torch_engine import TorchEngine
from tests import tiny
from tests.endpoints import grpc_endpoint
from tests.scored import TEMPERATURE, make_results, off_policy
from trainer.learner.learner import Learner
from trainer.publisher import Publisher
from trainer.replay import replica_checks
from trainer.replay.replica_checks import ReplicaChecks

SETTINGS = [f"sampling.temperature={TEMPERATURE}", "auth.open=true"]


@dataclass
class Checking:
    """Checks with what they depend on; what was announced is counted."""

    learner: Learner
    publisher: Publisher
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    announced: list[dict[str, str]] = field(default_factory=list)
    announce_error: Exception | None = None
    settings: Settings = field(default_factory=lambda: load_settings(None, SETTINGS, {}))

    def __post_init__(self) -> None:
        self.checks = ReplicaChecks(
            self.learner, self.settings, self.publisher, self.announce, self.stop
        )

    async def announce(self) -> None:
        self.announced.append(dict(self.publisher.unsound))
        if self.announce_error:
            raise self.announce_error

    def sampled(self, replica: str, version: int | None = None) -> list[ScoredRollout]:
        """Results of a replica that computes what the learner computes now, said to be of a version."""
        of_version = self.learner.version if version is None else version
        return [
            _labelled(result, replica, of_version)
            for result in make_results(self.learner.language_model)
        ]

    def wrong(self, replica: str) -> list[ScoredRollout]:
        return off_policy(self.sampled(replica))

    def register(self, *replica_ids: str, address: str = "127.0.0.1:1") -> None:
        self.publisher.registered = [
            Replica(i, "rollout", address, ("policy",)) for i in replica_ids
        ]


def _labelled(result: ScoredRollout, replica: str, version: int) -> ScoredRollout:
    def labelled(thought: Thought) -> Thought:
        return replace(thought, version_spans=(VersionSpan(version, len(thought.token_ids_L)),))

    groups = tuple(tuple(map(labelled, group)) for group in result.rollout.thoughts_KG)
    return replace(result, rollout=replace(result.rollout, replica=replica, thoughts_KG=groups))


@pytest.fixture
def model_directory(tmp_path: Path) -> Path:
    return tiny.build_model_directory(tmp_path / "model")


@pytest.fixture
def checking(model_directory: Path) -> Checking:
    settings = load_settings(None, SETTINGS, {})
    language_model = load_language_model(model_directory, "float32", "cpu")
    learner = Learner(language_model, settings.learner, BaselineSection(kind="none"))

    async def no_replicas() -> list[Replica]:
        return []

    return Checking(learner, Publisher(no_replicas, settings.publish, 60.0))


def failures_of(results: Sequence[ScoredRollout]) -> set[str]:
    return {result.failure or "" for result in results}


async def test_a_sound_replica_is_checked_at_its_first_version_and_after_its_first_flip(
    checking: Checking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for version in (5, 5, 6, 7):
        checking.learner.version = version
        results = checking.sampled("a")
        assert await checking.checks.checked(results) == results
    replays = [r.getMessage() for r in caplog.records if "replay of a" in r.getMessage()]
    assert [
        f"policy version {version}" in text for version, text in zip((5, 6), replays, strict=True)
    ]
    assert checking.checks.values() == {"unchecked_replicas": 0}
    checking.register("a", "b")
    assert checking.checks.differences()[("a",)] < 1e-5
    assert checking.checks.differences().keys() == {("a",)}
    assert checking.announced == []


async def test_nothing_of_an_unsound_replica_is_learned_from_then_on(checking: Checking) -> None:
    sound, wrong = checking.sampled("a"), checking.wrong("b")
    results = await checking.checks.checked([*sound, *wrong])
    assert results[: len(sound)] == sound
    (reason,) = failures_of(results[len(sound) :])
    assert "rollout replica b is quarantined" in reason
    assert "its mean log-prob is -" in reason
    assert "and the learner's -" in reason
    assert checking.announced == [checking.publisher.unsound] == [{"b": reason}]
    assert checking.checks.values() == {"unchecked_replicas": 0, "quarantined": {"b": reason}}
    checking.learner.version = 1
    late = checking.sampled("b", version=0)  # in flight, and sound by chance
    assert failures_of(await checking.checks.checked(late)) == {reason}
    failed = [replace(late[0], error="no memory")]
    assert failures_of(await checking.checks.checked(failed)) == {"no memory"}
    assert len(checking.announced) == 1


async def test_a_fault_that_comes_with_the_first_flip(checking: Checking) -> None:
    """A successor, which has another id, is checked anew."""
    assert failures_of(await checking.checks.checked(checking.sampled("b"))) == {""}
    assert failures_of(await checking.checks.checked(checking.wrong("b"))) == {""}, "not due"
    checking.learner.version = 1
    checking.announce_error = Unreachable("Redis is away")
    (reason,) = failures_of(await checking.checks.checked(checking.wrong("b")))
    assert "policy version 1" in reason
    assert failures_of(await checking.checks.checked(checking.sampled("b-again"))) == {""}


async def test_a_tolerance_of_its_own(checking: Checking) -> None:
    words = [*SETTINGS, "learner.replay_tolerance_nats=3"]
    generous = replace(checking, settings=load_settings(None, words, {}))
    assert failures_of(await generous.checks.checked(generous.wrong("b"))) == {""}


async def test_only_a_new_quarantine_without_a_sound_replica_ends_the_run(
    checking: Checking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_checks, "JOINING_S", 0.6)
    checks = checking.checks
    await checks.wait_for_sound()
    await checks.checked(checking.wrong("b"))
    checking.register("a", "b")
    await checks.wait_for_sound()
    checking.register("b")
    await checks.wait_for_sound()  # a has left: waited for like any other replica
    assert checks.failure == ""
    await checks.checked(checking.wrong("c"))
    checking.register("b", "c")
    waiting = asyncio.create_task(checks.wait_for_sound())
    await asyncio.sleep(0)
    checking.register("b", "c", "d")  # joins in time
    await waiting
    assert checks.failure == ""
    await checks.checked(checking.wrong("d"))
    await checks.wait_for_sound()
    assert "no sound rollout replica is left: rollout replica d is quarantined" in checks.failure
    assert "(and 2 more before it)" in checks.failure
    assert "learner.replay_tolerance_nats" in checks.failure


# With a staleness above 0, a batch may have no token of the learner's version.


@pytest.fixture
async def engine(model_directory: Path) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(replica="a", device="cpu", max_batch_tokens=4096)
    await engine.load(tiny.manifest("policy", version=0), model_directory)
    yield engine
    await engine.close()


async def test_a_replica_is_asked_for_tokens_of_the_learners_version(
    checking: Checking, engine: TorchEngine, model_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which it serves only after a while, as its weights are being pushed."""
    caplog.set_level(logging.INFO)
    checking.learner.version = 1
    stale = checking.sampled("a", version=0)
    async with grpc_endpoint(RolloutServicer(engine, "a")) as address:
        checking.register("a", address=address)
        checked = asyncio.create_task(checking.checks.checked(stale))
        await asyncio.sleep(0.2)
        assert not checked.done()
        await engine.load(tiny.manifest("policy", version=1), model_directory)
        assert failures_of(await checked) == {""}
        assert "replay of a: over" in caplog.text
        assert "policy version 1" in caplog.text
        assert checking.checks.values() == {"unchecked_replicas": 0}
        # It holds a later version than it first served: that check was also the one after its flip.
        checking.learner.version = 2
        assert failures_of(await checking.checks.checked(checking.wrong("a"))) == {""}


async def test_what_it_answers_decides(checking: Checking, engine: TorchEngine) -> None:
    stale = checking.sampled("a", version=-1)
    with torch.no_grad():
        checking.learner.model.lm_head.weight.mul_(1.5)
    async with grpc_endpoint(RolloutServicer(engine, "a")) as address:
        checking.register("a", address=address)
        (reason,) = failures_of(await checking.checks.checked(stale))
    assert "rollout replica a is quarantined" in reason


async def test_a_replica_that_gives_no_answer_is_learned_from_and_asked_again_later(
    checking: Checking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replica_checks, "_REQUEST_S", 0.3)
    checking.register("a")
    for version in range(1, 13):
        checking.learner.version = version
        assert failures_of(await checking.checks.checked(checking.sampled("a", version=0))) == {""}
        assert checking.checks.num_unchecked == 1
    requests = [
        r for r in caplog.records if "is not compared with the learner yet" in r.getMessage()
    ]
    assert len(requests) == 2
    assert failures_of(await checking.checks.checked(checking.sampled("a"))) == {""}
    assert checking.checks.num_unchecked == 0
