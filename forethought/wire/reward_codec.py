"""The reward service's requests and responses: conversion between JSON-like values and protobuf.

Design: the JSON form is the one HTTP carries, so clients and the service handle one form whatever the
transport. Each method's four conversions are next to each other: ``<method>_request`` and
``<method>_body`` for the request, ``<method>_reply`` and ``<method>_answer`` for the response. The price
is that ids and numbers are briefly Python lists on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forethought.wire.codec import WIRE_VERSION
from forethought.wire.packing import (
    pack_doubles,
    pack_floats,
    pack_ids,
    packable_ids,
    unpack_doubles,
    unpack_floats,
    unpack_ids,
)
from forethought.wire.v1 import reward_service_pb2 as pb

Plain = Mapping[str, Any]


def score_request(body: Plain) -> pb.ScoreRequest:
    """The message of ``{"objective", "items"}``."""
    return pb.ScoreRequest(
        wire_version=WIRE_VERSION,
        objective=body["objective"],
        items=[
            pb.ScoreItem(
                id=item.get("id"),
                context=_tokens_of(item, "context"),
                target=_tokens_of(item, "target"),
                thoughts=[_tokens(thought, "thoughts") for thought in item["thoughts"]],
            )
            for item in body["items"]
        ],
    )


def score_body(request: pb.ScoreRequest) -> dict[str, Any]:
    """The inverse of :func:`score_request`."""
    return {
        "objective": request.objective,
        "items": [
            {"id": _optional(item, "id"), "thoughts": [_plain(t) for t in item.thoughts]}
            | _named(item.context, "context")
            | _named(item.target, "target")
            for item in request.items
        ],
    }


def score_reply(answer: Plain) -> pb.ScoreReply:
    """The message of one outcome per item."""
    return pb.ScoreReply(wire_version=WIRE_VERSION, items=map(_score_outcome, answer["items"]))


def score_answer(reply: pb.ScoreReply) -> dict[str, Any]:
    """The inverse of :func:`score_reply`."""
    return {"items": [{"id": _optional(i, "id")} | _scores(i) for i in reply.items]}


def logprobs_request(body: Plain) -> pb.LogprobsRequest:
    """The message of ``{"model", "prefix" | "prefix_ids", "continuations"}``."""
    return pb.LogprobsRequest(
        wire_version=WIRE_VERSION,
        model=body["model"],
        prefix=_tokens_of(body, "prefix"),
        continuations=[_tokens(value, "continuations") for value in body["continuations"]],
    )


def logprobs_body(request: pb.LogprobsRequest) -> dict[str, Any]:
    """The inverse of :func:`logprobs_request`."""
    continuations = [_plain(value) for value in request.continuations]
    body = {"model": request.model, "continuations": continuations}
    return body | _named(request.prefix, "prefix")


def logprobs_reply(answer: Plain) -> pb.LogprobsReply:
    """The message of the log-probs of every continuation."""
    return pb.LogprobsReply(
        wire_version=WIRE_VERSION,
        model=answer["model"],
        epoch=answer["epoch"],
        version=answer["version"],
        continuations=[
            pb.ContinuationLogprobs(
                token_ids=pack_ids(one["token_ids"]),
                logprobs=pack_floats(one["logprobs"]),
                logprob=one["logprob"],
            )
            for one in answer["continuations"]
        ],
    )


def logprobs_answer(reply: pb.LogprobsReply) -> dict[str, Any]:
    """The inverse of :func:`logprobs_reply`."""
    return {
        "model": reply.model,
        "epoch": reply.epoch,
        "version": reply.version,
        "continuations": [
            {
                "token_ids": unpack_ids(one.token_ids),
                "logprobs": unpack_floats(one.logprobs),
                "logprob": one.logprob,
            }
            for one in reply.continuations
        ],
    }


def match_request(body: Plain) -> pb.MatchRequest:
    """The message of ``{"kind", "items"}``."""
    return pb.MatchRequest(
        wire_version=WIRE_VERSION,
        kind=body["kind"],
        items=[
            pb.MatchItem(
                id=item.get("id"),
                prediction=item["prediction"],
                truth=item["truth"],
                token_bytes=_packed_or_none(item.get("token_bytes"), "token_bytes"),
            )
            for item in body["items"]
        ],
    )


def match_body(request: pb.MatchRequest) -> dict[str, Any]:
    """The inverse of :func:`match_request`."""
    return {"kind": request.kind, "items": [_match_item(item) for item in request.items]}


def match_reply(answer: Plain) -> pb.MatchReply:
    """The message of one match result per item."""
    return pb.MatchReply(
        wire_version=WIRE_VERSION,
        items=[
            pb.MatchOutcome(id=_text_id(item), error=pb.Failure(**item["error"]))
            if "error" in item
            else pb.MatchOutcome(id=_text_id(item), match=item["match"])
            for item in answer["items"]
        ],
    )


def match_answer(reply: pb.MatchReply) -> dict[str, Any]:
    """The inverse of :func:`match_reply`."""
    return {
        "items": [
            {"id": _optional(item, "id")}
            | ({"error": _failure(item.error)} if item.HasField("error") else {"match": item.match})
            for item in reply.items
        ]
    }


def entropy_request(body: Plain) -> pb.EntropyRequest:
    """The message of ``{"text" | "token_ids", "top_k"?, "renormalise"?}``."""
    text, token_ids = body.get("text"), body.get("token_ids")
    return pb.EntropyRequest(
        wire_version=WIRE_VERSION,
        text=_tokens(token_ids if text is None else text, "token_ids"),
        top_k=body.get("top_k"),
        renormalise=body.get("renormalise", False),
    )


def entropy_body(request: pb.EntropyRequest) -> dict[str, Any]:
    """The inverse of :func:`entropy_request`."""
    found = _plain(request.text)
    body: dict[str, Any] = {"text" if isinstance(found, str) else "token_ids": found}
    if request.HasField("top_k"):
        body["top_k"] = request.top_k
    return body | {"renormalise": request.renormalise}


def entropy_reply(answer: Plain) -> pb.EntropyReply:
    """The message of every token's entropy."""
    return pb.EntropyReply(
        wire_version=WIRE_VERSION,
        epoch=answer["epoch"],
        version=answer["version"],
        token_ids=pack_ids(answer["token_ids"]),
        first_position=answer["first_position"],
        entropies=pack_floats(answer["entropies"]),
    )


def entropy_answer(reply: pb.EntropyReply) -> dict[str, Any]:
    """The inverse of :func:`entropy_reply`."""
    return {
        "epoch": reply.epoch,
        "version": reply.version,
        "token_ids": unpack_ids(reply.token_ids),
        "first_position": reply.first_position,
        "entropies": unpack_floats(reply.entropies),
    }


def models_request(body: None) -> pb.ModelsRequest:
    """The message of a request without a body."""
    return pb.ModelsRequest(wire_version=WIRE_VERSION)


def models_reply(answer: Plain) -> pb.ModelsReply:
    """The message of the served models and objectives."""
    baseline = answer["baseline"]
    return pb.ModelsReply(
        wire_version=WIRE_VERSION,
        policy=pb.ServedModel(**answer["policy"]),
        baseline=pb.ServedModel(**baseline) if baseline else None,
        objectives=answer["objectives"],
    )


def models_answer(reply: pb.ModelsReply) -> dict[str, Any]:
    """The inverse of :func:`models_reply`."""
    return {
        "policy": _served(reply.policy),
        "baseline": _served(reply.baseline) if reply.HasField("baseline") else None,
        "objectives": list(reply.objectives),
    }


def _score_outcome(item: Plain) -> pb.ScoreOutcome:
    if "error" in item:
        return pb.ScoreOutcome(id=_text_id(item), error=pb.Failure(**item["error"]))
    scores = pb.Scores(
        rewards=pack_doubles(item["rewards"]),
        advantages=pack_doubles(item["advantages"]),
        policy_logprobs=pack_doubles(item["policy_logprobs"]),
        baseline_logprob=item["baseline_logprob"],
        policy_version=item["policy_version"],
        baseline_version=item["baseline_version"],
    )
    return pb.ScoreOutcome(id=_text_id(item), scores=scores)


def _scores(item: pb.ScoreOutcome) -> dict[str, Any]:
    if item.HasField("error"):
        return {"error": _failure(item.error)}
    scores = item.scores
    return {
        "rewards": unpack_doubles(scores.rewards),
        "advantages": unpack_doubles(scores.advantages),
        "policy_logprobs": unpack_doubles(scores.policy_logprobs),
        "baseline_logprob": scores.baseline_logprob,
        "policy_version": scores.policy_version,
        "baseline_version": scores.baseline_version,
    }


def _match_item(item: pb.MatchItem) -> dict[str, Any]:
    token_bytes = list(unpack_ids(item.token_bytes)) if item.HasField("token_bytes") else None
    return {
        "id": _optional(item, "id"),
        "prediction": item.prediction,
        "truth": item.truth,
        "token_bytes": token_bytes,
    }


def _served(model: pb.ServedModel) -> dict[str, Any]:
    return {field.name: getattr(model, field.name) for field in model.DESCRIPTOR.fields}


def _failure(error: pb.Failure) -> dict[str, Any]:
    return {"status": error.status, "message": error.message}


def _tokens_of(item: Plain, name: str) -> pb.Tokens:
    text = item.get(name)
    return _tokens(item.get(f"{name}_ids") if text is None else text, f"{name}_ids")


def _tokens(value: Any, what: str) -> pb.Tokens:
    if value is None:
        return pb.Tokens()
    if isinstance(value, str):
        return pb.Tokens(text=value)
    return pb.Tokens(token_ids=packable_ids(value, what))


def _packed_or_none(value: Any, what: str) -> bytes | None:
    return None if value is None else packable_ids(value, what)


def _plain(tokens: pb.Tokens) -> str | list[int] | None:
    form = tokens.WhichOneof("form")
    if form is None:
        return None
    return tokens.text if form == "text" else list(unpack_ids(tokens.token_ids))


def _named(tokens: pb.Tokens, name: str) -> dict[str, Any]:
    found = _plain(tokens)
    return {name if isinstance(found, str) else f"{name}_ids": found}


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _text_id(item: Plain) -> str | None:
    found = item.get("id")
    return None if found is None else str(found)
