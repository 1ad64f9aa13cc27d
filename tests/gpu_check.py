"""Everything that needs a GPU, in one command: does it run, is it right, how fast is it?

    python tests/gpu_check.py            # one GPU, no network, under nine minutes
    python tests/gpu_check.py --small    # tiny models on any device, to check this script itself
    python tests/gpu_check.py --tinyshakespeare=FILE  # also trains on that text, a minute more

Prints a Markdown table with the card's name, for README, and exits with 1 if anything failed.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_train import ceiling  # noqa: E402

import prepare  # noqa: E402
from model import (  # noqa: E402
    GPT,
    Cache,
    CUDAGraphCache,
    GPTConfig,
    for_inference,
    get_device,
    read_snapshot,
)

rows = []  # (what, result, whether it is right)


def run(*arguments, torchrun=0, stop_after=None):
    """Run a script of the project; return (seconds, GB of host memory). Raises RuntimeError if it
    fails, or takes longer than 3 minutes."""
    command = [sys.executable, *map(str, arguments)]
    if torchrun:
        # (Without the address, torchrun waits forever where the host's name can't be resolved.)
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost",
                        f"--nproc_per_node={torchrun}"]
    start = time.time()
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    limit = threading.Timer(180, process.terminate)
    limit.start()
    output = []
    for line in process.stdout:
        output.append(line)
        if stop_after and stop_after in line:
            process.send_signal(signal.SIGTERM)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    limit.cancel()
    output = "".join(output)
    if process.returncode != (0 if stop_after is None else 143):
        raise RuntimeError(f"exit code {process.returncode}: {output[-600:]}")
    return time.time() - start, usage.ru_maxrss / 1e6


def check(what):
    """Decorate a function that returns a result to print; what it raises is a failure."""
    def call(function):
        start = time.time()
        try:
            rows.append((what, function(), True))
        except Exception as error:
            rows.append((what, "failed: " + " ".join(str(error).split())[-300:], False))
        print(f"{what}: {rows[-1][1]}  ({time.time() - start:.0f} s)", file=sys.stderr, flush=True)
    return call


def random_tokens(folder, vocab_size, n_tokens):
    """Write a data folder of random tokens and a byte-pair tokenizer of that size."""
    folder.mkdir(parents=True)
    pairs = [chr(i // 256) + chr(i % 256) for i in range(vocab_size - 257)]
    tokenizer = {"name": "bpe", "tokens": [chr(i) for i in range(256)] + pairs}
    splits = {}
    for split in prepare.SPLITS:
        n = n_tokens if split == "train" else n_tokens // 20
        path = folder / f"{split}.bin"
        np.random.default_rng(0).integers(vocab_size, size=n).astype("<u2").tofile(path)
        splits[split] = dict(tokens=n, bytes=4 * n, fingerprint=prepare.fingerprint(path))
    meta = dict(vocab_size=vocab_size, dtype="uint16", splits=splits, tokenizer=tokenizer)
    (folder / "meta.json").write_text(json.dumps(prepare.sealed(meta)))


def log(folder):
    lines = (folder / "log.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, line.split(","))) for line in lines[1:]]


def same_weights(a, b):
    a, b = (read_snapshot(path)["model_state_dict"] for path in (a, b))
    return all(torch.equal(a[name], b[name]) for name in a)


def milliseconds(action, repeats=10):
    for _ in range(3):
        action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.time()
    for _ in range(repeats):
        action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.time() - start) / repeats


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--tinyshakespeare", metavar="FILE")
    arguments = parser.parse_args()
    small = arguments.small
    device, dtype = get_device()
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    work = Path(tempfile.mkdtemp())
    shape = dict(n_layer=2, n_head=2, n_embd=64, block_size=64, vocab_size=600)
    if not small:
        shape = dict(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
    tiny = ["--n_layer=2", "--n_embd=160", "--max_iters=12", "--eval_interval=6",
            "--snapshot_interval=6", "--num_return_sequences=0", "--sample_interval=0"]
    run("prepare.py", f"--out_dir={work}/data")
    random_tokens(work / "random", shape["vocab_size"], 50_000 if small else 20_000_000)
    data = f"--data_dir={work}/data"

    # Does it run?
    for name, options in (("DDP, compiled", ["--compile=True"]), ("DDP", ["--compile=False"]),
                          ("FSDP, compiled", ["--compile=True", "--parallel=fsdp"]),
                          ("FSDP, activation checkpointing",
                           ["--compile=False", "--parallel=fsdp", "--activation_checkpointing"]),
                          ("float16", ["--dtype=float16", "--compile=False"])):
        @check(f"{name}, one process of torchrun")
        def _(name=name, options=options):
            out = work / f"run {name}"
            run("train.py", "config/shakespeare.py", data, f"--out_dir={out}", *tiny, *options,
                torchrun=1)
            return f"runs, test loss {json.loads((out / 'test.json').read_text())['loss']:.2f}"

    @check("the tests that need a GPU")
    def _():
        run("-m", "pytest", "-p", "no:cacheprovider", "tests/test_generation.py", "-k", "cuda")
        return "pass" if device.type == "cuda" else "skipped"

    # Is it right?
    @check("stopped and resumed, uncompiled: same weights")
    def _():
        options = ["config/shakespeare.py", data, "--compile=False", *tiny, "--max_iters=40",
                   "--log_interval=1"]
        if not small:  # in long sequences, attention's backward may add in any order
            options.append("--block_size=512")
        run("train.py", *options, f"--out_dir={work}/straight")
        run("train.py", *options, f"--out_dir={work}/stopped", stop_after="iteration 20/40")
        run("train.py", *options, f"--out_dir={work}/stopped")
        assert same_weights(work / "straight/final_model.pt", work / "stopped/final_model.pt")
        return "bit-identical"

    @check("two compiled runs of one command: largest difference of a weight")
    def _():
        options = ["config/shakespeare.py", data, "--compile=True", *tiny, "--max_iters=40"]
        weights = []
        for name in ("first", "second"):
            run("train.py", *options, f"--out_dir={work}/{name}")
            weights.append(read_snapshot(work / name / "final_model.pt")["model_state_dict"])
        return f"{max((a - b).abs().max() for a, b in zip(*map(dict.values, weights))):.1g}"

    # How fast is it?
    @check("quick start, whole process")
    def _():
        seconds, _ = run("train.py", "config/shakespeare.py", data, f"--out_dir={work}/quick",
                         *(tiny if small else []))
        test = json.loads((work / "quick/test.json").read_text())
        return f"{seconds:.0f} s, test {test['bits_per_byte']:.2f} bits per byte"

    @check("its iteration, uncompiled")
    def _():
        rows = [(int(row["step"]), float(row["seconds"])) for row in log(work / "quick")]
        each = [1e3 * (b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(rows, rows[1:])]
        return f"{statistics.median(each):.1f} ms"  # (in some there is an evaluation)

    if arguments.tinyshakespeare:
        @check("Tiny Shakespeare, --max_iters=970, whole process")
        def _():
            run("prepare.py", f"--input={arguments.tinyshakespeare}", f"--out_dir={work}/tiny")
            seconds, _ = run("train.py", "config/shakespeare.py", f"--data_dir={work}/tiny",
                             f"--out_dir={work}/tiny", "--max_iters=970", *(tiny if small else []))
            found = [float(row["val_bits_per_byte"]) for row in log(work / "tiny")
                     if row["val_bits_per_byte"]]
            return (f"{seconds:.0f} s, best val {min(found):.3f} bits per byte, "
                    f"{found[-1]:.3f} at the end")

    @check("sample.py with its model, whole process")
    def _():
        return f"{run('sample.py', f'--out_dir={work}/quick')[0]:.1f} s"

    batch = 2 if small else 32

    @check(f"124M, {batch} x {shape['block_size']}, {str(dtype)[6:]}, forward and backward")
    def _():
        model = GPT(GPTConfig(**shape)).to(device)
        ids = torch.randint(shape["vocab_size"], (batch, shape["block_size"] + 1), device=device)
        forward = model if small else torch.compile(model)

        def step():
            with torch.autocast(device.type, dtype, dtype != torch.float32):
                forward(ids[:, :-1], ids[:, 1:], return_logits=False)[1].backward()
            model.zero_grad()
        return f"{milliseconds(step):.1f} ms"

    @check("124M, train.py config/gpt2.py, 524,288 tokens an iteration")
    def _():
        out = work / "large"
        options = ["config/gpt2.py", f"--data_dir={work}/random", f"--out_dir={out}",
                   "--max_iters=10", "--log_interval=1", "--eval_iters=4",
                   "--num_return_sequences=0", "--compile=True", "--batch_size=32",
                   "--gradient_accumulation_steps=16"]
        if small:
            options += ["--size=", "--n_layer=2", "--n_head=2", "--n_embd=64", "--block_size=64",
                        "--batch_size=2", "--gradient_accumulation_steps=2", "--compile=False"]
        if device.type == "cuda":
            torch.cuda.empty_cache()  # of the row above
        seconds, memory = run("train.py", *options)
        times = [float(row["seconds"]) for row in log(out)]
        iteration = (times[-2] - times[1]) / (len(times) - 3)
        tokens = int(log(out)[0]["tokens"]) / iteration
        with torch.device("meta"):
            flops = GPT(GPTConfig(**shape)).flops_per_token() * tokens
        return (f"{iteration:.3f} s an iteration = {tokens:,.0f} tokens/s = "
                f"{flops / ceiling(device, dtype):.0%} of a large product's FLOP/s; the first "
                f"after {times[0]:.0f} s; whole process {seconds:.0f} s; {memory:.1f} GB of host "
                "memory")

    model = for_inference(GPT(GPTConfig(**shape)), device, dtype)

    @check("generation with CUDA graphs: logits beside the plain cache's")
    @torch.inference_mode()
    def _():
        # The same tokens for both, over every window and the refill of a full cache.
        n_tokens = shape["block_size"] + 40
        ids = torch.randint(shape["vocab_size"], (2, n_tokens), device=device)
        plain, graphs = Cache(model, 2), CUDAGraphCache(model, 2)
        worst = max((plain.next_logits(ids[:, :T]) - graphs.next_logits(ids[:, :T])).abs().max()
                    for T in range(32, n_tokens)).item()
        assert worst < 0.1, f"the logits differ by {worst}"
        return f"differ by at most {worst:.1g}"

    for compile in (False, True):
        @check("generation, 124M" + (", --compile" if compile else ""))
        def _(compile=compile):
            speeds = []
            for n_rows in (1, 8, 64):
                ids = torch.randint(shape["vocab_size"], (n_rows, 32), device=device)
                new = 16 if small else 128
                time_of = milliseconds(lambda ids=ids, new=new: model.generate(
                    ids, new, temperature=0, compile=compile), repeats=1 if small else 3)
                speeds.append(f"{1e3 * n_rows * new / time_of:,.0f}")
            return " / ".join(speeds) + " tokens/s at batch 1 / 8 / 64"

    print(f"\n| {card}, torch {torch.__version__} | result |\n|---|---|")
    for what, result, _ in rows:
        print(f"| {what} | {re.sub('[|]', '/', str(result))} |")
    shutil.rmtree(work)
    return 0 if all(ok for _, _, ok in rows) else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    raise SystemExit(main())
