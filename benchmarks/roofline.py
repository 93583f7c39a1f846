"""A device's roofline, and the FLOPs of packed rows to compare with it.

The roofline is the peak of dense bfloat16 products that the vendor states; of a device that the table does
not have, what a product of two matrices reaches. FLOPs are those of the tokens that are computed: 2 per
parameter of the body and token, 2 per weight of the head and prediction, 4 per layer, head, width and pair
of tokens that see each other. Three times as many with a backward pass; the optimizer's are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from forethought.compute.forms import Forms
from forethought.compute.packing import Pack, Row, packs_of

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12}
"""Dense bfloat16, by a part of the device's name; the SXM form where there are several."""


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds, until the device is done."""
    _wait_for(device)
    started_s = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started_s


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def computed(model: Any, rows: list[Row], forms: Forms, max_tokens: int) -> tuple[int, float]:
    """The tokens that forward passes compute, and their FLOPs."""
    config, head = model.config, model.get_output_embeddings().weight
    body = (
        sum(p.numel() for p in model.base_model.parameters())
        - model.get_input_embeddings().weight.numel()
    )
    per_pair = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    num_tokens, num_pairs = 0, 0
    for pack in packs_of(rows, forms, max_tokens, torch.device("cpu")):
        num_tokens += pack.num_tokens
        num_pairs += _seen_pairs(pack, rows)
    num_predictions = sum(row.num_tail for row in rows)
    flops = 2.0 * body * num_tokens + 2.0 * head.numel() * num_predictions
    return num_tokens, flops + float(per_pair) * num_pairs


def _seen_pairs(pack: Pack, rows: list[Row]) -> int:
    """Pairs of tokens of which the later sees the earlier, padding left out."""
    if pack.layout is None:
        lengths = (len(rows[i].input_ids) for i in pack.rows)
        return sum(length * (length + 1) // 2 for length in lengths)
    return int((pack.position_ids + 1).sum())  # each token sees as many as precede it in its row


def peak_flops(device: torch.device) -> float:
    """The device's roofline, in FLOPs a second."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_FLOPS.items():
            if part in name:
                return peak
    size = 4096 if device.type == "cuda" else 512
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if size == 4096 else None)
    fastest_s = min(seconds_of(lambda: torch.mm(a, a), device) for _ in range(10))
    return 2 * size**3 / fastest_s
