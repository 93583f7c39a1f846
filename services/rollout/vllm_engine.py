"""The production engine: vLLM in this process, whose policy is updated in-flight.

Design: a request is one thought, with the seed that the torch engine would use, so G thoughts of a position
are G requests that share the context through the prefix cache. A prediction after a thought is a separate
request over prompt and thought, because vLLM has no second budget after a stop token; the prefix cache
covers all but its last block. A stop sequence ends at its last token, a stop token of vLLM: where the
others do not precede it, another such request goes on, one per occurrence of that token. The seed
determines the tokens that vLLM samples (independently of the batch, up to rounding), but they differ from
the torch engine's.

New weights do not wait for running thoughts: decoding is paused between two steps, the workers load the
file, the version label changes, and decoding resumes. vLLM labels every output step, so the boundary
between versions in a thought is exact. By default the KV cache of running thoughts is dropped and
recomputed under the new weights; the price is one prefill each. With ``keep_kv`` the stale cache is kept:
cheaper, but log-probs after the boundary then come from a mixed cache, which the learner cannot reproduce.
In both cases prompts are salted with the version at their arrival, so later prompts never read an older
version's cache.

vLLM starts at the first snapshot, from its directory only, and is compared with transformers before it
serves (:mod:`services.rollout.vllm_agreement`). Changed model files start a second vLLM next to
the first, and so does every change of weights of a model that vLLM does not reload exactly; if memory does
not fit two, the push is refused and the replica must be restarted. If vLLM itself
dies, the engine stops serving and reports it through ``on_lost``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from forethought.compute.sampling import SampleRequest, derive_seed
from forethought.compute.weights import check_fit, layout_of
from forethought.errors import EngineLost, InvalidInput, NotReady, one_line
from forethought.types import Rollout, Task, Thought, VersionSpan, WeightManifest
from forethought.weights.snapshot import WEIGHTS_FILE
from services.rollout import vllm_agreement, vllm_build
from services.rollout.tasks import fault, rollouts_of, sample_requests

log = logging.getLogger(__name__)

_LOWEST_TEMPERATURE = 0.01  # vLLM silently raises lower ones to it
_SHUTDOWN_S = 5.0
_HEALTH_CHECK_S = 1.0


class VllmEngine:
    """Continuous batching over vLLM's ``AsyncLLM``; one thought is one request."""

    def __init__(
        self,
        *,
        replica: str,
        options: Mapping[str, Any] | None = None,
        keep_kv: bool = False,
        num_threads: int = 1,
        deterministic: bool = False,
        on_lost: Callable[[], None] = lambda: None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """``options`` are arguments of ``AsyncEngineArgs``; ``deterministic`` decodes one thought at a
        time without prefix cache. Imports vLLM: seconds.

        Raises:
            InvalidInput: no usable vLLM is installed, or an option is not vLLM's.
        """
        vllm_build.prepare_environment(vllm_build.installed_build(), num_threads)
        self._arguments = vllm_build.engine_arguments(options or {}, deterministic=deterministic)
        self._replica, self._keep_kv, self._on_lost = replica, keep_kv, on_lost
        self._on_progress = on_progress
        self._turn = asyncio.Lock()
        self._held: _Held | None = None

    @property
    def serving(self) -> WeightManifest | None:
        """The policy currently served; None before the first weights and after vLLM was lost."""
        return self._held.manifest if self._held else None

    async def load(self, manifest: WeightManifest, directory: Path) -> None:
        """Flip inside running requests; start a new vLLM if the model files changed.

        Raises:
            InvalidInput: the snapshot does not start or does not fit; the old version keeps serving.
            EngineLost: vLLM failed during the flip; nothing is served any more.
        """
        async with self._turn:
            held = self._held
            if not held or held.manifest.model_files_sha256 != manifest.model_files_sha256:
                self._held = await self._start_compared(manifest, directory)
            elif held.changes_in_place:
                await self._flip(held, manifest, directory / WEIGHTS_FILE)
                return
            else:
                check_fit(await asyncio.to_thread(layout_of, directory / WEIGHTS_FILE), held.layout)
                self._held = await self._start_unchangeable(manifest, directory)
            if held:
                await held.retire()

    async def generate(self, tasks: Sequence[Task]) -> list[Rollout]:
        """Sample all tasks, batched with the requests already running.

        Raises:
            NotReady: no weights have arrived yet.
            EngineLost: vLLM died.
        """
        held = self._held
        if held is None:
            raise NotReady("no policy weights yet; the learner has to publish first")
        faults = [_fault(task, held) for task in tasks]
        valid = [task for task, reason in zip(tasks, faults, strict=True) if reason is None]
        try:
            sampled = await held.sample(valid, self._on_progress)
        except EngineLost:
            await self._give_up(held)
            raise
        return rollouts_of(tasks, faults, lambda _: sampled, self._replica)

    def refusal(self, task: Task) -> str | None:
        """Why the policy currently served cannot serve this task."""
        return _fault(task, self._held) if self._held else None

    async def close(self) -> None:
        """Finish running thoughts and stop vLLM."""
        async with self._turn:
            held, self._held = self._held, None
            if held:
                await held.retire()

    async def _start_compared(self, manifest: WeightManifest, directory: Path) -> _Held:
        """Start a vLLM that computes what the learner computes, and find out whether it may be reloaded."""
        held = await _start(self._arguments, manifest, directory)
        if not vllm_agreement.is_comparable(manifest, self._arguments):
            log.info("log-probs of vLLM are not compared: the model is above 2 GiB, or quantized")
            return held
        try:
            if await vllm_agreement.takes_new_weights(held, directory, directory / WEIGHTS_FILE):
                return held
        except BaseException:
            await held.abandon()
            raise
        await held.abandon()  # what it holds now is not the snapshot
        return await self._start_unchangeable(manifest, directory)

    async def _start_unchangeable(self, manifest: WeightManifest, directory: Path) -> _Held:
        """Start a vLLM that is replaced by another one when the weights change."""
        held = await _start(self._arguments, manifest, directory)
        held.changes_in_place = False
        return held

    async def _flip(self, held: _Held, manifest: WeightManifest, file: Path) -> None:
        check_fit(await asyncio.to_thread(layout_of, file), held.layout)
        try:
            await held.take(manifest, file, keep_kv=self._keep_kv)
        except Exception as error:
            await self._give_up(held)
            raise EngineLost(
                f"vLLM failed while loading {manifest.order} ({error}); the replica has to be restarted"
            ) from error

    async def _give_up(self, held: _Held) -> None:
        """Stop serving: after a failed flip vLLM's weights are unknown."""
        if self._held is held:
            self._held = None
            log.error("vLLM is lost; this replica stops serving")
            self._on_lost()
            await held.abandon()


class _Held:
    """One running vLLM, its policy, and its running requests."""

    def __init__(self, llm: Any, manifest: WeightManifest, layout: dict[str, str]) -> None:
        self.manifest, self.layout = manifest, layout
        self.changes_in_place = True
        self.vocabulary: int = llm.model_config.get_vocab_size()
        self.max_length_tokens: int = llm.model_config.max_model_len
        self._llm = llm
        self._running: set[asyncio.Task[Any]] = set()
        self._numbers = itertools.count()

    async def label(self) -> None:
        """Set the version label of the weights that vLLM has started with."""
        await self._llm.update_weight_version(_label(self.manifest))

    async def take(
        self, manifest: WeightManifest, file: Path, *, keep_kv: bool, alter: bool = False
    ) -> None:
        """Replace the weights between two decoding steps; ``file`` has been read when this returns.

        With ``alter`` by others, made from those of the file.

        Decoding resumes only on success: a failed change leaves weights that must not be sampled from.
        """
        await self._llm.pause_generation(mode="keep", clear_cache=not keep_kv)
        await self._llm.collective_rpc("forethought_load", args=(str(file), alter))
        await self._llm.update_weight_version(_label(manifest))
        self.manifest = manifest
        await self._llm.resume_generation()

    async def sample(
        self, tasks: Sequence[Task], on_progress: Callable[[], None] = lambda: None
    ) -> list[tuple[tuple[Thought, ...], ...] | str]:
        """Thoughts [K][G] of every task, or why vLLM refused it.

        Raises:
            EngineLost: vLLM died.
        """
        requests = [sample_requests(task) for task in tasks]
        running = [
            [
                [self._spawn(self._thought(request, s)) for s in request.seeds_G]
                for request in of_task
            ]
            for of_task in requests
        ]
        everything = [one for of_task in running for group in of_task for one in group]
        try:
            await self._until_done(set(everything), on_progress)
        finally:
            for one in everything:
                one.cancel()
        return [_collect(task, own) for task, own in zip(tasks, running, strict=True)]

    async def _until_done(
        self, pending: set[asyncio.Task[Thought]], on_progress: Callable[[], None]
    ) -> None:
        """Wait for all. Requests of a killed vLLM never end, so its health is polled as well.

        Its core answers a question between two decoding steps, which is the progress that is noted.
        """
        asking: asyncio.Task[Any] | None = None
        try:
            while pending:
                asking = asking or asyncio.ensure_future(self._llm.is_sleeping())
                _, pending = await asyncio.wait(pending, timeout=_HEALTH_CHECK_S)
                if self._llm.errored:
                    raise EngineLost("vLLM's core process died; the replica has to be restarted")
                if asking.done():
                    asking.result()
                    asking = None
                    on_progress()
        finally:
            if asking:
                asking.cancel()

    async def retire(self) -> None:
        """Stop vLLM once its running thoughts are finished."""
        if self._running:
            await asyncio.wait(self._running)
        await self._shut_down()

    async def abandon(self) -> None:
        """Stop vLLM at once, cancelling its running thoughts."""
        for task in self._running:
            task.cancel()
        await self._shut_down()

    async def _shut_down(self) -> None:
        await asyncio.to_thread(self._llm.shutdown, _SHUTDOWN_S)

    def _spawn(self, thought: Coroutine[Any, Any, Thought]) -> asyncio.Task[Thought]:
        task = asyncio.create_task(thought)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _thought(self, request: SampleRequest, seed: int) -> Thought:
        """The thought, followed by a prediction if it closed and the request includes one."""
        thought = await self._until_a_stop(request, seed)
        if not thought.closed or not request.prediction_tokens:
            return thought
        budget, stop_ids = request.prediction_tokens, request.prediction_stop_ids
        prefix_ids = request.prefix_ids + thought.token_ids_L
        # A separate seed: with the thought's it would draw the thought's random numbers again.
        seed = derive_seed(seed, 1)
        prediction = await self._output(request, prefix_ids, seed, budget, stop_ids)
        num_predicted = len(prediction.token_ids)
        return replace(_extended(thought, prediction), num_prediction_tokens=num_predicted)

    async def _until_a_stop(self, request: SampleRequest, seed: int) -> Thought:
        """The thought alone. vLLM ends at single tokens: at the last one of a stop sequence, and where the
        others do not precede it, a further request goes on, with a seed of its own."""
        stops, thought, number = request.stops, Thought((), (), (), closed=False), 0
        while True:
            prefix_ids = request.prefix_ids + thought.token_ids_L
            budget = request.max_tokens - len(thought.token_ids_L)
            seed_here = derive_seed(seed, 2, number) if number else seed
            output = await self._output(request, prefix_ids, seed_here, budget, stops.last_ids)
            thought = _extended(thought, output)
            closed, has_ended = stops.end_here(thought.token_ids_L), output.finish_reason != "stop"
            if closed or has_ended or len(thought.token_ids_L) == request.max_tokens:
                return replace(thought, closed=closed)
            number += 1

    async def _output(
        self,
        request: SampleRequest,
        prefix_ids: tuple[int, ...],
        seed: int,
        max_tokens: int,
        stop_ids: tuple[int, ...],
    ) -> Any:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=max_tokens,
            temperature=request.temperature,
            seed=seed,
            stop_token_ids=list(stop_ids),
            ignore_eos=True,  # only the task's own stop tokens end a thought
            logprobs=0,  # of the sampled token only
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt = tokens_input(list(prefix_ids), cache_salt=_label(self.manifest))
        name = f"thought-{next(self._numbers)}"
        async for output in self._llm.generate(prompt, parameters, name):
            last = output
        return last.outputs[0]


async def _start(arguments: Mapping[str, Any], manifest: WeightManifest, directory: Path) -> _Held:
    """Start a vLLM with the snapshot in ``directory``, which has been read when this returns."""

    def start() -> tuple[Any, dict[str, str]]:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        layout = layout_of(directory / WEIGHTS_FILE)
        given = {
            "dtype": manifest.dtype,
            **vllm_build.with_length(arguments, directory),
            "model": str(directory),
        }
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**given)), layout
        except Exception as error:
            raise InvalidInput(
                f"vLLM does not start with this snapshot: {one_line(error)}; expected a model that "
                "vLLM knows and memory for it (see [rollout.vllm], and this replica's log above)"
            ) from error

    llm, layout = await asyncio.to_thread(start)
    held = _Held(llm, manifest, layout)
    await held.label()
    return held


def _collect(
    task: Task, running: Sequence[Sequence[asyncio.Task[Thought]]]
) -> tuple[tuple[Thought, ...], ...] | str:
    """The finished thoughts of a task, or the reason why vLLM refused one of them."""
    for one in (one for group in running for one in group):
        if one.cancelled():  # by abandon(), not by the caller
            raise EngineLost(
                f"vLLM was lost while sampling task {task.task_id}; use another replica"
            )
        if error := one.exception():
            return f"vLLM refused task {task.task_id}: {error.__cause__ or error!r}"
    return tuple(tuple(one.result() for one in group) for group in running)


def _extended(thought: Thought, output: Any) -> Thought:
    """A thought with what was sampled after it."""
    spans = [*thought.version_spans, *_spans(output)]
    return Thought(
        thought.token_ids_L + tuple(output.token_ids),
        thought.behaviour_logprobs_L + _logprobs(output),
        tuple(
            VersionSpan(version, sum(span.num_tokens for span in of_version))
            for version, of_version in itertools.groupby(spans, key=lambda span: span.version)
        ),
        thought.closed,
    )


def _logprobs(output: Any) -> tuple[float, ...]:
    sampled = zip(output.logprobs, output.token_ids, strict=True)
    return tuple(float(at[token_id].logprob) for at, token_id in sampled)


def _spans(output: Any) -> tuple[VersionSpan, ...]:
    return tuple(
        VersionSpan(_version_of(span.version), span.end - span.start)
        for span in output.weight_versions
    )


def _label(manifest: WeightManifest) -> str:
    """vLLM's label for the weights, which also salts its cache: versions repeat across epochs and runs."""
    return f"{manifest.run_id}.{manifest.epoch}.{manifest.version}"


def _version_of(label: str) -> int:
    return int(label.rpartition(".")[2])


def _fault(task: Task, held: _Held) -> str | None:
    if task.sampling.temperature < _LOWEST_TEMPERATURE:
        return (
            f"task {task.task_id} has temperature {task.sampling.temperature}, vLLM samples at "
            f"{_LOWEST_TEMPERATURE} or higher; raise sampling.temperature or use rollout.engine=torch"
        )
    return fault(task, held.vocabulary, held.max_length_tokens)
