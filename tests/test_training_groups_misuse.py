"""Runs with groups that meet something unusual: early stops, sparse logs, held-out sets called train, FSDP, files."""

from __future__ import annotations

import json

import pytest
import torch

import ballast
from ballast.groups import Group, Member
from ballast.groups.sampler import SampledGroups
from ballast.training.group_metrics import GroupSums
from ballast.training.groups import GroupBatches, run_groups
from group_rows import GROUPS, prompts, tokenizer, trainer
from training_tools import config


def group(row: int, *origins: str) -> Group:
    return Group(row, tuple(Member((4, 5, 2), 1, origin, 1.0, "") for origin in origins))


def test_an_origin_without_a_token_in_the_logged_step_has_its_rewards_alone():
    sums = GroupSums()
    sums.add_groups([group(0, "expert", "teacher"), group(1, "expert")])
    stats = ballast.TokenStats(logprob=torch.tensor([-1.0]), origin=torch.tensor([0.0]))
    sums.add_tokens(stats, {"probability": torch.tensor([0.5])})
    metrics = sums.read(lambda total: total, torch.device("cpu"), 1)
    assert metrics["teacher/reward"] == 1.0
    assert metrics["expert/probability"] == 0.5
    assert "teacher/probability" not in metrics


def test_a_round_ends_with_the_iterator_of_its_prompts():
    drawn = []

    def draw(rows, step):
        drawn.append((list(rows), step))
        return SampledGroups(tuple(group(row, "own", "own") for row in rows))

    queue = GroupBatches(draw, 2, ("advantage",), pad_token_id=0)
    stopped, following = (iter({"row": torch.tensor([row])} for row in rows) for rows in ((0, 1), (2, 3)))
    queue.take(stopped, 1, 0)
    _, groups = queue.take(following, 1, 1)
    assert [one.row for one in groups] == [2]
    assert drawn == [([0, 1], 0), ([2, 3], 1)]


def test_a_second_call_of_train_samples_anew(tmp_path):
    made = trainer(tmp_path, groups={**GROUPS, "refresh": 4}, per_device_train_batch_size=2, max_steps=1)
    made.train()
    steps = []
    draw = made.groups._batches._draw
    made.groups._batches._draw = lambda rows, step: steps.append(step) or draw(rows, step)
    made.train()
    assert steps == [0]


def test_a_held_out_set_called_train_leaves_the_prompts_alone(tmp_path):
    from datasets import Dataset

    held_out = Dataset.from_list([{"prompt": "1+1=", "completion": "2"}])
    made = trainer(tmp_path, evaluation={"train": held_out})
    assert [row["prompt"] for row in made.groups.rows.rows] == [row["prompt"] for row in prompts()]
    assert "labels" in made.eval_dataset["train"].column_names


def test_columns_of_a_chat_template_mean_nothing_beside_text(tmp_path):
    assert len(trainer(tmp_path, rows=[{**row, "tools": "x"} for row in prompts(2)]).train_dataset) == 2


def test_an_answer_that_the_template_leaves_no_token_of_is_refused():
    from datasets import Dataset

    from ballast.data.options import PrepareOptions
    from ballast.groups import GroupOptions, GroupRows
    from tiny import char_tokenizer

    template = "{% for one in messages %}{{ one['content'] }}{% endfor %}"
    rows = [
        {"prompt": [{"role": "user", "content": "1"}], "completion": [{"role": "assistant", "content": text}]}
        for text in ("2", "")
    ]
    with pytest.raises(ballast.BallastError, match="row 2: the expert's answer has no token to train on"):
        GroupRows(
            Dataset.from_list(rows),
            char_tokenizer(chat_template=template),
            GroupOptions.from_dict(GROUPS),
            PrepareOptions(max_length=None),
        )


def test_a_model_that_accelerate_shards_cannot_sample(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ballast.BallastError, match="a model sharded by FSDP cannot sample"):
        run_groups(ballast.objective("gft"), GROUPS, config(tmp_path, fsdp=None))


@pytest.mark.parametrize(
    ("groups", "changes", "message"),
    [
        ({"own": 16}, {}, "groups.own: 16 would be ignored"),
        ({"verifier": "math"}, {}, "groups.verifier: 'math' would be ignored"),
        ({"refresh": 2}, {}, "groups.refresh: 2 would be ignored"),
        ({}, {"packing": True}, "training.packing does not go with groups"),
        ({}, {"completion_only_loss": False}, "training.completion_only_loss does not go with groups"),
    ],
)
def test_what_answers_of_a_file_would_ignore_is_refused(tmp_path, groups, changes, message):
    file = tmp_path / "groups.jsonl"
    row = {"prompt": "1+1=", "origin": "own", "response": "2", "reward": 1.0}
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ballast.BallastError, match=message):
        trainer(tmp_path / "out", groups={"file": str(file), **groups}, **changes)


def test_a_folder_goes_with_what_it_was_sampled_with(tmp_path):
    from ballast.groups import GroupOptions
    from ballast.groups.store import GroupFolder, Part, StoreSettings, stored_options
    from ballast.reference.fingerprint import tokenizer_fingerprint

    asked = {**GROUPS, "file": str(tmp_path / "groups")}
    made = StoreSettings(
        model="m",
        dtype="float64",
        tokenizer=tokenizer_fingerprint(tokenizer()),
        ends=(2,),
        data="d",
        rows=1,
        seed=42,
        max_length=None,
        groups=stored_options(GroupOptions.from_dict(asked)),
    )
    folder = GroupFolder(tmp_path / "groups", made)
    with folder.filling():
        folder.write(0, Part((group(0, "own", "own"),), ("1",)))
    assert len(trainer(tmp_path / "out", groups={**asked, "refresh": 3}).train_dataset) == 1
    with pytest.raises(ballast.BallastError, match=r"groups.own: 5 would be ignored: .* was sampled with 3"):
        trainer(tmp_path / "out", groups={**asked, "own": 5})


def test_a_folder_that_is_not_there_is_named_before_its_options(tmp_path):
    with pytest.raises(ballast.BallastError, match="no such file or folder"):
        trainer(tmp_path / "out", groups={**GROUPS, "file": str(tmp_path / "missing")})
