"""What every objective must keep: the built-in ones, unnamed, and one from outside the repository.

The promises are those of :mod:`forethought.testing.objective_contract`, which authors run on their own.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from forethought import estimators, objectives
from forethought.config import Settings, load_settings
from forethought.errors import InvalidInput
from forethought.objectives import Group, Objective
from forethought.objectives.parts.selection import SelectingObjective
from forethought.preflight import check_run
from forethought.testing.objective_contract import (
    CHECKS,
    DOCUMENTS,
    GROUP,
    Subject,
    chosen_of_group,
    document,
    importing_loads_no_torch,
    main,
    thought,
)
from tests.repository import ROOT

EXAMPLE = ROOT / "examples" / "objectives" / "priced_gain.py"
NAMES = objectives.names()
THINKING = [name for name in NAMES if objectives.load(name).thinks]
SELECTING = [name for name in THINKING if isinstance(objectives.load(name), SelectingObjective)]


def parameters_of(name: str) -> list[dict[str, Any]]:
    """The defaults, and every combination of what the objective knows of selecting positions."""
    known = type(objectives.load(name).config).model_fields
    wider = {"num_positions": 3, "target_tokens": 3}
    sets: list[dict[str, Any]] = [{}, {k: v for k, v in wider.items() if k in known}]
    if "positions" in known:
        kinds = ("marked", "entropy", "top_entropy", "all")
        sets += [{"positions": kind, **given} for kind in kinds for given in sets]
        sets += [{"positions": "marked", "uniform_share": 0.5}]
    return sets


SUBJECTS = [Subject(name, parameters) for name in NAMES for parameters in parameters_of(name)]
OUTSIDE = ("dotted", "folder")


@pytest.fixture
def subject(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Subject]:
    """A built-in objective, or the documented example from a place of its own under ``tmp_path``."""
    if isinstance(request.param, Subject):
        yield request.param
        return
    home = tmp_path / "outside"
    home.mkdir()
    shutil.copy(EXAMPLE, home / EXAMPLE.name)
    if request.param == "folder":
        yield Subject("priced_gain", folder=str(home))
        return
    (home / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Subject("outside.priced_gain", {"price": 0.5, "num_positions": 2})
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        monkeypatch.delitem(sys.modules, name)


# A file is imported alike whatever its parameters; every import is a process of its own.
CASES = [
    (subject, check)
    for subject in [*SUBJECTS, *OUTSIDE]
    for check in CHECKS
    if check is not importing_loads_no_torch or not getattr(subject, "parameters", None)
]


@pytest.mark.parametrize(
    ("subject", "check"),
    CASES,
    indirect=["subject"],
    ids=lambda given: getattr(given, "__name__", getattr(given, "name", given)),
)
def test_contract(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


def test_the_folder_is_found() -> None:
    assert {"ntp", "rlp", "rpt"} <= set(NAMES)
    assert not {"base", "positions", "grading", "prompts", "selection", "__init__"} & set(NAMES)


@pytest.mark.parametrize("name", SELECTING)
def test_positions_differ_by_seed(name: str) -> None:
    objective = objectives.load(name)
    chosen = {objective.positions(DOCUMENTS[4], Random(seed)) for seed in range(20)}
    assert () not in chosen
    assert len(chosen) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_lone_thought_has_the_reward_it_has_in_company(name: str) -> None:
    """Of the built-in ones with their defaults; a reward may be relative to its group."""
    objective = objectives.load(name)
    alone = [objective.rewards(chosen_of_group([i]))[0] for i in range(len(GROUP.thoughts_G))]
    assert objective.rewards(GROUP) == tuple(alone)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_parameters_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidInput, match=rf"objective '{name}' refuses .*no_such_key.*known: "):
        objectives.load(name, {"no_such_key": 1})


# A promise of the contract, and the code that breaks it and no other.
BREAKS: dict[str, str] = {
    "positions lie": """def positions(self, document, rng):
        return at(document, [0], 1)""",
    "positions are found": """def positions(self, document, rng):
        return ()""",
    "one finite number per thought: not finite": """def rewards(self, group):
        return (float("inf") if len(group.thoughts_G) == 1 else 1.0,) * len(group.thoughts_G)""",
    "one finite number per thought: 0 rewards": """def rewards(self, group):
        return () if len(group.thoughts_G) == 1 else (1.0,) * len(group.thoughts_G)""",
    "do not depend on the order": """def rewards(self, group):
        return tuple(map(float, range(len(group.thoughts_G))))""",
    "prompting opens": """def prompting(self, open_ids, close_ids):
        return Prompting((), close_ids, close_ids)""",
    "token weights are": """def token_weights(self, num_tokens_G):
        return (0.0,) * len(num_tokens_G)""",
    "imitation has one weight": """def imitation(self, rewards_G):
        return Imitation((1.0,), (1.0,))""",
    "predictions are": """def prediction(self, answer):
        return answer""",
    "declared likelihoods": "models = frozenset({'verdict'})",
    "loads no torch": "import torch",
    "unknown parameters": """class Config(BaseModel):
        price: float = 0.0""",
    "parameters survive": """class Config(NoParameters):
        def __eq__(self, other): return False""",
    "scheduled parameters": """def of_batch(self, batch):
        return other(self.config)""",
}
BROKEN = """
from pydantic import BaseModel, ConfigDict
from forethought.objectives import Group, Imitation, Objective
from forethought.objectives.parts.positions import at, uniform
from forethought.types import Prompting
class NoParameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
class Broken(Objective):
    Config = NoParameters
    def positions(self, document, rng):
        return uniform(document, 1, 1, rng)
    def rewards(self, group):
        return tuple(logprob - group.baseline_logprob for logprob in group.policy_logprobs_G)
    {broken}
def other(config):
    changed = Broken(config)
    changed.rewards = lambda group: (7.0,) * len(group.thoughts_G)
    return changed
"""


@pytest.mark.parametrize("promise", ["", *BREAKS])
def test_the_contract_names_the_check_that_fails(
    promise: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = BROKEN.format(broken=BREAKS.get(promise, ""))
    (tmp_path / "mine.py").write_text(code)
    status = main(["mine", "--folder", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    broken = [line for line in lines if line.startswith("FAIL")]
    assert status == bool(promise), broken
    assert len(broken) == bool(promise), broken
    assert all(promise in line for line in broken)
    assert sum(line.startswith("PASS") for line in lines) == len(CHECKS) - len(broken)


def test_what_cannot_be_loaded_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no_such_objective"]) == 2
    assert "no objective 'no_such_objective'" in capsys.readouterr().err


# By hand, from arXiv 2510.01265: p_policy(x_t | x_<t, c) = 0.8, 0.2, 0.4 and p_baseline(x_t | x_<t) = 0.4.
# Eq. 5: r = ln 2, ln 1/2, 0.  Eq. 7, G = 3: mean r = 0, A = 3/2 r.
GOLDEN_POLICY_G = (math.log(0.8), math.log(0.2), math.log(0.4))
GOLDEN_REWARDS_G = (0.6931471805599453, -0.6931471805599453, 0.0)
GOLDEN_ADVANTAGES_G = (1.0397207708399179, -1.0397207708399179, 0.0)


def test_rlp_golden_case() -> None:
    rlp = objectives.load("rlp")
    thoughts = (thought(1), thought(2), thought(4))
    rewards = rlp.rewards(Group((42,), thoughts, GOLDEN_POLICY_G, math.log(0.4)))
    assert rewards == pytest.approx(GOLDEN_REWARDS_G, abs=1e-12)
    (advantages,) = estimators.load(rlp.estimator).advantages([rewards])
    assert advantages == pytest.approx(GOLDEN_ADVANTAGES_G, abs=1e-12)
    assert rlp.token_weights([1, 2, 4]) == (1.0, 0.5, 0.25)  # eq. 8: the mean over each thought


def test_rlp_as_published_thinks_once_about_one_token() -> None:
    rlp = objectives.load("rlp")
    (position,) = rlp.positions(document(12), Random(0))
    assert len(position.target_ids_H) == 1
    seen = {rlp.positions(document(12), Random(seed))[0].index for seed in range(300)}
    assert seen == set(range(1, 12))  # uniform over every token that has a context


def test_rlp_thinks_where_the_corpus_marked() -> None:
    rlp = objectives.load("rlp", {"positions": "marked", "num_positions": 9, "target_tokens": 2})
    chosen = rlp.positions(document(8, marks=(7, 6, 3, 0, 3)), Random(0))
    assert [position.index for position in chosen] == [3, 6]  # 0 has no context, 7 no second token


REWARDS_BG = [[0.5, -1.25, 3.0], [2.0, 2.0], [1e-9, 1e6, -1e6, 0.1, 7.0]]


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others() -> None:
    advantages_BG = estimators.load("leave_one_out").advantages(REWARDS_BG)
    assert [len(group) for group in advantages_BG] == [len(group) for group in REWARDS_BG]
    for rewards, advantages in zip(REWARDS_BG, advantages_BG, strict=True):
        for i, advantage in enumerate(advantages):
            others = rewards[:i] + rewards[i + 1 :]
            assert advantage == pytest.approx(rewards[i] - sum(others) / len(others), abs=1e-6)
        assert sum(advantages) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("reward", [0.0, 0.1, -3.7, 1e8])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_teach_nothing(reward: float, size: int) -> None:
    (advantages,) = estimators.load("leave_one_out").advantages([[reward] * size])
    assert advantages == pytest.approx([0.0] * size, abs=1e-15 * max(1.0, abs(reward)) * size)


@pytest.mark.parametrize("name", THINKING)
def test_a_group_of_one_is_refused(name: str) -> None:
    least = estimators.load(objectives.load(name).estimator).min_group_size
    assert check_run(settings(name, least)).thinks
    if least > 1:
        with pytest.raises(InvalidInput) as refused:
            check_run(settings(name, 1))
        assert f"sampling.group_size is 1; expected at least {least}" in str(refused.value)


def test_rlp_needs_two_thoughts_to_compare() -> None:
    with pytest.raises(InvalidInput, match=r"group_size is 1; expected at least 2 .*leave_one_out"):
        check_run(settings("rlp", 1))


def settings(name: str, group_size: int) -> Settings:
    words = [f"objective.name={name}", f"sampling.group_size={group_size}"]
    return load_settings(None, words, {})


PLUGIN = '''
"""Somebody else's objective."""
{imports}
from pydantic import BaseModel, ConfigDict
from forethought.objectives import Group, Objective
from forethought.objectives.parts.grading import GroundTruth, TokenBytes
class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    bonus: float = 1.0
class Mine(Objective):
    Config = Config
    def positions(self, document, rng):
        return ()
    def rewards(self, group):
        return (self.config.bonus,) * len(group.thoughts_G)
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package ``ftplug`` with one good objective and several that are not."""
    package = tmp_path / "ftplug"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(PLUGIN.format(imports=""))
    (package / "lacks.py").write_text(PLUGIN.format(imports="import no_such_distribution"))
    (package / "prefixed.py").write_text(PLUGIN.format(imports="import ftplu"))
    (package / "broken.py").write_text("raise RuntimeError('half written')")
    (package / "nothing.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("ftplug")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_a_dotted_name_loads_somebody_elses_objective(plugins: Path) -> None:
    objective = objectives.load("ftplug.mine", {"bonus": 2.5})
    assert isinstance(objective, Objective)
    assert objective.rewards(GROUP) == (2.5,) * 4


@pytest.mark.parametrize(
    "name",
    ["no_such", "ftplug.absent", "absent.entirely", "absent", "", ".", "..rlp", "rlp.", "a..b"],
)
def test_a_missing_objective_is_refused_in_words(plugins: Path, name: str) -> None:
    with pytest.raises(
        InvalidInput, match="expected a file of forethought/objectives, or the dotted"
    ):
        objectives.load(name)


@pytest.mark.parametrize(
    "name", ["ftplug.nothing", "parts", "forethought.objectives.parts.positions"]
)
def test_a_module_without_an_objective_is_refused_in_words(plugins: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="defines 0 objectives; expected exactly one"):
        objectives.load(name)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("ftplug.lacks", "no_such_distribution"), ("ftplug.prefixed", "ftplu")],
)
def test_what_an_objective_lacks_is_named(plugins: Path, name: str, missing: str) -> None:
    with pytest.raises(ModuleNotFoundError) as raised:
        objectives.load(name)
    assert raised.value.name == missing
    assert not isinstance(raised.value, InvalidInput)


def test_an_objective_that_fails_to_import_raises_its_own_error(plugins: Path) -> None:
    with pytest.raises(RuntimeError, match="half written"):
        objectives.load("ftplug.broken")


def test_a_missing_estimator_is_refused_in_words() -> None:
    with pytest.raises(InvalidInput, match=r"no estimator 'no_such'"):
        estimators.load("no_such")
