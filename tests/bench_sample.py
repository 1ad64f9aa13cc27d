"""How fast text is generated, beside Hugging Face transformers and beside the memory's bandwidth.

    python tests/bench_sample.py

About four minutes on two CPU cores. Where transformers 5.x is not installed, its columns are
skipped. Each new token has to read every weight once, however many rows the batch has: so no
program makes more steps a second than the bandwidth of the memory allows (the column "floor").
Rounds of the two programs alternate and the best of each counts, since a busy machine only ever
slows a program down.
"""

import subprocess
import sys
import time

import torch
from conftest import ROOT

import config
import prepare
import sample
from model import GPT, GPTConfig, for_inference, get_device

try:
    import transformers
    transformers.utils.logging.set_verbosity_error()
except ImportError:
    transformers = None

PROMPT, NEW, ROUNDS = 32, 128, 3  # tokens, tokens, rounds
DEVICE, AUTO_DTYPE = get_device()


def seconds(action, *arguments):
    """Return how long action(*arguments) takes."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action(*arguments)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def dtypes():
    """Return the dtypes that can pay here: float32, and what the machine multiplies in hardware."""
    if DEVICE.type != "cpu":
        return [torch.float32, torch.bfloat16, torch.float16]
    has = torch.cpu.get_capabilities().get
    return ([torch.float32, "int8"] + [torch.bfloat16] * bool(has("avx512_bf16") or has("amx_bf16"))
            + [torch.float16] * bool(has("avx512_fp16") or has("amx_fp16")))


def bandwidth():
    """Return the bytes a second at which weights can be read: of a matrix times a vector, and of a
    sum, the faster."""
    weight, x = torch.ones(16384, 8192, device=DEVICE), torch.ones(8192, device=DEVICE)
    return weight.nbytes / min(seconds(action) for _ in range(5) for action in
                               (lambda: weight @ x, lambda: weight.T @ x.repeat(2), weight.sum))


def tokens_per_second(generators, batch_size, vocab_size, new=NEW):
    """Return the best speed of each generator, a function of ids and the number of new tokens."""
    ids = torch.randint(vocab_size, (batch_size, PROMPT), device=DEVICE)
    best = [0.0] * len(generators)
    for generate in generators:
        generate(ids, 8)  # warm-up
    for _ in range(ROUNDS):
        for i, generate in enumerate(generators):
            speed = batch_size * new / seconds(generate, ids, new)
            best[i] = max(best[i], speed)
    return best


def bench_gpt2(bytes_per_second):
    """GPT-2 with 124M random weights, greedy."""
    ours = GPT(GPTConfig())
    theirs = None
    if transformers:
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config()).to(DEVICE).eval()
        theirs.generation_config.eos_token_id = None  # always all of the new tokens
        theirs.generation_config.pad_token_id = 0
    read = ours.num_params() - ours.transformer.wpe.weight.numel()
    print(f"\nGPT-2 124M, prompt of {PROMPT} tokens, {NEW} new, greedy: tokens/s, best of {ROUNDS}")
    print(f"{'dtype':10}{'batch':>6}{'ours':>9}{'transformers':>14}{'ratio':>7}{'floor':>9}"
          f"{'of floor':>10}")
    for dtype in dtypes():
        ours = for_inference(GPT(GPTConfig()), DEVICE, dtype)
        generators = [lambda ids, new, ours=ours: ours.generate(ids, new, temperature=0)]
        if theirs:
            theirs.to(torch.float32 if dtype == "int8" else dtype)
            generators.append(
                lambda ids, new: theirs.generate(ids, max_new_tokens=new, do_sample=False))
        for batch_size in (1, 8):
            speeds = tokens_per_second(generators, batch_size, 50257)
            itemsize = 1 if dtype == "int8" else dtype.itemsize
            floor = batch_size * bytes_per_second / (read * itemsize)
            beside = (f"{speeds[1]:14.1f}{speeds[0] / speeds[1]:7.2f}" if theirs
                      else f"{'skipped':>14}{'':7}")
            name = str(dtype).removeprefix("torch.") + "*" * (dtype == AUTO_DTYPE)
            print(f"{name:10}{batch_size:6}{speeds[0]:9.1f}{beside}{floor:9.1f}"
                  f"{speeds[0] / floor:10.0%}", flush=True)
    print("* is what dtype='auto' takes" + ("" if theirs else "; transformers is not installed"))


def bench_small_model():
    """The shape of config/shakespeare.py, drawn from as sample.py does by default, and greedy."""
    settings = config.override(str(ROOT / "train.py"), [str(ROOT / "config" / "shakespeare.py")])
    shape = {name: settings[name] for name in ("n_layer", "n_head", "n_embd", "block_size")}
    model = GPT(GPTConfig(vocab_size=prepare.vocab_size, **shape))
    model = for_inference(model, DEVICE, torch.float32)

    def greedy(ids, new):
        model.generate(ids, new, temperature=0)

    def drawn(ids, new):
        model.generate(ids, new, temperature=sample.temperature, top_k=sample.top_k)

    speeds = tokens_per_second((greedy, drawn), 1, prepare.vocab_size, new=1000)
    print(f"\nconfig/shakespeare.py's model, batch 1, 1000 new tokens: {speeds[0]:,.0f} tokens/s "
          f"greedy, {speeds[1]:,.0f} drawn as sample.py does")


def bench_command():
    """The whole command, from the shell to the last character, beside importing torch alone."""
    if not any((ROOT / "out").glob("*.pt")):
        print("\nout/ holds no snapshot, so that the whole command is skipped: python train.py")
        return
    commands = ([sys.executable, "-c", "import torch"],
                [sys.executable, "sample.py", "--max_new_tokens=200"])

    def run(command):
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    best = [min(seconds(run, command) for _ in range(ROUNDS)) for command in commands]
    print(f"\npython sample.py --max_new_tokens=200: {best[1]:.2f} s in all; importing torch is "
          f"{best[0]:.2f} s of it")


def main():
    torch.manual_seed(0)
    speed = bandwidth()
    print(f"{DEVICE.type}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"transformers {transformers.__version__ if transformers else 'not installed'}, "
          f"memory {speed / 1e9:.1f} GB/s")
    bench_small_model()
    bench_command()
    bench_gpt2(speed)


if __name__ == "__main__":
    main()
