"""Train a GPT-2 on the tokens that prepare.py wrote.

    python train.py config/shakespeare.py                # run it again and it goes on where it was
    python train.py config/shakespeare.py --max_iters=100 --out_dir=out_short
    python train.py --size=gpt2 --block_size=256 --batch_size=4

Everything it writes is in out_dir: snapshots/, best.pt, final_model.pt, log.csv and loss.svg.
"""

import csv
import hashlib
import json
import math
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

import config
from model import GPT, SIZES, GPTConfig, choose_device, read_snapshot
from prepare import fingerprint, gpt2_tokenizer, load_tokenizer, settle, whole_file

# where the data is and where the results go
data_dir = "data"  # folder with train.bin and val.bin
out_dir = "out"  # folder for snapshots, log.csv and loss.svg
init_from = "auto"  # 'auto' goes on if it can, 'scratch', 'resume', or weights: 'gpt2', a folder
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


def check_settings():
    """End with exit code 2 if a setting has a value that can't be meant."""
    choices = {"optimizer": ("muon", "adamw"), "target_split": ("train", "val"),
               "lr_schedule": ("linear", "cosine", "step", "constant"), "size": ("", *SIZES)}
    for name, allowed in choices.items():
        if globals()[name] not in allowed:
            config.usage(f"{name}={globals()[name]!r}: expected one of {', '.join(allowed)}")
    for name in ("batch_size", "gradient_accumulation_steps", "snapshot_interval", "log_interval",
                 "eval_interval", "keep_snapshots", "lr_step_iters"):
        if globals()[name] < 1:
            config.usage(f"{name}={globals()[name]}: expected at least 1")
    for name in ("max_iters", "max_epochs", "eval_iters", "warmup_iters", "grad_clip", "seed",
                 "weight_decay", "learning_rate", "muon_learning_rate", "min_lr", "target_loss",
                 "sample_interval", "num_return_sequences", "max_length", "lr_decay_iters"):
        if not 0 <= globals()[name] < math.inf:
            config.usage(f"{name}={globals()[name]}: expected a number from 0")
    for name in ("beta1", "beta2"):
        if not 0 <= globals()[name] < 1:
            config.usage(f"{name}={globals()[name]}: expected from 0 to below 1")


# ---- data ---------------------------------------------------------------------------------------

def load_data(folder):
    """Return (meta, {split: token ids}); the ids are mapped, so that only what is used is read.

    A folder without meta.json, such as nanoGPT makes, is taken as GPT-2's tokens in uint16.
    """
    if not Path(folder, "train.bin").exists() and not Path(folder, "meta.json").exists():
        raise ValueError(f"{folder}/train.bin is not there: python prepare.py --out_dir={folder} "
                         "makes it")
    settle(folder)
    meta = {"vocab_size": 50257, "dtype": "uint16", "splits": {}, "tokenizer": None}
    if Path(folder, "meta.json").exists():
        meta = json.loads(Path(folder, "meta.json").read_text(encoding="utf-8"))
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
    is (Luby & Rackoff 1988); a result outside range(n) goes through it again until it is inside.
    """
    half = 1 << ((n - 1).bit_length() + 1) // 2
    while True:
        left, right = divmod(k, half)
        for turn in range(4):
            left, right = right, left ^ hashed(*key, turn, right) % half
        k = left * half + right
        if k < n:
            return k


def get_batch(tokens, first, vocab_size):
    """Return ids (batch_size, block_size + 1) of the run's sequences first, first + 1, ...

    An epoch cuts the tokens, laid out as a ring, into blocks from an offset of its own, and takes
    each block once: the batch depends on the seed and on first alone.
    """
    n_blocks = len(tokens) // block_size
    rows = []
    for sequence in range(first, first + batch_size):
        epoch, k = divmod(sequence, n_blocks)
        start = hashed(seed, epoch) + shuffled(k, n_blocks, seed, epoch) * block_size
        rows.append(tokens[(start % len(tokens) + np.arange(block_size + 1)) % len(tokens)])
    return checked(np.stack(rows), vocab_size)


def eval_batches(tokens, vocab_size):
    """Yield ids (B, block_size + 1) of the whole split, or of eval_iters batches spread over it.

    The last block may be short; it is filled up with -1, which counts for nothing.
    """
    starts = np.arange(0, len(tokens) - 1, block_size)
    if eval_iters:
        few = min(len(starts), eval_iters * batch_size)
        starts = starts[np.arange(few) * len(starts) // few]
    for first in range(0, len(starts), batch_size):
        rows = np.full((len(starts[first:first + batch_size]), block_size + 1), -1)
        for row, start in zip(rows, starts[first:]):
            ids = tokens[start:start + block_size + 1]
            row[:len(ids)] = ids
        yield checked(rows, vocab_size)


def checked(rows, vocab_size):
    if rows.max() >= vocab_size:
        raise ValueError(f"{data_dir} holds the token id {rows.max()}, but the vocabulary has "
                         f"only {vocab_size} tokens: they don't belong together")
    return torch.from_numpy(rows.astype(np.int64))


# ---- optimizer ----------------------------------------------------------------------------------

def orthogonalized(matrices):
    """Replace the singular values of each matrix by about 1: (n, rows, cols), rows <= cols.

    Five steps of a Newton-Schulz iteration with a quintic polynomial whose coefficients make
    small singular values grow fastest (Jordan et al. 2024, "Muon: An optimizer for hidden layers
    in neural networks"). It needs matrix products only, of all matrices of a shape at once.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, so that no few directions of a matrix dominate it.

    c_attn is three matrices in one (of queries, keys and values) and is treated as three.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape = {}
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = p.grad.lerp(buffer, momentum)  # Nesterov's look ahead
                p.mul_(1 - lr * group["weight_decay"])
                parts = 3 if p.size(0) == 3 * p.size(1) else 1
                for weight, part in zip(p.chunk(parts), update.chunk(parts)):
                    tall = part.size(0) > part.size(1)
                    if tall:
                        weight, part = weight.mT, part.mT
                    scale = math.sqrt(part.size(1) / part.size(0)) if tall else 1.0
                    by_shape.setdefault((part.shape, scale), []).append((weight, part))
            for (_, scale), pairs in by_shape.items():
                updates = orthogonalized(torch.stack([part for _, part in pairs]))
                for (weight, _), update in zip(pairs, updates):
                    weight.add_(update, alpha=-lr * scale)


def make_optimizers(model, device):
    """Return the optimizers, each group with its highest learning rate as 'initial_lr'."""
    matrices, embeddings, vectors = model.parameter_groups()
    if optimizer == "muon":
        adamw_groups = [dict(params=embeddings + vectors, weight_decay=0.0)]
        optimizers = [Muon(matrices, muon_learning_rate, weight_decay=weight_decay)]
    else:
        adamw_groups = [dict(params=matrices + embeddings, weight_decay=weight_decay),
                        dict(params=vectors, weight_decay=0.0)]
        optimizers = []
    fused = device.type in ("cpu", "cuda")
    optimizers.append(torch.optim.AdamW(adamw_groups, learning_rate, (beta1, beta2), fused=fused))
    for group in (group for opt in optimizers for group in opt.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def lr_factor(step, last):
    """Return what the highest learning rates are multiplied by in iteration step of last."""
    if step < warmup_iters:
        return (step + 1) / (warmup_iters + 1)
    if lr_schedule == "constant":
        return 1.0
    if lr_schedule == "step":
        return lr_gamma ** ((step - warmup_iters) // lr_step_iters)
    lowest = min_lr / learning_rate if learning_rate else 0.0
    end = lr_decay_iters or last
    done = min(1.0, (step - warmup_iters) / max(1, end - warmup_iters))
    if lr_schedule == "linear":
        return lowest + (1 - lowest) * (1 - done)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * done))


# ---- snapshots and the log ----------------------------------------------------------------------

def newest_snapshot():
    """Return (path, snapshot) with the most steps in out_dir, or (None, None) if there is none.

    A broken file is named and passed over; if all are broken, ValueError is raised.
    """
    folder = Path(out_dir, "snapshots")
    paths = sorted(folder.glob("snapshot_step_*.pt"), key=step_of, reverse=True)
    final = Path(out_dir, "final_model.pt")
    found, broken = (None, None), []
    for path in ([final] if final.exists() else []) + paths:
        if found[1] and found[1]["step"] >= step_of(path):
            break
        try:
            snapshot = read_snapshot(path)
        except ValueError as error:
            print(f"skipped: {error}", file=sys.stderr)
            broken.append(path)
            continue
        if not found[1] or snapshot["step"] > found[1]["step"]:
            found = path, snapshot
    if broken and not found[1]:
        raise ValueError(f"no file in {folder} can be used: choose another --out_dir, or start "
                         "over with --init_from=scratch --overwrite")
    return found


def check_same_run(path, snapshot, model_config, description, fingerprint):
    """Raise ValueError if the snapshot is of another model, tokenizer or training text."""
    there = snapshot["model_config"]
    reasons = [f"{name}={there.get(name)} there, {value} here"
               for name, value in asdict(model_config).items()
               if name != "dropout" and there.get(name) != value]
    if snapshot["settings"]["optimizer"] != optimizer:
        reasons.append(f"optimizer={snapshot['settings']['optimizer']} there, {optimizer} here")
    if snapshot["tokenizer"] != description:
        reasons.append("another tokenizer")
    if snapshot["data"] != fingerprint:
        reasons.append("another training text")
    if reasons:
        raise ValueError(f"{path} is of another run ({', '.join(reasons)}): choose another "
                         "--out_dir, or start over with --init_from=scratch --overwrite")


def step_of(path):  # out/snapshots/snapshot_step_500.pt -> 500
    digits = path.stem.rpartition("_")[2]
    return int(digits) if digits.isdigit() else -1


def save_snapshot(path, model, optimizers, scaler, **rest):
    """Write one file that alone is enough to go on or to generate text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    snapshot = {
        "format_version": 1,
        "model_state_dict": model.state_dict(),
        "model_config": asdict(model.config),
        "optimizer_state_dict": [opt.state_dict() for opt in optimizers],
        "scaler_state_dict": scaler.state_dict(),
        "settings": {name: globals()[name] for name in config.read_settings(__file__)},
        **rest,
    }
    with whole_file(path) as file:
        torch.save(snapshot, file)


def read_log(last_step):
    """Return the rows of log.csv up to last_step: what an interrupted run wrote after its last
    snapshot is going to happen again."""
    path = Path(out_dir, "log.csv")
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == len(LOG_COLUMNS)]
    return [row for row in rows if row[0].isdigit() and int(row[0]) <= last_step]


def write_log(rows):
    with whole_file(Path(out_dir, "log.csv"), "w") as file:
        csv.writer(file, lineterminator="\n").writerows([LOG_COLUMNS, *rows])


def draw_loss(rows):
    """Draw loss.svg: the training loss of each line of the log, and the validation loss."""
    width, height, left, bottom = 800, 480, 60, 430
    curves = {name: [(int(row[0]), float(row[i])) for row in rows if row[i]]
              for name, i in (("train", 5), ("val", 6))}
    points = sum(curves.values(), [])
    if not points:
        return
    last = max(step for step, _ in points) or 1
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    low, high = min(low, high - 0.01), high

    def place(step, loss):
        x = left + step / last * (width - left - 20)
        return f"{x:.1f},{bottom - (loss - low) / (high - low) * (bottom - 40):.1f}"

    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
           'font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for i in range(6):
        step, loss = round(last * i / 5), low + (high - low) * i / 5
        x, y = place(step, loss).split(",")
        svg += [f'<path d="M{left} {y}H{width - 20}M{x} {bottom}V40" stroke="#ddd"/>',
                f'<text x="{left - 8}" y="{y}" text-anchor="end">{loss:.2f}</text>',
                f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{step}</text>']
    for i, (name, curve) in enumerate(curves.items()):
        color = ("#4a7ebb", "#d1495b")[i]
        svg += [f'<polyline points="{" ".join(place(*point) for point in curve)}" fill="none" '
                f'stroke="{color}" stroke-width="2"/>',
                f'<text x="{width - 90}" y="{60 + 18 * i}" fill="{color}">{name}</text>']
    svg += [f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">iteration</text>',
            f'<text x="{left}" y="25">loss (nats per token)</text>', "</svg>"]
    with whole_file(Path(out_dir, "loss.svg"), "w") as file:
        file.write("\n".join(svg))


@contextmanager
def signals_noted():
    """Note Ctrl-C and SIGTERM in the list that is yielded; a second Ctrl-C ends at once."""
    noted = []

    def note(number, frame):
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = [(number, signal.signal(number, note)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield noted
    finally:
        for number, handler in before:
            signal.signal(number, handler)


# ---- evaluation and samples ---------------------------------------------------------------------

@torch.no_grad()
def evaluate(model, tokens, device, autocast):
    """Return the mean loss in nats per token over the blocks of eval_batches, without dropout."""
    model.eval()
    total = count = 0
    for rows in eval_batches(tokens, model.config.vocab_size):
        rows = rows.to(device)
        targets = rows[:, 1:]
        with autocast:
            loss = model(rows[:, :-1].clamp(min=0), targets, return_logits=False)[1]
        counted = (targets != -1).sum().item()
        total += loss.item() * counted
        count += counted
    model.train()
    return total / count


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


# ---- the run ------------------------------------------------------------------------------------

def main(arguments=None):
    globals().update(config.override(__file__, arguments))
    check_settings()
    started = time.time()
    target_device, matrix_dtype, compiled = choose_device(device, dtype, compile)
    meta, data = load_data(data_dir)
    try:
        description = meta["tokenizer"] or gpt2_tokenizer()
    except OSError as error:
        print(f"no samples will be shown: {error}", file=sys.stderr)
        description = None
    encoding = load_tokenizer(description) if description else None

    # What out_dir holds decides how the run begins.
    old = [Path(out_dir, name) for name in ("best.pt", "final_model.pt", "log.csv", "loss.svg")]
    old = [p for p in old + [*Path(out_dir, "snapshots").glob("snapshot_step_*.pt")] if p.exists()]
    snapshot = None
    if init_from == "scratch" and old and not overwrite:
        raise ValueError(f"{out_dir} holds a run already ({old[0].name}): add --overwrite to "
                         "delete it, or choose another --out_dir")
    if init_from != "scratch":
        path, snapshot = newest_snapshot()
    if init_from == "resume" and not snapshot:
        raise ValueError(f"init_from='resume', but there is no snapshot in {out_dir}")

    # The model is new, or the snapshot's (which has to fit the settings), or pretrained.
    torch.manual_seed(seed)
    fingerprint = meta["splits"]["train"]["fingerprint"]
    if init_from in ("auto", "scratch", "resume"):
        shape = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd) | SIZES.get(size, {})
        shape |= dict(block_size=block_size, vocab_size=meta["vocab_size"], bias=bias)
        model = GPT(GPTConfig(**shape, dropout=dropout))
    elif snapshot:
        model = GPT(GPTConfig(**snapshot["model_config"] | dict(dropout=dropout)))
    else:
        model = GPT.from_pretrained(init_from, dropout=dropout)
        if block_size < model.config.block_size:
            model.crop_block_size(block_size)
    if snapshot:
        check_same_run(path, snapshot, model.config, description, fingerprint)
        model.load_state_dict(snapshot["model_state_dict"])
    if meta["vocab_size"] > model.config.vocab_size:
        raise ValueError(f"{data_dir} has {meta['vocab_size']} kinds of tokens, {init_from} knows "
                         f"{model.config.vocab_size}: python prepare.py --tokenizer=gpt2")
    model.to(target_device)
    optimizers = make_optimizers(model, target_device)
    scaler = torch.amp.GradScaler(target_device.type, enabled=matrix_dtype == torch.float16)
    step, loss, best_val_loss = 0, math.nan, math.inf
    if snapshot:
        for opt, saved in zip(optimizers, snapshot["optimizer_state_dict"]):
            settings = opt.state_dict()["param_groups"]  # today's, not the snapshot's
            opt.load_state_dict(dict(state=saved["state"], param_groups=settings))
        scaler.load_state_dict(snapshot["scaler_state_dict"])
        step, loss = snapshot["step"], snapshot["loss"]
        best_val_loss = snapshot["best_val_loss"]
        print(f"going on from {path} (iteration {step})")
    forward = torch.compile(model) if compiled else model
    autocast = torch.autocast(target_device.type, matrix_dtype,
                              enabled=matrix_dtype != torch.float32)
    sequences_per_iter = batch_size * gradient_accumulation_steps
    n_blocks = len(data["train"]) // block_size
    last = math.ceil(max_epochs * n_blocks / sequences_per_iter) if max_epochs else max_iters

    def losses_on(split):  # -> (nats per token, perplexity, bits per byte)
        nats = evaluate(forward, data[split], target_device, autocast)
        size = meta["splits"][split]
        bits = nats / math.log(2) * size["tokens"] / size["bytes"] if "bytes" in size else math.nan
        return nats, math.exp(min(nats, 700)), bits

    def save(name):
        save_snapshot(Path(out_dir, name), model, optimizers, scaler, step=step, loss=loss,
                      best_val_loss=best_val_loss, tokenizer=description, data=fingerprint)

    def say(text, lasting=True):
        """Print a line; on a terminal, one that isn't lasting is overwritten by the next."""
        if sys.stdout.isatty():
            print("\r\033[K" + text, end="\n" if lasting else "", flush=True)
        elif lasting:
            print(text, flush=True)

    print(f"{model.num_params():,} parameters, {len(data['train']):,} training tokens, "
          f"{sequences_per_iter * block_size:,} in each of {last} iterations, "
          f"{target_device.type} in {str(matrix_dtype)[6:]}, {optimizer}")
    if eval_only:
        print("validation: loss {:.4f}, perplexity {:.2f}, bits per byte {:.4f}"
              .format(*losses_on("val")))
        return 0
    reached = target_loss and (loss if target_split == "train" else best_val_loss) <= target_loss
    if snapshot and path.name == "final_model.pt" and (step >= last or reached):
        print(f"nothing left to do: {path} is the end of this run")
        return 0
    Path(out_dir, "snapshots").mkdir(parents=True, exist_ok=True)
    if init_from == "scratch":
        for file in old:
            file.unlink()
    first_step, rows = step, read_log(step - 1)
    write_log(rows)
    seconds_before = float(rows[-1][3]) if rows else 0.0
    unseen = []  # loss + gradient norm of the iterations since they were last looked at
    shown, shown_step = time.time(), step
    model.train()

    with signals_noted() as signals:
        while True:
            # Before the next iteration: what is due of the log, an evaluation and a snapshot.
            finished = bool(step >= last or reached)
            eval_due = len(data["val"]) > 1 and (finished or step % eval_interval == 0)
            if step and (eval_due or finished or step % log_interval == 0):
                row = [step, f"{step * sequences_per_iter / n_blocks:.4f}", step * sequences_per_iter * block_size,
                       f"{seconds_before + time.time() - started:.2f}",
                       f"{learning_rate * lr_factor(step - 1, last):.6g}", f"{loss:.6f}"]
                line = f"iteration {step}/{last}: {row[3]} s, loss {loss:.4f}"
                if eval_due:
                    val_loss, perplexity, bits = losses_on("val")
                    row += [f"{val_loss:.6f}", f"{perplexity:.4f}", f"{bits:.6f}"]
                    line += f", val loss {val_loss:.4f}, {bits:.4f} bits per byte"
                    if val_loss < best_val_loss:
                        best_val_loss = val_loss
                        save("best.pt")
                    if target_split == "val" and val_loss <= target_loss:
                        finished = True
                rows.append(row + [""] * (len(LOG_COLUMNS) - len(row)))
                write_log(rows)
                say(line)
                if eval_due:
                    draw_loss(rows)
                if eval_due and encoding and sample_interval and step % sample_interval == 0:
                    print_samples(model, encoding, data["val"], target_device, 1)
            if signals or (step > first_step and step % snapshot_interval == 0):
                save(f"snapshots/snapshot_step_{step}.pt")
                for old in sorted(Path(out_dir, "snapshots").glob("*.pt"), key=step_of)[
                        :-keep_snapshots]:
                    old.unlink()
            if finished:
                break
            if signals:
                say(f"stopped after iteration {step}: the same command goes on from here")
                return 128 + signals[0]

            # One iteration: forward, backward, update.
            if dropout:
                torch.manual_seed(hashed(seed, step) >> 1)
            for group in (group for opt in optimizers for group in opt.param_groups):
                group["lr"] = group["initial_lr"] * lr_factor(step, last)
            total = 0.0
            for micro_step in range(gradient_accumulation_steps):
                first = step * sequences_per_iter + micro_step * batch_size
                rows_of_ids = get_batch(data["train"], first, model.config.vocab_size)
                ids = rows_of_ids.to(target_device, non_blocking=True)
                with autocast:
                    micro_loss = forward(ids[:, :-1], ids[:, 1:], return_logits=False)[1]
                scaler.scale(micro_loss / gradient_accumulation_steps).backward()
                total += micro_loss.detach() / gradient_accumulation_steps
            for opt in optimizers:
                scaler.unscale_(opt)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
            unseen.append(total + norm)
            # A GPU works behind our back: looking at a number waits for it, so we seldom look.
            if (target_device.type != "cuda" or target_loss or (step + 1) % log_interval == 0
                    or (step + 1) % eval_interval == 0 or (step + 1) % snapshot_interval == 0
                    or step + 1 >= last or signals):
                loss = total.item()
                bad = [not math.isfinite(x) for x in torch.stack(unseen).tolist()]
                if any(bad) and not scaler.is_enabled() or not math.isfinite(loss):
                    raise ValueError(
                        f"iteration {step - len(bad) + 1 + bad.index(True)}: the loss or its "
                        f"gradient is not a number any more (loss {loss}): lower learning_rate or "
                        "muon_learning_rate, or raise warmup_iters; the last snapshot is kept")
                unseen.clear()
            for opt in optimizers:
                scaler.step(opt)
                opt.zero_grad(set_to_none=True)
            scaler.update()
            step += 1
            reached = target_loss and target_split == "train" and loss <= target_loss
            if time.time() - shown > 0.2:
                speed = (step - shown_step) * sequences_per_iter * block_size
                speed /= time.time() - shown
                left = (last - step) * sequences_per_iter * block_size / speed
                say(f"{step}/{last} | epoch {step * sequences_per_iter / n_blocks:.2f} | loss "
                    f"{loss:.4f} | {speed:,.0f} tokens/s | "
                    f"{speed * model.flops_per_token() / 1e9:,.0f} GFLOP/s | {left:.0f} s left",
                    lasting=False)
                shown, shown_step = time.time(), step

    save("final_model.pt")
    if encoding:
        print_samples(model, encoding, data["val"], target_device, num_return_sequences)
    if len(data["test"]) > 1:
        best = Path(out_dir, "best.pt" if best_val_loss < math.inf else "final_model.pt")
        model.load_state_dict(read_snapshot(best)["model_state_dict"])
        print("test with the weights of {}: loss {:.4f}, perplexity {:.2f}, bits per byte {:.4f}"
              .format(best, *losses_on("test")))
    return 0


if __name__ == "__main__":
    raise SystemExit(config.run(main))
