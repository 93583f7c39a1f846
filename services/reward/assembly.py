"""Assembly of a reward replica: for a run, or standalone around one model directory.

Design: torch and the HTTP stack are imported inside these functions, after the settings were validated, so
that a configuration error is reported immediately.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from forethought import objectives, process
from forethought.auth import Guard
from forethought.config import Settings
from forethought.errors import EngineHung, NotInstalled
from forethought.queue.interface import Broker, Stage
from forethought.replica.host import ReplicaHost, make_worker, new_replica_id
from forethought.telemetry.metrics import process_registry

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from forethought.telemetry.ops import EmbeddedHttpServer
    from services.reward.scoring import Scorer
    from services.reward.service import RewardService

log = logging.getLogger("reward")


async def serve_standalone(settings: Settings, stop: asyncio.Event) -> int:
    """Serve the weights of a model directory until stopped; returns the exit status."""
    guard, generated_token = Guard.standalone(settings.auth)
    from services.reward.standalone import load_models, serve_until, show_token

    loaded = load_objectives(settings)
    has_baseline = bool(settings.reward.baseline_path)
    scorer = make_scorer(settings, new_replica_id("reward"), loaded, has_baseline)
    service = make_service(settings, scorer, loaded)
    try:
        await scorer.run(load_models, settings, scorer)
        if generated_token is not None:
            show_token(generated_token)
        registry = process_registry("reward")
        http = make_http_server(settings, service, guard, registry)
        await serve_until(stop, settings, scorer, service, guard, http, registry)
    finally:
        await service.close()
        await scorer.close()
    return 0


async def serve_run(settings: Settings, broker: Broker, stop: asyncio.Event) -> int:
    """Score for the run that the broker belongs to, and for clients with a token, until stopped."""
    guard = Guard.of_replica(settings.auth)
    from services.reward.grpc_server import RewardServicer
    from services.reward.handler import RewardHandler, error_result

    section, replica_id = settings.reward, new_replica_id("reward")
    loaded = load_objectives(settings)
    scorer = make_scorer(settings, replica_id, loaded)
    handler = RewardHandler(scorer)
    service = make_service(settings, scorer, loaded)
    registry = process_registry("reward")
    http = make_http_server(settings, service, guard, registry)
    try:
        await broker.ping()
        await http.start()
        log.info("HTTP on http://%s:%d, documented at /docs", section.http_host, http.port)
        host = ReplicaHost(
            "reward",
            replica_id,
            section,
            settings.redis.url,
            broker,
            frozenset({"policy", "baseline"}),
            handler.load,
            guard,
            registry,
            servicers=[RewardServicer(service)],
        )
        worker = make_worker(
            handler,
            broker,
            section,
            name=replica_id,
            stage=Stage.ROLLOUTS,
            result_stage=Stage.SCORED,
            error_result=error_result,
            progress=scorer.progress,
        )
        await host.run(worker, stop)
    except EngineHung as error:
        process.exit_at_once(error)
    finally:
        await http.stop()
        await service.close()
        await scorer.close()
    return 0


def load_objectives(settings: Settings) -> dict[str, objectives.Objective]:
    """Every objective that requests may name: the built-in ones, the plugin folder's, the configured one.

    An objective whose library is not installed is skipped, unless it is the configured one.

    Raises:
        InvalidInput: an objective of the folder, or the configured one, cannot be loaded.
        NotInstalled: the configured one needs a library that is not installed.
    """
    configured, folder = settings.objective, settings.objective.folder
    chosen = objectives.load(configured.name, configured.parameters, folder)
    loaded = {configured.name: chosen}
    for name in set(objectives.names(folder)) - loaded.keys():
        try:
            loaded[name] = objectives.load(name, folder=folder)
        except NotInstalled as error:
            log.info("objective %s is not available: %s", name, error)
    return loaded


def make_scorer(
    settings: Settings,
    replica_id: str,
    loaded: dict[str, objectives.Objective],
    has_baseline: bool = True,
) -> Scorer:
    """The scorer core. Heavy imports happen here, after the settings were validated."""
    import torch

    from forethought.compute.served_model import ServedModel
    from services.reward.scoring import Scorer

    section = settings.reward
    if section.num_threads:
        torch.set_num_threads(section.num_threads)
    return Scorer(
        ServedModel("policy", section.device),
        ServedModel("baseline", section.device) if has_baseline else None,
        section.max_batch_tokens,
        section.deterministic,
        objectives=loaded,
        objective_folder=settings.objective.folder,
        replica=replica_id,
    )


def make_service(
    settings: Settings, scorer: Scorer, loaded: dict[str, objectives.Objective]
) -> RewardService:
    """The core that HTTP and gRPC share."""
    from services.reward.limits import Limits
    from services.reward.service import RewardService

    section = settings.reward
    return RewardService(
        scorer,
        loaded,
        think_open=settings.model.think_open,
        think_close=settings.model.think_close,
        limits=Limits(
            section.max_batch_tokens,
            section.max_waiting_tokens,
            section.max_waiting_bytes,
            section.max_request_tokens,
            section.max_request_items,
            section.max_request_thoughts,
            section.max_text_characters,
            section.max_reply_bytes,
            one_at_a_time=section.deterministic,
        ),
    )


def make_http_server(
    settings: Settings, service: RewardService, guard: Guard, registry: CollectorRegistry
) -> EmbeddedHttpServer:
    """The HTTP server behind ``guard``, with its metrics in ``registry``."""
    from forethought.telemetry.ops import EmbeddedHttpServer
    from services.reward.http.fast_path import RewardProtocol
    from services.reward.http.server import RewardApp
    from services.reward.metrics import RewardMetrics

    section = settings.reward
    guard.warn_if_exposed(section.http_host, "HTTP")
    app = RewardApp(service, section.max_body_bytes, guard)
    RewardMetrics(registry, app.seconds, service.batcher)
    return EmbeddedHttpServer(app, section.http_host, section.http_port, RewardProtocol)
