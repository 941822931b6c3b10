"""What ballast asks of a training loop beyond transformers': no step too many, whole checkpoints, no step into NaN.

A mixin for subclasses of `transformers.Trainer`, checked against transformers 5.23; it stands before TRL's trainer.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ballast import checkpoints
from ballast.errors import BallastError, Diverged
from ballast.files import expanded, write_atomically
from ballast.half import Split
from ballast.reference.fingerprint import start_fingerprint
from ballast.sharding import kind_of, part_here

if TYPE_CHECKING:
    from transformers import Trainer as Base
    from transformers import TrainingArguments as Arguments
    from transformers.trainer_utils import TrainOutput
else:
    Base = object

NAMES = {"": "no sharding (DDP, or one process)", "fsdp2": "FSDP2", **{f"zero{n}": f"ZeRO-{n}" for n in range(4)}}
"""What shards a run, as a person calls it."""

START = "ballast-start.json"
"""File of a checkpoint with the fingerprint of the model that training started from."""


class CheckedLoop(Base):
    """Makes a trainer refuse what it cannot go on from and stop before weights are lost.

    - A run that is resumed at its last step takes no further one.
    - Checkpoints are written beside their place and moved there when whole; a torn one is passed over with a warning.
    - A checkpoint knows which model training started from, and is refused under another: a reference made of the model
      as it starts would be another midway. It knows which half of the weights trained, and is refused under another.
    - A loss or a gradient that is no finite number stops the run before the optimiser's step, and names the rows.
      transformers reads the loss of every micro-batch itself (``logging_nan_inf_filter``), so nothing else is waited
      for than the norm of the gradient. A step may still overflow the weights: neither a checkpoint nor the trained
      model is saved with a weight that is no finite number.
    """

    state: Any
    model: Any
    control: Any
    half: Split | None = None
    """Which weights train, where not all do."""
    _start: str | None = None
    _saving: bool = False
    batches: Sequence[Any] = ()
    """The micro-batches of the step."""

    def checkpoint_state(self) -> dict[str, Any]:
        """Return what this rank keeps in a checkpoint beside what the trainer keeps; empty for nothing."""
        return {}

    def load_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Take up what `checkpoint_state` returned; not called where that was nothing."""

    def follows_start(self) -> bool:
        """Return whether what is trained depends on the starting model beyond its weights, as under a reference."""
        return False

    def rows_named(self, batches: Sequence[Any]) -> str:
        """Return which rows some micro-batches hold, for a person."""
        return "rows unknown"

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as transformers does; True resumes from the last whole checkpoint of the output.

        Raises:
            BallastError: there is no whole checkpoint, or it began from another model or trained another half.
            Diverged: a loss, a gradient or a trained weight is no finite number.
        """
        if self.args.should_save:
            shutil.rmtree(Path(str(self.args.output_dir)) / checkpoints.UNFINISHED, ignore_errors=True)
        checkpoint = self._found(resume_from_checkpoint)
        if self._start is None:
            # Later the model is another one; not known where nothing will be compared with it.
            wanted = checkpoint is not None or self.args.save_strategy != "no"
            self._start = (wanted and start_fingerprint(self.model, full=self.follows_start())) or ""
        if checkpoint is not None:
            self._take_up(checkpoint)
        totals = super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
        self._check_weights()
        return totals

    def _found(self, given: str | bool | None) -> Path | None:
        if given is None or given is False:
            return None
        only_weights = bool(self.args.save_only_model)
        if given is not True:
            given = expanded(given)
            problem = checkpoints.what_is_wrong(Path(given), weights_only=only_weights)
            if problem is not None:
                raise BallastError(f"{given}: is no whole checkpoint ({problem}); resume from another one")
            return Path(given)
        output = str(self.args.output_dir)
        last = checkpoints.last_whole(output, weights_only=only_weights)
        if last.path is None:
            raise BallastError("; ".join([f"{output}: has no checkpoint to resume from", *last.lines()]))
        for line in last.lines():
            warnings.warn(line, stacklevel=3)
        return last.path

    def _take_up(self, checkpoint: Path) -> None:
        begun = _read(checkpoint / START)
        start, half = begun.get("model"), begun.get("half")
        if problem := resume_problem(begun, kind_of(self.args), self.args.world_size):
            raise BallastError(f"{checkpoint}: {problem}")
        if half != (None if self.half is None else self.half.digest):
            raise BallastError(
                f"{checkpoint}: trained another part of the weights, and its optimiser's state would be that of other "
                f"matrices; go on with {'half as it was' if half else 'all weights (no half)'}, or start a new output"
            )
        if start and self._start and start != self._start:
            raise BallastError(
                f"{checkpoint}: was trained from another model than the one given, which would take its place midway, "
                "as the reference too; give the model that the run began with: the checkpoint's weights are "
                "put into it"
            )
        if state := _read(checkpoint / self._own_file):
            self.load_checkpoint_state(state)

    @property
    def _own_file(self) -> str:
        return f"ballast-{self.args.process_index}.json"

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers looks at the number of steps only after the next one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]  # of transformers

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as transformers does, but no mean loss over no step."""
        if self.state.global_step == getattr(self, "_initial_global_step", None):
            logs.pop("train_loss", None)
        super().log(logs, start_time)

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, checkpoints.UNFINISHED) if self._saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place and move it there when all ranks are done."""
        self._check_weights()
        name = f"checkpoint-{self.state.global_step}"
        place = Path(self._get_output_dir(trial)) / name
        self._saving = True
        try:
            made = Path(self._get_output_dir(trial)) / name
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        if state := self.checkpoint_state():
            write_atomically(made / self._own_file, json.dumps(state))
        if self.args.should_save:
            begun = {"model": self._start, **({} if self.half is None else {"half": self.half.digest})}
            begun |= {"sharding": kind_of(self.args), "ranks": self.args.world_size}
            write_atomically(made / START, json.dumps(begun))
        self._name_best(made, place)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.put_in_place(made, place)
            shutil.rmtree(made.parent, ignore_errors=True)
            self._rotate(place.parent)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(place))

    def _name_best(self, made: Path, place: Path) -> None:
        """Let the trainer's state name the best checkpoint by the place where it will lie."""
        step = self.state.best_global_step
        if not step:
            return
        best = place.parent / f"checkpoint-{step}"
        if best == place or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(str(made / checkpoints.STATE))

    def _rotate(self, folder: Path) -> None:
        from transformers.trainer_utils import rotate_checkpoints

        rotate_checkpoints(
            output_dir=str(folder),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Wait until the checkpoint is in its place: it is uploaded in the background."""

    # Losses

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step, kept so that what is wrong with it can be told of its rows."""
        found: tuple[list[Any], Any] = super().get_batch_samples(*args, **kwargs)
        self.batches = found[0]
        return found

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a micro-batch, its gradient added up.

        Raises:
            Diverged: it is no finite number.
        """
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._check_finite("loss", loss.item(), [inputs], taken=False)
        return loss

    def check_before_step(self, loss: Any, inputs: dict[str, Any]) -> None:
        """Raise `Diverged` under DeepSpeed, which steps within the last backward, if a loss is no finite number."""
        if self.is_deepspeed_enabled and self.model.training:
            self._check_finite("loss", loss.item(), [inputs], taken=False)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]  # of transformers
        # Under fp16 a gradient that overflows is what the scaler looks for, and leaves out.
        if norm is not None and getattr(self.accelerator, "scaler", None) is None:
            self._check_finite("norm of the gradient", float(norm), self.batches, taken=self.is_deepspeed_enabled)
        return norm

    def _check_finite(self, what: str, value: float, batches: Sequence[Any], *, taken: bool) -> None:
        if math.isfinite(value):
            return
        ending = "would make every weight NaN; the step was not taken"
        if taken:
            ending = "makes every weight NaN; DeepSpeed has taken the step by now"
        raise Diverged(
            f"step {self.state.global_step + 1}: the {what} is {value} on {self.rows_named(batches)}, which {ending} "
            "and earlier checkpoints are as they were: look at these rows, lower the learning rate, or train in a "
            "wider dtype"
        )

    def _check_weights(self) -> None:
        own = (name for name, weight in self.model.named_parameters() if weight.requires_grad and not _finite(weight))
        name = next(own, None)
        if self.args.world_size > 1:
            # A rank may have a part of the weights, and the others would wait for one that stops alone.
            from accelerate.utils import gather_object

            name = next(filter(None, gather_object([name])), None)
        if name is not None:
            raise Diverged(
                f"step {self.state.global_step}: the weight {name} is no finite number, though every loss and "
                "gradient until then was; it was not saved and earlier checkpoints are as they were: lower the "
                "learning rate, or train in a wider dtype"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model in full, also where checkpoints keep a sharded one in parts: all ranks gather, one writes."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None or self._saving:
            super().save_model(output_dir, _internal_call)
            return
        kept, plugin.state_dict_type = plugin.state_dict_type, "FULL_STATE_DICT"
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            plugin.state_dict_type = kept

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Gathered weights share no memory, so that one that is tied would be written under each of its names.
        names = {name for name, _ in self.model.named_parameters()}
        double = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - names
        given = None if state_dict is None else {key: state_dict[key] for key in state_dict if key not in double}
        super()._save(output_dir, given)


def _finite(weight: Any) -> bool:
    return bool(part_here(weight).isfinite().all())


def resume_problem(begun: Mapping[str, Any], kind: str, ranks: int) -> str | None:
    """Return why a checkpoint cannot be gone on from by these processes, None where it can.

    Args:
        begun: what the checkpoint says of the run that wrote it.
        kind: what shards the run, as `ballast.sharding.kind_of` says.
        ranks: number of its processes.
    """
    if "sharding" not in begun:
        return None
    before, count = begun["sharding"], begun["ranks"]
    if before != kind:
        names = [NAMES.get(one, one) for one in (before, kind)]
        return (
            f"was written under {names[0]} and the run is under {names[1]}, which does not find its optimiser's state "
            f"and would begin it anew; go on under {names[0]}, or start a new output from the weights"
        )
    if kind.startswith("zero") and count != ranks:
        return (
            f"holds the optimiser's state in {count} parts, one a process, and DeepSpeed cannot divide it among "
            f"{ranks}; go on with {count} processes, or use FSDP2, which can"
        )
    return None


def refuse_strangers(args: Arguments, *, use_cpu: str = "training.use_cpu") -> None:
    """Refuse processes that were started together and would train each by itself.

    Args:
        args: settings of the run, which know how many processes accelerate has brought together.
        use_cpu: the setting that brings processes together on CPUs.

    Raises:
        BallastError: every process would write the same files.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and args.world_size == 1:
        raise BallastError(
            f"{started} processes were started, and each would train by itself and write the same files; on CPUs set "
            f"{use_cpu}=true"
        )


def data_parallel_problem(args: Arguments) -> str | None:
    """Return what is wrong with one process that sees several GPUs, None where each has a process or there is one."""
    if args.n_gpu <= 1:
        return None
    return (
        f"this process sees {args.n_gpu} GPUs and would spread every batch over them by DataParallel, which copies "
        "the weights at each step and averages the loss by GPU, not by token; start a process for each with --nproc "
        f"{args.n_gpu}, or show it one: CUDA_VISIBLE_DEVICES=0"
    )


def refuse_data_parallel(args: Arguments) -> None:
    """Refuse one process that sees several GPUs.

    Args:
        args: settings of the run.

    Raises:
        BallastError: naming how to start a process for each, or to use one.
    """
    if problem := data_parallel_problem(args):
        raise BallastError(problem)


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def numbers(rows: Sequence[int], what: str, limit: int = 16) -> str:
    """Return row numbers, counted from 0 here and from 1 in the text, such as ``rows 3, 7 of the prompts``."""
    shown = ", ".join(str(row + 1) for row in rows[:limit])
    more = f" and {len(rows) - limit:,} more" if len(rows) > limit else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more} of {what}"


def rows_of_examples(batches: Sequence[Any], key: str = "row") -> list[int]:
    """Return the places that plain examples of some batches name, in order and once each."""
    found: dict[int, None] = {}
    for batch in batches:
        examples = [batch] if isinstance(batch, Mapping) else batch
        found |= {int(example[key]): None for example in examples if key in example}
    return list(found)
