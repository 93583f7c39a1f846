"""A served model: the first to wait for it is next."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

from tests.tiny import build_model_directory, manifest, serve


def test_new_weights_wait_for_one_batch_however_soon_the_next_begins(tmp_path: Path) -> None:
    served = serve(build_model_directory(tmp_path), "policy")
    for version in range(1, 6):
        loading = Thread(target=served.load, args=(tmp_path, manifest("policy", version=version)))
        with served.hold():
            loading.start()
            while not served._next.locked():
                time.sleep(0.001)
        with served.hold() as serving:
            assert serving.manifest.version == version
        loading.join()
