"""Surrogates: what is maximised in the advantages, per token. Four of them, by name.

With rho_u = exp(log pi_policy(l_u) - log pi_old(l_u)) and A the advantage, a constant:

    ppo_clip         min(rho_u A, clip(rho_u, 1 - low, 1 + high) A)           RLP eq. 8; arXiv 2503.14476
    cispo            sg(clip(rho_u, 1 - low, 1 + high)) A log pi_policy(l_u)  arXiv 2506.13585
    gspo             ppo_clip with s = exp(mean_u log rho_u) for every rho_u  arXiv 2507.18071
    policy_gradient  A log pi_policy(l_u)                                     REINFORCE

Design: all are values per token that the same weights are then applied to, so any of them goes with any
aggregation, and micro-batches still add up. GSPO is a mean over sequences: with weights 1/|c| its tokens'
equal shares sum to exactly that. The price is that cispo and policy_gradient report a loss that means
nothing by itself; only their gradients do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Surrogate:
    """``gain_BH`` is to be maximised; ``ratio_BH`` is what was held against the clip range. [B, H].

    Example:
        ``Surrogate(gain_BH=ratio * advantages, ratio_BH=ratio)``
    """

    gain_BH: torch.Tensor
    ratio_BH: torch.Tensor


@dataclass(frozen=True, slots=True)
class SurrogateInputs:
    """Log-probs, advantages and the mask of learned tokens, [B, H]; the range is [1 - low, 1 + high].

    ``log_ratio_BH`` is 0 off the mask, so that padding can neither overflow nor pass a NaN on.

    Example:
        ``SurrogateInputs(logprobs, log_ratio, advantages, mask, low=0.2, high=0.28)``
    """

    logprobs_BH: torch.Tensor
    log_ratio_BH: torch.Tensor
    advantages_BH: torch.Tensor
    mask_BH: torch.Tensor
    low: float
    high: float


def ppo_clip(given: SurrogateInputs) -> Surrogate:
    """The clipped surrogate: no gradient where a step would leave the range in A's direction."""
    return _clipped(given, given.log_ratio_BH.exp())


def cispo(given: SurrogateInputs) -> Surrogate:
    """The clipped importance weight as a constant: every token keeps a gradient.

    MiniMax-M1 sets no lower bound, which is ``low`` = 1.
    """
    ratio_BH = given.log_ratio_BH.exp()
    weight_BH = ratio_BH.clamp(1 - given.low, 1 + given.high).detach()
    logprobs_BH = torch.where(given.mask_BH, given.logprobs_BH, 0.0)
    return Surrogate(weight_BH * given.advantages_BH * logprobs_BH, ratio_BH)


def gspo(given: SurrogateInputs) -> Surrogate:
    """The clipped surrogate with the length-normalised ratio of the whole sequence (a row) in it."""
    num_tokens_B1 = given.mask_BH.sum(dim=1, keepdim=True).clamp_min(1)
    mean_B1 = given.log_ratio_BH.sum(dim=1, keepdim=True) / num_tokens_B1
    return _clipped(given, mean_B1.exp().expand_as(given.log_ratio_BH))


def policy_gradient(given: SurrogateInputs) -> Surrogate:
    """No ratio and no clip: right on fresh samples, biased on stale ones."""
    logprobs_BH = torch.where(given.mask_BH, given.logprobs_BH, 0.0)
    return Surrogate(given.advantages_BH * logprobs_BH, torch.ones_like(logprobs_BH))


def _clipped(given: SurrogateInputs, ratio_BH: torch.Tensor) -> Surrogate:
    clipped_BH = ratio_BH.clamp(1 - given.low, 1 + given.high)
    gain_BH = torch.minimum(ratio_BH * given.advantages_BH, clipped_BH * given.advantages_BH)
    return Surrogate(gain_BH, ratio_BH)


SURROGATES: dict[str, Callable[[SurrogateInputs], Surrogate]] = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "gspo": gspo,
    "policy_gradient": policy_gradient,
}
"""By the name that ``learner.loss`` gives them."""
