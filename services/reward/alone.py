"""Standing alone: any model directory behind the doors, without Redis, run or learner.

Design: the same scorer and the same doors, with weights that never change (epoch 0, version 0). The
price of taking any directory is that it may lack think markers; then ``/v1/score`` says so and
everything else works. Policy and baseline must share one vocabulary, because ids go to both.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from forethought.compute.model import add_markers
from forethought.compute.served_model import ServedModel
from forethought.config import Settings
from forethought.errors import InvalidInput
from forethought.telemetry.ops import EmbeddedHttpServer, OpsServer
from forethought.types import WeightManifest
from forethought.weights.grpc_weights import start_grpc_server
from services.reward.grpc_server import RewardServicer
from services.reward.scoring import Scorer
from services.reward.service import RewardService

log = logging.getLogger("reward")


def load_models(settings: Settings, scorer: Scorer) -> None:
    """Load the directories that the settings name into the scorer's models. Blocking.

    Raises:
        InvalidInput: one does not load, or they do not belong together.
    """
    paths = {"policy": settings.reward.policy_path, "baseline": settings.reward.baseline_path}
    for name, served in scorer.models.items():
        directory = Path(paths[name])
        served.load(directory, _manifest(name, directory, settings.model.dtype))
        if settings.model.add_think_tokens:
            add_markers(
                served.now.language_model, settings.model.think_open, settings.model.think_close
            )
    if scorer.baseline is not None:
        _check_same_vocabulary(scorer.policy, scorer.baseline)


async def serve_until(
    stop: asyncio.Event, settings: Settings, service: RewardService, http: EmbeddedHttpServer
) -> None:
    """Serve HTTP, gRPC and the ops port until ``stop``; the models are loaded."""
    section = settings.reward
    host = section.host or "127.0.0.1"
    grpc_server = await start_grpc_server([RewardServicer(service)], host, section.grpc_port)
    ops = _ops_server(host, section.ops_port, service)
    try:
        await grpc_server.set_ready(True)
        await ops.start()
        await http.start()
        log.info(
            "alone: HTTP on http://%s:%d, /docs shows it; gRPC on %s:%d, ops port %d",
            *(section.http_host, http.port, host, grpc_server.port, ops.port),
        )
        await stop.wait()
    finally:
        await http.stop()
        await grpc_server.stop()
        await ops.stop()


def _manifest(name: str, directory: Path, dtype: str) -> WeightManifest:
    files = sorted(directory.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 22):
                digest.update(block)
    num_bytes = sum(file.stat().st_size for file in files)
    return WeightManifest(name, 0, 0, digest.hexdigest(), "", dtype, num_bytes)


def _check_same_vocabulary(policy: ServedModel, baseline: ServedModel) -> None:
    vocabularies = [s.now.language_model.tokenizer.get_vocab() for s in (policy, baseline)]
    if vocabularies[0] != vocabularies[1]:
        raise InvalidInput(
            f"the policy's tokenizer has {len(vocabularies[0])} tokens, the baseline's "
            f"{len(vocabularies[1])}, and they differ; expected one vocabulary, because the same "
            "token ids go to both: serve two services instead"
        )


def _ops_server(host: str, port: int, service: RewardService) -> OpsServer:
    registry = CollectorRegistry()
    waiting = Gauge("forethought_waiting_tokens", "Admitted and unanswered", registry=registry)
    waiting.set_function(lambda: service.batcher.num_waiting_tokens)
    return OpsServer(host, port, lambda: True, lambda: {"models": service.models()}, registry)
