"""Train a GPT-2 on the tokens that prepare.py wrote.

    python train.py config/shakespeare.py                # run it again and it goes on where it was
    python train.py config/shakespeare.py --max_iters=100 --out_dir=out_short
    python train.py --size=gpt2 --block_size=256 --batch_size=4

Everything it writes is in out_dir: snapshots/, best.pt, final_model.pt, log.csv and loss.svg."""

import ctypes
import hashlib
import math
import mmap
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import config
from model import GPT, SIZES, GPTConfig, choose_device, read_snapshot
from prepare import fingerprint, gpt2_tokenizer, load_tokenizer, read_meta, settle, whole_file

# where the data is and where the results go
data_dir = "data"  # folder with train.bin and val.bin
out_dir = "out"  # folder for snapshots, log.csv and loss.svg
init_from = "auto"  # 'auto' goes on if it can, 'scratch' begins anew, 'resume' has to go on
overwrite = False  # let init_from='scratch' delete the run that is in out_dir
snapshot_interval = 100  # iterations between snapshots
keep_snapshots = 2  # how many of the newest snapshots are kept
# what is looked at on the way
log_interval = 10  # iterations between lines of the log
eval_interval = 100  # iterations between evaluations on the validation split
eval_iters = 0  # batches of an evaluation, 0 for the whole split
eval_only = False  # evaluate once and stop
sample_interval = 0  # iterations between samples, drawn at evaluations; 0 for none
sample_prompt = "\n"  # how samples begin
num_return_sequences = 5  # samples of the final model
max_length = 30  # tokens in each of them
# the model
size = ""  # a name in model.py's SIZES, in place of the next three
n_layer = 4  # blocks
n_head = 4  # attention heads in each block
n_embd = 128  # width
block_size = 64  # tokens of context
dropout = 0.0  # share of activations left out in training; above 0 only helps over many epochs
bias = True  # biases in the linear layers and LayerNorms, as GPT-2 has them
# the batches
batch_size = 32  # sequences of block_size tokens in one forward pass
gradient_accumulation_steps = 1  # forward passes in one iteration, in all processes together
max_iters = 600  # iterations
max_epochs = 0.0  # passes over the training split, in place of max_iters; 0 for max_iters
target_loss = 0.0  # stop as soon as the loss is at or below this; 0 for never
target_split = "train"  # the loss that target_loss watches: 'train' or 'val'
# the optimizer
optimizer = "muon"  # 'muon' (on the matrices inside the blocks, AdamW on the rest) or 'adamw'
learning_rate = 0.01  # AdamW's highest learning rate
muon_learning_rate = 0.03  # Muon's highest learning rate
weight_decay = 0.1  # on matrices only: with Muon, on those inside the blocks
beta1 = 0.9  # AdamW: memory of the gradient
beta2 = 0.95  # AdamW: memory of the squared gradient
grad_clip = 1.0  # the gradient's norm is cut to this; 0 for never
# the learning rate over time
warmup_iters = 10  # iterations over which it rises from 0
lr_schedule = "linear"  # after that: 'linear' or 'cosine' falls to min_lr, 'step', 'constant'
min_lr = 0.0  # AdamW's lowest learning rate; Muon's falls in the same proportion
lr_decay_iters = 0  # the iteration at which min_lr is reached; 0 for the last one
lr_gamma = 0.5  # 'step' multiplies by this ...
lr_step_iters = 1000  # ... every so many iterations
# the machine
seed = 1337  # of the weights, the order of the data and dropout
device = "auto"  # 'cpu', 'cuda', 'cuda:1', 'mps'; 'auto' takes the fastest that is there
dtype = "auto"  # 'float32', 'bfloat16' or 'float16' for the matrix products
compile = "auto"  # torch.compile: True, False; 'auto' for CUDA only

LOG_COLUMNS = ("step", "epoch", "tokens", "seconds", "lr", "train_loss", "val_loss",
               "val_perplexity", "val_bits_per_byte")


def check_settings():  # one that can't be meant ends with exit code 2
    config.one_of(globals(), "optimizer", "muon", "adamw")
    config.one_of(globals(), "lr_schedule", "linear", "cosine", "step", "constant")
    config.one_of(globals(), "target_split", "train", "val")
    config.one_of(globals(), "size", "", *SIZES)
    config.one_of(globals(), "init_from", "auto", "scratch", "resume")
    config.at_least(globals(), 1, "batch_size gradient_accumulation_steps snapshot_interval "
                    "keep_snapshots log_interval eval_interval lr_step_iters block_size")
    config.at_least(globals(), 0, "max_iters max_epochs eval_iters warmup_iters grad_clip seed "
                    "weight_decay learning_rate muon_learning_rate min_lr target_loss lr_gamma "
                    "sample_interval num_return_sequences max_length lr_decay_iters")


def keep_memory():  # glibc: giving memory back and getting it again, cleared, costs half a step
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: never shrink the heap
        ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX: large tensors come from the heap, too


def processes():  # -> (rank of this one, how many there are)
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(numbers, device):  # -> the same sums in each process
    if not dist.is_initialized():
        return numbers
    together = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(together)
    return together.tolist()


def load_data(folder):
    """Return (meta, {split: token ids}); the ids are mapped, so that only what is used is read.
    A folder without meta.json, such as nanoGPT makes, is taken as GPT-2's tokens in uint16."""
    settle(folder)
    if not Path(folder, "train.bin").exists():
        raise ValueError(f"{folder}/train.bin is not there: python prepare.py --out_dir={folder} "
                         "makes it")
    meta = read_meta(folder)
    if not meta:
        meta = {"vocab_size": 50257, "dtype": "uint16", "splits": {}, "tokenizer": None}
        try:
            meta["tokenizer"] = gpt2_tokenizer()
        except OSError as error:
            print(f"no samples will be shown: {error}", file=sys.stderr)
    data = {}
    for split in ("train", "val", "test"):
        path = Path(folder, f"{split}.bin")
        described = meta["splits"].setdefault(split, {})
        found = fingerprint(path) if path.exists() else None
        if described.setdefault("fingerprint", found) != found:
            raise ValueError(f"{path} is not the file that meta.json describes: "
                             f"python prepare.py --out_dir={folder} makes both anew")
        full = found and path.stat().st_size
        data[split] = np.memmap(path, dtype=meta["dtype"], mode="r") if full else np.empty(0, int)
        if full and hasattr(mmap, "MADV_RANDOM"):  # batches are from all over: don't read ahead
            data[split]._mmap.madvise(mmap.MADV_RANDOM)
    if len(data["train"]) <= block_size:
        raise ValueError(f"{folder}/train.bin has {len(data['train'])} tokens, block_size="
                         f"{block_size} needs {block_size + 1}: lower it or give more text")
    return meta, data


def hashed(*numbers):
    """A random number of 64 bits that is a function of the numbers: the run's only randomness."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big")


def shuffled(k, n, *key):
    """Return the place of k in a permutation of range(n) that is computed, not stored.
    A Feistel network permutes the numbers of an even count of bits, whatever its round function
    is (Luby & Rackoff 1988); a result outside range(n) goes through it again until it is inside."""
    half = 1 << ((n - 1).bit_length() + 1) // 2
    while True:
        left, right = divmod(k, half)
        for turn in range(4):
            left, right = right, left ^ hashed(*key, turn, right) % half
        k = left * half + right
        if k < n:
            return k


def blocks(tokens, starts, vocab_size):  # -> ids (len(starts), block_size + 1)
    """Take a block from each start; the tokens are a ring, so that every start has a whole one."""
    rows = tokens[(np.asarray(starts)[:, None] + np.arange(block_size + 1)) % len(tokens)]
    if rows.max() >= vocab_size:
        raise ValueError(f"{data_dir} holds the token id {rows.max()}, but the vocabulary has "
                         f"only {vocab_size} tokens: they don't belong together")
    return torch.from_numpy(rows.astype(np.int64))


def get_batch(tokens, first, vocab_size):
    """Return batch_size blocks, the run's sequences number first, first + 1, ...
    An epoch cuts the ring of tokens into blocks from an offset of its own and takes each block
    once: the batch depends on the seed and on first alone."""
    n_blocks = len(tokens) // block_size
    starts = []
    for sequence in range(first, first + batch_size):
        epoch, k = divmod(sequence, n_blocks)
        start = hashed(seed, epoch) + shuffled(k, n_blocks, seed, epoch) * block_size
        starts.append(start % len(tokens))
    return blocks(tokens, starts, vocab_size)


def eval_batches(tokens, vocab_size):
    """Yield this process's share of the blocks of a split, or of eval_iters batches spread over it;
    ids beyond the end of the split are -1, which counts for nothing."""
    rank, count = processes()
    starts = np.arange(0, len(tokens) - 1, block_size)
    if eval_iters:
        few = min(len(starts), eval_iters * batch_size)
        starts = starts[np.arange(few) * len(starts) // few]
    for first in range(rank * batch_size, len(starts), count * batch_size):
        rows = blocks(tokens, starts[first:first + batch_size], vocab_size)
        if first + batch_size >= len(starts):
            rows[-1, len(tokens) - starts[-1]:] = -1
        yield rows


def orthogonalized(x):  # (n, rows, cols) -> (n, rows, cols)
    """Replace the singular values of each matrix by about 1.
    Five steps of a Newton-Schulz iteration with a quintic polynomial whose coefficients make
    small singular values grow fastest (Jordan et al. 2024, "Muon: An optimizer for hidden layers
    in neural networks"). It needs matrix products only, of all matrices of a shape at once."""
    if x.size(1) > x.size(2):
        return orthogonalized(x.mT).mT  # the products are smaller on this side
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):  # x <- (3.4445 + -4.7750 (x xT) + 2.0315 (x xT)^2) x
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, so that no few directions of a matrix dominate it.
    c_attn is three matrices in one (of queries, keys and values) and is treated as three."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            updates, parts = [], []
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])  # Nesterov's look ahead
                updates.append(update)
                parts += update.chunk(3 if p.size(0) == 3 * p.size(1) else 1)
            for shape in dict.fromkeys(part.shape for part in parts):
                same = [part for part in parts if part.shape == shape]
                for part, new in zip(same, orthogonalized(torch.stack(same))):
                    part.copy_(new).mul_(math.sqrt(max(1, shape[0] / shape[1])))
            for p, update in zip(group["params"], updates):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def make_optimizers(model, device):
    matrices, embeddings, vectors = model.parameter_groups()
    if optimizer == "muon":
        adamw_groups = [dict(params=embeddings + vectors, weight_decay=0.0)]
        optimizers = [Muon(matrices, muon_learning_rate, weight_decay=weight_decay)]
    else:
        adamw_groups = [dict(params=matrices + embeddings, weight_decay=weight_decay),
                        dict(params=vectors, weight_decay=0.0)]
        optimizers = []
    fused = device.type in ("cpu", "cuda")
    adamw = torch.optim.AdamW(adamw_groups, learning_rate, (beta1, beta2), fused=fused)
    return [*optimizers, adamw]


def lr_factor(step, last):
    """Return what the highest learning rates are multiplied by in iteration step of last."""
    if step < warmup_iters:
        return (step + 1) / (warmup_iters + 1)
    if lr_schedule == "constant":
        return 1.0
    if lr_schedule == "step":
        return lr_gamma ** ((step - warmup_iters) // lr_step_iters)
    lowest = min_lr / learning_rate if learning_rate else 0.0
    done = min(1.0, (step - warmup_iters) / max(1, (lr_decay_iters or last) - warmup_iters))
    left = 1 - done if lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lowest + (1 - lowest) * left


def snapshots():  # -> the paths of out_dir's snapshots, the newest first
    paths = Path(out_dir, "snapshots").glob("snapshot_step_*.pt")
    return sorted(paths, key=lambda path: (len(path.name), path.name), reverse=True)


def newest_snapshot():
    """Return (path, snapshot) of the newest that is whole, or (None, None) if there is none at all;
    a broken one is named and passed over, and if all are, ValueError is raised."""
    for path in snapshots():
        try:
            return path, read_snapshot(path)
        except ValueError as error:
            print(f"skipped: {error}", file=sys.stderr)
    if snapshots():
        raise ValueError(f"no snapshot in {out_dir} can be used: choose another --out_dir, or "
                         "start over with --init_from=scratch --overwrite")
    return None, None


def check_same_run(path, snapshot, model, meta):
    """Raise ValueError if the snapshot is of another model, optimizer, tokenizer or text."""
    there = snapshot["model_config"] | {
        "optimizer": snapshot["settings"].get("optimizer"), "data": snapshot["data"],
        "tokenizer": hashed(snapshot["tokenizer"]), "dropout": dropout}
    here = asdict(model.config) | {
        "optimizer": optimizer, "data": meta["splits"]["train"]["fingerprint"],
        "tokenizer": hashed(meta["tokenizer"]), "dropout": dropout}
    reasons = [f"{name}={there.get(name)}, not {here[name]}" for name in here
               if there.get(name) != here[name]]
    if reasons:
        raise ValueError(f"{path} is of another run ({', '.join(reasons)}): choose another "
                         "--out_dir, or start over with --init_from=scratch --overwrite")


def check_finite(step, *numbers):
    """Raise ValueError if a number of iteration step is none, before a snapshot holds its like."""
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"iteration {step}: the loss, its gradient or a weight is not a number any"
                         " more: lower learning_rate or muon_learning_rate; the snapshots are kept")


def read_log(step):
    """Return the rows of log.csv before step: what an interrupted run wrote after its newest
    snapshot is going to happen again."""
    path = Path(out_dir, "log.csv")
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    rows = [line.split(",") for line in lines]
    return [row for row in rows if len(row) == len(LOG_COLUMNS) and int(row[0]) < step]


def write_log(rows):
    with whole_file(Path(out_dir, "log.csv"), "w") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in [LOG_COLUMNS, *rows])


def draw_loss(rows):
    """Draw loss.svg: the training loss of each line of the log, and the validation loss."""
    curves = {name: [(int(row[0]), float(row[LOG_COLUMNS.index(name)])) for row in rows
                     if row[LOG_COLUMNS.index(name)]] for name in ("train_loss", "val_loss")}
    losses = [loss for curve in curves.values() for _, loss in curve]
    last, low = int(rows[-1][0]), min(losses)
    high = max(max(losses), low + 0.01)

    def place(step, loss):  # in the picture, whose axes go from 60 to 780 and from 430 up to 40
        return 60 + 720 * step / last, 430 - 390 * (loss - low) / (high - low)

    svg = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 480" font-size="13" '
           'font-family="sans-serif"><rect width="800" height="480" fill="white"/>']
    for fifth in range(6):
        step, loss = last * fifth / 5, low + (high - low) * fifth / 5
        x, y = place(step, loss)
        svg.append(f'<path d="M60 {y:.1f}H780M{x:.1f} 430V40" stroke="#ddd"/>'
                   f'<text x="52" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>'
                   f'<text x="{x:.1f}" y="448" text-anchor="middle">{step:.0f}</text>')
    for (name, curve), color, y in zip(curves.items(), ("#4a7ebb", "#d1495b"), (60, 78)):
        points = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve)
        svg.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'
                   f'<text x="700" y="{y}" fill="{color}">{name}</text>')
    svg.append('<text x="420" y="470" text-anchor="middle">iteration</text>'
               '<text x="60" y="25">loss (nats per token)</text></svg>')
    with whole_file(Path(out_dir, "loss.svg"), "w") as file:
        file.write("\n".join(svg))


@torch.no_grad()
def evaluate(model, tokens, split, vocab_size, device, autocast):
    """Return (nats per token, perplexity, bits per byte) over eval_batches, without dropout."""
    model.eval()
    total = count = 0
    for rows in eval_batches(tokens, vocab_size):
        rows = rows.to(device)
        counted = (rows[:, 1:] != -1).sum().item()
        with autocast:
            loss = model(rows[:, :-1].clamp(min=0), rows[:, 1:], return_logits=False)[1].item()
        total += loss * counted
        count += counted
    model.train()
    total, count = sum_over_processes([total, count], device)
    nats = total / count
    bits = nats / math.log(2) * split["tokens"] / split["bytes"] if split.get("bytes") else math.nan
    return nats, math.exp(min(nats, 700)), bits


@torch.no_grad()
def print_samples(model, encoding, tokens, device, count):
    """Print continuations of sample_prompt, and what the model expects along a validation text."""
    model.eval()
    prompt = torch.tensor([encoding.encode_ordinary(sample_prompt) or [encoding.eot_token]] * count)
    generator = torch.Generator(device).manual_seed(seed)
    for row in model.generate(prompt.to(device), max_length, generator=generator).tolist():
        print("  sample    |" + encoding.decode(row).replace("\n", "\n            |"))
    text = torch.tensor(tokens[:max_length].astype(np.int64), device=device)[None, :block_size]
    if text.numel():
        expected = model(text, text)[0].argmax(-1)[0].tolist()
        print(f"  text      |{encoding.decode(text[0].tolist())!r}")
        print(f"  predicted |{encoding.decode(expected)!r}")
    model.train()


def main(arguments=None):
    globals().update(config.override(__file__, arguments))
    check_settings()
    keep_memory()
    started = time.time()
    target_device, matrix_dtype, compiled = choose_device(device, dtype, compile)
    if "RANK" in os.environ:  # torchrun started this process, and others
        if target_device.type == "cuda":
            target_device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(target_device)
        dist.init_process_group("nccl" if target_device.type == "cuda" else "gloo")
    rank, n_processes = processes()
    if rank:
        sys.stdout = open(os.devnull, "w")  # the first process speaks for all
    if gradient_accumulation_steps % n_processes:
        config.usage(f"gradient_accumulation_steps={gradient_accumulation_steps} can't be divided "
                     f"among {n_processes} processes: make it a multiple")
    meta, data = load_data(data_dir)
    encoding = load_tokenizer(meta["tokenizer"]) if meta["tokenizer"] else None

    # What out_dir holds decides how the run begins.
    path, snapshot = (None, None) if init_from == "scratch" else newest_snapshot()
    old = [Path(out_dir, name) for name in ("best.pt", "final_model.pt", "log.csv", "loss.svg")]
    old = [file for file in old if file.exists()] + snapshots()
    if old and not snapshot and not overwrite and not eval_only:
        raise ValueError(f"{out_dir} holds another run ({old[0].name}): choose another --out_dir, "
                         "or delete it with --init_from=scratch --overwrite")
    if init_from == "resume" and not snapshot:
        raise ValueError(f"init_from='resume', but there is no snapshot in {out_dir}")

    # The model is new or the snapshot's, which has to fit the settings.
    torch.manual_seed(seed)
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, **SIZES.get(size, {}),
             "block_size": block_size, "vocab_size": meta["vocab_size"], "bias": bias}
    model = GPT(GPTConfig(**shape, dropout=dropout))
    if snapshot:
        check_same_run(path, snapshot, model, meta)
        model.load_state_dict(snapshot["model_state_dict"])
    model.to(target_device)
    forward = torch.nn.parallel.DistributedDataParallel(model) if n_processes > 1 else model
    optimizers = make_optimizers(model, target_device)
    scaler = torch.amp.GradScaler(target_device.type, enabled=matrix_dtype == torch.float16)
    step, loss, best_val_loss = 0, math.nan, math.inf
    if snapshot:
        step, loss = snapshot["step"], snapshot["loss"]
        best_val_loss = snapshot["best_val_loss"]
        for opt, saved in zip(optimizers, snapshot["optimizer_state_dict"]):
            opt.load_state_dict(saved)
        if scaler.is_enabled() and snapshot["scaler_state_dict"]:
            scaler.load_state_dict(snapshot["scaler_state_dict"])
        print(f"going on from {path}")
    forward = torch.compile(forward) if compiled else forward
    autocast = torch.autocast(target_device.type, matrix_dtype,
                              enabled=matrix_dtype != torch.float32)

    sequences = batch_size * gradient_accumulation_steps  # in one iteration
    n_blocks = len(data["train"]) // block_size
    last = math.ceil(max_epochs * n_blocks / sequences) if max_epochs else max_iters
    reached = 0 < (best_val_loss if target_split == "val" else loss) <= target_loss
    print(f"{model.num_params():,} parameters, {len(data['train']):,} training tokens, {last} "
          f"iterations of {sequences * block_size:,}, {target_device.type}, {dtype}, {optimizer}")

    losses_on = lambda split: evaluate(forward, data[split], meta["splits"][split],
                                       model.config.vocab_size, target_device, autocast)

    def save(name):  # one file that alone is enough to go on or to generate text
        check_finite(step, *[weight.sum().item() for weight in model.parameters()])
        if rank == 0:
            with whole_file(Path(out_dir, name)) as file:
                torch.save({
                    "format_version": 1, "step": step, "loss": loss, "best_val_loss": best_val_loss,
                    "model_state_dict": model.state_dict(), "model_config": asdict(model.config),
                    "optimizer_state_dict": [opt.state_dict() for opt in optimizers],
                    "scaler_state_dict": scaler.state_dict(), "tokenizer": meta["tokenizer"],
                    "settings": {name: globals()[name] for name in config.read_settings(__file__)},
                    "data": meta["splits"]["train"]["fingerprint"]}, file)
        if n_processes > 1:
            dist.barrier()

    def say(text, lasting=True):  # on a terminal, the next line replaces one that isn't lasting
        if sys.stdout.isatty():
            print("\r\033[K" + text, end="\n" if lasting else "", flush=True)
        elif lasting:
            print(text, flush=True)

    report = "{}: loss {:.4f}, perplexity {:.2f}, {:.4f} bits per byte".format
    if eval_only:
        print(report("validation", *losses_on("val")))
        return 0
    if snapshot and (step >= last or reached) and Path(out_dir, "final_model.pt").exists():
        print(f"nothing left to do: {out_dir}/final_model.pt is the end of this run")
        return 0
    Path(out_dir, "snapshots").mkdir(parents=True, exist_ok=True)
    for file in [] if snapshot or rank else old:
        file.unlink()
    for file in [] if rank else Path(out_dir, "snapshots").glob("*.tmp"):
        file.unlink()  # a kill has cut its writing off
    for file in snapshots()[:snapshots().index(path)] if snapshot and not rank else []:
        file.rename(f"{file}.broken")  # it was skipped; now it can't displace the valid ones
    if not snapshot:  # a run that is cut off before its first interval begins again from here
        save("snapshots/snapshot_step_0.pt")
    first_step, rows = step, read_log(step)
    started -= float(rows[-1][3]) if rows else 0.0  # the time it has taken so far counts, too
    if rank == 0:
        write_log(rows)
    stop = 0  # above 0 when a process was told to stop
    skipped = 0
    unseen = []  # loss + gradient norm of the iterations since they were last looked at
    shown, shown_step = time.time(), step
    model.train()
    signals = []  # Ctrl-C and SIGTERM are noted, and heeded after the iteration

    def note(number, frame):
        signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once
    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    while True:
        # Before an iteration, what is due after the one before: log, evaluation, snapshot.
        finished = step >= last or reached
        eval_due = len(data["val"]) > 1 and (finished or step % eval_interval == 0)
        if step and (eval_due or finished or step % log_interval == 0):
            lr = learning_rate * lr_factor(step - 1, last)
            row = [step, f"{step * sequences / n_blocks:.4f}", step * sequences * block_size,
                   f"{time.time() - started:.2f}", f"{lr:.6g}", f"{loss:.6f}"]
            line = f"iteration {step}/{last}: {row[3]} s, loss {loss:.4f}"
            line += f", {skipped} steps skipped" if skipped else ""
            if eval_due:
                val_loss, perplexity, bits = losses_on("val")
                check_finite(step, val_loss)
                row += [f"{val_loss:.6f}", f"{perplexity:.4f}", f"{bits:.6f}"]
                line += f", val loss {val_loss:.4f}, {bits:.4f} bits per byte"
                if val_loss < best_val_loss:
                    best_val_loss = val_loss
                    save("best.pt")
                finished |= target_split == "val" and val_loss <= target_loss
            say(line)
            rows.append(row + [""] * (len(LOG_COLUMNS) - len(row)))
            if rank == 0:
                write_log(rows)
                draw_loss(rows)
            if eval_due and encoding and sample_interval and step % sample_interval == 0:
                print_samples(model, encoding, data["val"], target_device, 1)
        if stop or finished or (step != first_step and step % snapshot_interval == 0):
            save(f"snapshots/snapshot_step_{step}.pt")
            for file in [] if rank else snapshots()[keep_snapshots:]:
                file.unlink()
        if finished:
            break
        if stop:
            say(f"stopped after iteration {step}: the same command goes on from here")
            return 128 + max(signals, default=signal.SIGTERM)

        # One iteration: forward and backward in micro-batches, then the update.
        if dropout:
            torch.manual_seed(hashed(seed, step, rank) >> 1)
        for opt in optimizers:
            highest = muon_learning_rate if isinstance(opt, Muon) else learning_rate
            for group in opt.param_groups:
                group["lr"] = highest * lr_factor(step, last)
        total = 0.0
        for micro_step in range(rank, gradient_accumulation_steps, n_processes):
            first = step * sequences + micro_step * batch_size
            ids = get_batch(data["train"], first, model.config.vocab_size)
            if target_device.type == "cuda":
                ids = ids.pin_memory()  # the copy needn't be waited for
            ids = ids.to(target_device, non_blocking=True)
            if n_processes > 1:  # gradients are averaged once, after the last micro-batch
                last_one = micro_step + n_processes >= gradient_accumulation_steps
                forward.require_backward_grad_sync = last_one
            with autocast:
                micro_loss = forward(ids[:, :-1], ids[:, 1:], return_logits=False)[1]
            micro_loss = micro_loss * (n_processes / gradient_accumulation_steps)
            scaler.scale(micro_loss).backward()
            total += micro_loss.detach()
        for opt in optimizers:
            scaler.unscale_(opt)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
        unseen.append(total + norm)
        # A GPU runs ahead of this script, and to read a number is to wait for it: only when due.
        due = (log_interval, eval_interval, snapshot_interval, last)
        if (target_device.type != "cuda" or target_loss or (signals and n_processes == 1)
                or any((step + 1) % interval == 0 for interval in due)):
            loss, stop = sum_over_processes([total.item(), sum(signals)], target_device)
            loss /= n_processes
            bad = [i for i, x in enumerate(torch.stack(unseen).tolist()) if not math.isfinite(x)]
            if bad and not scaler.is_enabled() or not math.isfinite(loss):
                check_finite(step - len(unseen) + 2 + bad[0], math.nan)
            skipped += len(bad)  # float16: the scaler skips a step that overflows, and goes lower
            unseen.clear()
        for opt in optimizers:
            if not scaler.is_enabled() or norm.isfinite():  # else all of them skip the step
                scaler.step(opt)
            opt.zero_grad(set_to_none=True)
        scaler.update()
        step += 1
        reached = target_split == "train" and loss <= target_loss
        if time.time() - shown > 0.2:
            speed = (step - shown_step) * sequences * block_size / (time.time() - shown)
            say(f"{step}/{last} | epoch {step * sequences / n_blocks:.2f} | loss {loss:.4f} | "
                f"{speed:,.0f} tokens/s | {speed * model.flops_per_token() / 1e9:,.0f} GFLOP/s | "
                f"{(last - step) * sequences * block_size / speed:.0f} s left", lasting=False)
            shown, shown_step = time.time(), step

    save("final_model.pt")
    if encoding and num_return_sequences:
        print_samples(model, encoding, data["val"], target_device, num_return_sequences)
    if len(data["test"]) > 1:
        best = Path(out_dir, "best.pt" if best_val_loss < math.inf else "final_model.pt")
        model.load_state_dict(read_snapshot(best)["model_state_dict"])
        print(report(f"test with {best}", *losses_on("test")))
    return 0


if __name__ == "__main__":
    raise SystemExit(config.run(main))
