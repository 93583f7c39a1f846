"""``forethought serve rollout | reward``: one replica, in this process.

Design: settings are resolved here first, which takes milliseconds, so that a typo is reported before torch
is loaded; then the process becomes the service. The price is that they are read twice.
"""

from __future__ import annotations

from pathlib import Path

import typer

from forethought.cli.launch import OVERRIDES_ARGUMENT, become, examples, module_command, override

serve = typer.Typer(
    help="Run one replica of a service; start any number of them, even during a run.",
    epilog=examples(
        "forethought serve rollout --redis-url redis://10.0.0.5:6379/0 --run books auth.token_file=token"
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

_CONFIG = typer.Option(
    None, "--config", metavar="FILE", help="A TOML file; defaults apply without one."
)
_REDIS_URL = typer.Option(None, "--redis-url", metavar="URL", help="Short for redis.url=URL.")
_RUN = typer.Option(None, "--run", metavar="NAME", help="Short for run.name=NAME.")
_POLICY = typer.Option(
    None,
    "--policy",
    metavar="DIR",
    help="Score standalone, with this model directory or owner/name.",
)
_BASELINE = typer.Option(
    None, "--baseline", metavar="DIR", help="With --policy: the model of the no-think baseline."
)


@serve.command(
    epilog=examples(
        "forethought serve rollout --redis-url redis://127.0.0.1:6379/0 --run books auth.open=true",
        "forethought serve rollout --config run.toml rollout.device=cuda:1",
    )
)
def rollout(
    config: Path | None = _CONFIG,
    redis_url: str | None = _REDIS_URL,
    run: str | None = _RUN,
    overrides: list[str] | None = OVERRIDES_ARGUMENT,
) -> None:
    """Sample thoughts: takes tasks from Redis; needs no model, because the learner pushes the weights.

    SIGTERM drains: leased tasks are finished or returned to the queue, then it exits 0.
    """
    _serve("services.rollout", config, redis_url, run, overrides)


@serve.command(
    epilog=examples(
        "forethought serve reward --redis-url redis://127.0.0.1:6379/0 --run books auth.open=true",
        "forethought serve reward --policy models/base reward.http_port=8080",
    )
)
def reward(
    config: Path | None = _CONFIG,
    redis_url: str | None = _REDIS_URL,
    run: str | None = _RUN,
    policy: str | None = _POLICY,
    baseline: str | None = _BASELINE,
    overrides: list[str] | None = OVERRIDES_ARGUMENT,
) -> None:
    """Score thoughts: from Redis for a run, and over HTTP (POST /v1/score, see /docs) and gRPC.

    With --policy it is standalone: it serves any model directory without Redis or a run, and prints
    a generated token if none is configured.

    SIGTERM drains: leased tasks are finished or returned to the queue, then it exits 0.
    """
    paths = (("reward.policy_path", policy), ("reward.baseline_path", baseline))
    _serve("services.reward", config, redis_url, run, overrides, *paths)


def _serve(
    module: str,
    config: Path | None,
    redis_url: str | None,
    run: str | None,
    overrides: list[str] | None,
    *more: tuple[str, str | None],
) -> None:
    from forethought.config import load_settings

    options = (("redis.url", redis_url), ("run.name", run), *more)
    short = [override(key, text) for key, text in options if text is not None]
    merged = (*(overrides or ()), *short)
    load_settings(config, merged)
    become(module_command(module, config, merged))
