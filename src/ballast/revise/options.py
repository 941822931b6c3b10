"""How answers are revised; imports no torch, so that recipes are checked without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ballast.options import Options, OptionsError, Path, Text, Texts, Where
from ballast.verifiers.options import conflicts
from ballast.verifiers.program import TOLERANCE

Feedback = Literal["model", "verifier", "none"]
Stop = Literal["verifier", "words", "never"]
Label = Literal["major", "minor", "no", "unparsed"]
LABELS: tuple[Label, ...] = ("major", "minor", "no", "unparsed")
BY_LABEL = ("feedback", "stop", "stop_words")
"""What a reviser's label decides."""


class LoopOptions(Options):
    """One loop for both methods: a draft, then up to `rounds` revisions of it."""

    how: Literal["self-refine", "reviser"] = "self-refine"
    """`self-refine`: the model says what is wrong with its answer and writes another (Self-Refine). `reviser`: a model
    trained to revise says first how much is to be done, then writes the answer (SEFT)."""
    reviser: Path | None = None
    """Folder or hub id of the reviser; none given is the model itself."""
    rounds: int = Field(1, ge=0)
    """Revisions at most; Self-Refine's authors take up to 4, SEFT has one."""
    feedback: Feedback = "verifier"
    """`model`: the model's own critique. `verifier`: a sentence that says whether the answer is right. `none`: no
    word."""
    stop: Stop = "verifier"
    """`verifier`: no further revision of an answer that scores 1. `words`: none after a critique with one of
    `stop_words`. `never`: all `rounds`."""
    stop_words: Texts = ("[correct]",)
    """Looked for in the critique alone, never in an answer."""
    revision_temperature: float | None = Field(None, ge=0)
    """Of critiques and revisions; none given is that of drafts, and 0 for a reviser."""
    templates: Path | None = None
    """YAML file of texts with `{prompt}`, `{draft}`, `{feedback}` and `{history}`; those it lacks are ballast's own."""

    @model_validator(mode="after")
    def _goes_together(self) -> LoopOptions:
        if problems := list(self._conflicts()):
            raise OptionsError(problems)
        return self

    def _conflicts(self) -> Iterator[tuple[Where, str]]:
        if self.how == "reviser":
            for key in BY_LABEL:
                if key in self.model_fields_set:
                    yield (key,), "would be ignored: a reviser's label decides that; leave it out, or how: self-refine"
            return
        if self.reviser is not None:
            yield (
                ("reviser",),
                "would be ignored: with how: self-refine the model revises its own answers; set how: reviser",
            )
        if self.stop == "words" and self.feedback != "model":
            message = f"words are looked for in the model's critique, and feedback: {self.feedback} has none; "
            yield ("stop",), message + "set feedback: model, or another stop"
        if "stop_words" in self.model_fields_set and self.stop != "words":
            yield ("stop_words",), f"would be ignored with stop: {self.stop}; set stop: words, or leave them out"
        if self.stop == "words" and not self.stop_words:
            yield ("stop_words",), "is empty, so no critique could end the loop; list a text, or set stop: never"

    def heat(self, drafts: float) -> float:
        """Return the temperature of critiques and revisions, `drafts` being that of drafts."""
        if self.revision_temperature is not None:
            return self.revision_temperature
        return 0.0 if self.how == "reviser" else drafts

    @property
    def signals(self) -> tuple[str, ...]:
        """Return the options by which the loop itself asks the verifier."""
        if self.how == "reviser":
            return ()
        return tuple(key for key in ("feedback", "stop") if getattr(self, key) == "verifier")


class ReviseOptions(LoopOptions):
    """What is revised and how, which revisions are kept, and where."""

    owner: ClassVar[str] = "revise."

    draft: Path = "own"
    """`own`: sampled by the model. `completion`: the row's, to repair demonstrations. Else a folder of `ballast
    sample` or rows with `prompt` and `completion`: answers of another model, found by prompt."""
    hint: Literal["none", "completion"] = "none"
    """`completion`: templates may show the row's completion as `{completion}`."""
    accept: Literal["always", "verifier"] = "always"
    """`always`: the last version. `verifier`: the one that scores best, the earliest of equals; no row gets worse."""
    keep: tuple[Label, ...] = Field(LABELS, strict=False)
    """Rows of a reviser that are trained on, by its label; the others are left out."""
    only_correct: bool = False
    """Leave out rows whose answer does not score 1: with what is not revised, rejection sampling."""
    verifier: Text | None = None
    """What judges every version: `exact`, `math`, `expression`, `last-number`, `program` or `package.module:function`.
    Needed where `feedback`, `stop`, `accept`, `only_correct` or `label` ask it; else it only logs."""
    temperature: float = Field(1.0, ge=0)
    """Of drafts; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Samples come from the most likely tokens up to this mass."""
    max_new_tokens: int = Field(256, ge=1)
    """Tokens after which a text is cut off. An answer that has not ended by then scores 0, and its row is left out."""
    batch_tokens: int = Field(16384, ge=1)
    """Rows × (prompt + new tokens) of one batch of sampling."""
    seconds: float = Field(10.0, gt=0)
    """Wall clock of one verdict of a function of your own, of math-verify or of a program, in seconds."""
    tolerance: float = Field(TOLERANCE, ge=0)
    """How far a number that a program returns may be from the row's `answer`; verifier `program` alone reads it."""
    allow_code_execution: bool = False
    """Run what the model wrote on this machine; verifier `program` needs it."""
    file: Path | None = None
    """Folder to fill: rows that `ballast train`, groups and `compare` read."""
    pairs: Path | None = None
    """Instead write rows to train a reviser on to this JSONL file: of `groups.file`, or of `data.train` with `chosen`
    and `rejected`."""
    label: Literal["verifier", "difficulty", "edit", "none"] = "verifier"
    """How a pair's label is found. `verifier`: by the scores of draft and better answer. `difficulty`: by how much less
    likely than the draft a reviser without labels finds the better answer, in thirds. `edit`: by edit distance.
    `none`: no label, for that first reviser."""

    def _conflicts(self) -> Iterator[tuple[Where, str]]:
        yield from super()._conflicts()
        yield from conflicts(self)
        if self.how != "reviser" and "keep" in self.model_fields_set:
            yield ("keep",), "would be ignored: only a reviser says labels; set how: reviser, or only_correct"
        if not self.keep:
            yield ("keep",), "is empty, so no row would be left; list at least one label"
        if self.pairs is None and "label" in self.model_fields_set:
            yield ("label",), "would be ignored without revise.pairs, the rows that get labels; name the file"
        if self.pairs is not None and self.file is not None:
            yield ("pairs",), "and file are both given, one would not be written; keep one"
        if self.hint == "completion" and self.how == "reviser":
            yield ("hint",), "would be ignored: a reviser reads what it was trained on; set how: self-refine"

    @property
    def asks_verifier(self) -> tuple[str, ...]:
        """Return the options that need a verifier."""
        if self.pairs is not None:
            return ("label",) if self.label == "verifier" else ()
        kept = ("accept",) if self.accept == "verifier" else ()
        return (*self.signals, *kept, *(("only_correct",) if self.only_correct else ()))


class TaskLoopOptions(LoopOptions):
    """How an evaluation task revises its answers before the last of them is judged."""

    feedback: Feedback = "none"
    stop: Stop = "never"
    oracle: bool = False
    """Let the loop ask the verifier, which knows the right answer: the last answer's accuracy is then called
    `oracle_accuracy`, since no one who uses the model has it."""

    def _conflicts(self) -> Iterator[tuple[Where, str]]:
        yield from super()._conflicts()
        for key in self.signals if not self.oracle else ():
            yield (
                (key,),
                "verifier tells the loop what is measured, and accuracy could only look better; take a signal that a "
                "user has, or set oracle: true",
            )
        if self.oracle and not self.signals:
            yield ("oracle",), "would be ignored: neither feedback nor stop asks the verifier; leave it out"
