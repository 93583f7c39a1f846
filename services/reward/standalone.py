"""The standalone service: any model directory over HTTP and gRPC, without Redis, run or learner.

Design: the same scorer and the same servers, with weights that never change (epoch 0, version 0). The price
of accepting any directory is that its tokenizer may lack think markers; then ``/v1/score`` fails with a
clear message and everything else works. Policy and baseline must share one vocabulary, because both score
the same token ids, and compute in one type, because their difference is a reward.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from forethought.auth import Guard
from forethought.compute.model import add_markers
from forethought.compute.served_model import ServedModel
from forethought.config import Settings
from forethought.errors import InvalidInput
from forethought.hub import model_folder
from forethought.replica.metrics import ServedMetrics
from forethought.rpc.calls import GrpcCalls
from forethought.rpc.guard import GrpcGuard
from forethought.rpc.server import start_grpc_server
from forethought.special_tokens import choose_bos
from forethought.telemetry.ops import EmbeddedHttpServer, OpsServer
from forethought.types import WeightManifest
from services.reward.grpc_server import RewardServicer
from services.reward.scoring import Scorer
from services.reward.service import RewardService

log = logging.getLogger("reward")


def load_models(settings: Settings, scorer: Scorer) -> None:
    """Load the model directories of the settings into the scorer's models. Blocking.

    Raises:
        InvalidInput: a directory cannot be loaded or downloaded, or the vocabularies of the two differ.
    """
    dtype: str = settings.model.dtype
    paths = {"policy": settings.reward.policy_path, "baseline": settings.reward.baseline_path}
    for name, served in scorer.models.items():
        directory = model_folder(paths[name])
        served.load(directory, _manifest(name, directory, dtype))
        dtype = served.now.manifest.dtype  # what auto has become for the policy holds for both
        log.info("%s: computing in %s", name, served.now.language_model.precision)
        choose_bos(served.now.language_model.tokenizer, settings.model.bos)
        if settings.model.add_think_tokens:
            add_markers(
                served.now.language_model, settings.model.think_open, settings.model.think_close
            )
    if scorer.baseline is not None:
        _check_same_vocabulary(scorer.policy, scorer.baseline)


def show_token(token: str) -> None:
    """Print to stderr, once, the token that was generated because none was configured.

    The only place that prints a token, so that a first run needs no configuration. It is not a log record,
    but where stderr is collected it ends up in the logs: configure a token there.
    """
    print(
        f"reward: no token was configured, so this process generated one: {token}\n"
        "reward: send it as 'Authorization: Bearer TOKEN', or set FORETHOUGHT_AUTH_TOKEN for clients; it "
        "is valid until this process exits (auth.token_file=FILE to keep one, auth.open=true for none)",
        file=sys.stderr,
        flush=True,
    )


async def serve_until(
    stop: asyncio.Event,
    settings: Settings,
    scorer: Scorer,
    service: RewardService,
    guard: Guard,
    http: EmbeddedHttpServer,
    registry: CollectorRegistry,
) -> None:
    """Serve HTTP, gRPC and the ops port until ``stop`` is set; the models must be loaded."""
    section, calls = settings.reward, GrpcCalls()
    host = section.host or "127.0.0.1"
    guard.warn_if_exposed(host, "gRPC")
    grpc_server = await start_grpc_server(
        [RewardServicer(service)],
        host,
        section.grpc_port,
        interceptors=[calls, GrpcGuard(guard)],
        max_message_bytes=section.max_message_bytes,
        max_concurrent_calls=section.max_concurrent_calls,
    )
    ServedMetrics(registry, lambda: _manifests(scorer), lambda: True, calls)
    ops = OpsServer(
        host, section.ops_port, lambda: True, lambda: {"models": service.models()}, registry
    )
    try:
        await grpc_server.set_ready(True)
        await ops.start()
        await http.start()
        log.info(
            "standalone: HTTP on http://%s:%d, documented at /docs; gRPC on %s:%d, ops port %d",
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
            f"{len(vocabularies[1])}, and they differ; expected one vocabulary, because both score the "
            "same token ids: run two services instead"
        )


def _manifests(scorer: Scorer) -> dict[str, WeightManifest]:
    return {name: served.now.manifest for name, served in scorer.models.items()}
