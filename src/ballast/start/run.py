"""`ballast init` and the first half of `ballast try`: look at the rows and the model, plan, and write the recipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ballast import checkpoints, models
from ballast.config.recipe import DataSection, ModelSection, Recipe
from ballast.data.columns import Columns
from ballast.data.exact import as_stored
from ballast.data.messages import last_text
from ballast.errors import BallastError
from ballast.files import check_place
from ballast.pipeline import sources
from ballast.pipeline.advise import run_advise
from ballast.pipeline.inputs import silent
from ballast.protocols import Say
from ballast.start import columns as reading
from ballast.start import plan as planning
from ballast.start.answers import Chosen, choose, judged
from ballast.start.plan import Plan
from ballast.start.probe import CUT_OFF, Probe, probe
from ballast.start.recipe import LORA, RECIPE, TEST, TRAIN, TRAINING, VALIDATION, Written, text
from ballast.start.rows import Parts, demonstrations, split

Row = Mapping[str, Any]
ADVISED = 64
"""Rows that the advice is on."""
EPOCHS = 3
"""Passes over the rows beyond which a comparison does not train."""
ASKED = "asked.json"
"""What a folder was made for, so that it goes on with nothing else."""


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        model: as in a recipe.
        data: a source of rows.
        columns: as in ``data.columns``; None finds them.
        minutes: that the comparison may take.
    """

    model: str
    data: str
    columns: Columns = None
    minutes: float = 20

    def same(self, other: Any) -> bool:
        """Return whether a folder that was made for `other` serves this request."""
        return {**self.plain(), "minutes": None} == {**other, "minutes": None}

    def plain(self) -> dict[str, Any]:
        """Return it as it is kept."""
        return dict(vars(self))


def default_folder(data: str) -> Path:
    """Return where everything goes unasked: ``runs/try-NAME``."""
    name = Path(data.rpartition(":")[2]).name.partition(".")[0] or "rows"
    return Path("runs", f"try-{name}")


def is_made(folder: Path, request: Request) -> bool:
    """Return whether a folder holds the recipe of this request already.

    Raises:
        BallastError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        known = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BallastError(f"--output: {folder}: is not empty and would be mixed up; name a new folder") from None
    if not isinstance(known, dict) or not request.same(known):
        raise BallastError(f"--output: {folder}: was made for another model or other data; name a new folder")
    return True


def run_init(request: Request, folder: Path, *, command: str, say: Say) -> Plan:
    """Write a recipe and its rows into a new folder, and return the plan.

    Raises:
        BallastError: the model or the rows cannot be used. Nothing is written then.
    """
    check_place("--output", folder)
    section = models.resolve(ModelSection(path=request.model))
    config = models.load_config(section)
    parameters = sum(one.numel() for one in models.empty_model(section, config).parameters())
    lora = parameters > planning.LORA_ABOVE
    section = section.model_copy(update={"lora": dict(LORA)}) if lora else section
    chat = bool(getattr(models.load_tokenizer(section), "chat_template", None))
    parts, layout, judge = _rows(request, chat, say)
    say(f"model: {parameters / 1e6:,.1f} M parameters; {'an adapter is' if lora else 'all weights are'} trained")
    name = None if judge is None else judge.judge.verifier
    found = probe(section, TRAINING, name, parts.test, parts.train)
    for line in probed(found):
        say(line)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        made = Path(beside, "made")
        made.mkdir()
        for file, rows in ((TRAIN, parts.train), (VALIDATION, parts.validation), (TEST, parts.test)):
            _write(made / file, rows)
        regime = _advised(section, made / TRAIN)
        say(f"prior: {regime.name}, by `ballast advise`: {regime.meaning}")
        why = dict(planning.WORTH[regime.expects])
        steps = EPOCHS * len(parts.train) // TRAINING["per_device_train_batch_size"]
        plan = planning.plan(list(why), found, 60 * request.minutes, lora=lora, most_steps=max(1, steps))
        written = Written(
            command=command,
            model=request.model,
            folder=folder,
            rows=f"{len(parts.train):,} rows; {layout}",
            judge=name,
            judged=_judging(judge),
            lora=lora,
            why=why,
            plan=plan,
            probe=found,
        )
        (made / RECIPE).write_text(text(written), encoding="utf-8")
        (made / ASKED).write_text(json.dumps(request.plain(), indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        checkpoints.put_in_place(made, folder)
    for line in planned(plan, request.minutes):
        say(line)
    return plan


def _rows(request: Request, chat: bool, say: Say) -> tuple[Parts, str, Chosen | None]:
    """Return the rows in parts, how they were read, and what judges answers to them."""
    if problem := sources.check_source(request.data):
        raise BallastError(problem)
    raw = sources.load(request.data, columns=request.columns)
    layout = (
        reading.recognise(raw.column_names, request.data)
        if request.columns is None
        else reading.Layout(request.columns, "columns as given", as_written=False)
    )
    if request.columns is None and layout.columns is not None:
        raw = sources.load(request.data, columns=layout.columns)
    rows = list(as_stored(raw.with_format(None)))
    try:
        made = demonstrations(rows, chat=chat, as_written=layout.as_written)
        parts = split(made)
    except BallastError as error:
        raise BallastError(f"{request.data}: {error}") from error
    say(f"rows: {len(rows):,}; {layout.said}; {'as a chat' if chat else 'as plain text, for want of a chat template'}")
    judge = choose(rows, [last_text(one["completion"]) for one in made])
    say(_judging(judge))
    parts = Parts(parts.train, _held(judge, parts.validation), _held(judge, parts.test))
    sizes = f"{len(parts.train):,} to train on, {len(parts.validation)} to choose by, {len(parts.test)} to report"
    say(f"split by prompt: {sizes}")
    return parts, layout.said, judge


def _held(judge: Chosen | None, rows: Sequence[Row]) -> list[Row]:
    """Return the rows that can be judged, each with its right answer."""
    if judge is None:
        return list(rows)
    answers = judged(judge.judge, rows, [last_text(row["completion"]) for row in rows])
    return [{**row, "answer": answer} for row, answer in zip(rows, answers, strict=True) if answer is not None]


def _judging(judge: Chosen | None) -> str:
    if judge is None:
        return "no verifier can judge these rows: objectives are compared by the likelihood of held-out answers"
    return (
        f"verifier {judge.judge.verifier} on {judge.judge.said}: finds {judge.share:.0%} of the demonstrations right; "
        "the others are not tested on"
    )


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _advised(section: ModelSection, train: Path) -> Any:
    data = DataSection(train=(str(train),), limit=ADVISED)
    advised = run_advise(Recipe(model=section, data=data, training=dict(TRAINING)), say=silent)
    assert advised is not None  # of several ranks one has it, and this command has one
    return advised.advice.regime


def probed(found: Probe) -> list[str]:
    """Return what was measured of the base model, as lines."""
    lines = [
        f"a step takes {found.step_seconds:.2g} s, an answer {found.answer_seconds:.2g} s; up to "
        f"{found.max_new_tokens} tokens an answer"
    ]
    if found.accuracy is not None:
        lines.append(f"the model as it is: {found.accuracy:.0%} of {found.items} answers right")
    if found.accuracy == 0:
        lines.append("no answer is right yet: nothing for RL to begin with; fine-tuning has to find it")
    if found.accuracy == 1:
        lines.append("every answer is right already: these rows cannot show a gain, take harder ones")
    if found.cut_off >= CUT_OFF:
        lines.append(f"{found.cut_off:.0%} of its answers do not end, so its own figure may be too low")
    return lines


def planned(plan: Plan, minutes: float) -> list[str]:
    """Return the plan and its cost, as lines."""
    size = plan.size
    tuned = f"{len(plan.rates)} rates × {size.tuning_seeds} to choose, " if len(plan.rates) > 1 else ""
    runs = f"{size.seeds} seeds to report; {size.steps} steps a run, {plan.runs} runs"
    lines = [
        f"plan: {', '.join(plan.objectives)}; {tuned}{runs}",
        f"cost: about {plan.seconds / 60:.0f} min here, {_bytes(plan.disk)} on disk, {_bytes(plan.memory)} of memory",
    ]
    if plan.seconds > 60 * minutes:
        lines.append(f"that is more than the {minutes:g} min asked for; less would not tell chance from a difference")
    return lines


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def shown_command(verb: str, request: Request) -> str:
    """Return the command that was given, as it can be given again."""
    return f"ballast {verb} {shlex.quote(request.model)} {shlex.quote(request.data)}"
