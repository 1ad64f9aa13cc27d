"""A run that is interrupted, in any way at any moment, loses nothing and is never silently wrong.

Most runs here are forked from a server process that has imported torch already, which saves two
seconds each; they then do what `python train.py` does. The ones about signals start the command.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import config
import prepare
import train
from model import read_snapshot

ROOT = Path(train.__file__).parent
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train", "torch._dynamo", "torch.distributed.checkpoint.state_dict",
                               "pytest"])

KILL = functools.partial(signal.raise_signal, signal.SIGKILL)
CTRL_C = functools.partial(signal.raise_signal, signal.SIGINT)
SIGTERM = functools.partial(signal.raise_signal, signal.SIGTERM)


def end_of_a_pipeline():
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def ctrl_c_in_a_pipeline():  # python train.py | tee log: both receive it, and tee is first to end
    end_of_a_pipeline()
    CTRL_C()


def end_of_an_unbuffered_pipeline():  # as with PYTHONUNBUFFERED=1: each print fails by itself
    sys.stdout.reconfigure(write_through=True)
    end_of_a_pipeline()


# Every few iterations there is something to interrupt; 2 batches make an iteration.
TINY = ("--n_layer=2 --n_embd=32 --n_head=2 --block_size=16 --batch_size=4 --device=cpu "
        "--dropout=0.1 --gradient_accumulation_steps=2 --warmup_iters=2 --num_return_sequences=0 "
        "--log_interval=2 --eval_interval=6 --eval_iters=2 --snapshot_interval=3").split()
SHORT = [*TINY, "--max_iters=12", "--keep_snapshots=3"]  # leaves the snapshots of 6, 9 and 12
# The learning rate rises to 36 times its beginning, so that the best evaluation is not the last.
LONG = [*TINY, "--max_iters=120", "--lr_schedule=step", "--lr_step_iters=40", "--lr_gamma=6"]


# ---- running, interrupting, comparing -----------------------------------------------------------

def child(main, arguments, output, strikes, environment):
    """In a forked process: run a script's main, its output going to a file, and strike it."""
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if strikes:
        arm(strikes)
    raise SystemExit(config.run(main, arguments))


def arm(strikes):
    """Prepare this process's strikes (place, count, action), one after the other: the action is
    called at the count-th arrival at the place, and then the next strike is armed."""
    strikes = list(strikes)
    arrivals = 0

    def arrive(place):
        nonlocal arrivals
        if strikes and strikes[0][0] == place:
            arrivals += 1
            if arrivals == strikes[0][1]:
                arrivals = 0
                strikes.pop(0)[2]()

    def watched(function, before=None, after=None):
        def call(*arguments, **options):
            arrive(before)
            result = function(*arguments, **options)
            arrive(after)
            return result
        return call

    class WatchedFile(io.FileIO):
        def write(self, data):  # in two halves, so that a strike can fall in between
            half = len(data) // 2
            written = super().write(data[:half])
            arrive("write")
            return written + super().write(data[half:])

    def watched_open(path, mode="r", **options):
        return WatchedFile(path, mode) if mode == "wb" else open(path, mode, **options)

    prepare.open = watched_open
    train.get_batch = watched(train.get_batch, before="batch")
    forward = train.GPT.forward
    evaluated = watched(forward, before="evaluated")  # a batch of an evaluation
    train.GPT.forward = lambda *rest, **options: (
        forward if torch.is_grad_enabled() else evaluated)(*rest, **options)
    os.fsync = watched(os.fsync, before="fsync")
    os.replace = watched(os.replace, before="replace", after="replaced")
    Path.unlink = watched(Path.unlink, before="unlink")


def start(arguments, output, strikes=(), main=train.main, **environment):
    process = FORKS.Process(target=child, args=(main, arguments, str(output), strikes, environment))
    process.start()
    return process


def run(arguments, folder, strikes=(), main=train.main):
    """Run a script with its results in folder; return (exit code or -signal, output)."""
    output = Path(f"{folder}.output")
    process = start([*arguments, f"--out_dir={folder}"], output, strikes, main)
    process.join()
    return process.exitcode, output.read_text(encoding="utf-8")


def run_two(arguments, folder, strikes=()):
    """Run train.py in two processes, as torchrun starts them, the second of which is struck; return
    the set of their exit codes and the output of the first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    outputs = [Path(f"{folder}.output{rank}") for rank in range(2)]
    processes = [start([*arguments, f"--out_dir={folder}"], outputs[rank], strikes if rank else (),
                       RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                       MASTER_ADDR="localhost", MASTER_PORT=str(port)) for rank in range(2)]
    for process in processes:
        process.join()
    return {process.exitcode for process in processes}, outputs[0].read_text(encoding="utf-8")


def frozen(value):
    """Return something that is equal for two values only if they are equal bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), hashlib.sha256(value.numpy()).hexdigest()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    return repr(value)  # a float's repr tells all its bits


def contents(path):
    """Return what counts in a snapshot: all but the settings, in which out_dir differs."""
    return frozen({**read_snapshot(path), "settings": None})


def results(folder):
    """Return {file: what counts in it} of all the files that a run has left, but the lock."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt" and path.is_file():
            found[name] = contents(path)
        elif path.name == "log.csv":
            rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = [row[:3] + row[4:] for row in rows]  # without the seconds
        elif path.is_file() and path.name != ".lock":  # which holds the id of a process
            found[name] = path.read_bytes()
    return found


def steps_of_adamw(folder):
    """Return how many steps AdamW has counted at the end of a run, over its parameters."""
    saved = read_snapshot(folder / "final_model.pt")["optimizer_state_dict"]
    states = [state for optimizer in saved for state in optimizer["state"].values()]
    return {int(state["step"]) for state in states if "step" in state}


def snapshot_files(folder):
    return sorted(Path(folder, "snapshots").glob("*.pt"), key=lambda path: int(path.stem[14:]))


def one_line_of(output):
    """Return the one line of a failure's output that says what is wrong."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in output, output
    return errors[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = folder / "text.txt"
    text.write_text(Path(ROOT, "input.txt").read_text(encoding="utf-8")[:20000], encoding="utf-8")
    assert config.run(prepare.main, [f"--input={text}", f"--out_dir={folder}",
                                     "--vocab_size=300"]) == 0
    return f"--data_dir={folder}"


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """Return a function: arguments -> the folder of a run with them that nothing interrupted."""
    folders = {}

    def folder_of(arguments):
        key = tuple(arguments)
        if key not in folders:
            folder = tmp_path_factory.mktemp("uninterrupted") / "out"
            code, output = run([*arguments, data], folder)
            assert code == 0, output
            folders[key] = folder
        return folders[key]

    return folder_of


# ---- 1. killed anywhere -------------------------------------------------------------------------

# Where a kill falls, and the latest arrival there at which it does: at most 9 iterations on.
PLACES = (("outside", 0), ("outside", 0), ("outside", 0), ("batch", 14), ("batch", 14),
          ("write", 1200), ("write", 1200), ("write", 1200), ("fsync", 8), ("replace", 8),
          ("replaced", 8), ("unlink", 1))


def kill_again_and_again(arguments, folder, dice):
    """Start the run and kill it, once at each of PLACES in random order; then let it finish."""
    output = Path(f"{folder}.output")
    for place, latest in dice.sample(PLACES, len(PLACES)):
        strikes = [(place, dice.randint(1, latest), KILL)] if latest else []
        output.write_text("")
        process = start([*arguments, f"--out_dir={folder}"], output, strikes)
        if not latest:  # from outside, at a moment that has nothing to do with what is done in it
            while process.is_alive() and "\niteration" not in output.read_text(encoding="utf-8"):
                time.sleep(0.001)
            time.sleep(dice.uniform(0, 0.01))
            process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, output.read_text(encoding="utf-8")
    code, text = run(arguments, folder)
    assert code == 0 and "resuming from" in text, text


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_killed_twelve_times_ends_bit_identical(optimizer, data, uninterrupted,
                                                           tmp_path):
    arguments = [*LONG, f"--optimizer={optimizer}"]
    kill_again_and_again([*arguments, data], tmp_path / "out", random.Random(optimizer))
    assert results(tmp_path / "out") == results(uninterrupted(arguments))


def test_a_run_killed_after_its_best_evaluation_still_knows_which_it_was(data, uninterrupted,
                                                                        tmp_path):
    arguments = [*LONG, "--optimizer=muon"]
    assert run([*arguments, data], tmp_path / "out", [("batch", 200, KILL)])[0] == -signal.SIGKILL
    assert run([*arguments, data], tmp_path / "out")[0] == 0
    assert results(tmp_path / "out") == results(uninterrupted(arguments))
    assert read_snapshot(tmp_path / "out" / "best.pt")["step"] < 96  # or this proves nothing


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_or_not_the_optimizer_has_taken_a_step_in_each_iteration(optimizer, data,
                                                                       uninterrupted, tmp_path):
    arguments = [*SHORT, f"--optimizer={optimizer}"]
    assert steps_of_adamw(uninterrupted(arguments)) == {12}
    for strike in (("batch", 1, KILL), ("batch", 9, KILL)):
        assert run([*arguments, data], tmp_path / "out", [strike])[0] == -signal.SIGKILL
    assert run([*arguments, data], tmp_path / "out")[0] == 0
    assert steps_of_adamw(tmp_path / "out") == {12}


# ---- 2. SIGTERM and Ctrl-C ----------------------------------------------------------------------

@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_writes_a_snapshot_says_how_to_resume_and_ends_bit_identical(
        number, code, data, uninterrupted, tmp_path):
    out = tmp_path / "out"
    arguments = [*LONG, "--optimizer=muon"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments, data, f"--out_dir={out}"], cwd=ROOT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    for line in process.stdout:
        if line.startswith("iteration"):
            break
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode == code, output
    assert output.count("stopping: a snapshot is written first") == 1
    assert "the same command resumes from here" in output
    step = int(re.search(r"stopped after iteration (\d+): ", output)[1])
    assert read_snapshot(out / "snapshots" / f"snapshot_step_{step}.pt")["step"] == step < 120
    code, output = run([*arguments, data], out)
    assert code == 0 and f"resuming from {out}/snapshots/snapshot_step_{step}.pt" in output, output
    assert results(out) == results(uninterrupted(arguments))


@pytest.mark.parametrize("place, count", [("batch", 9), ("replaced", 8)])
@pytest.mark.parametrize("action", [end_of_a_pipeline, ctrl_c_in_a_pipeline])
def test_ctrl_c_also_ends_what_reads_the_output_and_a_snapshot_is_written_all_the_same(
        action, place, count, data, uninterrupted, tmp_path):
    arguments = [*SHORT, "--log_interval=1"]
    code, output = run([*arguments, data], tmp_path / "out", [(place, count, action)])
    assert code == 130, output
    last_row = (tmp_path / "out" / "log.csv").read_text().splitlines()[-1]
    step = int(snapshot_files(tmp_path / "out")[-1].stem[14:])
    assert 0 < step < 12 and step - 1 <= int(last_row.split(",")[0]) <= step
    code, output = run([*arguments, data], tmp_path / "out")
    assert code == 0 and f"snapshot_step_{step}.pt" in output, output
    assert results(tmp_path / "out") == results(uninterrupted(arguments))


def test_a_run_whose_samples_nobody_reads_any_more_writes_a_snapshot(data, uninterrupted, tmp_path):
    arguments = [*SHORT, "--log_interval=100", "--eval_interval=100", "--sample_interval=1"]
    strike = ("batch", 7, end_of_an_unbuffered_pipeline)
    code, output = run([*arguments, data], tmp_path / "out", [strike])
    assert code == 130 and "stopped" not in output, output
    code, output = run([*arguments, data], tmp_path / "out")
    assert code == 0 and "snapshot_step_5.pt" in output, output
    assert results(tmp_path / "out") == results(uninterrupted(arguments))


def test_test_json_is_written_though_nobody_reads_the_loss_any_more(data, uninterrupted, tmp_path):
    strike = ("evaluated", 5, end_of_an_unbuffered_pipeline)  # after two evaluations of two batches
    code, _ = run([*SHORT, data], tmp_path / "out", [strike])
    assert code == 0
    assert results(tmp_path / "out") == results(uninterrupted(SHORT))


def test_a_stopped_run_from_scratch_says_how_to_resume_without_starting_over(data, tmp_path):
    out = tmp_path / "out"
    code, output = run([*SHORT, data, "--init_from=scratch"], out, [("batch", 9, SIGTERM)])
    assert code == 143 and "--init_from=resume resumes from here" in output, output
    assert "the same command" not in output
    code, output = run([*SHORT, data, "--init_from=resume"], out)
    assert code == 0 and "resuming from" in output, output


def test_a_stopped_fine_tuning_run_resumes_with_the_same_command(data, uninterrupted, tmp_path):
    arguments = [*SHORT, data, f"--init_from={uninterrupted(SHORT)}"]
    code, output = run(arguments, tmp_path / "out", [("batch", 9, SIGTERM)])
    assert code == 143 and "the same command resumes from here" in output, output
    code, output = run(arguments, tmp_path / "out")
    assert code == 0 and "resuming from" in output, output


@pytest.mark.parametrize("place, count", [
    ("batch", 1), ("write", 1), ("write", 2), ("write", 90), ("write", 500), ("fsync", 1),
    ("replace", 1), ("replaced", 1)])
def test_a_second_ctrl_c_leaves_at_once_and_leaves_no_broken_file(place, count, data, uninterrupted,
                                                                  tmp_path):
    out = tmp_path / "out"
    code, output = run([*SHORT, data], out, [("batch", 9, CTRL_C), (place, count, CTRL_C)])
    assert code == 130 and "Traceback" not in output, output
    assert "stopped after" not in output  # the second one did not wait for the first
    assert not list(out.rglob("*.tmp"))
    assert results(out)  # reads every snapshot
    assert run([*SHORT, data], out)[0] == 0
    assert results(out) == results(uninterrupted(SHORT))


@pytest.mark.parametrize("number, code", [(SIGTERM, 143), (CTRL_C, 130)])
def test_a_signal_during_an_evaluation_is_answered_at_once_and_heeded_within_a_batch(
        number, code, data, uninterrupted, tmp_path):
    out = tmp_path / "out"
    arguments = [*TINY, data, "--max_iters=12", "--eval_iters=0", "--batch_size=1"]
    found, output = run(arguments, out, [("evaluated", 3, number), ("evaluated", 2, KILL)])
    assert found == code, output  # not killed in the batch after the next
    assert output.index("stopping: a snapshot is written first") < output.index("stopped after")
    assert "stopped after iteration 6: the same command resumes from here" in output
    assert read_snapshot(out / "snapshots" / "snapshot_step_6.pt")["step"] == 6
    code, output = run(arguments, out)
    assert code == 0 and "snapshot_step_6.pt" in output, output
    assert steps_of_adamw(out) == {12}


@pytest.mark.parametrize("count", [1, 2, 4])  # files written by the resumed run before the kill
def test_a_kill_while_an_interrupted_evaluation_is_repeated_loses_no_best_weights(
        count, data, uninterrupted, tmp_path):
    out = tmp_path / "out"
    arguments = [*LONG, "--optimizer=muon"]
    best = read_snapshot(uninterrupted(arguments) / "best.pt")["step"]
    assert 6 < best < 96  # a later, worse evaluation must not replace it
    batch = 2 * (best // 6 - 1) + 1  # the first of that evaluation
    assert run([*arguments, data], out, [("evaluated", batch, SIGTERM)])[0] == 143
    assert run([*arguments, data], out, [("replaced", count, KILL)])[0] == -signal.SIGKILL
    assert run([*arguments, data], out)[0] == 0
    assert results(out) == results(uninterrupted(arguments))


def test_a_signal_during_the_last_test_is_heeded_and_the_same_command_tests_again(
        data, uninterrupted, tmp_path):
    out = tmp_path / "out"
    evaluations = 2 * 2  # before the test: two evaluations of two batches
    strikes = [("evaluated", evaluations + 1, SIGTERM)]
    arguments = [*SHORT, data, "--eval_iters=2"]
    code, output = run(arguments, out, strikes)
    assert code == 143 and (out / "final_model.pt").exists(), output
    assert not (out / "test.json").exists() and "test with" not in output
    code, output = run(arguments, out)
    assert code == 0 and "nothing left to do" in output and "test with" in output, output
    assert results(out) == results(uninterrupted(SHORT))


def test_a_kill_while_sigterm_writes_its_snapshot_leaves_nothing_behind(data, uninterrupted,
                                                                       tmp_path):
    strikes = [("batch", 9, SIGTERM), ("write", 200, KILL)]  # a cluster's grace period is over
    assert run([*SHORT, data], tmp_path / "out", strikes)[0] == -signal.SIGKILL
    assert run([*SHORT, data], tmp_path / "out")[0] == 0
    assert results(tmp_path / "out") == results(uninterrupted(SHORT))


def test_an_overwrite_killed_at_any_file_leaves_the_old_run_or_none(data, uninterrupted, tmp_path):
    whole = uninterrupted(SHORT)
    ends = set()
    for count in range(1, 10):
        out = tmp_path / str(count)
        shutil.copytree(whole, out)
        (out / "final_model.pt").unlink()  # the run isn't finished
        arguments = [*SHORT, data, "--init_from=scratch", "--overwrite"]
        assert run(arguments, out, [("unlink", count, KILL)])[0] == -signal.SIGKILL
        code, output = run([*SHORT, data], out)
        ends.add(code)
        if code == 0:
            assert results(out) == results(whole), count
        else:
            assert "no valid snapshot to resume" in one_line_of(output), output
    assert ends == {0, 1}


def test_two_processes_of_which_one_is_told_to_stop_stop_at_the_same_iteration(data, tmp_path):
    codes, output = run_two([*SHORT, data], tmp_path / "uninterrupted")
    assert codes == {0}, output
    codes, output = run_two([*SHORT, data], tmp_path / "out", [("batch", 5, SIGTERM)])
    assert codes == {143} and "stopped after iteration 5:" in output, output
    codes, output = run_two([*SHORT, data], tmp_path / "out")
    assert codes == {0} and "snapshot_step_5.pt" in output, output
    assert results(tmp_path / "out") == results(tmp_path / "uninterrupted")


# ---- 3. broken snapshots ------------------------------------------------------------------------

def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def largest_record(path):
    """Return (offset, length) of the bytes of the largest tensor that is in a snapshot."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
        with archive.open(record):
            header = path.read_bytes()[record.header_offset:record.header_offset + 30]
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return record.header_offset + 30 + names, record.file_size


def flip(path, offset, bit=0):
    contents = bytearray(path.read_bytes())
    contents[offset] ^= 1 << bit
    path.write_bytes(contents)


def flip_in_a_tensor(path):
    offset, length = largest_record(path)
    flip(path, offset + length // 2)


def make_directory(path):
    path.unlink()
    path.mkdir()


def rewrite(path, **changes):
    torch.save({**read_snapshot(path), **changes}, path)


class RunsAProgram:
    """What an attacker would hide in a snapshot: unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


BROKEN = {
    "empty": lambda path: cut(path, 0),
    "cut to one byte": lambda path: cut(path, 1),
    "cut in half": lambda path: cut(path, path.stat().st_size // 2),
    "without its last byte": lambda path: cut(path, -1),
    "flipped in a tensor": flip_in_a_tensor,
    "a directory": make_directory,
    "another program's text": lambda path: path.write_text("step,loss\n"),
    "another program's zip": lambda path: zipfile.ZipFile(path, "w").close(),
    "another program's tensors": lambda path: torch.save({"weight": torch.ones(2)}, path),
    "of a later format": lambda path: rewrite(path, format_version=3),
    "of an earlier format": lambda path: rewrite(path, format_version=1),
    "of an unknown format": lambda path: rewrite(path, format_version="new"),
    "hiding a program": lambda path: rewrite(path, step=RunsAProgram(path.parent / "executed")),
    "a bare pickle hiding a program":
        lambda path: path.write_bytes(pickle.dumps(RunsAProgram(path.parent / "executed"))),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_snapshot_is_named_and_skipped_and_the_one_before_it_used(kind, data,
                                                                          uninterrupted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted(SHORT), out)
    newest, before = snapshot_files(out)[:-3:-1]
    BROKEN[kind](newest)
    code, output = run([*SHORT, data], out)
    assert code == 0, output
    assert re.search(rf"^skipping a damaged snapshot: {newest}: .*\w", output, re.MULTILINE), output
    assert f"resuming from {before}\n" in output
    assert not (out / "snapshots" / "executed").exists()
    for left in out.rglob("*.broken"):  # what was skipped may be kept out of the way
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert results(out) == results(uninterrupted(SHORT))


def test_the_program_hidden_in_a_snapshot_would_run_if_the_file_were_trusted(tmp_path):
    torch.save({"step": RunsAProgram(tmp_path / "executed")}, tmp_path / "snapshot.pt")
    torch.load(tmp_path / "snapshot.pt", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_of_three_snapshots_the_only_valid_one_is_found(data, uninterrupted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted(SHORT), out)
    oldest, *others = snapshot_files(out)
    for kind, path in zip(("cut in half", "flipped in a tensor"), others):
        BROKEN[kind](path)
    code, output = run([*SHORT, data], out)
    assert code == 0 and f"resuming from {oldest}" in output, output
    assert output.count("skipping a damaged") == 2


@pytest.mark.parametrize("init_from", ["auto", "resume"])
def test_with_no_valid_snapshot_the_run_stops_and_touches_nothing(init_from, data, uninterrupted,
                                                                  tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted(SHORT), out)
    for path in out.glob("*.*"):
        path.unlink()  # only the snapshots speak for the run
    for path in snapshot_files(out):
        cut(path, 1000)
    for _ in range(2):
        code, output = run([*SHORT, data, f"--init_from={init_from}"], out)
        assert code == 1 and str(out) in one_line_of(output)
        assert output.count("skipping a damaged") == 3
        files = [path for path in out.rglob("*") if path.is_file()]
        assert {path.stat().st_size for path in files if path.name != ".lock"} == {1000}
        assert sorted(path.name for path in files if path.suffix) == [
            "snapshot_step_12.pt", "snapshot_step_6.pt", "snapshot_step_9.pt"]


def test_a_broken_snapshot_of_a_later_step_never_displaces_a_valid_one(data, uninterrupted,
                                                                       tmp_path):
    out = tmp_path / "out"
    shutil.copytree(uninterrupted(SHORT), out)
    cut(snapshot_files(out)[-1], 1000)  # of 12; 9 is valid
    arguments = [*SHORT, data, "--snapshot_interval=2", "--keep_snapshots=1"]
    code, output = run(arguments, out, [("batch", 3, KILL)])  # in the iteration after 10
    assert code == -signal.SIGKILL, output
    code, output = run(arguments, out)
    assert code == 0 and "snapshot_step_10.pt" in output, output


def test_a_snapshot_cut_at_any_length_is_refused(uninterrupted, tmp_path):
    whole = (uninterrupted(SHORT) / "final_model.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for length in [*range(0, len(whole), len(whole) // 80), *range(len(whole) - 30, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.pt: File is not a zip file$"):
            read_snapshot(path)


def test_a_byte_flipped_anywhere_is_refused_or_changes_nothing(uninterrupted, tmp_path):
    original = uninterrupted(SHORT) / "final_model.pt"
    expected, size = contents(original), original.stat().st_size
    offset, length = largest_record(original)
    dice = random.Random(1)
    inside = [(offset + dice.randrange(length), True) for _ in range(30)]
    # and in the containers' headers and the list of records, which have no checksum
    anywhere = [(dice.randrange(size), False) for _ in range(60)]
    at_the_end = [(size - 1 - dice.randrange(5000), False) for _ in range(60)]
    refused = 0
    for place, in_a_tensor in inside + anywhere + at_the_end:
        path = tmp_path / "flipped.pt"
        shutil.copy(original, path)
        flip(path, place, dice.randrange(8))
        try:
            assert contents(path) == expected, f"byte {place} changes the snapshot unnoticed"
            assert not in_a_tensor, f"byte {place} is in a tensor"
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 60


# ---- 4. the disk is full, or nothing can be written ---------------------------------------------

@pytest.mark.parametrize("size", [5000, 200_000, 360_000])
def test_a_full_disk_stops_the_run_and_every_earlier_snapshot_is_valid(size, data, uninterrupted,
                                                                       tmp_path):
    out = tmp_path / "out"
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    code, output = run([*SHORT, data], out, [("batch", 15, full)])  # in the iteration after 7
    assert code == 1, output
    assert re.search(rf"{out}/\S+: File too large", one_line_of(output)), output
    assert snapshot_files(out)[-1].stem == "snapshot_step_6"
    assert results(out) and not list(out.rglob("*.tmp"))
    assert run([*SHORT, data], out)[0] == 0  # there is space again
    assert results(out) == results(uninterrupted(SHORT))


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_small_disk_that_fills_up_keeps_every_snapshot_that_fitted(small_disk, data,
                                                                     uninterrupted):
    out = small_disk / "out"
    code, output = run([*SHORT, data], out)
    assert code == 1 and re.search(rf"{out}/\S+: No space left", one_line_of(output)), output
    assert snapshot_files(out) and results(out) and not list(out.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    code, output = run([*SHORT, data], out)
    assert code == 0 and "resuming from" in output, output
    assert results(out) == results(uninterrupted(SHORT))


def test_a_full_disk_is_named_with_the_file_that_did_not_fit(small_disk, data, tmp_path):
    with contextlib.suppress(OSError), open(small_disk / "ballast", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    text = f"--input={ROOT / 'input.txt'}"
    for main, argument in ((prepare.main, text), (train.main, data)):
        process = start([argument, f"--out_dir={small_disk}/x"], tmp_path / "output", main=main)
        process.join()
        line = one_line_of((tmp_path / "output").read_text(encoding="utf-8"))
        assert process.exitcode == 1 and re.search(rf"{small_disk}/x/\S+: No space left", line)


def test_a_read_only_disk_is_found_before_the_first_iteration(small_disk, data):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, output = run([*SHORT, data], small_disk, [("batch", 1, KILL)])
    assert code == 1 and re.search(rf"{small_disk}.*: Read-only file system", one_line_of(output))


@pytest.mark.parametrize("name", ["out", "out/snapshots", "out/log.csv.tmp"])
def test_an_unwritable_out_dir_is_found_before_the_first_iteration(name, data, tmp_path):
    obstacle = tmp_path / name
    obstacle.parent.mkdir(exist_ok=True)
    obstacle.mkdir() if obstacle.suffix else obstacle.write_text("a file in place of a folder")
    code, output = run([*SHORT, data], tmp_path / "out", [("batch", 1, KILL)])
    assert code == 1 and str(tmp_path) in one_line_of(output), output


# ---- 5. not finite ------------------------------------------------------------------------------

@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_good_snapshots_as_they_are(
        optimizer, data, tmp_path):
    out = tmp_path / "out"
    arguments = [*SHORT, data, f"--optimizer={optimizer}"]
    assert run(arguments, out, [("batch", 9, SIGTERM)])[0] == 143  # after 5 iterations
    good = {path: contents(path) for path in snapshot_files(out)}
    too_high = ["--learning_rate=1e18", "--muon_learning_rate=1e18"]
    code, output = run([*arguments, *too_high], out)
    assert code == 1, output
    assert re.search("iteration [67]: .*lower learning_rate", one_line_of(output)), output
    left = snapshot_files(out)
    assert good and left == sorted(good, key=left.index)
    assert all(contents(path) == expected for path, expected in good.items())
    code, output = run(arguments, out)  # with the learning rate that went well before
    assert code == 0, output


@pytest.mark.parametrize("learning_rate", ["1e16", "9e18"])
def test_a_snapshot_never_holds_weights_that_are_not_finite(learning_rate, data, tmp_path):
    out = tmp_path / "out"
    arguments = [*SHORT, data, "--optimizer=adamw", "--snapshot_interval=1", "--keep_snapshots=1"]
    assert run(arguments, out, [("batch", 9, SIGTERM)])[0] == 143
    code, output = run([*arguments, f"--learning_rate={learning_rate}"], out)
    assert code == 1 and "lower learning_rate" in one_line_of(output), output
    for path in snapshot_files(out):
        weights = read_snapshot(path)["model_state_dict"].values()
        assert all(weight.isfinite().all() for weight in weights), path
    assert snapshot_files(out)


def test_a_gradient_norm_that_is_infinite_stops_the_run_naming_the_iteration(data, tmp_path,
                                                                             monkeypatch, capsys):
    norms = itertools.chain([1.0, 1.0, 1.0], itertools.repeat(math.inf))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(next(norms)))
    assert config.run(train.main, [*SHORT, data, f"--out_dir={tmp_path}"]) == 1
    message = one_line_of(capsys.readouterr().err)
    assert "iteration 4:" in message and "learning_rate" in message
    assert snapshot_files(tmp_path)[-1].stem == "snapshot_step_3"


def test_steps_that_the_float16_scaler_skips_are_counted_and_shown(data, tmp_path, monkeypatch,
                                                                   capsys):
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0 ** 34)  # too large for a while
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    arguments = [*TINY, data, f"--out_dir={tmp_path}", "--dtype=float16", "--max_iters=40",
                 "--eval_interval=40", "--snapshot_interval=40"]
    assert config.run(train.main, arguments) == 0
    output = capsys.readouterr().out
    counts = [int(count) for count in re.findall(r"(\d+) steps? skipped", output)]
    assert counts == sorted(counts) and 5 < counts[-1] < 35, output
    assert steps_of_adamw(tmp_path) == {40 - counts[-1]}


def test_a_run_can_change_between_float32_and_float16_when_it_resumes(data, tmp_path):
    for dtype in ("float32", "float16", "float32"):
        code, output = run([*TINY, data, f"--dtype={dtype}"], tmp_path / "out",
                           [("batch", 9, SIGTERM)])
        assert code == 143, output


# ---- 6. prepare.py, and data that doesn't match its description ---------------------------------

TEXTS = {name: "".join(f"{name} {i} the quick brown fox\n" for i in range(size))
         for name, size in (("old", 60), ("new", 90), ("third", 75))}
MOMENTS = [*itertools.product(["fsync", "replace", "replaced"], range(1, 5)),
           *itertools.product(["replace", "replaced"], range(5, 8)), ("write", 1), ("write", 3)]


def write_data(name, folder, strikes=()):
    text = folder.with_name(f"{name}.txt")
    text.write_text(TEXTS[name], encoding="utf-8")
    return run([f"--input={text}", "--vocab_size=270"], folder, strikes, prepare.main)[0]


def data_in(folder):
    """Return the name of the text that the data in folder is of, as train.py reads it."""
    train.block_size = 8
    meta, data = train.load_data(folder)
    encoding = prepare.load_tokenizer(meta["tokenizer"])
    ids = [data[split][np.arange(len(data[split]))] for split in prepare.SPLITS]
    text = "".join(encoding.decode(part.tolist()) for part in ids)
    return next(name for name in TEXTS if TEXTS[name] == text)


@pytest.fixture(scope="module")
def old_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "data"
    assert write_data("old", folder) == 0 and data_in(folder) == "old"
    return folder


def test_prepare_killed_at_any_moment_leaves_the_old_data_or_the_new(old_data, tmp_path):
    found = []
    for moment, (place, count) in enumerate(MOMENTS):
        folder = tmp_path / str(moment) / "data"
        shutil.copytree(old_data, folder)
        assert write_data("new", folder, [(place, count, KILL)]) == -signal.SIGKILL
        found.append(data_in(folder))
    assert set(found) == {"old", "new"}


def test_prepare_killed_twice_leaves_the_data_of_one_text(old_data, tmp_path):
    dice = random.Random(2)
    late = [("replaced", 4), ("replace", 5), ("replaced", 5), ("replace", 6), ("replaced", 6)]
    for turn in range(14):
        folder = tmp_path / str(turn) / "data"
        shutil.copytree(old_data, folder)
        first, second = late[turn % len(late)], dice.choice(MOMENTS)
        assert write_data("new", folder, [(*first, KILL)]) == -signal.SIGKILL
        assert write_data("third", folder, [(*second, KILL)]) == -signal.SIGKILL
        assert data_in(folder) in ("new", "third"), (first, second)


def test_the_first_prepare_killed_leaves_nothing_that_train_would_take_for_data(tmp_path):
    found = set()
    for moment, (place, count) in enumerate(MOMENTS[::3]):
        folder = tmp_path / str(moment) / "data"
        folder.parent.mkdir()
        assert write_data("new", folder, [(place, count, KILL)]) == -signal.SIGKILL
        try:
            found.add(data_in(folder))
        except ValueError as error:
            assert "is missing" in str(error) and "python prepare.py" in str(error)
            found.add(None)
    assert found == {None, "new"}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("change", ["flipped", "cut", "longer", "gone", "another split's"])
def test_data_that_does_not_match_its_meta_json_is_noticed(split, change, old_data, tmp_path,
                                                           capsys):
    folder = tmp_path / "data"
    shutil.copytree(old_data, folder)
    path = folder / f"{split}.bin"
    if change == "flipped":
        flip(path, path.stat().st_size // 3)
    elif change == "cut":
        cut(path, -2)
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"\0\0")
    elif change == "gone":
        path.unlink()
    else:
        shutil.copy(folder / ("val.bin" if split == "train" else "train.bin"), path)
    out = tmp_path / "out"
    arguments = [*SHORT, "--block_size=8", f"--data_dir={folder}", f"--out_dir={out}"]
    assert config.run(train.main, arguments) == 1
    message = one_line_of(capsys.readouterr().err)
    assert str(path) in message and "python prepare.py" in message and not out.exists()


def test_data_of_one_text_with_the_meta_json_of_another_is_noticed(old_data, tmp_path, capsys):
    folder = tmp_path / "data"
    assert write_data("new", folder) == 0
    shutil.copy(old_data / "meta.json", folder)
    assert json.loads((folder / "meta.json").read_text())["vocab_size"] > 256
    assert config.run(train.main, [*SHORT, f"--data_dir={folder}", f"--out_dir={tmp_path}"]) == 1
    assert "train.bin is missing or not what meta.json says" in capsys.readouterr().err
