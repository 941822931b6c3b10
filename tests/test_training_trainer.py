"""The trainer's edges: what it logs, what it evaluates, what it refuses, what it leaves on disk."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import pytest
import torch

import ballast
from ballast.objectives import Objective
from tiny import char_tokenizer, tiny_model
from training_tools import OBJECTIVES, config, dataset, objective, rows, run


def naive_logprobs(model, data):
    """Log-probabilities of the completion tokens, row by row, from full logits; and the entropies beside them."""
    tokenizer, logprobs, entropies = char_tokenizer(), [], []
    for row in data:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = prompt + tokenizer(row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        logprobs += [float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids))]
        entropies += [float(-(logp[t - 1].exp() * logp[t - 1]).sum()) for t in range(len(prompt), len(ids))]
    return torch.tensor(logprobs), torch.tensor(entropies)


def test_logged_statistics_are_the_naive_ones(tmp_path):
    logprob, entropy = naive_logprobs(tiny_model(), rows())
    log = run(tmp_path, "dft", per_device_train_batch_size=2, gradient_accumulation_steps=4).state.log_history[0]
    weight = logprob.exp()
    assert log["nll"] == pytest.approx(-float(logprob.mean()), rel=1e-5)
    assert log["loss"] == pytest.approx(-float((weight * logprob).mean()), rel=1e-5)
    assert log["entropy"] == pytest.approx(float(entropy.mean()), rel=1e-5)
    assert log["weight_mean"] == pytest.approx(float(weight.mean()), rel=1e-5)
    assert log["effective_tokens"] == pytest.approx(float(weight.sum() ** 2 / weight.square().sum()), rel=1e-4)
    assert log["weight_zero_share"] == 0
    live = run(tmp_path, "prift-mass").state.log_history[0]
    assert live["log_ratio"] == pytest.approx(0, abs=1e-5)
    assert log["num_tokens"] == sum(len(row["prompt"] + row["completion"]) + 1 for row in rows())


def test_share_of_zero_weight_counts_dropped_tokens(tmp_path):
    log = run(tmp_path, "prift-mass").state.log_history[0]
    assert 0 < log["weight_zero_share"] < 1
    assert log["weight_mean"] == pytest.approx(1 - log["weight_zero_share"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_eval_loss_is_token_nll_for_every_objective(tmp_path, name):
    held_out = dataset(13).select(range(8, 13))
    trainer = ballast.Trainer(
        tiny_model(),
        config(tmp_path),
        train_dataset=dataset(),
        eval_dataset=held_out,
        processing_class=char_tokenizer(),
        objective=objective(name),
    )
    metrics = trainer.evaluate()
    logprob, _ = naive_logprobs(tiny_model(), rows(13)[8:])
    # Batches of 3 and 2 rows of different lengths: a mean over batches would be another number.
    assert metrics["eval_loss"] == pytest.approx(-float(logprob.mean()), rel=1e-5)
    assert "eval_weight_mean" in metrics


def test_evaluating_between_steps_leaves_training_metrics_alone(tmp_path):
    quiet = run(tmp_path / "a", "sft", max_steps=2)
    trainer = ballast.Trainer(
        tiny_model(),
        config(tmp_path / "b", max_steps=2, eval_strategy="steps", eval_steps=1),
        train_dataset=dataset(),
        eval_dataset=dataset(3),
        processing_class=char_tokenizer(),
    )
    trainer.train()
    ours = [log["nll"] for log in trainer.state.log_history if "nll" in log]
    assert ours == pytest.approx([log["nll"] for log in quiet.state.log_history if "nll" in log], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss_type": "dft"}, "training.loss_type"),
        ({"label_smoothing_factor": 0.1}, "training.label_smoothing_factor"),
        ({"average_tokens_across_devices": False}, "training.average_tokens_across_devices"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset"),
        (
            {"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True}},
            "fused_linear_cross_entropy",
        ),
    ],
)
def test_arguments_that_would_do_nothing_are_refused(tmp_path, changes, named):
    with pytest.raises(ballast.BallastError, match=named):
        run(tmp_path, "sft", **changes)


@pytest.mark.parametrize(
    "part", ["data_collator", "compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"]
)
def test_parts_that_need_logits_are_refused(tmp_path, part):
    with pytest.raises(ballast.BallastError, match=part):
        ballast.Trainer(tiny_model(), config(tmp_path), train_dataset=dataset(), **{part: lambda *args: None})


def test_streaming_and_vision_are_refused(tmp_path):
    with pytest.raises(ballast.BallastError, match="streaming"):
        run(tmp_path, "sft", data=dataset().to_iterable_dataset())
    images = dataset().add_column("images", [[b"x"]] * 8)
    with pytest.raises((ballast.BallastError, ValueError), match="vision"):
        run(tmp_path, "sft", data=images)


def test_plain_trl_arguments_are_refused(tmp_path):
    from trl import SFTConfig

    with pytest.raises(ballast.BallastError, match="TrainingConfig"):
        ballast.Trainer(tiny_model(), config(tmp_path, config_class=SFTConfig), train_dataset=dataset())


def test_a_cache_cannot_serve_a_kl(tmp_path):
    with pytest.raises(ballast.BallastError, match="full vocabulary"):
        run(tmp_path, "eksft", reference={"cache": str(tmp_path / "nowhere")})


def test_a_cache_of_another_model_is_refused(tmp_path):
    from test_training_laws import make_cache

    make_cache(tmp_path / "cache", tiny_model(seed=1))
    with pytest.raises(ballast.BallastError, match="another model"):
        run(tmp_path / "run", "prift-prob", reference=str(tmp_path / "cache"))


def test_a_head_that_is_not_understood_is_refused(tmp_path):
    model = tiny_model()
    head, plain = model.get_output_embeddings(), type(model.get_output_embeddings()).forward
    head.forward = lambda hidden: plain(head, hidden) * 1.5
    with pytest.raises(ballast.BallastError, match="changes its logits"):
        run(tmp_path, "sft", model=model)


def test_virtual_tokens_have_no_reference(tmp_path):
    from peft import PromptTuningConfig

    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ballast.BallastError, match="virtual tokens"):
        run(tmp_path, "eksft", peft_config=prompt)


def test_an_adapter_on_the_head_is_refused(tmp_path):
    from peft import LoraConfig

    with pytest.raises(ballast.BallastError, match="lm_head"):
        run(tmp_path, "sft", model=tiny_model(tied=False), peft_config=LoraConfig(target_modules=["lm_head"]))


def test_config_serialises_and_turns_bf16_off_on_cpu(tmp_path):
    args = ballast.TrainingConfig(output_dir=str(tmp_path), objective=ballast.objective("eksft", rho=0.1))
    assert args.bf16 is False
    assert args.objective["rho"] == 0.1
    assert json.loads(args.to_json_string())["objective"]["name"] == "eksft"
    assert ballast.TrainingConfig(output_dir=str(tmp_path), objective=args.objective).build_objective().rho == 0.1
    with pytest.raises(ballast.BallastError, match="did you mean 'prift-mass'"):
        ballast.TrainingConfig(output_dir=str(tmp_path), objective="prift-mas")


def test_checkpoint_loads_and_its_card_states_the_objective(tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = run(tmp_path, "eksft", save_strategy="steps", save_steps=1)
    card = (tmp_path / "README.md").read_text()
    assert "`eksft` (EKSFT, arXiv:2605.29303)" in card
    assert "| `rho` | `0.3` |" in card
    assert card.count("## Fine-tuning objective") == 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, dict(trainer.model.named_parameters())[name])


def test_generation_is_unchanged_by_the_patched_forward(tmp_path):
    trainer = run(tmp_path, "sft", learning_rate=0.0)
    ids = torch.tensor([[5, 6, 7]])
    wanted = tiny_model().generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(trainer.model.eval().generate(ids, max_new_tokens=5, do_sample=False), wanted)


@dataclasses.dataclass(frozen=True)
class PerSequence(Objective):
    """A mean per sequence, as objectives that count sequences have it."""

    name: ClassVar[str] = "per-sequence"
    source: ClassVar[str] = "a test"
    reduction = "sequences"

    def weight(self, stats):
        lengths = torch.bincount(stats.sequence).to(stats.logprob.dtype)
        assert (stats.position > 0).all()
        return 1 / lengths[stats.sequence]


@pytest.mark.parametrize(
    "layout", [{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, {"packing": True}]
)
def test_own_objective_that_counts_sequences(tmp_path, layout):
    if "packing" in layout:
        layout = {"packing": True, "max_length": 512, "per_device_train_batch_size": 1}
    trainer = ballast.Trainer(
        tiny_model(),
        config(tmp_path, **layout),
        train_dataset=dataset(),
        processing_class=char_tokenizer(),
        objective="test_training_trainer:PerSequence",
    )
    trainer.train()
    means = [-float(naive_logprobs(tiny_model(), [row])[0].mean()) for row in rows()]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(means) / len(means), rel=1e-5)


@dataclasses.dataclass(frozen=True)
class Scalar(PerSequence):
    """Forgets that weights are per token."""

    name: ClassVar[str] = "scalar"
    reduction = "tokens"

    def weight(self, stats):
        return stats.logprob.exp().mean()


def test_a_weight_that_is_not_per_token_is_refused():
    stats = ballast.TokenStats(logprob=torch.tensor([-1.0, -2.0]))
    with pytest.raises(ValueError, match="one value per token"):
        Scalar().per_token_loss(stats)


def test_model_by_path_and_formatting_function(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    char_tokenizer().save_pretrained(tmp_path / "model")
    trainer = ballast.Trainer(
        str(tmp_path / "model"),
        config(tmp_path / "run"),
        train_dataset=dataset().rename_columns({"prompt": "question", "completion": "answer"}),
        formatting_func=lambda row: row["question"] + row["answer"],
    )
    trainer.train()
    report = trainer.prepare_reports["train"]
    assert report.trained_tokens == report.tokens - report.rows_out


def test_soft_capped_logits_give_the_models_own_loss(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    settings = Gemma2Config(
        vocab_size=len(char_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=1.5,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(settings).eval()
    logprob, _ = naive_logprobs(model, rows())
    log = run(tmp_path, "sft", model=model).state.log_history[0]
    assert log["loss"] == pytest.approx(-float(logprob.mean()), rel=1e-4)
