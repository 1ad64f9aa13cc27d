"""Everything that needs a GPU, in one command: does it run, is it right, how fast is it?

    python tests/gpu_check.py            # one GPU, no network, under nine minutes
    python tests/gpu_check.py --small    # tiny models on any device, to check this script itself

Prints a Markdown table with the card's name, for README, and exits with 1 if anything failed.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import prepare  # noqa: E402
from model import GPT, GPTConfig, for_inference, get_device, read_snapshot  # noqa: E402

rows = []  # (what, result, whether it is right)


def run(*arguments, torchrun=0, stop_after=None):
    """Run a script of the project; return (seconds, output). Raises RuntimeError if it fails."""
    command = [sys.executable, *map(str, arguments)]
    if torchrun:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone",
                        f"--nproc_per_node={torchrun}"]
    start = time.time()
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    output = []
    for line in process.stdout:
        output.append(line)
        if stop_after and stop_after in line:
            process.send_signal(signal.SIGTERM)
    process.wait()
    output = "".join(output)
    if process.returncode not in ((0,) if stop_after is None else (143,)):
        raise RuntimeError(f"exit code {process.returncode}: {output[-600:]}")
    return time.time() - start, output


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
    small = parser.parse_args().small
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
                          ("FSDP", ["--compile=False", "--parallel=fsdp"]),
                          ("float16", ["--dtype=float16", "--compile=False"])):
        @check(f"{name}, one process of torchrun")
        def _(name=name, options=options):
            out = work / f"run {name}"
            run("train.py", "config/shakespeare.py", data, f"--out_dir={out}", *tiny, *options,
                torchrun=1)
            return f"runs, test loss {json.loads((out / 'test.json').read_text())['loss']:.2f}"

    # Is it right?
    @check("stopped and resumed, uncompiled: same weights")
    def _():
        options = ["config/shakespeare.py", data, "--compile=False", *tiny, "--max_iters=40",
                   "--log_interval=1"]
        run("train.py", *options, f"--out_dir={work}/straight")
        run("train.py", *options, f"--out_dir={work}/stopped", stop_after="iteration 20/40")
        run("train.py", *options, f"--out_dir={work}/stopped")
        assert same_weights(work / "straight/final_model.pt", work / "stopped/final_model.pt")
        return "bit-identical"

    # How fast is it?
    @check("quick start, whole process")
    def _():
        seconds, _ = run("train.py", "config/shakespeare.py", data, f"--out_dir={work}/quick",
                         *(tiny if small else []))
        test = json.loads((work / "quick/test.json").read_text())
        return f"{seconds:.0f} s, test {test['bits_per_byte']:.2f} bits per byte"

    @check("its iteration, uncompiled")
    def _():
        last, first = log(work / "quick")[-1], log(work / "quick")[0]
        steps = int(last["step"]) - int(first["step"])
        return f"{1e3 * (float(last['seconds']) - float(first['seconds'])) / max(1, steps):.1f} ms"

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
        seconds, _ = run("train.py", *options)
        times = [float(row["seconds"]) for row in log(out)]
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        iteration = (times[-2] - times[1]) / (len(times) - 3)
        tokens = int(log(out)[0]["tokens"]) / iteration
        return (f"{iteration:.3f} s an iteration = {tokens:,.0f} tokens/s; the first after "
                f"{times[0]:.0f} s; whole process {seconds:.0f} s; {memory:.1f} GB of host memory")

    model = for_inference(GPT(GPTConfig(**shape)), device, dtype)
    for compile in (False, True):
        @check("generation, 124M" + (", --compile" if compile else ""))
        def _(compile=compile):
            speeds = []
            for n_rows in (1, 8, 64):
                ids = torch.randint(shape["vocab_size"], (n_rows, 32), device=device)
                new = 16 if small else 128
                expected = model.generate(ids, new, temperature=0)
                found = model.generate(ids, new, temperature=0, compile=compile)
                agreement = (found == expected).float().mean().item()
                assert agreement > 0.5, f"only {agreement:.0%} of the greedy tokens agree"
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
