"""The loss: a surrogate and a next-token term, both over per-token arrays.

RLP eq. 8 (arXiv 2510.01265):
    L = -(1/(B G)) sum_{b,i} (1/|c_i|) sum_u min(rho_u A_i, clip(rho_u, 1 - eps_l, 1 + eps_h) A_i)
with rho_u = exp(log pi_policy(l_u) - log pi_old(l_u)) at the sampling temperature, A_i a constant. The
factors before the sums are in ``weights_M``. No KL term. The other surrogates, per token:

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

from forethought.compute.token_logprobs import logprobs
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
    """log pi_policy of every target at its own temperature, float32. Shape [M]."""
    return logprobs(model, batch.pack, batch.targets)


def importance(
    proximal_logprobs_M: torch.Tensor, behaviour_logprobs_M: torch.Tensor, cap: float
) -> torch.Tensor:
    """Truncated importance weight of the learner's policy over the sampler's, detached. Shape [M]."""
    return (proximal_logprobs_M - behaviour_logprobs_M).exp().clamp_max(cap).detach()


def batch_loss(
    batch: MicroBatch,
    policy_logprobs_M: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    surrogate: str = "ppo_clip",
    proximal_logprobs_M: torch.Tensor | None = None,
    importance_cap: float = 0.0,
) -> LossParts:
    """Surrogate plus next-token loss of one micro-batch.

    With an ``importance_cap`` above 0, ``proximal_logprobs_M`` are the learner's at the batch's start.
    """
    old_M, factor_M = batch.behaviour_logprobs_M, torch.ones_like(batch.weights_M)
    if importance_cap > 0:
        assert proximal_logprobs_M is not None
        old_M = proximal_logprobs_M
        factor_M = importance(old_M, batch.behaviour_logprobs_M, importance_cap)
    mask_M = batch.weights_M != 0
    # Masked before exp, so that other tokens can neither overflow nor pass a NaN to the gradient.
    log_ratio_M = torch.where(mask_M, policy_logprobs_M - old_M, 0.0)
    gained = SURROGATES[surrogate](
        SurrogateInputs(
            policy_logprobs_M,
            log_ratio_M,
            batch.advantages_M,
            mask_M,
            batch.sequences_M,
            clip_low,
            clip_high,
        )
    )
    loss = -(batch.weights_M * factor_M * gained.gain_M).sum()
    nll_logprobs_M = torch.where(batch.nll_weights_M != 0, policy_logprobs_M, 0.0)
    nll = -(batch.nll_weights_M * nll_logprobs_M).sum()
    ratios = gained.ratio_M.detach()[mask_M]
    mismatch = (policy_logprobs_M - batch.behaviour_logprobs_M).detach()[mask_M].exp()
    return LossParts(
        loss=loss + nll,
        surrogate=loss.item(),
        nll=nll.item(),
        num_surrogate=int(mask_M.sum()),
        num_clipped=int(((ratios < 1 - clip_low) | (ratios > 1 + clip_high)).sum()),
        ratio_max=float(ratios.max()) if ratios.numel() else 0.0,
        importance_sum=float(mismatch.sum()),
        importance_squares=float((mismatch * mismatch).sum()),
    )


@dataclass(frozen=True, slots=True)
class Surrogate:
    """``gain_M`` is to be maximised; ``ratio_M`` is compared with the clip range. Both [M].

    Example:
        ``Surrogate(gain_M=ratio * advantages, ratio_M=ratio)``
    """

    gain_M: torch.Tensor
    ratio_M: torch.Tensor


@dataclass(frozen=True, slots=True)
class SurrogateInputs:
    """Log-probs, advantages and the mask of trained tokens, [M]; the range is [1 - low, 1 + high].

    ``log_ratio_M`` is 0 outside the mask, so that no other token can overflow or propagate a NaN.
    ``sequences_M`` numbers the row of each token.

    Example:
        ``SurrogateInputs(logprobs, log_ratio, advantages, mask, sequences, low=0.2, high=0.28)``
    """

    logprobs_M: torch.Tensor
    log_ratio_M: torch.Tensor
    advantages_M: torch.Tensor
    mask_M: torch.Tensor
    sequences_M: torch.Tensor
    low: float
    high: float


def ppo_clip(given: SurrogateInputs) -> Surrogate:
    """The clipped surrogate: no gradient where a step would leave the range in A's direction."""
    return _clipped(given, given.log_ratio_M.exp())


def cispo(given: SurrogateInputs) -> Surrogate:
    """The clipped importance weight as a constant: every token keeps a gradient.

    MiniMax-M1 sets no lower bound, which is ``low`` = 1.
    """
    ratio_M = given.log_ratio_M.exp()
    weight_M = ratio_M.clamp(1 - given.low, 1 + given.high).detach()
    logprobs_M = torch.where(given.mask_M, given.logprobs_M, 0.0)
    return Surrogate(weight_M * given.advantages_M * logprobs_M, ratio_M)


def gspo(given: SurrogateInputs) -> Surrogate:
    """The clipped surrogate with the length-normalised importance ratio of the whole sequence (a row)."""
    sums_B = given.log_ratio_M.new_zeros(int(given.sequences_M.max()) + 1)
    num_tokens_B = sums_B.index_add(0, given.sequences_M, given.mask_M.float()).clamp_min(1)
    mean_B = sums_B.index_add(0, given.sequences_M, given.log_ratio_M) / num_tokens_B
    return _clipped(given, mean_B.exp()[given.sequences_M])


def policy_gradient(given: SurrogateInputs) -> Surrogate:
    """No ratio and no clip: unbiased on fresh samples, biased on stale ones."""
    logprobs_M = torch.where(given.mask_M, given.logprobs_M, 0.0)
    return Surrogate(given.advantages_M * logprobs_M, torch.ones_like(logprobs_M))


def _clipped(given: SurrogateInputs, ratio_M: torch.Tensor) -> Surrogate:
    clipped_M = ratio_M.clamp(1 - given.low, 1 + given.high)
    gain_M = torch.minimum(ratio_M * given.advantages_M, clipped_M * given.advantages_M)
    return Surrogate(gain_M, ratio_M)


SURROGATES: dict[str, Callable[[SurrogateInputs], Surrogate]] = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "gspo": gspo,
    "policy_gradient": policy_gradient,
}
"""Surrogates by their name in ``learner.loss``."""
