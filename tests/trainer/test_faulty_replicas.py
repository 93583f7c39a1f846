"""A whole run in which every second answer of its replicas is faulty: it learns from the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forethought.config import load_settings
from forethought.queue.interface import Message
from forethought.run.directory import RunDirectory
from forethought.run.journal import read_journal
from forethought.wire.v1 import reward_pb2, rollout_pb2
from services.reward import handler as reward_handler
from services.rollout import assembly as rollout_assembly
from services.rollout import handler as rollout_handler
from services.single.__main__ import run as run_single
from tests import faults, tiny

BATCH_TASKS = 8
Change = Callable[[bytes], bytes]


def changed(kind: Any, part: str, change: Callable[[Any], object]) -> Change:
    """A message of that kind with one change; its first thought is (65, 66, CLOSE_ID)."""

    def alter(body: bytes) -> bytes:
        message = kind.FromString(body)
        rollout = getattr(message, "rollout", message)
        if not rollout.groups:
            return body  # failed already
        faults.tokens(65, 66, tiny.CLOSE_ID)(rollout)
        change(getattr(message, part) if part else message)
        return bytes(message.SerializeToString())

    return alter


OF_ROLLOUT: list[Change] = [
    *(changed(rollout_pb2.Rollout, "", fault[1]) for fault in faults.ROLLOUT_FAULTS),
    *(changed(rollout_pb2.Rollout, "task", fault[1]) for fault in faults.TASK_FAULTS),
    *(fault[1] for fault in faults.BODY_FAULTS if fault[0] != "invalid UTF-8"),
]
OF_REWARD: list[Change] = [
    *(changed(reward_pb2.ScoredRollout, "", fault[1]) for fault in faults.SCORE_FAULTS),
    *(fault[1] for fault in faults.BODY_FAULTS),
]
NUM_STEPS = math.ceil(2 * (len(OF_ROLLOUT) + len(OF_REWARD)) / BATCH_TASKS)


def is_unaltered(task_id: int) -> bool:
    return task_id % 2 == 0


class FaultyRolloutHandler(rollout_handler.RolloutHandler):
    async def handle(self, messages: list[Message]) -> list[Message]:
        return [_altered(result, OF_ROLLOUT, 0) for result in await super().handle(messages)]


class FaultyRewardHandler(reward_handler.RewardHandler):
    async def handle(self, messages: list[Message]) -> list[Message]:
        return [_altered(r, OF_REWARD, len(OF_ROLLOUT)) for r in await super().handle(messages)]


def _altered(result: Message, all_faults: list[Change], first: int) -> Message:
    number = result.task_id // 2 - first
    if is_unaltered(result.task_id) or not 0 <= number < len(all_faults):
        return result
    return Message(result.task_id, result.epoch, all_faults[number](result.body))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("staleness", [0, 1])
def test_faulty_results_are_failed_results_and_the_run_learns_from_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staleness: int
) -> None:
    monkeypatch.setattr(rollout_assembly, "RolloutHandler", FaultyRolloutHandler)
    monkeypatch.setattr(reward_handler, "RewardHandler", FaultyRewardHandler)
    model = tiny.build_model_directory(tmp_path / "model")
    (tmp_path / "text.txt").write_text("a few words to think about " * 20)
    settings = load_settings(
        None,
        [
            f"model.path={model}", f"run.directory={tmp_path / 'run'}", "objective.name=rlp",
            f"corpus.path={tmp_path / 'text.txt'}", "corpus.window_tokens=32",
            "objective.parameters.num_positions=2", "sampling.group_size=3",
            "sampling.max_thought_tokens=6", f"learner.batch_tasks={BATCH_TASKS}",
            f"learner.steps={NUM_STEPS}", f"learner.max_staleness={staleness}",
            "learner.task_timeout_s=60",
        ],
        {},
    )  # fmt: skip
    assert run_single(settings) == 0
    directory = RunDirectory(tmp_path / "run")
    results = [r for record in read_journal(directory.journal) for r in record.results]
    assert [r.rollout.task.task_id for r in results] == list(range(NUM_STEPS * BATCH_TASKS))
    assert [r.rollout.task.batch for r in results] == [
        i // BATCH_TASKS for i in range(NUM_STEPS * BATCH_TASKS)
    ]
    num_faults = len(OF_ROLLOUT) + len(OF_REWARD)
    failed = [r.rollout.task.task_id for r in results if r.failure is not None]
    assert failed == list(range(1, 2 * num_faults, 2))
    assert not any("learner.task_timeout_s" in (r.failure or "") for r in results)
    summary = json.loads(directory.summary.read_text())
    assert (summary["lost"], summary["duplicated"], summary["tasks_failed"]) == (0, 0, len(failed))
    metrics = directory.read_metrics()
    assert all(math.isfinite(row["loss"]) and not row["skipped"] for row in metrics)
    assert metrics[-1]["results_refused"] > 0
