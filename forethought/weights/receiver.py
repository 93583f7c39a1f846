"""The replica's side of a push: verify everything, then switch to it atomically, or reject it whole.

Design: a push is staged as files in a new directory, and none of them is read before the last hash
matches. Then the caller's ``apply`` switches atomically, and only its success changes the manifests this
replica reports as held. Pushes are accepted one at a time. The price is one extra copy of the weights in
the staging directory during a push (prefer memory, /dev/shm), a thread for writing it, so that it waits
for no request, and that a push waits for the previous one, which a stalled sender can hold up for at most
``idle_timeout_s``.

After a push only its model files stay staged, so that later pushes can omit them.

Epochs and versions order pushes within a run only. A push of another run, or of an earlier epoch than
what is held, is refused unless the owner of this replica's Redis is who pushes: then Redis and run
directory were made new while the replica lived, and it moves to the new run as if it had been restarted.
Redis decides, because a learner that is still alive restores its epoch there within a second.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import BinaryIO

from forethought.background import uninterrupted
from forethought.errors import InvalidInput, Stale, Unreachable
from forethought.telemetry.distribution import WORK_BOUNDS_S, Distribution
from forethought.types import WeightManifest
from forethought.weights.snapshot import (
    SAFETENSORS_CODEC,
    WEIGHTS_FILE,
    PushedFile,
    PushHeader,
    check_file_name,
    digest_of,
)

log = logging.getLogger(__name__)

Apply = Callable[[WeightManifest, Path], Awaitable[None]]
Owner = Callable[[], Awaitable[tuple[str, int] | None]]
"""Returns the run and epoch that own this replica's Redis; None if unknown."""


async def _unknown() -> None:
    return None


@dataclass(slots=True)
class Applied:
    """Applied pushes of one model: the duration of each switch, and the total bytes of weights.

    Example:
        ``receiver.applied["policy"].seconds.num_values``
    """

    seconds: Distribution = field(default_factory=lambda: Distribution(WORK_BOUNDS_S))
    num_bytes: int = 0


class WeightReceiver:
    """Accepts pushes for one replica and keeps track of the manifests it holds.

    ``apply(manifest, directory)`` is the caller's switch to new weights between two forward passes. It
    gets a complete model directory, must have read the weights when it returns (their file is then
    removed), and raises to reject them, in which case the old version keeps serving. Cancelling a push
    never interrupts a switch that has begun.

    ``owner`` tells which run and epoch own this replica's Redis (default: unknown).

    ``staging`` may be shared: the receiver owns, and empties at construction, only its own
    subdirectory, named after the replica.
    """

    def __init__(
        self,
        replica_id: str,
        models: frozenset[str],
        staging: Path,
        apply: Apply,
        *,
        owner: Owner = _unknown,
        idle_timeout_s: float = 30.0,
    ) -> None:
        self.replica_id = replica_id
        self.models = models
        self.holding: dict[str, WeightManifest] = {}
        self.applied: defaultdict[str, Applied] = defaultdict(Applied)
        self._root = staging / f"weights-{_directory_name(replica_id)}"
        self._apply, self._owner = apply, owner
        self._idle_timeout_s = idle_timeout_s
        self._directories: dict[str, Path] = {}  # model -> directory of its model files
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._push_numbers = itertools.count()
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="weights")
        shutil.rmtree(self._root, ignore_errors=True)

    def close(self) -> None:
        """Remove the staging files; call it once no more pushes can arrive."""
        self._writing.shutdown()
        shutil.rmtree(self._root, ignore_errors=True)

    async def wait_for_change(self) -> None:
        """Wait for the next change of ``holding``.

        A caller that reads ``holding`` and awaits this immediately afterwards misses no change.
        """
        await self._changed.wait()

    async def receive(self, header: PushHeader, chunks: AsyncIterator[bytes]) -> WeightManifest:
        """Accept one push as a whole and return the manifest then held; repeating a push succeeds.

        ``chunks`` are the bytes of ``header.files`` in order, split at arbitrary points.

        Raises:
            InvalidInput: the header or the bytes are not a valid push; nothing was applied.
            Stale: not newer than what is held, of another run, or for model files that are not held.
            Unreachable: the sender sent nothing for ``idle_timeout_s``, or the owner cannot be asked.
        """
        async with self._lock:
            manifest = header.manifest
            if self.holding.get(manifest.model) == manifest:
                return manifest
            self._check(header)
            await self._check_run(manifest)
            directory = self._root / f"{manifest.model}-{next(self._push_numbers)}"
            try:
                directory.mkdir(parents=True)
                await self._stage(header.files, chunks, directory)
                if not _promised_model_files(header):
                    self._link_model_files(manifest.model, directory)
                await uninterrupted(self._flip(manifest, directory))
            finally:
                if self._directories.get(manifest.model) != directory:
                    shutil.rmtree(directory, ignore_errors=True)
        return manifest

    def _check(self, header: PushHeader) -> None:
        """Reject what can be rejected from the header alone."""
        manifest = header.manifest
        if manifest.model not in self.models:
            raise InvalidInput(
                f"push of model {manifest.model!r}, but {self.replica_id} serves "
                f"{sorted(self.models)}; push only the models it registered for"
            )
        if header.codec != SAFETENSORS_CODEC or header.base is not None:
            raise InvalidInput(
                f"codec {header.codec!r}{' on a base' if header.base else ''} is unknown here; "
                f"expected {SAFETENSORS_CODEC!r} without a base; push a snapshot"
            )
        held = self.holding.get(manifest.model)
        if held and manifest.origin == held.origin and manifest.version <= held.version:
            raise Stale(
                f"push of {manifest.model} at (epoch, version) {manifest.order}, but "
                f"{held.order} is served with sha256 {held.sha256[:12]}; push something newer"
            )
        _check_files(header)
        _check_model_files(header, held)

    async def _check_run(self, manifest: WeightManifest) -> None:
        """Refuse a push of another run, or of an earlier epoch, that does not come from the owner."""
        held = self.holding.get(manifest.model)
        if held and held.run_id == manifest.run_id and held.epoch <= manifest.epoch:
            return
        owner = await self._owner()
        is_accepted = owner == manifest.origin
        if held is None:
            is_accepted = owner is None or owner[0] == manifest.run_id
        if not is_accepted:
            raise Stale(
                f"push of {manifest.model} by {_named(manifest.origin)} to {self.replica_id}, which "
                f"holds {_named(held.origin) if held else 'nothing'}; its Redis belongs to "
                f"{_named(owner) if owner else 'no run'}; if the learner that pushes is the right one, "
                "restart this replica"
            )
        if held:
            log.warning(
                "%s of %s gives way to that of %s, which now owns this replica's Redis",
                manifest.model,
                _named(held.origin),
                _named(manifest.origin),
            )

    async def _stage(
        self, files: tuple[PushedFile, ...], chunks: AsyncIterator[bytes], directory: Path
    ) -> None:
        """Write the stream into ``directory`` and verify every size and hash."""
        stream, loop = _ExactStream(chunks, self._idle_timeout_s), asyncio.get_running_loop()
        for file in files:
            digest = hashlib.sha256()
            with (directory / file.name).open("xb") as target:
                async for part in stream.take(file):
                    # Hashing releases the GIL; the loop keeps renewing leases and answering probes.
                    await loop.run_in_executor(self._writing, _write, part, target, digest.update)
            if digest.hexdigest() != file.sha256:
                raise InvalidInput(
                    f"{file.name} arrived damaged: sha256 {digest.hexdigest()[:12]}, expected "
                    f"{file.sha256[:12]}; push again"
                )
        await stream.expect_end()

    def _link_model_files(self, model: str, target: Path) -> None:
        """Complete a weights-only push with the model files already held.

        Raises:
            Stale: they were deleted; they no longer count as held, so the next push is a full snapshot.
        """
        try:
            for path in self._directories[model].iterdir():
                os.link(path, target / path.name)
        except FileNotFoundError as error:
            del self.holding[model]
            raise Stale(
                f"the model files of {model} were deleted from {self._root}, which only this replica "
                "may clear; push the whole snapshot"
            ) from error

    async def _flip(self, manifest: WeightManifest, directory: Path) -> None:
        """Apply, then update ``holding``; on failure everything stays as it was."""
        started_s, applied = perf_counter(), self.applied[manifest.model]
        await self._apply(manifest, directory)
        applied.seconds.add(perf_counter() - started_s)
        applied.num_bytes += manifest.num_bytes
        (directory / WEIGHTS_FILE).unlink(missing_ok=True)
        previous = self._directories.get(manifest.model)
        self._directories[manifest.model] = directory
        self.holding[manifest.model] = manifest
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _ExactStream:
    """Splits a stream of chunks into files of the announced sizes."""

    def __init__(self, chunks: AsyncIterator[bytes], idle_timeout_s: float) -> None:
        self._chunks = chunks
        self._idle_timeout_s = idle_timeout_s
        self._rest = memoryview(b"")

    async def take(self, file: PushedFile) -> AsyncIterator[memoryview]:
        """Yield exactly ``file.num_bytes`` bytes, in parts."""
        missing_bytes = file.num_bytes
        while missing_bytes:
            if not self._rest and not await self._refill():
                raise InvalidInput(
                    f"the push ended {missing_bytes} bytes short in {file.name}, expected "
                    f"{file.num_bytes}; push again"
                )
            part, self._rest = self._rest[:missing_bytes], self._rest[missing_bytes:]
            missing_bytes -= len(part)
            yield part

    async def expect_end(self) -> None:
        """Reject bytes after the last file."""
        if self._rest or await self._refill():
            raise InvalidInput(
                "the push goes on after the last byte its header promised; "
                "send exactly the files of the header"
            )

    async def _refill(self) -> bool:
        """Fetch the next chunk that is not empty; False at the end of the stream."""
        while not self._rest:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    self._rest = memoryview(await anext(self._chunks))
            except StopAsyncIteration:
                return False
            except TimeoutError as error:
                raise Unreachable(
                    f"the sender sent nothing for {self._idle_timeout_s} s in the middle of a push; "
                    "push again"
                ) from error
        return True


def _named(origin: tuple[str, int]) -> str:
    return f"run {origin[0] or '(unnamed)'}, epoch {origin[1]}"


def _check_files(header: PushHeader) -> None:
    names = [file.name for file in header.files]
    for name in names:
        check_file_name(name)
    if len(set(names)) != len(names) or WEIGHTS_FILE not in names:
        raise InvalidInput(
            f"push of files {names}; expected {WEIGHTS_FILE} and every name exactly once"
        )
    weights = next(file for file in header.files if file.name == WEIGHTS_FILE)
    manifest = header.manifest
    if (weights.sha256, weights.num_bytes) != (manifest.sha256, manifest.num_bytes):
        raise InvalidInput(
            f"the header promises {weights.num_bytes} bytes of weights with sha256 "
            f"{weights.sha256[:12]}, its manifest {manifest.num_bytes} with "
            f"{manifest.sha256[:12]}; make the push from one snapshot"
        )


def _check_model_files(header: PushHeader, held: WeightManifest | None) -> None:
    """The model files must be those of the manifest: part of this push, or already held."""
    manifest = header.manifest
    promised = _promised_model_files(header)
    if promised:
        got = digest_of(promised)
        if got != manifest.model_files_sha256:
            raise InvalidInput(
                f"the promised model files have digest {got[:12]}, the manifest says "
                f"{manifest.model_files_sha256[:12]}; make the push from one snapshot"
            )
    elif held is None or held.model_files_sha256 != manifest.model_files_sha256:
        got = held.model_files_sha256[:12] if held else "nothing"
        raise Stale(
            f"weights-only push for model files {manifest.model_files_sha256[:12]}, but "
            f"{got} is held; push the whole snapshot"
        )


def _promised_model_files(header: PushHeader) -> dict[str, str]:
    return {file.name: file.sha256 for file in header.files if file.name != WEIGHTS_FILE}


def _write(part: memoryview, target: BinaryIO, update: Callable[[memoryview], None]) -> None:
    target.write(part)
    update(part)


def _directory_name(replica_id: str) -> str:
    """The replica id, checked for use as a directory name."""
    if not replica_id or replica_id != Path(replica_id).name or replica_id.startswith("."):
        raise InvalidInput(
            f"replica id {replica_id!r} cannot name a directory; use letters, digits and dashes"
        )
    return replica_id
