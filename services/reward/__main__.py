"""``python -m services.reward``: one reward replica, behind a queue and an HTTP door."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forethought import objectives, process, queue
from forethought.config import Settings
from forethought.queue.interface import Stage
from forethought.queue.worker import Worker
from forethought.replica import ReplicaHost, new_replica_id

if TYPE_CHECKING:
    from forethought.telemetry.ops import EmbeddedHttpServer
    from services.reward.scoring import Scorer

log = logging.getLogger("reward")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve until SIGTERM; returns the exit status."""
    return process.run_service("reward", serve, __doc__, argv)


async def serve(settings: Settings, stop: asyncio.Event) -> int:
    """Host one scorer behind both doors until told to stop."""
    from services.reward.worker import RewardHandler, error_result

    section, replica_id = settings.reward, new_replica_id("reward")
    loaded = load_objectives(settings)
    scorer = make_scorer(settings, replica_id, loaded)
    handler = RewardHandler(scorer)
    broker = queue.connect(settings.redis.url, settings.run.name)
    http = make_http_server(settings, scorer, loaded)
    try:
        await broker.ping()
        await http.start()
        log.info("HTTP on http://%s:%d, /docs shows it", section.http_host, http.port)
        host = ReplicaHost(
            "reward",
            replica_id,
            section,
            settings.redis.url,
            broker,
            frozenset({"policy", "baseline"}),
            handler.load,
        )
        consumer = broker.consumer(
            stage=Stage.ROLLOUTS,
            result_stage=Stage.SCORED,
            name=replica_id,
            lease_s=section.lease_s,
            max_attempts=section.max_attempts,
            error_result=error_result,
        )
        worker = Worker(handler, consumer=consumer, max_batch_tasks=section.max_batch_tasks)
        await host.run(worker, stop)
    finally:
        await http.stop()
        await broker.close()
        await scorer.close()
    return 0


def load_objectives(settings: Settings) -> dict[str, objectives.Objective]:
    """Every objective that may be asked for: those of the package and the configured one.

    Raises:
        InvalidInput: the configured one cannot be loaded.
    """
    loaded = {name: objectives.load(name) for name in objectives.names()}
    configured = settings.objective
    return loaded | {configured.name: objectives.load(configured.name, configured.parameters)}


def make_scorer(
    settings: Settings, replica_id: str, loaded: dict[str, objectives.Objective]
) -> Scorer:
    """The scorer core. Heavy imports happen here, after the settings were found sound."""
    import torch

    from forethought.compute.served_model import ServedModel
    from services.reward.scoring import Scorer

    section = settings.reward
    if section.num_threads:
        torch.set_num_threads(section.num_threads)
    return Scorer(
        ServedModel("policy", section.device),
        ServedModel("baseline", section.device),
        section.max_batch_tokens,
        section.deterministic,
        objectives=loaded,
        replica=replica_id,
    )


def make_http_server(
    settings: Settings, scorer: Scorer, loaded: dict[str, objectives.Objective]
) -> EmbeddedHttpServer:
    """The HTTP door."""
    from forethought.telemetry.ops import EmbeddedHttpServer
    from services.reward.http_server import create_app

    def tokenizer() -> Any:
        with scorer.policy.hold() as serving:
            return serving.language_model.tokenizer

    section = settings.reward
    app = create_app(
        scorer,
        tokenizer,
        loaded,
        think_open=settings.model.think_open,
        think_close=settings.model.think_close,
        max_body_bytes=section.max_body_bytes,
    )
    return EmbeddedHttpServer(app, section.http_host, section.http_port)


if __name__ == "__main__":
    sys.exit(main())
