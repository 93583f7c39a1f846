"""The kernels of trees against rows alone: log-probs and gradients, of every kernel on every kind of layer.

FlexAttention runs here as its own reference in PyTorch, uncompiled: the same masks, score modifications and
derivatives as on a GPU, but not the same kernel. Its refusal of gradients on a CPU is lifted, because the
derivative of the reference is the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex
from torch.utils.checkpoint import checkpoint
from transformers.masking_utils import causal_mask_function

from forethought.compute.trees import attention, flex_attention
from forethought.compute.trees.explicit_attention import explicit_attention
from forethought.compute.trees.flex_attention import flex_tree_attention
from forethought.compute.trees.layout import TreeLayout, layout_of
from forethought.compute.trees.mask import TreeMask
from forethought.compute.trees.tree import trees_of
from tests import architectures
from tests.forethought.compute import tree_rows

TOLERANCES = {"nats": 1e-5, "of_norm": 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")


@pytest.fixture
def use_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "flex_takes", lambda query, value: True)
    monkeypatch.setattr(flex_attention, "_compiled", lambda: flex_attention._attend)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def use_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "split_attention", explicit_attention)


@pytest.mark.parametrize("name", tree_rows.KINDS)
@pytest.mark.parametrize("kernel", ["as it is on a CPU", "use_explicit", "use_flex"])
def test_trees_equal_rows_alone(name: str, kernel: str, request: pytest.FixtureRequest) -> None:
    model = architectures.build(name)
    expected = tree_rows.alone(model)
    if kernel.startswith("use"):
        request.getfixturevalue(kernel)
    tree_rows.check_equal(tree_rows.packed(model), expected, **TOLERANCES)


def _layout(*lengths: int) -> TreeLayout:
    """A tree of a trunk and branches of these lengths."""
    trunk = tuple(range(lengths[0]))
    ids = [trunk[: len(trunk) - i] + (-1 - i,) * n for i, n in enumerate(lengths[1:])]
    return layout_of(trees_of(ids), torch.device("cpu"))


@pytest.mark.usefixtures("use_flex")
def test_flex_attention_is_compiled_once_for_all_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_attention._attend, dynamic=True, backend=counter)
    monkeypatch.setattr(flex_attention, "_compiled", lambda: compiled)
    for lengths in ((30, 7, 7), (200, 40, 1), (333, 50, 60, 70), (900, 12, 12)):
        layout = _layout(*lengths)
        num = layout.input_ids.shape[1]
        query, key, value = (torch.randn(1, heads, num, 16) for heads in (6, 3, 3))
        mask = TreeMask(layout, causal_mask_function, torch.float32)
        out = flex_tree_attention(query, key, value, mask, 0.3, softcap=5.0)
        expected = explicit_attention(query, key, value, mask, 0.3, softcap=5.0)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("kernel", ["explicit", "flex"])
@pytest.mark.usefixtures("use_flex")
def test_gradients_are_the_same_when_layers_are_recomputed(kernel: str) -> None:
    attend: Callable[..., torch.Tensor] = {
        "explicit": explicit_attention,
        "flex": flex_tree_attention,
    }[kernel]
    layout = _layout(150, 20, 30)
    mask = TreeMask(layout, causal_mask_function, torch.float32)
    num = layout.input_ids.shape[1]
    inputs = [torch.randn(1, heads, num, 8, requires_grad=True) for heads in (4, 2, 2)]
    plain = torch.autograd.grad(attend(*inputs, mask, 0.3).square().sum(), inputs)
    out = checkpoint(attend, *inputs, mask, 0.3, use_reentrant=False)
    recomputed = torch.autograd.grad(out.square().sum(), inputs)
    for one, other in zip(plain, recomputed, strict=True):
        assert torch.equal(one, other)
