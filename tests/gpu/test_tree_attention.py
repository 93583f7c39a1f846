"""Trees on a GPU, in FlexAttention's kernel, against rows alone on the CPU, float32."""

from __future__ import annotations

import pytest
import torch

from forethought.compute.trees import attention
from tests import architectures
from tests.forethought.compute import tree_rows

DEVICE = "cuda"
TOLERANCES = {"nats": 1e-4, "of_norm": 1e-4}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.filterwarnings("default"),  # drivers and kernels warn of their own affairs
    pytest.mark.timeout(300),  # a kernel is compiled for each
]


@pytest.mark.parametrize("name", tree_rows.KINDS)
def test_trees_on_a_gpu_equal_rows_alone(name: str) -> None:
    torch.compiler.reset()
    model = architectures.build(name)
    expected = tree_rows.alone(model)
    found = tree_rows.packed(model.to(DEVICE))
    tree_rows.check_equal(found, expected, **TOLERANCES)


@pytest.mark.parametrize("name", tree_rows.KINDS)
def test_a_gpu_without_triton_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "flex_takes", lambda query, value: False)
    monkeypatch.setattr(attention, "split_attention", None)  # for CPUs only
    model = architectures.build(name)
    expected = tree_rows.alone(model)
    found = tree_rows.packed(model.to(DEVICE))
    tree_rows.check_equal(found, expected, **TOLERANCES)
