"""How a run ends before its time: Ctrl-C and SIGTERM, a last checkpoint, and a line that says how to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ballast import checkpoints, ranks
from ballast.errors import BallastError, Interrupted
from ballast.records.runs import read_record

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of a command that SIGINT or SIGTERM ended, as shells have them."""
LOST = 1
"""Exit code of one that another process of its run has left alone."""


class Terminated(KeyboardInterrupt):
    """SIGTERM."""


class Stop:
    """What SIGTERM asks of a run: to end at once, but in training after the step and a last checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        self._stepping = False

    def ask(self, *_: object) -> None:
        """Take the signal: between two bytecodes of the main thread.

        Raises:
            Terminated: no step is being taken.
        """
        if not self._stepping:
            raise Terminated
        self.asked = True

    def callback(self) -> Any:
        """Return a callback of transformers' trainer that ends training when asked to.

        Raises:
            Terminated: from the training loop, the last checkpoint being whole where checkpoints are kept at all.
        """
        from transformers import TrainerCallback

        stop = self

        class StopAfterStep(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                stop._stepping = True

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                stop.asked = _any_rank(stop.asked, args)
                if stop.asked and args.save_strategy == "no":
                    raise Terminated
                control.should_save = control.should_save or stop.asked

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if stop.asked:
                    raise Terminated

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                stop._stepping = False

        return StopAfterStep()


def _any_rank(asked: bool, args: Any) -> bool:
    """Return whether any rank was asked: signals reach them at different steps, and all must save the same one."""
    if args.world_size == 1:
        return asked
    import torch

    flag = torch.tensor(float(asked), device=args.device)
    torch.distributed.all_reduce(flag)
    return bool(flag)


@contextmanager
def stoppable(output: Path, stop: Stop, *, weights_only: bool = False) -> Iterator[None]:
    """Listen to SIGTERM within the block, and say how to go on with the run in a folder when it is stopped.

    Raises:
        Interrupted: on Ctrl-C and SIGTERM, and where another process of the run has ended.
    """
    # Handlers belong to the main thread; elsewhere SIGTERM does what the program around makes of it.
    listens = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop.ask) if listens else None
    try:
        yield
    except Interrupted:
        raise
    except Terminated:
        raise Interrupted(f"terminated; {_way_on(output, weights_only)}", TERMINATED) from None
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {_way_on(output, weights_only)}", INTERRUPTED) from None
    except RuntimeError as error:
        if not ranks.is_loss(error):
            raise
        # The launcher ends what is left of the run at once, and would before the line is said.
        before = signal.SIG_IGN
        line = (
            f"process {os.environ.get('RANK', '?')}: another process of this run has ended, the others cannot go on "
            "without it; its own output says why"
        )
        raise Interrupted(f"{line}; {_way_on(output, weights_only)}", LOST) from error
    finally:
        if listens:
            signal.signal(signal.SIGTERM, before)


def _way_on(output: Path, weights_only: bool) -> str:
    try:
        record = read_record(output)
    except BallastError:
        record = None
    if record is not None and record.status == "trained":
        return f"{output} is trained and not measured yet: the same command with --resume does that"
    last = checkpoints.last_whole(output, weights_only=weights_only).path
    if last is not None:
        return f"the same command with --resume goes on from {last}"
    return f"there is no checkpoint in {output} to resume from"
