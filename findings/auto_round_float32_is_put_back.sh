#!/usr/bin/env bash
# Guess: auto-round with format="fake" (quantized and turned back into floating-point numbers, to
# measure what a scheme costs) or "llm_compressor", both with W4A16: the folder, loaded by
# transformers, has the rounded weights, for GPT-2 and a Llama, whatever dtype the original has.
#
# auto-round 0.16.1 with transformers 5.24.0, compressed-tensors 0.20.1, torch 2.13.0: not if the
# original is in float32, as GPT-2's is. auto-round turns the model into half precision, quantizes
# it and saves it. Then, since a correction of September 2026, it compares the file with the
# original one: every tensor that has the same name in both, float32 there and half precision here,
# is copied back from the original, so that what ought to stay in float32 does. In these formats the
# rounded weights have the name and the shape of the original ones, so they are replaced, too. With
# "fake" that is so for any model, with "llm_compressor" for GPT-2, whose Conv1D isn't packed but
# saved "dense", beside its scales. What is left is the original: 4 bits, or 2, cost nothing, in
# whatever is measured with it, and the file is as large as before. One line of the log tells that
# tensors were "restored". From an original in bfloat16 everything is right, and so is a format that
# packs.
#
# Seen (small random models; error of the logits against the original's, how many values there are
# among the 128 weights of one group, where 4 bits give at most 16 and 2 bits at most 4, and of the
# file how many tensors are bit by bit the original's):
#
#   gpt2  fake           W4A16 from float32:  error 0.0077, 124 values, 28 of 28 tensors
#   gpt2  fake           W4A16 from bfloat16: error 0.1994, 15 values, 20 of 28 tensors
#   gpt2  llm_compressor W4A16 from float32:  error 0.0000, 128 values, 28 of 28 tensors
#   gpt2  llm_compressor W4A16 from bfloat16: error 0.1994, 15 values, 20 of 28 tensors
#   llama fake           W4A16 from float32:  error 0.0090, 118 values, 21 of 21 tensors
#   llama fake           W4A16 from bfloat16: error 0.2753, 16 values, 7 of 21 tensors
#   gpt2  fake           W2A16 from float32:  error 0.0077, 124 values, 28 of 28 tensors
#   gpt2  fake           W2A16 from bfloat16: error 0.7279, 4 values, 20 of 28 tensors
#
# (The folder's config.json says float16 or bfloat16, so dtype="auto" rounds what is loaded to that;
# hence 124 values and not 128. In float32 the error is 0.)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$work/venv/bin/pip" install --quiet --no-compile \
    'torch==2.13.0' 'transformers==5.24.0' 'auto-round==0.16.1' 'compressed-tensors==0.20.1' \
    'accelerate==1.15.0' 'datasets==5.2.0'

cd "$work"
export HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
"$work/venv/bin/python" - 2>"$work/log" <<'PY' || {
import contextlib
import glob
import os
import sys

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import (AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig,
                          LlamaForCausalLM, PreTrainedTokenizerFast)
from auto_round import AutoRound

words = {f"w{i}": i for i in range(256)}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), unk_token="w0")
ids = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))


def make(kind, dtype):
    """Save a small random model of this kind in this dtype; return its folder and logits."""
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=256, n_positions=64, n_embd=128, n_layer=2, n_head=4,
            initializer_range=0.05, bos_token_id=0, eos_token_id=0))
    else:
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, initializer_range=0.05))
    model = model.to(dtype).eval()
    folder = f"{kind}-{dtype}".replace("torch.", "")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        return folder, model.float()(ids).logits


def check(kind, form, scheme, dtype):
    """Quantize, save and load; return the error, the values in a group and the tensors kept."""
    folder, expected = make(kind, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    out = f"out-{folder}-{form}-{scheme}"
    with contextlib.redirect_stdout(sys.stderr):
        AutoRound(model, tokenizer, scheme=scheme, iters=0, disable_opt_rtn=True,
                  device_map="cpu").quantize_and_save(out, format=form)
        config, = glob.glob(out + "/**/config.json", recursive=True)
        model = AutoModelForCausalLM.from_pretrained(os.path.dirname(config), dtype="auto")
        with torch.no_grad():
            logits = model.eval()(ids).logits.float()
    error = ((logits - expected).norm() / expected.norm()).item()
    weights = dict(model.named_parameters())
    if kind == "gpt2":
        group = weights["transformer.h.0.mlp.c_fc.weight"][:, 0]
    else:
        group = weights["model.layers.0.mlp.up_proj.weight"][0]
    values = len(group.unique())
    before = load_file(f"{folder}/model.safetensors")
    after = load_file(os.path.dirname(config) + "/model.safetensors")
    kept = sum(torch.equal(before[key], after[key].to(dtype)) for key in before)
    name = str(dtype).replace("torch.", "") + ":"
    print(f"{kind:5s} {form:14s} {scheme} from {name:9s} error {error:.4f}, {values} values, "
          f"{kept} of {len(before)} tensors")
    return error, values, kept == len(before)


for kind, form, scheme, most in (("gpt2", "fake", "W4A16", 16),
                                 ("gpt2", "llm_compressor", "W4A16", 16),
                                 ("llama", "fake", "W4A16", 16),
                                 ("gpt2", "fake", "W2A16", 4)):
    error, values, all_kept = check(kind, form, scheme, torch.float32)
    right, few, none_quantized = check(kind, form, scheme, torch.bfloat16)
    assert right > 0.05 and few <= most and not none_quantized
    assert error < 0.02 and values > 100 and all_kept
PY
    cat "$work/log" >&2
    exit 1
}
