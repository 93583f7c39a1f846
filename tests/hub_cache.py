"""A cache of the Hugging Face hub, laid out as huggingface_hub does, without a network.

hub/models--owner--name/refs/main                 the commit of the branch
hub/models--owner--name/snapshots/COMMIT/FILE     a link to
hub/models--owner--name/blobs/DIGEST              the content
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

FIRST, SECOND = "1" * 40, "2" * 40
MODEL, DATASET = "tiny-lab/tiny-model", "tiny-lab/tiny-sums"


class HubCache:
    """A cache below ``home``, which HF_HOME names."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def environment(self, *, offline: bool = True) -> dict[str, str]:
        """A process's environment with this cache; the endpoint refuses connections."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "FORETHOUGHT_"))}
        return kept | {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_OFFLINE": "1" if offline else "0",
        }

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Use this cache in the test's own process, offline."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.home / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def repository(self, kind: str, name: str) -> Path:
        return self.home / "hub" / f"{kind}s--{name.replace('/', '--')}"

    def add(
        self,
        kind: str,
        name: str,
        files: Mapping[str, bytes],
        commit: str = FIRST,
        ref: str = "main",
    ) -> Path:
        """Add a snapshot with these files, and make the branch ``ref`` point to it; returns its folder."""
        root = self.repository(kind, name)
        snapshot = root / "snapshots" / commit
        for file, content in files.items():
            blob = root / "blobs" / hashlib.sha256(content).hexdigest()
            link = snapshot / file
            for path in (blob, link):
                path.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link.symlink_to(os.path.relpath(blob, link.parent))
        branch = root / "refs" / ref
        branch.parent.mkdir(parents=True, exist_ok=True)
        branch.write_text(commit)
        return snapshot

    def add_folder(self, kind: str, name: str, folder: Path, commit: str = FIRST) -> Path:
        """Add a snapshot with the files of a folder."""
        files = {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }
        return self.add(kind, name, files, commit)
