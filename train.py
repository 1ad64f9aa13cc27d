"""Train a GPT-2 on the tokens that prepare.py wrote.

    python train.py config/shakespeare.py           # interrupted? the same command resumes the run
    python train.py config/shakespeare.py --n_layer=6 --out_dir=out_6_layers
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py --data_dir=data_corpus
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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import config
import prepare
from model import GPT, SIZES, GPTConfig, get_device, get_snapshot, measure, read_snapshot, snapshots

# data and output
data_dir = "data"  # folder with train.bin and val.bin
out_dir = "out"  # for snapshots/, best.pt, final_model.pt, test.json, log.csv and loss.svg
init_from = "auto"  # 'auto' resumes if it can; 'scratch', 'resume'; or 'gpt2', a folder, a snapshot
overwrite = False  # with init_from='scratch' or a model's name: delete the run in out_dir
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
max_length = 30  # new tokens in every sample
# model (if init_from names one, only block_size and dropout apply)
size = ""  # a name in model.py's SIZES, instead of the next three (block_size stays)
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
muon_polynomials = "newton-schulz"  # how it orthogonalizes; 'polar-express': faster, less exact
weight_decay = 0.1  # for matrices only; with Muon, those in the blocks
embedding_weight_decay = 0.0  # with Muon: for the embeddings
beta1 = 0.9  # AdamW: decay rate of the first moment
beta2 = 0.95  # AdamW: decay rate of the second moment
grad_clip = 1.0  # maximum norm of the gradient; 0: no clipping
# learning rate schedule
warmup_iters = 10  # iterations of linear warmup
lr_schedule = "linear"  # then: 'linear' or 'cosine' decay to min_lr, 'step', or 'constant'
min_lr = 0.0  # AdamW's final learning rate; Muon's decays in proportion
lr_decay_iters = 0  # the iteration at which min_lr is reached; 0: the end of the run
lr_gamma = 0.5  # 'step' multiplies the learning rates by this ...
lr_step_iters = 1000  # ... every lr_step_iters iterations after the warmup
# system
seed = 1337  # for the weights, the order of the data, dropout and the samples
device = "auto"  # 'cpu', 'cuda', 'cuda:1', 'mps'; 'auto': the fastest available
dtype = "auto"  # 'float32', 'bfloat16' or 'float16' for matrix products
compile = "auto"  # torch.compile: True, False; 'auto': on CUDA, if the run is long enough
parallel = "ddp"  # under torchrun: 'ddp' replicates the model, 'fsdp' shards it
activation_checkpointing = False  # recompute blocks in the backward pass to save memory


def hashed(*numbers):
    """Return 64 pseudo-random bits determined by the numbers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big")


def shuffled(k, n, *key):
    """Return element k of a random permutation of range(n), without storing all n numbers.
    A Feistel network (Luby & Rackoff 1988): a round turns the halves (left, right) of k's bits into
    (right, left XOR hash of right). Given right, this can be undone: each k has its own result."""
    base = 2 ** math.ceil((n - 1).bit_length() / 2)  # % base takes the lower half of the bits
    left, right = divmod(k, base)
    for i in range(4):
        left, right = right, (left ^ hashed(*key, i, right)) % base
    result = left * base + right
    return result if result < n else shuffled(result, n, *key)  # else once more (cycle walking)


def get_batch(tokens, first):
    """Return ids (B, block_size + 1): sequences first to first + B - 1 of the run; B = batch_size.
    An epoch treats the tokens as a ring, cuts it into sequences starting at a random offset, and
    visits them in random order. All this follows from (seed, number): resuming needs no state."""
    per_epoch = len(tokens) // block_size
    positions = []
    for number in range(first, first + batch_size):
        epoch, k = divmod(number, per_epoch)
        offset = hashed(seed, epoch) % len(tokens)
        start = offset + shuffled(k, per_epoch, seed, epoch) * block_size
        positions.append(np.arange(start, start + block_size + 1) % len(tokens))
    return torch.from_numpy(tokens[np.stack(positions)].astype(np.int64))


# The coefficients a, b, c of each step of orthogonalized: Jordan et al.'s, or the first three of
# Polar Express (Amsel et al. 2025; the first rescaled for values up to 1.02): faster, less exact.
POLYNOMIALS = {"newton-schulz": 5 * [(3.4445, -4.7750, 2.0315)],
               "polar-express": [(8.1247, -22.2349, 15.6695), (4.1071, -2.9478, 0.5448),
                                 (3.9487, -2.9089, 0.5518)]}


def orthogonalized(x, polynomials):  # (n, rows, cols) -> (n, rows, cols)
    """Move all singular values towards 1: each step maps a value s to a s + b s^3 + c s^5."""
    if x.size(1) > x.size(2):
        return orthogonalized(x.mT, polynomials).mT  # transposed: the products are smaller
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)  # no singular value exceeds this norm
    for a, b, c in POLYNOMIALS[polynomials]:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b * gram + c * gram @ gram
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a * x + polynomial @ x, also in one kernel
    return x


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Jordan et al. 2024, "Muon"). A few directions, those with large
    singular values, dominate a matrix's gradient. Equal singular values let all count alike."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = defaultdict(list)  # matrices of one shape are processed together
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for (rows, cols), parameters in by_shape.items():
                # 1. Nesterov momentum. (a.lerp(b, w) is (1 - w) * a + w * b.)
                updates = []
                for p in parameters:
                    if p not in self.state:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                    buffer = self.state[p]["momentum_buffer"]
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(full_tensor(p.grad.lerp(buffer, group["momentum"])))
                # 2. Orthogonalize. (c_attn is three matrices: for Q, K and V.)
                height = cols if rows == 3 * cols else rows
                scale = math.sqrt(max(1, height / cols))  # makes the entries' RMS 1 / sqrt(cols)
                matrices = torch.cat(updates).view(-1, height, cols)  # (n, height, cols)
                results = orthogonalized(matrices, group["polynomials"]) * scale
                # 3. Weight decay and update. (full_tensor and shard_like matter to FSDP only.)
                for p, update in zip(parameters, results.reshape(len(parameters), -1, cols)):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(shard_like(p, update), alpha=-group["lr"])


def make_optimizers(model):
    """Return [AdamW, Muon] or [AdamW]. Their learning rates are set before each update."""
    matrices, embeddings, vectors = model.parameter_groups()
    adamw = torch.optim.AdamW(vectors, betas=(beta1, beta2), weight_decay=0.0, fused=True)
    if optimizer == "adamw":
        adamw.add_param_group(dict(params=matrices + embeddings, weight_decay=weight_decay))
        return [adamw]
    adamw.add_param_group(dict(params=embeddings, weight_decay=embedding_weight_decay))
    defaults = dict(lr=0.0, momentum=0.95, weight_decay=weight_decay, polynomials=muon_polynomials)
    return [adamw, Muon(matrices, defaults)]


def lr_factor(step, n_iters):
    """Return the factor of the peak learning rates in iteration step (from 0 to n_iters - 1)."""
    if step < warmup_iters:
        return (step + 1) / (warmup_iters + 1)
    if lr_schedule == "step":
        return lr_gamma ** ((step - warmup_iters) // lr_step_iters)
    decay_iters = (lr_decay_iters or n_iters) - warmup_iters
    done = min(1.0, (step - warmup_iters) / max(1, decay_iters))  # from 0 to 1
    remaining = {"constant": 1, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    lowest = min_lr / (learning_rate or 1.0)  # (learning_rate=0 implies min_lr=0)
    return lowest + (1 - lowest) * remaining[lr_schedule]


@dataclass
class Run:
    """The state of a run. A snapshot stores settings and the fields from model to best_measure."""
    settings: dict
    meta: dict  # of the data: its tokenizer, the bytes in each split
    data: dict  # {split: Tokens}
    machine: "Machine"  # device, dtype, autocast (matrix products in dtype), rank, n_processes
    forward: callable = None  # the model, perhaps compiled or in DDP's wrapper
    model: GPT = None
    optimizers: list = None
    scaler: torch.amp.GradScaler = None  # of float16's gradients
    step: int = 0  # iterations done
    sequences: int = 0  # sequences read, of block_size tokens each
    loss: float = math.nan  # training loss when it was last copied from the device
    best_val_loss: float = math.inf
    best_measure: list = None  # what best_val_loss was measured on
    n_iters: int = 0  # iterations of the whole run
    started: float = field(default_factory=time.monotonic)
    n_not_finite: int = 0  # iterations with inf or nan in loss or gradient (on the device)
    resumed_from: Path = None
    log: list = field(default_factory=list)  # the rows of log.csv
    signals: list = field(default_factory=list)  # Ctrl-C or SIGTERM, as received by this process
    stop: int = 0  # the signal's number, once all processes know of it: end after this iteration


def loss_of(run, inputs, targets):
    """Return the mean loss of inputs (B, T) with targets (B, T), where -1 does not count."""
    ids = torch.stack((inputs, targets))  # one copy to the device instead of two
    vocab_size = run.model.config.vocab_size
    if ids.max() >= vocab_size:
        raise ValueError(f"token {ids.max()} in {data_dir}, but {vocab_size=}: prepare it again")
    if run.machine.device.type == "cuda":
        ids = ids.pin_memory()  # so that the copy below doesn't wait for the GPU
    inputs, targets = ids.to(run.machine.device, non_blocking=ids.is_pinned())
    with run.machine.autocast():
        return run.forward(inputs, targets, return_logits=False)[1]


def train_step(run):
    """Compute the gradients and update the weights; return this process's mean loss, a tensor."""
    rank, n_processes = run.machine.rank, run.machine.n_processes
    torch.manual_seed(hashed(seed, run.step, rank))  # for dropout
    run.model.train()
    total_loss = 0.0
    # Each process takes every n_processes-th forward pass of the iteration.
    for i in range(rank, gradient_accumulation_steps, n_processes):
        # DDP averages the gradients over the processes in the last backward pass only.
        is_last = i + n_processes >= gradient_accumulation_steps
        run.forward.require_backward_grad_sync = is_last
        # Forward. The factor makes the sum of a process's passes their mean; DDP averages those.
        ids = get_batch(run.data["train"], run.sequences + i * batch_size)
        inputs, targets = ids[:, :-1], ids[:, 1:]  # the target of a position is the next token
        loss = loss_of(run, inputs, targets) * (n_processes / gradient_accumulation_steps)
        # Backward. (The scaler keeps float16's small gradients from becoming 0.)
        run.scaler.scale(loss).backward()
        total_loss += loss.detach()
    run.model.eval()  # no dropout outside of this loop
    # Unscale and clip the gradient (grad_clip=0: only measure its norm).
    for opt in run.optimizers:
        run.scaler.unscale_(opt)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), grad_clip or math.inf)
    is_finite = torch.isfinite(total_loss + full_tensor(norm))  # both of them
    run.n_not_finite += (~is_finite).long()
    # Update the weights. With float16, both optimizers skip an update that is not finite.
    for opt, peak in zip(run.optimizers, (learning_rate, muon_learning_rate)):  # AdamW's, Muon's
        for group in opt.param_groups:
            group["lr"] = peak * lr_factor(run.step, run.n_iters)
        if not run.scaler.is_enabled() or is_finite:  # (reading is_finite waits for the GPU)
            with run.machine.autocast():  # for Muon's matrix products
                run.scaler.step(opt)
    run.scaler.update()
    run.model.zero_grad()
    run.step += 1
    run.sequences += gradient_accumulation_steps * batch_size
    return total_loss


def main(arguments):
    settings = configure(arguments)  # batch_size and the others above now have their final values
    machine = start_processes()
    meta, data = load_data(data_dir)
    if eval_only:
        name = get_snapshot(out_dir) if init_from in ("auto", "resume", "scratch") else init_from
        losses = evaluate(Run(settings, meta, data, machine), eval_split, name)
        return print(REPORT.format(f"{eval_split} with {name} ({block_size=})", **losses))
    lock = prepare.lock_folder(out_dir) if machine.rank == 0 else None  # noqa: F841 (kept open)
    run = start_run(settings, meta, data, machine)
    catch_signals(run)
    if is_finished(run) and Path(out_dir, "final_model.pt").exists():
        print(f"nothing left to do: {out_dir}/final_model.pt exists (new run: another --out_dir)")
        return test(run)
    prepare_out_dir(run)

    while not run.stop and not is_finished(run):
        # One iteration: forward, backward, update.
        loss = train_step(run)
        show_progress(None)  # on a terminal: clear the progress line
        # Read the loss if it is needed (this waits for the GPU), check it, look for signals.
        check_iteration(run, loss)
        # Log. Every eval_interval iterations, also evaluate. (is_due: also after the last one.)
        if is_due(run, log_interval, eval_interval):
            log_progress(run)
        # Save a snapshot, also if a signal ends the run.
        if run.stop or is_due(run, snapshot_interval):
            save_snapshot(run, f"snapshots/snapshot_step_{run.step}.pt")
        # Print a sample.
        if sample_interval and run.step % sample_interval == 0:
            print_samples(run, 1)
        show_progress(run)  # on a terminal: show how far it is

    show_progress(None)
    if run.stop:  # a signal
        again = "--init_from=resume" if overwrite or init_from == "scratch" else "the same command"
        print(f"stopped after iteration {run.step}: {again} resumes from here")
        return 128 + run.stop  # the shell's exit status for a signal
    save_snapshot(run, "final_model.pt")
    if num_return_sequences:
        print_samples(run, num_return_sequences)
    return test(run)


# ---- plumbing: skip on a first reading ----

Machine = namedtuple("Machine", "device dtype autocast rank n_processes")  # of this process
HEADER = "step epoch tokens seconds lr train_loss val_loss val_perplexity val_bits_per_byte".split()
REPORT = "{}: loss {loss:.4f}, perplexity {perplexity:.2f}, {bits_per_byte:.4f} bits per byte"


def configure(arguments):
    settings = config.override(  # (a number is the smallest valid one, a tuple has all)
        __file__, arguments, n_layer=1, n_head=1, n_embd=1, size=("", *SIZES), snapshot_interval=1,
        keep_snapshots=1, log_interval=1, block_size=1, batch_size=1, gradient_accumulation_steps=1,
        eval_interval=1, eval_split=prepare.SPLITS, lr_step_iters=1, optimizer=("muon", "adamw"),
        muon_polynomials=(*POLYNOMIALS,), lr_schedule=("linear", "cosine", "step", "constant"),
        target_split=("train", "val"), parallel=("ddp", "fsdp"), compile=("auto", True, False),
        dtype=("auto", "float32", "bfloat16", "float16"))
    globals().update(settings)
    if not max_iters and not max_epochs:
        config.usage("max_iters=0 and max_epochs=0.0: expected a limit in one of them")
    if size and any(text.startswith(("--n_layer", "--n_head", "--n_embd")) for text in arguments):
        config.usage(f"n_layer, n_head, n_embd have no effect beside {size=}: --size= unsets it")
    if n_embd % n_head != 0 and not size:
        config.usage(f"{n_embd=} is not a multiple of {n_head=}")
    if min_lr > learning_rate:
        config.usage(f"{min_lr=}: expected at most {learning_rate=}")
    if overwrite and init_from in ("auto", "resume"):
        config.usage("overwrite=True deletes the run: leave it out, or add --init_from=scratch")
    return settings


def start_processes():
    """Choose the device and, under torchrun, join the other processes; return the Machine."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        # Keep freed memory: getting it back from the system takes a sixth of a small iteration.
        ctypes.CDLL(None).mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX
    if "RANK" in os.environ and device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(get_device("cuda:" + os.environ["LOCAL_RANK"])[0])  # not all GPU 0
    torch_device, torch_dtype = get_device(device, dtype)
    autocast = partial(torch.autocast, torch_device.type, torch_dtype, torch_dtype != torch.float32)
    torch.set_float32_matmul_precision("high")  # on GPUs: TF32 where the dtype is float32
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo")
        # While the interpreter shuts down, or a cycle keeps DDP alive, this can abort.
        atexit.register(dist.destroy_process_group)
        atexit.register(gc.collect)  # runs first: the last to be registered
    rank, n_processes = (dist.get_rank(), dist.get_world_size()) if "RANK" in os.environ else (0, 1)
    if rank > 0:
        sys.stdout = open(os.devnull, "w", errors="ignore")  # only the first process prints
    if gradient_accumulation_steps % n_processes != 0 and not eval_only:
        config.usage(f"{gradient_accumulation_steps=}: not a multiple of {n_processes} processes")
    return Machine(torch_device, torch_dtype, autocast, rank, n_processes)


def sum_over_processes(number):
    """Return the sum of the processes' numbers. It is also a barrier: all have to call it."""
    total = torch.tensor(number, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.item()


def full_tensor(tensor):  # gathered, if FSDP gave each process a shard
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(p, tensor):  # this process's shard of a complete tensor, if p is sharded
    if not hasattr(p, "full_tensor") or p.shape != tensor.shape:  # (AdamW's step is a number)
        return tensor
    return dist.tensor.distribute_tensor(tensor, p.device_mesh, p.placements, src_data_rank=None)


def distributed(model, device):
    """Return the model on the device, sharded by FSDP (Zhao et al. 2023) or in DDP's wrapper."""
    if activation_checkpointing:  # Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost
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
    """Return (meta, {split: Tokens}). Data of nanoGPT or llm.c has no meta.json: GPT-2's tokens."""
    prepare.finish_publishing(folder)
    meta = prepare.read_meta(folder) or dict(vocab_size=50257, dtype="uint16", splits={})
    source = meta.setdefault("source", {"name": "input.txt"})["name"]
    name = folder if "tokenizer" in meta else init_from  # (the data's own tokenizer keeps all ids)
    tokenizer = "" if name in ("auto", "scratch", "resume") else f" --tokenizer={name}"
    again = f"prepare it again: python prepare.py --input={source} --out_dir={folder}{tokenizer}"
    if Path(folder, "meta.pkl").exists() and not meta["splits"]:
        raise ValueError(f"{folder} has nanoGPT's character ids (meta.pkl): use prepare.py instead")
    least = {eval_split: 2} if eval_only else {target_split: 2, "train": block_size + 1}  # tokens
    data = {}
    for split in ("train", "val", "test"):
        path = Path(folder, f"{split}.bin")
        paths = [path] if path.exists() else sorted(Path(folder).glob(f"*_{split}[._]*bin"))
        data[split] = Tokens([path for path in paths if path.stat().st_size > 0], meta["dtype"])
        fingerprint = "".join(map(prepare.fingerprint, paths))  # (without meta.json: any)
        about = meta["splits"].setdefault(split, dict(fingerprint=fingerprint, bytes=math.nan))
        if about["fingerprint"] != fingerprint:
            raise ValueError(f"{path} is missing or not what meta.json says: {again}")
        if len(data[split]) < least.get(split, 0):
            raise ValueError(f"{path} is missing or has under {least[split]} tokens: lower "
                             f"{block_size=} (if it is train), use more text, or {again}")
    meta["tokenizer"] = meta.get("tokenizer") or prepare.find_tokenizer("gpt2")
    return meta, data


class Tokens:
    """Token files one after the other, as one array that is read from the disk when it is used."""

    def __init__(self, paths, dtype):
        self.parts = []
        for path in paths:
            header = np.fromfile(path, "<i4", 3).tolist()  # llm.c's: magic, version, tokens
            is_llmc = header[:2] == [20240520, 1]
            if path.stat().st_size % 2 or (is_llmc and path.stat().st_size != 1024 + 2 * header[2]):
                raise ValueError(f"{path} is not as long as it should be: copy it again")
            self.parts.append(np.memmap(path, dtype, "r", offset=1024 if is_llmc else 0))
            if hasattr(mmap, "MADV_RANDOM"):  # else each page read would read megabytes ahead
                self.parts[-1]._mmap.madvise(mmap.MADV_RANDOM)
        self.starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, index):  # an array of positions
        ids = np.empty(index.shape, np.int64)
        which = np.searchsorted(self.starts, index, side="right") - 1
        for i in np.unique(which):
            ids[which == i] = self.parts[i][index[which == i] - self.starts[i]]
        return ids


def start_run(settings, meta, data, machine):
    """Return the Run, resumed from out_dir's newest snapshot, or with pretrained or new weights."""
    shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd) | SIZES.get(size, {})
    shape |= dict(block_size=block_size, vocab_size=meta["vocab_size"], dropout=dropout, bias=bias)
    if snapshot := find_own_snapshot(settings, meta):
        model = snapshot["model"]
    elif init_from not in ("auto", "scratch", "resume"):
        model = load_weights_for(init_from, meta)
    else:
        torch.manual_seed(seed)
        model = GPT(GPTConfig(**shape))
    forward = distributed(model.eval(), machine.device)
    run = Run(settings, meta, data, machine, forward, model, make_optimizers(model))
    run.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.dtype == torch.float16)
    run.best_measure = [eval_iters, batch_size, block_size, meta["splits"]["val"]["fingerprint"]]
    if snapshot:
        with prepare.named_errors(out_dir):
            resume(run, snapshot)
    per_iteration = batch_size * gradient_accumulation_steps  # sequences
    unread = math.ceil(max_epochs * (len(data["train"]) // block_size)) - run.sequences
    last = (run.step + math.ceil(unread / per_iteration)) if max_epochs else math.inf
    run.n_iters = min(max_iters or math.inf, last)
    # Compiling takes half a minute, which pays off from about 1e16 FLOPs on.
    is_long = model.flops_per_token() * run.n_iters * per_iteration * block_size > 1e16
    if compile is True or (compile == "auto" and machine.device.type == "cuda" and is_long):
        run.forward = torch.compile(forward)
    if sum_over_processes(run.step) != run.step * machine.n_processes:
        raise ValueError(f"out_dir={out_dir}: expected a folder that all processes share")
    print(f"{model.num_params():,} parameters, {len(data['train']):,} training tokens, "
          f"{run.n_iters} iterations of {per_iteration * block_size:,} tokens, "
          f"{machine.device.type}, {str(machine.dtype)[6:]}, {optimizer}")
    return run


def load_weights_for(name, meta):
    """Return the model of that name, with block_size positions, if its tokenizer is the data's."""
    model = GPT.from_pretrained(name, dropout)
    model.crop_block_size(block_size)
    model.tokenizer = model.tokenizer or meta["tokenizer"]
    ours = meta["tokenizer"] | {"name": model.tokenizer["name"]}  # the name may differ
    if ours != model.tokenizer or model.config.vocab_size < meta["vocab_size"]:
        raise ValueError(f"{data_dir} is not in the tokens of {name}: python prepare.py "
                         f"--input={meta['source']['name']} --out_dir=FOLDER --tokenizer={name}")
    return model


def find_own_snapshot(settings, meta):
    """Return out_dir's newest valid snapshot (settings takes over its init_from) or None."""
    source = "scratch" if init_from in ("auto", "resume") else init_from
    hint = f"choose another --out_dir, or replace that run: --init_from={source} --overwrite"
    candidates = [] if overwrite or init_from == "scratch" else snapshots(out_dir)
    for path in candidates:
        try:
            snapshot = read_snapshot(path, dropout=dropout)
            theirs = snapshot.get("settings", {}) | {"data": snapshot.get("data")}
        except ValueError as error:
            print(f"skipping a damaged snapshot: {error}", file=sys.stderr)
            continue
        if init_from in ("auto", "resume"):
            settings["init_from"] = theirs.get("init_from")  # as the run began
        ours = {**settings, "data": meta["splits"]["train"]["fingerprint"]}
        # What a run can't change when it resumes ("data" is the training split's fingerprint):
        for name in "data init_from optimizer size n_layer n_head n_embd block_size bias".split():
            if ours[name] != theirs.get(name):
                raise ValueError(f"{path} was trained with {name}={theirs.get(name)!s:.40}, not "
                                 f"{ours[name]!s:.40}: {hint}")
        return snapshot | {"path": path}
    if not overwrite and (files_of_run() or init_from == "resume"):
        found = "a run" if init_from == "scratch" else "no valid snapshot to resume"
        raise ValueError(f"{init_from=}, but {out_dir} has {found}: {hint}")
    return None


def resume(run, snapshot):
    run.step, run.sequences = int(snapshot["step"]), int(snapshot["sequences"])
    run.loss, run.best_val_loss = float(snapshot["loss"]), float(snapshot["best_val_loss"])
    for opt, saved in zip(run.optimizers, snapshot["optimizer_state_dict"]):
        for name, state in saved["state"].items():
            p = run.model.get_parameter(name)
            opt.state[p] = {key: shard_like(p, state[key].to(p.device)) for key in state}
    if snapshot["scaler_state_dict"]:
        run.scaler.load_state_dict(snapshot["scaler_state_dict"])
    log = Path(out_dir, "log.csv")
    lines = log.read_text("utf-8-sig").splitlines() if log.exists() else []
    run.log = [row for row in csv.DictReader(lines, restval="") if int(row["step"]) <= run.step]
    run.started -= float(run.log[-1]["seconds"]) if run.log else 0  # earlier sessions count
    best_logged = min((float(row["val_loss"] or math.inf) for row in run.log), default=math.inf)
    is_old = snapshot.get("best_measure") != run.best_measure or best_logged < run.best_val_loss
    if is_old and Path(out_dir, "best.pt").exists() and len(run.data["val"]) > 1:  # measure it
        run.best_val_loss = evaluate(run, "val", get_snapshot(out_dir, "best"))["loss"]
    run.resumed_from = snapshot["path"]
    print(f"resuming from {run.resumed_from}")


def files_of_run():
    names = ("best.pt", "final_model.pt", "log.csv", "loss.svg", "test.json")
    return snapshots(out_dir) + [path for path in Path(out_dir).glob("*") if path.name in names]


def prepare_out_dir(run):
    """Remove what would be in the way of the run. A new one saves its first snapshot at once."""
    sum_over_processes(0)  # only after all have looked for final_model.pt
    if run.machine.rank == 0:
        old = [] if run.resumed_from else files_of_run()
        ended = [Path(out_dir, name) for name in ("final_model.pt", "test.json", "best.pt.tmp")]
        for path in [*Path(out_dir).glob("snapshots/*.tmp"), *old, *ended]:
            path.unlink(missing_ok=True)
        for path in snapshots(out_dir):
            if path == run.resumed_from:
                break
            path.replace(f"{path}.broken")  # damaged ones must not displace valid ones
    if not run.resumed_from:
        save_snapshot(run, "snapshots/snapshot_step_0.pt")  # log.csv alone can't be resumed
    write_log(run)
    if is_due(run, eval_interval) and run.step not in [0, *(int(row["step"]) for row in run.log)]:
        log_progress(run)  # a signal interrupted this evaluation
        save_snapshot(run, f"snapshots/snapshot_step_{run.step}.pt")  # now it knows of best.pt


def catch_signals(run):
    def note(number, frame):
        run.signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if run.machine.rank == 0:  # (print must not be called from here)
            os.write(2, b"\nstopping: a snapshot is written first; Ctrl-C again ends at once\n")
    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)


def is_finished(run):
    loss = run.best_val_loss if target_split == "val" else run.loss
    return run.step >= run.n_iters or (target_loss > 0 and loss <= target_loss)


def is_due(run, *intervals):  # also after the last iteration
    return is_finished(run) or any(run.step % interval == 0 for interval in intervals)


def check_signals(run):
    """Set run.stop if any process got a signal; return whether one did. All call this together."""
    if sum_over_processes(len(run.signals)) > 0:
        run.stop = max(run.signals, default=signal.SIGTERM)
    return run.stop > 0


def check_iteration(run, loss):
    """If something needs the loss now: set run.loss from the tensor, check it, look for signals."""
    is_read = is_due(run, log_interval, eval_interval, snapshot_interval) or target_loss > 0
    is_signaled = len(run.signals) > 0 and run.machine.n_processes == 1  # (several ask together)
    if not is_read and not is_signaled and run.machine.device.type == "cuda":
        return
    run.loss = sum_over_processes(loss.item()) / run.machine.n_processes
    norm = 0.0  # of the weights, if they are to be saved
    if check_signals(run) or is_due(run, eval_interval, snapshot_interval):
        norm = full_tensor(torch.nn.utils.get_total_norm(run.model.parameters())).item()
    if not math.isfinite(run.loss + norm) or (run.n_not_finite and not run.scaler.is_enabled()):
        raise ValueError(f"iteration {run.step}: inf or nan in the loss, gradient or weights: "
                         "lower learning_rate and muon_learning_rate, perhaps in a new --out_dir")


def evaluate(run, split, name=None):
    """Return loss, perplexity and bits per byte on a split, of the run's model or the named one."""
    if name is not None:
        model = load_weights_for(name, run.meta)
        run = replace(run, model=model, forward=distributed(model, run.machine.device))
    tokens = run.data[split]
    begins = np.arange(0, len(tokens) - 1, block_size)
    if eval_iters:  # only that many batches, spread over the split
        n = min(len(begins), eval_iters * batch_size)
        begins = begins[(np.arange(n) * len(begins)) // n]
    ends = np.minimum(begins + block_size + 1, len(tokens))
    windows = np.stack((begins, begins + 1, ends), axis=1)
    nats = 0.0
    for batch_nats in measure(partial(loss_of, run), tokens, windows, batch_size, block_size,
                              run.machine.rank, run.machine.n_processes):
        nats += batch_nats
        if check_signals(run):  # end early: the caller discards the result
            break
    loss = sum_over_processes(nats) / (ends - begins - 1).sum().item()
    n_bytes = run.meta["splits"][split]["bytes"]
    if math.isnan(n_bytes):  # no meta.json has counted them; <|endoftext|> counts as 0
        lengths = np.array([*map(len, run.meta["tokenizer"]["tokens"]), 0])  # in bytes
        n_bytes = sum(lengths.take(part[i:i + 2**20], mode="clip").sum() for part in tokens.parts
                      for i in range(0, len(part), 2**20))
    bits_per_byte = (loss / math.log(2)) * (len(tokens) / n_bytes)
    return dict(loss=loss, perplexity=math.exp(min(loss, 700)), bits_per_byte=bits_per_byte)


def test(run):
    """Evaluate the best (or final) model on the test split, once. Return the exit code."""
    if len(run.data["test"]) < 2 or Path(out_dir, "test.json").exists():
        return None
    best = get_snapshot(out_dir)
    losses = evaluate(run, "test", best)
    if check_signals(run):
        print("stopped before the end of the test: resume the run to repeat it")
        return 128 + run.stop
    if run.machine.rank == 0:
        with prepare.atomic_write(Path(out_dir, "test.json"), "w") as file:
            json.dump(dict(snapshot=best.name, **losses), file)
    print(REPORT.format(f"test with {best}", **losses))


def save_snapshot(run, name):
    """Write one file that is enough to resume the run or to generate text."""
    # full_tensor gathers shards, so all processes call it; only the first keeps the numbers.
    target = "cpu" if run.machine.rank == 0 else "meta"
    names = {p: name for name, p in run.model.named_parameters()}
    weights = {names[p]: full_tensor(p.detach()).to(target) for p in names}
    states = [{"state": {}} for _ in run.optimizers]
    for opt, saved in zip(run.optimizers, states):
        for p, state in opt.state.items():
            saved["state"][names[p]] = {key: full_tensor(state[key]).to(target) for key in state}
    if run.machine.rank == 0:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]  # tied: written once
        snapshot = dict(
            format_version=2, settings=run.settings, model_config=vars(run.model.config),
            tokenizer=run.meta["tokenizer"], data=run.meta["splits"]["train"]["fingerprint"],
            step=run.step, sequences=run.sequences, loss=run.loss, best_val_loss=run.best_val_loss,
            best_measure=run.best_measure, model_state_dict=weights, optimizer_state_dict=states,
            scaler_state_dict=run.scaler.state_dict())
        with prepare.atomic_write(Path(out_dir, name)) as file:
            try:
                torch.save(snapshot, file)
            except RuntimeError as error:  # torch.save hides the OSError of a full disk
                raise (error.__context__ or error) from None
        for path in snapshots(out_dir)[keep_snapshots:]:
            path.unlink()
    sum_over_processes(0)  # the others wait until it is written


def show_progress(run):  # on a terminal, in place of the line shown last; None: clear that line
    if sys.stdout and sys.stdout.isatty():  # (a longer line would need a second row)
        line = progress(run) if run and math.isfinite(run.loss) else ""
        print(f"\r\033[K{line[:(os.get_terminal_size().columns or 200) - 1]}", end="", flush=True)


def report(run, text):
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the pipe's reader has ended: tee by the same Ctrl-C, or head
        sys.stdout = None
        run.signals.append(signal.SIGINT)


def progress(run):  # -> a line with the run's progress, average speed and remaining time
    seconds = time.monotonic() - run.started
    speed = run.sequences * block_size / seconds
    epoch = run.sequences / (len(run.data["train"]) // block_size)
    return (f"iteration {run.step}/{run.n_iters}, epoch {epoch:.2f}: loss {run.loss:.4f}, "
            f"{speed:,.0f} tokens/s, {speed * run.model.flops_per_token() / 1e9:,.0f} GFLOP/s, "
            f"{seconds:.2f} s, {(seconds / run.step) * (run.n_iters - run.step):.0f} s left")


def log_progress(run):
    """Add a row to the log and print it; if due, also evaluate and keep the best weights."""
    val = {}
    if len(run.data["val"]) > 1 and is_due(run, eval_interval):
        val = evaluate(run, "val")
        if run.stop:
            return  # a signal interrupted it: all of this is done on resuming
        if val["loss"] < run.best_val_loss:
            run.best_val_loss = val["loss"]
            save_snapshot(run, "best.pt")
    row = dict(step=run.step, epoch=run.sequences / (len(run.data["train"]) // block_size),
               tokens=run.sequences * block_size, seconds=time.monotonic() - run.started,
               lr=learning_rate * lr_factor(run.step - 1, run.n_iters), train_loss=run.loss)
    run.log.append(row | {f"val_{name}": value for name, value in val.items()})
    skipped = f", {run.n_not_finite} steps skipped" if run.n_not_finite else ""
    losses = ", val loss {loss:.4f}, {bits_per_byte:.4f} bits per byte".format(**val) if val else ""
    write_log(run)
    report(run, progress(run) + skipped + losses)


def write_log(run):  # writes log.csv; at evaluations, also draws loss.svg
    if run.machine.rank == 0:
        with prepare.atomic_write(Path(out_dir, "log.csv"), "w") as file:
            print(*HEADER, sep=",", file=file)
            csv.DictWriter(file, HEADER, lineterminator="\n").writerows(run.log)
        if is_due(run, eval_interval):
            with prepare.atomic_write(Path(out_dir, "loss.svg"), "w") as file:
                file.write(draw_losses(run.log, f"GPT with {run.model.num_params():,} parameters"))


def draw_losses(rows, title):  # -> a picture of the training and validation losses, in SVG
    def text(x, y, words, anchor="middle", color="black"):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{words}</text>'

    def round_numbers(low, high):  # about six
        step = float(f"{(high - low) / 6:.0e}")  # one significant digit
        return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]

    rows = [{name: float(value) for name, value in row.items() if value != ""} for row in rows]
    losses = [row[name] for row in rows for name in ("train_loss", "val_loss") if name in row]
    low, high = min(losses, default=0.0), max(losses, default=0.0) + 0.01
    last_step = rows[-1]["step"] if rows else 1
    x = partial(np.interp, xp=(0, last_step), fp=(60, 760))
    y = partial(np.interp, xp=(low, high), fp=(430, 50))
    svg = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 480" font-family="sans-serif" '
           'font-size="14"><rect width="800" height="480" fill="white"/>', text(400, 24, title),
           text(400, 472, "iteration"), text(10, 24, "loss (nats per token)", "start")]
    for step in round_numbers(0, last_step):
        svg += [f'<path d="M{x(step):.1f} 50V430" stroke="#ddd"/>', text(x(step), 450, f"{step:g}")]
    for loss in round_numbers(low, high):
        line = f'<path d="M60 {y(loss):.1f}H760" stroke="#ddd"/>'
        svg += [line, text(52, y(loss) + 5, f"{loss:g}", "end")]
    for name, color, height in (("train_loss", "steelblue", 70), ("val_loss", "crimson", 90)):
        points = " ".join(f"{x(row['step']):.1f},{y(row[name]):.1f}" for row in rows if name in row)
        svg += [f'<polyline points="{points}" fill="none" stroke="{color}"/>',
                text(750, height, name.replace("_", " "), "end", color)]
    if evaluated := [row for row in rows if "val_loss" in row]:
        best = min(evaluated, key=lambda row: row["val_loss"])
        note = "best: {val_loss:.3f} at iteration {step:.0f}, {val_bits_per_byte:.3f} bits per byte"
        mark = f'<circle cx="{x(best["step"]):.1f}" cy="{y(best["val_loss"]):.1f}" r="4"/>'
        svg += [mark, text(750, 110, note.format(**best), "end")]
    return "\n".join([*svg, "</svg>\n"])


@torch.no_grad()
def print_samples(run, count):
    """Print continuations of sample_prompt and, for a validation text, the most likely tokens."""
    encoding = prepare.load_tokenizer(run.meta["tokenizer"])
    prompt = encoding.encode(sample_prompt, allowed_special="all") or [encoding.end_id]
    idx = torch.tensor([prompt] * count, device=run.machine.device)
    generator = torch.Generator().manual_seed(seed)
    for row in run.model.generate(idx, max_length, generator=generator).tolist():
        report(run, "  sample    |" + encoding.decode(row).replace("\n", "\n            |"))
    text = run.data["val"][np.arange(min(max_length, block_size, len(run.data["val"])))]
    if len(text):
        text = torch.from_numpy(text).to(run.machine.device)[None]  # (1, T)
        predicted = run.model(text, text)[0][..., :encoding.n_vocab].argmax(dim=-1)
        report(run, f"  text      |{encoding.decode(text[0].tolist())!r}")
        report(run, f"  predicted |{encoding.decode(predicted[0].tolist())!r}")


if __name__ == "__main__":
    code = config.run(main)
    if code == 1 and dist.is_initialized():  # leaving the group would wait for the others forever
        os._exit(code)
    raise SystemExit(code)
