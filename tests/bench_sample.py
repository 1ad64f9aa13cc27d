"""How fast text is generated, beside the tools that people use instead and beside the memory.

    pip install transformers ctranslate2 llama-cpp-python gguf  # what is missing is left out
    python tests/bench_sample.py

About twelve minutes on two CPU cores with all of them. Each new token has to read every weight
once, however many rows the batch has: so no program makes more steps a second than the bandwidth
of the memory allows (the column "floor"). The programs take turns and the best of three rounds
counts, since a busy machine only ever slows a program down. All of them have 124M random weights,
so that no text ends early, decode greedily, and use as many threads as PyTorch does.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT

import config
import prepare
import sample
from model import GPT, GPTConfig, for_inference, get_device

PROMPT, NEW, ROUNDS = 32, 128, 3  # tokens, tokens, rounds
DEVICE, AUTO_DTYPE = get_device()
# What others call the number format: CTranslate2, llama.cpp.
FORMATS = {"float32": ("float32", "F32"), "bfloat16": ("bfloat16", "BF16"),
           "float16": ("float16", "F16"), "int8": ("int8", "Q8_0")}


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
        return ["float32", "bfloat16", "float16"]
    has = torch.cpu.get_capabilities().get
    found = ["float32", "int8"]
    if has("avx512_bf16") or has("amx_bf16"):
        found.append("bfloat16")
    if has("avx512_fp16") or has("amx_fp16"):
        found.append("float16")
    return found


def bandwidth():
    """Return the bytes a second at which weights can be read: of a matrix times a vector, and of a
    sum, the faster."""
    weight, x = torch.ones(16384, 8192, device=DEVICE), torch.ones(8192, device=DEVICE)
    actions = (lambda: weight @ x, lambda: weight.T @ x.repeat(2), weight.sum)
    return weight.nbytes / min(seconds(action) for _ in range(5) for action in actions)


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


# ---- the programs: each returns a function generate(ids (B, T), new) ----------------------------

def from_here(folder, dtype):
    model = GPT.from_pretrained(folder)
    if DEVICE.type != "cpu" or dtype != "float32":  # in float32, as loaded
        model = for_inference(model, DEVICE, dtype if dtype == "int8" else getattr(torch, dtype))
    return partial(model.generate, temperature=0)


def from_here_graphs(folder, dtype):
    if DEVICE.type != "cuda":
        raise ImportError("CUDA graphs need a GPU")
    return partial(from_here(folder, dtype), compile=True)


def from_transformers(folder, dtype):
    import transformers
    if dtype == "int8":
        raise ImportError("transformers itself has no int8 on CPUs")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    model.to(DEVICE)
    model.generation_config.eos_token_id = None  # always all of the new tokens
    model.generation_config.pad_token_id = 0

    def generate(ids, new, **options):
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new,
                       do_sample=False, **options)

    return generate


def from_ctranslate2(folder, dtype, threads=None):
    import ctranslate2
    quantization = FORMATS[dtype][0]
    converted = f"{folder}-{quantization}"
    if not os.path.exists(converted):
        converter = ctranslate2.converters.TransformersConverter(folder)
        converter.convert(converted, quantization=quantization)
    model = ctranslate2.Generator(converted, device=DEVICE.type, compute_type=quantization,
                                  intra_threads=threads or torch.get_num_threads())
    tokens = GPT.from_pretrained(folder).tokenizer["tokens"]
    visible = [token.translate(prepare.TO_VISIBLE) for token in tokens] + [prepare.END_OF_TEXT]

    def generate(ids, new):
        prompts = [[visible[i] for i in row] for row in ids.tolist()]
        model.generate_batch(prompts, max_length=new, min_length=new, sampling_topk=1,
                             include_prompt_in_result=False)

    return generate


def from_llama_cpp(folder, dtype, threads=None):
    import llama_cpp
    path = write_gguf(GPT.from_pretrained(folder), f"{folder}.{dtype}.gguf", FORMATS[dtype][1])
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(
        path.encode(), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = 8 * 1024
    options.n_seq_max = 8
    options.n_threads = options.n_threads_batch = threads or torch.get_num_threads()
    context = llama_cpp.llama_init_from_model(model, options)
    batch = llama_cpp.llama_batch_init(8 * PROMPT, 0, 1)

    def read(ids, position):  # (B, T) -> the likeliest next tokens (B, 1)
        n_rows, n_new = ids.shape
        batch.n_tokens = n_rows * n_new
        for i, token in enumerate(ids.flatten().tolist()):
            batch.token[i] = token
            batch.pos[i] = position + i % n_new
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = i // n_new
            batch.logits[i] = i % n_new == n_new - 1
        assert llama_cpp.llama_decode(context, batch) == 0
        rows = (llama_cpp.llama_get_logits_ith(context, (row + 1) * n_new - 1)
                for row in range(n_rows))
        return np.array([[np.ctypeslib.as_array(row, (50257,)).argmax()] for row in rows])

    def generate(ids, new, silent=silent):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        found = [ids.cpu().numpy()]
        position = 0
        for _ in range(new):
            found.append(read(found[-1], position))
            position += found[-2].shape[1]
        return torch.from_numpy(np.concatenate(found, axis=1))

    return generate


def write_gguf(model, path, number_format):
    """Write the model in llama.cpp's format, without a tokenizer; return the path."""
    import gguf
    if os.path.exists(path):
        return path
    config = model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    names = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd",
             "transformer.h": "blk", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv",
             "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
             "mlp.c_proj": "ffn_down", "transformer.ln_f": "output_norm"}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        kind = gguf.GGMLQuantizationType.F32
        if array.ndim == 2 and name != "position_embd.weight":
            kind = gguf.GGMLQuantizationType[number_format]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


PROGRAMS = {"here": from_here, "here, graphs": from_here_graphs, "transformers": from_transformers,
            "CTranslate2": from_ctranslate2, "llama.cpp": from_llama_cpp}


def available(dtype, folder):
    """Return {name: generate} of the programs that are installed and have that dtype."""
    found = {}
    for name, load in PROGRAMS.items():
        try:
            found[name] = load(folder, dtype)
        except (ImportError, ValueError):  # CTranslate2: this machine has no bfloat16 for it
            continue
    return found


# ---- the tables ---------------------------------------------------------------------------------

def save_gpt2(folder):
    """Write GPT-2 124M with random weights, and a tokenizer of as many tokens."""
    model = GPT(GPTConfig())
    pairs = (chr(left) + chr(right) for left in range(256) for right in range(256))
    tokens = [chr(byte) for byte in range(256)] + [pair for pair, _ in zip(pairs, range(50_000))]
    model.save_pretrained(folder, {"name": "bpe", "tokens": tokens})
    return model.num_params() - model.transformer.wpe.weight.numel()


def bench_gpt2(bytes_per_second, folder):
    """GPT-2 with 124M random weights, greedy."""
    n_read = save_gpt2(folder)
    print(f"\nGPT-2 124M, prompt of {PROMPT} tokens, {NEW} new, greedy: tokens/s, best of {ROUNDS}")
    print(f"{'dtype':10}{'batch':>6}" + "".join(f"{name:>14}" for name in PROGRAMS)
          + f"{'here / best':>13}{'floor':>9}{'of floor':>10}")
    for dtype in dtypes():
        programs = available(dtype, folder)
        for batch_size in (1, 8) if DEVICE.type == "cpu" else (1, 8, 64):
            speeds = dict(zip(programs, tokens_per_second([*programs.values()], batch_size, 50257)))
            itemsize = 1 if dtype == "int8" else getattr(torch, dtype).itemsize
            floor = batch_size * bytes_per_second / (n_read * itemsize)
            here = max(speed for name, speed in speeds.items() if name.startswith("here"))
            others = [speed for name, speed in speeds.items() if not name.startswith("here")]
            ratio = f"{here / max(others):.2f}" if others else "-"
            cells = [f"{speeds[name]:.1f}" if name in speeds else "-" for name in PROGRAMS]
            mark = "*" if dtype == str(AUTO_DTYPE).removeprefix("torch.") else ""
            print(f"{dtype + mark:10}{batch_size:6}" + "".join(f"{cell:>14}" for cell in cells)
                  + f"{ratio:>13}{floor:9.1f}{here / floor:10.0%}", flush=True)
    print("* is what dtype='auto' takes; -: not installed, or without that dtype")


def bench_mistakes(folder):
    """Common mistakes, in float32 with 8 rows, beside the table above."""
    print("\nthe same in float32 with 8 rows, called in ways that look harmless: tokens/s")
    training = GPT.from_pretrained(folder).to(DEVICE).train()
    good = GPT.from_pretrained(folder).to(DEVICE)

    def one_at_a_time(ids, new):
        for _ in range(new):
            ids = good.generate(ids, 1, temperature=0)

    rows = {"here, in training mode": partial(training.generate, temperature=0),
            "here, generate called for one token at a time": one_at_a_time}
    others = {
        "transformers, without its cache":
            lambda: partial(from_transformers(folder, "float32"), use_cache=False),
        "CTranslate2, twice as many threads as cores":
            lambda: from_ctranslate2(folder, "float32", 2 * torch.get_num_threads()),
        "llama.cpp, half as many threads as cores, its Python package's default":
            lambda: from_llama_cpp(folder, "float32", max(1, torch.get_num_threads() // 2))}
    for name, load in others.items():
        try:
            rows[name] = load()
        except ImportError:
            continue
    for name, generate in rows.items():
        speed, = tokens_per_second([generate], 8, 50257, new=32)
        print(f"{name:75}{speed:8.1f}", flush=True)


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
    print(f"{DEVICE.type}, {torch.get_num_threads()} threads, torch {torch.__version__}, memory "
          f"{speed / 1e9:.1f} GB/s")
    bench_small_model()
    bench_command()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(temporary, "gpt2-124m"))
        bench_gpt2(speed, folder)
        bench_mistakes(folder)


if __name__ == "__main__":
    main()
