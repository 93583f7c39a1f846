"""Clients of the services, sync and async, over HTTP and gRPC.

    RewardClient("http://host:8080")     scores thoughts (HTTP or gRPC)
    RolloutClient("grpc://host:50051")   samples thoughts (gRPC only)

Importing this loads neither httpx2 nor grpc: a client loads the one its URL requires.
"""

from forethought.clients.retrying import Retries
from forethought.clients.reward import AsyncRewardClient, RewardClient
from forethought.clients.reward_requests import (
    ContinuationLogprobs,
    Entropies,
    ItemScores,
    Logprobs,
    MatchItem,
    ModelInfo,
    Models,
    ScoreItem,
)
from forethought.clients.rollout import AsyncRolloutClient, RolloutClient
from forethought.clients.rollout_requests import Generated

__all__ = [
    "AsyncRewardClient",
    "AsyncRolloutClient",
    "ContinuationLogprobs",
    "Entropies",
    "Generated",
    "ItemScores",
    "Logprobs",
    "MatchItem",
    "ModelInfo",
    "Models",
    "Retries",
    "RewardClient",
    "RolloutClient",
    "ScoreItem",
]
