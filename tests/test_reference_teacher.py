"""A cache of another model than the one in training: a teacher's, keyed by it."""

from __future__ import annotations

import json

import pytest
import torch

import ballast
from ballast import BallastError
from ballast.config.recipe import load_recipe
from ballast.data import PrepareOptions, prepare
from ballast.pipeline import TRAIN_CHECKS, run_score, run_train
from ballast.reference import CacheKey, ReferenceCache, score_rows
from tiny import CHARACTERS, char_tokenizer, tiny_model
from training_tools import config, dataset, largest_difference, objective, rows, weights


@pytest.fixture
def folders(tmp_path):
    """Folders of a model, of a teacher of another size, and of one with another vocabulary."""
    made = {"student": tiny_model(), "teacher": tiny_model(7, hidden=24), "other": tiny_model(3)}
    tokenizers = {"other": char_tokenizer(characters=CHARACTERS[::-1])}
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
        tokenizers.get(name, char_tokenizer()).save_pretrained(tmp_path / name)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())) + "\n")
    return tmp_path


def recipe(folder, *words, teacher="teacher"):
    given = [
        f"model={folder / 'student'}",
        f"data.train={folder / 'rows.jsonl'}",
        "objective=prift-prob",
        f"output={folder / 'run'}",
        *([f"reference.model={folder / teacher}"] if teacher else []),
        "training={max_steps: 2, per_device_train_batch_size: 4, learning_rate: 0.01, save_strategy: 'no', optim: sgd, "
        "report_to: [], max_grad_norm: 0, lr_scheduler_type: constant}",
        *words,
    ]
    return load_recipe(None, given, checks=TRAIN_CHECKS)


def silent(_):
    """Say nothing."""


def final(folder):
    from safetensors.torch import load_file

    (file,) = (folder / "run").rglob("model.safetensors")
    return load_file(file)


def test_training_from_the_teachers_cache_is_training_from_the_teacher(folders, tmp_path):
    ends = {}
    for name, words in (("live", ()), ("cached", (f"reference.cache={tmp_path / 'cache'}",))):
        run_train(recipe(folders, *words, f"output={tmp_path / name / 'run'}"), say=silent, progress=False)
        ends[name] = final(tmp_path / name)
    run_train(recipe(folders, f"output={tmp_path / 'own' / 'run'}", teacher=None), say=silent, progress=False)
    assert largest_difference(ends["live"], ends["cached"]) < 1e-6
    assert largest_difference(ends["live"], final(tmp_path / "own")) > 1e-5


def test_the_cache_is_keyed_by_the_teacher(folders, tmp_path):
    place = tmp_path / "cache"
    cache = run_score(recipe(folders, f"reference.cache={place}"), say=silent)
    teacher = tiny_model(7, hidden=24)
    assert cache.key.model == CacheKey.of(teacher, char_tokenizer()).model
    assert cache.key.model != CacheKey.of(tiny_model(), char_tokenizer()).model
    ready = prepare(dataset(), char_tokenizer(), PrepareOptions()).dataset
    expected = score_rows(teacher, ready, tmp_path / "expected", CacheKey.of(teacher, char_tokenizer()), progress=False)
    for digest in ready["digest"]:
        ours, theirs = (torch.tensor(one.lookup(digest)["ref_logprob"]) for one in (cache, expected))
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(BallastError, match="another model"):
        run_score(recipe(folders, f"reference.cache={place}", teacher=None), say=silent)
    torch.manual_seed(0)
    tiny_model(8, hidden=24).save_pretrained(folders / "teacher")
    with pytest.raises(BallastError, match="another model"):
        run_train(recipe(folders, f"reference.cache={place}"), say=silent, progress=False)
    assert not (folders / "run").exists()


def test_a_teacher_with_another_vocabulary_is_refused_before_anything_loads(folders):
    for words in ((), (f"reference.cache={folders / 'cache'}",)):
        with pytest.raises(BallastError, match=r"reference.model: .*has another vocabulary: .*id \d+ here, \d+ there"):
            recipe(folders, *words, teacher="other")
    assert not (folders / "cache").exists()


def test_the_trainer_takes_a_teachers_cache(folders, tmp_path):
    run_score(recipe(folders, f"reference.cache={tmp_path / 'cache'}"), say=silent)

    def trained(reference, data=None):
        trainer = ballast.Trainer(
            tiny_model(),
            config(tmp_path / "run"),
            train_dataset=data or dataset(),
            processing_class=char_tokenizer(),
            objective=objective("prift-prob"),
            reference=reference,
        )
        trainer.train()
        return weights(trainer)

    both = {"cache": str(tmp_path / "cache"), "model": str(folders / "teacher")}
    assert largest_difference(trained(both), trained({"model": str(folders / "teacher")})) < 1e-6
    with pytest.raises(BallastError, match="another model"):
        trained({"cache": str(tmp_path / "cache")})
    with pytest.raises(BallastError, match=r"the teacher's cache does not have .*`ballast score` with reference.model"):
        trained(both, dataset(9))
    with pytest.raises(BallastError, match="or both for a cache of that model"):
        trained({"cache": "a", "modle": "b"})
    assert len(ReferenceCache.open(tmp_path / "cache")) == 8


def test_a_divergence_still_wants_the_teacher_itself(folders):
    with pytest.raises(BallastError, match="'kl', a divergence over the whole vocabulary"):
        recipe(folders, f"reference.cache={folders / 'cache'}", "objective=eksft")
