"""How fast train.py's iteration is here, each time beside something in the same run.

    python tests/bench_train.py            # the tables for this machine, CPU or GPU
    python tests/bench_train.py --quick    # the small model only

The ceiling is the rate of a large matrix product on this machine, measured first. Rows are measured
in processes of their own, so that each row's peak memory is its own.

Measured at commit 4c3f6af on two cores of an AMD EPYC (Zen 4, AVX512-BF16), whose speed varies by
up to 25 % between runs; the ceiling was 400 GFLOP/s in bfloat16, 189 in float32:

    the quick start's model, 32 x 64 tokens                     ms    of the ceiling
    AdamW, bfloat16                                            125    54 %
    Muon, bfloat16 (the recipe)                                152    44 %
    the same, dropout 0.1                                      156    44 %
    the same, F.cross_entropy of all logits                    152    44 %
    Muon, float32                                              246    60 %

    124M, AdamW, bfloat16            tokens/s    peak memory    with F.cross_entropy of all logits
    4 x 32                                253         2.8 GB    279 tokens/s, 2.7 GB
    4 x 256                               371         2.9 GB    403 tokens/s, 3.3 GB
    8 x 512                               359         4.1 GB    273 tokens/s, 8.1 GB
    8 x 512, activation checkpointing     302         3.0 GB

How config/shakespeare.py was chosen: Tiny Shakespeare (--test_fraction=0), validation bits per
byte after 650 iterations in float32 without dropout, one run each; below 0.01 is noise:

    4 layers of 192, block 64, Muon 0.03, AdamW 0.01, weight decay 0.1    2.123
    Muon 0.04                                                             2.107
    AdamW 0.005                                                           2.109
    Muon 0.04, AdamW 0.005 (the recipe's)                                 2.094
    Muon 0.04, AdamW 0.003                                                2.101
    Muon 0.06, AdamW 0.007                                                2.104
    Muon 0.02, AdamW 0.007                                                2.122
    AdamW 0.02                                                            2.122
    batches of 16, 1,100 iterations                                       2.116
    6 heads instead of 4                                                  2.126
    block 128, batches of 16                                              2.143
    weight decay 0.5                                                      2.143
    vocabulary of 4,096                                                   2.160

More iterations need regularization (iterations, dropout, weight decay; bfloat16, one run each):

    1,050, none, 0.1    2.090        940, 0.1, 0.1     2.101
    1,050, none, 0.3    2.083        940, 0.05, 0.1    2.070
    1,050, none, 0.6    2.132        900, 0.05, 0.3    2.104
    800, 0.05, 0.1      2.093        800, 0.05, 0.05   2.101

Tried at the recipe's settings of that time, one seed (none: 2.071): a second moment for each row of
Muon's update (NorMuon) 2.076, residual projections that begin at zero 2.078, weight decay only
where it agrees with the update 2.092. Nothing helps by being added alone.

The length for input.txt (Zen 3, float32, runs side by side on one core each); bits per byte on the
test split, seeds 1, 2, 3:

    394 iterations, 9 epochs                             2.540   2.479           335 s
    270 iterations, 6 epochs                             2.465   2.445   2.458   230 s
    394, the batch grows from 8 to 32 (6 epochs)         2.470                   231 s
    394, batches of 8 for 40 % of the run, then 32       2.479                   283 s

On Tiny Shakespeare (970 iterations, seed 1), which isn't overfitted, the growing batch costs more
than it saves: 2.142 in 0.70 of the time of 2.085.

All so far: Muon with five Newton-Schulz steps, the embeddings not decayed. Then, without dropout,
three steps of Polar Express in their place (0.93 of the time of an iteration) and weight decay for
the embeddings (Zen 3, float32). input.txt, bits per byte on the validation and the test split:

    270 iterations, five Newton-Schulz steps, dropout    2.184   2.463
    230, three Newton-Schulz steps                       2.208   2.478
    230, Polar Express                                   2.171   2.453   (seed 1: 2.178   2.453)
    200, Polar Express                                   2.190   2.446
    230, Polar Express, embeddings decayed by 1 (recipe) 2.168   2.431
    230, Polar Express, by 2                             2.179   2.434

(Without decay and with 0.3, Polar Express was measured before its first step got a margin of 2 %.
On two threads, the recipe has 2.171 and 2.430; test with seeds 1, 2, 3: 2.462, 2.412, 2.447.)

Its steep polynomials let rounding errors grow sooner: the losses of a tiny model on 1 and 2
processes differ by up to 0.06 within 50 iterations, with Newton-Schulz by less than 0.0001. So it
is not the default.

Tiny Shakespeare, validation:

    970, five Newton-Schulz steps, dropout               seed 1: 2.085
    770, five Newton-Schulz steps                        seed 1: 2.093
    770, Polar Express                                   seed 1: 2.086   seed 2: 2.100
    770, Polar Express, Muon's learning rate 0.05                        seed 2: 2.101
    770, Polar Express, embeddings decayed by 0.3                        seed 2: 2.090
    770, by 0.6                                                          seed 2: 2.084
    770, by 1                                                            seed 2: 2.072
    680, by 1                                            seed 1: 2.082   seed 2: 2.092
    680, by 2                                            seed 1: 2.090   seed 2: 2.087

The whole command beside commit 4c3f6af's, alternating (the recipe of each and --max_iters; two Zen
3 cores, a day for each table): the median is lower, in 0.65 and 0.71 of the time.

    seed                            1                  2                  3
    4c3f6af, 970 iterations         2.084, 497 s       2.087, 503 s       2.089, 518 s
    now, 680 iterations             2.082, 326 s       2.092, 340 s       2.077, 325 s

    4c3f6af, 970 iterations         2.084, 501 s       2.087, 472 s       2.089, 488 s
    now, 700 iterations             2.082, 357 s       2.086, 331 s       2.077, 347 s

Without gain, at 700 iterations and five Newton-Schulz steps (seed 1; none: 2.089): weight decay 0.2
for the blocks 2.091, momentum of Muon 0.97 2.096 and 0.9 2.099, dropout 0.02 2.097.
"""

import argparse
import ctypes
import json
import mmap
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import model as model_module  # noqa: E402
import train  # noqa: E402
from model import GPT, SIZES, GPTConfig, get_device  # noqa: E402

SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 192, "block_size": 64, "vocab_size": 2048}


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(function, device, repeats, warmup=2):
    """Return the median seconds of a call."""
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def ceiling(device, dtype):
    """Return the FLOP/s of a large matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    return 2 * n ** 3 / timed(lambda: a @ b, device, 10)


def plain_loss(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight), targets, ignore_index=-1)


def measure(row):
    """Measure one row in this process and print it as JSON."""
    device, dtype = get_device(row.get("device", "auto"), row.get("dtype", "auto"))
    compiled = row.get("compile", device.type == "cuda")
    if sys.platform == "linux":  # as start_processes does
        ctypes.CDLL(None).mallopt(-1, 2 ** 31 - 1)
        ctypes.CDLL(None).mallopt(-4, 0)
    torch.set_float32_matmul_precision("high")
    config = GPTConfig(**row["shape"], dropout=row.get("dropout", 0.0))
    torch.manual_seed(0)
    model = GPT(config).to(device)
    train.optimizer = row["optimizer"]
    train.muon_polynomials = row.get("polynomials", "newton-schulz")
    optimizers = train.make_optimizers(model)
    train.activation_checkpointing = row.get("checkpointing", False)
    forward = train.distributed(model, device)
    forward = torch.compile(forward) if compiled else forward
    if row.get("plain_loss"):
        model_module.linear_cross_entropy = plain_loss
    ids = torch.randint(config.vocab_size, (row["batch"], config.block_size + 1), device=device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def iteration():
        with autocast:
            loss = forward(ids[:, :-1], ids[:, 1:], return_logits=False)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in optimizers:
            with autocast:
                opt.step()
            opt.zero_grad(set_to_none=True)

    rate = ceiling(device, dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(iteration, device, row.get("repeats", 5))
    tokens = row["batch"] * config.block_size
    peak = (torch.cuda.max_memory_allocated() if device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    print(json.dumps({"ms": 1e3 * seconds, "tokens/s": tokens / seconds, "GB": peak / 1e9,
                      "utilization": tokens * model.flops_per_token() / seconds / rate,
                      "floor ms": 1e3 * tokens * model.flops_per_token() / rate,
                      "ceiling": rate / 1e9}))


def table(title, rows):
    print(f"\n{title}\n{'':34}{'ms':>9}{'floor ms':>10}{'tokens/s':>10}{'of ceiling':>12}"
          f"{'peak GB':>9}{'against first':>15}")
    first = None
    for name, row in rows:
        done = subprocess.run([sys.executable, __file__, "--row", json.dumps(row)],
                              capture_output=True, text=True)
        if done.returncode:
            print(f"{name:34}failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        first = first or found["ms"]
        print(f"{name:34}{found['ms']:9.1f}{found['floor ms']:10.1f}{found['tokens/s']:10,.0f}"
              f"{found['utilization']:12.0%}{found['GB']:9.2f}{first / found['ms']:14.2f}x",
              flush=True)
    return found["ms"]


def batches(iteration):
    """Print what a batch costs out of ten billion tokens: a sparse file stands in for them."""
    train.batch_size, train.block_size = 32, SMALL["block_size"]
    with tempfile.TemporaryFile() as file:
        file.truncate(20_000_000_000)
        tokens = np.memmap(file, np.uint16, "r")
        tokens._mmap.madvise(mmap.MADV_RANDOM)  # as Tokens does
        start = time.perf_counter()
        for step in range(200):
            train.get_batch(tokens, step * 32)
        ms = (time.perf_counter() - start) / 200 * 1e3
    print(f"a batch of {tokens.size:,} tokens: {ms:.2f} ms, {ms / iteration:.1%} of the last row")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.row:
        measure(json.loads(arguments.row))
        return
    device, dtype = get_device()
    print(f"{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}: a large "
          f"product reaches {ceiling(device, dtype) / 1e9:,.0f} GFLOP/s in {str(dtype)[6:]}")
    small = {"shape": SMALL, "batch": 32, "repeats": 15, "polynomials": "polar-express",
             "compile": False}  # as train.py decides for a run of this size
    last = table("config/shakespeare.py's model, 32 x 64 tokens", [
        ("AdamW", small | {"optimizer": "adamw"}),
        ("Muon, plain loss", small | {"optimizer": "muon", "plain_loss": True}),
        ("Muon, dropout 0.1", small | {"optimizer": "muon", "dropout": 0.1}),
        ("Muon, Newton-Schulz", small | {"optimizer": "muon", "polynomials": "newton-schulz"}),
        ("Muon, float32", small | {"optimizer": "muon", "dtype": "float32"}),
        ("Muon", small | {"optimizer": "muon"}),
    ])
    batches(last)
    if arguments.quick:
        return
    if device.type == "cuda":
        big = {"shape": SIZES["gpt2"] | {"block_size": 1024, "vocab_size": 50257}, "repeats": 10}
        table("124M, block 1024", [
            ("AdamW, batch 16", big | {"batch": 16, "optimizer": "adamw"}),
            ("AdamW, batch 32", big | {"batch": 32, "optimizer": "adamw"}),
            ("Muon, batch 32", big | {"batch": 32, "optimizer": "muon"}),
            ("AdamW, batch 16, not compiled", big | {"batch": 16, "optimizer": "adamw",
                                                     "compile": False}),
        ])
        return
    for batch, block, repeats in ((4, 32, 7), (4, 256, 3), (8, 512, 2)):
        big = {"shape": SIZES["gpt2"] | {"block_size": block, "vocab_size": 50257}, "batch": batch,
               "optimizer": "adamw", "repeats": repeats}
        table(f"124M, {batch} x {block} tokens", [("plain loss", big | {"plain_loss": True}),
                                                  ("the model's loss", big)]
              + [("plain loss, float32", big | {"plain_loss": True, "dtype": "float32"}),
                 ("the same, checkpointing", big | {"checkpointing": True})] * (block == 512))


if __name__ == "__main__":
    main()
