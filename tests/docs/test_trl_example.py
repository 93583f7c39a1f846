"""The documented reward function of TRL's GRPOTrainer, against a running reward service."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.endpoints import plain_score, reward_endpoints
from tests.repository import ROOT
from tests.tiny import build_model, build_model_directory, build_tokenizer, serve

DOCS = ROOT / "docs" / "clients.md"
HAS_TRL = importlib.util.find_spec("trl") is not None

RewardFunc = Callable[..., list[float | None]]


def example() -> str:
    """The documented code."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    (code,) = [block for block in blocks if "def reward_func" in block]
    found: str = code
    return found


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model directories of policy and baseline."""
    policy, baseline = (
        build_model_directory(tmp_path_factory.mktemp("model"), seed=seed) for seed in (1, 2)
    )
    return policy, baseline


@pytest.fixture
async def reward_func(directories: tuple[Path, Path]) -> AsyncIterator[RewardFunc]:
    """The documented function; its client asks a live service at another port."""
    policy, baseline = directories
    async with reward_endpoints(serve(policy, "policy"), serve(baseline, "baseline")) as endpoints:
        names: dict[str, Any] = {}
        exec(example().replace("http://127.0.0.1:8080", endpoints.urls["http"]), names)
        yield names["reward_func"]
        names["client"].close()


def test_the_example_has_ten_lines() -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 10


async def test_the_documented_function_rewards(
    reward_func: RewardFunc, directories: tuple[Path, Path]
) -> None:
    prompts, completions, answers = ["3 + 4 = ", "", "ab"], ["a", "b", ""], ["7", "8", "cd"]
    rewards = await asyncio.to_thread(
        reward_func, prompts, completions, answer=answers, trainer_state=None
    )
    assert rewards[1] is None, "an empty prompt cannot be scored, alone"
    for index in (0, 2):
        (thinking,), no_think = plain_score(
            directories, prompts[index], answers[index], [completions[index]]
        )
        assert rewards[index] == pytest.approx(thinking - no_think, abs=1e-5)


@pytest.mark.skipif(not HAS_TRL, reason="TRL is not installed: pip install trl")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # TRL warns about every vLLM newer than those it knows
async def test_a_real_grpo_trainer_takes_a_step(reward_func: RewardFunc, tmp_path: Path) -> None:
    rewards: list[float | None] = []

    def recorded(*arguments: Sequence[str], **columns: Any) -> list[float | None]:
        found = reward_func(*arguments, **columns)
        rewards.extend(found)
        return found

    history, moved = await asyncio.to_thread(_train, recorded, tmp_path)
    assert len(rewards) == 4
    assert all(reward is not None for reward in rewards)
    logged = [entry["reward"] for entry in history if "reward" in entry]
    known = [reward for reward in rewards if reward is not None]
    assert logged == [pytest.approx(sum(known) / 4, abs=1e-4)]
    assert moved


def _train(reward_func: RewardFunc, directory: Path) -> tuple[list[dict[str, Any]], bool]:
    """One step of a GRPOTrainer: its log, and whether the weights moved."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def named(*, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return reward_func(prompts, completions, **columns)

    tokenizer, model = build_tokenizer(), build_model(seed=3)
    tokenizer.pad_token = tokenizer.eos_token
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=named,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["3 + 4 = ", "1 + 1 = "], "answer": ["7", "2"]}),
        args=GRPOConfig(
            output_dir=str(directory),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            max_steps=1,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    moved = any(not old.equal(new) for old, new in zip(before, model.parameters(), strict=True))
    return trainer.state.log_history, moved
