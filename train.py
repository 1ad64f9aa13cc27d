"""Train a GPT-2 on the tokens that prepare.py wrote.

    python train.py config/shakespeare.py                # run it again and it goes on where it was
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py     # on eight GPUs"""

import atexit
import ctypes
import gc
import hashlib
import math
import mmap
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

import config
from model import GPT, SIZES, GPTConfig, choose_device, read_snapshot
from prepare import fingerprint, gpt2_tokenizer, load_tokenizer, read_meta, whole_file

data_dir = "data"  # folder with train.bin and val.bin
out_dir = "out"  # folder for snapshots/, best.pt, final_model.pt, log.csv and loss.svg
init_from = "auto"  # 'auto' goes on if it can; 'scratch', 'resume'; or weights: 'gpt2', a folder
overwrite = False  # let init_from='scratch', or weights, delete the run that is in out_dir
snapshot_interval = 100  # iterations between snapshots
keep_snapshots = 2  # how many of the newest snapshots are kept
log_interval = 10  # iterations between lines of the log
eval_interval = 100  # iterations between evaluations on the validation split
eval_iters = 0  # batches of an evaluation, 0 for the whole split
eval_only = False  # evaluate once and stop
sample_interval = 0  # iterations between samples, drawn at evaluations; 0 for none
sample_prompt = "\n"  # how samples begin
num_return_sequences = 5  # samples of the final model
max_length = 30  # tokens in each of them
size = ""  # a name in model.py's SIZES, in place of the next three
n_layer = 4  # blocks
n_head = 4  # attention heads in each block
n_embd = 128  # width
block_size = 64  # tokens of context
dropout = 0.0  # share of activations left out in training; above 0 only helps over many epochs
bias = True  # biases in the linear layers and LayerNorms, as GPT-2 has them
batch_size = 32  # sequences of block_size tokens in one forward pass
gradient_accumulation_steps = 1  # forward passes in one iteration, in all processes together
max_iters = 600  # iterations
max_epochs = 0.0  # passes over the training split, in place of max_iters; 0 for max_iters
target_loss = 0.0  # stop as soon as the loss is at or below this; 0 for never
target_split = "train"  # the loss that target_loss watches: 'train' or 'val'
optimizer = "muon"  # 'muon' (on the matrices inside the blocks, AdamW on the rest) or 'adamw'
learning_rate = 0.01  # AdamW's highest learning rate
muon_learning_rate = 0.03  # Muon's highest learning rate
weight_decay = 0.1  # on matrices only: with Muon, on those inside the blocks
beta1 = 0.9  # AdamW: memory of the gradient
beta2 = 0.95  # AdamW: memory of the squared gradient
grad_clip = 1.0  # the gradient's norm is cut to this; 0 for never
warmup_iters = 10  # iterations over which the learning rate rises from 0
lr_schedule = "linear"  # after that: 'linear' or 'cosine' falls to min_lr, 'step', 'constant'
min_lr = 0.0  # AdamW's lowest learning rate; Muon's falls in the same proportion
lr_decay_iters = 0  # the iteration at which min_lr is reached; 0 for the last one
lr_gamma = 0.5  # 'step' multiplies by this ...
lr_step_iters = 1000  # ... every so many iterations
seed = 1337  # of the weights, the order of the data and dropout
device = "auto"  # 'cpu', 'cuda', 'cuda:1', 'mps'; 'auto' takes the fastest that is there
dtype = "auto"  # 'float32', 'bfloat16' or 'float16' for the matrix products
compile = "auto"  # torch.compile: True, False; 'auto' for CUDA only
parallel = "ddp"  # under torchrun: 'ddp' gives each process a whole model, 'fsdp' a share of it
activation_checkpointing = False  # compute each block twice and keep only its input in memory
HEADER = "step epoch tokens seconds lr train_loss val_loss val_perplexity val_bits_per_byte".split()

def sum_over_processes(*numbers):  # -> the same sums in each process
    together = torch.tensor(numbers, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(together)
    return together.tolist()

def load_data(folder):
    """Return (meta, {split: token ids}); the ids are mapped, so that only what is used is read.
    A folder without meta.json, such as nanoGPT makes, is taken as GPT-2's tokens in uint16."""
    meta = read_meta(folder) or dict(vocab_size=50257, dtype="uint16", splits={}, tokenizer=None)
    data = {}
    for split, least in (("train", block_size + 1), ("val", 2 * eval_only), ("test", 0)):
        path = Path(folder, f"{split}.bin")
        found = fingerprint(path) if path.exists() else None
        same = found == meta["splits"].setdefault(split, {"fingerprint": found})["fingerprint"]
        full = same and found and path.stat().st_size
        data[split] = np.memmap(path, dtype=meta["dtype"], mode="r") if full else np.empty(0, int)
        if full and hasattr(mmap, "MADV_RANDOM"):  # else each page would bring megabytes with it
            data[split]._mmap.madvise(mmap.MADV_RANDOM)
        if not same or len(data[split]) < least:
            why = f"under {least} tokens ({block_size=})" if same else "not what meta.json says"
            raise ValueError(f"{path} is missing or {why}: python prepare.py --out_dir={folder}")
    meta["tokenizer"] = meta["tokenizer"] or gpt2_tokenizer()
    return meta, data

def hashed(*numbers):  # -> 64 random bits that are a function of the numbers
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big")

def shuffled(k, n, *key):
    """Return the place of k in a permutation of range(n) that is computed, not stored: a Feistel
    network permutes the numbers below half * half (Luby & Rackoff 1988), as often as it takes."""
    half = 1 << ((n - 1).bit_length() + 1) // 2
    left, right = divmod(k, half)
    for turn in range(4):
        left, right = right, left ^ hashed(*key, turn, right) % half
    k = left * half + right
    return k if k < n else shuffled(k, n, *key)

def get_batch(tokens, first):  # -> ids (batch_size, block_size + 1)
    """Return the run's sequences number first, first + 1, ... An epoch cuts the ring of tokens into
    blocks from an offset of its own and takes each once: the batch depends on seed and first."""
    n_blocks, starts = len(tokens) // block_size, []
    for sequence in range(first, first + batch_size):
        epoch, k = divmod(sequence, n_blocks)
        start = hashed(seed, epoch) + shuffled(k, n_blocks, seed, epoch) * block_size
        starts.append(start % len(tokens))
    places = np.add.outer(starts, np.arange(block_size + 1)) % len(tokens)
    return torch.from_numpy(tokens[places].astype(np.int64))

def whole(tensor):  # the tensor, or all of it where each of FSDP's processes has a share
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

def orthogonalized(x):  # (n, rows, cols) -> (n, rows, cols)
    """Bring the singular values of each matrix to about 1, by five Newton-Schulz steps that make
    small ones grow fastest (Jordan et al. 2024, "Muon: An optimizer for hidden layers ...")."""
    if x.size(1) > x.size(2):
        return orthogonalized(x.mT).mT  # the products are smaller on this side
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):  # x <- (3.4445 + -4.7750 (x xT) + 2.0315 (x xT)^2) x
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x

class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized so that no few directions dominate. c_attn is three matrices."""
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            updates, parts = [], []
            for p in group["params"]:
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                updates.append(whole(p.grad.lerp(buffer, group["momentum"])))  # Nesterov's
                parts += updates[-1].chunk(3 if p.size(0) == 3 * p.size(1) else 1)
            for shape in dict.fromkeys(part.shape for part in parts):
                same = [part for part in parts if part.shape == shape]
                for part, new in zip(same, orthogonalized(torch.stack(same))):
                    part.copy_(new).mul_(math.sqrt(max(1, shape[0] / shape[1])))
            for p, update in zip(group["params"], updates):
                if hasattr(p, "full_tensor"):  # of FSDP: this process's share of the update
                    update = dist.tensor.distribute_tensor(update, p.device_mesh, p.placements,
                                                           src_data_rank=None)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

def make_optimizers(model):  # (their learning rates are set before each update)
    """Return AdamW and, where that is the setting, Muon for the matrices inside the blocks."""
    matrices, embeddings, vectors = model.parameter_groups()
    options = dict(betas=(beta1, beta2), weight_decay=0.0, fused=True)
    if optimizer == "adamw":
        decayed = dict(params=matrices + embeddings, weight_decay=weight_decay)
        return [torch.optim.AdamW([decayed, dict(params=vectors)], **options)]
    muon = Muon(matrices, dict(lr=0.0, momentum=0.95, weight_decay=weight_decay))
    return [torch.optim.AdamW(embeddings + vectors, **options), muon]

def lr_factor(step, last):
    """Return what the highest learning rates are multiplied by in iteration step of last."""
    if step < warmup_iters:
        return (step + 1) / (warmup_iters + 1)
    if lr_schedule == "step":
        return lr_gamma ** ((step - warmup_iters) // lr_step_iters)
    lowest = 1.0 if lr_schedule == "constant" else min_lr / (learning_rate or 1.0)
    done = min(1.0, (step - warmup_iters) / max(1, (lr_decay_iters or last) - warmup_iters))
    left = 1 - done if lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lowest + (1 - lowest) * left

def distributed(model, device):
    """Return what gives the loss: DDP's wrapper, or the model, shared out by FSDP (Zhao 2023)."""
    if activation_checkpointing:  # (Chen et al. 2016, "Training Deep Nets with Sublinear Memory")
        for block in model.transformer.h:
            block.forward = lambda *x, run=block.forward: checkpoint(run, *x, use_reentrant=False)
    if dist.is_initialized() and parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard
        mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
        for part in [*model.transformer.h, model]:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
        return model
    model.to(device)
    return torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model

def write_log(rows):
    """Write log.csv and draw loss.svg: the training loss of each row, and the validation loss."""
    with whole_file(Path(out_dir, "log.csv"), "w") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in [HEADER, *rows])
    losses = [float(loss) for row in rows for loss in row[5:7] if loss] or [0]
    last, low, span = int(rows[-1][0]) if rows else 1, min(losses), max(losses) - min(losses) + 0.01
    point = lambda step, loss: f"{60 + 720 * step / last:g},{430 - 390 * (loss - low) / span:g}"
    svg = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 480" font-family="sans-serif">'
           '<rect width="800" height="480" fill="white"/><text x="390" y="475">iteration</text>'
           '<text x="60" y="25">loss (nats per token)</text>']
    for part in (0, 0.2, 0.4, 0.6, 0.8, 1):  # the axes go from 60 to 780 and from 430 to 40
        svg.append(f'<path d="M60 {430 - 390 * part}h720M{60 + 720 * part} 40v390" stroke="#ddd"/>'
                   f'<text x="{50 + 720 * part}" y="450">{last * part:.0f}</text>'
                   f'<text x="10" y="{435 - 390 * part}">{low + span * part:.2f}</text>')
    for column, color in ((5, "steelblue"), (6, "crimson")):
        points = " ".join(point(int(row[0]), float(row[column])) for row in rows if row[column])
        svg.append(f'<polyline points="{points}" fill="none" stroke="{color}"/>'
                   f'<text x="690" y="{20 * column}" fill="{color}">{HEADER[column]}</text>')
    with whole_file(Path(out_dir, "loss.svg"), "w") as file:
        file.write("\n".join([*svg, "</svg>"]))

@torch.no_grad()
def print_samples(model, encoding, tokens, device, count):
    """Print continuations of sample_prompt, and what the model expects along a validation text."""
    prompt = encoding.encode_ordinary(sample_prompt) or [encoding.eot_token]
    torch.manual_seed(seed)
    for row in model.generate(torch.tensor([prompt] * count, device=device), max_length).tolist():
        print("  sample    |" + encoding.decode(row).replace("\n", "\n            |"))
    text = torch.tensor(tokens[:min(max_length, block_size)].tolist(), device=device)[None]
    if text.numel():
        print(f"  text      |{encoding.decode(text[0].tolist())!r}")
        print(f"  predicted |{encoding.decode(model(text, text)[0].argmax(-1)[0].tolist())!r}")

def main(arguments=None):
    started = time.time()
    settings = config.override(__file__, arguments)
    config.one_of(settings, optimizer=("muon", "adamw"), parallel=("ddp", "fsdp"),
                  lr_schedule=("linear", "cosine", "step", "constant"), size=("", *SIZES),
                  target_split=("train", "val"), compile=("auto", True, False))
    config.at_least(settings, 1, "batch_size gradient_accumulation_steps snapshot_interval "
                    "keep_snapshots log_interval eval_interval lr_step_iters block_size")
    globals().update(settings)
    globals().update(SIZES.get(size, {}), block_size=settings["block_size"])
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):  # that of glibc:
        ctypes.CDLL(None).mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: never give memory back ...
        ctypes.CDLL(None).mallopt(-4, 0)  # ... M_MMAP_MAX: to get it anew costs half an iteration
    if "RANK" in os.environ and device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # or all would take a part of GPU 0
    target_device, matrix_dtype, compiled = choose_device(device, dtype, compile)
    on_gpu = target_device.type == "cuda"
    rank, n_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if "RANK" in os.environ:  # torchrun started this process, and others
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        atexit.register(dist.destroy_process_group)  # left to Python's end, it can abort that ...
        atexit.register(gc.collect)  # ... and so it is while DDP, in a cycle, refers to it
        sys.stdout = open(os.devnull, "w") if rank else sys.stdout  # the first speaks for all
    if gradient_accumulation_steps % n_processes:
        config.usage(f"{gradient_accumulation_steps=} is no multiple of {n_processes} processes")
    meta, data = load_data(data_dir)
    encoding = load_tokenizer(meta["tokenizer"])
    shape = GPTConfig(block_size, meta["vocab_size"], n_layer, n_head, n_embd, dropout, bias)

    # What out_dir holds decides how the run begins.
    out, path, snapshot = Path(out_dir), None, None
    snapshots = lambda: sorted(out.glob("snapshots/snapshot_step_*.pt"), reverse=True,
                               key=lambda path: (len(path.name), path.name))  # the newest first
    pretrained = init_from not in ("auto", "scratch", "resume")  # it names weights to begin from
    anew = init_from not in ("auto", "resume") and (overwrite or eval_only)
    for path in [] if anew or init_from == "scratch" else snapshots():
        try:
            snapshot = read_snapshot(path, dropout=dropout)
            break
        except ValueError as error:
            print(f"skipped: {error}", file=sys.stderr)
    old = [file for name in ("best.pt", "final_model.pt", "log.csv", "loss.svg")
           for file in out.glob(name)] + snapshots()
    instead = ": use another --out_dir, or begin anew: --overwrite --init_from=scratch (or weights)"
    if not (snapshot or anew) and (old or init_from == "resume"):
        raise ValueError(f"{init_from=}, but {out_dir} has {len(old)} files of a run{instead}")

    # The model is the snapshot's, which has to fit the settings, or a pretrained one, or new.
    torch.manual_seed(seed)
    if snapshot:
        settings["init_from"] = init_from if pretrained else snapshot["settings"].get("init_from")
        here = {**settings, "data": meta["splits"]["train"]["fingerprint"]}
        there = {**snapshot["settings"], "data": snapshot["data"]}
        for name in "data init_from optimizer size n_layer n_head n_embd block_size bias".split():
            if here[name] != there.get(name):
                raise ValueError(f"{path} has {name}={there.get(name)}, not {here[name]}{instead}")
        model = snapshot["model"]
    elif pretrained:
        model = GPT.from_pretrained(init_from, dropout)
        model.crop_block_size(block_size)
        if model.config.vocab_size != meta["vocab_size"]:
            raise ValueError(f"{data_dir} isn't in {init_from}'s tokens: prepare --tokenizer=gpt2")
    else:
        model = GPT(shape)
    forward = distributed(model.eval(), target_device)
    forward = torch.compile(forward) if compiled else forward
    optimizers = make_optimizers(model)
    scaler = torch.amp.GradScaler(target_device.type, enabled=matrix_dtype == torch.float16)
    autocast = torch.autocast(target_device.type, matrix_dtype, matrix_dtype != torch.float32)
    from torch.distributed.checkpoint import state_dict as dcp  # late: importing it takes a while
    full = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
    step, loss, best = 0, math.nan, math.inf
    if snapshot:
        step, loss, best = (snapshot[key] for key in ("step", "loss", "best_val_loss"))
        for opt, state in zip(optimizers, snapshot["optimizer_state_dict"]):
            dcp.set_optimizer_state_dict(model, opt, state, options=full)
        scaler.load_state_dict(snapshot["scaler_state_dict"] or scaler.state_dict())
        snapshot = state = None  # to have their memory back
        print(f"going on from {path}")
    tokens = batch_size * gradient_accumulation_steps * block_size  # in one iteration
    tokens_per_epoch = len(data["train"]) // block_size * block_size
    last = math.ceil(max_epochs * tokens_per_epoch / tokens) if max_epochs else max_iters
    finished = lambda: step >= last or (best if target_split == "val" else loss) <= target_loss
    due = lambda *intervals: finished() or not all(step % interval for interval in intervals)
    report = "{}: loss {:.4f}, perplexity {:.2f}, {:.4f} bits per byte".format
    print(f"{model.num_params():,} parameters, {len(data['train']):,} training tokens, {last} "
          f"iterations of {tokens:,}, {target_device.type}, {str(matrix_dtype)[6:]}, {optimizer}")

    def loss_of(ids):  # (B, T + 1) -> mean loss, each token predicted from those before it
        if (token := ids.max()) >= model.config.vocab_size:
            raise ValueError(f"{data_dir} has token {token} of {shape.vocab_size}: prepare it anew")
        ids = (ids.pin_memory() if on_gpu else ids).to(target_device, non_blocking=True)
        with autocast:
            return forward(ids[:, :-1].clamp(min=0), ids[:, 1:], return_logits=False)[1]
    @torch.no_grad()
    def losses_on(split):  # -> (nats per token, perplexity, bits per byte)
        tokens, nats, count = data[split], 0.0, 0
        starts = np.arange(0, len(tokens) - 1, block_size)
        few = min(len(starts), eval_iters * batch_size or len(starts))
        starts = starts[np.arange(few) * len(starts) // few]
        batches = np.split(starts, range(batch_size, few, batch_size))
        # FSDP needs all processes each time: those left over have a batch that doesn't count.
        for i in range(rank, len(batches) + rank, n_processes):
            rows = [torch.tensor(tokens[start:start + block_size + 1].astype(np.int64))
                    for start in batches[i % len(batches)]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
            counted = (ids[:, 1:] != -1).sum().item() if i < len(batches) else 0
            nats += loss_of(ids).item() * counted
            count += counted
        nats, count = sum_over_processes(nats, count)
        bits = nats / math.log(2) * len(tokens) / meta["splits"][split].get("bytes", math.nan)
        return nats / count, math.exp(min(nats / count, 700)), bits / count

    def save(name):  # one file that alone is enough to go on or to generate text
        weights = dcp.get_model_state_dict(model, options=full)
        states = [dcp.get_optimizer_state_dict(model, opt, options=full) for opt in optimizers
                  if opt.state]  # (one without a state would take a step of nothing)
        if rank == 0:
            weights["lm_head.weight"] = weights["transformer.wte.weight"]  # the same, written once
            with whole_file(out / name) as file:
                torch.save(dict(
                    format_version=2, settings=settings, model_config=vars(model.config),
                    tokenizer=meta["tokenizer"], data=meta["splits"]["train"]["fingerprint"],
                    step=step, loss=loss, best_val_loss=best, model_state_dict=weights,
                    optimizer_state_dict=states, scaler_state_dict=scaler.state_dict()), file)
        sum_over_processes(0)  # the others wait until it is written

    if eval_only:
        return print(report("validation", *losses_on("val")))
    if path and finished() and (out / "final_model.pt").exists():
        return print(f"nothing left to do: {out_dir}/final_model.pt is the end of this run")
    if sum_over_processes(step) != [step * n_processes]:
        raise ValueError(f"out_dir={out_dir} has to be a folder that all processes share")
    rows = [line.split(",") for log in out.glob("log.csv")
            for line in log.read_text("utf-8").splitlines()[1:] if int(line.split(",")[0]) <= step]
    if rank == 0:
        # A kill cut the writing of .tmp off; and skipped snapshots mustn't displace the valid ones.
        for file in [*out.glob("snapshots/*.tmp"), *([] if path else old)]:
            file.unlink()
        for file in snapshots()[:snapshots().index(path)] if path else []:
            file.rename(f"{file}.broken")
    if not path:  # a run that is cut off before its first interval begins again from here
        save("snapshots/snapshot_step_0.pt")  # (before log.csv, which alone would be no run)
    if rank == 0:
        write_log(rows)
    started -= float(rows[-1][3]) if rows else 0.0  # the time it has taken so far counts, too
    shown, shown_step, stop, skipped = time.time(), step, 0, 0
    clear = "\r\033[K" if sys.stdout.isatty() else ""  # a line on a terminal replaces the progress
    signals = []  # Ctrl-C and SIGTERM are noted, and heeded after the iteration
    def note(number, frame):
        signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once
    signal.signal(signal.SIGINT, note)
    signal.signal(signal.SIGTERM, note)
    while not finished():
        # One iteration: forward and backward in micro-batches, then the update.
        torch.manual_seed(hashed(seed, step, rank) >> 1)  # of dropout
        model.train()
        total = 0.0
        for i in range(rank, gradient_accumulation_steps, n_processes):
            # DDP averages gradients once, after the last one; FSDP has no room to wait.
            forward.require_backward_grad_sync = i + n_processes >= gradient_accumulation_steps
            ids = get_batch(data["train"], (step * gradient_accumulation_steps + i) * batch_size)
            micro_loss = loss_of(ids) * (n_processes / gradient_accumulation_steps)
            scaler.scale(micro_loss).backward()
            total += micro_loss.detach()
        model.eval()
        for opt, highest in zip(optimizers, (learning_rate, muon_learning_rate)):
            scaler.unscale_(opt)
            for group in opt.param_groups:
                group["lr"] = highest * lr_factor(step, last)
        norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf))
        skipped = skipped + ~torch.isfinite(total + norm)  # float16 can overflow: no step, then
        with autocast:  # for Muon's matrix products
            for opt in optimizers if not scaler.is_enabled() or norm.isfinite() else []:
                scaler.step(opt)
        model.zero_grad()
        scaler.update()
        step += 1
        # What is due. A GPU runs ahead of this script, and to read a number is to wait for it.
        if (not on_gpu or target_loss or (signals and n_processes == 1)
                or due(log_interval, eval_interval, snapshot_interval)):
            loss, stop = sum_over_processes(total.item() / n_processes, sum(signals))
            sound = math.nan if skipped and not scaler.is_enabled() else loss
            if stop or due(eval_interval, snapshot_interval):  # then the weights are saved
                sound += whole(torch.nn.utils.get_total_norm(model.parameters())).item()
            if not math.isfinite(sound):
                raise ValueError(f"iteration {step}: inf or nan: lower learning_rate (and Muon's)")
        line = f"{clear}iteration {step}/{last}: {time.time() - started:.2f} s, loss {loss:.4f}"
        if clear and time.time() - shown > 0.2:
            speed = (step - shown_step) * tokens / (time.time() - shown)
            print(f"{line}, {speed:,.0f} tokens/s, {speed * model.flops_per_token() / 1e9:,.0f} "
                  f"GFLOP/s, {(last - step) * tokens / speed:.0f} s left", end="", flush=True)
            shown, shown_step = time.time(), step
        eval_due = len(data["val"]) > 1 and due(eval_interval)
        if eval_due or due(log_interval):
            row = [step, step * tokens / tokens_per_epoch, step * tokens, time.time() - started,
                   learning_rate * lr_factor(step - 1, last), loss]
            row += losses_on("val") if eval_due else ("", "", "")
            line += f", {skipped} steps skipped" if skipped else ""
            line += f", val loss {row[6]:.4f}, {row[8]:.4f} bits per byte" if eval_due else ""
            if eval_due and row[6] < best:
                best = row[6]
                save("best.pt")
            print(line, flush=True)
            rows.append([f"{x:.8g}" if isinstance(x, float) else x for x in row])
            if rank == 0:
                write_log(rows)
            if eval_due and sample_interval and step % sample_interval == 0:
                print_samples(model, encoding, data["val"], target_device, 1)
        if stop or due(snapshot_interval):
            save(f"snapshots/snapshot_step_{step}.pt")
            for file in [] if rank else snapshots()[keep_snapshots:]:
                file.unlink()
        if stop and not finished():
            print(f"{clear}stopped after iteration {step}: the same command goes on from here")
            return 128 + max(signals, default=signal.SIGTERM)
    save("final_model.pt")
    if num_return_sequences:
        print_samples(model, encoding, data["val"], target_device, num_return_sequences)
    if len(data["test"]) > 1:
        chosen = out / ("best.pt" if best < math.inf else "final_model.pt")
        dcp.set_model_state_dict(model, read_snapshot(chosen)["model_state_dict"], options=full)
        print(report(f"test with {chosen}", *losses_on("test")))

if __name__ == "__main__":
    raise SystemExit(config.run(main))
