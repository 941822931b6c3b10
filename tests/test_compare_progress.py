"""What a comparison says while it runs: counts, the time left, a table on a terminal and lines elsewhere."""

import io
import threading

import pytest
import rich.live
from rich.console import Console

from ballast.compare.jobs import Job, base_rl
from ballast.compare.progress import Board
from compare_tools import job

RUNS = [job("train", label, 1e-3, seed) for seed in (5, 6) for label in ("sft", "dft")]
TUNE = job("train", "sft", 1e-3, 1005, "tuning")
measuring_job = Job(kind="base", cell=base_rl(5).cell)
RL, BASE_RL = job("rl", "sft", 1e-3, 5), base_rl(5)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def board(totals, done=None, **options):
    options = {"say": lambda line: None, "score": lambda job: "fine", **options}
    return Board(totals, done or {}, **options)


def timed(shown, clock, job, seconds):
    shown.began(job)
    clock.now += seconds
    shown.ended(job)


def test_lines_of_several_threads_are_said_one_at_a_time(clock):
    """Whoever says a line holds the lock that the others need, as they say theirs."""
    inside, together = [], []

    def say(line):
        inside.append(line)
        threading.Event().wait(0.01)
        together.append(len(inside))
        inside.clear()

    shown = board({("sft", "runs"): 8}, say=say, clock=clock)
    speakers = [
        lambda: shown.began(measuring_job),
        lambda: shown.said("a line"),
        lambda: shown.failed(RUNS[0], "no luck"),
        lambda: shown.again(RUNS[2], "a worker died"),
        lambda: shown.chose("sft", 1e-3, "the best"),
    ]
    threads = [threading.Thread(target=speak) for speak in speakers * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 15


def test_lines_count_what_is_done_and_foretell(clock):
    lines = []
    totals = {("sft", "runs"): 2, ("dft", "runs"): 2, ("sft", "rl"): 2, ("dft", "rl"): 1}
    shown = board(totals, {("sft", "runs"): 1}, say=lines.append, clock=clock)
    assert shown.left() is None
    shown.chose("sft", 1e-3, "the best of all")
    timed(shown, clock, RUNS[0], 10.0)
    # One kind has been timed; the others are taken to be like it, and that is said.
    assert shown.left() == pytest.approx(10.0 * 5)
    shown.began(RUNS[1])
    clock.now += 4.0
    assert shown.left() == pytest.approx(10.0 * 5 - 4)
    clock.now += 26.0
    shown.ended(RUNS[1])
    assert shown.left() == pytest.approx(30.0 + 3 * (10 + 30) / 2)
    shown.began(RUNS[3])
    shown.failed(RUNS[3], "no luck")
    # What should have followed it does not come either.
    assert shown.left() == pytest.approx(2 * (10 + 30) / 2)
    assert list(map(str, lines)) == [
        "1/7 sft: learning rate 0.001, the best of all",
        "2/7 sft-lr0.001-s5: fine (10 s; about 50 s left (RL untimed))",
        "3/7 dft-lr0.001-s5: fine (30 s; about 1 min 30 s left (RL untimed))",
        "5/7 dft-lr0.001-s6: failed: no luck",
    ]


def test_a_time_that_ran_over_is_no_time_saved(clock):
    shown = board({("sft", "runs"): 2, ("sft", "rl"): 2}, clock=clock)
    timed(shown, clock, RUNS[0], 10.0)
    shown.began(RUNS[2])
    clock.now += 60.0
    assert shown.left() == pytest.approx(20.0)
    assert shown.left_text() == "about 20 s left (RL untimed)"


def test_several_at_a_time_share_what_can_be_shared(clock):
    shown = board({("sft", "runs"): 2, ("dft", "runs"): 2}, jobs=4, clock=clock)
    timed(shown, clock, RUNS[0], 10.0)
    # Three are left for four processes, so each takes its full time.
    assert shown.left() == pytest.approx(10.0)
    shown.began(RUNS[1])
    shown.began(RUNS[2])
    clock.now += 6.0
    assert shown.left() == pytest.approx(10.0)
    shown.began(RUNS[3])
    clock.now += 1.0
    assert shown.left() == pytest.approx(9.0)
    many = board({("sft", "runs"): 9}, jobs=4, clock=clock)
    timed(many, clock, RUNS[0], 10.0)
    assert many.left() == pytest.approx(10.0 * 8 / 4)


def test_what_an_earlier_process_took_counts_until_the_like_is_timed(clock):
    totals = {("sft", "tuning"): 2, ("sft", "runs"): 2, ("sft", "rl"): 2}
    took = {("sft", "tuning"): [4.0, 6.0], ("sft", "runs"): [20.0], ("sft", "rl"): []}
    done = {("sft", "tuning"): 2, ("sft", "runs"): 1}
    shown = board(totals, done, took=took, clock=clock)
    assert shown.left() == pytest.approx(20 + 2 * (4 + 6 + 20) / 3)
    assert shown.left_text().endswith("(RL untimed)")
    timed(shown, clock, RUNS[0], 50.0)
    assert shown.left() == pytest.approx(2 * (4 + 6 + 50) / 3)
    timed(shown, clock, RL, 7.0)
    assert (shown.left(), shown.left_text()) == (pytest.approx(7.0), "about 7 s left")


def test_a_row_is_taken_to_be_like_others_at_the_same_kind_of_work(clock):
    shown = board({("sft", "tuning"): 1, ("sft", "runs"): 1, ("dft", "runs"): 2}, clock=clock)
    timed(shown, clock, TUNE, 100.0)
    timed(shown, clock, RUNS[0], 10.0)
    assert shown.left() == pytest.approx(2 * 10.0)


def test_rl_that_breaks_off_takes_nothing_with_it(clock):
    shown = board({("sft", "runs"): 2, ("sft", "rl"): 2, ("base", "rl"): 2}, clock=clock)
    timed(shown, clock, RUNS[0], 10.0)
    shown.began(RL)
    shown.failed(RL, "no luck")
    shown.failed(BASE_RL, "no luck")
    assert shown.broken == {("sft", "rl"): 1, ("base", "rl"): 1}
    assert shown.left() == pytest.approx(3 * 10.0)


def test_nothing_is_left_in_the_end(clock):
    shown = board({("sft", "runs"): 1, ("base", "rl"): 1}, clock=clock)
    timed(shown, clock, RUNS[0], 3723.0)
    assert shown.left_text() == "about 1 h 02 min left (RL untimed)"
    timed(shown, clock, BASE_RL, 1.0)
    assert shown.left_text() == "about 0 s left"


def test_what_errors_say_is_no_markup():
    out = Console(file=io.StringIO(), width=80, soft_wrap=True)
    shown = board({("sft", "runs"): 2}, say=out.print, score=lambda job: "[/b] of [red]all[/red] " + "long " * 30)
    shown.failed(RUNS[0], "no [/such] thing [bold]at[/bold] all")
    shown.began(RUNS[2])
    shown.ended(RUNS[2])
    first, second = out.file.getvalue().splitlines()
    assert first == "1/2 sft-lr0.001-s5: failed: no [/such] thing [bold]at[/bold] all"
    assert "[/b] of [red]all[/red] long" in second


@pytest.fixture
def terminal():
    return Console(width=100, record=True, force_terminal=True, file=io.StringIO())


def test_on_a_terminal_a_table_shows_every_row_instead_of_lines(terminal, clock):
    said = []
    totals = {("sft", "tuning"): 1, ("sft", "runs"): 2, ("dft", "runs"): 2, ("base", "rl"): 1}
    shown = board(totals, {("sft", "tuning"): 1}, say=said.append, score=lambda job: "0.5 [of all]", clock=clock)
    shown.chose("sft", 3e-4, "")
    with shown.shown(terminal):
        timed(shown, clock, RUNS[0], 30.0)
        shown.failed(RUNS[1], "out of luck")
        shown.began(BASE_RL)
        clock.now += 2.0
        terminal.print(shown.view())
    text = terminal.export_text()
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()[:1]}
    assert rows["sft"] == ["sft", "1/1", "1/2", "0.0003", "0.5", "[of", "all]"]
    assert rows["dft"] == ["dft", "0/2", "(1", "failed)", "failed:", "out", "of", "luck"]
    assert rows["base"] == ["base", "0/1"]
    for part in ("\n3 of 6 runs, 32 s so far, about 1 min 28 s left (RL untimed)", "now: base-s5, RL (2 s)"):
        assert part in text
    assert said == []


def test_lines_are_for_where_there_is_no_terminal(clock):
    said = []
    shown = board({("sft", "runs"): 2}, say=said.append, clock=clock)
    with shown.shown(Console(file=io.StringIO())), shown.shown(None):
        timed(shown, clock, RUNS[0], 1.0)
    assert len(said) == 1


def test_what_happens_never_waits_for_the_drawing(terminal, monkeypatch):
    """The drawing holds a lock of its own while it asks the board: were that wanted here, each would wait for both."""
    drawings = []

    class Kept(rich.live.Live):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            drawings.append(self)

    monkeypatch.setattr(rich.live, "Live", Kept)
    shown = board({("sft", "runs"): 2})
    with shown.shown(terminal):
        thread = threading.Thread(target=lambda: [shown.began(RUNS[0]), shown.ended(RUNS[0])], daemon=True)
        with drawings[0]._lock:
            thread.start()
            thread.join(10)
            assert not thread.is_alive()
