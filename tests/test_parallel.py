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
import runpy
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import bench_scale
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, call, succeed

import train
from model import GPT, SIZES, GPTConfig, read_snapshot

# 4 micro-batches make an iteration. The rate is constant, so that a shorter run is the beginning
# of a longer one.
TINY = ("--n_layer=2 --n_head=2 --n_embd=32 --block_size=16 --batch_size=4 --device=cpu "
        "--gradient_accumulation_steps=4 --lr_schedule=constant --warmup_iters=2 --log_interval=1 "
        "--eval_interval=100 --snapshot_interval=10 --num_return_sequences=0 "
        "--dtype=float32").split()
# Nothing is learned, so that the validation loss is a function of the evaluation alone.
STILL = ["--max_iters=1", "--learning_rate=0", "--muon_learning_rate=0"]

# Started by torchrun: makes the runs of a JSON list in turn, each by as many of the processes as it
# says, and leaves a JSON file of each run and process. 'strike' is [process, iteration, what
# happens to it there].
WORKER = r"""
import contextlib, hashlib, io, json, os, signal, sys, traceback
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
import config, model, train

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

def get_batch(tokens, first, original=train.get_batch):
    ids = original(tokens, first)
    report["batches"].append([first, hashlib.sha256(ids.numpy()).hexdigest()])
    process, iteration, what = strike or (None, None, None)
    restarted = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if rank == process and first // 16 == iteration and not restarted:
        if what == "raise":
            raise ValueError("struck: this process can't go on")
        signal.raise_signal(getattr(signal, what))
    return ids

def init_process_group(backend, original=dist.init_process_group, **options):
    original(backend, store=dist.PrefixStore(name, store), rank=rank, world_size=processes)

torch.nn.parallel.DistributedDataParallel = CountingDDP
register_optimizer_step_pre_hook(hold)
train.get_batch, model.Block.forward = get_batch, forward
train.atexit.register = lambda function: None  # it is called after each run
dist.init_process_group = init_process_group
store, rank, _ = next(dist.rendezvous("env://"))
folder, runs = sys.argv[1:]
for name, processes, arguments, strike in json.loads(runs):
    if rank >= processes:
        continue
    os.environ["WORLD_SIZE"] = str(processes)
    report = {"code": None, "batches": [], "syncs": 0, "blocks": 0, "held": {}}
    stdout, stderr = sys.stdout, io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            report["code"] = config.run(train.main, [f"--out_dir={folder}/{name}", *arguments])
    except SystemExit as stop:
        report["code"] = stop.code
    except Exception:
        traceback.print_exc()
        if strike:
            raise
    finally:
        sys.stdout = stdout
        print(stderr.getvalue(), end="", file=sys.stderr)
        report["stderr"] = stderr.getvalue()
        with open(f"{folder}/{name}.{rank}.json", "w") as file:
            json.dump(report, file)
    if report["code"] == 1:
        sys.exit(1)  # as train.py does
    dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # a model that still refers to its group would leave it to the end of Python
"""


# ---- starting runs and reading what they left ---------------------------------------------------

def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun(*arguments):
    """Start torchrun, whose processes compute with one thread each.

    With PyTorch 2.13's default, processes that are restarted can find the addresses of those
    that were killed, and wait for them (pytorch/pytorch issue 135712): TORCH_DISABLE_SHARE_...
    """
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                   "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *map(str, arguments)],
                            cwd=ROOT, env=os.environ | environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process, timeout=300):
    """Return what torchrun and its processes have printed when the last of them has ended."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:  # it hangs, and must not outlive the test
        process.terminate()
        raise


def launch(folder, processes, runs, *options):
    """Make runs {name: (processes, arguments, strike)} under one torchrun; return its exit code and
    output, the folder of their out_dirs, and a function that reads what the processes noted."""
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    process = torchrun("--standalone", f"--nproc_per_node={processes}", *options,
                       folder / "worker.py", folder,
                       json.dumps([[name, *run] for name, run in runs.items()]))
    output = finish(process)

    def reports(name):  # of each process
        files = [folder / f"{name}.{rank}.json" for rank in range(runs[name][0])]
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

    def get_batch(tokens, first):
        ids = original(tokens, first)
        batches.append([first, hashlib.sha256(ids.numpy()).hexdigest()])
        return ids

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "get_batch", get_batch)
        succeed("train", *tiny, "--max_iters=50", f"--out_dir={folder}/muon")
    succeed("train", *tiny, "--max_iters=15", "--optimizer=adamw", f"--out_dir={folder}/adamw")
    succeed("train", *tiny, *STILL, f"--out_dir={folder}/still")
    succeed("train", *tiny, *STILL, "--eval_iters=1", f"--out_dir={folder}/still_few")
    succeed("train", *tiny, "--max_iters=4", f"--out_dir={folder}/relay")
    return SimpleNamespace(folder=folder, batches=batches)


@pytest.fixture(scope="module")
def many(alone, tiny, tmp_path_factory):
    """The runs of two and of four processes with an ASCII terminal, and the middle legs of the
    relay."""
    folder = tmp_path_factory.mktemp("many")
    shutil.copytree(alone.folder / "relay", folder / "relay")
    fsdp, adamw = "--parallel=fsdp", "--optimizer=adamw"
    relay = [*tiny, f"--out_dir={folder}/relay"]
    fifteen, three = [*tiny, "--max_iters=15"], [*tiny, "--max_iters=3"]
    by_two = {
        "ddp": [*tiny, "--max_iters=50"],
        "fsdp": [*tiny, "--max_iters=50", fsdp],
        "ddp_adamw": [*fifteen, adamw],
        "fsdp_adamw": [*fifteen, adamw, fsdp],
        "leg1": [*relay, "--max_iters=8", fsdp],
        "leg2": [*relay, "--max_iters=12"],
        "leg3": [*relay, "--max_iters=16", fsdp],
        "still": [*tiny, *STILL],
        "still_few": [*tiny, *STILL, "--eval_iters=1", fsdp],
        "checkpointing_ddp": [*three, "--activation_checkpointing"],
        "checkpointing_fsdp": [*three, "--activation_checkpointing", fsdp],
        "samples": [*three, fsdp, "--num_return_sequences=2", "--sample_interval=2",
                    "--eval_interval=2", "--max_length=5", "--sample_prompt=\u00e9"],
        "indivisible": [*tiny, "--gradient_accumulation_steps=3"],
        "eval_only": [*tiny, "--gradient_accumulation_steps=1", "--eval_only",
                      f"--init_from={alone.folder}/still/best.pt"],
    }
    runs = {
        "ddp_by_four": (4, [*tiny, "--max_iters=50"], None),
        "still_by_four": (4, [*tiny, *STILL], None),
        **{name: (2, arguments, None) for name, arguments in by_two.items()},
        "told_to_stop": (2, [*tiny, "--max_iters=50"], (1, 4, "SIGTERM")),
        "struck": (2, [*tiny, "--max_iters=50"], (1, 3, "raise")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
            patch.setenv(name, value)
        return launch(folder, 4, runs)


# ---- the same run -------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["ddp", "ddp_by_four"])
def test_losses_of_50_iterations_do_not_depend_on_the_number_of_processes(alone, many, name):
    expected = losses(alone.folder / "muon")
    assert len(expected) == 50 and expected[0] - expected[-1] > 1
    assert_same_losses(losses(many.folder / name), expected)


@pytest.mark.parametrize("name", ["ddp", "ddp_by_four", "fsdp"])
def test_any_number_of_processes_sees_each_batch_of_one_process_once(alone, many, name):
    reports = many.reports(name)
    assert len({len(report["batches"]) for report in reports}) == 1
    assert len(alone.batches) == 50 * 4
    together = [batch for report in reports for batch in report["batches"]]
    assert sorted(together) == sorted(alone.batches)


def test_ddp_synchronizes_gradients_once_an_iteration_not_once_a_micro_batch(many):
    for report in many.reports("ddp"):
        assert len(report["batches"]) == 100
        assert report["syncs"] == 50  # all gradients are one bucket here


@pytest.mark.parametrize("optimizer, suffix", [("muon", ""), ("adamw", "_adamw")])
def test_losses_of_fsdp_agree_with_those_of_ddp_and_of_one_process(alone, many, optimizer, suffix):
    found = losses(many.folder / f"fsdp{suffix}")
    assert len(found) == (15 if suffix else 50)
    assert_same_losses(found, losses(many.folder / f"ddp{suffix}"))
    assert_same_losses(found, losses(alone.folder / optimizer))


@pytest.mark.parametrize("suffix, states", [("", None), ("_adamw", 2)])
def test_each_of_two_fsdp_processes_holds_half_of_weights_gradients_and_state(many, suffix, states):
    parameters = GPT(GPTConfig(16, 300, 2, 2, 32)).num_params()
    for shared, whole in zip(many.reports(f"fsdp{suffix}"), many.reports(f"ddp{suffix}")):
        held = {kind: sum(places.values()) for kind, places in whole["held"].items()}
        assert held["weights"] == held["gradients"] == 4 * parameters
        if states:  # two numbers a parameter with AdamW; with Muon, one for some of them
            assert held["state"] == states * held["weights"]
        for kind, size in held.items():
            assert 0.5 <= sum(shared["held"][kind].values()) / size < 0.52


@pytest.mark.parametrize("name, count", [("still", 2), ("still_by_four", 4)])
def test_a_shared_evaluation_equals_that_of_one_process(alone, many, data_dir, name, count):
    tokens = json.loads((data_dir / "meta.json").read_text())["splits"]["val"]["tokens"]
    assert math.ceil((tokens - 1) / 16) % (4 * count)  # the blocks don't divide
    expected = read_snapshot(alone.folder / "still" / "best.pt")["best_val_loss"]
    found = read_snapshot(many.folder / name / "best.pt")["best_val_loss"]
    assert abs(found - expected) < 1e-6


def test_eval_only_in_two_processes_equals_that_of_one_whatever_the_micro_batches(alone, many):
    best = alone.folder / "still" / "best.pt"
    assert [report["code"] for report in many.reports("eval_only")] == [0, 0]
    found = re.search(rf"val with {re.escape(str(best))} .*: loss ([\d.]+)", many.output)[1]
    assert abs(float(found) - read_snapshot(best)["best_val_loss"]) < 1e-4


def test_an_evaluation_too_small_for_all_processes_equals_that_of_one(alone, many):
    # one batch for two processes that have to gather each other's weights
    expected = read_snapshot(alone.folder / "still_few" / "best.pt")["best_val_loss"]
    found = read_snapshot(many.folder / "still_few" / "best.pt")["best_val_loss"]
    assert abs(found - expected) < 1e-6
    assert abs(found - read_snapshot(many.folder / "still" / "best.pt")["best_val_loss"]) > 1e-4


def test_a_run_can_move_from_one_process_to_fsdp_to_ddp_to_fsdp_and_back(alone, many, tiny,
                                                                          tmp_path):
    for leg in (1, 2, 3):
        assert [report["code"] for report in many.reports(f"leg{leg}")] == [0, 0]
        assert f"from {many.folder}/relay/snapshots/snapshot_step_{4 * leg}.pt" in many.output
    shutil.copytree(many.folder / "relay", tmp_path / "relay")
    said = succeed("train", *tiny, "--max_iters=20", f"--out_dir={tmp_path}/relay")
    assert "snapshot_step_16.pt" in said
    assert_same_losses(losses(tmp_path / "relay"), losses(alone.folder / "muon")[:20])


@pytest.mark.parametrize("name", ["ddp_adamw", "fsdp_adamw"])
def test_a_snapshot_of_many_processes_holds_what_one_of_a_single_process_holds(alone, many, name):
    def tensors(value, path=""):
        if isinstance(value, dict):
            return {place: x for key in value for place, x in tensors(value[key],
                                                                      f"{path}/{key}").items()}
        if isinstance(value, list):
            return tensors(dict(enumerate(value)), path)
        return {path: value} if isinstance(value, torch.Tensor) else {}

    expected = tensors(read_snapshot(alone.folder / "adamw" / "final_model.pt"))
    found = tensors(read_snapshot(many.folder / name / "final_model.pt"))
    assert len(found) > 100 and found.keys() == expected.keys()
    for place, x in found.items():
        assert type(x) is torch.Tensor
        x, y = x.clone(), expected[place].clone()
        if place.endswith("c_attn.bias"):
            # A bias adds the same to the scores of all keys, which softmax ignores: its gradient is
            # rounding errors, and AdamW makes steps of the usual size of them.
            x.chunk(3)[1].zero_()
            y.chunk(3)[1].zero_()
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4, msg=place)


def test_samples_can_be_drawn_from_a_sharded_model_and_printed_in_ascii(many):
    assert [report["code"] for report in many.reports("samples")] == [0, 0]
    assert_same_losses(losses(many.folder / "samples"), losses(many.folder / "fsdp")[:3])
    assert many.output.count(r"  sample    |\xe9") == 1 + 2  # by the first process only


# ---- activation checkpointing -------------------------------------------------------------------

def activations(n_layer, checkpointing, monkeypatch):
    """Return (bytes that wait for backward, loss, gradients) of a model with dropout."""
    monkeypatch.setattr(train, "activation_checkpointing", checkpointing)
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, 61, n_layer, 2, 64, dropout=0.1))
    forward = train.distributed(model, torch.device("cpu"))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    ids = torch.randint(61, (2, 8, 32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = forward(*ids, return_logits=False)[1]
    total = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    return total, loss, [p.grad for p in model.parameters()]


def test_activation_checkpointing_leaves_loss_and_gradients_bit_identical(monkeypatch):
    _, expected_loss, expected = activations(3, False, monkeypatch)
    _, loss, gradients = activations(3, True, monkeypatch)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected))


def test_activation_checkpointing_keeps_only_the_input_of_each_block(monkeypatch):
    def per_block(checkpointing):
        deep, shallow = (activations(n, checkpointing, monkeypatch)[0] for n in (6, 2))
        return (deep - shallow) / 4

    one_input = 8 * 32 * 64 * 4  # B, T, C, bytes
    assert per_block(True) == one_input and per_block(False) > 10 * one_input


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_activation_checkpointing_changes_no_loss_under_ddp_and_fsdp(many, parallel):
    found = losses(many.folder / f"checkpointing_{parallel}")
    assert_same_losses(found, losses(many.folder / parallel)[:3], 2e-6)
    assert many.reports(parallel)[0]["blocks"] == 50 * 2 * 2
    assert many.reports(f"checkpointing_{parallel}")[0]["blocks"] == 3 * 2 * 2 * 2  # each twice


# ---- compiling ----------------------------------------------------------------------------------

# Started by torchrun, as WORKER is, with the runs' {name: [processes, arguments]}: notes how often
# each function is compiled. A pass without gradients is compiled apart from one with them.
COMPILING_WORKER = r"""
import collections, json, os, sys
import torch
import torch._dynamo.utils as dynamo
import torch._inductor.config
import torch.distributed as dist
import config, train

def init_process_group(backend, original=dist.init_process_group, **options):
    original(backend, store=dist.PrefixStore(name, store), rank=rank, world_size=processes)

torch._inductor.config.cpp.simdlen = 1  # plain loops, which a compiler is done with sooner
train.atexit.register = lambda function: None
dist.init_process_group = init_process_group
store, rank, _ = next(dist.rendezvous("env://"))
folder, runs = sys.argv[1:]
for name, (processes, arguments) in json.loads(runs).items():
    if rank >= processes:
        continue
    os.environ["WORLD_SIZE"] = str(processes)
    torch._dynamo.reset()
    dynamo.clear_compilation_metrics()
    stdout = sys.stdout
    code = config.run(train.main, [f"--out_dir={folder}/{name}", *arguments])
    sys.stdout = stdout
    compiled = collections.Counter(f"{metrics.co_filename}:{metrics.co_firstlineno}"
                                   for metrics in dynamo.get_compilation_metrics()
                                   if metrics.co_filename)  # (else it is a backward pass)
    with open(f"{folder}/{name}.{rank}.json", "w") as file:
        json.dump({"code": code, "compiled": compiled}, file)
    dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, text):
    """Compiled runs of one and two processes, of a model above DDP's first bucket of 1 MB, with a
    smaller last batch in each evaluation; and the same run of one process without compiling."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "text.txt").write_text(text[:8000], encoding="utf-8")
    succeed("prepare", f"--input={folder / 'text.txt'}", "--vocab_size=300",
            f"--out_dir={folder / 'data'}")
    arguments = [*TINY, f"--data_dir={folder / 'data'}", "--n_layer=1", "--n_embd=192",
                 "--batch_size=8", "--gradient_accumulation_steps=2", "--max_iters=4",
                 "--eval_interval=2"]
    assert 4 * GPT(GPTConfig(16, 300, 1, 2, 192)).num_params() > 1.5e6
    for split in ("val", "test"):
        n_tokens = os.path.getsize(folder / "data" / f"{split}.bin") // 2
        assert math.ceil((n_tokens - 1) / 16) % 8, "the last batch isn't smaller"
    succeed("train", *arguments, f"--out_dir={folder / 'plain'}")
    runs = {f"{parallel}{n}": [n, [*arguments, "--compile=True", f"--parallel={parallel}"]]
            for parallel in ("ddp", "fsdp") for n in (2, 1)}
    (folder / "worker.py").write_text(COMPILING_WORKER, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # another program's cache may be damaged
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "cache"))
        process = torchrun("--standalone", "--nproc_per_node=2", folder / "worker.py", folder,
                           json.dumps(runs))
    output = finish(process, 400)
    assert process.returncode == 0, output[-5000:]
    return folder


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_compiled_run_ends_with_the_losses_of_one_that_is_not_compiled(compiled, parallel, n):
    name = f"{parallel}{n}"
    for column in ("train_loss", "val_loss"):
        found, expected = ([float(row[column] or 0) for row in rows(compiled / folder)]
                           for folder in (name, "plain"))
        assert_same_losses(found, expected, 1e-3)
    found, expected = (json.loads((compiled / folder / "test.json").read_text())
                       for folder in (name, "plain"))
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-3)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_each_function_is_compiled_once_for_training_and_once_for_evaluations(compiled, parallel,
                                                                             n):
    for rank in range(n):
        report = json.loads((compiled / f"{parallel}{n}.{rank}.json").read_text())
        assert report["code"] == 0 and report["compiled"]
        assert max(report["compiled"].values()) <= 2, report["compiled"]


# ---- when something goes wrong ------------------------------------------------------------------

def test_micro_batches_that_do_not_divide_among_the_processes_end_with_the_numbers(many):
    for report in many.reports("indivisible"):
        assert report["code"] == 2 and not report["batches"]
        assert re.fullmatch(r"error: gradient_accumulation_steps=3\D+2\b.*processes.*\n",
                            report["stderr"])


def test_one_process_told_to_stop_stops_all_at_the_same_iteration_with_a_snapshot(
        alone, many, tiny, tmp_path):
    for report in many.reports("told_to_stop"):
        assert report["code"] == 143 and len(report["batches"]) == 5 * 2
    shutil.copytree(many.folder / "told_to_stop", tmp_path / "run")
    said = succeed("train", *tiny, "--max_iters=12", f"--out_dir={tmp_path}/run")
    assert "resuming from" in said and "snapshot_step_5.pt" in said
    assert_same_losses(losses(tmp_path / "run"), losses(alone.folder / "muon")[:12])


def test_sigterm_to_torchrun_stops_all_processes_after_the_iteration_with_a_snapshot(
        alone, tiny, tmp_path):
    # torchrun hands the signal on to its processes, waits for them (--shutdown-timeout, 30 s),
    # and ends with a code other than 0.
    process = torchrun("--standalone", "--nproc_per_node=2", "train.py", *tiny,
                       "--max_iters=1000000", "--snapshot_interval=1000000",
                       f"--out_dir={tmp_path}")
    while process.poll() is None and not (
            (tmp_path / "log.csv").exists() and len(rows(tmp_path)) > 2):
        time.sleep(0.02)
    process.terminate()
    output = finish(process)
    assert process.returncode and output.count("stopping: ") == 1  # the first process says so
    step = int(re.search(r"stopped after iteration (\d+)", output)[1])
    written = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert written == ["snapshot_step_0.pt", f"snapshot_step_{step}.pt"]
    assert int(rows(tmp_path)[-1]["step"]) == step
    assert_same_losses(losses(tmp_path)[:50], losses(alone.folder / "muon")[:step])


def test_the_failure_of_one_process_ends_all_with_its_message(many):
    assert many.code == 1
    assert "error: struck: this process can't go on\n" in many.output
    assert len(rows(many.folder / "struck")) == 3


def test_a_killed_worker_is_restarted_and_the_run_resumes_from_its_newest_snapshot(
        alone, tiny, tmp_path):
    run = launch(tmp_path, 2, {"run": (2, [*tiny, "--max_iters=20"], (1, 15, "SIGKILL"))},
                 "--max-restarts=3")
    assert run.code == 0, run.output
    assert f"resuming from {tmp_path}/run/snapshots/snapshot_step_10.pt" in run.output
    for report in run.reports("run"):  # of the second life
        assert [first // 16 for first, _ in report["batches"]] == [
            step for step in range(10, 20) for _ in range(2)]
    assert_same_losses(losses(tmp_path / "run"), losses(alone.folder / "muon")[:20])


def test_two_nodes_train_with_fsdp_as_one_process_does(alone, tiny, tmp_path):
    # train.py itself, not the worker above: how its processes end is seen here
    port = free_port()
    agents = [torchrun("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test",
                       f"--rdzv_endpoint=127.0.0.1:{port}", "--local_addr=127.0.0.1", "train.py",
                       *tiny, "--parallel=fsdp", "--max_iters=15", f"--out_dir={tmp_path}")
              for _ in range(2)]
    outputs = [finish(agent) for agent in agents]
    # torchrun itself has been seen (once in twelve) to end with 1 on the node that leaves last,
    # when the one that keeps the addresses was gone already; train.py was done by then.
    assert 0 in [agent.returncode for agent in agents], outputs
    assert (tmp_path / "final_model.pt").exists() and "error:" not in "".join(outputs)
    assert_same_losses(losses(tmp_path), losses(alone.folder / "muon")[:15])
    assert sorted("iteration 15/15" in output for output in outputs) == [False, True]


def test_each_process_takes_its_own_gpu_before_it_touches_any(monkeypatch):
    calls = []

    def get_device(device, *dtype):
        calls.append(device)
        if device == "auto":
            raise ValueError("enough")
        return torch.device(device), torch.bfloat16

    for name, value in (("RANK", "3"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(train, "get_device", get_device)
    assert call("train")[0] == 1
    assert calls == ["cuda:3", torch.device("cuda:3"), "auto"]


def test_more_processes_than_gpus_end_with_one_line(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # but there is no fourth one
    code, _, err = call("train")
    assert code == 1 and err.startswith("error: device='cuda:3' is not available")
    assert err.count("\n") == 1


def test_a_process_that_fails_ends_without_waiting_for_the_others(monkeypatch):
    # With NCCL, leaving the group waits for all: torchrun would never learn of the failure.
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for among_others, arguments, code, leaves in (
            (True, ["--data_dir=nowhere"], 1, [1]), (False, ["--data_dir=nowhere"], 1, []),
            (True, ["--data_dir="], 2, [])):
        ended.clear()
        monkeypatch.setattr(dist, "is_initialized", lambda among_others=among_others: among_others)
        monkeypatch.setattr(sys, "argv", ["train.py", "--device=cpu", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        assert stop.value.code == code and ended == leaves


# ---- on paper -----------------------------------------------------------------------------------

@pytest.mark.parametrize("name, millions", [
    ("gpt3-125m", 125), ("gpt3-350m", 350), ("gpt3-760m", 760), ("gpt3-1.3b", 1300),
    ("gpt3-2.7b", 2700), ("gpt3-6.7b", 6700), ("gpt3-13b", 13000), ("gpt3-175b", 175000)])
def test_gpt3s_sizes_have_the_parameters_of_its_table_2_1(name, millions):
    with torch.device("meta"):
        found = GPT(GPTConfig(**SIZES[name])).num_params()
    assert abs(found / (millions * 1e6) - 1) < 0.02  # the table's figures are rounded


def test_the_table_on_paper_has_the_parameters_of_each_size_and_gpt2s_to_the_unit(capsys):
    bench_scale.paper()
    written = dict(re.findall(r"^\| `(gpt[\w.-]+)` \| ([\d,]+) \|", capsys.readouterr().out,
                              re.MULTILINE))
    assert written.keys() == SIZES.keys()
    for name, shape in SIZES.items():
        with torch.device("meta"):
            assert f"{GPT(GPTConfig(**shape)).num_params():,}" == written[name]
    assert [int(written[name].replace(",", "")) for name in (
        "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")] == [
            124_439_808, 354_823_168, 774_030_080, 1_557_611_200]


def test_fsdp_gathers_the_weights_of_one_block_at_a_time(monkeypatch):
    monkeypatch.setattr(train, "parallel", "fsdp")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = GPT(GPTConfig(16, 61, 3, 2, 32))
        forward = train.distributed(model, torch.device("cpu"))
        whole = []  # at each block: which blocks are not sharded

        def note(block, *rest):
            whole.append([i for i, each in enumerate(model.transformer.h)
                          if not hasattr(each.mlp.c_fc.weight, "full_tensor")])

        for block in model.transformer.h:
            block.mlp.register_forward_pre_hook(note)
        forward(*torch.randint(61, (2, 2, 16)), return_logits=False)
        assert whole == [[0], [1], [2]]
    finally:
        dist.destroy_process_group()


def test_float32_on_a_gpu_is_tf32(monkeypatch):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        monkeypatch.setattr(train, "device", "cpu")
        train.start_processes()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
