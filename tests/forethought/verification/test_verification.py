"""Verifiers: equality as text and as mathematics, and no answer can block or crash the caller."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
from collections.abc import Iterator

import pytest

from forethought import objectives
from forethought.config import load_settings
from forethought.errors import InvalidInput, NotInstalled
from forethought.verification import mathematics
from forethought.verification.answers import ExactVerifier
from forethought.verification.mathematics import MathVerifier
from services.reward.assembly import load_objectives

pytestmark = pytest.mark.timeout(240)  # the first answer waits for the import of sympy

TIMEOUT_S = 4.0
ENDLESS = "9^{9^{9}}"  # one power in C, which no Python signal handler interrupts


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    pytest.importorskip("math_verify")
    verifier = MathVerifier(TIMEOUT_S)
    verifier.are_right("1", ["2"])
    yield verifier
    verifier._end()


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("6", "6", True),
        ("6", " 6\n", True),
        ("6", "6.0", False),
        ("6", "", False),
        ("", "", False),
        ("a b", "a b", True),
    ],
)
def test_exact(truth: str, answer: str, right: bool) -> None:
    assert ExactVerifier().are_right(truth, [answer]) == (right,)


@pytest.mark.parametrize(
    ("truth", "right", "wrong"),
    [
        ("6", "6.0", "7"),
        (r"\frac{1}{2}", "0.5", "0.25"),
        (r"\frac12", "1/2", "2/1"),
        (r"$\frac{1}{2}$", r"\dfrac{2}{4}", r"\dfrac{2}{3}"),
        (r"\{1, 2\}", r"\{2, 1\}", r"\{1, 3\}"),
        ("[2,5)", "[2, 5)", "[2,5]"),
        ("1,000", "1000", "1"),
        ("2^{10}", "1024", "1023"),
        ("x=3", "3", "4"),
        (r"\text{Paris}", "Paris", "London"),
        ("B", "B", "C"),
        (r"\sqrt{8}", r"2\sqrt{2}", r"2\sqrt{3}"),
        (r"The answer is \boxed{12}", "12", "13"),
    ],
)
def test_mathematics(verifier: MathVerifier, truth: str, right: str, wrong: str) -> None:
    assert verifier.are_right(truth, [right, wrong, right, ""]) == (True, False, True, False)


@pytest.mark.timeout(30)
def test_an_unverifiable_answer_is_wrong_counted_logged_and_over_in_time(
    verifier: MathVerifier, caplog: pytest.LogCaptureFixture
) -> None:
    """The next answers are verified as usual."""
    late = verifier.num_timed_out
    with caplog.at_level(logging.WARNING):
        assert verifier.are_right("3", [ENDLESS]) == (False,)
    assert verifier.num_timed_out == late + 1
    assert "cannot be verified (late) and counts as wrong" in caplog.text
    assert verifier.are_right("3", ["3.0", "4"]) == (True, False)


def test_a_process_that_dies_fails_only_its_answer(verifier: MathVerifier) -> None:
    verifier.are_right("1", ["2"])
    child, failed = verifier._child, verifier.num_failed
    assert child is not None
    os.kill(child._process.pid, signal.SIGKILL)
    assert verifier.are_right("1", ["1.0"]) == (False,)
    assert verifier.num_failed == failed + 1
    assert verifier.are_right("1", ["1.0"]) == (True,)


def test_a_process_ends_with_its_verifier() -> None:
    pytest.importorskip("math_verify")
    verifier = MathVerifier(TIMEOUT_S)
    verifier.are_right("1", ["2"])
    assert verifier._child is not None
    process = verifier._child._process
    del verifier
    assert process.poll() == -signal.SIGKILL


async def test_the_event_loop_is_not_blocked_while_a_thread_verifies(
    verifier: MathVerifier,
) -> None:
    """As in the scorer: signals, which only a main thread may set, are set in the child."""
    ticks = 0
    asked = asyncio.create_task(asyncio.to_thread(verifier.are_right, "2", [ENDLESS, "2.0"]))
    while not asked.done():
        await asyncio.sleep(0.05)
        ticks += 1
    assert await asked == (False, True)
    assert ticks > TIMEOUT_S / 0.05 / 4


def test_without_the_library_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mathematics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"forethought\[math\].*verifier = 'exact'"):
        MathVerifier(TIMEOUT_S)


def test_without_the_library_the_reward_service_starts_and_offers_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "math_verify" else find_spec(name)
    )
    offered = load_objectives(load_settings(None, (), {}))
    assert offered.keys() == {*objectives.names()} - {"rlvr"}
    with pytest.raises(NotInstalled, match=r"forethought\[math\]"):
        load_objectives(load_settings(None, ("objective.name=rlvr",), {}))
    exact = "objective.parameters={verifier = 'exact'}"
    assert "rlvr" in load_objectives(load_settings(None, ("objective.name=rlvr", exact), {}))
