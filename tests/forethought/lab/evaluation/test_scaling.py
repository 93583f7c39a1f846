"""The power law: known parameters are recovered, and undetermined ones are reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forethought.errors import InvalidInput
from forethought.lab.evaluation.scaling import fit_law, limit_interval, why_no_fit
from forethought.run.checkpoints import Checkpoint
from forethought.run.cost import compute_of
from forethought.run.directory import RunDirectory


@pytest.mark.parametrize(
    ("amplitude", "exponent", "limit"),
    [(-40.0, 0.5, 0.45), (-1e6, 1.0, 0.97), (3.0, 0.25, 0.1)],
)
def test_known_parameters_are_recovered(amplitude: float, exponent: float, limit: float) -> None:
    """The third is a falling error rate; compute is in FLOPs, so amplitudes have any size."""
    compute = np.geomspace(1e4, 1e8, 12) * (100 if exponent == 1.0 else 1)
    exact = amplitude / compute**exponent + limit
    found = fit_law(list(compute), list(exact))
    assert found.exponent == pytest.approx(exponent, rel=1e-3)
    assert found.amplitude == pytest.approx(amplitude, rel=1e-2)
    assert found.limit == pytest.approx(limit, abs=1e-4)
    assert found.r_squared > 0.999999
    assert (found.num_points, found.caveat) == (12, "")
    assert found.at(compute) == pytest.approx(exact, abs=1e-4)


def test_the_fit_tolerates_noise() -> None:
    compute = np.geomspace(1e10, 1e12, 24)
    exact = -3e4 / compute**0.5 + 0.45
    limits, exponents = [], []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.004, 24)
        found = fit_law(list(compute), list(exact + noise))
        limits.append(found.limit)
        exponents.append(found.exponent)
        assert found.r_squared > 0.98
    assert np.mean(limits) == pytest.approx(0.45, abs=0.01)
    assert np.mean(exponents) == pytest.approx(0.5, abs=0.05)
    assert max(abs(limit - 0.45) for limit in limits) < 0.03


def test_points_without_curvature_have_no_limit() -> None:
    compute = np.geomspace(1e6, 1e9, 8)
    found = fit_law(list(compute), list(0.05 * np.log10(compute)))
    assert "P*" in found.caveat
    assert found.r_squared > 0.99


def test_too_few_points_are_refused_with_a_reason() -> None:
    compute, accuracy = [0.0, 1e3, 2e3, 2e3, 4e3], [0.1, 0.2, 0.3, 0.3, 0.4]
    assert why_no_fit(compute, accuracy).startswith("3 checkpoints with different training compute")
    with pytest.raises(InvalidInput, match="expected at least 4"):
        fit_law(compute, accuracy)
    assert "the same at every" in why_no_fit([0.0, 1.0, 2.0, 3.0, 4.0], [0.1] + [0.5] * 4)
    assert why_no_fit([*compute, 8e3], [*accuracy, 0.45]) == ""


def test_the_untrained_model_is_not_fitted() -> None:
    compute = [0.0, *np.geomspace(1e3, 1e6, 6)]
    accuracy = [0.05, *(-2 / np.geomspace(1e3, 1e6, 6) ** 0.5 + 0.6)]
    assert fit_law(compute, accuracy).num_points == 6
    assert fit_law(compute, accuracy).limit == pytest.approx(0.6, abs=1e-3)


def test_the_interval_of_the_limit_contains_it() -> None:
    compute = np.geomspace(1e4, 1e7, 10)
    chances = -30 / compute**0.5 + 0.8
    right = np.random.default_rng(0).random((10, 2000)) < chances[:, None]
    found = limit_interval(list(compute), right, seed=0)
    assert found is not None
    assert found[0] < 0.8 < found[1]
    assert found[1] - found[0] < 0.06
    assert limit_interval(list(compute), np.ones((10, 50)), seed=0) is None


def test_compute_is_counted_from_the_metrics(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    rows = [
        {"step": 5, "tokens": 1000, "sampled_tokens": 300, "scored_tokens": 40},
        {"step": 10, "tokens": 2500, "sampled_tokens": 500, "scored_tokens": 60},
        {"step": 15},
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    at = {step: Checkpoint("c", tmp_path, run, step) for step in (0, 5, 10, 15)}
    assert compute_of(at[10], "tokens", 7) == 2500
    assert compute_of(at[10], "steps", 7) == 10
    assert compute_of(at[10], "flops", 7) == 7 * (6 * 2500 + 2 * (300 + 500) + 2 * (40 + 60))
    assert compute_of(at[5], "flops", 7) == 7 * (6 * 1000 + 2 * 300 + 2 * 40)
    assert compute_of(at[0], "flops", 7) == 0
    assert compute_of(Checkpoint("c", tmp_path), "flops", 7) is None
    with pytest.raises(InvalidInput, match=r"no tokens for step 15 .* use --compute steps"):
        compute_of(at[15], "tokens", 7)
