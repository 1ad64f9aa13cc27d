"""How train.py's iteration scales here from one process to two, and every size of GPT on paper.

    python tests/bench_scale.py            # about two minutes on two CPU cores
    python tests/bench_scale.py --paper    # a table of memory and days: it is only computed

Each process has one thread (or one GPU) and the same number of sequences, so that two processes
make twice the tokens a second at best. Iterations of one process alone (the other one waits), of
both without synchronizing their gradients and of both with it take turns, so that what else the
machine does slows all three. Synchronizing includes waiting for the other process. FSDP can't do
without it, and is compared with DDP without it.

Measured at commit 4c3f6af on two cores of an AMD EPYC (Zen 4), one thread for each process, in
bfloat16 (Muon's products in float32):

                                        tokens/s of 1      of 2    ratio    synchronizing
    the quick start's model, AdamW, DDP         8,641    15,881     1.84              7 %
    the same, Muon, DDP                         6,201    11,064     1.78              7 %
    the same, AdamW, FSDP                       9,301    14,144     1.52             21 %
    6 layers of 384, AdamW, DDP                 2,023     3,514     1.74             10 %
    the same, Muon, DDP                           636     1,208     1.90              3 %
    the same, AdamW, FSDP                       2,061     2,954     1.43             26 %

What --paper computes. GB are 10^9 bytes; GPT-2's block_size is 1,024, GPT-3's 2,048.
- Parameters: V C + T C + L (12 C^2 + 13 C) + 2 C for V tokens, T positions, L layers of width C.
- DDP, GB on each GPU: 16 bytes a parameter, 4 each for the weight, its gradient and AdamW's two
  moments in float32 (Rajbhandari et al. 2020, "ZeRO", section 3.1, divides its 16 bytes otherwise).
  Muon has one moment for the matrices in the blocks: 12 bytes.
- FSDP on n: 16 bytes a parameter / n, and for a moment one complete block (4 bytes a parameter of
  it; two when the next is prefetched) and the embeddings (Zhao et al. 2023, "PyTorch FSDP").
- Activations, logits and buffers come on top. At the start each process makes the complete model in
  host memory before it keeps its shard: 4 bytes a parameter.
- FLOPs a token: model.flops_per_token(), 6 (parameters - T C) + 12 L C T (Chowdhery et al. 2022,
  "PaLM", appendix B); in all, times the 300 billion tokens of Brown et al. 2020, Table 2.1.
- Days on n: FLOPs / (n * 0.4 * 989e12 * 86,400): an H100 SXM's dense bfloat16 by NVIDIA's data
  sheet, and 40 % utilization is an assumption. Activation checkpointing adds up to a third.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

import train  # noqa: E402
from model import GPT, SIZES, GPTConfig, get_device  # noqa: E402

MODELS = {  # name: (shape, sequences of a process, rounds)
    "config/shakespeare.py's model": (
        dict(n_layer=4, n_head=4, n_embd=192, block_size=64, vocab_size=2048), 32, 9),
    "6 layers of 384": (
        dict(n_layer=6, n_head=6, n_embd=384, block_size=128, vocab_size=2048), 8, 4),
}
TOKENS = 300e9  # Brown et al. 2020, Table 2.1
H100 = 989e12  # FLOP/s of an H100 SXM in dense bfloat16, by NVIDIA's data sheet
UTILIZATION = 0.4  # share of it that the model's own operations get; 0.46 in the PaLM paper


# ---- measured -----------------------------------------------------------------------------------

def measure(row):
    """Measure one row, in each of torchrun's two processes; the first prints it as JSON."""
    device, dtype = get_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    shape, batch, rounds = MODELS[row["model"]]
    ids = torch.randint(shape["vocab_size"], (batch, shape["block_size"] + 1), device=device)
    if sys.platform == "linux":  # as start_processes does
        ctypes.CDLL(None).mallopt(-1, 2 ** 31 - 1)
        ctypes.CDLL(None).mallopt(-4, 0)
    train.optimizer = row["optimizer"]

    def prepared(parallel):
        torch.manual_seed(0)
        train.parallel = parallel
        model = GPT(GPTConfig(**shape))
        return train.distributed(model, device), model, train.make_optimizers(model)

    def iteration(forward, model, optimizers, sync):
        forward.require_backward_grad_sync = sync  # of DDP
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = forward(ids[:, :-1], ids[:, 1:], return_logits=False)[1]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in optimizers:
            opt.step()
            opt.zero_grad(set_to_none=True)
        train.full_tensor(norm).item()  # waits for a GPU
        return time.perf_counter() - start

    ddp = prepared("ddp")
    measured = prepared("fsdp") if row["parallel"] == "fsdp" else ddp
    for trained in (ddp, ddp, measured, measured):  # warm-up
        iteration(*trained, True)
    seconds = {"alone": [], "without": [], "with": []}
    for _ in range(rounds):
        for kind in seconds:
            dist.barrier()
            if kind != "alone" or dist.get_rank() == 0:
                trained, sync = (measured, True) if kind == "with" else (ddp, False)
                seconds[kind].append(iteration(*trained, sync))
    if dist.get_rank() == 0:
        print(json.dumps({kind: statistics.median(times) for kind, times in seconds.items()}))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # FSDP would leave its group to Python's exit, which can abort


def tables():
    if get_device()[0].type == "cuda" and torch.cuda.device_count() < 2:
        raise SystemExit("two processes need two GPUs (CUDA_VISIBLE_DEVICES= measures the CPU)")
    load = f", load {os.getloadavg()[0]:.1f} before it" if hasattr(os, "getloadavg") else ""
    print(f"{get_device()[0].type}, {os.cpu_count()} cores, torch {torch.__version__}{load}")
    for name, (shape, batch, _) in MODELS.items():
        tokens = batch * shape["block_size"]
        print(f"\n{name}, {batch} x {shape['block_size']} tokens in each process\n{'':14}"
              f"{'tokens/s of 1':>15}{'of 2':>9}{'ratio':>8}{'ms alone':>11}{'without sync':>14}"
              f"{'with it':>9}{'synchronizing':>15}")
        for optimizer, parallel in (("adamw", "ddp"), ("muon", "ddp"), ("adamw", "fsdp")):
            row = dict(model=name, optimizer=optimizer, parallel=parallel)
            done = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--standalone",
                 "--nproc_per_node=2", __file__, "--row", json.dumps(row)],
                env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, capture_output=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
            alone, without, sync = json.loads(line).values()
            print(f"{optimizer + ', ' + parallel:14}{tokens / alone:15,.0f}"
                  f"{2 * tokens / sync:9,.0f}{2 * alone / sync:7.2f}x{1e3 * alone:11.1f}"
                  f"{1e3 * without:14.1f}{1e3 * sync:9.1f}{1 - without / sync:15.0%}", flush=True)


# ---- on paper -----------------------------------------------------------------------------------

def paper():
    """Print the table on paper. Activations, the vocabulary's logits and buffers are not in it."""
    def short(number):
        return f"{number:.2g}" if number < 1 else f"{number:,.{int(number < 10)}f}"

    print("| size | parameters | DDP, GB | FSDP on 8 | on 64 | on 1,024 | one block, GB "
          "| FLOPs a token | FLOPs in all | days on 8 | on 64 | on 1,024 |")
    print("|---" + "|---:" * 11 + "|")
    for name, shape in SIZES.items():
        with torch.device("meta"):
            model = GPT(GPTConfig(**shape))
        parameters, flops = model.num_params(), TOKENS * model.flops_per_token()
        block = sum(p.numel() for p in model.transformer.h[0].parameters())
        print(f"| `{name}` | {parameters:,} | " + " | ".join(
            [short(16 * parameters / 1e9 / count) for count in (1, 8, 64, 1024)]
            + [short(4 * block / 1e9), f"{model.flops_per_token():.2e}".replace("e+", "e"),
               f"{flops:.2e}".replace("e+", "e")]
            + [short(flops / (count * UTILIZATION * H100) / 86400) for count in (8, 64, 1024)])
            + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--paper", action="store_true", help="print the table of all sizes")
    arguments = parser.parse_args()
    if arguments.row:
        measure(json.loads(arguments.row))
    elif arguments.paper:
        paper()
    else:
        tables()


if __name__ == "__main__":
    main()
