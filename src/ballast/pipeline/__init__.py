"""From a recipe to scores, a checkpoint, or measurements; importing it imports no torch."""

from ballast.pipeline.advise import run_advise, view
from ballast.pipeline.checks.common import (
    ADVISE_CHECKS,
    EVALUATE_CHECKS,
    RESUME_CHECKS,
    SAMPLE_CHECKS,
    SCORE_CHECKS,
    TASK_CHECKS,
    TRAIN_CHECKS,
)
from ballast.pipeline.checks.half import half_lines
from ballast.pipeline.checks.revise import REVISE_CHECKS
from ballast.pipeline.checks.reward import REWARD_CHECKS
from ballast.pipeline.checks.rl import RL_CHECKS, RL_RESUME_CHECKS
from ballast.pipeline.checks.rounds import ROUNDS_CHECKS
from ballast.pipeline.evaluate import check_measurement, readiness_lines, run_evaluate, table, with_readiness
from ballast.pipeline.inputs import quiet
from ballast.pipeline.revise import run_revise
from ballast.pipeline.reward import run_reward
from ballast.pipeline.rl import run_rl
from ballast.pipeline.rounds import run_rounds
from ballast.pipeline.run import Outcome
from ballast.pipeline.sample import run_sample
from ballast.pipeline.score import run_score
from ballast.pipeline.train import run_train

__all__ = [
    "ADVISE_CHECKS",
    "EVALUATE_CHECKS",
    "RESUME_CHECKS",
    "REVISE_CHECKS",
    "REWARD_CHECKS",
    "RL_CHECKS",
    "RL_RESUME_CHECKS",
    "ROUNDS_CHECKS",
    "SAMPLE_CHECKS",
    "SCORE_CHECKS",
    "TASK_CHECKS",
    "TRAIN_CHECKS",
    "Outcome",
    "check_measurement",
    "half_lines",
    "quiet",
    "readiness_lines",
    "run_advise",
    "run_evaluate",
    "run_revise",
    "run_reward",
    "run_rl",
    "run_rounds",
    "run_sample",
    "run_score",
    "run_train",
    "table",
    "view",
    "with_readiness",
]
