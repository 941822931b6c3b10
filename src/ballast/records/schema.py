"""What runs store, as models: the record of a run, its log, its measurements and the answers; the plan of a comparison.

They are strict: a key that is not here, or a value of another type, is refused. `ballast.records.summary` has what a
comparison sums up to, `ballast.records.tokens` what `ballast inspect` keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, model_validator

if TYPE_CHECKING:
    from ballast.evaluation import metrics

SCHEMA: Final = 1
"""Version of the records, under ``schema`` in each file that is one."""

Number = int | float
Values = dict[str, JsonValue]
"""A mapping as JSON has it, such as a resolved recipe."""
Role = Literal["tuning", "report"]
"""Whether a run of a comparison chooses its row's learning rate or is reported at it."""
Status = Literal["running", "trained", "finished", "failed"]
"""How far a run came; ``trained``: the weights are saved, the last measurement is not."""


class Record(BaseModel):
    """A part of what is stored: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    def plain(self) -> dict[str, object]:
        """Return what JSON can hold of the fields that were set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class Versioned(Record):
    """A record with a file of its own."""

    schema_version: Literal[1] = Field(alias="schema")


class Estimate(Record):
    """A value, the number of items or seeds behind it, and a confidence interval.

    Attributes:
        value: None where there was nothing to measure, or the figure is infinite.
        low, high: bounds of the interval; both None where the data allow none.
        level: confidence level.
        method: of the interval: ``wilson``, ``bootstrap-bca``, ``t-seeds``, …, or ``none``.
    """

    value: FiniteFloat | None
    n: int
    low: FiniteFloat | None
    high: FiniteFloat | None
    level: FiniteFloat
    method: str

    @model_validator(mode="after")
    def _in_order(self) -> Estimate:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"its interval goes from {self.low} down to {self.high}")
        return self

    @classmethod
    def of(cls, estimate: metrics.Estimate) -> Estimate:
        """Return an estimate that was just made; NaN and infinity become None."""
        return cls.model_validate(estimate.to_dict())


class TaskRecord(Record):
    """What one task measured of one model.

    Attributes:
        metrics: by name, such as ``accuracy`` or ``pass@8``.
        counts: plain numbers: rows, answers cut off, errors of the verifier, tokens.
        settings: the task's options, its sources by name.
        seconds: wall clock.
        rows: digest of everything that it asked.
    """

    name: str
    kind: str
    metrics: dict[str, Estimate]
    counts: dict[str, Number]
    settings: Values
    seconds: float
    rows: str | None = None


class InputRecord(Record):
    """What a model or rows were: where they were read, and a digest of their content."""

    source: str
    digest: str


class EngineRecord(Record):
    """What sampled answers.

    Attributes:
        kind: as in recipes.
        version: of the server, or of transformers; None where it does not say.
        model: what the server calls its model; None of one that was started for it.
        requests, prompt_tokens, answer_tokens: what a server was asked.
        cost: of that, by the prices in the recipe.
        checked: mean difference of log-probabilities to the model, in nats per token (`vllm`), or share of greedy
            answers that are the model's own (`openai`); None where it was not checked.
    """

    kind: str
    version: str | None = None
    model: str | None = None
    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: FiniteFloat | None = None
    checked: FiniteFloat | None = None

    @property
    def identity(self) -> str:
        """What answers must have in common to be compared: our own loop draws the same ones in every version."""
        return " ".join(filter(None, (self.kind, None if self.kind == "transformers" else self.version)))


class EvalRecord(Record):
    """One line of ``evals.jsonl``: one model on all tasks.

    Attributes:
        engine: what sampled the answers; None where no task samples.
        model: ``base``, ``trained``, ``before rl``, ``after rl``, or the path that was measured.
        step: optimiser step of its training.
        recipe, versions, commit, device, inputs: where no ``run.json`` lies beside the file.
    """

    model: str
    step: int | None = None
    tasks: tuple[TaskRecord, ...]
    engine: EngineRecord | None = None
    recipe: Values | None = None
    versions: dict[str, str] = {}
    commit: str | None = None
    device: str | None = None
    inputs: dict[str, InputRecord] = {}


class Completion(Record):
    """An answer of a model; ``ended`` is whether it came to an end by itself."""

    model_config = ConfigDict(extra="allow")

    text: str
    tokens: int | None = None
    ended: bool | None = None


class ItemRecord(Record):
    """One line of ``evals/MODEL/TASK.jsonl``: a row with its answers; other keys come from the row and the kind.

    Attributes:
        prompt: text or messages; None for tasks that ask nothing.
        completions: one for each sample.
        scores: one for each sample, None where the task scores no single answers.
        read: the answer read off each sample, where samples vote.
    """

    model_config = ConfigDict(extra="allow")

    prompt: JsonValue = None
    completions: tuple[Completion, ...] = ()
    scores: tuple[FiniteFloat, ...] | None = None
    read: tuple[str | None, ...] | None = None


class LogRecord(Record):
    """One line of ``metrics.jsonl``: whatever the trainer logged, under its name; NaN where training diverged."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    step: Number | None = None

    @property
    def values(self) -> dict[str, JsonValue]:
        """Everything but the step."""
        return self.__pydantic_extra__


class ModelRecord(Record):
    """The model that a run started from; `dtype` is that of the weights in memory."""

    path: str
    type: str
    parameters: int
    dtype: str


class RowsRecord(Record):
    """What became of the rows of a source; further counts stand beside."""

    model_config = ConfigDict(extra="allow")

    name: str
    rows_in: int
    rows_out: int
    tokens: int
    trained_tokens: int


class RewardRecord(Record):
    """Both ends of the reward curve of RL, each the mean of `lines` lines of the log."""

    first: float
    last: float
    lines: int


class HalfRecord(Record):
    """Which weights trained, where not all did.

    Attributes:
        options: of `ballast.half.HalfOptions`.
        seed: what was drawn from.
        layer_share: share of the layers' weights that trained.
        digest: of the names of those that trained.
    """

    options: Values
    seed: int
    tensors: int
    tensors_trained: int
    parameters: int
    parameters_trained: int
    layer_share: float
    digest: str


class CellRecord(Record):
    """Which run of a comparison this is; RL straight from the base model has no rate.

    Attributes:
        steps: of a run that is shorter than the budget, to tell which pairs of row and rate are worth more.
    """

    label: str
    rate: float | None
    seed: int
    role: Role
    steps: int | None = None

    @property
    def name(self) -> str:
        """The folder's name; the rate in full, so that two rates never share one."""
        whole = f"{self.label}-lr{self.rate!r}-s{self.seed}"
        return whole if self.steps is None else f"{whole}-{self.steps}steps"


class RunRecord(Versioned):
    """``run.json``: a run of ``ballast train`` or ``ballast rl``.

    Attributes:
        recipe: resolved, every default filled in.
        objective: name and all options; None for RL.
        data: what became of the rows of each source (`train`), or how many ``prompts`` there are (`rl`).
        inputs: content of ``model``, ``data.train`` and ``rl.data``; ``model`` only where its weights are local files.
        commit: of the working directory, with ``+`` where files differ from it.
        started, finished: UTC, ISO 8601.
        train: totals of the trainer.
        seconds: of each part of the run.
        half: which weights trained, where not all did.
        rl, start: options of RL, and what it started from.
        answers, cut_off, errors, timeouts: how many answers of RL were judged, and what went wrong with them.
        cell: which run of a comparison it is.
        warnings: what a reader of its results must know, one line each, such as answers that were all cut off.
        error: what a failed run ended with.
    """

    status: Status
    recipe: Values
    objective: Values | None = None
    model: ModelRecord | None = None
    data: dict[str, RowsRecord | int] = {}
    inputs: dict[str, InputRecord] = {}
    versions: dict[str, str] = {}
    commit: str | None = None
    device: str | None = None
    processes: int = 1
    bf16: bool = False
    gradient_checkpointing: bool = False
    started: str = ""
    finished: str | None = None
    train: dict[str, Number] = {}
    seconds: dict[str, float] = {}
    half: HalfRecord | None = None
    rl: Values | None = None
    start: str | None = None
    answers: int | None = None
    cut_off: int | None = None
    errors: int | None = None
    timeouts: int | None = None
    reward: RewardRecord | None = None
    cell: CellRecord | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""


class RoundsRecord(Versioned):
    """``rounds.json``: commands that are repeated.

    Attributes:
        recipe: resolved, every default filled in.
        done: of each round that was begun, the commands that are through.
    """

    recipe: Values
    versions: dict[str, str]
    commit: str | None
    inputs: dict[str, InputRecord] = {}
    done: tuple[tuple[str, ...], ...] = ()


class PlanRecord(Versioned):
    """``compare.json``: what is compared; `steps` are those of the budget, where the recipe has one.

    `cells` are the runs known so far: those at a chosen rate are not before it is chosen.
    """

    recipe: Values
    versions: dict[str, str]
    commit: str | None
    steps: int | None = None
    inputs: dict[str, InputRecord] = {}
    cells: tuple[CellRecord, ...] = ()
