"""Evaluation tasks: one class per kind, with the options that the kind reads. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, field_validator, model_validator

from ballast.errors import suggest
from ballast.files import expanded
from ballast.options import Columns, Options, OptionsError, Path, Text, Texts, shown
from ballast.revise.options import TaskLoopOptions
from ballast.verifiers.options import conflicts
from ballast.verifiers.program import TOLERANCE

if TYPE_CHECKING:
    from ballast.evaluation.generation import GenerationOptions

Kind = Literal["generate", "choice", "code", "nll", "readiness", "lm-eval"]
SOURCES = ("data", "demonstrations", "forgetting")
"""Options that are rows, or name a source of them."""


def _rows(value: Any) -> Any:
    if value == "" or isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"must be rows or a source of them; got {shown(value)}")
    return expanded(value) if isinstance(value, str) else value


Rows = Annotated[str | Sequence[Mapping[str, Any]], PlainValidator(_rows), WithJsonSchema({"type": "string"})]
"""Rows, or a source that `ballast.data.load_rows` reads; in a recipe always a source."""


class Task(Options):
    """One thing to measure. ``Task(kind="choice", …)`` makes a `ChoiceTask`; None stands for an option's default."""

    name: str = ""
    """Name in results and files, unique within a run; the source's where absent."""
    title: Text | None = None
    """What reports call it in their headings; the name where absent."""
    kind: Kind = "generate"
    """`generate` (answers judged by a verifier), `choice` (options by likelihood), `code` (answers judged by their
    tests), `nll` (likelihood of held-out text), `readiness` (`generate`, read as the start of RL) or `lm-eval` (tasks
    of lm-evaluation-harness)."""
    data: Rows = Field(repr=False)
    """Source of the rows, as in `data.train`; in Python also rows."""
    split: Text | None = None
    """Split of the source, where it has several."""
    columns: Columns = None
    """How the source's columns are called, as in `data.columns`."""
    limit: int | None = Field(None, ge=1)
    """Use the first rows."""
    seed: int = Field(0, ge=0)
    """Of samples and bootstrap intervals."""
    batch_tokens: int = Field(16384, ge=1)
    """Padded tokens of one batch."""

    def __new__(cls, name: str | None = None, kind: str | None = None, data: Any = None, **options: Any) -> Task:
        """Choose the class of the kind."""
        chosen = CLASSES.get(str(kind or "generate")) if cls is Task else cls
        if chosen is None:
            message = f"{kind!r} is not allowed{suggest(str(kind), tuple(CLASSES))}"
            raise OptionsError([(("kind",), message)], cls.owner_of({"name": name, "data": data}))
        return super().__new__(chosen)

    def __init__(self, name: str | None = None, kind: str | None = None, data: Any = None, **options: Any) -> None:
        super().__init__(name=name, kind=kind, data=data, **options)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        """Leave out what is None, and take the source's name where there is no other."""
        given = {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}
        if not given.get("name") and isinstance(given.get("data"), str):
            given["name"] = given["data"]
        return given

    @model_validator(mode="after")
    def _has_a_name(self) -> Task:
        if not self.name:
            raise OptionsError([(("name",), "is required and missing: rows have no name that the task could take")])
        return self

    @classmethod
    def owner_of(cls, values: Mapping[str, Any]) -> str:
        data = values.get("data")
        return f"task {values.get('name') or (data if isinstance(data, str) else '?')!r}: "

    @classmethod
    def unknown(cls, key: str) -> str:
        readers = [kind for kind, other in CLASSES.items() if key in other.model_fields]
        if not readers:
            return super().unknown(key)
        own = cls.model_fields["kind"].default
        return f"is an option of kind {', '.join(readers)}; {own} would ignore it, so leave it out"

    @property
    def needs_base(self) -> bool:
        """Whether the model before training is needed to compare with."""
        return False

    @property
    def reviser(self) -> str | None:
        """The further model that revises answers, None where there is none."""
        return None

    def sources(self) -> dict[str, str]:
        """Return the sources that the task names, by option; those that are given as rows are none."""
        return {name: value for name in SOURCES if isinstance(value := getattr(self, name, None), str)}

    def settings(self) -> dict[str, Any]:
        """Return everything but the rows, JSON-able; a source is kept by name."""
        # In this order, so that two processes write the same file.
        rows = [name for name in SOURCES if name in type(self).model_fields and name not in self.sources()]
        return self.model_dump(mode="json", exclude=set(rows)) | dict.fromkeys(rows)


class SampledTask(Task):
    """What kinds that sample answers have in common."""

    samples: int = Field(1, ge=1)
    """Answers per prompt."""
    temperature: float = Field(0.0, ge=0)
    """Of the samples; 0 is greedy, for one sample."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Samples come from the most likely tokens up to this mass."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens after which an answer is cut off."""
    stop: Texts = ()
    """Text, or several, before which an answer ends: for base models, which go on with a next question."""
    k: tuple[int, ...] = Field((), strict=False)
    """The k of pass@k and maj@k, one or a list, each at most `samples`; `samples` itself where absent."""
    entropy: bool = False
    """Also the mean entropy of the model on its own answers."""
    base_kl: bool = False
    """Also KL(model‖base) on the scored tokens."""

    @field_validator("k", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _completed(self) -> SampledTask:
        """Fill in what follows from other options; it does not count as given."""
        for name, value in self._derived().items():
            object.__setattr__(self, name, value)
        for k in self.k:
            if not 1 <= k <= self.samples:
                message = f"pass@{k} cannot be estimated from {self.samples} samples; raise samples"
                raise OptionsError([(("k",), message)])
        self.generation()
        return self

    def _derived(self) -> dict[str, Any]:
        return {"k": self.k or ((self.samples,) if self.samples > 1 else ())}

    @property
    def needs_base(self) -> bool:
        return self.base_kl

    def generation(self) -> GenerationOptions:
        """Return how answers are generated; raises BallastError for several samples at temperature 0."""
        from ballast.evaluation.generation import GenerationOptions

        return GenerationOptions(
            max_new_tokens=self.max_new_tokens,
            samples=self.samples,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            batch_tokens=self.batch_tokens,
            stop=self.stop,
        )


class JudgedTask(SampledTask):
    """What kinds whose answers a verifier judges have in common."""

    verifier: Text = "exact"
    """What judges an answer: `exact`, `math`, `expression`, `last-number`, `program` or
    `package.module:function`."""
    verifier_seconds: float = Field(10.0, gt=0)
    """Wall clock of one verdict of `math`, of a function of your own or of a program, in seconds."""
    tolerance: float = Field(TOLERANCE, ge=0)
    """How far a number that a program returns may be from the row's `answer`; verifier `program` alone reads it."""
    allow_code_execution: bool = False
    """Run what the model wrote on this machine; verifier `program` needs it."""

    @model_validator(mode="after")
    def _judged(self) -> JudgedTask:
        if problems := list(conflicts(self)):
            raise OptionsError(problems)
        return self


class GenerateTask(JudgedTask):
    """Answers judged by a verifier."""

    kind: Literal["generate"] = "generate"
    revise: TaskLoopOptions | None = None
    """Let the model, or a reviser, revise its answer: the last one counts, beside the draft."""

    @property
    def reviser(self) -> str | None:
        return None if self.revise is None else self.revise.reviser

    @model_validator(mode="after")
    def _revises_one_draft(self) -> GenerateTask:
        if self.revise is None:
            return self
        for name in ("entropy", "base_kl"):
            if getattr(self, name):
                raise OptionsError([((name,), "is of drafts where answers are revised; measure it in another task")])
        if self.samples > 1:
            message = f"{self.samples} drafts of a prompt cannot be revised, only one; leave it at 1"
            raise OptionsError([(("samples",), message)])
        return self


class CodeTask(SampledTask):
    """Answers judged by their tests."""

    kind: Literal["code"] = "code"
    allow_code_execution: bool = False
    """Run what the model wrote on this machine; nothing is run without."""
    code_seconds: float = Field(10.0, gt=0)
    """Wall clock of one program, in seconds."""
    code_memory_mb: int = Field(1024, ge=1)
    """Memory of one program, in MiB."""


class ReadinessTask(JudgedTask):
    """Answers judged by a verifier, read as the start of reinforcement learning."""

    kind: Literal["readiness"] = "readiness"
    group: int = Field(8, ge=2, json_schema_extra={"reason": "a group of one answer never has a gradient"})
    """Answers to one prompt in a step of reinforcement learning."""
    samples: int = Field(8, ge=1)
    """Answers per prompt; `group` where absent."""
    temperature: float = Field(1.0, ge=0)
    """Of the samples."""
    k: tuple[int, ...] = Field((), strict=False)
    """Further k of pass@k, one or a list, beside 1 and `group`."""
    entropy: bool = True
    """Also the mean entropy of the model on its own answers."""
    base_kl: bool = True
    """Also KL(model‖base) on its own answers and on `demonstrations`."""
    demonstrations: Rows | None = Field(None, repr=False)
    """Rows with `prompt` and `completion`, for their likelihood and KL(model‖base); `data.train` names the recipe's."""
    forgetting: Rows | None = Field(None, repr=False)
    """Rows with `text`, for their likelihood."""

    def _derived(self) -> dict[str, Any]:
        samples = self.samples if "samples" in self.model_fields_set else self.group
        return {"samples": samples, "k": tuple(dict.fromkeys((1, self.group, *self.k)))}


class ChoiceTask(Task):
    """Multiple choice by likelihood; see `choice_scores`."""

    kind: Literal["choice"] = "choice"
    style: Literal["text", "letter"] = "text"
    """Score an option's words, or list the options and score the letter."""
    overlong: Literal["refuse", "skip"] = "refuse"
    """What to do with a row of which an option exceeds the context."""


class NllTask(Task):
    """Likelihood of held-out text, or of demonstrations; see `text_likelihood`."""

    kind: Literal["nll"] = "nll"
    context: int | None = Field(None, ge=1)
    """Tokens of one window; the model's context where absent."""
    stride: int | None = Field(None, ge=1)
    """New tokens of each further window; half the context where absent."""
    base_kl: bool = False
    """Also KL(model‖base) on the scored tokens."""

    @property
    def needs_base(self) -> bool:
        return self.base_kl

    @model_validator(mode="after")
    def _moves_on(self) -> NllTask:
        if self.context is not None and self.stride is not None and self.stride >= self.context:
            message = f"{self.stride} new tokens leave no room for what comes before them in context {self.context}"
            raise OptionsError([(("stride",), message)])
        return self


class LmEvalTask(Task):
    """Tasks of lm-evaluation-harness, each with its own rows, prompts and scores; see `ballast.evaluation.harness`."""

    kind: Literal["lm-eval"] = "lm-eval"
    data: Rows = Field((), repr=False, exclude=True)
    """To be left out: the rows are those of `tasks`."""
    tasks: Texts = Field(min_length=1)
    """Its tasks, groups or tags by name, one or a list, such as `ifeval`; `limit` holds for each."""
    few_shot: int | None = Field(None, ge=0)
    """Examples before each question; the task's own number where absent."""
    include_path: Path | None = None
    """Folder with task files of your own, YAML as lm-eval reads it."""
    batch_size: int = Field(8, ge=1)
    """Sequences of one batch."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not values.get("name") and (tasks := values.get("tasks")):
            return {**values, "name": tasks if isinstance(tasks, str) else "+".join(map(str, tasks))}
        return values

    @model_validator(mode="after")
    def _reads_no_rows(self) -> LmEvalTask:
        given = {"data": isinstance(self.data, str), "split": self.split, "columns": self.columns}
        given["batch_tokens"] = self.batch_tokens != Task.model_fields["batch_tokens"].default
        for name in (name for name, value in given.items() if value):
            instead = (
                "set batch_size" if name == "batch_tokens" else "leave it out; include_path adds tasks of your own"
            )
            raise OptionsError(
                [((name,), f"would be ignored: lm-eval's tasks have rows and batches of their own; {instead}")]
            )
        return self


AnyTask = Annotated[
    GenerateTask | ChoiceTask | CodeTask | NllTask | ReadinessTask | LmEvalTask, Field(discriminator="kind")
]
CLASSES: dict[str, type[Task]] = {
    "generate": GenerateTask,
    "choice": ChoiceTask,
    "code": CodeTask,
    "nll": NllTask,
    "readiness": ReadinessTask,
    "lm-eval": LmEvalTask,
}
