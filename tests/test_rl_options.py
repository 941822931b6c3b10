"""Options of reinforcement learning: what is refused, and that what may be passed on is TRL's."""

import pytest

from ballast.config.recipe import Recipe, load_recipe
from ballast.config.source import RecipeError
from ballast.errors import BallastError
from ballast.rl import RLOptions
from ballast.rl.options import ELSEWHERE, LOSS_TYPES, TRAINER

REFUSED = [
    ({"verifer": "math"}, "rl.verifer: unknown key; did you mean 'verifier'?"),
    ({"steps": 0}, "rl.steps: should be greater than or equal to 1; got 0"),
    ({"steps": 2.5}, "rl.steps: should be a valid integer; got 2.5"),
    ({"steps": True}, "rl.steps: should be a valid integer; got True"),
    ({"steps": None}, "rl.steps: should be a valid integer; got None"),
    ({"group": 1}, "rl.group: should be greater than or equal to 2: one answer has nothing to be compared with; got 1"),
    ({"temperature": 0}, "rl.temperature: should be greater than 0: greedy answers are all the same; got 0"),
    ({"temperature": float("nan")}, "rl.temperature: should be a finite number; got nan"),
    ({"top_p": 1.5}, "rl.top_p: should be less than or equal to 1; got 1.5"),
    ({"top_p": 0}, "rl.top_p: should be greater than 0; got 0"),
    ({"learning_rate": "1e-4"}, "rl.learning_rate: should be a valid number; got '1e-4'"),
    ({"learning_rate": -1}, "rl.learning_rate: should be greater than or equal to 0; got -1"),
    ({"beta": -0.1}, "rl.beta: should be greater than or equal to 0; got -0.1"),
    ({"seconds": 0}, "rl.seconds: should be greater than 0; got 0"),
    ({"reward": "verifyer"}, "rl.reward: 'verifyer' is not allowed; did you mean 'verifier'?"),
    ({"loss_type": "ppo"}, "rl.loss_type: 'ppo' is not allowed; known: bnpo, cispo, dapo, dr_grpo, grpo, luspo, sapo"),
    ({"verifier": ""}, "rl.verifier: is empty; give a value or leave the key out"),
    ({"data": []}, "rl.data: names no source; list at least one"),
    ({"use_vllm": 1}, "rl.use_vllm: should be a valid boolean; got 1"),
    ({"trainer": "fast"}, "rl.trainer: must be a mapping of keys; got 'fast'"),
    ({"limit": 3}, "rl.limit: would be ignored without rl.data; set data.limit, or name rl.data"),
    ({"micro_batch": 48}, "rl.micro_batch: 48 does not divide the 128 answers of a step (16 prompts × 8)"),
    ({"save_steps": 3, "iterations": 2}, "rl.save_steps: 3 is no multiple of rl.iterations 2"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_used_is_refused(values, message):
    with pytest.raises(BallastError) as caught:
        RLOptions.from_dict(values)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_options_survive_being_written_down():
    options = RLOptions(verifier="math", data="rows.jsonl", limit=3, trainer={"epsilon": 0.1})
    assert options.data == ("rows.jsonl",)
    assert RLOptions.from_dict(options.to_dict()) == options
    assert Recipe(rl=options.to_dict()).rl == options


def test_a_recipe_reports_every_bad_key_with_its_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("rl:\n  verifer: math\n  group: 1\n  steps: 3\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    first, second = str(caught.value).splitlines()
    assert first == f"{path}:2: rl.verifer: unknown key; did you mean 'verifier'?"
    assert second.startswith(f"{path}:3: rl.group: should be greater than or equal to 2: one answer")


def test_a_recipe_reports_all_values_that_do_not_go_together():
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, ["rl={micro_batch: 5, save_steps: 3, iterations: 2, split: train}"])
    said = [line.split(": ")[1] for line in caught.value.problems]
    assert said == ["rl.micro_batch", "rl.save_steps", "rl.split"]


def test_the_recipe_of_the_lab_is_read():
    options = load_recipe("recipes/lab-rl.yaml").rl
    assert (options.steps, options.prompts, options.group) == (60, 16, 8)


def test_what_may_be_passed_on_and_what_has_another_place_are_fields_of_trl():
    from ballast.rl.trl import NAMES, config_hints

    grpo, rloo = (set(config_hints(algorithm)) for algorithm in ("grpo", "rloo"))
    assert set(TRAINER) <= grpo | rloo
    assert set(ELSEWHERE) | set(NAMES.values()) <= grpo
    assert set(NAMES.values()) - {"loss_type"} <= rloo
    assert not set(TRAINER) & set(ELSEWHERE)
    assert set(NAMES.values()) <= set(ELSEWHERE)
    assert set(NAMES) <= set(RLOptions.model_fields)


def test_settings_reach_trl_and_what_costs_time_is_off():
    from ballast.rl.trl import config

    options = RLOptions(
        steps=7, prompts=4, group=6, micro_batch=8, max_new_tokens=9, learning_rate=3e-4, temperature=0.7, top_p=0.9,
        beta=0.02, loss_type="grpo", iterations=2, save_steps=4, trainer={"epsilon": 0.3},
    )  # fmt: skip
    args = config(options, output_dir="out", seed=5)
    got = (args.max_steps, args.num_generations, args.max_completion_length, args.num_iterations, args.save_steps)
    assert got == (7, 6, 9, 2, 4)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 3)
    assert args.generation_batch_size == 24
    numbers = (args.learning_rate, args.temperature, args.top_p, args.beta, args.epsilon, args.loss_type, args.seed)
    assert numbers == (3e-4, 0.7, 0.9, 0.02, 0.3, "grpo", 5)
    assert (args.gradient_checkpointing, args.bf16, args.log_completions, args.report_to) == (False, False, False, [])
    assert args.lr_scheduler_type == "constant"
    assert args.save_strategy == "steps"
    assert config(RLOptions(), output_dir="out", seed=5).save_strategy == "no"
    assert config(RLOptions(), output_dir="out", seed=5).per_device_train_batch_size == 128


def test_every_kind_of_loss_is_one_that_trl_knows():
    import inspect

    from ballast.rl.trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert all(f'"{name}"' in source for name in LOSS_TYPES)
