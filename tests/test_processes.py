"""The same run under torchrun: DDP over gloo, two processes on this machine."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, call, succeed

import train
from model import read_snapshot

RUN = [*TINY, "--gradient_accumulation_steps=4", "--optimizer=muon", "--max_iters=20"]


def torchrun(processes, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc_per_node={processes}", "train.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS="1"),
                          capture_output=True, text=True, timeout=120)


def losses(out_dir):
    with open(out_dir / "log.csv", newline="") as file:
        return [(float(row["train_loss"]), float(row["val_loss"] or 0))
                for row in csv.DictReader(file)]


def test_two_processes_see_the_data_and_have_the_losses_of_one(data_dir, tmp_path):
    where = [f"--data_dir={data_dir}"]
    succeed("train", *RUN, *where, f"--out_dir={tmp_path / 'one'}")
    done = torchrun(2, *RUN, *where, f"--out_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "two")) == 20
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    assert done.stdout.count("iteration 20/20") == 1  # only one process prints
    # one process resumes from the snapshot of two
    out = succeed("train", *RUN, *where, f"--out_dir={tmp_path / 'two'}", "--max_iters=22")
    assert "resuming from" in out
    assert read_snapshot(tmp_path / "two" / "final_model.pt")["step"] == 22


def test_a_number_of_micro_batches_that_processes_cannot_share_is_refused(data_dir, tmp_path):
    done = torchrun(2, *RUN, f"--data_dir={data_dir}", f"--out_dir={tmp_path}",
                    "--gradient_accumulation_steps=3")
    assert done.returncode != 0
    assert re.search(r"gradient_accumulation_steps=3\D+2\b.*processes", done.stderr)


def test_each_process_takes_its_own_gpu_before_it_touches_any(monkeypatch):
    calls = []

    def get_device(*settings):
        calls.append("a GPU is touched")
        raise ValueError("enough")

    for name, value in (("RANK", "3"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(train, "get_device", get_device)
    assert call("train")[0] == 1
    assert calls == [3, "a GPU is touched"]
