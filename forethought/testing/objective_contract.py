"""The contract of objectives, as checks that authors run on third-party objectives.

    python -m forethought.testing.objective_contract mypackage.mine
    python -m forethought.testing.objective_contract mine --folder objectives

or, one test per promise, in a pytest suite:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(Subject("mine", folder="objectives"))

Design: the checks are part of the library and the tests of the built-in objectives run the same ones, so
that third-party and built-in objectives meet the same contract. They need neither pytest nor a model: a
broken promise is an :class:`AssertionError` that reports the value found. They cannot check that a reward
is the intended one; test that by hand for a group or two.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from forethought import estimators, objectives
from forethought.errors import InvalidInput
from forethought.objectives import Group, Objective
from forethought.objectives.parts.grading import GroundTruth, TokenBytes
from forethought.types import Document, Thought, VersionSpan

LIKELIHOODS = frozenset({"policy", "baseline", "prediction"})
"""The likelihoods that an objective may request from a scorer."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The objective under test: a built-in name, a dotted name, or a file of ``folder``.

    Example:
        ``Subject("priced_gain", {"price": 0.1}, folder="examples/objectives")``
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    folder: str = ""

    def load(self, **changes: Any) -> Objective:
        """The objective with its parameters, updated by ``changes``."""
        return objectives.load(self.name, {**self.parameters, **changes}, self.folder)


def document(
    num_tokens: int, marks: tuple[int, ...] = (), weights_N: tuple[float, ...] = ()
) -> Document:
    """A document of distinct tokens; with ``weights_N``, a question (masked) and its answer."""
    ids = tuple(range(100, 100 + num_tokens))
    entropies_N = tuple((7 * i % 5) / 2 for i in range(num_tokens))
    return Document("füße.txt#1:0", "füße", ids, (), marks, entropies_N, weights_N)


DOCUMENTS = (
    document(0),
    document(1),
    document(2, marks=(1,)),
    document(5, marks=(4, 0, 9, 2, 2)),  # unordered, repeated, out of range
    document(40, marks=tuple(range(40))),
    document(12, weights_N=(0.0,) * 5 + (1.0,) * 7),
)
"""Empty, tiny, irregularly marked, long, and a question with its answer; all have entropies."""


def thought(num_tokens: int, closed: bool = True) -> Thought:
    """A thought of ``num_tokens`` tokens (0 for an empty one)."""
    spans = (VersionSpan(0, num_tokens),) if num_tokens else ()
    return Thought(tuple(range(num_tokens)), (-0.5,) * num_tokens, spans, closed)


GROUP = Group(
    target_ids_H=(42, 43),
    thoughts_G=(thought(3), thought(0, closed=False), thought(7, closed=False), thought(1)),
    policy_logprobs_G=(-0.25, -4.0, -1.0, -11.5),
    baseline_logprob=-1.5,
    predictions_G=(
        TokenBytes((42,), (b" a",)),
        None,
        TokenBytes((9, 8), (b" a", b"b")),
        TokenBytes((None, 7), (b"{", b"x")),
    ),
    truth=GroundTruth(b" ab cd", (2, 3, 6)),
    prediction_logprobs_G=(-0.5, -math.inf, -1.5, -math.inf),
    decode=lambda token_ids: " ".join(map(str, token_ids)),
)
"""Closed, empty, truncated and short thoughts, with right, wrong and absent predictions."""


def chosen_of_group(indices: Sequence[int]) -> Group:
    """:data:`GROUP` reduced to the thoughts at ``indices``, in that order."""
    return Group(
        GROUP.target_ids_H,
        tuple(GROUP.thoughts_G[i] for i in indices),
        tuple(GROUP.policy_logprobs_G[i] for i in indices),
        GROUP.baseline_logprob,
        tuple(GROUP.predictions_G[i] for i in indices),
        GROUP.truth,
        tuple(GROUP.prediction_logprobs_G[i] for i in indices),
        GROUP.decode,
    )


def positions_lie_in_the_document(subject: Subject) -> None:
    """Strictly increasing, in [1, N-H], with the document's own target, and deterministic per seed."""
    objective = subject.load()
    for given in DOCUMENTS:
        for seed in range(5):
            chosen = objective.positions(given, Random(seed))
            _are_places(given, chosen)
            again = objective.positions(given, Random(seed))
            assert again == chosen, f"seed {seed} gave {chosen} and then {again}"


def positions_are_found_where_the_objective_thinks(subject: Subject) -> None:
    """At least one position among :data:`DOCUMENTS`, and never more than ``max_positions``."""
    objective = subject.load()
    counts = [len(objective.positions(given, Random(0))) for given in DOCUMENTS]
    assert not objective.thinks or any(counts), "no document has a position"
    for given, count in zip(DOCUMENTS, counts, strict=True):
        most = objective.max_positions(max(1, len(given.token_ids_N)))
        assert count <= most, f"{count} positions, max_positions says {most}"


def rewards_are_one_finite_number_per_thought(subject: Subject) -> None:
    """Also for empty and truncated thoughts and groups of one, and deterministic."""
    objective = subject.load()
    for indices in ((0, 1, 2, 3), (1,), (2,)):
        group = chosen_of_group(indices)
        rewards_G = objective.rewards(group)
        assert len(rewards_G) == len(indices), f"{len(rewards_G)} rewards, {len(indices)} thoughts"
        assert all(map(math.isfinite, rewards_G)), f"not finite: {rewards_G}"
        assert objective.rewards(group) == rewards_G, "a second call returns different rewards"


def rewards_do_not_depend_on_the_order_of_thoughts(subject: Subject) -> None:
    """A group's thoughts arrive in the order in which they finished."""
    objective, order = subject.load(), (2, 0, 3, 1)
    rewards_G = objective.rewards(GROUP)
    shuffled_G = objective.rewards(chosen_of_group(order))
    assert len(rewards_G) == len(order), f"{len(rewards_G)} rewards, {len(order)} thoughts"
    assert shuffled_G == tuple(rewards_G[i] for i in order), f"{rewards_G}, then {shuffled_G}"


def prompting_opens_and_closes_with_the_markers(subject: Subject) -> None:
    """The no-think scorer removes the open marker's mass, and a truncated thought gets a forced close."""
    for open_ids, close_ids in (((39,), (40,)), ((38, 39), (40, 41, 42))):
        prompting = subject.load().prompting(open_ids, close_ids)
        bridge = prompting.bridge_ids[-len(open_ids) :]
        close = prompting.close_ids[: len(close_ids)]
        assert bridge == open_ids, f"the bridge ends with {bridge}, expected {open_ids}"
        assert close == close_ids, f"the close begins with {close}, not {close_ids}"


def token_weights_are_positive_and_finite(subject: Subject) -> None:
    """One for each thought."""
    weights_G = subject.load().token_weights([1, 4, 2])
    assert len(weights_G) == 3, f"{len(weights_G)} weights of 3 thoughts"
    assert all(math.isfinite(w) and w > 0 for w in weights_G), f"got {weights_G}"


def imitation_has_one_weight_per_thought_and_answer(subject: Subject) -> None:
    """None, or a finite non-negative weight for each."""
    imitation = subject.load().imitation((0.5, -1.0, 2.0))
    if imitation is not None:
        for weights_G in (imitation.thought_weights_G, imitation.answer_weights_G):
            assert len(weights_G) == 3, f"{len(weights_G)} weights of 3 thoughts"
            assert all(math.isfinite(w) and w >= 0 for w in weights_G), f"got {weights_G}"


def predictions_are_token_bytes_or_none(subject: Subject) -> None:
    """An empty answer predicts nothing."""
    objective = subject.load()
    found = objective.prediction(TokenBytes((42, 43), (b" a", b"b")))
    assert found is None or isinstance(found, TokenBytes), f"got {type(found).__name__}"
    assert objective.prediction(TokenBytes((), ())) is None, "an empty answer gave a prediction"


def declared_likelihoods_and_estimator_exist(subject: Subject) -> None:
    """Known likelihoods, an existing estimator, and finite advantages at its minimum group size."""
    objective = subject.load()
    assert objective.models <= LIKELIHOODS, f"unknown likelihoods {objective.models - LIKELIHOODS}"
    assert objective.prediction_tokens >= 0, f"prediction_tokens is {objective.prediction_tokens}"
    estimator = estimators.load(objective.estimator)
    least = estimator.min_group_size
    rewards_BG = [[0.5] * least, [1.5, *[-0.5] * least]]
    advantages_BG = estimator.advantages(rewards_BG)
    assert [len(group) for group in advantages_BG] == [least, least + 1]
    assert all(math.isfinite(a) for group in advantages_BG for a in group)


def unknown_parameters_are_refused(subject: Subject) -> None:
    """A typo in a configuration must not silently become a default."""
    message = ""
    try:
        subject.load(no_such_key=1)
    except InvalidInput as error:
        message = str(error)
    assert message, 'no_such_key was accepted; expected ConfigDict(extra="forbid")'
    assert "no_such_key" in message, message


def parameters_survive_json_and_toml(subject: Subject) -> None:
    """Tasks contain parameters as JSON, configurations as TOML."""
    import tomli_w

    config = subject.load().config
    text = config.model_dump_json()
    toml = tomli_w.dumps({"parameters": json.loads(text)})
    for parameters in (json.loads(text), tomllib.loads(toml)["parameters"]):
        again = objectives.load(subject.name, parameters, subject.folder).config
        assert again == config, f"{config} came back as {again}"


def scheduled_parameters_round_trip_through_tasks(subject: Subject) -> None:
    """The parameters in a task of a batch recreate the same objective where it is scored."""
    objective = subject.load()
    for batch in (0, 1, 1000):
        carried = objective.of_batch(batch).of_task(Random(batch))
        parameters = json.loads(carried.config.model_dump_json())
        again = objectives.load(subject.name, parameters, subject.folder)
        assert again.rewards(GROUP) == carried.rewards(GROUP), f"of batch {batch}"


def importing_loads_no_torch(subject: Subject) -> None:
    """Settings are validated, and a byte-level reward service runs, without torch."""
    code = "import sys; from forethought import objectives; "
    code += f"objectives.load({subject.name!r}, {{}}, {subject.folder!r}); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False"], (
        "importing it loads torch; import torch inside a function, or not at all"
    )


def _are_places(given: Document, chosen: Sequence[Any]) -> None:
    ids, indices = given.token_ids_N, [position.index for position in chosen]
    assert indices == sorted(set(indices)), f"not strictly increasing: {indices}"
    for position in chosen:
        end = position.index + len(position.target_ids_H)
        assert position.target_ids_H, f"no target at {position.index}"
        assert position.index >= 1, f"no context at {position.index}"
        assert end <= len(ids), f"the target at {position.index} ends at {end} of {len(ids)} tokens"
        assert position.target_ids_H == ids[position.index : end], (
            f"the target at {position.index} is not the document's text"
        )


CHECKS: tuple[Callable[[Subject], None], ...] = (
    positions_lie_in_the_document,
    positions_are_found_where_the_objective_thinks,
    rewards_are_one_finite_number_per_thought,
    rewards_do_not_depend_on_the_order_of_thoughts,
    prompting_opens_and_closes_with_the_markers,
    token_weights_are_positive_and_finite,
    imitation_has_one_weight_per_thought_and_answer,
    predictions_are_token_bytes_or_none,
    declared_likelihoods_and_estimator_exist,
    unknown_parameters_are_refused,
    parameters_survive_json_and_toml,
    scheduled_parameters_round_trip_through_tasks,
    importing_loads_no_torch,
)
"""The checks, one per promise: functions of a subject that raise ``AssertionError`` if it is broken."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every check on one objective; returns 1 if a promise is broken, 2 if it cannot be loaded."""
    parser = argparse.ArgumentParser("python -m forethought.testing.objective_contract")
    parser.add_argument("name", help="a dotted name, or the name of a file of --folder")
    parser.add_argument("--folder", default="", help="a folder of objectives")
    parser.add_argument("--parameters", default="{}", help="JSON, such as '{\"price\": 0.1}'")
    given = parser.parse_args(arguments)
    subject = Subject(given.name, json.loads(given.parameters), given.folder)
    try:
        subject.load()
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    passed = [
        _passes(subject, check) for check in CHECKS
    ]  # run all of them, even after one has failed
    return int(not all(passed))


def _passes(subject: Subject, check: Callable[[Subject], None]) -> bool:
    name = check.__name__.replace("_", " ")
    try:
        check(subject)
    except AssertionError as failed:
        print(f"FAIL  {name}: {failed}")
    except Exception:  # third-party code failed: its traceback is the best report
        print(f"FAIL  {name}:\n{traceback.format_exc()}")
    else:
        print(f"PASS  {name}")
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
