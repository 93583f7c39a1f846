"""A snapshot: everything needed to serve one version of a model, as named files in memory.

Design: a snapshot is a directory's worth of opaque bytes plus a manifest with their sha256, so moving it
needs neither torch nor safetensors, and no receiver parses anything it has not verified. The price is
that the learner keeps one serialised copy of the newest weights of each model in memory (2 bytes per
parameter in bf16).

Only plain data may be transferred: configuration, tokenizer and safetensors. Names outside the allow-list
(pickles, code, paths) are rejected on both sides.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from forethought.errors import InvalidInput
from forethought.types import WeightManifest

WEIGHTS_FILE = "model.safetensors"
"""The name of the one file that holds the weights."""

SAFETENSORS_CODEC = "safetensors"
"""The codec of a push that carries the whole weights file, not a delta."""

_MODEL_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(json|txt|model|jinja)")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a model, complete.

    ``model_files`` are configuration and tokenizer by name; ``weights`` is the content of
    ``model.safetensors``. Build it with :func:`make_snapshot`, which fills in the hashes.

    Example:
        ``Snapshot(manifest, {"config.json": b"{}", "tokenizer.json": b"{}"}, weights)``
    """

    manifest: WeightManifest
    model_files: Mapping[str, bytes]
    weights: bytes

    @property
    def files(self) -> dict[str, bytes]:
        """All files by name, the weights last."""
        return {**self.model_files, WEIGHTS_FILE: self.weights}


@dataclass(frozen=True, slots=True)
class PushedFile:
    """One file of a push, as announced in its header.

    Example:
        ``PushedFile("config.json", num_bytes=612, sha256="4c…")``
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PushHeader:
    """The header of a push; the bytes of ``files`` follow in this order.

    A full snapshot lists all files, a weights-only push just ``model.safetensors``. ``base`` is what a
    delta would apply to, and None for the safetensors codec.

    Example:
        ``PushHeader(manifest, "safetensors", (PushedFile("model.safetensors", 430_000, "9f…"),))``
    """

    manifest: WeightManifest
    codec: str
    files: tuple[PushedFile, ...]
    base: WeightManifest | None = None


def make_snapshot(
    model: str,
    epoch: int,
    version: int,
    dtype: str,
    model_files: Mapping[str, bytes],
    weights: bytes,
    run_id: str = "",
) -> Snapshot:
    """Hash the files of one version and build its manifest.

    Raises:
        InvalidInput: a file name is not on the allow-list.
    """
    for name in model_files:
        check_file_name(name)
        if name == WEIGHTS_FILE:
            raise InvalidInput(
                f"model_files contains {WEIGHTS_FILE}; give its content as `weights` instead"
            )
    manifest = WeightManifest(
        model=model,
        epoch=epoch,
        version=version,
        sha256=sha256_of(weights),
        model_files_sha256=digest_of({n: sha256_of(data) for n, data in model_files.items()}),
        dtype=dtype,
        num_bytes=len(weights),
        run_id=run_id,
    )
    return Snapshot(manifest, dict(model_files), weights)


def header_of(snapshot: Snapshot, *, weights_only: bool) -> PushHeader:
    """The header of a push of ``snapshot``, or of only its weights."""
    manifest = snapshot.manifest
    names = () if weights_only else tuple(snapshot.model_files)
    model_files = tuple(
        PushedFile(name, len(data), sha256_of(data))
        for name, data in ((name, snapshot.model_files[name]) for name in names)
    )
    weights_file = PushedFile(WEIGHTS_FILE, manifest.num_bytes, manifest.sha256)
    return PushHeader(manifest, SAFETENSORS_CODEC, (*model_files, weights_file))


def check_file_name(name: str) -> None:
    """Allow only plain basenames of configuration, tokenizer and safetensors files.

    Raises:
        InvalidInput: any other name, in particular code, pickles and paths.
    """
    if name != WEIGHTS_FILE and not _MODEL_FILE.fullmatch(name):
        raise InvalidInput(
            f"file {name!r} may not be pushed with weights; expected {WEIGHTS_FILE} or a plain "
            "name ending in .json, .txt, .model or .jinja; leave the file out of the snapshot"
        )


def digest_of(sha256_by_name: Mapping[str, str]) -> str:
    """One sha256 over a set of named files, independent of their order."""
    lines = (f"{name}\0{sha256_by_name[name]}\n" for name in sorted(sha256_by_name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of(data: bytes) -> str:
    """The hexadecimal sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()
