"""The peer of ``benchmarks.http``: the schema of ``POST /v1/score`` as plain FastAPI and pydantic."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str | int | None = None
    context: str | None = None
    context_ids: list[int] | None = None
    target: str | None = None
    target_ids: list[int] | None = None
    thoughts: list[str | list[int]]


class ScoreRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    objective: str
    items: list[Item]


class ItemScores(BaseModel):
    id: str | int | None
    rewards: list[float]
    advantages: list[float]
    policy_logprobs: list[float]
    baseline_logprob: float
    policy_version: int
    baseline_version: int


class ScoreReply(BaseModel):
    items: list[ItemScores]


async def score(request: ScoreRequest) -> ScoreReply:
    return ScoreReply(
        items=[
            ItemScores(
                id=item.id,
                rewards=[0.9] * len(item.thoughts),
                advantages=[0.0] * len(item.thoughts),
                policy_logprobs=[-0.1] * len(item.thoughts),
                baseline_logprob=-1.0,
                policy_version=1,
                baseline_version=1,
            )
            for item in request.items
        ]
    )
