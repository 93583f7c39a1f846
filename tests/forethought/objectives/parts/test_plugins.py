"""A folder of one's own objectives: found, loaded once, refused with a reason, and trained with."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from forethought import objectives
from forethought.config import load_settings
from forethought.errors import InvalidInput
from forethought.objectives import Group
from forethought.preflight import check_run
from forethought.run.journal import read_journal
from forethought.testing.objective_contract import (
    Subject,
    rewards_do_not_depend_on_the_order_of_thoughts,
)
from forethought.types import (
    Document,
    Position,
    Prompting,
    Rollout,
    Sampling,
    Task,
    Thought,
    VersionSpan,
)  # fmt: skip
from services.reward.assembly import load_objectives
from services.reward.scoring import Scorer
from tests.e2e.processes import BATCH_TASKS, Cluster
from tests.repository import ROOT
from tests.tiny import CLOSE_ID, OPEN_ID, build_model_directory, serve

EXAMPLE = ROOT / "examples" / "objectives" / "priced_gain.py"
MINE = '''
"""What a thought is worth to me: a constant."""
from __future__ import annotations
from pydantic import BaseModel, ConfigDict
from forethought.objectives import Group, Objective
from . import _shared
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    bonus: float | None = 1.0
class Mine(Objective):
    Config = Config
    def positions(self, document, rng):
        return ()
    def rewards(self, group):
        return (self.config.bonus * _shared.FACTOR,) * len(group.thoughts_G)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "objectives"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    (folder / "_shared.py").write_text("FACTOR = 2.0\n")
    (folder / "notes.txt").write_text("no objective")
    return folder


def test_files_are_named_by_their_stem(folder: Path) -> None:
    built_in = objectives.names()
    assert objectives.names(str(folder)) == [*built_in, "mine"]
    objective = objectives.load("mine", {"bonus": 2.5}, str(folder))
    assert type(objective).__name__ == "Mine"
    assert type(objectives.load("mine", folder=str(folder))) is type(objective)  # imported once
    assert type(objectives.load("rlp", folder=str(folder))).__name__ == "Rlp"


def test_without_the_folder_there_is_no_such_objective(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no objective 'mine'.*objective\.folder=FOLDER"):
        objectives.load("mine")
    with pytest.raises(InvalidInput, match=f"a file of {folder}"):
        objectives.load("other", folder=str(folder))
    with pytest.raises(InvalidInput, match="no objective '_shared'"):
        objectives.load("_shared", folder=str(folder))


def test_two_folders_are_two_worlds(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(MINE)
    (other / "_shared.py").write_text("FACTOR = 3.0\n")
    one, two = (objectives.load("mine", folder=str(f)) for f in (folder, other))
    assert type(one) is not type(two)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("rlp.py", MINE, "rlp.py has the name of a built-in one"),
        ("ntp.py", MINE, "ntp.py has the name of a built-in one"),
        ("my-own.py", MINE, "my-own.py has an invalid name"),
    ],
)
def test_names_that_cannot_be_are_refused(folder: Path, name: str, code: str, message: str) -> None:
    (folder / name).write_text(code)
    for ask in (
        lambda: objectives.names(str(folder)),
        lambda: objectives.load("rlp", folder=str(folder)),
    ):
        with pytest.raises(InvalidInput, match=message):
            ask()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def half(:", r"bad\.py does not import: SyntaxError"),
        (
            "import no_such_distribution",
            r"bad\.py does not import: ModuleNotFoundError.*no_such_dist",
        ),
        (
            "raise RuntimeError('half written')",
            r"bad\.py does not import: RuntimeError: half written",
        ),
        ("x = 1", r"bad\.py defines 0 objectives"),
    ],
)
def test_a_file_that_is_no_objective_stops_the_reward_service_at_start(
    folder: Path, code: str, message: str
) -> None:
    (folder / "bad.py").write_text(code)
    settings = load_settings(None, (f"objective.folder={folder}",), {})
    with pytest.raises(InvalidInput, match=message):
        load_objectives(settings)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"objective\.folder .*nowhere is not a folder"):
        check_run(load_settings(None, (f"objective.folder={tmp_path / 'nowhere'}",), {}))


def test_learner_and_reward_service_take_it_from_the_settings(folder: Path, tmp_path: Path) -> None:
    words = (f"objective.folder={folder}", "objective.name=mine", "objective.parameters.bonus=4")
    settings = load_settings(None, words, {})
    assert check_run(settings).config.bonus == 4
    loaded = load_objectives(settings)
    assert loaded.keys() == {*objectives.names(), "mine"}
    assert loaded["mine"].config.bonus == 4
    served = serve(build_model_directory(tmp_path / "model"), "policy")
    scorer = Scorer(served, None, 400, objectives=loaded, objective_folder=str(folder))
    [scored] = scorer.score_rollouts([rollout_of("mine", {"bonus": 5.0})])
    assert scored.error is None
    assert scored.rewards_KG == ((10.0, 10.0),)


def rollout_of(objective: str, parameters: dict[str, float]) -> Rollout:
    task = Task(
        task_id=1, epoch=1, batch=0, min_version=0, objective=objective,
        objective_json=json.dumps(parameters), document=Document("d", "s", (1, 2, 3, 4)),
        positions_K=(Position(2, (3,)),), prompting=Prompting((OPEN_ID,), (CLOSE_ID,)),
        sampling=Sampling(2, 4), seed=0,
    )  # fmt: skip
    thought = Thought((7, CLOSE_ID), (-0.1, -0.1), (VersionSpan(0, 2),), closed=True)
    return Rollout(task, ((thought, thought),), "rollout-a")


def test_the_documented_objective_is_the_example_and_is_short() -> None:
    page = (ROOT / "docs" / "own-objective.md").read_text(encoding="utf-8")
    code = EXAMPLE.read_text(encoding="utf-8")
    assert f"```python\n{code}```" in page
    assert len(code.splitlines()) < 60


def test_the_documented_rewards_are_those_of_the_example() -> None:
    """The figures of the page: gains of ln 2 and 0, ten tokens too many at 0.02."""
    objective = objectives.load("priced_gain", folder=str(EXAMPLE.parent))
    thoughts_G = tuple(
        Thought(tuple(range(n)), (-0.1,) * n, (VersionSpan(0, n),), closed=True) for n in (4, 14)
    )
    group = Group((42,), thoughts_G, (math.log(1 / 2), math.log(1 / 4)), math.log(1 / 4))
    assert objective.rewards(group) == pytest.approx((math.log(2), -0.2), abs=1e-12)


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_two_steps_are_trained_with_the_example_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed, the scorer and the lesson all take it from the folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(EXAMPLE, folder)
    monkeypatch.setenv("FORETHOUGHT_OBJECTIVE_FOLDER", str(folder))
    words = ("objective.name=priced_gain", "objective.parameters={price = 0.5, free_tokens = 2}")
    with Cluster("memory://", tmp_path) as cluster:
        cluster.whole_run("priced", "learner.steps=2", *words)
        records = list(read_journal(cluster.directory("priced").journal))
        summary = cluster.summary("priced")
    assert (summary["tasks_trained"], summary["tasks_failed"]) == (2 * BATCH_TASKS, 0)
    priced = 0
    for result in (result for record in records for result in record.results):
        assert result.rollout.task.objective == "priced_gain"
        (thoughts_G,), (rewards_G,) = result.rollout.thoughts_KG, result.rewards_KG
        (logprobs_G,), (baseline,) = result.policy_logprobs_KG, result.baseline_logprobs_K
        for t, reward, logprob in zip(thoughts_G, rewards_G, logprobs_G, strict=True):
            cost = 0.5 * max(0, len(t.thought_ids) - 2)
            priced += cost > 0
            assert reward == pytest.approx(logprob - baseline - cost, abs=1e-5)
    assert priced
    assert [row["skipped"] for row in cluster.directory("priced").read_metrics()] == [False, False]


def test_the_contract_reports_a_wrong_number_of_rewards_in_words(folder: Path) -> None:
    (folder / "short.py").write_text(MINE.replace("len(group.thoughts_G)", "2"))
    subject = Subject("short", {}, str(folder))
    with pytest.raises(AssertionError, match="2 rewards, 4 thoughts"):
        rewards_do_not_depend_on_the_order_of_thoughts(subject)
