#!/usr/bin/env bash
# Guess: llama.cpp computes a GPT-2 whose GGUF file is all float32, with a key/value cache in
# float32, as other float32 tools do: log-probabilities within about 1e-5 of the exact ones. (The
# cache is float16 unless one asks otherwise.)
#
# llama.cpp build 11549 (xllamacpp 2026.10.11549), CPU: they are off by a hundred times that. On a
# CPU, GELU of a float32 number is looked up in a table with an entry for each float16: the input
# and the result are rounded to 11 bits. With GELU rounded like this in float64 arithmetic,
# llama.cpp's numbers come out to float32's precision. So a GPT-2 can be compared with another
# tool to about three digits only.
#
# Seen (largest difference of a log-probability, 2 layers of width 64, random weights, median of 20
# texts):
#   float16 cache, GELU exact: 1.8e-03
#   float32 cache, GELU exact: 1.1e-03
#   float32 cache, GELU in half precision: 1.1e-05

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile \
    'xllamacpp==2026.10.11549' 'gguf==0.19.0' 'numpy==2.4.6'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import math

import gguf
import numpy as np
import xllamacpp

VOCABULARY, WIDTH, LAYERS, HEADS, BLOCK = 257, 64, 2, 2, 32
rng = np.random.default_rng(0)


def random(*shape):
    return (0.15 * rng.standard_normal(shape)).astype(np.float32)


weights = {"token_embd.weight": random(VOCABULARY, WIDTH),
           "position_embd.weight": random(BLOCK, WIDTH),
           "output_norm.weight": 1 + random(WIDTH), "output_norm.bias": random(WIDTH)}
for i in range(LAYERS):
    for name, n_out, n_in in (("attn_qkv", 3 * WIDTH, WIDTH), ("attn_output", WIDTH, WIDTH),
                              ("ffn_up", 4 * WIDTH, WIDTH), ("ffn_down", WIDTH, 4 * WIDTH)):
        weights[f"blk.{i}.{name}.weight"] = random(n_out, n_in)
        weights[f"blk.{i}.{name}.bias"] = random(n_out)
    for name in ("attn_norm", "ffn_norm"):
        weights[f"blk.{i}.{name}.weight"] = 1 + random(WIDTH)
        weights[f"blk.{i}.{name}.bias"] = random(WIDTH)

writer = gguf.GGUFWriter("model.gguf", "gpt2")
writer.add_context_length(BLOCK)
writer.add_embedding_length(WIDTH)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(4 * WIDTH)
writer.add_head_count(HEADS)
writer.add_layer_norm_eps(1e-5)
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
hidden = [i for i in range(256) if i == 32 or not chr(i).isprintable()]
names = [chr(256 + hidden.index(i)) if i in hidden else chr(i) for i in range(256)]
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list([*names, "ab"])
writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
writer.add_token_merges(["a b"])
writer.add_bos_token_id(0)
writer.add_eos_token_id(0)
writer.add_add_bos_token(False)
for name, tensor in weights.items():
    writer.add_tensor(name, tensor)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def half_gelu(x):
    rounded = gelu(x.astype(np.float16).astype(np.float64)).astype(np.float16)
    return np.where(x <= -10, 0, np.where(x >= 10, x, rounded))


def reference(ids, gelu):
    """Return the log-probabilities of what follows ids, in float64."""
    def linear(x, name):
        return x @ weights[f"{name}.weight"].astype(np.float64).T + weights[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    n = len(ids)
    x = weights["token_embd.weight"][ids].astype(np.float64) + weights["position_embd.weight"][:n]
    for i in range(LAYERS):
        qkv = np.split(linear(norm(x, f"blk.{i}.attn_norm"), f"blk.{i}.attn_qkv"), 3, axis=-1)
        q, k, v = (part.reshape(n, HEADS, -1).transpose(1, 0, 2) for part in qkv)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(WIDTH // HEADS)
        scores = np.exp(np.where(np.tri(n) > 0, scores, -np.inf))
        y = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        x = x + linear(y.transpose(1, 0, 2).reshape(n, WIDTH), f"blk.{i}.attn_output")
        up = linear(norm(x, f"blk.{i}.ffn_norm"), f"blk.{i}.ffn_up")
        x = x + linear(gelu(up), f"blk.{i}.ffn_down")
    logits = norm(x, "output_norm")[-1] @ weights["token_embd.weight"].T
    return logits - np.log(np.exp(logits).sum())


def llama_cpp(ids, cache):
    params = xllamacpp.CommonParams()
    params.model.path = "model.gguf"
    params.n_ctx = BLOCK
    params.n_parallel = 1
    params.fit_params = False
    params.warmup = False
    params.cache_type_k = params.cache_type_v = cache
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    made = xllamacpp.Server(params).handle_completions(
        {"prompt": ids, "n_predict": 1, "n_probs": VOCABULARY, "temperature": 0.0})
    entries = made["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    found = np.empty(VOCABULARY)
    for entry in entries:
        found[entry["id"]] = entry["logprob"]
    assert len(entries) == VOCABULARY
    return found


differences = {
    "float16 cache, GELU exact": [],
    "float32 cache, GELU exact": [],
    "float32 cache, GELU in half precision": [],
}
while len(differences["float32 cache, GELU exact"]) < 20:
    ids = rng.integers(VOCABULARY - 1, size=24).tolist()
    exact = reference(ids, gelu)
    if not 33 <= exact.argmax() < 127:  # it has to draw a whole character to report anything
        continue
    half = llama_cpp(ids, xllamacpp.ggml_type.GGML_TYPE_F16)
    full = llama_cpp(ids, xllamacpp.ggml_type.GGML_TYPE_F32)
    for values, found in zip(differences.values(), (half - exact, full - exact,
                                                    full - reference(ids, half_gelu))):
        values.append(np.abs(found).max())
for what, values in differences.items():
    print(f"{what}: {np.median(values):.1e}")
_, exact, rounded = map(np.median, differences.values())
assert exact > 3e-4 and rounded < exact / 10
END
