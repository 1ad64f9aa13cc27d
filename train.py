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
import math
import mmap
import os
import signal
import sys
import time
from collections import defaultdict, namedtuple
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import config
from model import (GPT, SIZES, GPTConfig, choose_device, measure, read_snapshot,
                   snapshots_newest_first)
from prepare import (atomic_write, fingerprint, finish_publishing, gpt2_tokenizer, load_tokenizer,
                     read_meta)

# data and output
data_dir = "data"  # folder with train.bin and val.bin
out_dir = "out"  # folder for snapshots/, best.pt, final_model.pt, log.csv and loss.svg
init_from = "auto"  # 'auto' resumes if it can; 'scratch', 'resume'; or weights: 'gpt2', a folder
overwrite = False  # with init_from='scratch' or weights: delete the run that is in out_dir
snapshot_interval = 100  # iterations between snapshots
keep_snapshots = 2  # how many of the newest snapshots are kept
# logging, evaluation, samples
log_interval = 10  # iterations between lines of the log
eval_interval = 100  # iterations between evaluations on the validation split
eval_iters = 0  # batches in an evaluation, 0: the whole split
eval_only = False  # evaluate once and stop
sample_interval = 0  # iterations between samples, drawn at evaluations; 0: none
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
max_iters = 600  # iterations
max_epochs = 0.0  # passes over the training split, instead of max_iters; 0: max_iters
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
compile = "auto"  # torch.compile: True, False; 'auto': for CUDA only
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
    """The state of a run. Everything down to best_val_loss is kept in a snapshot."""
    model: GPT
    optimizers: list
    scaler: torch.amp.GradScaler  # of float16's gradients
    step: int = 0  # iterations done
    loss: float = math.nan  # of the last iteration
    best_val_loss: float = math.inf
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
        first = (run.step * gradient_accumulation_steps + i) * batch_size
        ids = get_batch(tokens, first)
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
    return total_loss


def main(arguments=None):
    started = time.time()
    settings = configure(arguments)
    globals().update(settings)
    machine = start_processes()
    meta, data = load_data(data_dir)
    n_iters = count_iterations(len(data["train"]))
    run = start_run(settings, meta, machine)
    if eval_only:
        return print_loss("validation", evaluate(run, data["val"], meta["splits"]["val"], machine))
    print_heading(run, data, n_iters, machine)
    if run.resumed_from and is_finished(run, n_iters) and Path(out_dir, "final_model.pt").exists():
        print(f"nothing left to do: {out_dir}/final_model.pt is the result of this run")
        return
    save = partial(save_snapshot, run, settings, meta, machine)
    prepare_out_dir(run, save, machine)
    if run.log:
        started -= float(run.log[-1]["seconds"])  # earlier sessions count, too
    signals = catch_signals()
    progress = Progress(run, started, n_iters)

    while not is_finished(run, n_iters):
        # One iteration: forward, backward, update.
        loss = train_step(run, data["train"], n_iters, machine)
        # Read the loss only if something needs it: reading waits for the GPU.
        stop = False
        if must_read_loss(run, n_iters, signals, machine):
            stop = read_loss(run, loss, n_iters, signals, machine)
        progress.show(run)
        # Evaluate, log, sample.
        evaluates = len(data["val"]) > 1 and is_due(run, n_iters, eval_interval)
        if evaluates or is_due(run, n_iters, log_interval):
            row = log_row(run, len(data["train"]), n_iters, started)
            if evaluates:
                val = evaluate(run, data["val"], meta["splits"]["val"], machine)
                row.update(zip(LOG_COLUMNS[-3:], val))
                if val.loss < run.best_val_loss:
                    run.best_val_loss = val.loss
                    save("best.pt")
            run.log.append(row)
            progress.print_row(run, row)
            write_log(run, machine)
            if evaluates and sample_interval and run.step % sample_interval == 0:
                print_samples(run.model, meta, data["val"], machine, 1)
        # Save a snapshot.
        if stop or is_due(run, n_iters, snapshot_interval):
            save(f"snapshots/snapshot_step_{run.step}.pt")
            delete_old_snapshots(machine)
        if stop and not is_finished(run, n_iters):
            print(f"stopped after iteration {run.step}: the same command resumes from here")
            return 128 + max(signals, default=signal.SIGTERM)

    save("final_model.pt")
    if num_return_sequences:
        print_samples(run.model, meta, data["val"], machine, num_return_sequences)
    if len(data["test"]) > 1:
        test(run, data["test"], meta["splits"]["test"], machine)


# ---- plumbing: skip on a first reading ----

LOG_COLUMNS = ("step", "epoch", "tokens", "seconds", "lr", "train_loss", "val_loss",
               "val_perplexity", "val_bits_per_byte")
# Settings that a run can't change when it resumes:
FIXED = ("data", "init_from", "optimizer", "size", "n_layer", "n_head", "n_embd", "block_size", "bias")
Loss = namedtuple("Loss", "loss perplexity bits_per_byte")  # loss in nats per token


def configure(arguments):
    """Return the settings, with size looked up; invalid ones end the script with exit code 2."""
    settings = config.override(__file__, arguments, at_least_one=(
        "batch_size", "gradient_accumulation_steps", "snapshot_interval", "keep_snapshots",
        "log_interval", "eval_interval", "lr_step_iters", "block_size", "n_layer", "n_head",
        "n_embd"))
    config.one_of(settings, optimizer=("muon", "adamw"), parallel=("ddp", "fsdp"),
                  lr_schedule=("linear", "cosine", "step", "constant"), size=("", *SIZES),
                  target_split=("train", "val"), compile=("auto", True, False))
    return settings


# Processes and devices.

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
    keep_freed_memory()
    is_distributed = "RANK" in os.environ  # set by torchrun
    if is_distributed and device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # or all would use some of GPU 0
    machine = Machine(*choose_device(device, dtype), rank=int(os.environ.get("RANK", 0)),
                      n_processes=int(os.environ.get("WORLD_SIZE", 1)))
    if is_distributed:
        is_cuda = machine.device.type == "cuda"
        dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
        # Left to the end of Python, this can abort; so can it while DDP, in a cycle, refers to it.
        atexit.register(dist.destroy_process_group)
        atexit.register(gc.collect)
        if machine.rank > 0:  # only the first process prints
            sys.stdout = open(os.devnull, "w")
    if gradient_accumulation_steps % machine.n_processes:
        config.usage(f"{gradient_accumulation_steps=} is not a multiple of the "
                     f"{machine.n_processes} processes")
    return machine


def keep_freed_memory():
    """Tell glibc not to return freed memory: getting it back takes half of a small iteration."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX


def sum_over_processes(*numbers):
    """Return the sums over all processes; none returns before all have called this."""
    sums = torch.tensor(numbers, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(sums)
    return sums.tolist()


def full_tensor(tensor):
    """Return the complete tensor where FSDP gives each process a shard of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(p, tensor):
    """Return this process's shard of a complete tensor, if p is sharded."""
    if not hasattr(p, "full_tensor"):
        return tensor
    return dist.tensor.distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)


def distributed(model, device):
    """Move the model to the device; return it, sharded by FSDP (Zhao et al. 2023), or DDP's wrapper."""
    if activation_checkpointing:  # Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"
        for block in model.transformer.h:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if dist.is_initialized() and parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard
        mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
        for module in [*model.transformer.h, model]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        return model
    model.to(device)
    if dist.is_initialized():
        return torch.nn.parallel.DistributedDataParallel(model)
    return model


# Data, and the loss of it.

def load_data(folder):
    """Return (meta, {split: token ids}); the ids are memory maps, so only what is used is read.

    A folder without meta.json, as nanoGPT writes them, is taken to hold GPT-2's tokens in uint16.
    """
    finish_publishing(folder)
    meta = read_meta(folder) or dict(vocab_size=50257, dtype="uint16", splits={}, tokenizer=None)
    data = {}
    for split, least in (("train", block_size + 1), ("val", 2 if eval_only else 0), ("test", 0)):
        path = Path(folder, f"{split}.bin")
        found = fingerprint(path) if path.exists() else None
        expected = meta["splits"].setdefault(split, {"fingerprint": found})["fingerprint"]
        if found != expected:
            raise ValueError(f"{path} is missing or not what meta.json says: "
                             f"python prepare.py --out_dir={folder}")
        data[split] = np.empty(0, np.int64)
        if found and path.stat().st_size:
            data[split] = np.memmap(path, dtype=meta["dtype"], mode="r")
            if hasattr(mmap, "MADV_RANDOM"):  # or every page would bring megabytes with it
                data[split]._mmap.madvise(mmap.MADV_RANDOM)
        if len(data[split]) < least:
            raise ValueError(f"{path} is missing or has under {least} tokens ({block_size=}): "
                             f"python prepare.py --out_dir={folder}")
    meta["tokenizer"] = meta["tokenizer"] or gpt2_tokenizer()
    return meta, data


def loss_of(run, inputs, targets, machine):
    """Return the mean loss of inputs (B, T) with targets (B, T), where -1 does not count."""
    highest = max(inputs.max(), targets.max())
    if highest >= run.model.config.vocab_size:
        raise ValueError(f"{data_dir} has token {highest} in a vocabulary of "
                         f"{run.model.config.vocab_size}: prepare it again")
    if machine.device.type == "cuda":
        inputs, targets = inputs.pin_memory(), targets.pin_memory()
    inputs = inputs.to(machine.device, non_blocking=True)
    targets = targets.to(machine.device, non_blocking=True)
    with machine.autocast():
        return run.forward(inputs, targets, return_logits=False)[1]


def evaluate(run, tokens, about, machine):
    """Return the Loss on a split, or on eval_iters batches that are spread over it."""
    begins = np.arange(0, len(tokens) - 1, block_size)
    if eval_iters:
        n = min(len(begins), eval_iters * batch_size)
        begins = begins[np.arange(n) * len(begins) // n]
    ends = np.minimum(begins + block_size + 1, len(tokens))
    windows = np.stack((begins, begins + 1, ends), axis=1)
    nats, n_targets = measure(partial(loss_of, run, machine=machine), tokens, windows, batch_size,
                              block_size, machine.rank, machine.n_processes)
    nats, n_targets = sum_over_processes(nats, n_targets)
    loss = nats / n_targets
    bytes_per_token = about.get("bytes", math.nan) / len(tokens)
    return Loss(loss, math.exp(min(loss, 700)), loss / math.log(2) / bytes_per_token)


def test(run, tokens, about, machine):
    """Print the loss of the best snapshot, or of the final one, on the test split."""
    best = Path(out_dir, "best.pt" if run.best_val_loss < math.inf else "final_model.pt")
    state_dict, full = checkpoint_tools()
    weights = read_snapshot(best)["model_state_dict"]
    state_dict.set_model_state_dict(run.model, weights, options=full)
    print_loss(f"test with {best}", evaluate(run, tokens, about, machine))


def print_loss(name, loss):
    print(f"{name}: loss {loss.loss:.4f}, perplexity {loss.perplexity:.2f}, "
          f"{loss.bits_per_byte:.4f} bits per byte")


# Beginning and ending: what is in out_dir, what is due.

def model_config(vocab_size):
    shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd) | SIZES.get(size, {})
    shape["block_size"] = block_size
    try:
        return GPTConfig(vocab_size=vocab_size, dropout=dropout, bias=bias, **shape)
    except ValueError as error:
        config.usage(error)


def start_run(settings, meta, machine):
    """Return the Run: resumed from out_dir's newest snapshot, or begun with other or new weights."""
    new_config = model_config(meta["vocab_size"])
    is_pretrained = init_from not in ("auto", "scratch", "resume")
    start_over = init_from not in ("auto", "resume") and (overwrite or eval_only)
    path = snapshot = None
    if init_from != "scratch" and not start_over:
        path, snapshot = newest_valid_snapshot()
    instead = (": choose another --out_dir, or start over with --overwrite --init_from=scratch (or "
               "weights)")
    if snapshot is None and not start_over:
        n_old = len(files_of_run())
        if n_old or init_from == "resume":
            raise ValueError(f"{init_from=}, but {out_dir} has {n_old} files of a run{instead}")
    if snapshot:
        settings["init_from"] = init_from if is_pretrained else snapshot["settings"].get("init_from")
        ours = {**settings, "data": meta["splits"]["train"]["fingerprint"]}
        theirs = {**snapshot["settings"], "data": snapshot["data"]}
        for name in FIXED:
            if ours[name] != theirs.get(name):
                raise ValueError(f"{path} has {name}={theirs.get(name)}, not {ours[name]}{instead}")
        model = snapshot["model"]
    elif is_pretrained:
        model = GPT.from_pretrained(init_from, dropout)
        model.crop_block_size(block_size)
        if model.config.vocab_size != meta["vocab_size"]:
            raise ValueError(f"{data_dir} has other tokens than {init_from}: prepare.py "
                             "--tokenizer=gpt2")
    else:
        torch.manual_seed(seed)
        model = GPT(new_config)
    forward = distributed(model.eval(), machine.device)
    if compile is True or (compile == "auto" and machine.device.type == "cuda"):
        forward = torch.compile(forward)
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
    run = Run(model, make_optimizers(model), scaler, forward=forward)
    if snapshot:
        resume(run, snapshot, path)
    if sum_over_processes(run.step) != [run.step * machine.n_processes]:
        raise ValueError(f"out_dir={out_dir} has to be a folder that all processes share")
    return run


def resume(run, snapshot, path):
    run.step = snapshot["step"]
    run.loss = snapshot["loss"]
    run.best_val_loss = snapshot["best_val_loss"]
    state_dict, full = checkpoint_tools()
    for opt, state in zip(run.optimizers, snapshot["optimizer_state_dict"]):
        state_dict.set_optimizer_state_dict(run.model, opt, state, options=full)
    if snapshot["scaler_state_dict"]:
        run.scaler.load_state_dict(snapshot["scaler_state_dict"])
    run.resumed_from = path
    log = Path(out_dir, "log.csv")
    if log.exists():
        with open(log, newline="", encoding="utf-8") as file:
            run.log = [row for row in csv.DictReader(file) if int(row["step"]) <= run.step]
    print(f"resuming from {path}")


def newest_valid_snapshot():
    for path in snapshots_newest_first(out_dir):
        try:
            return path, read_snapshot(path, dropout=dropout)
        except ValueError as error:
            print(f"skipping a damaged snapshot: {error}", file=sys.stderr)
    return None, None


def files_of_run():
    names = ("best.pt", "final_model.pt", "log.csv", "loss.svg")
    paths = [Path(out_dir, name) for name in names]
    return [path for path in paths if path.exists()] + snapshots_newest_first(out_dir)


def prepare_out_dir(run, save, machine):
    """Remove what would be in the way of the run. A new one saves its first snapshot at once."""
    if machine.rank == 0:
        old = [] if run.resumed_from else files_of_run()
        for path in [*Path(out_dir).glob("snapshots/*.tmp"), *old]:
            path.unlink()
        if run.resumed_from:  # damaged snapshots must not displace valid ones
            for path in snapshots_newest_first(out_dir):
                if path == run.resumed_from:
                    break
                path.rename(f"{path}.broken")
    if not run.resumed_from:
        save("snapshots/snapshot_step_0.pt")  # before log.csv, which alone would not be a run
    write_log(run, machine)


def count_iterations(n_tokens):
    if not max_epochs:
        return max_iters
    tokens_per_epoch = n_tokens // block_size * block_size
    tokens_per_iteration = batch_size * gradient_accumulation_steps * block_size
    return math.ceil(max_epochs * tokens_per_epoch / tokens_per_iteration)


def is_finished(run, n_iters):
    loss = run.best_val_loss if target_split == "val" else run.loss
    return run.step >= n_iters or loss <= target_loss


def is_due(run, n_iters, interval):
    return is_finished(run, n_iters) or run.step % interval == 0


def catch_signals():
    """Return a list that receives Ctrl-C and SIGTERM, which are heeded after the iteration."""
    signals = []

    def note(number, frame):
        signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once

    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    return signals


def must_read_loss(run, n_iters, signals, machine):
    if machine.device.type != "cuda" or target_loss > 0 or (signals and machine.n_processes == 1):
        return True
    return any(is_due(run, n_iters, interval)
               for interval in (log_interval, eval_interval, snapshot_interval))


def read_loss(run, loss, n_iters, signals, machine):
    """Set run.loss and return whether to stop. Raises ValueError where something isn't finite."""
    total, n_signals = sum_over_processes(loss.item(), len(signals))
    run.loss = total / machine.n_processes
    is_sound = math.isfinite(run.loss)
    if run.n_skipped and not run.scaler.is_enabled():
        is_sound = False
    if n_signals or is_due(run, n_iters, eval_interval) or is_due(run, n_iters, snapshot_interval):
        norm = torch.nn.utils.get_total_norm(run.model.parameters())  # the weights will be saved
        is_sound = is_sound and math.isfinite(full_tensor(norm).item())
    if not is_sound:
        raise ValueError(f"iteration {run.step}: inf or nan: lower learning_rate (and Muon's)")
    return n_signals > 0


# Snapshots.

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
            step=run.step, loss=run.loss, best_val_loss=run.best_val_loss,
            model_state_dict=weights, optimizer_state_dict=optimizer_states,
            scaler_state_dict=run.scaler.state_dict())
        with atomic_write(Path(out_dir, name)) as file:
            try:
                torch.save(snapshot, file)
            except RuntimeError as error:  # torch.save hides the OSError of a full disk
                raise error.__context__ or error
    sum_over_processes(0)  # the others wait until it is written


def delete_old_snapshots(machine):
    if machine.rank == 0:
        for path in snapshots_newest_first(out_dir)[keep_snapshots:]:
            path.unlink()


# What a run prints and draws.

def print_heading(run, data, n_iters, machine):
    tokens = batch_size * gradient_accumulation_steps * block_size
    print(f"{run.model.num_params():,} parameters, {len(data['train']):,} training tokens, "
          f"{n_iters} iterations of {tokens:,}, {machine.device.type}, {str(machine.dtype)[6:]}, "
          f"{optimizer}")


class Progress:
    """The lines of a run; on a terminal, one that is updated in between."""

    def __init__(self, run, started, n_iters):
        self.started = started
        self.n_iters = n_iters
        self.clear = "\r\033[K" if sys.stdout.isatty() else ""
        self.shown_at = time.time()
        self.shown_step = run.step

    def line(self, run):
        seconds = time.time() - self.started
        return f"{self.clear}iteration {run.step}/{self.n_iters}: {seconds:.2f} s, loss {run.loss:.4f}"

    def show(self, run):
        elapsed = time.time() - self.shown_at
        if not self.clear or elapsed < 0.2:
            return
        tokens = batch_size * gradient_accumulation_steps * block_size
        speed = (run.step - self.shown_step) * tokens / elapsed
        left = (self.n_iters - run.step) * tokens / speed
        print(f"{self.line(run)}, {speed:,.0f} tokens/s, "
              f"{speed * run.model.flops_per_token() / 1e9:,.0f} GFLOP/s, {left:.0f} s left",
              end="", flush=True)
        self.shown_at = time.time()
        self.shown_step = run.step

    def print_row(self, run, row):
        line = self.line(run)
        if run.n_skipped:
            line += f", {run.n_skipped} steps skipped"
        if "val_loss" in row:
            line += (f", val loss {row['val_loss']:.4f}, {row['val_bits_per_byte']:.4f} bits per "
                     "byte")
        print(line, flush=True)


def log_row(run, n_tokens, n_iters, started):
    tokens = run.step * batch_size * gradient_accumulation_steps * block_size
    return dict(step=run.step, epoch=tokens / (n_tokens // block_size * block_size), tokens=tokens,
                seconds=time.time() - started, lr=learning_rate * lr_factor(run.step - 1, n_iters),
                train_loss=run.loss)


def write_log(run, machine):
    """Write log.csv and draw loss.svg."""
    if machine.rank > 0:
        return
    with atomic_write(Path(out_dir, "log.csv"), "w") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in run.log:
            writer.writerow({name: f"{value:.8g}" if isinstance(value, float) else value
                             for name, value in row.items()})
    with atomic_write(Path(out_dir, "loss.svg"), "w") as file:
        file.write(draw_losses(run.log, f"GPT with {run.model.num_params():,} parameters"))


def draw_losses(rows, title):
    """Return a picture of the training and validation losses, in SVG."""
    curves = {}
    for name in ("train_loss", "val_loss"):
        curves[name] = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    losses = [loss for curve in curves.values() for _, loss in curve] or [0.0]
    last_step = int(rows[-1]["step"]) if rows else 1
    low, high = min(losses), max(losses) + 0.01

    def x(step):
        return 60 + 700 * step / last_step

    def y(loss):
        return 430 - 380 * (loss - low) / (high - low)

    svg = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 480" font-family="sans-serif" '
           'font-size="14"><rect width="800" height="480" fill="white"/>',
           f'<text x="400" y="24" text-anchor="middle" font-size="16">{title}</text>',
           '<text x="400" y="472" text-anchor="middle">iteration</text>',
           '<text x="10" y="40">loss (nats per token)</text>']
    for step in round_ticks(0, last_step):
        svg.append(f'<path d="M{x(step):g} 50V430" stroke="#ddd"/>'
                   f'<text x="{x(step):g}" y="450" text-anchor="middle">{step:g}</text>')
    for loss in round_ticks(low, high):
        svg.append(f'<path d="M60 {y(loss):g}H760" stroke="#ddd"/>'
                   f'<text x="52" y="{y(loss) + 5:g}" text-anchor="end">{loss:g}</text>')
    for i, (name, color) in enumerate((("train_loss", "steelblue"), ("val_loss", "crimson"))):
        points = " ".join(f"{x(step):g},{y(loss):g}" for step, loss in curves[name])
        svg.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'
                   f'<text x="750" y="{70 + 20 * i}" text-anchor="end" fill="{color}">'
                   f'{name.replace("_", " ")}</text>')
    if curves["val_loss"]:
        step, best = min(curves["val_loss"], key=lambda point: point[1])
        bits = next(row["val_bits_per_byte"] for row in rows if int(row["step"]) == step)
        svg.append(f'<circle cx="{x(step):g}" cy="{y(best):g}" r="4" fill="crimson"/>'
                   f'<text x="750" y="110" text-anchor="end">best: {best:.3f} at iteration {step}, '
                   f'perplexity {math.exp(min(best, 700)):.1f}, {float(bits):.3f} bits per byte</text>')
    return "\n".join([*svg, "</svg>\n"])


def round_ticks(low, high):
    """Return about six round numbers from low to high."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]


@torch.no_grad()
def print_samples(model, meta, tokens, machine, count):
    """Print continuations of sample_prompt, and what the model expects along a validation text."""
    encoding = load_tokenizer(meta["tokenizer"])
    prompt = encoding.encode_ordinary(sample_prompt) or [encoding.eot_token]
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
