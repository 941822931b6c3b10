"""A verifier that kills the rank that asks it for a certain answer, as a system without memory would."""

import os
import signal

ROW = "70+70="


def judge(completion, row):
    """Score answers of odd length, and end the process of rank KILL at its first own answer to `ROW`."""
    own = row["prompt"] == ROW and completion != row["answer"]
    if own and "KILL" in os.environ and os.environ["KILL"] == os.environ.get("RANK"):
        os.kill(os.getppid(), signal.SIGKILL)
    return float(len(completion) % 2)
