"""IRFT in real runs: TRL's DPO loss and gradient, log 2 as each round begins, one divisor, files, resuming."""

from __future__ import annotations

import json
import math

import pytest
import torch

import ballast
from ballast.groups import Group, GroupOptions, Member
from ballast.groups.store import GroupFolder, Part, StoreSettings, stored_options
from group_rows import model, run, tokenizer, trainer
from training_tools import config, largest_difference, weights

GROUPS = {"own": 1, "teacher": 0, "max_new_tokens": 10}
IRFT = {"objective": "irft", "reference": "round", "groups": GROUPS}


def losses(made) -> list[float]:
    return [log["loss"] for log in made.state.log_history if "loss" in log]


def step_loss(made, batch):
    """Return the loss of a micro-batch that is a step, and its gradients by weight."""
    made.model.train()
    made.model.zero_grad()
    loss = made.compute_loss(made.model, dict(batch), num_items_in_batch=made.step_count([batch], "cpu"))
    loss.backward()
    return float(loss), {name: weight.grad.clone() for name, weight in made.model.named_parameters()}


def preferences(batch) -> list[dict[str, list[int]]]:
    """Return the pairs of a batch as TRL's collator takes them."""
    pairs = []
    for place in range(0, len(batch["input_ids"]), 2):
        found = {}
        for name, row in (("chosen", place), ("rejected", place + 1)):
            trained = batch["labels"][row] != -100
            start = int(trained.nonzero()[0])
            found[f"{name}_ids"] = batch["input_ids"][row][trained].tolist()
            found["prompt_ids"] = batch["input_ids"][row][:start].tolist()
        pairs.append(found)
    return pairs


@pytest.mark.parametrize("link", ["sigmoid", "hinge"])
def test_loss_and_gradient_are_those_of_trls_dpo_on_the_same_pairs(tmp_path, link):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    made = trainer(
        tmp_path, objective={"name": "irft", "link": link, "beta": 0.2}, groups=GROUPS, reference=model(seed=1)
    )
    (batch,) = made.step_batches(iter(made.get_train_dataloader()), 1)
    rows = [{"prompt": "1+", "chosen": "2", "rejected": "3"}]
    theirs = DPOTrainer(
        model(),
        ref_model=model(seed=1),
        args=config(tmp_path, config_class=DPOConfig, bf16=False, loss_type=[link], beta=0.2),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    theirs.model.train()
    inputs = DataCollatorForPreference(pad_token_id=0)(preferences(batch))
    wanted = theirs._compute_loss(theirs.model, inputs, return_outputs=False)
    wanted.backward()
    loss, gradients = step_loss(made, batch)
    assert loss == pytest.approx(float(wanted), rel=1e-6)
    assert abs(loss - {"sigmoid": math.log(2), "hinge": 1.0}[link]) > 1e-2
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
    for name, weight in theirs.model.named_parameters():
        # TRL's head works in float32 whatever the model's dtype.
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=2e-6)


def test_every_round_begins_at_log_2(tmp_path):
    settings = {"per_device_train_batch_size": 2, "max_steps": 8, "num_train_epochs": 2, "learning_rate": 0.3}
    made = run(tmp_path, **{**IRFT, "groups": {**GROUPS, "refresh": 2}}, **settings)
    found = losses(made)
    assert found[::2] == pytest.approx([math.log(2)] * 4, abs=1e-6)
    assert all(abs(loss - math.log(2)) > 1e-3 for loss in found[1::2])
    # The model as it started is another reference from the second round on.
    start = run(tmp_path, **{**IRFT, "reference": "model", "groups": {**GROUPS, "refresh": 2}}, **settings)
    assert losses(start)[:2] == pytest.approx(found[:2], abs=1e-6)
    assert abs(losses(start)[2] - math.log(2)) > 1e-3


def test_dropout_is_off_while_the_reference_is_scored(tmp_path):
    made = trainer(tmp_path, net=model(attention_dropout=0.5), **IRFT)
    made.model.train()
    (batch,) = made.step_batches(iter(made.get_train_dataloader()), 1)
    assert made.model.training
    made.model.eval()
    with torch.no_grad():
        logits = made.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    trained = batch["labels"][:, 1:] != -100
    torch.testing.assert_close(batch["ref_logprob"][:, 1:][trained].double(), logprobs[trained], rtol=0, atol=1e-6)


def test_splitting_the_batch_changes_nothing(tmp_path):
    ends = []
    for size in (8, 1, 2):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        made = run(tmp_path, **{**IRFT, "groups": {**GROUPS, "own": 2, "refresh": 2}}, max_steps=2, num_train_epochs=2,
                   **split)  # fmt: skip
        ends.append((weights(made), losses(made)))
    assert largest_difference(ends[0][0], dict(model().named_parameters())) > 1e-4
    for end, found in ends[1:]:
        assert largest_difference(ends[0][0], end) < 1e-9
        assert found == pytest.approx(ends[0][1], rel=1e-6)


def test_groups_are_counted_the_same_without_padding(tmp_path):
    made = trainer(tmp_path, **IRFT)
    (batch,) = made.step_batches(iter(made.get_train_dataloader()), 1)
    assert int(made.step_count([batch], "cpu")) == 8
    flat = {name: batch[name][batch["attention_mask"].bool()][None] for name in ("group", "origin")}
    assert int(made.step_count([flat], "cpu")) == 8


def test_resumed_in_a_round_is_undisturbed(tmp_path):
    settings = {
        **IRFT,
        "groups": {**GROUPS, "refresh": 3},
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole = run(tmp_path / "whole", **settings)
    again = trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert largest_difference(weights(whole), weights(again)) < 1e-12
    assert losses(whole) == losses(again)
    assert losses(whole)[3] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses(whole)[2] - math.log(2)) > 1e-3


def test_without_a_verifier_nothing_is_said_of_rewards(tmp_path):
    log = run(tmp_path, **IRFT).state.log_history[0]
    assert not any("reward" in name or "advantage" in name for name in log)
    assert log["own/length"] > 0
    assert log["own/margin"] == pytest.approx(0, abs=1e-5)
    judged = run(tmp_path, **{**IRFT, "groups": {**GROUPS, "verifier": "group_rows:EVEN"}}).state.log_history[0]
    assert 0 < judged["own/reward"] < 1
    assert judged["loss"] == pytest.approx(log["loss"])
    assert judged["grad_norm"] == pytest.approx(log["grad_norm"])


def sampled(path, answers: str = "12", *, groups=None, scored: bool = True) -> str:
    """Fill a folder with two prompts, each with an expert's and an own answer."""
    from ballast.reference.fingerprint import tokenizer_fingerprint

    options = GroupOptions.from_dict({**GROUPS, "file": str(path)})
    settings = StoreSettings("m", "float64", tokenizer_fingerprint(tokenizer()), (2,), "d", len(answers), 42, None,
                             stored_options(options))  # fmt: skip
    made = [
        Group(row, tuple(
            Member((4 + row, 5, place + 4, 2), 2, origin, None, "", ref_logprob=(-1.0, -2.0) if scored else None)
            for place, origin in enumerate(groups or ("expert", "own"))
        ))
        for row in range(len(answers))
    ]  # fmt: skip
    folder = GroupFolder(path, settings)
    with folder.filling():
        folder.write(0, Part(tuple(made), tuple(answers)))
    return str(path)


def test_folders_of_two_iterations_are_trained_on_together(tmp_path):
    files = [sampled(tmp_path / name) for name in ("now", "before")]
    made = trainer(tmp_path / "out", **{**IRFT, "groups": {"file": files}})
    assert [row["row"] for row in made.train_dataset] == [0, 1, 2, 3]
    (batch,) = made.step_batches(iter(made.get_train_dataloader()), 1)
    assert int(made.step_count([batch], "cpu")) == 4
    trained = batch["labels"] != -100
    assert set(batch["ref_logprob"][trained].tolist()) == {-1.0, -2.0}
    single = trainer(tmp_path / "out", **{**IRFT, "groups": {"file": files[0]}})
    assert len(single.train_dataset) == 2


def own_file(path, *rows) -> str:
    path.write_text("".join(json.dumps({"prompt": "1+", "response": "2", **row}) + "\n" for row in rows))
    return str(path)


EXPERT, OWN = {"origin": "expert"}, {"origin": "own", "response": "3"}

REFUSED = {
    "no own answers": ({"groups": {**GROUPS, "own": 0}}, r"groups.own: 0, and objective irft compares"),
    "no expert": ({"groups": {**GROUPS, "expert": 0}}, r"groups.expert: 0, and objective irft compares"),
    "no judge for cut-off answers": ({"groups": {**GROUPS, "judge_cut_off": True}}, "groups.judge_cut_off: true"),
    "round without groups": ({"objective": "prift-prob", "groups": None}, "'round' is the model as it was when a"),
    "round of a mass": ({"objective": "third_party:OwnMass"}, "needs 'ref_mass', and of 'round'"),
    "a cache": ({"reference": {"cache": "cache"}}, "which no cache holds"),
    "gft without a judge": ({"objective": "gft"}, "groups.verifier: is required and missing"),
    "the same file twice": ({"groups": {"file": ["a", "a"]}}, "groups.file: a is named twice"),
}


@pytest.mark.parametrize(("changes", "message"), list(REFUSED.values()), ids=list(REFUSED))
def test_refused_before_the_first_step(tmp_path, changes, message):
    with pytest.raises(ballast.BallastError, match=message) as caught:
        trainer(tmp_path, **{**IRFT, **changes})
    assert "\n" not in str(caught.value)


def test_files_that_lack_what_is_read_are_refused_by_prompt(tmp_path):
    def message(file: str, **changes) -> str:
        with pytest.raises(ballast.BallastError) as caught:
            trainer(tmp_path / "out", **{**IRFT, "groups": {"file": file}, **changes})
        return str(caught.value)

    alone = own_file(tmp_path / "alone.jsonl", EXPERT, OWN, {**EXPERT, "prompt": "3+"})
    assert "alone.jsonl: prompt 2: has no own answer, so there is nothing to compare" in message(
        alone, reference="model"
    )
    nobody = own_file(tmp_path / "nobody.jsonl", OWN)
    assert "prompt 1: has no expert answer" in message(nobody, reference="model")
    both = own_file(tmp_path / "both.jsonl", EXPERT, OWN)
    assert "no log-probabilities of the model that sampled it, which `reference: round`" in message(both)
    assert len(trainer(tmp_path / "out", **{**IRFT, "groups": {"file": both}, "reference": "model"}).train_dataset) == 1
    assert "no column 'reward'" in message(both, objective="gft", reference=None)
    unjudged = sampled(tmp_path / "unjudged")
    assert "nobody has judged its answers" in message(unjudged, objective="gft", reference=None)


def test_a_folder_of_an_earlier_version_is_read_and_not_filled(tmp_path):
    path = tmp_path / "old"
    sampled(path, scored=False)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    as_version_1(path / "part-00000.parquet")
    file = {"file": str(path)}
    assert len(trainer(tmp_path / "out", **{**IRFT, "groups": file, "reference": "model"}).train_dataset) == 2
    with pytest.raises(ballast.BallastError, match="prompt 1: has no log-probabilities of the model that sampled"):
        trainer(tmp_path / "out", **{**IRFT, "groups": file})
    with pytest.raises(ballast.BallastError, match=r"begun by an earlier version.*name another folder"):
        sampled(path)


def as_version_1(file) -> None:
    from pyarrow import parquet

    table = parquet.read_table(file)
    assert "ref_logprob" in table.column_names
    parquet.write_table(table.drop_columns(["ref_logprob"]), file, write_page_checksum=True)


def test_one_prompt_may_have_any_number_of_own_answers(tmp_path):
    one, many = (run(tmp_path, **{**IRFT, "groups": {**GROUPS, "own": own}}) for own in (1, 4))
    assert losses(one) == pytest.approx([math.log(2)], abs=1e-6)
    assert losses(many) == pytest.approx([math.log(2)], abs=1e-6)
