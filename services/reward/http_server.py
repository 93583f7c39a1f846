"""The HTTP door: anyone may ask what a thought is worth.

Design: the event loop reads and parses; everything that takes long (tokenising, scoring,
rewarding) is one job on the scorer's compute thread, which the queue worker shares. So a request
never runs beside a training batch, and the price is that it waits for the one in hand, and that
batch's successor for it; ``max_request_tokens`` bounds how long.

Nothing in a request reaches the filesystem or an import: objectives are those that were loaded at
start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from forethought import estimators
from forethought.compute.model import find_markers
from forethought.compute.served_model import ServedModel
from forethought.errors import ForethoughtError, InvalidInput, NotReady, Status, status_of
from forethought.objectives import Objective
from forethought.types import Prompting
from services.reward.http_messages import (
    EXAMPLE_REQUEST,
    REQUEST_SCHEMA,
    ErrorReply,
    ModelsReply,
    ScoreReply,
    TooLarge,
    item_id,
    read_item,
    read_request,
    shown,
)
from services.reward.scoring import GroupQuery, Outcome, Scorer, rewards_of

_SCORE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": REQUEST_SCHEMA, "example": EXAMPLE_REQUEST}},
    }
}


def create_app(
    scorer: Scorer,
    tokenizer_of: Callable[[], Any],
    objectives: Mapping[str, Objective],
    *,
    think_open: str,
    think_close: str,
    max_body_bytes: int,
    max_request_tokens: int = 1 << 22,
) -> FastAPI:
    """The application that serves ``POST /v1/score``, ``GET /v1/models`` and ``/docs``.

    ``tokenizer_of`` gives the served policy's tokenizer, or raises ``NotReady``.
    ``max_request_tokens`` bounds the tokens of all branches of a request; a short body could
    otherwise ask for a long context times a million thoughts.
    """
    markers = (think_open, think_close)
    door = _ScoreDoor(scorer, tokenizer_of, objectives, markers, max_request_tokens)
    app = FastAPI(title="Forethought reward service", description="What is a thought worth?")
    for kind in (ForethoughtError, StarletteHTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)

    @app.post(
        "/v1/score",
        summary="Score groups of thoughts",
        responses=_responses(ScoreReply, 400, 413, 503),
        openapi_extra=_SCORE_BODY,
    )
    async def score(request: Request) -> JSONResponse:
        """Rewards and advantages of every item's thoughts; a bad item fails alone, inside a 200."""
        name, items = read_request(await _read_body(request, max_body_bytes))
        return JSONResponse(await scorer.run(door.answer, name, items))

    @app.get("/v1/models", summary="What is served", responses=_responses(ModelsReply, 503))
    async def models() -> JSONResponse:
        """Policy and baseline with their versions, and the objectives that may be asked for."""
        return JSONResponse(await scorer.run(_describe, scorer, sorted(objectives)))

    return app


class _ScoreDoor:
    """Answers ``POST /v1/score``, on the compute thread."""

    def __init__(
        self,
        scorer: Scorer,
        tokenizer_of: Callable[[], Any],
        objectives: Mapping[str, Objective],
        markers: tuple[str, str],
        max_request_tokens: int,
    ) -> None:
        self._scorer = scorer
        self._tokenizer_of = tokenizer_of
        self._objectives = objectives
        self._estimators = {
            name: estimators.load(objective.estimator) for name, objective in objectives.items()
        }
        self._markers = markers
        self._max_request_tokens = max_request_tokens

    def answer(self, name: str, items: list[Any]) -> dict[str, Any]:
        """The reply to a request.

        Raises:
            InvalidInput: the objective is unknown, or the request too large.
            NotReady: no weights yet.
        """
        if name not in self._objectives:
            raise InvalidInput(
                f"got objective {shown(name)}; expected one that was loaded at start: "
                f"{', '.join(sorted(self._objectives))}; or start the service with yours"
            )
        queries = self._queries(name, items)
        sound = [query for query in queries if isinstance(query, GroupQuery)]
        self._check_size(sound)
        outcomes = iter(self._scorer.score_groups(sound))
        return {
            "items": [
                self._reply(name, item, query, next(outcomes))
                if isinstance(query, GroupQuery)
                else _failed(item, query)
                for item, query in zip(items, queries, strict=True)
            ]
        }

    def _queries(self, name: str, items: list[Any]) -> list[GroupQuery | ForethoughtError]:
        tokenizer = self._tokenizer_of()
        prompting = self._prompting(name, tokenizer)
        return [self._query(name, item, tokenizer, prompting) for item in items]

    def _query(
        self, name: str, item: Any, tokenizer: Any, prompting: Prompting
    ) -> GroupQuery | ForethoughtError:
        try:
            query = read_item(item, tokenizer, prompting)
        except ForethoughtError as error:
            return error
        least = self._estimators[name].min_group_size
        if len(query.thoughts_G) < least:
            return InvalidInput(
                f"thoughts holds {len(query.thoughts_G)}; expected at least {least}, because the "
                f"advantage of objective {name} compares thoughts with each other; give more"
            )
        return query

    def _prompting(self, name: str, tokenizer: Any) -> Prompting:
        try:
            markers = find_markers(tokenizer, *self._markers)
        except InvalidInput as error:  # the fault of what is served, not of who asks
            raise NotReady(str(error)) from error
        return self._objectives[name].prompting(markers.open_id, markers.close_id)

    def _check_size(self, queries: list[GroupQuery]) -> None:
        num_tokens = sum(query.num_tokens for query in queries)
        if num_tokens > self._max_request_tokens:
            raise TooLarge(
                f"the request asks for {num_tokens} tokens to be read; expected at most "
                f"{self._max_request_tokens}; send fewer items or thoughts at once"
            )

    def _reply(self, name: str, item: Any, query: GroupQuery, outcome: Outcome) -> dict[str, Any]:
        if isinstance(outcome, ForethoughtError):
            return _failed(item, outcome)
        try:
            rewards_G = rewards_of(self._objectives[name], query, outcome)
        except ForethoughtError as error:
            return _failed(item, error)
        return {
            "id": item_id(item),
            "rewards": rewards_G,
            "advantages": self._estimators[name].advantages([rewards_G])[0],
            "policy_logprobs": outcome.policy_logprobs_G,
            "baseline_logprob": outcome.baseline_logprob,
            "policy_version": outcome.policy_version,
            "baseline_version": outcome.baseline_version,
        }


def _failed(item: Any, error: ForethoughtError) -> dict[str, Any]:
    return {"id": item_id(item)} | _error_body(status_of(error))


def _error_body(status: Status) -> dict[str, Any]:
    return {"error": {"status": status.http_status, "message": status.message}}


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """The one place where an exception becomes an HTTP answer."""
    if isinstance(error, StarletteHTTPException):  # such as: no such path
        status = Status(error.status_code, "", f"{error.detail}; see /docs for what there is")
    else:
        status = status_of(error)
    return JSONResponse(_error_body(status), status.http_status)


async def _read_body(request: Request, max_body_bytes: int) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_body_bytes:
                raise TooLarge(
                    f"the body has more than {max_body_bytes} bytes; expected at most that many; "
                    "send the items in several requests"
                )
    except ClientDisconnect as error:  # nobody reads the answer; it only keeps the log quiet
        raise InvalidInput(f"the body ended after {len(body)} bytes; send all of it") from error
    return bytes(body)


def _describe(scorer: Scorer, names: list[str]) -> dict[str, Any]:
    baseline = scorer.baseline
    return {
        "policy": _model_info(scorer.policy),
        "baseline": _model_info(baseline) if baseline and baseline.is_ready else None,
        "objectives": names,
    }


def _model_info(served: ServedModel) -> dict[str, Any]:
    with served.hold() as serving:
        manifest, language_model = serving.manifest, serving.language_model
        return {
            "name": manifest.model,
            "epoch": manifest.epoch,
            "version": manifest.version,
            "sha256": manifest.sha256,
            "dtype": manifest.dtype,
            "num_parameters": sum(p.numel() for p in language_model.model.parameters()),
            "max_length_tokens": language_model.max_length_tokens,
        }


def _responses(reply: type, *error_statuses: int | str) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {200: {"model": reply}}
    return responses | {status: {"model": ErrorReply} for status in error_statuses}
