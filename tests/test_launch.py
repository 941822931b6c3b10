"""Several processes for one command: which commands take them, how --nproc starts them, how they end."""

from __future__ import annotations

import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ballast import ranks
from ballast.cli import app
from ballast.cli.launch import own_arguments
from ballast.errors import BallastError, Lost

SHARED = {"score", "advise", "sample", "revise", "train", "rl", "evaluate"}
"""Commands that train on ranks, or split their work over them."""
ALONE = {"init", "try", "objectives", "reward", "rounds", "merge", "compare", "report", "inspect", "quickstart", "lab"}
WORDS = {"merge": ["folder", "--output", "merged"], "report": ["folder"], "lab": ["frozen-lake"]}


def invoke(*words):
    return CliRunner().invoke(app, list(words))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "TORCHELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def launched(monkeypatch):
    """What torchrun was asked for; nothing is started."""
    asked = []
    monkeypatch.setattr("torch.distributed.run.run", asked.append)
    return asked


def be_rank(monkeypatch, rank=0, size=2, **more):
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, **more}.items():
        monkeypatch.setenv(name, str(value))


def devices(monkeypatch, count):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: count)


def reads(monkeypatch, error):
    """Let reading the recipe, the first thing that a command does, end in an error."""

    def fail(*given, **more):
        raise error

    monkeypatch.setattr("ballast.config.recipe.load_recipe", fail)


def refused(*words):
    done = invoke(*words)
    assert done.exit_code == 2, (done.output, done.exception)
    (line,) = done.stderr.splitlines()
    return line


def test_every_command_takes_several_processes_or_refuses_them():
    assert set(get_command(app).commands) == SHARED | ALONE


@pytest.mark.parametrize("name", sorted(ALONE))
def test_a_command_for_one_process_refuses_more(monkeypatch, tmp_path, name):
    be_rank(monkeypatch)
    assert f"`ballast {name}` works in one process; 2 were started" in refused(name, *WORDS.get(name, []))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", sorted(SHARED))
def test_a_command_that_shares_goes_on_as_a_rank(monkeypatch, name):
    be_rank(monkeypatch)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(
        "ballast.config.recipe.load_recipe", lambda *_, **__: (_ for _ in ()).throw(BallastError("read"))
    )
    assert refused(name, "recipe.yaml") == "read"


@pytest.mark.parametrize("name", sorted(SHARED))
def test_nproc_starts_the_same_command(monkeypatch, launched, name):
    monkeypatch.setattr(sys, "argv", ["ballast", name, "a.yaml", "--nproc", "3", "seed=1"])
    assert invoke(name, "a.yaml", "--nproc", "3", "seed=1").exit_code == 0
    (args,) = launched
    assert (args.nproc_per_node, args.module, args.training_script) == ("3", True, "ballast.cli")
    assert args.training_script_args == [name, "a.yaml", "seed=1"]
    assert args.standalone


def test_one_process_is_started_by_nobody(launched):
    assert "a.yaml" in refused("score", "a.yaml", "--nproc", "1")
    assert not launched


@pytest.mark.parametrize(("cores", "processes", "threads"), [(16, 2, "8"), (2, 3, "1"), (None, 2, "1")])
def test_processes_on_cpus_meet_and_share_the_cores(monkeypatch, launched, cores, processes, threads):
    import os

    devices(monkeypatch, 0)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    invoke("score", "a.yaml", "--nproc", str(processes))
    assert (os.environ["OMP_NUM_THREADS"], os.environ["ACCELERATE_USE_CPU"]) == (threads, "true")


def test_what_the_user_set_stays(monkeypatch, launched):
    import os

    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("TORCHELASTIC_SHUTDOWN_TIMEOUT", "7")
    invoke("score", "a.yaml", "--nproc", "2")
    assert (os.environ["OMP_NUM_THREADS"], os.environ["TORCHELASTIC_SHUTDOWN_TIMEOUT"]) == ("5", "7")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["train", "a.yaml"], ["train", "a.yaml"]),
        (["train", "--nproc=2", "a.yaml", "--resume"], ["train", "a.yaml", "--resume"]),
        (["--debug", "train", "--launch-config", "--nproc", "--nproc", "2"], ["--debug", "train"]),
        (["train", "output=--nproc", "x"], ["train", "output=--nproc", "x"]),
    ],
)
def test_the_ranks_are_not_told_to_start_more(given, kept):
    assert own_arguments(given) == kept


def ends(monkeypatch, error):
    def run(args):
        raise error

    monkeypatch.setattr("torch.distributed.run.run", run)
    return invoke("train", "a.yaml", "--nproc", "2")


def child(exitcode, rank=1):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    return ChildFailedError("ballast", {rank: ProcessFailure(rank, 1, exitcode, "")})


@pytest.mark.parametrize("code", [1, 2, 130, 143])
def test_the_exit_code_is_that_of_the_rank_and_its_line_stands_alone(monkeypatch, code):
    done = ends(monkeypatch, child(code))
    assert (done.exit_code, done.output) == (code, "")


def test_a_rank_that_was_killed_is_told_in_one_line(monkeypatch):
    done = ends(monkeypatch, child(-signal.SIGKILL))
    assert done.exit_code == 137
    (line,) = done.stderr.splitlines()
    assert line.startswith("rank 1 was ended by SIGKILL (the system is out of memory?), and the others with it")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_is_the_exit_code(monkeypatch, sent):
    from torch.distributed.elastic.multiprocessing.api import SignalException

    assert ends(monkeypatch, SignalException("stopped", sent)).exit_code == 128 + sent


def test_more_processes_are_not_started_by_a_rank(monkeypatch, launched):
    be_rank(monkeypatch)
    assert "2 processes were started already" in refused("train", "a.yaml", "--nproc", "2")
    Path("a.yaml").write_text("")
    assert "2 processes were started already" in refused("train", "--launch-config", "a.yaml")
    assert not launched


def test_no_processes_at_all_are_refused():
    assert invoke("train", "a.yaml", "--nproc", "0").exit_code == 2


def test_more_processes_than_devices_are_refused(monkeypatch, launched):
    devices(monkeypatch, 2)
    assert "--nproc 3: this machine has 2 devices" in refused("train", "a.yaml", "--nproc", "3")
    assert not launched
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert invoke("train", "a.yaml", "--nproc", "3").exit_code == 0


def test_a_rank_takes_the_device_of_its_number(monkeypatch):
    taken = []
    monkeypatch.setattr("torch.accelerator.set_device_index", taken.append)
    devices(monkeypatch, 2)
    ranks.take_device()
    be_rank(monkeypatch, rank=1)
    ranks.take_device()
    assert taken == [1]
    be_rank(monkeypatch, rank=2, size=4, LOCAL_WORLD_SIZE=4)
    assert "4 processes were started on a machine with 2 devices" in refused("evaluate")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    ranks.take_device()
    assert taken == [1]


CONFIG = "compute_environment: LOCAL_MACHINE\nnum_machines: 1\nmixed_precision: 'no'\nuse_cpu: false\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("- a\n- b\n", "cannot be read as a file of `accelerate config`"),
        ("a: [1\n", "cannot be read as a file of `accelerate config`"),
        (CONFIG + "distributed_type: FSDP\nnum_proceses: 2\n", "num_proceses"),
        (CONFIG + "distributed_type: 'NO'\nnum_processes: 2\n", "distributed_type NO starts one process"),
        (CONFIG + "distributed_type: MULTI_CPU\nnum_processes: 2\n", "distributed_type MULTI_CPU starts one process"),
        (CONFIG + "distributed_type: MEGATRON_LM\nnum_processes: 2\n", "MEGATRON_LM is not supported"),
        (CONFIG + "distributed_type: MULTI_GPU\nnum_processes: -1\n", "has no num_processes"),
    ],
)
def test_launch_configurations_that_are_refused(launched, content, words):
    if content is not None:
        Path("launch.yaml").write_text(content)
    line = refused("train", "a.yaml", "--launch-config", "launch.yaml")
    assert line.startswith("--launch-config: launch.yaml: ")
    assert words in line
    assert not launched


@pytest.mark.parametrize("kind", ["MULTI_GPU", "FSDP"])
@pytest.mark.parametrize("nproc", [None, 4])
def test_a_launch_configuration_starts_what_it_says(monkeypatch, launched, kind, nproc):
    Path("launch.yaml").write_text(f"{CONFIG}distributed_type: {kind}\nnum_processes: 2\nmain_process_port: 0\n")
    words = ["train", "a.yaml", "--launch-config=launch.yaml", *([] if nproc is None else [f"--nproc={nproc}"])]
    monkeypatch.setattr(sys, "argv", ["ballast", *words])
    done = invoke(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    (args,) = launched
    assert args.nproc_per_node == str(nproc or 2)
    assert (args.module, args.training_script, args.training_script_args) == (True, "ballast.cli", ["train", "a.yaml"])


@pytest.mark.parametrize("name", sorted(SHARED))
def test_weights_lie_split_only_where_they_train(monkeypatch, name):
    import os

    be_rank(monkeypatch)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(
        "ballast.config.recipe.load_recipe", lambda *_, **__: (_ for _ in ()).throw(BallastError("read"))
    )
    refused(name, "a.yaml")
    assert ("ACCELERATE_USE_FSDP" in os.environ) == (name in ("train", "rl"))


def test_of_several_ranks_the_first_prints(monkeypatch, capsys):
    from ballast.progress import on_stderr
    from ballast.terminal import console, print_json, print_text, print_yaml

    for rank in (1, 0):
        be_rank(monkeypatch, rank)
        console().print(f"line {rank}")
        print_text(f"text {rank}")
        print_yaml(f"yaml {rank}\n")
        print_json(rank)
        with on_stderr("rows") as tell:
            tell(f"bar {rank}", 1, 1)
    out, err = capsys.readouterr()
    assert out.split() == ["line", "0", "text", "0", "yaml", "0", "0"]
    assert err.startswith("bar 0")
    assert "bar 1" not in err


def test_what_all_ranks_come_upon_is_said_once(monkeypatch):
    from torch.distributed import TCPStore

    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    be_rank(monkeypatch, MASTER_ADDR="localhost", MASTER_PORT=store.port)
    assert [ranks.has_the_word() for _ in range(3)] == [True, False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ranks.has_the_word()


def test_a_rank_without_a_store_says_what_it_comes_upon(monkeypatch):
    be_rank(monkeypatch, rank=1)
    assert ranks.has_the_word()
    monkeypatch.setattr(ranks, "SECONDS_TO_CLAIM", 0.05)
    be_rank(monkeypatch, rank=1, MASTER_ADDR="localhost", MASTER_PORT=1)
    assert ranks.has_the_word()


def test_a_rank_that_lost_another_waits_to_be_ended_and_says_nothing(monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    reads(monkeypatch, Lost("gone"))
    done = invoke("score", "a.yaml")
    assert (done.exit_code, done.output, slept) == (1, "", [30.0])


@pytest.mark.parametrize("name", ["train", "rl"])
def test_one_process_that_sees_several_gpus_does_not_train(monkeypatch, name):
    from tiny import char_tokenizer, tiny_model

    tiny_model().save_pretrained("model")
    char_tokenizer().save_pretrained("model")
    Path("rows.jsonl").write_text('{"prompt": "1+1=", "completion": "2", "answer": "2"}\n')
    words = ["model=model", "data.train=rows.jsonl", "output=out", "--dry-run"]
    words += {"train": ["objective=sft"], "rl": ["rl.steps=1", "rl.verifier=exact"]}[name]
    assert invoke(name, *words).exit_code == 0
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    line = refused(name, *words)
    assert "this process sees 4 GPUs" in line
    assert "--nproc 4" in line
    assert invoke("score", *words[:2], "reference.cache=cache", "--dry-run").exit_code == 0
    assert not Path("out").exists()


def test_a_trainer_in_a_process_that_sees_several_gpus_is_refused(monkeypatch, tmp_path):
    from training_tools import run

    monkeypatch.setattr("ballast.training.TrainingConfig.n_gpu", property(lambda self: 2))
    with pytest.raises(BallastError, match="sees 2 GPUs"):
        run(tmp_path, "sft")


def test_advice_on_several_machines_needs_a_folder_that_they_share(monkeypatch):
    from ballast.pipeline.advise import run_advise
    from ballast.ranks import Ranks
    from ranks_run import recipe

    monkeypatch.setattr("ballast.pipeline.advise.join", lambda: Ranks(1, 4, here=2))
    with pytest.raises(BallastError, match=r"reference\.cache: is required on several machines"):
        run_advise(recipe("rows.jsonl"))
