"""Tasks of lm-evaluation-harness, from task files in a folder: no network."""

import json
import math
import random
import sys

import pytest
import torch

from ballast.compare.plan import direction
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.evaluation import Task, evaluate, harness
from ballast.evaluation.metrics import LEVEL
from ballast.files import file_name
from ballast.pipeline.evaluate import run_evaluate
from ballast.records.schema import EvalRecord
from tiny import char_tokenizer, tiny_model

QUESTIONS = [{"q": f"{a}+{b}=", "options": ["12", "3", "0 "], "right": (a + b) % 3} for a in range(3) for b in range(3)]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FILES = {
    "pick": "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: options\ndoc_to_target: right\n"
    "target_delimiter: ''\nmetric_list:\n  - metric: acc\n",
    "say": "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{right}}'\n"
    "generation_kwargs: {max_gen_toks: 4, until: ['z']}\nmetric_list:\n  - metric: exact_match\n",
    "fixed": "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: options\ndoc_to_target: right\n"
    "num_fewshot: 0\nmetric_list:\n  - metric: acc\n",
    "runs": "output_type: generate_until\nunsafe_code: true\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{right}}'\n"
    "metric_list:\n  - metric: exact_match\n",
}


def needs_package():
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {path / 'rows.jsonl'}}}}}\ntest_split: test\n"
    for name, text in FILES.items():
        extra = "fewshot_split: test\n"
        (path / f"{name}.yaml").write_text(f"task: {name}\n{data}{extra}{text}")
    gone = "dataset_path: nobody/has-this\ntest_split: test\n"
    (path / "far.yaml").write_text(f"task: far\n{gone}{FILES['pick']}")
    (path / "lacks.py").write_text("import no_such_module_here\n")
    lacks = FILES["pick"].replace("doc_to_text: '{{q}}'", "doc_to_text: !function lacks.text")
    (path / "lacks.yaml").write_text(f"task: lacks\n{data}{lacks}")
    (path / "both.yaml").write_text("group: both\ntask: [pick, fixed]\naggregate_metric_list:\n  - metric: acc\n")
    return path


@pytest.fixture(scope="module")
def model():
    return tiny_model(1, initializer_range=0.2)


def task(folder, *names, **options):
    return Task(kind="lm-eval", tasks=names, include_path=str(folder), **options)


def by_hand(model, tokenizer, row):
    """The option whose tokens are likeliest after the question, in float64."""
    found = []
    for option in row["options"]:
        ids = torch.tensor([tokenizer.encode(row["q"] + option, add_special_tokens=False)])
        with torch.no_grad():
            logprobs = model(ids).logits[0].double().log_softmax(-1)
        start = len(tokenizer.encode(row["q"], add_special_tokens=False))
        found.append(sum(float(logprobs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])))
    return max(range(len(found)), key=found.__getitem__)


def test_choices_are_those_of_the_model_in_memory(folder, model, tmp_path):
    needs_package()
    tokenizer, seen = char_tokenizer(), []
    rng, numbers = torch.get_rng_state(), random.getstate()
    tasks = [task(folder, "pick", "say"), task(folder, "both", name="group", limit=4)]
    result, group = evaluate(
        model.train(), tokenizer, tasks, items=tmp_path / "items", progress=lambda *one: seen.append(one)
    )
    right = [by_hand(model.eval(), tokenizer, row) == row["right"] for row in QUESTIONS]
    assert 0 < sum(right) < len(right)
    measured = result.metrics["pick/acc"]
    assert (measured.value, measured.n, measured.method) == (pytest.approx(sum(right) / 9), 9, "wilson")
    assert measured.low < measured.value < measured.high
    assert set(result.metrics) == {"pick/acc", "say/exact_match"}
    assert result.name == "pick+say"
    assert result.counts["rows"] == 18
    kept = tmp_path / "items" / f"{file_name('pick+say')}.jsonl"
    items = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [bool(item["scores"]["acc"]) for item in items if item["task"] == "pick"] == right
    # A group has its own figure alone, over the items of its members, with the harness's error.
    assert set(group.metrics) == {"both/acc"}
    assert (group.metrics["both/acc"].n, group.metrics["both/acc"].method) == (8, harness.STDERR)
    assert seen[-1][0] == "group"
    assert all(done <= total for _, done, total in seen)
    assert torch.equal(rng, torch.get_rng_state())
    assert numbers == random.getstate()


def test_chat_template_and_examples_reach_the_prompt(folder, model):
    needs_package()
    tokenizer = char_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = None
    (result,) = evaluate(model, tokenizer, [task(folder, "pick", few_shot=1, limit=2)])
    prompt = result.items[0]["prompt"][0][0]
    assert prompt.count("user: ") == 2
    assert result.counts["chat_template"] == 1
    assert tokenizer.pad_token is None


def test_training_mode_is_as_before(folder, model):
    needs_package()
    for training in (True, False):
        evaluate(model.train(training), char_tokenizer(), [task(folder, "pick", limit=1)])
        assert model.training is training


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["pik"], {}, "lm-eval has no task 'pik'; did you mean 'pick'"),
        (["far"], {}, "its data are on the hub, which is out of reach; fetch it once"),
        (["lacks"], {}, "'lacks' needs the package no_such_module_here, which is not installed; pip install"),
        (["runs"], {}, "runs what the model wrote outside any sandbox"),
        (["fixed"], {"few_shot": 2}, "has no examples by its authors' setting"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(folder, names, options, said):
    needs_package()
    with pytest.raises(BallastError) as error:
        harness.rows(task(folder, *names, **options))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_in_the_table_beside_other_kinds(folder, model, tmp_path, capsys):
    needs_package()
    model.save_pretrained(tmp_path / "model")
    char_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.jsonl").write_text('{"text": "what it knew"}\n')
    name, seen = str(tmp_path / "model"), []
    recipe = Recipe.model_validate(
        {
            "evaluation": {
                "tasks": [
                    {"name": "picks", "kind": "lm-eval", "tasks": "pick", "include_path": str(folder), "limit": 3},
                    {"name": "forgetting", "kind": "nll", "data": str(tmp_path / "text.jsonl")},
                ]
            }
        }
    )
    assert Recipe.model_validate(recipe.resolved()) == recipe
    (measured,) = run_evaluate(recipe, paths=[name], items=tmp_path / "items", say=seen.append)
    assert seen == [name]
    record = measured.record()
    assert set(record.tasks[0].metrics) == {"pick/acc"}
    assert (record.tasks[0].counts["rows"], record.tasks[0].settings["tasks"]) == (3, ["pick"])
    assert EvalRecord.model_validate_json(json.dumps(record.plain())) == record
    printed = capsys.readouterr().err
    assert printed.count(f"{name}: picks: 9 of 9 rows") == 1
    assert f"{name}: forgetting: " in printed


def test_direction_of_its_metrics():
    for metric in ("mmlu/acc", "ifeval/prompt_level_strict_acc", "gsm8k/exact_match,strict-match", "a/acc_norm"):
        assert direction(metric) == 1
    assert direction("wikitext/word_perplexity") == -1
    assert direction("a/b") == direction("acc") == 0


def test_folder_that_is_not_there(tmp_path):
    needs_package()
    with pytest.raises(BallastError, match="there is no folder"):
        harness.rows(task(tmp_path / "none", "pick"))


def test_package_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(BallastError, match=r"pip install 'ballast-ft\[lm-eval\]'"):
        harness.rows(Task(kind="lm-eval", tasks="ifeval"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "tasks: is required"),
        ({"tasks": []}, "tasks: "),
        ({"tasks": "a", "data": "rows.jsonl"}, "data: would be ignored"),
        ({"tasks": "a", "split": "test"}, "split: would be ignored"),
        ({"tasks": "a", "columns": "alpaca"}, "columns: would be ignored"),
        ({"tasks": "a", "batch_tokens": 9}, "set batch_size"),
        ({"tasks": "a", "few_shot": -1}, "few_shot: "),
        ({"tasks": "a", "samples": 2}, "samples: is an option of kind generate"),
    ],
)
def test_options_that_would_be_ignored(options, said):
    with pytest.raises(BallastError) as error:
        Task(kind="lm-eval", **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_figures_that_are_no_means_keep_the_harness_error():
    found = {
        "results": {"t": {"ppl,none": 4.0, "ppl_stderr,none": 0.5, "alias": "t", "odd,none": 2.0, "lists,f": 0.75}},
        "samples": {"t": [{"filter": "none", "ppl": (1.0, 2)}, {"filter": "f", "lists": [True, False]}]},
        "n-samples": {"t": {"effective": 2}},
        "group_subtasks": {},
    }
    found["samples"]["t"].append({"filter": "f", "lists": [True, True]})
    estimates = dict(harness._estimates("t", found, 0))
    z = 1.959963984540054
    assert math.erf(z / math.sqrt(2)) == pytest.approx(LEVEL)
    assert (estimates["ppl,none"].low, estimates["ppl,none"].high) == pytest.approx((4 - z / 2, 4 + z / 2))
    assert estimates["ppl,none"].method == harness.STDERR
    assert (estimates["odd,none"].method, estimates["odd,none"].low, estimates["odd,none"].n) == ("none", None, 2)
    assert (estimates["lists,f"].value, estimates["lists,f"].method) == (0.75, "bootstrap-bca")
