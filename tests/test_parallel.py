"""Many processes: however many there are and however they share the model, it is the same run.

Starting torchrun costs seconds, so one launch makes many runs (WORKER), and the tests read what
they left. The runs of one process are made in the test's own.
"""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, succeed

import train
from model import GPT, SIZES, GPTConfig, read_snapshot

# 4 micro-batches make an iteration. The rate is constant, so that a shorter run is the beginning
# of a longer one.
TINY = ("--n_layer=2 --n_head=2 --n_embd=32 --block_size=16 --batch_size=4 --device=cpu "
        "--gradient_accumulation_steps=4 --lr_schedule=constant --warmup_iters=2 --log_interval=1 "
        "--eval_interval=100 --snapshot_interval=10 --num_return_sequences=0").split()
# Nothing is learned, so that the validation loss is a function of the evaluation alone.
STILL = ["--max_iters=1", "--learning_rate=0", "--muon_learning_rate=0"]

# Started by torchrun: makes the runs of a JSON list in turn, and leaves a JSON file of each and of
# each process. 'strike' is [process, iteration, what befalls it there].
WORKER = r"""
import contextlib, hashlib, io, json, os, signal, sys
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
import config, model, train

dist.init_process_group("gloo")  # one group for all runs
dist.init_process_group = lambda backend, **options: None
rank, folder = dist.get_rank(), sys.argv[1]

class CountingDDP(torch.nn.parallel.DistributedDataParallel):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register_comm_hook(None, self.count)

    def count(self, state, bucket):
        report["syncs"] += 1
        return allreduce_hook(state, bucket)

def hold(optimizer, *rest):  # note what this process's part of the model takes in memory
    if len(report["batches"]) == 4:  # the second iteration
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        state = [x for p in weights for x in optimizer.state[p].values() if x.dim()]
        for kind, tensors in (("weights", weights), ("gradients", [p.grad for p in weights]),
                              ("state", state)):
            storages = [getattr(x, "to_local", lambda: x)().untyped_storage() for x in tensors]
            report["held"].setdefault(kind, {}).update({x.data_ptr(): x.nbytes() for x in storages})

def forward(block, *arguments, original=model.Block.forward):
    report["blocks"] += torch.is_grad_enabled()
    return original(block, *arguments)

def get_batch(tokens, first, vocab_size, original=train.get_batch):
    ids = original(tokens, first, vocab_size)
    report["batches"].append([first, hashlib.sha256(ids.numpy()).hexdigest()])
    process, iteration, what = strike or (None, None, None)
    restarted = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if rank == process and first // 16 == iteration and not restarted:
        if what == "raise":
            raise ValueError("struck: this process can't go on")
        signal.raise_signal(getattr(signal, what))
    return ids

train.get_batch, model.Block.forward = get_batch, forward
torch.nn.parallel.DistributedDataParallel = CountingDDP
register_optimizer_step_pre_hook(hold)
for name, arguments, strike in json.loads(sys.argv[2]):
    report = {"batches": [], "syncs": 0, "blocks": 0, "held": {}}
    stdout, stderr = sys.stdout, io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            report["code"] = config.run(train.main, arguments)
    except SystemExit as stop:
        report["code"] = stop.code
    finally:
        sys.stdout = stdout
        print(stderr.getvalue(), file=sys.stderr)
        report["stderr"] = stderr.getvalue()
        with open(f"{folder}/{name}.{rank}.json", "w") as file:
            json.dump(report, file)
    if strike and strike[2] == "raise" and rank == strike[0]:
        sys.exit(report["code"])  # as train.py does
"""


# ---- starting runs and reading what they left ---------------------------------------------------

def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(*arguments, **options):
    """Start torchrun, whose processes compute with one thread each."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)], cwd=ROOT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, **options)


def finish(process):
    """Return what torchrun and its processes have printed when the last of them has ended."""
    try:
        return process.communicate(timeout=100)[0]
    except subprocess.TimeoutExpired:  # it hangs, and must not outlive the test
        process.terminate()
        raise


def launch(folder, processes, runs, *options):
    """Make runs {name: (arguments, strike)} under one torchrun; return what it printed and left."""
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    listed = [[name, [f"--out_dir={folder}/{name}", *arguments], strike]
              for name, (arguments, strike) in runs.items()]
    process = torchrun(f"--nproc_per_node={processes}", f"--master_port={free_port()}", *options,
                       folder / "worker.py", folder, json.dumps(listed))
    output = finish(process)

    def reports(name):  # of each process
        files = [folder / f"{name}.{rank}.json" for rank in range(processes)]
        assert all(file.exists() for file in files), output[-5000:]
        return [json.loads(file.read_text()) for file in files]

    return SimpleNamespace(code=process.returncode, output=output, folder=folder, reports=reports)


def rows(out_dir):
    with open(out_dir / "log.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(out_dir):
    return [float(row["train_loss"]) for row in rows(out_dir)]


def assert_same_losses(found, expected, tolerance=1e-4):
    assert len(found) == len(expected)
    apart = [abs(a - b) for a, b in zip(found, expected)]
    assert max(apart) < tolerance, apart


@pytest.fixture(scope="module")
def tiny(data_dir):
    return [*TINY, f"--data_dir={data_dir}"]


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The runs of one process, the batches that it saw, and the first leg of a relay."""
    folder = tmp_path_factory.mktemp("alone")
    batches, original = [], train.get_batch

    def get_batch(tokens, first, vocab_size):
        ids = original(tokens, first, vocab_size)
        batches.append([first, hashlib.sha256(ids.numpy()).hexdigest()])
        return ids

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "get_batch", get_batch)
        succeed("train", *tiny, "--max_iters=50", f"--out_dir={folder}/muon")
    succeed("train", *tiny, "--max_iters=20", "--optimizer=adamw", f"--out_dir={folder}/adamw")
    succeed("train", *tiny, *STILL, f"--out_dir={folder}/still")
    succeed("train", *tiny, *STILL, "--eval_iters=1", f"--out_dir={folder}/still_few")
    succeed("train", *tiny, "--max_iters=10", f"--out_dir={folder}/relay")
    return SimpleNamespace(folder=folder, batches=batches)


@pytest.fixture(scope="module")
def two(alone, tiny, tmp_path_factory):
    """What two processes make of the same settings, and the middle legs of the relay."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(alone.folder / "relay", folder / "relay")
    fsdp, adamw, short = "--parallel=fsdp", "--optimizer=adamw", [*tiny, "--max_iters=3"]
    relay = [*tiny, f"--out_dir={folder}/relay"]
    runs = {
        "ddp": [*tiny, "--max_iters=50"],
        "fsdp": [*tiny, "--max_iters=20", fsdp],
        "ddp_adamw": [*tiny, "--max_iters=20", adamw],
        "fsdp_adamw": [*tiny, "--max_iters=20", adamw, fsdp],
        "still": [*tiny, *STILL],
        "still_few": [*tiny, *STILL, "--eval_iters=1", fsdp],
        "checkpointing_ddp": [*short, "--activation_checkpointing"],
        "checkpointing_fsdp": [*short, "--activation_checkpointing", fsdp],
        "indivisible": [*tiny, "--gradient_accumulation_steps=3"],
    }
    runs = {name: (arguments, None) for name, arguments in runs.items()}
    runs["told_to_stop"] = [*tiny, "--max_iters=50"], (1, 4, "SIGTERM")
    runs["samples"] = [*short, fsdp, "--num_return_sequences=2", "--sample_interval=2",
                       "--eval_interval=2"], None
    runs["struck"] = [*tiny, "--max_iters=50"], (1, 3, "raise")
    legs = {f"leg{i}": ([*relay, f"--max_iters={last}", f"--parallel={parallel}"], None)
            for i, (last, parallel) in enumerate([(20, "fsdp"), (30, "ddp"), (40, "fsdp")])}
    return launch(folder, 2, legs | runs)


@pytest.fixture(scope="module")
def four(tiny, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("four"), 4, {
        "ddp": ([*tiny, "--max_iters=50"], None), "still": ([*tiny, *STILL], None)})


# ---- the same run -------------------------------------------------------------------------------

@pytest.mark.parametrize("processes", ["two", "four"])
def test_losses_of_50_iterations_do_not_depend_on_the_number_of_processes(alone, processes,
                                                                          request):
    folder = request.getfixturevalue(processes).folder
    expected = losses(alone.folder / "muon")
    assert len(expected) == 50 and expected[0] - expected[-1] > 1
    assert_same_losses(losses(folder / "ddp"), expected)


@pytest.mark.parametrize("processes", ["two", "four"])
def test_any_number_of_processes_sees_each_batch_of_one_process_once(alone, processes, request):
    reports = request.getfixturevalue(processes).reports("ddp")
    assert len({len(report["batches"]) for report in reports}) == 1
    assert len(alone.batches) == 50 * 4
    together = [batch for report in reports for batch in report["batches"]]
    assert sorted(together) == sorted(alone.batches)


def test_ddp_synchronises_gradients_once_an_iteration_not_once_a_micro_batch(two):
    for report in two.reports("ddp"):
        assert len(report["batches"]) == 100
        assert report["syncs"] == 50  # all gradients are one bucket here


@pytest.mark.parametrize("optimizer, suffix", [("muon", ""), ("adamw", "_adamw")])
def test_losses_of_fsdp_agree_with_those_of_ddp_and_of_one_process(alone, two, optimizer, suffix):
    found = losses(two.folder / f"fsdp{suffix}")
    assert len(found) == 20
    assert_same_losses(found, losses(two.folder / f"ddp{suffix}")[:20])
    assert_same_losses(found, losses(alone.folder / optimizer)[:20])


@pytest.mark.parametrize("suffix, states", [("", None), ("_adamw", 2)])
def test_each_of_two_fsdp_processes_holds_half_of_weights_gradients_and_state(two, suffix, states):
    parameters = GPT(GPTConfig(16, 300, 2, 2, 32)).num_params()
    for shared, whole in zip(two.reports(f"fsdp{suffix}"), two.reports(f"ddp{suffix}")):
        held = {kind: sum(places.values()) for kind, places in whole["held"].items()}
        assert held["weights"] == held["gradients"] == 4 * parameters
        if states:  # two numbers a parameter with AdamW; with Muon, one for some of them
            assert held["state"] == states * held["weights"]
        for kind, size in held.items():
            assert 0.5 <= sum(shared["held"][kind].values()) / size < 0.52


@pytest.mark.parametrize("processes, count", [("two", 2), ("four", 4)])
def test_a_shared_evaluation_equals_that_of_one_process(alone, data_dir, processes, count, request):
    folder = request.getfixturevalue(processes).folder
    tokens = json.loads((data_dir / "meta.json").read_text())["splits"]["val"]["tokens"]
    assert math.ceil((tokens - 1) / 16) % (4 * count)  # the blocks don't divide
    expected = read_snapshot(alone.folder / "still" / "best.pt")["best_val_loss"]
    found = read_snapshot(folder / "still" / "best.pt")["best_val_loss"]
    assert abs(found - expected) < 1e-6


def test_an_evaluation_too_small_for_all_processes_equals_that_of_one(alone, two):
    # one batch for two processes that have to gather each other's weights
    expected = read_snapshot(alone.folder / "still_few" / "best.pt")["best_val_loss"]
    found = read_snapshot(two.folder / "still_few" / "best.pt")["best_val_loss"]
    assert abs(found - expected) < 1e-6
    assert abs(found - read_snapshot(two.folder / "still" / "best.pt")["best_val_loss"]) > 1e-4


def test_a_run_is_handed_from_one_process_to_fsdp_to_ddp_to_fsdp_and_back(alone, two, tiny,
                                                                          tmp_path):
    for leg in range(3):
        assert [report["code"] for report in two.reports(f"leg{leg}")] == [0, 0]
        assert f"going on from {two.folder}/relay/snapshots/snapshot_step_{leg + 1}0.pt" \
            in two.output
    shutil.copytree(two.folder / "relay", tmp_path / "relay")
    said = succeed("train", *tiny, "--max_iters=50", f"--out_dir={tmp_path}/relay")
    assert "snapshot_step_40.pt" in said
    assert_same_losses(losses(tmp_path / "relay"), losses(alone.folder / "muon"))


def test_a_snapshot_of_fsdp_holds_what_one_of_a_single_process_holds(alone, two):
    found = read_snapshot(two.folder / "fsdp" / "snapshots" / "snapshot_step_20.pt")
    expected = read_snapshot(two.folder / "ddp_adamw" / "snapshots" / "snapshot_step_20.pt")
    model = GPT(GPTConfig(**found["model_config"]))
    model.load_state_dict(found["model_state_dict"])
    assert list(found["model_state_dict"]) == list(expected["model_state_dict"])
    assert all(type(x) is torch.Tensor for x in found["model_state_dict"].values())
    by_ddp = read_snapshot(two.folder / "ddp" / "snapshots" / "snapshot_step_50.pt")
    assert found["optimizer_state_dict"]["state"].keys() == \
        by_ddp["optimizer_state_dict"]["state"].keys()


def test_samples_can_be_drawn_from_a_model_whose_weights_are_shared_out(two):
    assert [report["code"] for report in two.reports("samples")] == [0, 0]
    assert_same_losses(losses(two.folder / "samples"), losses(two.folder / "fsdp")[:3])
    assert two.output.count("  sample    |") == 1 + 2  # by the first process only


# ---- activation checkpointing -------------------------------------------------------------------

def activations(n_layer, checkpointing):
    """Return (bytes that wait for backward, loss, gradients) of a model with dropout."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, 61, n_layer, 2, 64, dropout=0.1))
    model.activation_checkpointing = checkpointing
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    ids = torch.randint(61, (2, 8, 32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(*ids, return_logits=False)[1]
    total = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    return total, loss, [p.grad for p in model.parameters()]


def test_activation_checkpointing_leaves_loss_and_gradients_unchanged_to_the_bit():
    _, expected_loss, expected = activations(3, False)
    _, loss, gradients = activations(3, True)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected))


def test_activation_checkpointing_keeps_only_the_input_of_each_block():
    one_input = 8 * 32 * 64 * 4  # B, T, C, bytes
    with_it = activations(6, True)[0] - activations(2, True)[0]
    without = activations(6, False)[0] - activations(2, False)[0]
    assert with_it == 4 * one_input
    assert without > 10 * with_it


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_activation_checkpointing_changes_no_loss_under_ddp_and_fsdp(two, parallel):
    found = losses(two.folder / f"checkpointing_{parallel}")
    assert_same_losses(found, losses(two.folder / parallel)[:3], 2e-6)
    assert two.reports(parallel)[0]["blocks"] == (50 if parallel == "ddp" else 20) * 2 * 2
    assert two.reports(f"checkpointing_{parallel}")[0]["blocks"] == 3 * 2 * 2 * 2  # each twice


# ---- when something goes wrong ------------------------------------------------------------------

def test_micro_batches_that_do_not_divide_among_the_processes_end_with_the_numbers(two):
    for report in two.reports("indivisible"):
        assert report["code"] == 2 and not report["batches"]
        assert re.fullmatch("error: gradient_accumulation_steps=3 .* 2 processes.*\n",
                            report["stderr"])


def test_one_process_told_to_stop_stops_all_at_the_same_iteration_with_a_snapshot(
        alone, two, tiny, tmp_path):
    for report in two.reports("told_to_stop"):
        assert report["code"] == 143 and len(report["batches"]) == 5 * 2
    shutil.copytree(two.folder / "told_to_stop", tmp_path / "run")
    said = succeed("train", *tiny, "--max_iters=12", f"--out_dir={tmp_path}/run")
    assert "going on from" in said and "snapshot_step_5.pt" in said
    assert_same_losses(losses(tmp_path / "run"), losses(alone.folder / "muon")[:12])


def test_sigterm_to_torchrun_stops_all_processes_after_the_iteration_with_a_snapshot(
        alone, tiny, tmp_path):
    # torchrun hands the signal on to its processes, waits for them (--shutdown-timeout, 30 s),
    # and ends with a code other than 0.
    process = torchrun("--nproc_per_node=2", f"--master_port={free_port()}", "train.py", *tiny,
                       "--max_iters=1000000", "--snapshot_interval=1000000",
                       f"--out_dir={tmp_path}")
    while process.poll() is None and not (
            (tmp_path / "log.csv").exists() and len(rows(tmp_path)) > 2):
        time.sleep(0.02)
    process.terminate()
    output = finish(process)
    assert process.returncode
    step = int(re.search(r"stopped after iteration (\d+)", output)[1])
    written = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert written == ["snapshot_step_0.pt", f"snapshot_step_{step}.pt"]
    assert read_snapshot(tmp_path / "snapshots" / written[1])["step"] == step
    assert int(rows(tmp_path)[-1]["step"]) == step
    assert_same_losses(losses(tmp_path)[:50], losses(alone.folder / "muon")[:step])


def test_the_failure_of_one_process_ends_all_with_its_message(two):
    assert two.code == 1
    assert "error: struck: this process can't go on\n" in two.output
    assert len(rows(two.folder / "struck")) == 3


def test_a_worker_killed_is_restarted_and_the_run_goes_on_from_its_newest_snapshot(
        alone, tiny, tmp_path):
    run = launch(tmp_path, 2, {"run": ([*tiny, "--max_iters=30"], (1, 25, "SIGKILL"))},
                 "--max-restarts=3")
    assert run.code == 0, run.output
    assert f"going on from {tmp_path}/run/snapshots/snapshot_step_20.pt" in run.output
    for report in run.reports("run"):  # of the second life
        assert [first // 16 for first, _ in report["batches"]] == [
            step for step in range(20, 30) for _ in range(2)]
    assert_same_losses(losses(tmp_path / "run"), losses(alone.folder / "muon")[:30])


def test_two_nodes_train_as_one_process_does(alone, tiny, tmp_path):
    port = free_port()
    agents = [torchrun("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test",
                       f"--rdzv_endpoint=127.0.0.1:{port}", "--local_addr=127.0.0.1", "train.py",
                       *tiny, "--max_iters=20", f"--out_dir={tmp_path}") for _ in range(2)]
    outputs = [finish(agent) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert_same_losses(losses(tmp_path), losses(alone.folder / "muon")[:20])
    assert sorted("iteration 20/20" in output for output in outputs) == [False, True]


# ---- on paper -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name, billions", [
    ("gpt3-125m", 0.125), ("gpt3-350m", 0.350), ("gpt3-760m", 0.760), ("gpt3-1.3b", 1.3),
    ("gpt3-2.7b", 2.7), ("gpt3-6.7b", 6.7), ("gpt3-13b", 13.0), ("gpt3-175b", 175.0)])
def test_gpt3s_sizes_have_the_parameters_of_its_table_2_1(name, billions):
    with torch.device("meta"):
        found = GPT(GPTConfig(**SIZES[name])).num_params()
    assert abs(found / (billions * 1e9) - 1) < 0.02  # the table's figures are rounded
