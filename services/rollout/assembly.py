"""Assemble a rollout replica: its engine, its queue worker and its gRPC servicers.

Design: an engine is imported only after the settings have been validated and select it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from forethought import process
from forethought.auth import Guard
from forethought.config import Settings
from forethought.config.sections import RolloutSection
from forethought.errors import EngineHung
from forethought.queue.interface import Broker, Stage
from forethought.replica.host import ReplicaHost, make_worker, new_replica_id
from forethought.replica.progress import Progress
from forethought.telemetry.metrics import process_registry
from services.rollout.engine import Engine
from services.rollout.grpc_server import RolloutServicer
from services.rollout.handler import RolloutHandler, error_result
from services.rollout.limits import GenerateLimits
from services.rollout.metrics import MeasuredEngine, RolloutMetrics


async def serve_run(settings: Settings, broker: Broker, stop: asyncio.Event) -> int:
    """Serve rollouts for the run that the broker belongs to."""
    guard = Guard.of_replica(settings.auth)
    section, replica_id = settings.rollout, new_replica_id("rollout")
    progress = Progress()
    engine = MeasuredEngine(make_engine(settings, replica_id, stop.set, progress.note))
    registry = process_registry("rollout")
    RolloutMetrics(registry, engine)
    try:
        await broker.ping()
        host = ReplicaHost(
            "rollout",
            replica_id,
            section,
            settings.redis.url,
            broker,
            frozenset({"policy"}),
            engine.load,
            guard,
            registry,
            servicers=[RolloutServicer(engine, replica_id, _limits(section))],
        )
        handler = RolloutHandler(engine, host.receiver)
        worker = make_worker(
            handler,
            broker,
            section,
            name=replica_id,
            stage=Stage.TASKS,
            result_stage=Stage.ROLLOUTS,
            error_result=error_result,
            progress=progress,
        )
        await host.run(worker, stop)
        is_lost = engine.serving is None and bool(host.receiver.holding)
    except EngineHung as error:
        process.exit_at_once(error)
    finally:
        await engine.close()
    return process.FAILED if is_lost else 0  # a supervisor restarts a failed replica


def _limits(section: RolloutSection) -> GenerateLimits:
    return GenerateLimits(
        section.max_group_size, section.max_request_tokens, section.max_waiting_tokens
    )


def make_engine(
    settings: Settings,
    replica_id: str,
    on_lost: Callable[[], None] = lambda: None,
    on_progress: Callable[[], None] = lambda: None,
) -> Engine:
    """The configured engine. Heavy imports happen here, after the settings have been validated.

    ``on_lost`` is called when the engine can no longer serve anything and the process should end,
    ``on_progress`` whenever it has advanced, from any thread.
    """
    if settings.rollout.engine == "vllm":
        return _vllm_engine(settings.rollout, replica_id, on_lost, on_progress)
    import torch

    from services.rollout.torch_engine import TorchEngine

    section = settings.rollout
    if section.num_threads:
        torch.set_num_threads(section.num_threads)
    return TorchEngine(
        replica=replica_id,
        device=section.device,
        max_batch_tokens=section.max_batch_tokens,
        deterministic=section.deterministic,
        on_progress=on_progress,
    )


def _vllm_engine(
    section: RolloutSection,
    replica_id: str,
    on_lost: Callable[[], None],
    on_progress: Callable[[], None],
) -> Engine:
    from services.rollout.vllm_engine import VllmEngine

    return VllmEngine(
        replica=replica_id,
        options=section.vllm,
        keep_kv=section.keep_kv,
        num_threads=section.num_threads,
        deterministic=section.deterministic,
        on_lost=on_lost,
        on_progress=on_progress,
    )
