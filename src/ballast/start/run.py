"""`ballast init` and the first half of `ballast try`: look at the rows and the model, plan, and write the recipe."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballast import models
from ballast.compare.run import runs_at_a_time
from ballast.config.recipe import DataSection, ModelSection, Recipe
from ballast.data.columns import Columns
from ballast.data.exact import as_stored
from ballast.data.messages import last_text
from ballast.errors import BallastError
from ballast.files import check_place, temporary_folder
from ballast.pipeline import sources
from ballast.pipeline.advise import run_advise
from ballast.pipeline.digests import MODEL, inputs_of
from ballast.pipeline.digests import TRAIN as TRAIN_ROWS
from ballast.pipeline.disk import refuse_full, shown_bytes
from ballast.pipeline.inputs import silent
from ballast.progress import duration
from ballast.protocols import Say
from ballast.start import columns as reading
from ballast.start import plan as planning
from ballast.start.answers import Chosen, choose, judged
from ballast.start.end import end_token
from ballast.start.plan import Plan, Room
from ballast.start.probe import CUT_OFF, Probe, probe
from ballast.start.recipe import (
    LORA,
    PROMPTS,
    RECIPE,
    TEST,
    TRAIN,
    TRAINING,
    VALIDATION,
    Written,
    compare_command,
    text,
)
from ballast.start.rows import Parts, demonstrations, split

Row = Mapping[str, Any]
ADVISED = 64
"""Rows that the advice is on."""
EPOCHS = 3
"""Passes over the rows beyond which a comparison does not train."""
MINUTES = 20.0
"""What a comparison may take unasked."""
ASKED = "asked.json"
"""What a folder was made for, so that it goes on with nothing else."""
INPUTS = "inputs"
"""In that file: the digests of model and rows."""


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        model: as in a recipe.
        data: a source of rows.
        columns: as in ``data.columns``; None finds them.
        minutes: that the comparison may take; None for `MINUTES`.
        eos_token: the tokenizer's end token where it names none itself; None finds one.
    """

    model: str
    data: str
    columns: Columns = None
    minutes: float | None = None
    eos_token: str | None = None

    @property
    def time(self) -> float:
        """Return the minutes that a new comparison may take."""
        return MINUTES if self.minutes is None else self.minutes

    def same(self, other: Any) -> bool:
        """Return whether a folder that was made for `other` has this model and these rows."""
        asked = {"eos_token": None, **other, "minutes": None}
        return {**self.plain(), "minutes": None} == {key: asked[key] for key in asked if key != INPUTS}

    def plain(self) -> dict[str, Any]:
        """Return it as it is kept."""
        return {**vars(self), "minutes": self.time}


def default_folder(data: str) -> Path:
    """Return where everything goes unasked: ``runs/try-NAME``."""
    name = Path(data.rpartition(":")[2]).name.partition(".")[0] or "rows"
    return Path("runs", f"try-{name}")


def is_made(folder: Path, request: Request) -> bool:
    """Return whether a folder holds the recipe of this request already.

    Raises:
        BallastError: it holds something else, or was planned for another time.
    """
    if not folder.exists() or (folder.is_dir() and not any(_left(folder))):
        return False
    try:
        known = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BallastError(f"--output: {folder}: is not empty and would be mixed up; name a new folder") from None
    if not isinstance(known, dict) or not request.same(known):
        raise BallastError(f"--output: {folder}: was made for another model or other data; name a new folder")
    if changed := _changed(request, known.get(INPUTS, {})):
        raise BallastError(
            f"--output: {folder}: was made of other {changed}, which changed since then, and would go on with its copy "
            f"of them: name another --output to begin anew, or go on as it is: {compare_command(folder)}"
        )
    if request.minutes not in (None, known["minutes"]):
        raise BallastError(
            f"--minutes: {request.minutes:g}: would be ignored: {folder} was planned for {known['minutes']:g} min; "
            f"leave it out, change {folder / RECIPE}, or plan anew with another --output"
        )
    return True


def _left(folder: Path) -> Iterator[Path]:
    """Yield what lies in a folder, but for what a killed command was making in it."""
    return (file for file in folder.iterdir() if not file.name.startswith(f".{folder.name}."))


def _inputs(request: Request) -> dict[str, str]:
    """Return the digests of model and rows; what is not here, on the hub, has none."""
    columns: Any = request.columns
    data = DataSection(train=(request.data,), columns=columns)
    recipe = Recipe(model=ModelSection(path=request.model), data=data)
    return {name: record.digest for name, record in inputs_of(recipe).items()}


def _changed(request: Request, known: Mapping[str, str]) -> str | None:
    """Return what is no longer what a folder was made of; what is gone has not changed."""
    try:
        now = _inputs(request)
    except BallastError:
        return None
    names = {MODEL: f"weights of {request.model}", TRAIN_ROWS: f"rows of {request.data}"}
    found = [said for name, said in names.items() if name in known and known[name] != now.get(name, known[name])]
    return " and ".join(found) or None


def run_init(request: Request, folder: Path, *, command: str, say: Say) -> Plan:
    """Write a recipe and its rows into a new folder, and return the plan.

    Raises:
        BallastError: the model or the rows cannot be used. Nothing is written then.
    """
    started = time.monotonic()
    check_place("--output", folder)
    section = models.resolve(ModelSection(path=request.model))
    config = models.load_config(section)
    parameters = sum(one.numel() for one in models.empty_model(section, config).parameters())
    lora = parameters > planning.LORA_ABOVE
    section = section.model_copy(update={"lora": dict(LORA)}) if lora else section
    tokenizer = models.load_tokenizer(section)
    training = {**TRAINING, **end_token(section, tokenizer, request.eos_token, say)}
    chat = bool(getattr(tokenizer, "chat_template", None))
    parts, layout, judge = _rows(request, chat, say)
    say(f"model: {parameters / 1e6:,.1f} M parameters; {'an adapter is' if lora else 'all weights are'} trained")
    name = None if judge is None else judge.judge.verifier
    found = probe(section, training, name, parts.test, parts.train)
    training |= {} if found.bf16 is None else {"bf16": True}
    for line in probed(found):
        say(line)
    with temporary_folder(f".{folder.name}.", folder if folder.exists() else folder.parent) as temporary:
        made = temporary / "made"
        made.mkdir()
        for file, rows in ((TRAIN, parts.train), (VALIDATION, parts.validation), (TEST, parts.test)):
            _write(made / file, rows)
        if judge is not None:
            asked = [{key: row[key] for key in row if key != "completion"} for row in _held(judge, parts.train)]
            _write(made / PROMPTS, asked)
        before = time.monotonic()
        regime = _advised(section, training, made / TRAIN)
        scoring = (time.monotonic() - before) * max(1.0, len(parts.train) / ADVISED)
        say(f"prior: {regime.name}, by `ballast advise`: {regime.meaning}")
        why = dict(planning.WORTH[regime.expects])
        steps = EPOCHS * len(parts.train) // TRAINING["per_device_train_batch_size"]
        room = Room(max(1, steps), len(parts.validation), len(parts.test), runs_at_a_time(section), scoring)
        left = 60 * request.time - (time.monotonic() - started)
        plan = planning.plan(list(why), found, left, lora=lora, room=room)
        stays = f"{len(plan.objectives) * plan.size.seeds:,} models of {shown_bytes(found.weights)}"
        refuse_full(folder, plan.disk, stays, option="--output", less="give fewer --minutes, which plans fewer seeds")
        written = Written(
            command=command,
            model=request.model,
            folder=folder,
            rows=f"{len(parts.train):,} rows; {layout}",
            judge=name,
            judged=_judging(judge),
            lora=lora,
            training=training,
            why=why,
            plan=plan,
            probe=found,
        )
        (made / RECIPE).write_text(text(written), encoding="utf-8")
        known = {**request.plain(), INPUTS: _inputs(request)}
        (made / ASKED).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        _put(made, folder)
    for line in planned(plan, request.time):
        say(line)
    return plan


def _put(made: Path, folder: Path) -> None:
    """Move what was made to its place. An empty folder there is filled: it may be a link, a disk, where one stands."""
    if not folder.exists():
        made.rename(folder)
        return
    for file in sorted(made.iterdir(), key=lambda file: file.name == ASKED):
        file.rename(folder / file.name)


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
    if not parts.validation or not parts.test:
        raise BallastError(
            f"{request.data}: of the rows set apart none can be judged, so nothing could be compared; give more rows, "
            "or write a recipe by hand (docs/recipe.md)"
        )
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


def _advised(section: ModelSection, training: Mapping[str, Any], train: Path) -> Any:
    data = DataSection(train=(str(train),), limit=ADVISED)
    advised = run_advise(Recipe(model=section, data=data, training=dict(training)), say=silent)
    assert advised is not None  # of several ranks one has it, and this command has one
    return advised.advice.regime


def probed(found: Probe) -> list[str]:
    """Return what was measured of the base model, as lines."""
    lines = [
        f"a step takes {found.step_seconds:.2g} s, an answer {found.answer_seconds:.2g} s; up to "
        f"{found.max_new_tokens} tokens an answer"
    ]
    if found.bf16 is not None:
        lines.append(f"arithmetic in bfloat16 makes a step {found.bf16:.1f} times as fast here: it is taken")
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
    runs = f"{size.seeds} seeds to report; {size.steps} steps a run, {plan.runs} runs, {plan.jobs} at a time"
    room = f"{shown_bytes(plan.disk)} on disk, {shown_bytes(plan.memory)} of memory a run"
    lines = [
        f"plan: {', '.join(plan.objectives)}; {tuned}{runs}",
        f"cost: about {duration(plan.seconds)} here, {room}",
    ]
    if plan.seconds > 60 * minutes:
        lines.append(f"that is more than the {minutes:g} min asked for; less would not tell chance from a difference")
    return lines


def shown_command(verb: str, request: Request, output: Path | None) -> str:
    """Return the command that was given, as it can be given again."""
    columns = request.columns if isinstance(request.columns, str | None) else json.dumps(dict(request.columns))
    minutes = None if request.minutes is None else f"{request.minutes:g}"
    options = {"--columns": columns, "--minutes": minutes, "--eos-token": request.eos_token, "--output": output}
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["ballast", verb, request.model, request.data, *given])
