"""The command line in one of several processes on CPUs; started by test_cli_ranks, not by pytest.

With DIES_AT=STEP the last process kills itself in that optimiser step.
"""

import os
import signal

from sharded import shard_on_cpus

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    shard_on_cpus()

if os.environ.get("DIES_AT") and os.environ["RANK"] != "0":
    from ballast import Trainer

    step = Trainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step + 1 == int(os.environ["DIES_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    Trainer.training_step = dying

if __name__ == "__main__":
    from ballast.cli import main

    main()
