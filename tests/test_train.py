"""train.py end to end on small real runs: resuming, schedules, stopping, what it writes."""

import contextlib
import csv
import errno
import functools
import itertools
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import torch
from conftest import ROOT, TINY, call, succeed
from torch.optim.optimizer import register_optimizer_step_pre_hook

import config
import prepare
import train
from model import GPT, GPTConfig, get_snapshot, read_snapshot

MUON = [*TINY, "--optimizer=muon", "--dropout=0.1", "--gradient_accumulation_steps=2"]
ADAMW = [*TINY, "--optimizer=adamw", "--learning_rate=0.003"]


def run(data_dir, out_dir, *arguments):
    return succeed("train", *TINY, f"--data_dir={data_dir}", f"--out_dir={out_dir}", *arguments)


def rows(out_dir):
    with open(out_dir / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def state(path):
    snapshot = read_snapshot(path)
    return snapshot["model_state_dict"], snapshot["optimizer_state_dict"]


def same(a, b):
    """Whether two nested structures of tensors are bit-identical."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def without_times(out_dir):
    return [{key: row[key] for key in row if key != "seconds"} for row in rows(out_dir)]


# ---- the order of the data ----------------------------------------------------------------------

@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 4097, 65536])
def test_shuffled_is_a_permutation(n):
    for key in ((1, 0), (1, 1), (2, 0)):
        assert sorted(train.shuffled(k, n, *key) for k in range(n)) == list(range(n))
    if n > 3:
        assert [train.shuffled(k, n, 1, 0) for k in range(n)] != [train.shuffled(k, n, 1, 1)
                                                                  for k in range(n)]


def test_an_epoch_shows_every_token_once_in_a_random_order_of_its_own(monkeypatch):
    monkeypatch.setattr(train, "block_size", 16)
    monkeypatch.setattr(train, "batch_size", 1)
    tokens = np.arange(1000, dtype=np.uint16)
    steps, left_out = [], []
    for epoch in range(3):
        blocks = [train.get_batch(tokens, epoch * 62 + k)[0].tolist() for k in range(62)]
        seen = [token for block in blocks for token in block[:-1]]
        assert len(set(seen)) == len(seen) == 62 * 16
        assert all(b == (a + 1) % 1000 for block in blocks for a, b in zip(block, block[1:]))
        steps.append([(b[0] - a[0]) % 1000 for a, b in itertools.pairwise(blocks)])
        left_out.append({*range(1000)} - {*seen})
    assert all(len({*each}) > 20 for each in steps)  # read in sequence, all would be 16
    assert steps[0] != steps[1] != steps[2] != steps[0]
    assert left_out[0] != left_out[1] != left_out[2]  # each epoch begins at another offset


def test_the_seed_decides_the_weights_and_the_order_of_the_data(data_dir, tmp_path, monkeypatch):
    weights, starts, orders = [], [], []
    for i, seed in enumerate((1, 1, 2)):
        run(data_dir, tmp_path / str(i), f"--seed={seed}", "--max_iters=1")
        weights.append(state(tmp_path / str(i) / "snapshots" / "snapshot_step_0.pt")[0])
        monkeypatch.setattr(train, "seed", seed)
        first = train.get_batch(np.arange(5000, dtype=np.uint16), 0)[:, 0]
        starts.append(first[0])
        orders.append((first - first[0]) % 5000)  # where the others begin, seen from there
    for a, b, c in (weights, starts, orders):
        assert same(a, b) and not same(a, c)


def test_a_cluster_that_sets_world_size_without_torchrun_gets_one_process(
        data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    run(data_dir, tmp_path / "out", "--max_iters=1", "--gradient_accumulation_steps=1")
    assert (tmp_path / "out" / "final_model.pt").exists()


def test_a_sequence_depends_on_its_number_in_the_run_alone(monkeypatch):
    monkeypatch.setattr(train, "block_size", 8)
    tokens = np.arange(500, dtype=np.uint16)
    monkeypatch.setattr(train, "batch_size", 6)
    six = train.get_batch(tokens, 60)
    monkeypatch.setattr(train, "batch_size", 2)
    assert torch.equal(six, torch.cat([train.get_batch(tokens, first)
                                       for first in (60, 62, 64)]))


# ---- resuming -----------------------------------------------------------------------------------

@pytest.mark.parametrize("recipe", [MUON, ADAMW], ids=["muon", "adamw"])
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(data_dir, tmp_path, recipe):
    arguments = [*recipe, f"--data_dir={data_dir}"]
    succeed("train", *arguments, f"--out_dir={tmp_path / 'whole'}")
    for stop in (3, 8, 9):  # the newest snapshots are then of the iterations 0, 8 and 8
        succeed("train", *arguments, f"--out_dir={tmp_path / 'parts'}", "--lr_decay_iters=12",
                f"--max_iters={stop}")
        (tmp_path / "parts" / "final_model.pt").unlink()  # as if killed before its end was saved
        if stop != 8:
            (tmp_path / "parts" / "snapshots" / f"snapshot_step_{stop}.pt").unlink()
    succeed("train", *arguments, f"--out_dir={tmp_path / 'parts'}")
    assert same(state(tmp_path / "whole" / "final_model.pt"),
                state(tmp_path / "parts" / "final_model.pt"))
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "parts")


def test_the_same_command_again_has_nothing_left_to_do(data_dir, finished_run):
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    assert "nothing left to do" in run(data_dir, finished_run)
    assert before == {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}


def test_what_a_killed_run_had_half_written_is_removed_when_it_resumes(data_dir, finished_run,
                                                                         tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    for name in ("best.pt.tmp", "snapshots/snapshot_step_16.pt.tmp"):
        (tmp_path / "out" / name).write_bytes(b"half")
    run(data_dir, tmp_path / "out", "--max_iters=13", "--learning_rate=0",
        "--muon_learning_rate=0")  # no new best.pt, whose writing would replace the old file
    assert not [*(tmp_path / "out").rglob("*.tmp")]


def test_more_iterations_resume_from_the_end_of_a_finished_run(data_dir, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    out = run(data_dir, tmp_path / "out", "--max_iters=14")
    assert "resuming from" in out and "snapshot_step_12" in out
    assert read_snapshot(tmp_path / "out" / "final_model.pt")["step"] == 14


def test_resume_requires_a_snapshot(data_dir, tmp_path):
    code, _, err = call("train", *TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path}",
                        "--init_from=resume")
    assert code == 1 and "resume" in err and err.count("\n") == 1


def test_scratch_refuses_a_full_folder_unless_told_to_overwrite(data_dir, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    arguments = [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'out'}",
                 "--init_from=scratch"]
    code, _, err = call("train", *arguments)
    assert code == 1 and "--overwrite" in err and "no valid snapshot" not in err
    assert same(state(tmp_path / "out" / "best.pt"), state(finished_run / "best.pt"))
    (tmp_path / "out" / "notes.csv").write_text("mine")
    succeed("train", *arguments, "--overwrite", "--max_iters=2")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        ".lock", "best.pt", "final_model.pt", "log.csv", "loss.svg", "notes.csv",
        "snapshot_step_0.pt", "snapshot_step_2.pt", "test.json"]


def test_a_run_of_another_size_is_not_resumed(data_dir, tmp_path, monkeypatch):
    small = [argument for argument in TINY if not argument.startswith(("--n_", "--max_iters"))]
    arguments = [*small, f"--data_dir={data_dir}", f"--out_dir={tmp_path}", "--max_iters=1"]
    for name, n_embd in (("small", 8), ("large", 16)):
        monkeypatch.setitem(train.SIZES, name, dict(n_layer=1, n_head=1, n_embd=n_embd))
    succeed("train", *arguments, "--size=small")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for argument in ("--size=large", "--size="):
        code, _, err = call("train", *arguments, argument)
        assert code == 1 and "size=small" in err and "--overwrite" in err
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("argument, word", [("--n_layer=3", "n_layer"), ("--block_size=8", "block"),
                                            ("--n_head=4", "n_head"), ("--n_embd=64", "n_embd"),
                                            ("--bias=False", "bias"),
                                            ("--optimizer=adamw", "optimizer")])
def test_another_run_in_the_folder_is_not_touched(data_dir, finished_run, argument, word):
    before = {path: path.read_bytes() for path in finished_run.rglob("*.*") if path.is_file()}
    error = fails(data_dir, finished_run, argument, "--max_iters=20")
    assert f" with {word}" in error and "--out_dir" in error
    del before[finished_run / ".lock"]  # it holds the number of the last process
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_run_begun_from_a_model_resumes_by_either_command(data_dir, finished_run, tmp_path):
    for steps, source in ((2, finished_run), (4, "resume"), (6, finished_run)):
        run(data_dir, tmp_path, f"--init_from={source}", f"--max_iters={steps}")
    assert read_snapshot(tmp_path / "final_model.pt")["step"] == 6


def test_a_float16_run_resumes_with_the_scale_of_its_gradients(data_dir, tmp_path, monkeypatch):
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**34)  # too large at first
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    arguments = ["--dtype=float16", "--lr_decay_iters=30"]
    run(data_dir, tmp_path / "whole", *arguments, "--max_iters=30")
    run(data_dir, tmp_path / "parts", *arguments, "--max_iters=22")
    run(data_dir, tmp_path / "parts", *arguments, "--max_iters=30")
    whole, parts = (tmp_path / name / "final_model.pt" for name in ("whole", "parts"))
    assert same(state(whole), state(parts))
    assert read_snapshot(parts)["scaler_state_dict"]["scale"] < 2.0**34


def test_a_resumed_run_counts_the_seconds_of_its_earlier_sessions(data_dir, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    log = tmp_path / "out" / "log.csv"
    *lines, last = log.read_text().splitlines()
    fields = last.split(",")
    fields[train.HEADER.index("seconds")] = "1000"
    log.write_text("\n".join([*lines, ",".join(fields)]))
    run(data_dir, tmp_path / "out", "--max_iters=14")
    assert all(1000 < float(row["seconds"]) < 1100 for row in rows(tmp_path / "out")[-2:])


def test_a_run_on_other_data_is_not_resumed(finished_run, text, tmp_path):
    (tmp_path / "text.txt").write_text(text[5000:])
    succeed("prepare", f"--input={tmp_path / 'text.txt'}", "--vocab_size=300",
            f"--out_dir={tmp_path}")
    code, _, err = call("train", *TINY, f"--data_dir={tmp_path}", f"--out_dir={finished_run}")
    assert code == 1 and "data=" in err and "--out_dir" in err


# ---- what a run writes --------------------------------------------------------------------------

def test_a_run_writes_snapshots_a_log_a_picture_and_the_test_result(finished_run):
    assert sorted(path.name for path in finished_run.iterdir()) == [
        ".lock", "best.pt", "final_model.pt", "log.csv", "loss.svg", "snapshots", "test.json"]
    assert sorted(path.name for path in (finished_run / "snapshots").iterdir()) == [
        "snapshot_step_12.pt", "snapshot_step_8.pt"]
    snapshot = read_snapshot(finished_run / "best.pt")
    assert {"model_state_dict", "optimizer_state_dict", "step", "sequences", "loss",
            "best_val_loss", "model_config", "settings", "tokenizer", "data",
            "format_version"} <= set(snapshot)
    assert "transformer.h.0.attn.c_attn.weight" in snapshot["model_state_dict"]
    assert not [name for name in snapshot["model_state_dict"] if "_orig_mod" in name]
    assert snapshot["settings"]["batch_size"] == 4


def test_the_log_has_a_row_for_each_line_and_evaluation(finished_run, data_dir):
    log = rows(finished_run)
    assert list(log[0]) == list(train.HEADER)
    assert [int(row["step"]) for row in log] == list(range(1, 13))
    assert [int(row["step"]) for row in log if row["val_loss"]] == [4, 8, 12]
    meta, data = train.load_data(data_dir)
    for row in log:
        assert int(row["tokens"]) == int(row["step"]) * 4 * 16
        epochs = int(row["step"]) * 4 / (len(data["train"]) // 16)
        assert float(row["epoch"]) == pytest.approx(epochs, abs=1e-4)
        if row["val_loss"]:
            loss, size = float(row["val_loss"]), meta["splits"]["val"]
            assert float(row["val_perplexity"]) == pytest.approx(math.exp(loss), rel=1e-4)
            assert float(row["val_bits_per_byte"]) == pytest.approx(
                loss / math.log(2) * size["tokens"] / size["bytes"], rel=1e-5)
    best = min(float(row["val_loss"]) for row in log if row["val_loss"])
    assert read_snapshot(finished_run / "best.pt")["best_val_loss"] == pytest.approx(best, abs=1e-6)


def test_the_loss_curve_is_a_picture_with_both_curves_and_numbers(finished_run):
    root = xml.etree.ElementTree.parse(finished_run / "loss.svg").getroot()
    lines = [node for node in root if node.tag.endswith("polyline")]
    assert [len(line.get("points").split()) for line in lines] == [12, 3]
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert all(60 <= x <= 780 and 39 <= y <= 431 for x, y in points)
        assert points == sorted(points)
    words = [node.text for node in root if node.tag.endswith("text")]
    assert {"train loss", "val loss", "iteration", "0", "2", "12"} <= set(words)
    best = min(rows(finished_run), key=lambda row: float(row["val_loss"] or math.inf))
    note, = [text for text in words if text.startswith("best: ")]
    assert f"{float(best['val_loss']):.3f} at iteration {best['step']}" in note
    assert f"{float(best['val_bits_per_byte']):.3f} bits per byte" in note
    mark, = [node for node in root if node.tag.endswith("circle")]
    lowest = max(lines[1].get("points").split(), key=lambda point: float(point.split(",")[1]))
    assert lowest == f"{mark.get('cx')},{mark.get('cy')}"


def test_the_loss_curve_is_drawn_at_evaluations_only(data_dir, tmp_path, monkeypatch):
    drawn = []
    draw = train.draw_losses
    monkeypatch.setattr(train, "draw_losses",
                        lambda rows, title: drawn.append(len(rows)) or draw(rows, title))
    run(data_dir, tmp_path, "--max_iters=11")  # a line of the log in every iteration
    assert drawn == [0, 4, 8, 11]


def test_a_pipe_gets_plain_lines_only(data_dir, tmp_path):
    out = run(data_dir, tmp_path)
    assert "\r" not in out and "\033" not in out
    assert len(re.findall(r"^iteration \d+/12, epoch .* loss", out, re.MULTILINE)) == 12


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [40, 200])
def test_on_a_terminal_every_other_line_replaces_the_progress(columns, data_dir, tmp_path):
    import fcntl
    import termios
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *TINY, f"--data_dir={data_dir}",
         f"--out_dir={tmp_path}", "--log_interval=6", "--eval_interval=6", "--sample_interval=4"],
        stdout=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # at its end, Linux raises an error
        while block := os.read(ours, 1 << 16):
            shown += block
    assert process.wait() == 0
    lines = [line.rpartition("\r\x1b[K")[2] for line in shown.decode().split("\r\n")]
    progress = re.findall(r"\r\x1b\[K(iteration [^\r]*)(?=\r\x1b)", shown.decode())
    assert [line.split("/")[0] for line in progress] == [f"iteration {i}" for i in range(1, 13)]
    assert all(len(line) == 39 or columns == 200 for line in progress)  # a longer one would wrap
    assert all(line.endswith("s left") or columns == 40 for line in progress)
    assert sum("s left" in line for line in lines) == 2
    assert not any(re.search("s left *(sample|stopped)", line) for line in lines)
    assert sum(line.startswith("  sample    |") for line in lines) == 3


def test_samples_continue_the_prompt_and_predicted_is_what_the_model_expects(data_dir, tmp_path):
    out = run(data_dir, tmp_path, "--sample_prompt=The ", "--num_return_sequences=2",
              "--max_length=9")
    model = GPT.from_snapshot(tmp_path / "final_model.pt")
    encoding = prepare.load_tokenizer(model.tokenizer)
    ids = torch.tensor([encoding.encode("The ")] * 2)
    for row in model.generate(ids, 9, generator=torch.Generator().manual_seed(1337)).tolist():
        assert "|" + encoding.decode(row).replace("\n", "\n            |") + "\n" in out
    text = torch.from_numpy(np.fromfile(data_dir / "val.bin", np.uint16)[:9].astype(np.int64))
    likeliest = model(text[None], text[None])[0][0].argmax(dim=-1)
    assert f"  text      |{encoding.decode(text.tolist())!r}\n" in out
    assert f"  predicted |{encoding.decode(likeliest.tolist())!r}\n" in out


def test_the_progress_says_the_epoch_the_average_speed_and_the_time_left():
    data = dict(train=range(400 * train.block_size + 1))
    run = SimpleNamespace(started=time.monotonic() - 50, sequences=200, n_iters=100, step=25,
                          loss=1.5, data=data, model=SimpleNamespace(flops_per_token=lambda: 10**9))
    speed = 200 * train.block_size / 50
    assert train.progress(run) == ("iteration 25/100, epoch 0.50: loss 1.5000, "
                                   f"{speed:,.0f} tokens/s, {speed:,.0f} GFLOP/s, "
                                   "50.00 s, 150 s left")


def test_a_clock_that_is_set_back_changes_no_seconds(data_dir, tmp_path, monkeypatch):
    falling = itertools.count(time.time(), -1000)
    monkeypatch.setattr(time, "time", lambda: next(falling))
    run(data_dir, tmp_path, "--max_iters=3", "--log_interval=1")
    assert all(0 < float(row["seconds"]) < 100 for row in rows(tmp_path))


def test_samples_and_expectations_are_shown(data_dir, tmp_path):
    out = run(data_dir, tmp_path, "--sample_interval=4", "--num_return_sequences=5",
              "--max_length=30")
    before_the_end, _, end = out.partition("iteration 12/12")
    assert before_the_end.count("sample ") == 2 and before_the_end.count("predicted ") == 2
    assert end.count("sample ") >= 5 and "test with" in end


def test_a_validation_text_shorter_than_a_sample_is_shown_as_it_is(data_dir, tmp_path):
    succeed("prepare", f"--input={data_dir / 'text.txt'}", "--val_fraction=0.0003",
            "--vocab_size=257", f"--out_dir={tmp_path}")
    out = run(tmp_path, tmp_path, "--max_iters=1", "--num_return_sequences=1", "--max_length=12")
    assert (tmp_path / "val.bin").stat().st_size == 2 * 9
    text = (tmp_path / "val.bin").read_bytes()[::2].decode()
    assert f"  text      |{text!r}\n" in out


@pytest.mark.parametrize("prompt", ["", "<|endoftext|>", "To<|endoftext|>"])
def test_a_sample_may_begin_with_a_new_document(data_dir, tmp_path, prompt):
    out = run(data_dir, tmp_path, "--max_iters=1", "--num_return_sequences=2",
              f"--sample_prompt={prompt}")
    assert out.count(f"  sample    |{prompt or '<|endoftext|>'}") == 2


def test_the_curve_of_a_single_loss_is_drawn(data_dir, tmp_path):
    succeed("prepare", f"--input={data_dir / 'text.txt'}", "--val_fraction=0", "--vocab_size=257",
            f"--out_dir={tmp_path}")
    run(tmp_path, tmp_path, "--max_iters=1")
    assert len(rows(tmp_path)) == 1 and "polyline" in (tmp_path / "loss.svg").read_text()


# ---- the optimization ---------------------------------------------------------------------------

@pytest.fixture
def updates():
    """A list that grows with each update of an optimizer: (learning rate, norm of the gradient)."""
    found = []

    def note(optimizer, *_):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm(grads).item()
        found.append((optimizer.param_groups[0]["lr"], norm))

    hook = register_optimizer_step_pre_hook(note)
    yield found
    hook.remove()


def test_four_accumulated_batches_equal_one_of_four_times_the_size(data_dir, tmp_path, updates):
    adamw = ["--max_iters=3", "--optimizer=adamw", "--grad_clip=0"]
    run(data_dir, tmp_path / "one", *adamw, "--batch_size=8")
    run(data_dir, tmp_path / "four", *adamw, "--batch_size=2", "--gradient_accumulation_steps=4")
    for one, four in zip(rows(tmp_path / "one"), rows(tmp_path / "four")):
        assert float(one["train_loss"]) == pytest.approx(float(four["train_loss"]), abs=2e-5)
    norms = [norm for _, norm in updates]  # (AdamW's updates don't depend on their scale)
    assert norms[:3] == pytest.approx(norms[3:], rel=1e-3)


def test_the_gradient_is_clipped_to_the_norm_that_grad_clip_says(data_dir, tmp_path, updates):
    adamw = ["--max_iters=3", "--optimizer=adamw"]
    run(data_dir, tmp_path / "clipped", *adamw, "--grad_clip=0.01")
    run(data_dir, tmp_path / "not", *adamw, "--grad_clip=0")
    norms = [norm for _, norm in updates]
    assert norms[:3] == pytest.approx([0.01] * 3, rel=1e-3) and min(norms[3:]) > 0.1


def test_adamw_and_muon_take_their_own_learning_rates_from_the_schedule(data_dir, tmp_path,
                                                                        updates):
    run(data_dir, tmp_path, "--max_iters=6", "--optimizer=muon", "--learning_rate=0.01",
        "--muon_learning_rate=0.03", "--min_lr=0.001")
    factors = [1 / 3, 2 / 3, 1, 0.775, 0.55, 0.325]  # a warmup of 2, then on the way to 0.1
    adamw, muon = ([rate for rate, _ in updates[i::2]] for i in (0, 1))
    assert adamw == pytest.approx([0.01 * factor for factor in factors])
    assert muon == pytest.approx([0.03 * factor for factor in factors])
    assert [float(row["lr"]) for row in rows(tmp_path)] == pytest.approx(adamw)


@pytest.fixture
def uniform_data(tmp_path):
    """Data in which all sequences are alike: if nothing is learned, only dropout changes a loss."""
    (tmp_path / "a.txt").write_text("a" * 3000)
    succeed("prepare", f"--input={tmp_path / 'a.txt'}", "--vocab_size=257", f"--out_dir={tmp_path}")
    return tmp_path


DROPOUT_ALONE = ["--learning_rate=0", "--muon_learning_rate=0", "--dropout=0.5"]


def test_dropout_differs_in_each_iteration_and_is_off_in_evaluations(uniform_data):
    run(uniform_data, uniform_data / "out", *DROPOUT_ALONE)
    log = rows(uniform_data / "out")
    assert len({row["train_loss"] for row in log}) == len(log) == 12
    assert len({row["val_loss"] for row in log if row["val_loss"]}) == 1


def test_dropout_differs_in_each_process(uniform_data, monkeypatch):
    settings = train.configure([*TINY, *DROPOUT_ALONE, f"--out_dir={uniform_data}/out"])
    for name, value in (settings | {"gradient_accumulation_steps": 2}).items():
        monkeypatch.setattr(train, name, value)
    meta, data = train.load_data(uniform_data)
    autocast = functools.partial(torch.autocast, "cpu", enabled=False)
    losses = set()
    for rank in (0, 1):
        machine = train.Machine(torch.device("cpu"), torch.float32, autocast, rank, 2)
        losses.add(train.train_step(train.start_run(settings, meta, data, machine)).item())
    assert len(losses) == 2


def test_bfloat16_is_used_and_close_to_float32(data_dir, tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        run(data_dir, tmp_path / dtype, f"--dtype={dtype}")
        losses.append(np.array([float(row["train_loss"]) for row in rows(tmp_path / dtype)]))
    assert 1e-6 < abs(losses[0] - losses[1]).max() < 0.1


def test_a_size_of_gpt3_has_the_block_size_of_the_setting(data_dir, tmp_path, monkeypatch):
    assert train.SIZES["gpt3-125m"]["block_size"] == 2048
    monkeypatch.setitem(train.SIZES, "gpt3-125m", dict(n_layer=1, n_head=1, n_embd=8,
                                                       block_size=2048))
    arguments = [argument for argument in TINY if not argument.startswith("--n_")]
    succeed("train", *arguments, f"--data_dir={data_dir}", f"--out_dir={tmp_path}",
            "--size=gpt3-125m", "--max_iters=1")
    config = GPT.from_snapshot(tmp_path / "final_model.pt").config
    assert (config.n_layer, config.n_embd, config.block_size) == (1, 8, 16)


def test_size_and_bias_shape_the_model(data_dir, tmp_path, monkeypatch):
    shape = dict(n_layer=1, n_head=2, n_embd=8)
    monkeypatch.setitem(train.SIZES, "gpt2-medium", shape)  # as if it were so small
    settings = [setting for setting in TINY if not setting.startswith("--n_")]
    succeed("train", *settings, f"--data_dir={data_dir}", f"--out_dir={tmp_path}", "--max_iters=1",
            "--size=gpt2-medium", "--bias=False")
    assert read_snapshot(tmp_path / "final_model.pt")["model_config"] == dict(
        block_size=16, vocab_size=300, dropout=0.0, bias=False, **shape)


def schedule(monkeypatch, **settings):
    defaults = {"warmup_iters": 10, "learning_rate": 1.0, "min_lr": 0.1, "lr_decay_iters": 0,
                "lr_gamma": 0.5, "lr_step_iters": 20}
    for name, value in (defaults | settings).items():
        monkeypatch.setattr(train, name, value)
    return lambda step: train.lr_factor(step, 110)


@pytest.mark.parametrize("name, values", [
    ("linear", {0: 1 / 11, 4: 5 / 11, 10: 1.0, 60: 0.55, 110: 0.1, 200: 0.1}),
    ("cosine", {0: 1 / 11, 10: 1.0, 35: 0.1 + 0.45 * (1 + 0.5 ** 0.5), 60: 0.55, 110: 0.1}),
    ("step", {10: 1.0, 29: 1.0, 30: 0.5, 50: 0.25, 70: 0.125}),
    ("constant", {5: 6 / 11, 10: 1.0, 109: 1.0}),
])
def test_the_learning_rate_follows_its_schedule(monkeypatch, name, values):
    factor = schedule(monkeypatch, lr_schedule=name)
    for step, value in values.items():
        assert factor(step) == pytest.approx(value)


def test_the_decay_can_end_before_the_run_does(monkeypatch):
    factor = schedule(monkeypatch, lr_schedule="linear", lr_decay_iters=60)
    assert factor(35) == pytest.approx(0.55) and factor(60) == factor(100) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_decay_that_ends_with_the_warmup_is_a_step_to_the_lowest_rate(monkeypatch, name):
    factor = schedule(monkeypatch, lr_schedule=name, lr_decay_iters=10)
    assert factor(9) == pytest.approx(10 / 11) and factor(10) == 1.0
    assert factor(11) == factor(100) == pytest.approx(0.1)


NEWTON_SCHULZ = [(3.4445, -4.7750, 2.0315)] * 5
POLAR_EXPRESS = [(8.1247, -22.2349, 15.6695), (4.1071, -2.9478, 0.5448), (3.9487, -2.9089, 0.5518)]


def plain_muon(weight, grads, lr, decay, polynomials, momentum=0.95):
    """One matrix, one step after the other, as the paper writes it."""
    weight, buffer = weight.clone(), torch.zeros_like(weight)
    for grad in grads:
        buffer = momentum * buffer + (1 - momentum) * grad
        x = (1 - momentum) * grad + momentum * buffer
        tall = x.size(0) > x.size(1)
        x = x.T if tall else x
        x = x / x.norm()
        for a, b, c in polynomials:
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        x = x.T if tall else x
        weight = weight * (1 - lr * decay) - lr * max(1, x.size(0) / x.size(1)) ** 0.5 * x
    return weight


@pytest.mark.parametrize("name, polynomials", [("newton-schulz", NEWTON_SCHULZ),
                                               ("polar-express", POLAR_EXPRESS)])
def test_batched_muon_equals_one_matrix_at_a_time(name, polynomials):
    torch.manual_seed(0)
    shapes = [(16, 16), (64, 16), (16, 64), (16, 16), (48, 16)]
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    before = [p.detach().clone() for p in parameters]
    grads = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    muon = train.Muon(parameters, dict(lr=0.1, momentum=0.95, weight_decay=0.2, polynomials=name))
    for step in grads:
        for parameter, grad in zip(parameters, step):
            parameter.grad = grad.clone()
        muon.step()
    for i, (parameter, start) in enumerate(zip(parameters, before)):
        history = [step[i] for step in grads]
        if shapes[i] == (48, 16):  # queries, keys and values
            parts = [plain_muon(w, [g.chunk(3)[j] for g in history], 0.1, 0.2, polynomials)
                     for j, w in enumerate(start.chunk(3))]
            expected = torch.cat(parts)
        else:
            expected = plain_muon(start, history, 0.1, 0.2, polynomials)
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name, least, most", [("newton-schulz", 0.6, 1.3),
                                               ("polar-express", 0.1, 1.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_orthogonalized_matrix_has_singular_values_near_one(name, least, most, dtype):
    scales = torch.logspace(-2, 0, 20).diag()  # singular values that differ by a factor of 100
    torch.manual_seed(0)
    matrix = torch.linalg.qr(torch.randn(3, 50, 20))[0] @ scales
    values = torch.linalg.svdvals(train.orthogonalized(matrix.to(dtype), name).float())
    assert least < values.min() and values.max() < most


@pytest.mark.parametrize("name", ["newton-schulz", "polar-express"])
def test_a_matrix_of_zeros_stays_one_and_disturbs_no_other(name):
    """With --block_size=1, attention has no choice, and Q and K have no gradient."""
    matrices = torch.stack((torch.eye(8), torch.zeros(8, 8)))
    found = train.orthogonalized(matrices, name)
    assert same(found[1], matrices[1])
    assert same(found[:1], train.orthogonalized(matrices[:1], name))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_each_matrix_gets_its_weight_decay_and_a_vector_gets_none(monkeypatch, optimizer):
    monkeypatch.setattr(train, "optimizer", optimizer)
    monkeypatch.setattr(train, "weight_decay", 0.5)
    monkeypatch.setattr(train, "embedding_weight_decay", 0.7)
    model = GPT(GPTConfig(block_size=8, vocab_size=20, n_layer=1, n_head=1, n_embd=8))
    decays = {p: group["weight_decay"] for opt in train.make_optimizers(model)
              for group in opt.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        is_embedding = optimizer == "muon" and name.endswith(("wte.weight", "wpe.weight"))
        assert decays[p] == (0 if p.dim() < 2 else 0.7 if is_embedding else 0.5)


def test_muon_takes_the_polynomials_of_the_setting_and_a_momentum_of_0_95(monkeypatch):
    monkeypatch.setattr(train, "optimizer", "muon")
    monkeypatch.setattr(train, "muon_polynomials", "polar-express")
    model = GPT(GPTConfig(block_size=8, vocab_size=20, n_layer=1, n_head=1, n_embd=8))
    muon, = train.make_optimizers(model)[1].param_groups
    assert muon["polynomials"] == "polar-express" and muon["momentum"] == 0.95


# ---- when it stops ------------------------------------------------------------------------------

def test_it_stops_as_soon_as_the_training_loss_reaches_the_target(data_dir, tmp_path):
    run(data_dir, tmp_path, "--max_iters=400", "--target_loss=4.5", "--eval_interval=50")
    losses = [float(row["train_loss"]) for row in rows(tmp_path)]
    assert losses[-1] <= 4.5 < min(losses[:-1])
    assert read_snapshot(tmp_path / "final_model.pt")["step"] == len(losses) < 400
    assert "nothing left to do" in run(data_dir, tmp_path, "--max_iters=400", "--target_loss=4.5",
                                       "--eval_interval=50")


def test_a_target_of_0_never_stops_a_run_even_if_its_loss_is_0(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 3000)
    succeed("prepare", f"--input={tmp_path / 'a.txt'}", "--vocab_size=257", f"--out_dir={tmp_path}")
    for split in ("train", "val"):
        run(tmp_path, tmp_path / split, "--learning_rate=1", "--max_iters=20",
            f"--target_split={split}")
        assert float(rows(tmp_path / split)[-1]["train_loss"]) == 0
        assert read_snapshot(tmp_path / split / "final_model.pt")["step"] == 20


def test_the_target_can_watch_the_validation_loss(data_dir, tmp_path):
    run(data_dir, tmp_path, "--max_iters=400", "--target_loss=4.5", "--target_split=val",
        "--eval_interval=7")
    *before, last = rows(tmp_path)
    losses = [float(row["val_loss"]) for row in before if row["val_loss"]]
    assert losses and float(last["val_loss"]) <= 4.5 < min(losses) and int(last["step"]) % 7 == 0
    assert min(float(row["train_loss"]) for row in before) <= 4.5  # which did not stop it


def test_max_iters_and_max_epochs_both_hold_whichever_comes_first(data_dir, tmp_path):
    tokens = len(np.fromfile(data_dir / "train.bin", np.uint16))
    for max_iters, max_epochs, expected in ((0, 0.05, math.ceil(0.05 * (tokens // 16) / 8)),
                                            (3, 0.05, 3), (12, 1e-6, 1), (2, 0, 2)):
        out_dir = tmp_path / f"{max_iters}_{max_epochs}"
        run(data_dir, out_dir, f"--max_epochs={max_epochs}", f"--max_iters={max_iters}",
            "--batch_size=8")
        assert read_snapshot(out_dir / "final_model.pt")["step"] == expected
    assert "max_iters=0" in fails(data_dir, tmp_path, "--max_iters=0", code=2)


def loss_in(output):
    return float(re.search(r"loss ([\d.]+)", output)[1])


def test_eval_only_evaluates_the_best_snapshot_on_the_split_it_is_given(data_dir, finished_run):
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    best = min(float(row["val_loss"]) for row in rows(finished_run) if row["val_loss"])
    out = run(data_dir, finished_run, "--eval_only")
    assert "best.pt" in out and loss_in(out) == pytest.approx(best, abs=1e-4)
    out = run(data_dir, finished_run, "--eval_only", "--eval_split=test")
    result = json.loads((finished_run / "test.json").read_text())
    assert out.startswith("test with") and loss_in(out) == pytest.approx(result["loss"], abs=1e-4)
    out = run(data_dir, finished_run, "--eval_only", "--eval_split=train")
    assert out.startswith("train with") and loss_in(out) != pytest.approx(best, abs=1e-4)
    assert before == {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}


def test_eval_only_of_a_run_evaluates_its_best_snapshot_for_each_init_from_of_train(
        data_dir, finished_run):
    lines = {run(data_dir, finished_run, "--eval_only", f"--init_from={name}")
             for name in ("auto", "resume", "scratch")}
    assert len(lines) == 1 and "best.pt" in lines.pop()


def test_eval_only_without_a_run_fails_with_one_line_and_writes_nothing(data_dir, tmp_path):
    assert "train.py" in fails(data_dir, tmp_path / "none", "--eval_only")
    assert not (tmp_path / "none").exists()


def test_eval_only_takes_a_run_a_snapshot_or_an_exported_model(data_dir, finished_run, tmp_path):
    GPT.from_snapshot(finished_run / "best.pt").save_pretrained(tmp_path / "exported")
    shutil.copytree(finished_run / "snapshots", tmp_path / "run" / "snapshots")
    shutil.copy(finished_run / "final_model.pt", tmp_path / "run")
    first = finished_run / "snapshots" / "snapshot_step_8.pt"
    losses = [loss_in(run(data_dir, tmp_path / "none", "--eval_only", f"--init_from={name}"))
              for name in (finished_run, tmp_path / "exported", first, tmp_path / "run")]
    steps = [read_snapshot(finished_run / "best.pt")["step"], 8, 12]
    by_step = {int(row["step"]): float(row["val_loss"]) for row in rows(finished_run)
               if row["val_loss"]}
    assert losses == pytest.approx([by_step[i] for i in (steps[0], *steps)], abs=1e-4)


def test_the_perplexity_of_a_loss_too_large_for_exp_is_shown_all_the_same(data_dir, finished_run,
                                                                           tmp_path):
    snapshot = torch.load(finished_run / "best.pt", weights_only=True)
    snapshot["model_state_dict"]["transformer.ln_f.weight"] *= 1e6
    torch.save(snapshot, tmp_path / "wild.pt")
    out = run(data_dir, tmp_path, "--eval_only", f"--init_from={tmp_path / 'wild.pt'}")
    assert loss_in(out) > 710 and "perplexity 1014232" in out  # exp(710) is no float any more


def test_eval_only_without_a_validation_text_says_so(data_dir, tmp_path):
    succeed("prepare", f"--input={data_dir / 'text.txt'}", "--vocab_size=300", "--val_fraction=0",
            f"--out_dir={tmp_path / 'data'}")
    assert "val.bin" in fails(tmp_path / "data", tmp_path / "out", "--eval_only")
    assert "val.bin" in fails(tmp_path / "data", tmp_path / "out", "--target_split=val")
    run(tmp_path / "data", tmp_path / "out", "--max_iters=2")  # but it can be trained on


def test_a_resumed_run_repeats_no_line_of_the_log(data_dir, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    out = run(data_dir, tmp_path / "out", "--max_iters=14")
    assert re.findall(r"^iteration (\d+)/14", out, re.MULTILINE) == ["13", "14"]
    assert [row["step"] for row in rows(tmp_path / "out")] == [str(i) for i in range(1, 15)]
    assert rows(tmp_path / "out")[:12] == rows(finished_run)


def test_the_loss_of_a_split_is_the_mean_over_each_token_in_its_block(data_dir, finished_run):
    found = run(data_dir, finished_run, "--eval_only", "--eval_iters=0")
    model = GPT.from_snapshot(get_snapshot(finished_run)).eval()
    tokens = torch.from_numpy(np.fromfile(data_dir / "val.bin", np.uint16).astype(np.int64))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16):
            block = tokens[start:start + 17]
            log_probs = model(block[None, :-1], block[None, 1:])[0][0].log_softmax(-1)
            nats -= sum(log_probs[i, token].item() for i, token in enumerate(block[1:]))
    assert f"loss {nats / (len(tokens) - 1):.4f}" in found


def test_the_batches_of_eval_iters_are_spread_over_the_split(data_dir, finished_run, monkeypatch):
    read = []

    def measure(loss_of, tokens, windows, *rest, original=train.measure):
        read.append((len(tokens), windows[:, 0]))
        return original(loss_of, tokens, windows, *rest)

    monkeypatch.setattr(train, "measure", measure)
    run(data_dir, finished_run, "--eval_only", "--eval_iters=2")
    (n_tokens, begins), = read
    assert len({*begins}) == 2 * 4 and begins[0] == 0 and begins[-1] > 0.8 * n_tokens
    assert np.diff(begins).max() < 2 * np.diff(begins).min()


def test_a_short_text_is_memorized(tmp_path, text):
    short = text[:1200]
    (tmp_path / "short.txt").write_text(short)
    succeed("prepare", f"--input={tmp_path / 'short.txt'}", "--vocab_size=400", "--val_fraction=0",
            "--test_fraction=0", f"--out_dir={tmp_path / 'data'}")
    succeed("train", "config/memorize.py", f"--data_dir={tmp_path / 'data'}", "--device=cpu",
            f"--out_dir={tmp_path / 'out'}")
    assert float(rows(tmp_path / "out")[-1]["train_loss"]) <= 0.05
    start = short[:short.index(" ", 30)]  # whole words, as the tokens have it
    found = succeed("sample", f"--out_dir={tmp_path / 'out'}", f"--start={start}", "--device=cpu",
                    "--temperature=0", "--max_new_tokens=300")
    assert len(found) > 500 and short.startswith(found.rstrip("\n"))


# ---- bad input ----------------------------------------------------------------------------------

def fails(data_dir, out_dir, *arguments, code=1):
    found, _, err = call("train", *TINY, f"--data_dir={data_dir}", f"--out_dir={out_dir}",
                         *arguments)
    assert found == code and err.count("\n") == 1 and err.startswith("error: ")
    return err


def test_missing_data_says_which_command_makes_it(tmp_path):
    command = f"python prepare.py --input=input.txt --out_dir={tmp_path / 'data'}"
    assert fails(tmp_path / "data", tmp_path).endswith(f"{command}\n")
    found = fails(tmp_path / "data", tmp_path, "--init_from=gpt2")
    assert found.endswith(f"{command} --tokenizer=gpt2\n")


def test_the_command_that_prepares_damaged_data_again_keeps_its_tokens(data_dir, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data_dir, data)
    (data / "text.txt").write_text((data_dir / "text.txt").read_text())
    run(data, out, "--max_iters=4")
    whole = (data / "val.bin").read_bytes()
    (data / "val.bin").write_bytes(whole[:-2])
    name, _, command = fails(data, out).partition(" again: python prepare.py ")
    succeed("prepare", *command.split())
    assert "val.bin" in name and (data / "val.bin").read_bytes() == whole
    assert "snapshot_step_4.pt" in run(data, out)  # where it resumes


def test_a_snapshot_that_is_damaged_twice_is_out_of_the_way_on_windows_too(data_dir, tmp_path,
                                                                          monkeypatch):
    def rename(path, target):
        if Path(target).exists():
            raise FileExistsError(17, "Cannot create a file when that file already exists", path)
        os.replace(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    for _ in range(2):
        run(data_dir, tmp_path, "--max_iters=8")
        (tmp_path / "final_model.pt").unlink()
        (tmp_path / "snapshots" / "snapshot_step_8.pt").write_bytes(b"damaged")
    assert "snapshot_step_4.pt" in run(data_dir, tmp_path, "--max_iters=8")


BYTES = {"name": "gpt2", "tokens": [chr(byte) for byte in range(256)]}  # in place of a download


def test_ids_beyond_the_vocabulary_are_named(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "find_tokenizer", lambda name: BYTES)
    shutil.copytree(data_dir, tmp_path / "data")
    np.full(5000, 299, np.uint16).tofile(tmp_path / "data" / "train.bin")
    assert "train.bin" in fails(tmp_path / "data", tmp_path / "out")  # meta.json has another hash
    (tmp_path / "data" / "meta.json").unlink()  # now it counts as GPT-2's tokens
    np.full(5000, 50_257, np.uint16).tofile(tmp_path / "data" / "train.bin")
    error = fails(tmp_path / "data", tmp_path / "out")
    assert "token 50257" in error and "vocab_size=50257" in error


def test_a_training_split_shorter_than_a_block_is_named(data_dir, tmp_path):
    assert "block_size=50000" in fails(data_dir, tmp_path, "--block_size=50000")


@pytest.mark.parametrize("arguments, word", [
    (["--n_embd=33"], "n_embd=33"), (["--n_head=5"], "n_head=5"), (["--n_layer=0"], "n_layer=0"),
    (["--dropout=1.5"], "dropout=1.5")])
def test_an_impossible_shape_is_a_usage_error(data_dir, tmp_path, arguments, word):
    assert word in fails(data_dir, tmp_path / "out", *arguments, code=2)
    assert not (tmp_path / "out").exists()


def test_an_unknown_device_is_named(data_dir, tmp_path):
    assert "abacus" in fails(data_dir, tmp_path, "--device=abacus")


def test_an_unwritable_out_dir_is_named(data_dir, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in fails(data_dir, tmp_path / "file" / "out")


@pytest.mark.parametrize("argument", ["--optimizer=sgd", "--lr_schedule=up", "--batch_size=0",
                                      "--size=gpt5", "--learning_rate=-1", "--target_split=dev",
                                      "--eval_split=dev", "--compile=maybe", "--overwrite",
                                      "--min_lr=0.1", "--beta1=1.0", "--beta2=1.5",
                                      "--dtype=int8"])
def test_an_invalid_setting_is_a_usage_error(data_dir, tmp_path, argument):
    assert argument[2:].split("=")[0] in fails(data_dir, tmp_path, argument, code=2)


def test_overwrite_does_not_delete_a_run_that_is_to_be_resumed(data_dir, finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for init_from in ("auto", "resume"):
        error = fails(data_dir, tmp_path / "out", "--overwrite", f"--init_from={init_from}", code=2)
        assert "overwrite" in error and "--init_from=scratch" in error
    assert before == {path: path.read_bytes() for path in before}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_snapshots(data_dir, tmp_path):
    run(data_dir, tmp_path, "--max_iters=4")
    kept = state(tmp_path / "snapshots" / "snapshot_step_4.pt")
    error = fails(data_dir, tmp_path, "--learning_rate=1e18", "--muon_learning_rate=1e18",
                  "--max_iters=40")
    assert "iteration" in error and "learning_rate" in error
    newest = max((tmp_path / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
    assert same(kept, state(newest))


def test_nanogpts_data_without_meta_json_is_taken_as_gpt2_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "find_tokenizer", lambda name: BYTES)
    tokens = np.random.default_rng(0).integers(0, 50257, 3000).astype(np.uint16)
    tokens[:2500].tofile(tmp_path / "train.bin")
    tokens[2500:].tofile(tmp_path / "val.bin")
    out = run(tmp_path, tmp_path / "out", "--max_iters=2", "--n_embd=16")
    assert "val loss" in out
    snapshot = read_snapshot(tmp_path / "out" / "final_model.pt")
    assert snapshot["model_config"]["vocab_size"] == 50257 and snapshot["tokenizer"] == BYTES


def test_nanogpts_character_tokens_are_refused(data_dir, tmp_path):
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        shutil.copy(data_dir / f"{split}.bin", tmp_path / "data")
    (tmp_path / "data" / "meta.pkl").write_bytes(b"not a pickle, and never read")
    error = fails(tmp_path / "data", tmp_path / "out")
    assert "meta.pkl" in error and "prepare.py" in error
    succeed("prepare", f"--input={data_dir / 'text.txt'}", f"--out_dir={tmp_path / 'data'}")
    succeed("train", *TINY, f"--data_dir={tmp_path / 'data'}", f"--out_dir={tmp_path / 'out'}")


@pytest.mark.parametrize("error, words", [
    (RuntimeError("can't allocate memory: you tried to allocate 9 GB"), "out of memory"),
    (MemoryError(), "out of memory"),
    *((OSError(number, os.strerror(number)), f"snapshot_step_12.pt: {os.strerror(number)}")
      for number in (errno.EIO, errno.EACCES, errno.ESTALE))], ids=repr)
def test_too_little_memory_for_a_snapshot_or_a_disk_error_is_not_taken_for_damage(
        error, words, data_dir, finished_run, tmp_path, monkeypatch):
    def torch_load(*rest, **options):
        raise error

    shutil.copytree(finished_run, tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))
    monkeypatch.setattr("model.torch_load", torch_load)
    assert words in fails(data_dir, tmp_path / "out", "--max_iters=20")
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_data_that_is_replaced_after_its_check_is_not_read(data_dir, finished_run, tmp_path,
                                                           monkeypatch):
    shutil.copytree(data_dir, tmp_path / "data")

    def fingerprint(path, original=prepare.fingerprint):
        found = original(path)
        if path.name == "test.bin":
            shutil.copy(data_dir / "val.bin", tmp_path / "new.bin")
            os.replace(tmp_path / "new.bin", path)
        return found

    monkeypatch.setattr(prepare, "fingerprint", fingerprint)
    run(tmp_path / "data", tmp_path / "out")
    expected = (finished_run / "test.json").read_bytes()
    assert (tmp_path / "out" / "test.json").read_bytes() == expected


# ---- tokens, models and settings that don't belong together -------------------------------------

@pytest.fixture(scope="module")
def two_texts(tmp_path_factory):
    """A folder with the data of two texts, the tokenizers being of one size, and a trained run."""
    folder = tmp_path_factory.mktemp("two_texts")
    whole = (ROOT / "input.txt").read_text(encoding="utf-8")
    for name, text in (("a", whole[:30_000]), ("b", whole[-30_000:])):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        succeed("prepare", f"--input={folder / name}.txt", "--vocab_size=400",
                f"--out_dir={folder / name}")
    succeed("train", *TINY, f"--data_dir={folder / 'a'}", f"--out_dir={folder / 'run'}",
            "--max_iters=60", "--eval_interval=60", "--snapshot_interval=60", "--batch_size=16")
    GPT.from_snapshot(folder / "run" / "best.pt").save_pretrained(folder / "exported")
    return folder


@pytest.mark.parametrize("name", ["run", "exported", "run/best.pt"])
def test_data_in_another_tokenizers_tokens_are_refused_and_can_be_prepared_again(
        two_texts, tmp_path, name):
    arguments = [f"--init_from={two_texts / name}", "--eval_iters=0"]
    for more in (["--eval_only"], ["--max_iters=2"]):
        error = fails(two_texts / "b", tmp_path / "out", *arguments, *more)
    command = error.strip().partition("python prepare.py ")[2]
    succeed("prepare", *command.replace("FOLDER", f"{tmp_path / 'data'}").split())
    assert loss_in(run(tmp_path / "data", tmp_path / "out", *arguments, "--eval_only")) < 5.5
    run(tmp_path / "data", tmp_path / "out", *arguments, "--max_iters=2")  # ln(400) is 5.99
    final = read_snapshot(tmp_path / "out" / "final_model.pt")
    assert final["tokenizer"] == read_snapshot(two_texts / "run" / "best.pt")["tokenizer"]


def test_in_bfloat16_a_model_with_logits_near_minus_100_is_evaluated_as_the_same_function(
        two_texts, tmp_path):
    """GPT-2's logits are near -100, where bfloat16 has steps of 0.5: see linear_cross_entropy."""
    snapshot = torch.load(two_texts / "run" / "best.pt", weights_only=True)
    weights = snapshot["model_state_dict"]
    losses, texts = [], []
    for shift in (0, 10):  # along a direction that the embeddings don't use
        weights["transformer.wte.weight"][:, 3] = shift
        weights["transformer.wpe.weight"][:, 3] = -shift
        weights["transformer.ln_f.bias"][3] = -shift
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
        path = tmp_path / f"{shift}.pt"
        torch.save(snapshot, path)
        logits = GPT.from_snapshot(path).eval()(torch.tensor([[1, 2, 3]]))[0]
        assert abs(logits.mean().item() + shift ** 2) < 30
        for dtype in ("float32", "bfloat16"):
            losses.append(loss_in(run(two_texts / "a", tmp_path, f"--init_from={path}",
                                      f"--dtype={dtype}", "--eval_only", "--eval_iters=0")))
        texts.append([succeed("sample", f"--snapshot={path}", "--dtype=bfloat16", "--device=cpu",
                              f"--temperature={temperature}", "--start=The ")
                      for temperature in (0, 1)])
    assert losses == pytest.approx([losses[0]] * 4, abs=2e-3)
    assert texts[0] == texts[1] and len(set(texts[0][1])) > 20


def test_optimizer_settings_of_the_command_line_take_effect_on_resume(data_dir, tmp_path):
    arguments = ["--lr_schedule=constant", "--optimizer=adamw"]
    run(data_dir, tmp_path / "first", *arguments, "--max_iters=4")
    weights = []
    for i, more in enumerate([[], ["--weight_decay=5.0"], ["--beta1=0.5"], ["--beta2=0.5"]]):
        shutil.copytree(tmp_path / "first", tmp_path / str(i))
        run(data_dir, tmp_path / str(i), *arguments, *more, "--max_iters=8")
        weights.append(read_snapshot(tmp_path / str(i) / "final_model.pt")["model_state_dict"])
    for i in range(1, 4):
        assert not same(weights[0], weights[i])
    run(data_dir, tmp_path / "whole", *arguments, "--max_iters=8")
    whole = read_snapshot(tmp_path / "whole" / "final_model.pt")["model_state_dict"]
    assert same(weights[0], whole)


def test_the_best_snapshot_is_measured_again_where_the_evaluation_changes(data_dir, tmp_path):
    """The loss of one batch must not be compared with that of the whole split."""
    arguments = ["--seed=1", "--eval_interval=20", "--snapshot_interval=20", "--log_interval=20"]
    run(data_dir, tmp_path, *arguments, "--max_iters=60", "--eval_iters=1")
    before = read_snapshot(tmp_path / "best.pt")
    run(data_dir, tmp_path, *arguments, "--max_iters=80", "--eval_iters=0")
    best = read_snapshot(tmp_path / "best.pt")
    losses = [loss_in(run(data_dir, tmp_path, "--eval_only", "--eval_iters=0",
                          f"--init_from={tmp_path}/snapshots/snapshot_step_{step}.pt"))
              for step in (60, 80)]
    assert before["best_val_loss"] != pytest.approx(losses[0], abs=1e-3)
    assert best["best_val_loss"] == pytest.approx(min(losses), abs=1e-4)
    # A worse model measured in an easier way doesn't replace it.
    run(data_dir, tmp_path, *arguments, "--max_iters=100", "--eval_iters=1", "--learning_rate=1.0",
        "--muon_learning_rate=1.0", "--lr_schedule=constant")
    assert read_snapshot(tmp_path / "best.pt")["step"] == best["step"]


def test_a_run_resumed_with_another_batch_size_continues_with_the_next_unread_sequence(
        data_dir, tmp_path, monkeypatch):
    read = []
    original = train.get_batch

    def get_batch(tokens, first):
        read.extend(range(first, first + train.batch_size))
        return original(tokens, first)

    monkeypatch.setattr(train, "get_batch", get_batch)
    run(data_dir, tmp_path, "--batch_size=16", "--max_iters=3")
    run(data_dir, tmp_path, "--batch_size=4", "--max_iters=5", "--gradient_accumulation_steps=2")
    run(data_dir, tmp_path, "--batch_size=6", "--max_iters=7")
    assert read == list(range(3 * 16 + 2 * 8 + 2 * 6))
    tokens = [int(row["tokens"]) for row in rows(tmp_path)]
    assert tokens == [16 * n for n in (16, 32, 48, 56, 64, 70, 76)]


# ---- one run a folder, and messages -------------------------------------------------------------

def test_a_second_run_in_the_folder_is_refused_with_the_process_id(data_dir, finished_run,
                                                                  tmp_path):
    shutil.copytree(finished_run, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    holder = subprocess.Popen([sys.executable, "-c", "import sys, prepare\n"
                               "lock = prepare.lock_folder(sys.argv[1])\n"
                               "print('locked', flush=True)\nsys.stdin.read()", tmp_path / "out"],
                              cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        for arguments in ([], ["--max_iters=20"], ["--init_from=scratch", "--overwrite"]):
            error = fails(data_dir, tmp_path / "out", *arguments)
            assert str(holder.pid) in error and str(tmp_path / "out") in error
        holder.communicate()
    found = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    found[tmp_path / "out" / ".lock"] = before[tmp_path / "out" / ".lock"]
    assert found == before
    assert "resuming from" in run(data_dir, tmp_path / "out", "--max_iters=13")


def test_a_closed_standard_output_does_not_stop_a_run(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it then
    assert config.run(train.main, [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path}"]) == 0
    assert (tmp_path / "final_model.pt").exists()


def test_samples_come_at_their_own_interval(data_dir, tmp_path):
    out = run(data_dir, tmp_path, "--sample_interval=3", "--eval_interval=100", "--max_length=5",
              "--log_interval=100")
    assert out.count("  sample    |") == 4 and out.count("  predicted |") == 4


@pytest.mark.parametrize("edit", [lambda log: log + "\n", lambda log: "\ufeff" + log,
                                  lambda log: log.replace(",,,\n", "\n")],
                         ids=["empty line", "byte order mark", "without the commas at its end"])
def test_a_log_that_an_editor_has_changed_a_little_is_no_obstacle(edit, data_dir, tmp_path):
    run(data_dir, tmp_path, "--max_iters=4")
    log = tmp_path / "log.csv"
    assert ",,,\n" in log.read_text()
    log.write_text(edit(log.read_text()), encoding="utf-8")
    run(data_dir, tmp_path, "--max_iters=6")
    assert [row["step"] for row in rows(tmp_path)] == list("123456")


def test_the_test_result_is_in_a_file_and_measured_once(data_dir, tmp_path):
    out = run(data_dir, tmp_path)
    result = json.loads((tmp_path / "test.json").read_text())
    assert result["snapshot"] == "best.pt" and f"loss {result['loss']:.4f}" in out
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    size = json.loads((data_dir / "meta.json").read_text())["splits"]["test"]
    assert result["bits_per_byte"] == pytest.approx(
        result["loss"] / math.log(2) * size["tokens"] / size["bytes"])
    assert "test with" not in run(data_dir, tmp_path)
    (tmp_path / "test.json").unlink()  # as if it had been interrupted
    assert f"loss {result['loss']:.4f}" in run(data_dir, tmp_path)
    assert json.loads((tmp_path / "test.json").read_text()) == result


def test_the_test_measures_the_best_snapshot_not_the_last(data_dir, tmp_path):
    run(data_dir, tmp_path, "--max_iters=8")
    run(data_dir, tmp_path, "--max_iters=12", "--learning_rate=1", "--muon_learning_rate=1",
        "--lr_schedule=constant")  # which makes it worse
    result = json.loads((tmp_path / "test.json").read_text())
    best, final = (loss_in(run(data_dir, tmp_path, "--eval_only", "--eval_split=test",
                               f"--init_from={tmp_path / name}"))
                   for name in ("best.pt", "final_model.pt"))
    assert result["loss"] == pytest.approx(best, abs=1e-4) != pytest.approx(final, abs=0.1)


# ---- compiling ----------------------------------------------------------------------------------

@pytest.mark.parametrize("compile, device, flops, expected", [
    (True, "cpu", 1e9, True), (False, "cuda", 1e18, False), ("auto", "cpu", 1e18, False),
    ("auto", "cuda", 0.99e16, False), ("auto", "cuda", 1.01e16, True)])
def test_auto_compiles_on_cuda_from_1e16_flops_of_the_whole_run_on(
        compile, device, flops, expected, data_dir, tmp_path, monkeypatch):
    settings = train.configure([*TINY, f"--out_dir={tmp_path}", f"--compile={compile}"])
    for name, value in settings.items():
        monkeypatch.setattr(train, name, value)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    monkeypatch.setattr(train, "distributed", lambda model, device: model)
    meta, data = train.load_data(data_dir)
    tokens = settings["batch_size"] * settings["block_size"]
    model = GPT(GPTConfig(16, meta["vocab_size"], 2, 2, 32))
    monkeypatch.setattr(train, "max_iters", int(flops / (model.flops_per_token() * tokens)))
    machine = train.Machine(torch.device(device), torch.float32, None, 0, 1)
    train.start_run(settings, meta, data, machine)
    assert len(compiled) == expected


# ---- data of other projects ---------------------------------------------------------------------

def test_shards_of_llmc_are_a_data_folder_with_the_losses_of_nanogpts_files(tmp_path):
    try:
        prepare.find_tokenizer("gpt2")
    except OSError as error:
        pytest.skip(f"GPT-2's vocabulary is not available: {error}")
    tokens = np.random.default_rng(0).integers(50257, size=3000).astype("<u2")
    for name in ("nano", "shards"):
        (tmp_path / name).mkdir()
    tokens[:2000].tofile(tmp_path / "nano" / "train.bin")
    tokens[2000:].tofile(tmp_path / "nano" / "val.bin")
    for name, part in (("x_train_000001", tokens[:700]), ("x_train_000002", tokens[700:2000]),
                       ("x_val", tokens[2000:])):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(part)
        (tmp_path / "shards" / f"{name}.bin").write_bytes(header.tobytes() + part.tobytes())
    for name in ("nano", "shards"):
        succeed("train", *TINY, "--max_iters=4", f"--data_dir={tmp_path / name}",
                f"--out_dir={tmp_path}/out_{name}")
    nano, shards = (without_times(tmp_path / f"out_{name}") for name in ("nano", "shards"))
    assert nano == shards and len(nano) >= 4
    gpt2 = tiktoken.get_encoding("gpt2")
    text = gpt2.decode_bytes(tokens[2000:][tokens[2000:] != gpt2.eot_token].tolist())
    last = rows(tmp_path / "out_shards")[-1]  # bits per byte without a meta.json
    bits = float(last["val_loss"]) / math.log(2) * 1000 / len(text)
    assert math.isclose(float(last["val_bits_per_byte"]), bits)
    path = tmp_path / "shards" / "x_train_000002.bin"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in fails(tmp_path / "shards", tmp_path / "out")
    path = tmp_path / "nano" / "val.bin"
    path.write_bytes(path.read_bytes()[:-1])  # a copy that stopped in the middle of a number
    assert str(path) in fails(tmp_path / "nano", tmp_path / "out")


# ---- a run that is extended, or stopped at its end ----------------------------------------------

def test_max_epochs_counts_the_sequences_read_before_the_batch_size_changed(data_dir, tmp_path):
    settings = ["--max_epochs=0.1", "--eval_interval=100"]
    run(data_dir, tmp_path, *settings, "--max_iters=10")
    run(data_dir, tmp_path, *settings, "--max_iters=1000", "--batch_size=8")
    per_epoch = np.fromfile(data_dir / "train.bin", np.uint16).size // 16
    left = math.ceil(0.1 * per_epoch) - 10 * 4
    assert read_snapshot(tmp_path / "final_model.pt")["step"] == 10 + math.ceil(left / 8)


def test_a_run_that_is_extended_and_killed_at_its_end_is_not_taken_for_finished(
        data_dir, tmp_path, monkeypatch):
    run(data_dir, tmp_path, "--max_iters=8")
    original = train.save_snapshot

    def save_snapshot(run, name):
        if name == "final_model.pt":
            raise KeyboardInterrupt
        original(run, name)

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_snapshot", save_snapshot)
        code, _, _ = call("train", *TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path}")
        assert code == 130
    assert "nothing left to do" not in run(data_dir, tmp_path)
    assert read_snapshot(tmp_path / "final_model.pt")["step"] == 12


def test_a_run_killed_after_it_has_repeated_an_evaluation_knows_the_best_one(data_dir, tmp_path,
                                                                             monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    arguments = [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path}"]

    def interrupted(run, *rest, original=train.evaluate):
        if run.step == 4:
            signal.raise_signal(signal.SIGTERM)
        return original(run, *rest)

    def killed(run):
        raise KeyboardInterrupt

    try:
        for name, stand_in, code in (("evaluate", interrupted, 143), ("train_step", killed, 130)):
            with monkeypatch.context() as patch:
                patch.setattr(train, name, stand_in)
                assert call("train", *arguments)[0] == code
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    newest = read_snapshot(tmp_path / "snapshots" / "snapshot_step_4.pt")
    best = read_snapshot(tmp_path / "best.pt")
    assert newest["best_val_loss"] == best["best_val_loss"] < math.inf and best["step"] == 4


@pytest.mark.parametrize("step", [4, 12])
def test_an_evaluation_that_a_signal_interrupts_twice_is_in_the_log_in_the_end(
        step, data_dir, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signals = []

    def evaluate(run, *rest, original=train.evaluate):
        if run.step == step and len(signals) < 2:
            signals.append(run.step)
            signal.raise_signal(signal.SIGTERM)
        return original(run, *rest)

    monkeypatch.setattr(train, "evaluate", evaluate)
    try:
        for code in (143, 143, 0):
            arguments = [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path}"]
            assert call("train", *arguments)[0] == code
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    assert [row["step"] for row in rows(tmp_path) if row["val_loss"]] == ["4", "8", "12"]
    assert read_snapshot(tmp_path / "final_model.pt")["step"] == 12


def test_a_meta_json_that_was_changed_is_refused_as_damaged(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    path = tmp_path / "data" / "meta.json"
    meta = json.loads(path.read_text())
    tokens = meta["tokenizer"]["tokens"]
    tokens[260], tokens[261] = tokens[261], tokens[260]
    path.write_text(json.dumps(meta))
    for command in (["train", *TINY, f"--data_dir={tmp_path / 'data'}"],
                    ["prepare", f"--input={data_dir / 'text.txt'}",
                     f"--tokenizer={tmp_path / 'data'}"]):
        code, out, err = call(*command, f"--out_dir={tmp_path / 'out'}")
        assert code == 1 and f"{path} is damaged: prepare it again" in err


def test_processes_that_see_different_folders_are_refused(data_dir, finished_run, monkeypatch):
    """One that finds a snapshot and one that finds none must not average their gradients."""
    settings = train.configure([*TINY, f"--out_dir={finished_run}", "--max_iters=20",
                                "--gradient_accumulation_steps=2"])
    meta, data = train.load_data(data_dir)
    machine = train.Machine(torch.device("cpu"), torch.float32, None, 0, 2)
    with pytest.raises(ValueError, match="share"):  # the sum of the steps, 12, is not 2 * 12
        train.start_run(settings, meta, data, machine)
