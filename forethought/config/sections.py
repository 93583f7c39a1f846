"""The sections of the configuration. Names carry the units; a value of 0 or "" means "derive it".

Every section rejects unknown keys. Constraints across sections are checked in :class:`Settings`, and
those that need the objective (minimum group size, size of a result) in :mod:`forethought.preflight`.
A leading ``~`` of a path becomes the home directory here, because a shell expands it only at the start of a
word, never in ``model.path=~/base`` or in a file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from forethought.config.text_template import columns_of
from forethought.errors import InvalidInput
from forethought.hub_id import HubId


def checked_pattern(pattern: str) -> str:
    """The regular expression as given, empty for none.

    Raises:
        InvalidInput: it is not one, or it matches the empty text, which holds no token.
    """
    try:
        is_empty = bool(pattern) and re.fullmatch(pattern, "") is not None
    except re.error as error:
        raise InvalidInput(
            f"{pattern!r} is no regular expression: {error}; expected one such as '[0-9]+'"
        ) from None
    if is_empty:
        raise InvalidInput(
            f"{pattern!r} matches the empty text; expected matches of at least one character: "
            "write '+' instead of '*', such as '[0-9]+'"
        )
    return pattern


PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
ExitStatus = Annotated[int, Field(ge=0, le=125)]
LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]
Pattern = Annotated[str, AfterValidator(checked_pattern)]
Folder = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    # Numbers become strings where a string is expected, so that `run.name=7` works.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )


class RunSection(Section):
    """The run's identity. ``name`` is also part of its Redis keys' prefix."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "default"
    directory: Folder = Path("runs/default")
    seed: NonNegativeInt = 0  # of corpus order, positions and thoughts


class RedisSection(Section):
    """Where Redis is. Without a URL, ``up`` and ``demo`` start their own."""

    url: str = ""  # redis://[:password@]host:port/db; empty: `up` starts its own
    password_file: LocalPath = ""  # one line: the password for a URL without one
    patience_s: Annotated[float, Field(ge=0)] = 0.0  # of a learner, in an outage; 0: without end


class AuthSection(Section):
    """Who may send requests and who may push weights. Files hold one token per line: the first is sent,
    all are accepted."""

    model_config = ConfigDict(coerce_numbers_to_str=False)  # 1e5 would become another token

    token: SecretStr = SecretStr("")  # of the run: grants everything
    token_file: LocalPath = ""
    client_token: SecretStr = SecretStr("")  # may send requests, never push weights
    client_token_file: LocalPath = ""
    open: bool = False  # require no token; `up` and `demo` set it unless a token is given

    @property
    def has_tokens(self) -> bool:
        """Whether any token is given."""
        values = (self.token.get_secret_value(), self.client_token.get_secret_value())
        return any((*values, self.token_file, self.client_token_file))

    @model_validator(mode="after")
    def _check_exclusive(self) -> AuthSection:
        for key in ("token", "client_token"):
            if getattr(self, key).get_secret_value() and getattr(self, f"{key}_file"):
                raise ValueError(f"both auth.{key} and auth.{key}_file are given; expected one")
        if self.open and self.has_tokens:
            raise ValueError("auth.open is true and a token is given; expected one of them")
        return self


class ModelSection(Section):
    """The model to train: a directory with a transformers causal LM and its tokenizer, or a hub's id."""

    path: LocalPath = ""  # a local directory, or owner/name; empty: `up` trains a small base first
    revision: str = ""  # of an id: branch, tag or commit; empty: main. Runs record the commit
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where it is faster
    device: str = "auto"  # cpu, cuda, cuda:1; auto: the first GPU if there is one
    max_length_tokens: NonNegativeInt = 0  # 0: the model's own limit
    think_open: str = "<think>"  # any text: one token, or several of ordinary text
    think_close: str = "</think>"
    add_think_tokens: bool = False  # add markers that are not one token, with new embeddings
    bos: Literal["tokenizer", "always", "never"] = "tokenizer"  # whether rows begin with BOS
    fp32_head: bool = False  # float32 logits even from a bfloat16 model; not supported by vllm


class BaseSection(Section):
    """The small base model that ``up`` trains when ``model.path`` is empty."""

    vocab_size: Annotated[int, Field(ge=300)] = 1024
    hidden_size: PositiveInt = 128
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    steps: PositiveInt = 300
    batch_documents: PositiveInt = 16
    learning_rate: PositiveFloat = 5e-3
    thought_share: Share = 1.0  # of windows with one quoted thought, to teach the markers


class TextSection(Section):
    """What is read of a source: which of its files, and what text of each record."""

    revision: str = ""  # of a hub's data set: branch, tag or commit; empty: main
    split: str = ""  # train, test, …; empty: every file, of a hub's data set train if there is one
    subset: str = ""  # of the data set (gsm8k's "main"); empty: its only one
    text_field: str = "text"
    marks_field: str = "marks"
    marks_pattern: Pattern = ""  # tokens with part of a match are marked; empty: none
    prompt_field: str = ""  # prepended to the text and excluded from the loss (SFT); empty: none
    template: str = ""  # "{question}\\n{answer}": the text from several columns; empty: text_field
    strip_pattern: str = ""  # a regular expression: what matches is removed from the text

    @model_validator(mode="after")
    def _check_text(self) -> TextSection:
        if self.template:
            columns_of(self.template)
            if self.text_field != "text":
                raise ValueError(
                    f"text_field {self.text_field!r} and template {self.template!r} are both given; "
                    "expected one of them"
                )
        try:
            re.compile(self.strip_pattern)
        except re.error as error:
            raise ValueError(
                f"strip_pattern {self.strip_pattern!r} is no regular expression: {error}; expected one of "
                'Python\'s re, such as "<<[^>]*>>"'
            ) from error
        return self


class SourceSection(TextSection):
    """One source of the mixture. ``path`` is a file, a folder, a saved Hugging Face dataset, or the id of
    one on the hub."""

    name: str = ""
    path: LocalPath
    weight: PositiveFloat = 1.0
    skip_invalid: bool = False  # of this source alone; see corpus.skip_invalid

    @property
    def label(self) -> str:
        """The name, or the last part of the path."""
        hub_id = HubId.parse(self.path)
        return self.name or (hub_id.short_name if hub_id else Path(self.path).name)

    @property
    def place(self) -> str:
        """The path, of a hub's data set with its revision, for messages and reports."""
        return str(HubId.parse(self.path, self.revision) or self.path)


class CorpusSection(TextSection):
    """The training text. ``path`` is shorthand for one source, and the keys of a source for its; documents
    are cut into windows."""

    path: LocalPath = ""
    sources: tuple[SourceSection, ...] = ()
    window_tokens: PositiveInt = 256
    min_window_tokens: PositiveInt = 4  # shorter tails and documents are dropped
    eos: Literal["tokenizer", "always", "never"] = "tokenizer"  # end-of-text after documents
    skip_invalid: bool = (
        False  # skip and count records that cannot be read; else the first is refused
    )

    @model_validator(mode="after")
    def _check_path(self) -> CorpusSection:
        given = [
            name
            for name, key in TextSection.model_fields.items()
            if getattr(self, name) != key.default
        ]
        if given and not self.path:
            raise ValueError(
                f"corpus.{given[0]} is given and corpus.path is not; expected both, or {given[0]} in "
                "[[corpus.sources]]"
            )
        return self

    @property
    def of_path(self) -> SourceSection:
        """The source that ``path`` and the keys beside it stand for."""
        keys = {name: getattr(self, name) for name in TextSection.model_fields}
        return SourceSection(path=self.path, **keys)

    def resolved_sources(self) -> tuple[SourceSection, ...]:
        """The sources, including ``path``, each with a name and its own ``skip_invalid``."""
        given = ((self.of_path,) if self.path else ()) + self.sources
        return tuple(map(self._resolved, given))

    def _resolved(self, source: SourceSection) -> SourceSection:
        return source.model_copy(
            update={
                "name": source.label,
                "skip_invalid": source.skip_invalid or self.skip_invalid,
            }
        )


class ObjectiveSection(Section):
    """The objective and its parameters (checked by the objective's ``Config``)."""

    name: str = "rlp"
    parameters: dict[str, Any] = Field(default_factory=dict)
    folder: LocalPath = ""  # of third-party objectives: each *.py in it can be named by its stem
    estimator: str = ""  # of advantages; empty: the objective's default


class WarmupSection(Section):
    """The warm-up of the think markers before a run whose model's thoughts are too costly as they are."""

    when: Literal["auto", "always", "never"] = (
        "auto"  # auto: if thoughts cost more than max_cost_nats
    )
    max_cost_nats: PositiveFloat = 0.3  # of an average thought, with which a run starts as it is
    min_closed_share: Share = 0.9  # of thoughts that close by themselves, at the end of a warm-up
    max_steps: PositiveInt = 400  # then the run starts all the same, with a warning
    batch_documents: PositiveInt = 6  # with four thoughts each
    learning_rate: PositiveFloat = 3e-4
    parameters: dict[str, Any] = Field(default_factory=dict)  # others of the objective warmup


class SamplingSection(Section):
    """How thoughts are sampled. top_p and top_k exist only to be rejected with an explanation."""

    group_size: PositiveInt = 8  # G, thoughts per position
    max_thought_tokens: PositiveInt = 32  # the budget, including the close token
    temperature: PositiveFloat = 1.0
    top_p: float = 1.0  # any other value is rejected
    top_k: int = 0  # any other value is rejected


class LearnerSection(Section):
    """The optimizer step. docs/architecture.md calls ``batch_tasks`` N and ``max_staleness`` S."""

    steps: PositiveInt = 100
    max_tokens: NonNegativeInt = 0  # trained, without padding; may end the run early; 0: no limit
    batch_tasks: PositiveInt = 8  # N; for next-token loss, documents per step
    max_staleness: NonNegativeInt = 0  # S; 0 is strictly on-policy
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "constant"
    warmup_steps: NonNegativeInt = 0
    beta1: Share = 0.9
    beta2: Share = 0.999
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # on matrices only
    grad_clip_norm: Annotated[float, Field(ge=0)] = 1.0  # 0: off
    loss: Literal["ppo_clip", "cispo", "gspo", "policy_gradient"] = "ppo_clip"
    aggregation: Literal["", "sequence_mean", "token_mean", "group_mean", "constant"] = ""
    clip_low: PositiveFloat = 0.2  # epsilon of eq. 8; GSPO: 3e-4
    clip_high: PositiveFloat = 0.28  # epsilon of eq. 8; GSPO: 4e-4
    importance_cap: Annotated[float, Field(ge=0)] = 0.0  # 0: off
    inner_epochs: PositiveInt = 1  # optimizer passes over a batch, one step each
    next_token_every_steps: NonNegativeInt = 0  # a next-token step after every n-th; 0: none
    next_token_coef: Annotated[float, Field(ge=0)] = 0.0  # of that loss on the batch's documents
    no_think_every_steps: NonNegativeInt = 10  # how often the no-think NLL is measured; 0: never
    micro_batch_tokens: PositiveInt = 16_384  # computed by one forward and backward pass
    replay_tolerance_nats: Annotated[float, Field(ge=0)] = 0.0  # sampler to learner; 0: by dtype
    task_timeout_s: PositiveFloat = 600.0  # of a batch, from when the learner waits for it
    max_failed_batches: NonNegativeInt = 5  # without learning, because of failures; 0: no limit
    max_unlearned_batches: NonNegativeInt = 100  # without learning, for any reason; 0: no limit
    num_threads: NonNegativeInt = 1  # 0: torch's default
    tensorboard: bool = False  # needs the tensorboard extra
    ops_port: Port = 0  # /healthz /readyz /metrics; 0: any free port
    stay: bool = False  # when done, keep pushing weights to replicas until stopped
    stopped_status: ExitStatus = 0  # exit status of a learner stopped before its last step

    def is_done(self, num_steps: int, num_tokens: int) -> bool:
        """Whether a run is complete after ``num_steps`` steps and ``num_tokens`` trained tokens."""
        return num_steps >= self.steps or 0 < self.max_tokens <= num_tokens


class FilterSection(Section):
    """Which groups and thoughts of a batch are trained on. All off by default: RLP publishes none."""

    zero_variance: bool = False  # drop groups whose rewards are all equal
    min_reward_std: Annotated[float, Field(ge=0)] = 0.0  # drop groups below it; 0: off
    min_logprob_std: Annotated[float, Field(ge=0)] = 0.0  # nats, of log p(target | thought); 0: off
    replace_from_step: NonNegativeInt = 0  # from this step on, replace dropped tasks; 0: never
    replace_rounds: Annotated[int, Field(ge=1, le=16)] = 4  # at most this often per batch
    truncated: Literal["keep", "mask", "penalise"] = "keep"  # thoughts that hit their budget
    truncated_penalty: PositiveFloat = 1.0  # subtracted from their reward by "penalise"
    truncated_margin_tokens: NonNegativeInt = 0  # ramp of the penalty below the budget

    @model_validator(mode="after")
    def _check_replacement_has_a_filter(self) -> FilterSection:
        drops = self.zero_variance or self.min_reward_std or self.min_logprob_std
        if self.replace_from_step and not drops:
            raise ValueError(
                f"filter.replace_from_step is {self.replace_from_step}, but no filter drops groups; "
                "expected filter.zero_variance = true (DAPO), or a minimum standard deviation"
            )
        return self


class BaselineSection(Section):
    """The no-think baseline: an exponential moving average, the initial model, or none."""

    kind: Literal["ema", "frozen", "none"] = "ema"
    decay: Share = 0.999  # tau
    publish_every_steps: PositiveInt = 1  # how often it is pushed to replicas


class CheckpointSection(Section):
    """How often checkpoints are written and how many are kept; the last step always writes one."""

    every_steps: PositiveInt = 50
    keep: PositiveInt = 2
    journal_keep_batches: NonNegativeInt = 0  # 0: all


class ReplicaSection(Section):
    """Settings shared by rollout and reward replicas."""

    host: str = ""  # listen address; empty: loopback if Redis is on loopback, else every interface
    advertise_host: str = ""  # the address the learner connects to; empty: the one facing Redis
    grpc_port: Port = 0  # weights and health; 0: any free port
    ops_port: Port = 0  # /healthz /readyz /metrics; 0: any free port
    device: str = "auto"
    num_threads: NonNegativeInt = 1  # of torch; 0: torch's default
    lease_s: PositiveFloat = 30.0  # then others may claim the work; the same for all of a kind
    heartbeat_s: PositiveFloat = 1.0  # a registration expires after five
    max_attempts: PositiveInt = 3  # attempts begun before a task is dead-lettered
    hang_timeout_s: Annotated[float, Field(ge=0)] = 600.0  # without progress on tasks; 0: no limit
    drain_s: PositiveFloat = 25.0  # on SIGTERM, for the batch in progress
    max_message_bytes: Annotated[int, Field(ge=5 << 20)] = 8 << 20  # of a gRPC request
    max_concurrent_calls: PositiveInt = 256  # of each gRPC service; more are refused
    deterministic: bool = False  # one task per forward pass, so shapes do not depend on timing


class RolloutSection(ReplicaSection):
    """The rollout service."""

    replicas: NonNegativeInt = 2
    engine: Literal["torch", "vllm"] = "torch"
    max_batch_tasks: PositiveInt = 8  # received and sampled together
    max_batch_tokens: PositiveInt = 65_536  # of one decode batch, thoughts included; torch only
    max_group_size: PositiveInt = 1024  # of a Generate request
    max_request_tokens: PositiveInt = 1 << 20  # of a Generate request: every prefix and thought
    max_waiting_tokens: PositiveInt = 4 << 20  # of all Generate requests; beyond that, refused
    keep_kv: bool = False  # vllm: in-flight thoughts keep their (stale) KV cache on new weights
    vllm: dict[str, Any] = Field(default_factory=dict)  # vLLM's engine arguments, passed through


class RewardSection(ReplicaSection):
    """The reward service."""

    replicas: NonNegativeInt = 1
    http_host: str = "127.0.0.1"
    http_port: Port = 8080  # 0: any free port
    max_batch_tasks: PositiveInt = 16  # received and scored together
    max_batch_tokens: PositiveInt = 16_384  # padded tokens of one forward pass
    max_waiting_tokens: PositiveInt = 1_048_576  # of queued requests; beyond that they get 429
    max_waiting_bytes: PositiveInt = 256 << 20  # of unanswered requests; beyond that they get 429
    max_request_items: PositiveInt = 4096  # of score or match
    max_request_thoughts: PositiveInt = 16_384  # over all items; or continuations
    max_request_tokens: PositiveInt = 524_288  # over all rows of a request
    max_text_characters: PositiveInt = 262_144  # of each text of a request
    max_reply_bytes: PositiveInt = 32 << 20  # estimated before anything is computed
    policy_path: LocalPath = ""  # a model directory or owner/name@revision: standalone, no run
    baseline_path: LocalPath = ""  # likewise, the baseline's; empty: the policy is used
    max_body_bytes: PositiveInt = 8 << 20  # of an HTTP request


class PublishSection(Section):
    """Pushing weights to replicas: a timeout for each phase of a push, and the chunk size."""

    connect_timeout_s: PositiveFloat = 10.0
    push_timeout_s: PositiveFloat = 300.0
    retry_s: PositiveFloat = 1.0
    chunk_bytes: Annotated[int, Field(ge=1024, le=4 << 20)] = 1 << 20


class Root(Section):
    """All sections, without cross-section checks: the schema of a TOML file."""

    run: RunSection = RunSection()
    redis: RedisSection = RedisSection()
    auth: AuthSection = AuthSection()
    model: ModelSection = ModelSection()
    base: BaseSection = BaseSection()
    corpus: CorpusSection = CorpusSection()
    objective: ObjectiveSection = ObjectiveSection()
    warmup: WarmupSection = WarmupSection()
    sampling: SamplingSection = SamplingSection()
    learner: LearnerSection = LearnerSection()
    filter: FilterSection = FilterSection()
    baseline: BaselineSection = BaselineSection()
    checkpoint: CheckpointSection = CheckpointSection()
    rollout: RolloutSection = RolloutSection()
    reward: RewardSection = RewardSection()
    publish: PublishSection = PublishSection()


class Settings(Root):
    """The whole configuration, including cross-section checks.

    Example:
        ``load_settings(Path("configs/text-cpu.toml"), ["corpus.path=books"])``
    """

    @model_validator(mode="after")
    def _no_truncated_distribution(self) -> Settings:
        if self.sampling.top_p != 1.0 or self.sampling.top_k != 0:
            raise ValueError(
                f"sampling.top_p={self.sampling.top_p} and sampling.top_k={self.sampling.top_k}: "
                "expected 1.0 and 0 while training, because the learner's log-probs are those of "
                "the full distribution; remove them and lower sampling.temperature instead"
            )
        return self

    @model_validator(mode="after")
    def _check_vllm_device(self) -> Settings:
        if self.rollout.engine == "vllm" and self.rollout.device != "auto":
            raise ValueError(
                f"rollout.device={self.rollout.device}: expected auto with rollout.engine=vllm, whose "
                "build determines the device; choose GPUs with CUDA_VISIBLE_DEVICES instead"
            )
        return self
