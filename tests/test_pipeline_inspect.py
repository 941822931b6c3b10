"""`ballast inspect`: the figures are those of the models and the trainer; what cannot be shown is refused."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import ballast
from ballast.cli import app
from ballast.config.recipe import Recipe
from ballast.errors import BallastError
from ballast.objectives import objective
from ballast.pipeline.inspect import inspect_rows, parse_objective, parse_rows, run_inspect, write_tokens
from ballast.records.tokens import TokensRecord
from ballast.report import show_tokens, tokens
from tiny import CHAT_TEMPLATE, char_tokenizer, tiny_model

EVIL = "<b>x</b> \u202e [red]y[/red] \x1b[31mz"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a base model, a model that moved away from it, and rows."""
    folder = tmp_path_factory.mktemp("inspect")
    for name, seed in (("base", 0), ("moved", 1)):
        tiny_model(seed).save_pretrained(folder / name)
        char_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(folder / name)
    tiny_model(vocab=60).save_pretrained(folder / "narrow")
    rows = [{"prompt": f"{n}+{n}=", "completion": f"{2 * n}" + "ab" * n} for n in range(1, 9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    talk = [{"messages": [{"role": r, "content": c} for r, c in zip("usus", ("hi", "yes", "so", "no"), strict=True)]}]
    talk = json.loads(json.dumps(talk).replace('"u"', '"user"').replace('"s"', '"assistant"'))
    (folder / "talk.jsonl").write_text(json.dumps(talk[0]) + "\n")
    return folder


def recipe(folder: Path, **changes) -> Recipe:
    sections = {
        "model": str(folder / "base"),
        "data": {"train": str(folder / "rows.jsonl")},
        "objective": "prift-mass",
    }
    return Recipe.model_validate({**sections, **changes})


def by_hand(folder, record_row, live="base", reference="base"):
    """Statistics of a row from the models' own logits, in float64."""
    tokenizer = char_tokenizer()
    ids = torch.tensor([[tokenizer.convert_tokens_to_ids(text) for text in record_row.text]])
    logits = {}
    for name in {live, reference}:
        model = tiny_model({"base": 0, "moved": 1}[name])
        with torch.no_grad():
            logits[name] = model(ids).logits[0].double().log_softmax(-1)
    found = []
    for place in record_row.trained:
        p, q = logits[live][place - 1], logits[reference][place - 1]
        target = ids[0, place]
        less = q < q[target]
        found.append(
            {
                "logprob": p[target],
                "ref_logprob": q[target],
                "entropy": -(p.exp() * p).sum(),
                "kl": (p.exp() * (p - q)).sum(),
                "ref_mass": q[less].exp().sum() + q[target].exp(),
            }
        )
    return [{name: float(value) for name, value in one.items()} for one in found]


def test_the_figures_are_those_of_both_models(workspace):
    record = inspect_rows(recipe(workspace), [2, 5], model=str(workspace / "moved"), over=0)
    assert [row.row for row in record.rows] == [2, 5]
    assert not record.same
    for row in record.rows:
        expected = by_hand(workspace, row, live="moved")
        assert len(expected) == len(row.trained) > 3
        for index, one in enumerate(expected):
            for name, value in one.items():
                assert getattr(row, name)[index] == pytest.approx(value, abs=2e-5), (row.row, index, name)


def test_the_tokens_are_those_of_training(workspace):
    [row] = inspect_rows(recipe(workspace), [3], over=0).rows
    assert "".join(row.text) == "3+3=6ababab<eos>"
    assert row.trained == tuple(range(4, len(row.text)))


def test_without_another_model_live_and_reference_are_the_recipes(workspace):
    record = inspect_rows(recipe(workspace), [1], over=0)
    assert record.same
    [row] = record.rows
    assert row.logprob == row.ref_logprob
    assert row.kl == pytest.approx([0.0] * len(row.kl), abs=1e-6)


def test_the_reference_is_the_recipes(workspace):
    other = recipe(workspace, reference={"model": str(workspace / "moved")})
    record = inspect_rows(other, [4], over=0)
    assert record.reference == str(workspace / "moved")
    expected = by_hand(workspace, record.rows[0], reference="moved")
    assert record.rows[0].kl == pytest.approx([one["kl"] for one in expected], abs=2e-5)


@pytest.mark.parametrize("name", ["sft", "dft", "prift-prob", "prift-mass"])
def test_weights_follow_from_the_figures(workspace, name):
    record = inspect_rows(recipe(workspace, objective={"name": name}), [2, 6], model=str(workspace / "moved"), over=0)
    formulas = {
        "sft": lambda one: 1.0,
        "dft": lambda one: math.exp(one["logprob"]),
        "prift-prob": lambda one: math.exp(one["ref_logprob"]),
        "prift-mass": lambda one: float(one["ref_mass"] >= 0.5),
    }
    for row, mine in zip(record.rows, record.objectives[0].rows, strict=True):
        expected = [formulas[name](one) for one in by_hand(workspace, row, live="moved")]
        assert mine.weight == pytest.approx(expected, abs=1e-5)


def test_eksft_picks_by_sequence_and_says_by_what(workspace):
    chosen = {"name": "eksft", "rho": 0.3}
    record = inspect_rows(recipe(workspace), [4, 8], objectives=[chosen], model=str(workspace / "moved"), over=0)
    for row, mine in zip(record.rows, record.objectives[0].rows, strict=True):
        count = math.floor(0.3 * len(row.trained) + 1e-9)
        for field, word in (("entropy", "entropy"), ("kl", "KL")):
            values = getattr(row, field)
            largest = sorted(range(len(values)), key=lambda index: -values[index])[:count]
            assert {index for index, one in enumerate(mine.selected) if word in one} == set(largest)
        kept = [index for index, one in enumerate(mine.selected) if not one]
        whole = len(row.trained)
        expected = [whole / len(kept) if index in kept else 0.0 for index in range(whole)]
        assert mine.weight == pytest.approx(expected)
        assert mine.extra is not None


def test_selection_over_the_batch_is_over_the_rows_shown(workspace):
    chosen = [{"name": "eksft", "rho": 0.25, "scope": "batch"}]
    record = inspect_rows(recipe(workspace), [1, 8], objectives=chosen, model=str(workspace / "moved"), over=0)
    picked = [one for mine in record.objectives[0].rows for one in mine.selected]
    assert sum("entropy" in one for one in picked) == math.floor(0.25 * len(picked))
    assert "among the rows shown together" in record.objectives[0].note


def test_ift_reads_inputs_mixed_with_its_own_tokens(workspace):
    plain, mixed = {"name": "ift", "lam": 0.0}, {"name": "ift", "lam": 0.8}
    record = inspect_rows(recipe(workspace), [5], objectives=[plain, mixed], over=0)
    [row] = record.rows
    first, second = (one.rows[0].logprob for one in record.objectives)
    assert first == pytest.approx(row.logprob, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-3
    assert "mixed with its own greedy tokens" in record.objectives[1].note
    for one in record.objectives:
        assert sum(one.rows[0].weight) == pytest.approx(len(row.trained), rel=1e-4), "a mean weight of 1"


def test_the_weights_are_those_that_a_step_of_training_logs(workspace, tmp_path):
    from datasets import Dataset

    from training_tools import config

    name = {"name": "prift-mass", "threshold": 0.02}
    record = inspect_rows(recipe(workspace), [1, 2, 3], objectives=[name], over=0)
    weights = [value for row in record.objectives[0].rows for value in row.weight]
    rows = [json.loads(line) for line in (workspace / "rows.jsonl").read_text().splitlines()[:3]]
    trainer = ballast.Trainer(
        tiny_model(),
        config(tmp_path),
        train_dataset=Dataset.from_list(rows),
        processing_class=char_tokenizer(chat_template=CHAT_TEMPLATE),
        objective=name,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert 0 < logged["weight_zero_share"] < 1
    assert logged["weight_zero_share"] == pytest.approx(weights.count(0.0) / len(weights))
    assert logged["weight_mean"] == pytest.approx(sum(weights) / len(weights))


def test_histograms_count_the_first_rows(workspace):
    record = inspect_rows(recipe(workspace), [1], objectives=["dft"], over=3)
    found = record.objectives[0].histogram
    sizes = [len(row.trained) for row in inspect_rows(recipe(workspace), [1, 2, 3], over=0).rows]
    assert (found.rows, found.tokens) == (3, sum(sizes))
    assert sum(found.counts) == found.tokens
    assert found.edges[0] == 0.0
    assert found.edges[-1] == 1.0
    assert inspect_rows(recipe(workspace), [1], over=0).objectives[0].histogram is None


def ends_of_turns(workspace, over=4):
    """Mass drops the end of each of the first 4 rows; `keep_end` keeps it, and `ift`'s weights carry gradient."""
    mass = {"name": "prift-mass", "threshold": 0.23}
    return inspect_rows(recipe(workspace), [2], objectives=[mass, {**mass, "keep_end": True}, "ift"], over=over)


def test_an_end_of_turn_that_is_hardly_taught_is_warned_of(workspace):
    record = ends_of_turns(workspace)
    dropped, kept, graded = record.objectives
    assert record.rows[0].text[-1] == "<eos>"
    assert [one.rows[0].weight[-1] for one in (dropped, kept)] == [0.0, 1.0]
    assert (dropped.end_weight, kept.end_weight, graded.end_weight) == (0.0, 1.0, None)
    assert dropped.mean_weight == pytest.approx(1 - dropped.histogram.zero / dropped.histogram.tokens)
    assert dropped.end_warning.startswith("prift-mass: the tokens that end a turn have a mean weight of 0, all tokens")
    assert "keep_end" in dropped.end_warning
    assert kept.end_warning == graded.end_warning == ""
    unweighed = ends_of_turns(workspace, over=0).objectives[0]
    assert (unweighed.end_weight, unweighed.end_warning) == (None, "")


def test_the_weight_of_ends_of_turns_is_shown_with_its_warning(workspace):
    from ballast.report.render import tokens_html

    record = ends_of_turns(workspace)
    dropped, *others = record.objectives
    evil = dropped.model_copy(update={"end_warning": f"hardly taught {EVIL}"})
    record = record.model_copy(update={"objectives": (evil, *others)})
    console = Console(width=400, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    tokens.terminal(record, say=console.print)
    shown, page = console.export_text(), tokens_html(record)
    mean = f"mean weight {dropped.mean_weight:.3f}, of the tokens that end a turn 0.000."
    for text in (shown, page):
        assert mean in text
        assert text.count("of the tokens that end a turn") == 2, "ift has none"
        assert text.index(mean) < text.index("hardly taught")
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert page.count('class="caution"') == 1
    assert "<b>" not in page
    assert "[red]y[/red]" in shown


def test_records_without_ends_of_turns_still_load(workspace):
    plain = ends_of_turns(workspace).plain()
    for one in plain["objectives"]:
        for name in ("mean_weight", "end_weight", "end_warning"):
            del one[name]
    old = TokensRecord.model_validate_json(json.dumps(plain))
    assert [(view.ends, view.warning) for view in tokens.views(old)] == [("", "")] * 3


def test_only_the_assistants_words_are_trained_where_asked(workspace):
    talk = recipe(
        workspace,
        data={"train": str(workspace / "talk.jsonl")},
        training={"assistant_only_loss": True},
        objective="sft",
    )
    [row] = inspect_rows(talk, [1], over=0).rows
    trained = "".join(row.text[place] for place in row.trained)
    assert trained == "yes<eos>no<eos>"


def test_what_others_say_between_turns_counts_in_positions(workspace):
    talk = recipe(
        workspace,
        data={"train": str(workspace / "talk.jsonl")},
        training={"assistant_only_loss": True},
        objective={"name": "ift", "lam": 0, "gamma": 0.5, "variant": "algorithm1"},
    )
    record = inspect_rows(talk, [1], over=0)
    [row], [looked_at] = record.rows, record.objectives
    place, nll = row.trained, [-value for value in row.logprob]
    assert max(b - a for a, b in itertools.pairwise(place)) > 5
    reach = [sum(0.5 ** (place[i] - place[t]) * nll[i] for i in range(t, len(nll))) for t in range(len(nll))]
    assert looked_at.rows[0].weight == pytest.approx(reach, rel=1e-4)


def test_a_row_that_is_cut_shows_what_is_left(workspace):
    short = recipe(workspace, training={"max_length": 8})
    [row] = inspect_rows(short, [6], over=0).rows
    assert len(row.text) == 8


def test_the_page_and_the_record_are_written_and_shown_in_a_report(workspace, tmp_path):
    import report_records
    from ballast.report.build import build
    from ballast.report.source import load

    run = report_records.run(tmp_path / "run")
    page, record = tmp_path / "tokens.html", run / "tokens.json"
    inspected = run_inspect(recipe(workspace), "1,3", objectives=["prift-mass", "eksft"], record=record, over=2)
    lines = []
    show_tokens(inspected, page=page, say=lines.append)
    assert lines[-1] == f"{page}: written"
    assert page.read_text().count('<table class="token-table">') == 4
    report = build(load([run]))
    assert report.tokens == inspected, "read back from the record"
    assert "weights" in [section.id for section in report.sections]


@pytest.mark.parametrize("count", [1, 2])
def test_the_terminal_shows_every_token_and_figure(workspace, count):
    record = inspect_rows(recipe(workspace), [1], objectives=["prift-mass", "eksft"][:count], over=0)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    tokens.terminal(record, say=console.print)
    shown = console.export_text()
    [row] = record.rows
    lines = [line for line in shown.splitlines() if line.startswith(" ") and any(c.isdigit() for c in line[6:])]
    assert len(lines) == len(row.trained)
    for line, logprob in zip(lines, row.logprob, strict=True):
        assert f"{math.exp(logprob):.3f}" in line
    assert "Live and reference are the same model here" in " ".join(shown.split())


def test_text_from_data_acts_neither_on_the_terminal_nor_on_a_page(workspace):
    from ballast.report.render import tokens_html

    record = inspect_rows(recipe(workspace), [1], over=0)
    [row] = record.rows
    evil = row.model_copy(update={"text": (*row.text[:-1], EVIL)})
    record = record.model_copy(update={"rows": (evil,)})
    console = Console(width=200, record=True, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    tokens.terminal(record, say=console.print)
    shown = console.export_text()
    assert "[red]y[/red]" in shown.replace("␣", " ")
    for text in (shown, tokens_html(record)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "<b>" not in tokens_html(record)


@pytest.mark.parametrize(
    ("text", "rows"), [("3,7", [3, 7]), ("2-4", [2, 3, 4]), (" 5 , 1-2", [5, 1, 2]), ("3,3", [3]), ("1-1", [1])]
)
def test_rows_are_named_singly_or_as_ranges(text, rows):
    assert parse_rows(text) == rows


@pytest.mark.parametrize("text", ["", "0", "a", "3-", "-3", "5-2", "1,,2", "1.5", "²", "9" * 40, "1-5000"])
def test_rows_that_are_none_are_refused(text):
    with pytest.raises(BallastError, match="--rows"):
        parse_rows(text)


@pytest.mark.parametrize(
    ("changes", "rows", "options", "words"),
    [
        ({}, [9], {}, "there is no row 9; data.train has 8 rows"),
        ({"objective": None}, [1], {}, "names no objective"),
        ({}, [1], {"objectives": ["gft"]}, "--objective gft: its weights are the advantage of an answer"),
        ({}, [1], {"objectives": ["prift-mas"]}, "did you mean 'prift-mass'"),
        ({}, [1], {"objectives": [{"name": "prift-mass", "treshold": 1}]}, "did you mean 'threshold'"),
        ({}, [1], {"objectives": ["sft", "sft"]}, "is named twice"),
        ({}, [1], {"model": "{folder}/nowhere"}, "--model .*nowhere: no such folder"),
        ({"training": {"max_length": 3}}, [4], {}, "row 4: .*lose their trained tokens"),
        ({"reference": {"model": "{folder}/narrow"}}, [1], {}, "vocabulary"),
    ],
)
def test_what_cannot_be_shown_is_refused(workspace, changes, rows, options, words):
    filled = json.loads(json.dumps([changes, options]).replace("{folder}", str(workspace)))
    made = recipe(workspace, **filled[0])
    with pytest.raises(BallastError, match=words) as caught:
        inspect_rows(made, rows, over=0, **filled[1])
    assert "\n" not in str(caught.value)


def test_objectives_are_names_or_mappings():
    assert parse_objective("prift-mass") == "prift-mass"
    assert parse_objective("{name: prift-mass, threshold: 3e-1}") == {"name": "prift-mass", "threshold": 0.3}
    with pytest.raises(BallastError, match=r"--objective .*cannot be read"):
        parse_objective("{name: [}")


def test_the_command(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [f"model={workspace}/base", f"data.train={workspace}/rows.jsonl", "objective=eksft"]
    done = CliRunner().invoke(app, ["inspect", *words, "--rows", "2", "--html", "t.html", "--over", "2"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "row 2" in done.stdout
    assert Path("t.html").is_file()
    done = CliRunner().invoke(app, ["inspect", *words, "--rows", "99"])
    assert done.exit_code == 2
    assert done.stderr.startswith("--rows: there is no row 99")
    done = CliRunner().invoke(app, ["inspect", *words, "--html", "."])
    assert done.exit_code == 2
    assert done.stderr.startswith("--html: .: is a folder")


def lab(**data):
    return Recipe.model_validate({"model": {"path": "lab"}, "data": {"train": "lab:train", **data}})


def test_objectives_that_weigh_a_single_row_are_written_once_each(tmp_path):
    chosen = [objective(name) for name in ("sft", "gft", "sft", "eksft")]
    assert write_tokens(lab(), [objective("eksft", rho=0.1), *chosen], tmp_path) == ""
    written = json.loads((tmp_path / "tokens.json").read_text())
    options = [(one["name"], one["options"].get("rho")) for one in written["objectives"]]
    assert options == [("eksft", 0.1), ("sft", None), ("eksft", 0.2)]
    assert [row["row"] for row in written["rows"]] == [1, 2, 3]


def test_an_existing_record_stays(tmp_path):
    (tmp_path / "tokens.json").write_text("mine")
    assert write_tokens(lab(), [objective("sft")], tmp_path) == ""
    assert (tmp_path / "tokens.json").read_text() == "mine"


def test_objectives_on_groups_alone_have_no_record(tmp_path):
    assert write_tokens(lab(), [objective("gft")], tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_why_rows_cannot_be_inspected_is_returned_and_nothing_written(tmp_path):
    assert "there is no row 3" in write_tokens(lab(limit=2), [objective("sft")], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_diverged_is_refused(workspace, tmp_path):
    model = tiny_model(1)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    char_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(tmp_path)
    with pytest.raises(BallastError, match=r"row 2: its logprob is not finite"):
        inspect_rows(recipe(workspace), [2], model=str(tmp_path), over=0)
