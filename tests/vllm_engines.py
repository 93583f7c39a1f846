"""vLLM engines for tests. vLLM takes seconds to start, so one per kind of model serves the whole session.

``WarmEngine`` looks unstarted until its first ``load``, and then borrows a vLLM that has the same
``config.json`` from the pool. Everything after that is the borrowed engine's own behaviour. All tests
that use it run on the session's event loop, because a started vLLM belongs to one loop.
"""

from __future__ import annotations

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
_OPTIONS: dict[str, Any] = {"kv_cache_memory_bytes": 32 << 20, "max_num_seqs": 64}


def new_engine(deterministic: bool = False, **arguments: Any) -> VllmEngine:
    return VllmEngine(
        replica="rollout-v", options=_OPTIONS, deterministic=deterministic, **arguments
    )


class VllmPool:
    """Started engines by (deterministic, digest of config.json)."""

    def __init__(self) -> None:
        self._engines: dict[tuple[bool, str], VllmEngine] = {}

    async def borrow(self, deterministic: bool, manifest: WeightManifest, path: Path) -> VllmEngine:
        """A started engine with this policy."""
        key = (deterministic, model_digest(path))
        engine = self._engines.get(key) or new_engine(deterministic)
        await engine.load(replace(manifest, model_files_sha256=key[1]), path)
        self._engines[key] = engine
        return engine

    def forget(self, engine: VllmEngine) -> None:
        """It serves another model now and is its borrower's to close."""
        self._engines = {key: held for key, held in self._engines.items() if held is not engine}

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()
        self._engines = {}


class WarmEngine:
    """An ``Engine`` whose vLLM may have been started before."""

    def __init__(self, pool: VllmPool, deterministic: bool) -> None:
        self._pool, self._deterministic = pool, deterministic
        self._engine, self._is_borrowed = new_engine(deterministic), False
        self._digest = self._given_digest = ""

    @property
    def serving(self) -> WeightManifest | None:
        held = self._engine.serving
        return replace(held, model_files_sha256=self._given_digest) if held else None

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        if not self._given_digest:
            self._engine = await self._pool.borrow(self._deterministic, manifest, directory)
            self._is_borrowed, self._digest = True, model_digest(directory)
        elif manifest.model_files_sha256 == self._given_digest:
            await self._engine.load(replace(manifest, model_files_sha256=self._digest), directory)
        else:
            await self._engine.load(manifest, directory)
            self._pool.forget(self._engine)
            self._is_borrowed, self._digest = False, manifest.model_files_sha256
        self._given_digest = manifest.model_files_sha256

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        return await self._engine.generate(tasks)

    async def close(self) -> None:
        if not self._is_borrowed:
            await self._engine.close()


def model_digest(directory: Path) -> str:
    return hashlib.sha256((directory / "config.json").read_bytes()).hexdigest()
