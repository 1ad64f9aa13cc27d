"""Train a GPT-2 on the tokens that prepare.py wrote.

    python train.py config/shakespeare.py           # interrupted? the same command resumes the run
    python train.py config/shakespeare.py --n_layer=6 --max_iters=1000
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py            # on eight GPUs
"""

import atexit
import csv
import ctypes
import gc
import hashlib
import json
import math
import mmap
import os
import signal
import sys
import time
from collections import defaultdict, namedtuple
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import config
from model import (
    GPT,
    SIZES,
    GPTConfig,
    choose_device,
    find_snapshot,
    measure,
    read_snapshot,
    snapshots_newest_first,
)
from prepare import (
    atomic_write,
    fingerprint,
    finish_publishing,
    gpt2_tokenizer,
    load_tokenizer,
    lock_folder,
    read_meta,
)

# data and output
data_dir = "data"  # folder with train.bin and val.bin
out_dir = "out"  # folder for snapshots/, best.pt, final_model.pt, log.csv and loss.svg
init_from = "auto"  # 'auto' resumes if it can; 'scratch', 'resume'; or 'gpt2', a folder, a snapshot
overwrite = False  # with init_from='scratch' or weights: delete the run that is in out_dir
snapshot_interval = 100  # iterations between snapshots
keep_snapshots = 2  # how many of the newest snapshots are kept
# logging, evaluation, samples
log_interval = 10  # iterations between lines of the log
eval_interval = 100  # iterations between evaluations on the validation split
eval_iters = 0  # batches in an evaluation, 0: the whole split
eval_only = False  # evaluate out_dir's best snapshot, or the model of init_from, and stop
eval_split = "val"  # the split that eval_only evaluates on: 'train', 'val' or 'test'
sample_interval = 0  # iterations between samples; 0: none
sample_prompt = "\n"  # what samples begin with
num_return_sequences = 5  # samples of the final model
max_length = 30  # tokens in each of them
# model
size = ""  # a name in model.py's SIZES, instead of the next three
n_layer = 4  # blocks
n_head = 4  # attention heads in each block
n_embd = 128  # width
block_size = 64  # tokens of context
dropout = 0.0  # fraction of activations dropped in training; helps only over many epochs
bias = True  # biases in the linear layers and LayerNorms, as in GPT-2
# length of the run
batch_size = 32  # sequences of block_size tokens in one forward pass
gradient_accumulation_steps = 1  # forward passes per iteration, over all processes
max_iters = 600  # iterations; 0: no limit
max_epochs = 0.0  # passes over the training split; 0: no limit
target_loss = 0.0  # stop once the loss is at or below this; 0: never
target_split = "train"  # the loss that target_loss refers to: 'train' or 'val'
# optimizer
optimizer = "muon"  # 'muon' (for the matrices in the blocks, AdamW for the rest) or 'adamw'
learning_rate = 0.01  # AdamW's peak learning rate
muon_learning_rate = 0.03  # Muon's peak learning rate
weight_decay = 0.1  # for matrices only; with Muon, those in the blocks
beta1 = 0.9  # AdamW: decay rate of the first moment
beta2 = 0.95  # AdamW: decay rate of the second moment
grad_clip = 1.0  # maximum norm of the gradient; 0: no clipping
# learning rate schedule
warmup_iters = 10  # iterations of linear warmup from 0
lr_schedule = "linear"  # then: 'linear' or 'cosine' decay to min_lr, 'step', or 'constant'
min_lr = 0.0  # AdamW's final learning rate; Muon's decays in proportion
lr_decay_iters = 0  # the iteration at which min_lr is reached; 0: the last
lr_gamma = 0.5  # 'step' multiplies by this ...
lr_step_iters = 1000  # ... every so many iterations
# system
seed = 1337  # for the weights, the order of the data and dropout
device = "auto"  # 'cpu', 'cuda', 'cuda:1', 'mps'; 'auto': the fastest available
dtype = "auto"  # 'float32', 'bfloat16' or 'float16' for matrix products
compile = "auto"  # torch.compile: True, False; 'auto': on CUDA, where the run is long enough
parallel = "ddp"  # under torchrun: 'ddp' replicates the model, 'fsdp' shards it
activation_checkpointing = False  # recompute blocks in the backward pass to save memory


def hashed(*numbers):
    """Return 64 random bits that are a function of the numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big")


def shuffled(k, n, *key):
    """Return where a random permutation of range(n) puts k, without storing the permutation.

    Four rounds of a Feistel network permute the numbers below half * half (Luby & Rackoff 1988).
    A result of n or more is permuted again until it is below n ("cycle walking").
    """
    n_bits = (n - 1).bit_length()
    half = 2 ** ((n_bits + 1) // 2)
    left, right = divmod(k, half)
    for turn in range(4):
        left, right = right, (left ^ hashed(*key, turn, right)) % half
    k = left * half + right
    return k if k < n else shuffled(k, n, *key)


def get_batch(tokens, first):
    """Return the run's sequences number first, first + 1, ... as ids (batch_size, block_size + 1).

    An epoch cuts the ring of tokens into blocks, from an offset of its own, and visits them in
    random order. A sequence is a function of the seed and its number: resuming needs no state.
    """
    n_blocks = len(tokens) // block_size
    starts = []
    for sequence in range(first, first + batch_size):
        epoch, k = divmod(sequence, n_blocks)
        block = shuffled(k, n_blocks, seed, epoch)
        starts.append((hashed(seed, epoch) + block * block_size) % len(tokens))
    positions = np.add.outer(starts, np.arange(block_size + 1)) % len(tokens)
    return torch.from_numpy(tokens[positions].astype(np.int64))


def orthogonalized(x):  # (n, rows, cols) -> (n, rows, cols)
    """Bring all singular values of each matrix near 1 by five Newton-Schulz steps (Muon, below).

    A step maps a singular value s to 3.4445 s - 4.7750 s^3 + 2.0315 s^5, which lifts small ones.
    """
    if x.size(1) > x.size(2):
        return orthogonalized(x.mT).mT  # the products are smaller this way
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x


def orthogonalize_(updates):
    """In place, with the matrices of one shape together. c_attn holds three: for Q, K and V."""
    by_shape = defaultdict(list)
    for update in updates:
        n_matrices = 3 if update.size(0) == 3 * update.size(1) else 1
        for matrix in update.chunk(n_matrices):  # views: writing to them changes the update
            by_shape[matrix.shape].append(matrix)
    for (rows, cols), matrices in by_shape.items():
        scale = math.sqrt(max(1, rows / cols))  # a typical entry is the same for any shape
        for matrix, result in zip(matrices, orthogonalized(torch.stack(matrices))):
            matrix.copy_(result).mul_(scale)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024, "Muon: An optimizer for hidden layers ...").

    The gradient of a weight matrix is dominated by a few directions. Making all singular values
    equal lets the rare ones contribute as much.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            # 1. Nesterov momentum.
            updates = []
            for p in group["params"]:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                updates.append(full_tensor(p.grad.lerp(buffer, group["momentum"])))
            # 2. Orthogonalize.
            orthogonalize_(updates)
            # 3. Weight decay and update.
            for p, update in zip(group["params"], updates):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(shard_like(p, update), alpha=-group["lr"])


def make_optimizers(model):
    """Return [AdamW, Muon] or [AdamW]. Their learning rates are set before each update."""
    matrices, embeddings, vectors = model.parameter_groups()
    adamw = partial(torch.optim.AdamW, betas=(beta1, beta2), weight_decay=0.0, fused=True)
    if optimizer == "adamw":
        decayed = dict(params=matrices + embeddings, weight_decay=weight_decay)
        return [adamw([decayed, dict(params=vectors)])]
    muon = Muon(matrices, dict(lr=0.0, momentum=0.95, weight_decay=weight_decay))
    return [adamw(embeddings + vectors), muon]


def lr_factor(step, n_iters):
    """Return the factor of the peak learning rates in iteration step of n_iters."""
    if step < warmup_iters:
        return (step + 1) / (warmup_iters + 1)
    if lr_schedule == "constant":
        return 1.0
    if lr_schedule == "step":
        return lr_gamma ** ((step - warmup_iters) // lr_step_iters)
    decay_iters = (lr_decay_iters or n_iters) - warmup_iters
    progress = min(1.0, (step - warmup_iters) / max(1, decay_iters))
    remaining = 1 - progress
    if lr_schedule == "cosine":
        remaining = 0.5 * (1 + math.cos(math.pi * progress))
    lowest = min_lr / (learning_rate or 1.0)
    return lowest + (1 - lowest) * remaining


@dataclass
class Run:
    """The state of a run. Everything down to best_measure is kept in a snapshot."""
    model: GPT
    optimizers: list
    scaler: torch.amp.GradScaler  # of float16's gradients
    step: int = 0  # iterations done
    sequences: int = 0  # sequences read, of block_size tokens each
    loss: float = math.nan  # of the last iteration
    best_val_loss: float = math.inf
    best_measure: list = None  # what best_val_loss was measured on
    resumed_from: Path = None
    forward: callable = None  # the model, compiled and wrapped for many processes
    n_skipped: int = 0  # iterations without an update, since float16 overflowed
    log: list = field(default_factory=list)  # the rows of log.csv


def train_step(run, tokens, n_iters, machine):
    """Compute the gradients of one iteration and update the weights; return the loss (a tensor)."""
    torch.manual_seed(hashed(seed, run.step, machine.rank) >> 1)  # for dropout
    run.model.train()
    total_loss = 0.0
    for i in range(machine.rank, gradient_accumulation_steps, machine.n_processes):
        # DDP averages the gradients of all processes once, in the last backward pass.
        is_last = i + machine.n_processes >= gradient_accumulation_steps
        run.forward.require_backward_grad_sync = is_last
        # Forward and backward. The mean over micro-batches is the mean over all sequences.
        ids = get_batch(tokens, run.sequences + i * batch_size)
        loss = loss_of(run, ids[:, :-1], ids[:, 1:], machine)
        loss = loss * (machine.n_processes / gradient_accumulation_steps)
        run.scaler.scale(loss).backward()
        total_loss += loss.detach()
    run.model.eval()
    # Clip the gradient.
    for opt in run.optimizers:
        run.scaler.unscale_(opt)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), grad_clip or math.inf)
    is_finite = torch.isfinite(total_loss + full_tensor(norm))
    run.n_skipped = run.n_skipped + (~is_finite).long()
    # Update the weights, unless float16 overflowed.
    for opt, peak in zip(run.optimizers, (learning_rate, muon_learning_rate)):
        for group in opt.param_groups:
            group["lr"] = peak * lr_factor(run.step, n_iters)
        if not run.scaler.is_enabled() or is_finite:
            with machine.autocast():  # for Muon's matrix products
                run.scaler.step(opt)
    run.scaler.update()
    run.model.zero_grad()
    run.step += 1
    run.sequences += gradient_accumulation_steps * batch_size
    return total_loss


def main(arguments=None):
    started = time.time()
    settings = configure(arguments)
    globals().update(settings)
    machine = start_processes()
    meta, data = load_data(data_dir)
    if eval_only:
        return evaluate_only(meta, data, machine)
    lock = lock_folder(out_dir, machine.rank)  # noqa: F841 (held until main returns)
    n_iters = count_iterations(len(data["train"]))
    run = start_run(settings, meta, data, n_iters, machine)
    signals = catch_signals()
    if run.resumed_from and is_finished(run, n_iters) and Path(out_dir, "final_model.pt").exists():
        print(f"nothing left to do: {out_dir}/final_model.pt is the result of this run")
        return test(run, data, meta, machine, signals)
    save = partial(save_snapshot, run, settings, meta, machine)
    prepare_out_dir(run, save, machine)
    progress = Progress(run, started, n_iters)

    while not is_finished(run, n_iters):
        # One iteration: forward, backward, update.
        loss = train_step(run, data["train"], n_iters, machine)
        # Read the loss where something needs it: reading waits for the GPU.
        stop = read_loss(run, loss, n_iters, signals, machine)
        progress.show(run)
        # Evaluate and log.
        evaluates = len(data["val"]) > 1 and is_due(run, n_iters, eval_interval)
        if evaluates or is_due(run, n_iters, log_interval):
            row = log_row(run, len(data["train"]), n_iters, progress.seconds())
            if evaluates:
                val = evaluate(run, "val", data, meta, machine, signals)
                stop = stop or val is None  # a signal interrupted the evaluation
                row.update(val._asdict() if val else {})
            if row.get("val_loss", math.inf) < run.best_val_loss:
                run.best_val_loss = row["val_loss"]
                save("best.pt")
            run.log.append(row)
            progress.print_row(run, row)
            write_log(run, machine)
        # Show what the model writes by now.
        if sample_interval and run.step % sample_interval == 0:
            print_samples(run.model, meta, data["val"], machine, 1)
        # Save a snapshot.
        if stop or is_due(run, n_iters, snapshot_interval):
            save(f"snapshots/snapshot_step_{run.step}.pt")
        if stop and not is_finished(run, n_iters):
            print(f"stopped after iteration {run.step}: the same command resumes from here")
            return 128 + max(signals, default=signal.SIGTERM)

    save("final_model.pt")
    if num_return_sequences:
        print_samples(run.model, meta, data["val"], machine, num_return_sequences)
    return test(run, data, meta, machine, signals)


# ---- plumbing: skip on a first reading ----

Loss = namedtuple("Loss", "val_loss val_perplexity val_bits_per_byte")  # loss in nats per token
LOG_COLUMNS = ("step", "epoch", "tokens", "seconds", "lr", "train_loss", *Loss._fields)
REPORT = "{}: loss {:.4f}, perplexity {:.2f}, {:.4f} bits per byte"
# Settings that a run can't change when it resumes ("data" is the training split's fingerprint):
FIXED = "data init_from optimizer size n_layer n_head n_embd block_size bias".split()
AT_LEAST_ONE = ("batch_size gradient_accumulation_steps snapshot_interval keep_snapshots log_interval "
                "eval_interval lr_step_iters block_size n_layer n_head n_embd").split()


def configure(arguments):
    settings = config.override(__file__, arguments, at_least_one=AT_LEAST_ONE)
    splits = ("train", "val", "test")
    config.one_of(settings, optimizer=("muon", "adamw"), parallel=("ddp", "fsdp"), eval_split=splits,
                  lr_schedule=("linear", "cosine", "step", "constant"), size=("", *SIZES),
                  target_split=splits[:2], compile=("auto", True, False))
    if not settings["max_iters"] and not settings["max_epochs"]:
        config.usage("max_iters=0 and max_epochs=0.0: expected a limit in one of them")
    if settings["min_lr"] > settings["learning_rate"]:
        config.usage("min_lr={min_lr}: expected at most {learning_rate=}".format(**settings))
    if settings["overwrite"] and settings["init_from"] in ("auto", "resume"):
        config.usage("overwrite=True: expected with --init_from=scratch (or weights) only")
    return settings


@dataclass
class Machine:
    """Where this process computes, and which of how many it is."""
    device: torch.device
    dtype: torch.dtype
    rank: int
    n_processes: int

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32)


def start_processes():
    """Choose the device and, under torchrun, join the other processes; return the Machine."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        # Keep freed memory: to get it back from the system takes half of a small iteration.
        ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX
    if "RANK" in os.environ and device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # or all would use some of GPU 0
    machine = Machine(*choose_device(device, dtype), int(os.environ.get("RANK", 0)),
                      int(os.environ.get("WORLD_SIZE", 1)))
    torch.set_float32_matmul_precision("high")  # on GPUs: TF32 where the dtype is float32
    if "RANK" in os.environ:  # started by torchrun
        is_cuda = machine.device.type == "cuda"
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
        # Left to the end of Python, this can abort; so can it while DDP, in a cycle, refers to it.
        atexit.register(dist.destroy_process_group)
        atexit.register(gc.collect)
    if machine.rank > 0:
        sys.stdout = open(os.devnull, "w")  # only the first process prints
    if gradient_accumulation_steps % machine.n_processes:
        config.usage(f"{gradient_accumulation_steps=}: expected a multiple of the "
                     f"{machine.n_processes} processes")
    return machine


def sum_over_processes(*numbers):
    """Return the sums over all processes; none returns before all have called this."""
    sums = torch.tensor(numbers, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums.tolist()


def full_tensor(tensor):  # complete, where FSDP gives each process a shard
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(p, tensor):  # this process's shard of a complete tensor, if p is sharded
    if not hasattr(p, "full_tensor"):
        return tensor
    return dist.tensor.distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)


def distributed(model, device):
    """Return the model on the device, sharded by FSDP (Zhao et al. 2023) or in DDP's wrapper."""
    if activation_checkpointing:  # Chen et al. 2016, "Training Deep Nets with Sublinear Memory"
        for block in model.transformer.h:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if dist.is_initialized() and parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard
        mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
        for module in [*model.transformer.h, model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        return model
    model.to(device)
    return torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model


def load_data(folder):
    """Return (meta, {split: Tokens}). Without meta.json, the tokens are GPT-2's in uint16, as in
    nanoGPT's folders and llm.c's shards."""
    if os.environ.get("RANK", "0") == "0":
        finish_publishing(folder)
    sum_over_processes(0)  # the others wait
    again = f"prepare it again: python prepare.py --out_dir={folder}"
    if Path(folder, "meta.pkl").exists():
        raise ValueError(f"{folder} holds nanoGPT's character tokens (meta.pkl): {again}")
    meta = read_meta(folder) or dict(vocab_size=50257, dtype="uint16", splits={}, tokenizer=None)
    data = {}
    for split in ("train", "val", "test"):
        path = Path(folder, f"{split}.bin")
        paths = [path] if path.exists() else sorted(Path(folder).glob(f"*_{split}_*.bin"))
        found = [fingerprint(path) for path in paths]
        found = found[0] if len(found) == 1 else "".join(found)
        if found != meta["splits"].setdefault(split, {"fingerprint": found})["fingerprint"]:
            raise ValueError(f"{path} is missing or not what meta.json says: {again}")
        data[split] = Tokens([path for path in paths if path.stat().st_size > 0], meta["dtype"])
        least = block_size + 1 if split == "train" else 0
        if split == (eval_split if eval_only else target_split):
            least = max(least, 2)
        if len(data[split]) < least:
            raise ValueError(f"{path} is missing or has under {least} tokens ({block_size=}): {again}")
    meta["tokenizer"] = meta["tokenizer"] or gpt2_tokenizer()
    return meta, data


class Tokens:
    """Token files one after the other, as one array that is read from the disk when it is used."""

    def __init__(self, paths, dtype):
        self.parts = []
        for path in paths:
            header = np.fromfile(path, "<i4", 3).tolist()  # llm.c's: magic, version, tokens
            is_llmc = header[:2] == [20240520, 1] and path.stat().st_size == 1024 + 2 * header[2]
            self.parts.append(np.memmap(path, dtype, "r", offset=1024 if is_llmc else 0))
            if hasattr(mmap, "MADV_RANDOM"):  # or every page would bring megabytes with it
                self.parts[-1]._mmap.madvise(mmap.MADV_RANDOM)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self):
        return int(self.ends[-1]) if self.parts else 0

    def __getitem__(self, index):  # a slice or an array of positions
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        ids = np.empty(index.shape, np.int64)
        which = np.searchsorted(self.ends, index, side="right")
        for i in np.unique(which):
            begin = self.ends[i] - len(self.parts[i])
            ids[which == i] = self.parts[i][index[which == i] - begin]
        return ids


def loss_of(run, inputs, targets, machine):
    """Return the mean loss of inputs (B, T) with targets (B, T), where -1 does not count."""
    highest, vocab_size = max(inputs.max(), targets.max()), run.model.config.vocab_size
    if highest >= vocab_size:
        raise ValueError(f"{data_dir} has token {highest}, expected less than {vocab_size=}: prepare "
                         "it again")
    if machine.device.type == "cuda":
        inputs, targets = inputs.pin_memory(), targets.pin_memory()
    inputs = inputs.to(machine.device, non_blocking=True)
    targets = targets.to(machine.device, non_blocking=True)
    with machine.autocast():
        return run.forward(inputs, targets, return_logits=False)[1]


def evaluate(run, split, data, meta, machine, signals=()):
    """Return the Loss on a split, or on eval_iters batches spread over it; None after a signal."""
    tokens = data[split]
    begins = np.arange(0, len(tokens) - 1, block_size)
    if eval_iters:
        n = min(len(begins), eval_iters * batch_size)
        begins = begins[np.arange(n) * len(begins) // n]
    ends = np.minimum(begins + block_size + 1, len(tokens))
    windows = np.stack((begins, begins + 1, ends), axis=1)

    def interrupted():
        return sum_over_processes(len(signals))[0] > 0

    nats, n_targets = measure(partial(loss_of, run, machine=machine), tokens, windows, batch_size,
                              block_size, machine.rank, machine.n_processes, interrupted)
    if interrupted():
        return None
    nats, n_targets = sum_over_processes(nats, n_targets)
    loss = nats / n_targets
    bytes_per_token = meta["splits"][split].get("bytes", math.nan) / len(tokens)
    return Loss(loss, math.exp(min(loss, 700)), loss / math.log(2) / bytes_per_token)


def evaluate_weights(run, path, *arguments):
    """Return the Loss with a snapshot's weights, which replace the run's for a moment."""
    state_dict, full = checkpoint_tools()
    own = state_dict.get_model_state_dict(run.model, options=full)
    own = {name: tensor.clone() for name, tensor in own.items()}
    weights = read_snapshot(path)["model_state_dict"]
    state_dict.set_model_state_dict(run.model, weights, options=full)
    loss = evaluate(run, *arguments)
    state_dict.set_model_state_dict(run.model, own, options=full)
    return loss


def evaluate_only(meta, data, machine):
    """Print the loss of the model that init_from names, or of out_dir's best snapshot."""
    name = find_snapshot(out_dir) if init_from in ("auto", "resume") else init_from
    run = Run(load_weights_for(name, meta), [], None)
    run.forward = distributed(run.model.eval(), machine.device)
    loss = evaluate(run, eval_split, data, meta, machine)
    print(REPORT.format(f"{eval_split} with {name}", *loss))


def test(run, data, meta, machine, signals):
    """Evaluate the best snapshot, or the final one, on the test split, once; write test.json."""
    path = Path(out_dir, "test.json")
    if len(data["test"]) < 2 or path.exists():
        return None
    best = Path(out_dir, "best.pt" if run.best_val_loss < math.inf else "final_model.pt")
    loss = evaluate_weights(run, best, "test", data, meta, machine, signals)
    if loss is None:
        print("stopped before the end of the test: the same command runs it again")
        return 128 + max(signals, default=signal.SIGTERM)
    print(REPORT.format(f"test with {best}", *loss))
    if machine.rank == 0:
        names = ("snapshot", "loss", "perplexity", "bits_per_byte")
        with atomic_write(path, "w") as file:
            json.dump(dict(zip(names, (best.name, *loss))), file)


# The beginning: what out_dir holds decides.

def start_run(settings, meta, data, n_iters, machine):
    """Return the Run: out_dir's newest snapshot resumed, or one from other or new weights."""
    try:
        shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd) | SIZES.get(size, {})
        shape |= dict(block_size=block_size, vocab_size=meta["vocab_size"])
        new_config = GPTConfig(dropout=dropout, bias=bias, **shape)
    except ValueError as error:
        config.usage(error)
    is_pretrained = init_from not in ("auto", "scratch", "resume")
    path = snapshot = None
    if init_from != "scratch" and not overwrite:
        path, snapshot = newest_valid_snapshot()
    instead = "choose another --out_dir, or start over: --init_from=scratch --overwrite"
    if snapshot is None and not overwrite and (files_of_run() or init_from == "resume"):
        raise ValueError(f"{init_from=}, but {out_dir} has {len(files_of_run())} files of a run "
                         f"and no valid snapshot to resume: {instead}")
    if snapshot:
        ours = {**settings, "data": meta["splits"]["train"]["fingerprint"]}
        theirs = {**snapshot["settings"], "data": snapshot["data"]}
        if not is_pretrained:
            ours["init_from"] = settings["init_from"] = theirs.get("init_from")
        for name in FIXED:
            if ours[name] != theirs.get(name):
                raise ValueError(f"{path} has {name}={theirs.get(name)}, not {ours[name]}: {instead}")
        model = snapshot["model"]
    elif is_pretrained:
        model = load_weights_for(init_from, meta)
    else:
        torch.manual_seed(seed)
        model = GPT(new_config)
    is_cuda, is_float16 = machine.device.type == "cuda", machine.dtype == torch.float16
    run = Run(model, [], torch.amp.GradScaler(machine.device.type, enabled=is_float16))
    run.forward = distributed(model.eval(), machine.device)
    run.optimizers = make_optimizers(model)
    tokens = batch_size * gradient_accumulation_steps * block_size  # of an iteration
    # Compiling takes half a minute, which pays from about 1e16 floating-point operations on.
    is_long = model.flops_per_token() * n_iters * tokens > 1e16
    if compile is True or (compile == "auto" and is_cuda and is_long):
        run.forward = torch.compile(run.forward)
    measured_on = [eval_iters, batch_size, block_size, meta["splits"]["val"]["fingerprint"]]
    if snapshot:
        resume(run, snapshot, path)
        best = Path(out_dir, "best.pt")
        if run.best_measure != measured_on and best.exists() and len(data["val"]) > 1:
            run.best_val_loss = evaluate_weights(run, best, "val", data, meta, machine).val_loss
    run.best_measure = measured_on
    if sum_over_processes(run.step) != [run.step * machine.n_processes]:
        raise ValueError(f"out_dir={out_dir}: expected a folder that all processes share")
    print(f"{model.num_params():,} parameters, {len(data['train']):,} training tokens, {n_iters} "
          f"iterations of {tokens:,}, {machine.device.type}, {str(machine.dtype)[6:]}, {optimizer}")
    return run


def load_weights_for(name, meta):
    """Return the model of that name, with block_size positions, if the data is in its tokens."""
    model = GPT.from_pretrained(name, dropout)
    model.crop_block_size(block_size)
    theirs = model.tokenizer or meta["tokenizer"]
    is_same = theirs["tokens"] == meta["tokenizer"]["tokens"]
    if not is_same or model.config.vocab_size < meta["vocab_size"]:
        raise ValueError(f"{data_dir} is not in the tokens of {name}: prepare the text with "
                         f"python prepare.py --tokenizer={name}")
    return model


def newest_valid_snapshot():
    for path in snapshots_newest_first(out_dir):
        try:
            return path, read_snapshot(path, dropout=dropout)
        except ValueError as error:
            print(f"skipping a damaged snapshot: {error}", file=sys.stderr)
    return None, None


def resume(run, snapshot, path):
    run.step, run.loss = snapshot["step"], snapshot["loss"]
    old = snapshot["settings"]
    sequences = run.step * old["batch_size"] * old["gradient_accumulation_steps"]
    run.sequences = snapshot.get("sequences", sequences)
    run.best_val_loss = snapshot["best_val_loss"]
    run.best_measure = snapshot.get("best_measure")
    state_dict, full = checkpoint_tools()
    for opt, state in zip(run.optimizers, snapshot["optimizer_state_dict"]):
        options = [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]
        state_dict.set_optimizer_state_dict(run.model, opt, state, options=full)
        for group, given in zip(opt.param_groups, options):
            group.update(given)  # of this command, not the snapshot's
    if snapshot["scaler_state_dict"]:
        run.scaler.load_state_dict(snapshot["scaler_state_dict"])
    run.resumed_from = path
    with suppress(FileNotFoundError), open(Path(out_dir, "log.csv"), encoding="utf-8") as file:
        run.log = [row for row in csv.DictReader(file) if int(row["step"]) <= run.step]
    print(f"resuming from {path}")


def files_of_run():
    names = ("best.pt", "final_model.pt", "log.csv", "loss.svg", "test.json")
    paths = [Path(out_dir, name) for name in names]
    return [path for path in paths if path.exists()] + snapshots_newest_first(out_dir)


def prepare_out_dir(run, save, machine):
    """Remove what would be in the way of the run. A new one saves its first snapshot at once."""
    if machine.rank == 0:
        old = [] if run.resumed_from else files_of_run()
        for path in [*Path(out_dir).glob("snapshots/*.tmp"), *old, Path(out_dir, "test.json")]:
            path.unlink(missing_ok=True)
        for path in snapshots_newest_first(out_dir):
            if path == run.resumed_from:
                break
            path.rename(f"{path}.broken")  # damaged ones must not displace valid ones
    if not run.resumed_from:
        save("snapshots/snapshot_step_0.pt")  # before log.csv, which alone would not be a run
    write_log(run, machine)


def count_iterations(n_tokens):
    """Return how long the run is: max_iters or max_epochs, whichever comes first."""
    sequences = batch_size * gradient_accumulation_steps
    limits = (max_iters, math.ceil(max_epochs * (n_tokens // block_size) / sequences))
    return min(limit for limit in limits if limit > 0)


# In between: what is due, signals, snapshots.

def is_finished(run, n_iters):
    loss = run.best_val_loss if target_split == "val" else run.loss
    return run.step >= n_iters or loss <= target_loss


def is_due(run, n_iters, *intervals):
    return is_finished(run, n_iters) or any(run.step % interval == 0 for interval in intervals)


def catch_signals():
    """Return a list that receives Ctrl-C and SIGTERM, which are heeded after the iteration."""
    signals = []

    def note(number, frame):
        signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.environ.get("RANK", "0") == "0":  # (print must not be called from here)
            os.write(2, b"\nstopping: a snapshot is written first; Ctrl-C again ends at once\n")

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return signals


def read_loss(run, loss, n_iters, signals, machine):
    """Set run.loss from the tensor, if something needs it now; return whether to stop."""
    saves = is_due(run, n_iters, eval_interval, snapshot_interval)
    if not (machine.device.type != "cuda" or target_loss > 0 or saves
            or (signals and machine.n_processes == 1) or is_due(run, n_iters, log_interval)):
        return False
    total, n_signals = sum_over_processes(loss.item(), len(signals))
    run.loss = total / machine.n_processes
    is_sound = math.isfinite(run.loss) and (run.scaler.is_enabled() or not run.n_skipped)
    if saves or n_signals:
        norm = full_tensor(torch.nn.utils.get_total_norm(run.model.parameters()))
        is_sound = is_sound and math.isfinite(norm.item())
    if not is_sound:
        raise ValueError(f"iteration {run.step}: inf or nan: lower learning_rate (and Muon's)")
    return n_signals > 0


def checkpoint_tools():
    """Return (torch's module for state dicts of sharded models, options for complete tensors)."""
    from torch.distributed.checkpoint import state_dict  # here: importing it takes a second
    return state_dict, state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)


def save_snapshot(run, settings, meta, machine, name):
    """Write one file that is enough to resume the run or to generate text."""
    state_dict, full = checkpoint_tools()
    weights = state_dict.get_model_state_dict(run.model, options=full)
    # An optimizer without a state is left out: to get it, one would take a step.
    optimizer_states = [state_dict.get_optimizer_state_dict(run.model, opt, options=full)
                        for opt in run.optimizers if opt.state]
    if machine.rank == 0:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]  # tied: written once
        snapshot = dict(
            format_version=2, settings=settings, model_config=vars(run.model.config),
            tokenizer=meta["tokenizer"], data=meta["splits"]["train"]["fingerprint"],
            step=run.step, sequences=run.sequences, loss=run.loss,
            best_val_loss=run.best_val_loss, best_measure=run.best_measure,
            model_state_dict=weights, optimizer_state_dict=optimizer_states,
            scaler_state_dict=run.scaler.state_dict())
        with atomic_write(Path(out_dir, name)) as file:
            try:
                torch.save(snapshot, file)
            except RuntimeError as error:  # torch.save hides the OSError of a full disk
                raise (error.__context__ or error) from None
        for path in snapshots_newest_first(out_dir)[keep_snapshots:]:
            path.unlink()
    sum_over_processes(0)  # the others wait until it is written


# What a run prints and draws.

class Progress:
    """The lines of a run; on a terminal, one that is updated in between."""

    def __init__(self, run, started, n_iters):
        earlier = float(run.log[-1]["seconds"]) if run.log else 0.0  # sessions before this one
        self.started, self.n_iters = started - earlier, n_iters
        self.clear = "\r\033[K" if sys.stdout.isatty() else ""
        self.shown_at, self.shown_sequences = time.time(), run.sequences

    def seconds(self):
        return time.time() - self.started

    def line(self, run):
        return (f"{self.clear}iteration {run.step}/{self.n_iters}: {self.seconds():.2f} s, "
                f"loss {run.loss:.4f}")

    def show(self, run):
        elapsed = time.time() - self.shown_at
        if self.clear and elapsed > 0.2:
            speed = (run.sequences - self.shown_sequences) * block_size / elapsed
            left = (self.n_iters - run.step) * self.seconds() / run.step
            print(f"{self.line(run)}, {speed:,.0f} tokens/s, {left:.0f} s left, "
                  f"{speed * run.model.flops_per_token() / 1e9:,.0f} GFLOP/s", end="", flush=True)
            self.shown_at, self.shown_sequences = time.time(), run.sequences

    def print_row(self, run, row):
        skipped = f", {run.n_skipped} steps skipped" if run.n_skipped else ""
        val = ""
        if "val_loss" in row:
            val = ", val loss {val_loss:.4f}, {val_bits_per_byte:.4f} bits per byte".format(**row)
        print(self.line(run) + skipped + val, flush=True)


def log_row(run, n_tokens, n_iters, seconds):
    return dict(step=run.step, epoch=run.sequences / (n_tokens // block_size),
                tokens=run.sequences * block_size, seconds=seconds,
                lr=learning_rate * lr_factor(run.step - 1, n_iters), train_loss=run.loss)


def write_log(run, machine):
    """Write log.csv and draw loss.svg."""
    if machine.rank > 0:
        return
    rows = [{name: f"{value:.8g}" if isinstance(value, float) else value
             for name, value in row.items()} for row in run.log]
    with atomic_write(Path(out_dir, "log.csv"), "w") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with atomic_write(Path(out_dir, "loss.svg"), "w") as file:
        file.write(draw_losses(rows, f"GPT with {run.model.num_params():,} parameters"))


def draw_losses(rows, title):
    """Return a picture of the training and validation losses, in SVG."""
    curves = {name: [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
              for name in ("train_loss", "val_loss")}
    losses = [loss for curve in curves.values() for _, loss in curve] or [0.0]
    last_step = int(rows[-1]["step"]) if rows else 1
    low, high = min(losses), max(losses) + 0.01

    def x(step):
        return round(60 + 700 * step / last_step, 1)

    def y(loss):
        return round(430 - 380 * (loss - low) / (high - low), 1)

    def text(x, y, content, anchor="middle", color="black"):
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{content}</text>'

    def round_numbers(low, high):  # about six
        power = 10.0 ** math.floor(math.log10((high - low) / 6))
        step = power * next(factor for factor in (1, 2, 5, 10) if power * factor >= (high - low) / 6)
        return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

    svg = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 480" font-family="sans-serif" '
           'font-size="14"><rect width="800" height="480" fill="white"/>', text(400, 24, title),
           text(400, 472, "iteration"), text(10, 40, "loss (nats per token)", "start")]
    for step in round_numbers(0, last_step):
        svg += [f'<path d="M{x(step)} 50V430" stroke="#ddd"/>', text(x(step), 450, f"{step:g}")]
    for loss in round_numbers(low, high):
        svg += [f'<path d="M60 {y(loss)}H760" stroke="#ddd"/>', text(52, y(loss), f"{loss:g}", "end")]
    for name, color, height in (("train_loss", "steelblue", 70), ("val_loss", "crimson", 90)):
        points = " ".join(f"{x(step)},{y(loss)}" for step, loss in curves[name])
        svg += [f'<polyline points="{points}" fill="none" stroke="{color}"/>',
                text(750, height, name.replace("_", " "), "end", color)]
    if curves["val_loss"]:
        loss, step = min((loss, step) for step, loss in curves["val_loss"])
        bits = next(row["val_bits_per_byte"] for row in rows if int(row["step"]) == step)
        svg += [f'<circle cx="{x(step)}" cy="{y(loss)}" r="4" fill="crimson"/>',
                text(750, 110, f"best: {loss:.3f} at iteration {step}, perplexity "
                     f"{math.exp(min(loss, 700)):.1f}, {float(bits):.3f} bits per byte", "end")]
    return "\n".join([*svg, "</svg>\n"])


@torch.no_grad()
def print_samples(model, meta, tokens, machine, count):
    """Print continuations of sample_prompt, and what the model expects along a validation text."""
    encoding = load_tokenizer(meta["tokenizer"])
    prompt = encoding.encode(sample_prompt, allowed_special="all") or [encoding.eot_token]
    idx = torch.tensor([prompt] * count, device=machine.device)
    generator = torch.Generator().manual_seed(seed)
    for row in model.generate(idx, max_length, generator=generator).tolist():
        print("  sample    |" + encoding.decode(row).replace("\n", "\n            |"))
    text = torch.tensor(tokens[:min(max_length, block_size)].tolist(), device=machine.device)[None]
    if text.numel():
        predicted = model(text, text)[0].argmax(dim=-1)
        print(f"  text      |{encoding.decode(text[0].tolist())!r}")
        print(f"  predicted |{encoding.decode(predicted[0].tolist())!r}")


if __name__ == "__main__":
    raise SystemExit(config.run(main))
