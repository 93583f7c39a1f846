"""vLLM engines for tests. vLLM takes seconds to start, so one per kind of model serves the whole session.

``WarmEngine`` looks unstarted until its first ``load``, and then borrows a vLLM that has the same
``config.json`` from the pool. Everything after that is the borrowed engine's own behaviour. All tests
that use it run on the session's event loop, because a started vLLM belongs to one loop.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forethought.types import Rollout, Task, WeightManifest
from services.rollout.vllm_build import CPU_DISTRIBUTION, _version_of
from services.rollout.vllm_engine import VllmEngine

IS_INSTALLED = any(_version_of(name) for name in ("vllm", CPU_DISTRIBUTION))
# vLLM warns about itself while it is imported, and starts slowly on a loaded machine.
MARKS = (
    pytest.mark.vllm,
    pytest.mark.skipif(not IS_INSTALLED, reason="vLLM is not installed; run make vllm"),
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),
)
_OPTIONS: dict[str, Any] = {"kv_cache_memory_bytes": 8 << 20}


def new_engine(deterministic: bool = False, **arguments: Any) -> VllmEngine:
    options = _OPTIONS if deterministic else _OPTIONS | {"max_num_seqs": 64}
    return VllmEngine(
        replica="rollout-v", options=options, deterministic=deterministic, **arguments
    )


class VllmPool:
    """Started engines by (deterministic, digest of config.json)."""

    def __init__(self) -> None:
        self._engines: dict[tuple[bool, str], VllmEngine] = {}
        self.lost = asyncio.Event()

    async def borrow(self, deterministic: bool, manifest: WeightManifest, path: Path) -> VllmEngine:
        """A started engine with this policy."""
        key = (deterministic, model_digest(path))
        engine = self._engines.get(key) or new_engine(deterministic, on_lost=self.lost.set)
        await engine.load(replace(manifest, model_files_sha256=key[1]), path)
        self._engines[key] = engine
        return engine

    async def moved(self, engine: VllmEngine, deterministic: bool, digest: str) -> None:
        """Record that this engine now serves the model of this digest, instead of the previous one."""
        self._engines = {key: held for key, held in self._engines.items() if held is not engine}
        before = self._engines.get((deterministic, digest))
        self._engines[deterministic, digest] = engine
        if before:
            await before.close()

    async def close(self, only: VllmEngine | None = None) -> None:
        """Stop all engines, or one."""
        for key, engine in list(self._engines.items()):
            if only in (None, engine):
                del self._engines[key]
                await engine.close()
        gc.collect()  # vLLM leaves its sockets' context to it, which warns: now, while that is ignored


class WarmEngine:
    """An ``Engine`` whose vLLM may have been started before; a deterministic one is not kept."""

    def __init__(self, pool: VllmPool, deterministic: bool = False, keep_kv: bool = False) -> None:
        self._pool, self._deterministic, self.keep_kv = pool, deterministic, keep_kv
        self._engine = new_engine(deterministic)
        self._digest = self._given_digest = ""

    @property
    def serving(self) -> WeightManifest | None:
        held = self._engine.serving
        return replace(held, model_files_sha256=self._given_digest) if held else None

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        given = manifest.model_files_sha256
        if not self._given_digest:
            self._engine = await self._pool.borrow(self._deterministic, manifest, directory)
            self._engine._keep_kv = self.keep_kv
            self._digest = model_digest(directory)
        elif given == self._given_digest:
            await self._engine.load(replace(manifest, model_files_sha256=self._digest), directory)
        else:
            digest = model_digest(directory)
            await self._engine.load(replace(manifest, model_files_sha256=digest), directory)
            await self._pool.moved(self._engine, self._deterministic, digest)
            self._digest = digest
        self._given_digest = given

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        return await self._engine.generate(tasks)

    def refusal(self, task: Task) -> str | None:
        return self._engine.refusal(task)

    async def close(self) -> None:
        if not self._given_digest:
            await self._engine.close()
        elif self._deterministic:
            await self._pool.close(only=self._engine)


def model_digest(directory: Path) -> str:
    return hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
