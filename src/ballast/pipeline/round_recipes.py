"""What each command of a round runs: the recipe's, from the model at hand, on what the round has made so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ballast import checkpoints
from ballast.config.recipe import EvaluationSection, ModelSection, Recipe
from ballast.config.sections import MAKERS, RoundsSection
from ballast.groups.options import GroupOptions, RowsOptions
from ballast.protocols import Say
from ballast.records.folder import discard
from ballast.records.runs import read_record
from ballast.stats import GROUP_FIELDS

RIGHT = "right.jsonl"
"""Right answers of a round as rows to train on, where the recipe names no other file."""


@dataclass(frozen=True)
class Round:
    """One round of a recipe.

    Attributes:
        number: from 1.
        model: what the next command starts from.
    """

    recipe: Recipe
    number: int
    model: ModelSection
    say: Say
    progress: bool = True

    @property
    def rounds(self) -> RoundsSection:
        """The recipe's section."""
        assert self.recipe.rounds is not None
        return self.recipe.rounds

    def folder(self, verb: str, number: int | None = None) -> Path:
        """Return where a command of this round, or of another, leaves what it makes."""
        return Path(str(self.recipe.output)) / f"round-{number or self.number}" / verb

    def part(self, verb: str, **changes: Any) -> Recipe:
        """Return the recipe of a command: of round 1 what the command by itself would run, but for its output."""
        own = {
            "model": self.model,
            "rounds": None,
            "rows": None,
            "compare": None,
            "output": str(self.folder(verb)),
            "seed": self.recipe.seed + self.number - 1,
            "evaluation": EvaluationSection(),
        }
        return self.recipe.model_copy(update={**own, **changes})

    def made_by(self, verb: str) -> list[str]:
        """Return what `train` reads of a command: of this round, then of as many earlier ones as it reads too."""
        first = max(1, self.number - self.rounds.previous)
        return [str(self.folder(verb, number)) for number in range(self.number, first - 1, -1)]

    def sampling(self) -> Recipe:
        """Return the recipe of `sample`; the right answers go beside them where the recipe wants them as rows."""
        assert self.recipe.groups is not None
        rows = self.recipe.rows
        if rows is not None or self.source == self.right:
            rows = RowsOptions(file=RIGHT) if rows is None else rows
            rows = rows.changed({"file": str(self.folder(self.right))})
        return self.part("sample", rows=rows, groups=self.recipe.groups.changed({"file": str(self.folder("sample"))}))

    def revising(self) -> Recipe:
        """Return the recipe of `revise`: of the answers of this round's `sample`, where there is one."""
        assert self.recipe.revise is not None
        drafts = {"draft": str(self.folder("sample"))} if self.rounds.before("revise", ("sample",)) else {}
        return self.part("revise", revise=self.recipe.revise.changed({"file": str(self.folder("revise")), **drafts}))

    def learning_reward(self) -> Recipe:
        """Return the recipe of `reward`: from the answers of this round's `sample`."""
        assert self.recipe.groups is not None
        return self.part("reward", groups=self.recipe.groups.changed({"file": str(self.folder("sample"))}))

    def training(self) -> Recipe:
        """Return the recipe of `train`: on what this round and earlier ones made, else on the recipe's own rows."""
        source = self.source
        if source is None:
            return self.part("train")
        files = self.made_by(source)
        if not on_groups(self.recipe):
            rows = {"train": tuple(files), "columns": None, "split": None, "limit": None}
            return self.part("train", groups=None, data=self.recipe.data.model_copy(update=rows))
        if source == "sample":
            assert self.recipe.groups is not None
            return self.part("train", groups=self.recipe.groups.changed({"file": files}))
        data = self.recipe.data.model_copy(update={"train": ()})
        return self.part("train", groups=GroupOptions(file=tuple(files)), data=data)

    @property
    def source(self) -> str | None:
        """What `train` reads: the last that is made before it, of answers the right ones alone where it takes rows."""
        before = self.rounds.before("train", MAKERS)
        if not before:
            return None
        return self.right if before[-1] == "sample" and not on_groups(self.recipe) else before[-1]

    @property
    def right(self) -> str:
        """Name of the file of right answers in the round's folder."""
        return RIGHT if self.recipe.rows is None else self.recipe.rows.file

    def reinforcing(self) -> Recipe:
        """Return the recipe of `rl`: rewarded by what this round's `reward` learnt, where there is one."""
        if not self.rounds.before("rl", ("reward",)):
            return self.part("rl")
        assert self.recipe.rl is not None
        learnt = {"reward": "model", "reward_model": str(self.folder("reward"))}
        return self.part("rl", rl=self.recipe.rl.changed(learnt))

    def resumes(self, verb: str) -> bool:
        """Return whether a run goes on in its folder; what has no checkpoint to go on from is removed."""
        folder = self.folder(verb)
        record, weights_only = read_record(folder), bool(self.recipe.training.get("save_only_model"))
        if record is not None and record.status in ("trained", "finished"):
            return True
        if record is not None and checkpoints.last_whole(folder, weights_only=weights_only).path is not None:
            return True
        discard(folder)
        return False


def on_groups(recipe: Recipe) -> bool:
    """Whether what the recipe trains reads groups of answers."""
    return recipe.objective is not None and bool(set(recipe.objective.build().needs) & set(GROUP_FIELDS))
