"""The loss: one surrogate and one next-token term, both over per-token arrays.

RLP eq. 8 (arXiv 2510.01265):
    L = -(1/(B G)) sum_{b,i} (1/|c_i|) sum_u min(rho_u A_i, clip(rho_u, 1 - eps_l, 1 + eps_h) A_i)
with rho_u = exp(log pi_policy(l_u) - log pi_old(l_u)) at the sampling temperature, A_i a constant. The
factors before the sums are in ``weights_BH``; other surrogates are in :mod:`trainer.learner.surrogate`. No KL term.

Design: old log-probs are the sampler's own (behaviour) unless an importance cap C is set; then they are
the learner's at the start of the batch, and the mismatch between the two enters as a constant factor
min(exp(log pi_old - log pi_behaviour), C), the truncated importance correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from forethought.compute.rows import tail_logits
from trainer.learner.batching import MicroBatch
from trainer.learner.surrogate import SURROGATES, SurrogateInputs


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
    logits = tail_logits(model, batch.rows, batch.num_tail, use_cache=False).logits
    scaled = logits / batch.temperatures_BH[..., None]
    return torch.log_softmax(scaled, dim=-1).gather(2, batch.targets_BH[..., None])[..., 0]


def importance(
    proximal_logprobs_BH: torch.Tensor, behaviour_logprobs_BH: torch.Tensor, cap: float
) -> torch.Tensor:
    """Truncated importance of the learner's policy over the sampler's, a constant. Shape [B, H]."""
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
    learned_BH = torch.where(batch.nll_weights_BH != 0, policy_logprobs_BH, 0.0)
    nll = -(batch.nll_weights_BH * learned_BH).sum()
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
