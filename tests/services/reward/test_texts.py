"""Objectives that read thoughts as text: the same texts from the queue and over HTTP or gRPC."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forethought import estimators, objectives
from forethought.errors import InvalidInput
from forethought.objectives import Group
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    Task,
    Thought,
    VersionSpan,
)
from services.reward.groups import GroupQuery
from services.reward.jobs import ScoredGroup, ScoreJob, run_jobs
from services.reward.scoring import Scorer
from tests.repository import ROOT
from tests.tiny import CLOSE_ID, OPEN_ID, build_model_directory, serve

EXAMPLES = str(ROOT / "examples" / "objectives")
PROMPTING = Prompting(bridge_ids=(OPEN_ID,), close_ids=(CLOSE_ID,))


def thought(text: bytes, closed: bool, prediction: bytes = b"") -> Thought:
    ids = tuple(text) + ((CLOSE_ID,) if closed else ()) + tuple(prediction)
    return Thought(ids, (-0.1,) * len(ids), (VersionSpan(0, len(ids)),), closed, len(prediction))


THOUGHTS_G = (thought(b"ab", True), thought(b"abcdef", False), thought(b"a", True, b"xyz"))


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    served = serve(build_model_directory(tmp_path_factory.mktemp("texts")), "policy")
    return Scorer(served, None, 400, objectives={"rlp", "brief_rlp"}, objective_folder=EXAMPLES)


def rollout(objective: str) -> Rollout:
    task = Task(
        task_id=1, epoch=1, batch=0, min_version=0, objective=objective, objective_json="{}",
        document=Document("d", "s", (65, 66, 67)), positions_K=(Position(2, (67,)),),
        prompting=PROMPTING, sampling=Sampling(3, 9), seed=0,
    )  # fmt: skip
    return Rollout(task, (THOUGHTS_G,), "rollout-a")


def brief(gains_G: tuple[float, ...]) -> tuple[float, ...]:
    """Two, six and one character: close token and prediction do not count."""
    return tuple(gain - 0.001 * size for gain, size in zip(gains_G, (2, 6, 1), strict=True))


def test_texts_leave_out_close_token_and_prediction() -> None:
    group = Group((1,), THOUGHTS_G, (), 0.0, decode=lambda ids: bytes(ids).decode())
    assert group.texts_G == ("ab", "abcdef", "a")


def test_texts_leave_out_a_close_marker_of_several_tokens() -> None:
    thoughts_G = (thought(b"ab", True, b"xyz"), thought(b"a", False))
    group = Group(
        (1,), thoughts_G, (), 0.0, decode=lambda ids: bytes(ids).decode(), num_close_tokens=2
    )
    assert group.texts_G == ("a", "a")


def test_a_group_without_a_tokenizer_says_so() -> None:
    with pytest.raises(InvalidInput, match=r"pass decode=tokenizer\.decode"):
        Group((1,), THOUGHTS_G, (), 0.0).texts_G  # noqa: B018


def test_rollouts_are_rewarded_by_text(scorer: Scorer) -> None:
    plain, priced = scorer.score_rollouts([rollout("rlp"), rollout("brief_rlp")])
    assert plain.failure is None
    assert priced.rewards_KG[0] == pytest.approx(brief(plain.rewards_KG[0]), abs=1e-9)


def test_a_rollouts_prompting_says_how_long_the_marker_is(scorer: Scorer) -> None:
    prompting = replace(PROMPTING, close_ids=(66, CLOSE_ID), num_close_tokens=2)
    given = [rollout("rlp"), rollout("brief_rlp")]
    given = [replace(r, task=replace(r.task, prompting=prompting)) for r in given]
    plain, priced = scorer.score_rollouts(given)
    gains = zip(plain.rewards_KG[0], (1, 6, 0), strict=True)  # "ab" + close: its b is the marker's
    expected = [gain - 0.001 * size for gain, size in gains]
    assert priced.rewards_KG[0] == pytest.approx(expected, abs=1e-9)


def test_requests_are_rewarded_by_text(scorer: Scorer) -> None:
    query = GroupQuery((65, 66), (67,), PROMPTING, THOUGHTS_G)
    jobs = [
        ScoreJob((query,), objectives.load(name, folder=EXAMPLES), estimators.load("none"))
        for name in ("rlp", "brief_rlp")
    ]
    (plain,), (priced,) = run_jobs(scorer, jobs)  # type: ignore[misc]
    assert isinstance(plain, ScoredGroup)
    assert isinstance(priced, ScoredGroup)
    assert priced.rewards_G == pytest.approx(brief(plain.rewards_G), abs=1e-9)
    assert priced.advantages_G == priced.rewards_G


def test_the_example_is_sixteen_lines_at_most() -> None:
    code = (Path(EXAMPLES) / "brief_rlp.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "own-objective.md").read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 16
    assert f"```python\n{code}```" in page
