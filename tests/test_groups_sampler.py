"""One round of sampling: what own answers score."""

from datasets import Dataset

from ballast.data import PrepareOptions
from ballast.groups import GroupOptions, GroupRows, sample_groups
from group_rows import GROUPS, even, model, prompts, tokenizer


def own_answers(**settings):
    rows = GroupRows(Dataset.from_list(prompts()), tokenizer(), GroupOptions(**GROUPS, **settings), PrepareOptions())
    sampled = sample_groups(model(), rows, range(8), seed=0, step=0)
    return sampled, [member for group in sampled.groups for member in group.members if member.origin == "own"]


def test_answers_that_are_cut_off_score_nothing_unless_they_are_judged():
    sampled, strict = own_answers()
    as_they_stand, judged = own_answers(judge_cut_off=True)
    assert [member.ids for member in strict] == [member.ids for member in judged]
    cut = [not member.ended for member in strict]
    assert sampled.cut_off == as_they_stand.cut_off == sum(cut)
    assert 0 < sum(cut) < len(cut) == 24
    verdicts = [even(member.text, None) for member in judged]
    assert {verdict for verdict, is_cut in zip(verdicts, cut, strict=True) if is_cut} == {0.0, 1.0}
    assert [member.reward for member in judged] == verdicts
    assert [member.reward for member in strict] == [
        0.0 if is_cut else verdict for verdict, is_cut in zip(verdicts, cut, strict=True)
    ]
