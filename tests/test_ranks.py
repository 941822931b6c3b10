"""Several ranks give what one gives, bit for bit: scores, answers, tasks, parts; and what a rank leaves that fails."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest

from ballast.errors import BallastError, Lost
from ballast.evaluation import Task, evaluate
from ballast.evaluation.generation import GenerationOptions, generate
from ballast.evaluation.scoring import ScoredSequence, sequence_statistics
from ballast.parts import PartFolder
from ballast.ranks import ALONE, Ranks, in_order
from ballast.reference import ReferenceCache, score_rows
from ballast.verifiers.registry import Verifier, VerifierTimeout, score_answers
from reference_rows import make_key, make_rows
from thread_ranks import together
from tiny import char_tokenizer, tiny_model

SIZES = (2, 3, 7)
MODELS = {0: tiny_model(), 1: tiny_model(1), 2: tiny_model(initializer_range=0.2)}
ROWS = make_rows(23)
FIELDS = make_key().fields


def a_model(which):
    """Return a model of one rank's own; the threads have one random state, so none is made in them."""
    return copy.deepcopy(MODELS[which])


@pytest.mark.parametrize(("size", "items"), [*itertools.product((1, 2, 3, 5), (0, 1, 2, 3, 7))])
def test_shares_are_all_items_once_and_come_back_in_order(size, items):
    shares = [list(Ranks(rank, size).share(range(items))) for rank in range(size)]
    assert sorted(itertools.chain(*shares)) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert in_order(shares) == list(range(items))
    assert (
        together(size, lambda ranks: ranks.merge([str(one) for one in ranks.share(range(items))]))
        == [[str(one) for one in range(items)]] * size
    )


def test_what_the_first_makes_all_have_and_no_other_makes():
    made = []
    assert together(3, lambda ranks: ranks.first(lambda: made.append(ranks.rank) or "key")) == ["key"] * 3
    assert made == [0]


def score(folder, ranks=ALONE, rows=ROWS, key=None, **settings):
    return score_rows(
        a_model(0), rows, folder, key or make_key(), tokens_per_batch=40, progress=False, ranks=ranks, **settings
    )


def values(folder):
    cache = ReferenceCache.open(folder, make_key())
    return {
        digest: {name: row[name].tobytes() for name in FIELDS}
        for digest in ROWS["digest"]
        for row in [cache.lookup(digest)]
    }


@pytest.mark.parametrize("size", SIZES)
def test_ranks_score_what_one_scores(tmp_path, size):
    alone = score(tmp_path / "one")
    caches = together(size, lambda ranks: score(tmp_path / "many", ranks))
    assert [len(cache) for cache in caches] == [len(alone)] * size
    assert values(tmp_path / "many") == values(tmp_path / "one")
    shards = json.loads((tmp_path / "many" / "manifest.json").read_text())["shards"]
    assert len(shards) == min(size, 10)
    assert sum(shard["rows"] for shard in shards) == len(set(ROWS["digest"]))


def test_more_ranks_than_batches_and_shards_written_on_the_way(tmp_path):
    score(tmp_path / "one", rows=ROWS.select(range(2)))
    together(5, lambda ranks: score(tmp_path / "many", ranks, ROWS.select(range(2))))
    assert {file.name for file in (tmp_path / "many").glob("shard-*")} <= {
        f"shard-0000{n}.safetensors" for n in range(5)
    }
    together(2, lambda ranks: score(tmp_path / "many", ranks, shard_tokens=1))
    score(tmp_path / "one")
    assert values(tmp_path / "many") == values(tmp_path / "one")
    names = [shard["file"] for shard in json.loads((tmp_path / "many" / "manifest.json").read_text())["shards"]]
    assert names == sorted(set(names)) == sorted(file.name for file in (tmp_path / "many").glob("shard-*"))


def test_scored_rows_are_not_scored_again(tmp_path):
    score(tmp_path, rows=ROWS)
    before = (tmp_path / "manifest.json").read_bytes()
    together(2, lambda ranks: score(tmp_path, ranks))
    assert (tmp_path / "manifest.json").read_bytes() == before


class Fails:
    """A rank whose second forward raises."""

    def __init__(self, ranks, which):
        self.model, self.left = a_model(0), 1 if ranks.rank == which else 1000
        forward = self.model.model.forward

        def failing(*args, **given):
            self.left -= 1
            if self.left < 0:
                raise BallastError("row 3: is not finite")
            return forward(*args, **given)

        self.model.model.forward = failing


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("again", [1, 3])
def test_what_ranks_scored_before_one_failed_is_kept_by_another_number_of_them(tmp_path, monkeypatch, which, again):
    def broken(ranks):
        model = Fails(ranks, which).model
        return score_rows(model, ROWS, tmp_path / "many", make_key(), tokens_per_batch=40, progress=False, ranks=ranks)

    with pytest.raises(BallastError, match="row 3"):
        together(2, broken)
    kept = {file.name for file in (tmp_path / "many").glob("shard-*")}
    assert kept
    written = []
    add = "ballast.reference.writer.CacheWriter.add"
    from ballast.reference.writer import CacheWriter

    original = CacheWriter.add
    monkeypatch.setattr(add, lambda self, digest, found: (written.append(digest), original(self, digest, found))[1])
    together(again, lambda ranks: score(tmp_path / "many", ranks))
    assert 0 < len(written) < len(set(ROWS["digest"]))
    score(tmp_path / "one")
    assert values(tmp_path / "many") == values(tmp_path / "one")


def test_a_cache_of_another_model_ends_all_ranks(tmp_path):
    score(tmp_path)
    with pytest.raises(BallastError, match="another model"):
        together(2, lambda ranks: score(tmp_path, ranks, key=make_key(model="c" * 32)))


SEQUENCES = [ScoredSequence(tuple(row["input_ids"]), 2) for row in ROWS]


@pytest.mark.parametrize("size", SIZES)
def test_ranks_find_the_statistics_that_one_finds(size):
    def found(ranks):
        asked = sequence_statistics(a_model(0), SEQUENCES, ("logprob", "entropy"), batch_tokens=50, ranks=ranks)
        return [{name: value.tobytes() for name, value in one.items()} for one in asked]

    assert together(size, found) == [found(ALONE)] * size


@pytest.mark.parametrize("size", SIZES)
def test_ranks_give_the_answers_that_one_gives(size):
    options = GenerationOptions(max_new_tokens=6, samples=3, temperature=1.0, batch_tokens=40)

    def answers(ranks):
        return generate(a_model(0), char_tokenizer(), [f"{n}+{n * n}=" for n in range(5)], options, ranks=ranks)

    assert together(size, answers) == [answers(ALONE)] * size


def test_progress_ends_with_the_share_of_a_rank():
    def told(ranks):
        seen = []
        sequence_statistics(a_model(0), SEQUENCES, batch_tokens=50, progress=lambda *one: seen.append(one), ranks=ranks)
        return seen[-1]

    ends = together(2, told)
    assert sum(done for done, _ in ends) == len(SEQUENCES)
    assert all(done == total for done, total in ends)


SUMS = [{"prompt": f"{n}+{n}=", "answer": str(2 * n), "completion": str(2 * n)} for n in range(7)]
TASKS = {
    "greedy": {"kind": "generate", "verifier": "exact"},
    "samples": {
        "kind": "generate",
        "verifier": "expression",
        "samples": 4,
        "k": [1, 2],
        "temperature": 1.0,
        "base_kl": True,
    },
    "revised": {
        "kind": "generate",
        "verifier": "exact",
        "temperature": 1.0,
        "revise": {"how": "self-refine", "rounds": 1},
    },
    "choice": {
        "kind": "choice",
        "data": [{"question": f"{n}+1?", "options": ["1", "2", "7"], "answer": 1} for n in range(5)],
    },
    "texts": {"kind": "nll", "data": [{"text": "hello you" * n} for n in range(1, 6)], "base_kl": True},
    "demonstrations": {"kind": "nll"},
    "ready": {
        "kind": "readiness",
        "verifier": "last-number",
        "group": 2,
        "samples": 3,
        "demonstrations": SUMS,
        "forgetting": [{"text": "hello there"}, {"text": "you"}],
    },
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("size", [2, 5])
def test_ranks_measure_what_one_measures(tmp_path, name, size):
    options = {"data": SUMS, "batch_tokens": 60, "name": name, **TASKS[name]}
    if options["kind"] in ("generate", "readiness"):
        options["max_new_tokens"] = 4

    def measured(ranks):
        (found,) = evaluate(a_model(2), char_tokenizer(), [Task(**options)], base=a_model(1), ranks=ranks)
        return found.metrics, found.counts, json.dumps(found.items)

    assert together(size, measured) == [measured(ALONE)] * size


def test_the_first_writes_results_and_items(tmp_path):
    task = {"data": SUMS, "verifier": "exact", "max_new_tokens": 2, "name": "sums"}

    def run(ranks):
        place = tmp_path / str(ranks.rank)
        evaluate(a_model(0), char_tokenizer(), [task], items=place, output=place / "all.json", ranks=ranks)

    together(2, run)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {"sums.jsonl", "all.json"}
    assert not (tmp_path / "1").exists()


def fussy(completion, row):
    if completion == "slow":
        raise VerifierTimeout("too slow")
    if completion == "odd":
        raise ValueError("odd")
    return float(completion)


def test_verdicts_are_counted_over_all_ranks():
    answers = [(text, {}) for text in ("1", "odd", "0.5", "slow", "0", "odd", "1")]
    verify = Verifier("fussy", fussy)
    with pytest.warns(UserWarning, match="2 exceptions and 1 time-outs in 7 answers"):
        found = together(3, lambda ranks: score_answers(verify, answers, ranks))
    assert found == [found[0]] * 3
    assert found[0].scores == (1, 0, 0.5, 0, 0, 0, 1)
    assert (found[0].errors, found[0].timeouts) == (2, 1)


class Numbers(PartFolder):
    holds, doing, command = "numbers", "counting", "count"

    def manifest(self):
        return {"size": self.size}

    def differences(self):
        same = json.loads((self.path / "manifest.json").read_text()) == self.manifest()
        return [] if same else ["it has another size"]


def fill(folder, ranks, stops_at=None):
    with folder.filling(ranks) as parts:
        for part in parts:
            if part == stops_at:
                raise BallastError("stopped")
            folder.put(part, repr(folder.rows(part)).encode())
        ranks.gather(None)
        return parts


def test_ranks_fill_parts_of_their_own_and_others_go_on(tmp_path):
    folder = Numbers(tmp_path / "many", 64 * 7 - 5)
    with pytest.raises(BallastError, match="stopped"):
        together(2, lambda ranks: fill(folder, ranks, stops_at=3))
    done = set(range(7)) - set(folder.missing())
    assert 3 not in done
    assert 1 in done
    parts = together(3, lambda ranks: fill(folder, ranks))
    assert sorted(itertools.chain(*parts)) == sorted(set(range(7)) - done)
    fill(other := Numbers(tmp_path / "one", folder.size), ALONE)
    assert [file.read_bytes() for file in folder.files()] == [file.read_bytes() for file in other.files()]


def test_a_folder_of_other_settings_ends_all_ranks(tmp_path):
    fill(Numbers(tmp_path, 100), ALONE)
    with pytest.raises(BallastError, match="another size"):
        together(2, lambda ranks: fill(Numbers(tmp_path, 101), ranks))


def test_another_run_is_kept_out_while_ranks_fill(tmp_path):
    def work(ranks):
        with Numbers(tmp_path, 100).filling(ranks):
            refused = None
            if not ranks.main:
                with pytest.raises(BallastError, match="another process is counting") as caught:
                    fill(Numbers(tmp_path, 100), ALONE)
                refused = str(caught.value)
            ranks.gather(None)
            return refused

    assert "another process" in together(2, work)[1]


def test_a_rank_that_is_lost_is_told_from_what_made_it_end():
    def work(ranks):
        if ranks.rank == 1:
            raise BallastError("mine")
        with pytest.raises(Lost):
            ranks.gather(np.zeros(2))
        raise Lost("noticed")

    with pytest.raises(BallastError, match="mine"):
        together(3, work)
