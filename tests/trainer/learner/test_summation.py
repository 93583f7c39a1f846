"""Gradients of one large micro-batch on a CPU are summed in float32, whatever the model's dtype."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.compute.model import load_language_model
from forethought.config.sections import BaselineSection, LearnerSection
from forethought.types import Document
from tests import architectures, tiny
from trainer.batch.thought_tree import trees_of_documents
from trainer.learner.learner import Learner
from trainer.learner.summation import float32_sums

# Of models that script something when they are first imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Offset(torch.nn.Embedding):
    """As OPT's positions: a subclass that looks up other rows than it is given."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input + 2)


class Indexed(torch.nn.Module):
    """As the biases of experts: a parameter's row is taken for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.ones(4, 3))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.bias[token_ids]


class OnlyBias(torch.nn.Module):
    """A layer norm without a weight, as the function allows."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(2))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(input, (2,), None, self.bias)


MODULES = {
    "embedding": (torch.nn.Embedding(4, 3), torch.ones(1, 8192, dtype=torch.long)),
    "subclass": (Offset(4, 3), torch.zeros(1, 8192, dtype=torch.long)),
    "layer norm": (torch.nn.LayerNorm(2), torch.tensor([1.0, -1.0]).expand(1, 8192, 2)),
    "no bias": (torch.nn.LayerNorm(2, bias=False), torch.tensor([1.0, -1.0]).expand(1, 8192, 2)),
    "no weight": (OnlyBias(), torch.tensor([1.0, -1.0]).expand(1, 8192, 2)),
    "indexed": (Indexed(), torch.ones(1, 8192, dtype=torch.long)),
    "convolution": (torch.nn.Conv1d(3, 3, 1, groups=3), torch.ones(1, 3, 8192)),
    "group norm": (torch.nn.GroupNorm(1, 2), torch.tensor([1.0, -1.0]).expand(8192, 2)),
    "linear": (torch.nn.Linear(2, 3), torch.ones(1, 8192, 2)),
    "rms norm": (torch.nn.RMSNorm(2), torch.tensor([1.0, -1.0]).expand(1, 8192, 2)),
}


@pytest.mark.parametrize("name", MODULES)
def test_8192_tokens_of_one_micro_batch_add_up(name: str) -> None:
    """8,192 gradients of 1e-4 are 0.82; PyTorch's CPU kernels stop at 0.031 in bfloat16."""
    module, inputs = MODULES[name]
    module = module.to(torch.bfloat16)
    inputs = inputs.bfloat16() if inputs.is_floating_point() else inputs
    with float32_sums(module):
        output = module(inputs)
    output.backward(torch.full_like(output, 1e-4))
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) == pytest.approx(0.8192, rel=1e-2)


def test_an_indexed_parameter_is_the_same_bits() -> None:
    module, ids = Indexed().bfloat16(), torch.tensor([[2, 0, 2]])
    torch.nn.init.normal_(module.bias)
    with float32_sums(module):
        found = (module(ids), module.bias[1:], module.bias[2], module.bias[:, ids[0, 1:]])
    b = module.bias
    assert all(map(torch.equal, found, (b[ids], b[1:], b[2], b[:, ids[0, 1:]])))


def test_a_stacked_bias_is_at_risk_on_every_device() -> None:
    """CUDA's index kernel writes every sum back in the parameter's dtype."""
    on_gpu = torch.nn.Module().to("meta")  # no device of this test, as seen by the check
    on_gpu.weight = torch.nn.Parameter(torch.zeros(4, 3, device="meta", dtype=torch.bfloat16))
    assert isinstance(float32_sums(on_gpu), nullcontext)
    on_gpu.experts_bias = torch.nn.Parameter(on_gpu.weight.detach().clone())
    assert not isinstance(float32_sums(on_gpu), nullcontext)


@pytest.mark.parametrize("name", sorted(architectures.EVERY.keys() - {"xlstm"}))
def test_512_equal_rows_have_512_times_the_gradient_of_one(name: str) -> None:
    """For every parameter of every architecture: a sum in bfloat16 stands still at 256.

    Without :func:`float32_sums` embeddings, layer norms and the biases of experts have half of it.
    """
    model = architectures.build(name, torch.bfloat16)
    one, many = gradients(model, 1), gradients(model, 512)
    assert one
    for parameter, gradient in one.items():
        error = (many[parameter] / 512 - gradient).norm() / gradient.norm()
        assert float(error) < 0.03, parameter


def gradients(model: Any, num_rows: int) -> dict[str, torch.Tensor]:
    """Of the likelihood of equal rows, by parameter; those that are 0 are left out."""
    model.zero_grad()
    ids = torch.tensor([[31, 72, 45, 88, 59, 36, 63, 80]]).expand(num_rows, -1)
    with float32_sums(model):
        logits = model(input_ids=ids, use_cache=False).logits
    logprobs = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    logprobs.gather(-1, ids[:, 1:, None]).sum().backward()
    found = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient.clone() for name, gradient in found.items() if gradient.any()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_and_input_gradients_are_the_same_bits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(50, 96, padding_idx=3).to(dtype)
    norm = torch.nn.LayerNorm(96).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    ids, rows = torch.randint(50, (20, 50)), torch.randn(20, 50, 96, dtype=dtype)
    found = []
    for context in (torch.enable_grad(), float32_sums(norm)):
        given = rows.clone().requires_grad_()
        with context:
            output = norm(given)
            looked_up = embedding(ids)
        output.backward(rows)
        found.append((output, looked_up, given.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("micro_batch_tokens", [8, 8192])
def test_a_bfloat16_gradient_is_the_float32_one(tmp_path: Path, micro_batch_tokens: int) -> None:
    """1,024 documents, one at a time and all at once: summed in bfloat16, they were 10 and 13 % off."""
    directory = tiny.build_model_directory(tmp_path / "model", "gpt2")
    draw = random.Random(0)
    documents = [
        Document(str(n), "s", tuple(draw.randrange(30, 90) for _ in range(8))) for n in range(1024)
    ]
    gradients = []
    for dtype in ("float32", "bfloat16"):
        model = load_language_model(directory, dtype, "cpu")
        section = LearnerSection(micro_batch_tokens=micro_batch_tokens, grad_clip_norm=0.0)
        learner = Learner(model, section, BaselineSection(kind="none"))
        learner.step(trees_of_documents(documents))
        of_masters = [master.grad for master in learner._optimizer.masters.values()]
        gradients.append(torch.cat([g.flatten() for g in of_masters if g is not None]))
    exact, found = gradients
    assert float((found - exact).norm() / exact.norm()) < 0.02
