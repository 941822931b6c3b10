"""The lake: gymnasium's transitions, two trajectories, the four losses, pairing, and the command."""

import importlib
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("gymnasium")
pytest.importorskip("matplotlib")

import torch
from scipy.stats import ttest_rel

import ballast
from ballast.cli import app
from ballast.errors import BallastError
from ballast.lab.frozen_lake import experiment as frozen_lake
from ballast.lab.frozen_lake import figures as frozen_lake_figures
from ballast.lab.frozen_lake.map import ACTIONS, MAPS, Lake, environment, lake
from ballast.lab.frozen_lake.training import (
    METHODS,
    OPTIMISERS,
    VARIED,
    Policies,
    action_logprobs,
    distance,
    dpo_loss,
    encode,
    fresh_policies,
    objective_loss,
    orpo_loss,
    pretrain,
    residual_inputs,
    train,
    way_probability,
)

STATES = 16
names = pytest.mark.parametrize("name", list(MAPS))


@pytest.fixture(scope="module")
def fork() -> Lake:
    return lake("fork-1")


@pytest.fixture(scope="module")
def fresh() -> Policies:
    return fresh_policies(0, 3, STATES)


@pytest.fixture(scope="module")
def pretrained(fork, fresh) -> Policies:
    return pretrain(fork, fresh, 0.5)


# The map.


@names
def test_transitions_are_those_of_the_game(name):
    place, game = lake(name), environment(name)
    for state in place.deciding:
        for action in range(len(ACTIONS)):
            game.reset(seed=0)
            game.unwrapped.s = state
            after, reward, ended, _, _ = game.step(action)
            assert place.next_state[state][action] == after
            assert bool(ended) == (place.cells[after] in "GH")
            assert reward == (place.cells[after] == "G")


@names
def test_two_trajectories_reach_the_goal_and_no_third_does(name):
    place, game = lake(name), environment(name)
    for way, length in ((place.optimal, 5), (place.suboptimal, 7)):
        assert len(way) == len(way.states) == length
        state, _ = game.reset(seed=0)
        for expected, action in zip(way.states, way.actions, strict=True):
            assert state == expected
            state, reward, ended, _, _ = game.step(action)
        assert reward == 1
        assert ended
    # Counted apart from the search: walks of at most 7 steps that enter no cell twice, all 4^7 of them tried.
    found = set()
    for walk in np.ndindex(*(4,) * 7):
        states, taken = [0], []
        for action in walk:
            after = place.next_state[states[-1]][action]
            if after in states or place.cells[after] == "H":
                break
            states, taken = [*states, after], [*taken, action]
            if place.cells[after] == "G":
                found.add(tuple(taken))
                break
    assert found == {place.optimal.actions, place.suboptimal.actions}
    assert set(place.deciding) == {*place.optimal.states, *place.suboptimal.states}


def test_ways_part_at_the_step_in_the_name():
    for name, step in (("fork-1", 0), ("fork-2", 1)):
        place = lake(name)
        assert place.optimal.actions[:step] == place.suboptimal.actions[:step]
        assert place.optimal.actions[step] != place.suboptimal.actions[step]


@names
def test_the_optimal_policy_takes_a_shortest_way_from_every_state(name):
    place = lake(name)
    policy_SA = place.optimal_policy()
    assert policy_SA[list(place.deciding)].sum(1) == pytest.approx(1)
    assert policy_SA.sum() == pytest.approx(len(place.deciding))
    assert [policy_SA[state].argmax() for state in place.optimal.states] == list(place.optimal.actions)

    def steps(state: int, budget: int) -> float:
        """Steps to the goal by trying everything, apart from the code's own count."""
        if place.cells[state] == "G":
            return 0
        if place.cells[state] == "H" or budget == 0:
            return math.inf
        return 1 + min(steps(after, budget - 1) for after in set(place.next_state[state]) - {state})

    for state in place.deciding:
        ways = [1 + steps(place.next_state[state][action], 6) for action in range(4)]
        best = [action for action in range(4) if ways[action] == min(ways)]
        assert sorted(np.flatnonzero(policy_SA[state])) == best
        assert policy_SA[state, best] == pytest.approx(1 / len(best))


# The losses.


def _naive(logprobs: list[float]) -> float:
    total = 1.0
    for value in logprobs:
        total *= math.exp(value)
    return total


CHOSEN, REJECTED = [-0.2, -1.1, -0.5], [-0.9, -0.3, -1.7, -0.1]
OLD_CHOSEN, OLD_REJECTED = [-0.4, -0.8, -0.6], [-0.2, -0.7, -1.5, -0.3]


def test_dpo_is_its_published_formula():
    def gained(now: list[float], old: list[float]) -> float:
        return math.log(_naive(now) / _naive(old))

    sums = [torch.tensor([sum(way)], dtype=torch.float64) for way in (CHOSEN, REJECTED, OLD_CHOSEN, OLD_REJECTED)]
    for beta in (0.1, 2.0):
        margin = beta * (gained(CHOSEN, OLD_CHOSEN) - gained(REJECTED, OLD_REJECTED))
        expected = -math.log(1 / (1 + math.exp(-margin)))
        assert dpo_loss(*sums, beta).item() == pytest.approx(expected, rel=1e-12)
    assert dpo_loss(*sums).item() == dpo_loss(*sums, 0.1).item()


def test_orpo_is_its_published_formula():
    def odds(way: list[float]) -> float:
        mean = _naive(way) ** (1 / len(way))
        return mean / (1 - mean)

    chosen, rejected = (torch.tensor([way], dtype=torch.float64) for way in (CHOSEN, REJECTED))
    for weight in (0.1, 1.0):
        ratio = math.log(odds(CHOSEN) / odds(REJECTED))
        expected = -sum(CHOSEN) / len(CHOSEN) - weight * math.log(1 / (1 + math.exp(-ratio)))
        assert orpo_loss(chosen, rejected, weight).item() == pytest.approx(expected, rel=1e-12)
    assert orpo_loss(chosen, rejected).item() == orpo_loss(chosen, rejected, 0.1).item()


def test_dpo_starts_at_log_2_because_its_reference_is_the_start(fork, pretrained):
    loss = METHODS["dpo"](fork, pretrained, {})
    assert loss(pretrained.copy(), 0.0).tolist() == pytest.approx([math.log(2)] * 3)


def test_sft_is_the_mean_over_the_steps(fork, pretrained):
    matrix, ways = pretrained.matrix(), fork.optimal
    loss = METHODS["sft"](fork, pretrained, {})(pretrained, 0.0)
    for run in range(3):
        naive = -np.mean([math.log(matrix[run, s, a]) for s, a in zip(ways.states, ways.actions, strict=True)])
        assert loss[run].item() == pytest.approx(naive, rel=1e-12)


def test_ift_takes_the_objective_of_the_library(fork):
    objective = ballast.objective("ift")
    logprob = torch.tensor([CHOSEN, [-0.1, -0.6, -2.0]], dtype=torch.float64)
    # Relation propagation by hand: c_t = Σ_{i≥t} γ^{i−t}·nll_i, normalised to a mean of one over the sequence.
    for row, got in zip(logprob.tolist(), objective_loss(objective, logprob).tolist(), strict=True):
        nll = [-value for value in row]
        ahead = [sum(objective.gamma ** (i - t) * nll[i] for i in range(t, 3)) for t in range(3)]
        expected = sum(loss * c * 3 / sum(ahead) for loss, c in zip(nll, ahead, strict=True)) / 3
        assert got == pytest.approx(expected, rel=1e-9)


def test_residual_inputs_mix_in_the_states_of_greedy_actions(fork):
    # A policy that always goes right: the start leads to state 1, the states 4 and 8 into holes, 12 to 13.
    greedy = Policies(
        torch.zeros(1, STATES, 2).double(),
        torch.zeros(1, 1, 2).double(),
        torch.zeros(1, 2, 4).double(),
        torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]).double(),
    )
    assert fork.optimal.states == (0, 4, 8, 12, 13)
    inputs = residual_inputs(ballast.objective("ift", lam=0.3), greedy, fork, 0.0)
    assert inputs.shape == (1, 5, STATES)
    expected = 0.7 * encode(fork.optimal, STATES)[0] + 0.3 * encode([0, 1, 5, 9, 13], STATES)[0]
    assert torch.allclose(inputs[0], expected)


def test_ift_without_residual_and_propagation_is_sft(fork, fresh):
    ours = train("ift", fork, fresh, steps=30, options={"lam": 0.0, "gamma": 0.0})
    theirs = train("sft", fork, fresh, steps=30)
    for curve in ("on_way", "on_map"):
        assert getattr(ours, curve).tolist() == getattr(theirs, curve).tolist()
    for options in ({"lam": 0.0}, {"gamma": 0.0}):
        other = train("ift", fork, fresh, steps=30, options=options)
        assert (other.on_map - theirs.on_map).abs().max() > 1e-6


def test_the_residual_acts_in_the_steps_that_are_counted(fork, fresh):
    plain, mixed = (train("ift", fork, fresh, steps=400, options={"lam": lam, "gamma": 0.0}) for lam in (0.0, 0.5))
    assert ((mixed.strayed > 0) & (mixed.strayed < 200)).all()
    assert not torch.equal(plain.on_map[1], mixed.on_map[1])
    # A start whose greedy actions are right except in the last state, whose action leads to no further input.
    sure = Policies(*(tensor.clone() for tensor in fresh.tensors))
    wrong_at_the_end = (*fork.optimal.actions[:-1], 3)
    for action in range(4):
        units = slice(10 * action, 10 * action + 10)
        sure.weight_out_RDA[:, units, action] += 3
        for state in np.array(fork.optimal.states)[np.array(wrong_at_the_end) == action]:
            sure.weight_in_RSD[:, state, units] += 3
    plain, mixed = (train("ift", fork, sure, steps=20, options={"lam": lam, "gamma": 0.0}) for lam in (0.0, 0.9))
    assert mixed.strayed.tolist() == [0, 0, 0]
    assert torch.equal(plain.on_map, mixed.on_map)


# The policies and the training.


def test_policies_are_two_layers_of_pytorch(fresh):
    for run in range(fresh.runs):
        first, second = torch.nn.Linear(STATES, 64).double(), torch.nn.Linear(64, 4).double()
        weights = [tensor[run] for tensor in fresh.tensors]
        with torch.no_grad():
            for layer, weight, bias in ((first, *weights[:2]), (second, *weights[2:])):
                # A draw within PyTorch's own bounds that also comes near them.
                bound = layer.in_features**-0.5
                assert 0.95 * bound < weight.abs().max() < bound
                assert bias.abs().max() < bound
                layer.weight.copy_(weight.T)
                layer.bias.copy_(bias[0])
            expected = torch.softmax(second(torch.relu(first(torch.eye(STATES).double()))), -1)
        assert torch.allclose(fresh.matrix()[run], expected)


def test_a_run_depends_on_its_own_seed_alone(fork, fresh):
    assert torch.equal(fresh_policies(0, 5, STATES).weight_in_RSD[:3], fresh.weight_in_RSD)
    assert not torch.equal(fresh.weight_in_RSD[0], fresh.weight_in_RSD[1])
    assert not torch.equal(fresh_policies(1, 3, STATES).weight_in_RSD, fresh.weight_in_RSD)
    alone = Policies(*(tensor[:1] for tensor in fresh.tensors))
    for method in METHODS:
        together = train(method, fork, fresh, steps=5).on_map[:, 0]
        assert torch.allclose(train(method, fork, alone, steps=5).on_map[:, 0], together, rtol=1e-12)


def test_pretraining_stops_where_both_ways_together_are_known(fork, pretrained):
    ways = [way_probability(pretrained.matrix(), way) for way in (fork.optimal, fork.suboptimal)]
    assert (ways[0] + ways[1] >= 0.5).all()
    assert (ways[0] + ways[1] < 0.53).all()
    assert min(way.min() for way in ways) > 0.05


def test_the_share_of_pretraining_decides_which_way_is_preferred(fork, fresh):
    biased = pretrain(fork, fresh, 0.25).matrix()
    assert (way_probability(biased, fork.suboptimal) > 2 * way_probability(biased, fork.optimal)).all()
    assert (biased[:, 0].argmax(-1) == fork.suboptimal.actions[0]).all()


def test_each_run_is_pretrained_to_its_own_step(fork, fresh, pretrained):
    for run in range(fresh.runs):
        alone = pretrain(fork, Policies(*(tensor[run : run + 1] for tensor in fresh.tensors)), 0.5)
        assert torch.allclose(alone.matrix()[0], pretrained.matrix()[run], rtol=1e-9)


def test_way_probability_is_the_product_along_the_way(fork, pretrained):
    logprob = action_logprobs(pretrained, fork.suboptimal).sum(1)
    assert torch.allclose(way_probability(pretrained.matrix(), fork.suboptimal), logprob.exp())


def test_distance_is_the_mean_over_states_and_actions():
    matrix, optimal = torch.full((1, 3, 4), 0.25).double(), torch.zeros(3, 4).double()
    optimal[0, 1] = optimal[2, 3] = 1
    assert distance(matrix, optimal, (0, 2)).item() == pytest.approx((0.75**2 + 3 * 0.25**2) / 4)
    assert distance(matrix, optimal, (1,)).item() == pytest.approx(0.25**2)


@pytest.mark.parametrize("method", ["sft", "orpo", "ift"])
def test_the_distance_falls(method, fork, pretrained):
    runs = train(method, fork, pretrained, steps=60)
    assert runs.on_way.shape == runs.on_map.shape == (61, 3)
    assert (runs.on_way[-1] < 0.2 * runs.on_way[0]).all()
    assert (runs.on_way[1:] < runs.on_way[:-1]).all()
    assert torch.equal(runs.matrix, runs.matrix.clamp(0, 1))
    optimal_SA = torch.from_numpy(fork.optimal_policy())
    assert torch.equal(runs.on_map[-1], distance(runs.matrix, optimal_SA, fork.deciding))


def test_dpo_parts_the_two_ways_and_takes_the_optimal_one_down(fork, pretrained):
    runs = train("dpo", fork, pretrained, steps=100)
    before, after = pretrained.matrix(), runs.matrix
    assert (way_probability(after, fork.suboptimal) < 0.01 * way_probability(before, fork.suboptimal)).all()
    assert way_probability(after, fork.optimal).mean() < way_probability(before, fork.optimal).mean()


def test_training_leaves_the_start_and_heeds_rate_and_optimiser(fork, pretrained):
    before = [tensor.clone() for tensor in pretrained.tensors]
    slow, fast = (train("sft", fork, pretrained, steps=10, rate=rate) for rate in (1e-4, 1e-3))
    assert all(torch.equal(old, new) for old, new in zip(before, pretrained.tensors, strict=True))
    assert (fast.on_way[-1] < slow.on_way[-1]).all()
    assert not torch.equal(train("sft", fork, pretrained, steps=10, optimiser="sgd").matrix, fast.matrix)
    assert set(OPTIMISERS) == {optimiser for optimiser, _ in frozen_lake.RATES}


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lake") / "out"
    done = CliRunner().invoke(app, ["lab", "frozen-lake", "--seeds", "2", "--steps", "4", "--output", str(folder)])
    assert done.exit_code == 0, done.output
    assert "dpo − ift" in done.output.replace("\n", " ") or "dpo −" in done.output
    assert "fork-2, from fresh weights" in done.output
    assert "ift − sft: trajectory " in done.output
    return folder


def _read(folder) -> dict:
    return json.loads((folder / frozen_lake.RESULTS).read_text())


def test_the_command_writes_figures_and_results(folder):
    for name in (frozen_lake.CURVES, frozen_lake.POLICIES):
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert 20_000 < len(content) < 200_000
    results = _read(folder)
    assert results["settings"]["seeds"] == 2
    assert results["settings"]["steps"] == 4
    assert set(results["versions"]) == set(frozen_lake.PACKAGES)
    places = [(entry["map"], entry["start"]) for entry in results["experiments"]]
    assert places == [(name, start) for name in MAPS for start in ("fresh", "pretrained", "biased")]
    assert set(results["experiments"][0]["rows"]) == {"start", *METHODS}
    assert len(results["experiments"][0]["rows"]["ift"]["on_map"]["seeds"]) == 2


def test_a_seed_gives_the_same_files_and_another_gives_others(folder, tmp_path, monkeypatch):
    for seed in (0, 1):
        frozen_lake.run_frozen_lake(seeds=2, steps=4, output=tmp_path / str(seed), seed=seed, say=lambda _: None)
        # The second run is compared by its numbers, so that its figures would be drawn for nothing.
        monkeypatch.setattr(frozen_lake_figures, "draw_curves", lambda *_: None)
        monkeypatch.setattr(frozen_lake_figures, "draw_policies", lambda *_: None)
    for name in (frozen_lake.RESULTS, frozen_lake.CURVES, frozen_lake.POLICIES):
        assert (tmp_path / "0" / name).read_bytes() == (folder / name).read_bytes()
    assert _read(tmp_path / "1")["experiments"] != _read(folder)["experiments"]


def test_varied_settings_contain_the_main_run(folder):
    results = _read(folder)
    main = next(e for e in results["experiments"] if (e["map"], e["start"]) == VARIED)["rows"]
    settings = results["settings"]
    for entry in results["sensitivity"]["rates"]:
        if (entry["optimiser"], entry["rate"]) == (settings["optimiser"], settings["rate"]):
            assert entry["on_map"]["high"] == main[entry["method"]]["on_map"]["high"]
    for entry in results["sensitivity"]["rates"]:
        assert (entry["minus_sft"]["on_map"] == {"mean": 0, "low": 0, "high": 0}) == (entry["method"] == "sft")
    default = next(e for e in results["sensitivity"]["options"] if e["options"] == {"lam": 0.2, "gamma": 0.95})
    assert default["on_map"]["high"] == main["ift"]["on_map"]["high"]
    plain = next(e for e in results["sensitivity"]["options"] if e["options"] == {"lam": 0.0, "gamma": 0.0})
    assert plain["minus_sft"]["on_map"] == {"mean": 0, "low": 0, "high": 0}


def test_the_intervals_are_those_of_paired_t_tests():
    ours, theirs = [1.0, 2.5, 2.0, 4.0], [1.5, 2.0, 3.5, 4.5]
    expected = ttest_rel(ours, theirs).confidence_interval(0.95)
    found = frozen_lake.difference(ours, theirs)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["mean"] == pytest.approx(-0.5)


def test_the_reported_order_holds_only_where_every_interval_is_below_zero():
    def rows(**means: float) -> dict:
        seeds = {name: [mean - 0.01, mean, mean + 0.02] for name, mean in means.items()}
        return {name: {"on_way": {"seeds": values}, "on_map": {"seeds": values}} for name, values in seeds.items()}

    as_reported = frozen_lake._order(rows(dpo=1, ift=2, orpo=3, sft=4))
    assert as_reported["reported_order_seen"] == {"on_way": True, "on_map": True}
    assert frozen_lake._order(rows(dpo=1, ift=3, orpo=2, sft=4))["reported_order_seen"]["on_map"] is False
    assert frozen_lake._order(rows(dpo=1, ift=2, orpo=3, sft=3))["reported_order_seen"]["on_map"] is False
    # Smaller on average, but not in every seed.
    unsure = rows(dpo=1, ift=2, orpo=3, sft=4)
    unsure["dpo"]["on_map"] = {"seeds": [1.0, 1.0, 3.5]}
    assert frozen_lake._order(unsure)["reported_order_seen"] == {"on_way": True, "on_map": False}


def test_a_folder_in_use_is_refused_before_any_work(tmp_path):
    (tmp_path / "there").write_text("")
    done = CliRunner().invoke(app, ["lab", "frozen-lake", "--output", str(tmp_path)])
    assert done.exit_code == 2
    assert "not an empty folder" in done.output + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("package", frozen_lake.EXTRAS)
def test_a_missing_extra_is_named_in_one_line(package, tmp_path, monkeypatch):
    def absent(name: str):
        if name == package:
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr(frozen_lake, "import_module", absent)
    with pytest.raises(BallastError) as error:
        frozen_lake.run_frozen_lake(seeds=2, steps=1, output=tmp_path / "new")
    assert "pip install 'ballast-ft[lab]'" in str(error.value)
    assert package in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("options", "named"), [({"seeds": 1}, "--seeds 1"), ({"steps": 0}, "--steps 0")])
def test_numbers_out_of_range_are_refused(options, named, tmp_path):
    with pytest.raises(BallastError, match=named):
        frozen_lake.run_frozen_lake(output=tmp_path / "new", **options)
