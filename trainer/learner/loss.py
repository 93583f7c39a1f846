"""The loss: a surrogate and a next-token term, both over per-token arrays.

RLP eq. 8 (arXiv 2510.01265):
    L = -(1/(B G)) sum_{b,i} (1/|c_i|) sum_u min(rho_u A_i, clip(rho_u, 1 - eps_l, 1 + eps_h) A_i)
with rho_u = exp(log pi_policy(l_u) - log pi_old(l_u)) at the sampling temperature, A_i a constant. The
factors before the sums are in ``weights_BH``. No KL term. The other surrogates, per token:

    ppo_clip         min(rho_u A, clip(rho_u, 1 - low, 1 + high) A)           RLP eq. 8; arXiv 2503.14476
    cispo            sg(clip(rho_u, 1 - low, 1 + high)) A log pi_policy(l_u)  arXiv 2506.13585
    gspo             ppo_clip with s = exp(mean_u log rho_u) for every rho_u  arXiv 2507.18071
    policy_gradient  A log pi_policy(l_u)                                     REINFORCE

Design: a surrogate gives a value per token, to which the same weights are then applied, so any surrogate
combines with any aggregation, and micro-batches still add up. GSPO is a mean over sequences: with weights
1/|c| its tokens' equal shares sum to exactly that. The price is that the loss reported by cispo and
policy_gradient is meaningless by itself; only its gradient is meaningful.

Old log-probs are the sampler's (behaviour) unless an importance cap C is set; then they are the learner's
at the start of the batch, and the mismatch between the two enters as a constant factor
min(exp(log pi_old - log pi_behaviour), C), the truncated importance correction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from forethought.compute.rows import tail_logits
from trainer.learner.batching import MicroBatch


@dataclass(frozen=True, slots=True)
class LossParts:
    """A micro-batch's loss (a scalar with gradient) and sums for metrics.

    ``ratio_max`` and ``num_clipped`` are over ``num_surrogate`` thought tokens; ``importance_…`` are sums
    over them of the learner's probability over the sampler's, and of its square.

    Example:
        ``LossParts(loss, surrogate=-0.02, nll=0.0, num_surrogate=70, num_clipped=1, ratio_max=1.3, …)``
    """

    loss: torch.Tensor
    surrogate: float
    nll: float
    num_surrogate: int
    num_clipped: int
    ratio_max: float
    importance_sum: float
    importance_squares: float


def policy_logprobs(model: Any, batch: MicroBatch) -> torch.Tensor:
    """log pi_policy of every target at its own temperature, float32. Shape [B, H]."""
    logits = tail_logits(model, batch.rows, batch.num_tail)
    scaled = logits / batch.temperatures_BH[..., None]
    return torch.log_softmax(scaled, dim=-1).gather(2, batch.targets_BH[..., None])[..., 0]


def importance(
    proximal_logprobs_BH: torch.Tensor, behaviour_logprobs_BH: torch.Tensor, cap: float
) -> torch.Tensor:
    """Truncated importance weight of the learner's policy over the sampler's, detached. Shape [B, H]."""
    return (proximal_logprobs_BH - behaviour_logprobs_BH).exp().clamp_max(cap).detach()


def batch_loss(
    batch: MicroBatch,
    policy_logprobs_BH: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    surrogate: str = "ppo_clip",
    proximal_logprobs_BH: torch.Tensor | None = None,
    importance_cap: float = 0.0,
) -> LossParts:
    """Surrogate plus next-token loss of one micro-batch.

    With an ``importance_cap`` above 0, ``proximal_logprobs_BH`` are the learner's at the batch's start.
    """
    old_BH, factor_BH = batch.behaviour_logprobs_BH, torch.ones_like(batch.weights_BH)
    if importance_cap > 0:
        assert proximal_logprobs_BH is not None
        old_BH = proximal_logprobs_BH
        factor_BH = importance(old_BH, batch.behaviour_logprobs_BH, importance_cap)
    mask_BH = batch.weights_BH != 0
    # Masked before exp, so that padding can neither overflow nor pass a NaN to the gradient.
    log_ratio_BH = torch.where(mask_BH, policy_logprobs_BH - old_BH, 0.0)
    gained = SURROGATES[surrogate](
        SurrogateInputs(
            policy_logprobs_BH, log_ratio_BH, batch.advantages_BH, mask_BH, clip_low, clip_high
        )
    )
    loss = -(batch.weights_BH * factor_BH * gained.gain_BH).sum()
    nll_logprobs_BH = torch.where(batch.nll_weights_BH != 0, policy_logprobs_BH, 0.0)
    nll = -(batch.nll_weights_BH * nll_logprobs_BH).sum()
    ratios = gained.ratio_BH.detach()[mask_BH]
    mismatch = (policy_logprobs_BH - batch.behaviour_logprobs_BH).detach()[mask_BH].exp()
    return LossParts(
        loss=loss + nll,
        surrogate=loss.item(),
        nll=nll.item(),
        num_surrogate=int(mask_BH.sum()),
        num_clipped=int(((ratios < 1 - clip_low) | (ratios > 1 + clip_high)).sum()),
        ratio_max=float(ratios.max()) if ratios.numel() else 0.0,
        importance_sum=float(mismatch.sum()),
        importance_squares=float((mismatch * mismatch).sum()),
    )


@dataclass(frozen=True, slots=True)
class Surrogate:
    """``gain_BH`` is to be maximised; ``ratio_BH`` is compared with the clip range. Both [B, H].

    Example:
        ``Surrogate(gain_BH=ratio * advantages, ratio_BH=ratio)``
    """

    gain_BH: torch.Tensor
    ratio_BH: torch.Tensor


@dataclass(frozen=True, slots=True)
class SurrogateInputs:
    """Log-probs, advantages and the mask of trained tokens, [B, H]; the range is [1 - low, 1 + high].

    ``log_ratio_BH`` is 0 outside the mask, so that padding can neither overflow nor propagate a NaN.

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
    """The clipped surrogate with the length-normalised importance ratio of the whole sequence (a row)."""
    num_tokens_B1 = given.mask_BH.sum(dim=1, keepdim=True).clamp_min(1)
    mean_B1 = given.log_ratio_BH.sum(dim=1, keepdim=True) / num_tokens_B1
    return _clipped(given, mean_B1.exp().expand_as(given.log_ratio_BH))


def policy_gradient(given: SurrogateInputs) -> Surrogate:
    """No ratio and no clip: unbiased on fresh samples, biased on stale ones."""
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
"""Surrogates by their name in ``learner.loss``."""
