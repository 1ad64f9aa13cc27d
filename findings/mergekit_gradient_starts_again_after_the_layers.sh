#!/usr/bin/env bash
# Guess: a gradient in mergekit (a list of values for a parameter, as t: [0, 1] for slerp) goes from
# the first value at the first layer to the last value at the last layer. What comes before the
# layers, the embeddings, takes the first value, and what comes after them, the last norm and the
# output matrix, takes the last one.
#
# mergekit 0.1.5, transformers 5.24.0: the last norm and the output matrix take the first value as
# well. With t: [0, 1] the last layer is the second model's, and the norm and the matrix that read
# it are the first's. It's so for all merge methods (linear and slerp here), as whatever stands
# outside the layers is planned with the place 0, GPT-2's ln_f, too. With several slices the
# gradient starts anew in each, and a slice of one layer takes the last value: with only such slices
# all layers are the second model's and all the rest is the first's. A filter with a value of their
# own puts these tensors right. The README says that numeric values in a list are interpolated, and
# nothing about tensors outside the layers; the merge says nothing, either.
#
# Seen (pairs of small models with three layers; how much of each tensor is the second model's):
#   linear, weights [1, 0] and [0, 1]: embed 0.00, layers 0.00 0.50 1.00, norm 0.00, head 0.00
#   slerp, t [0, 1]: embed 0.00, layers 0.00 0.50 1.00, norm 0.00, head 0.00
#   slerp, t [0, 1], a slice per layer: embed 0.00, layers 1.00 1.00 1.00, norm 0.00, head 0.00
#   slerp, t [0, 1], filters: embed 0.00, layers 0.00 0.50 1.00, norm 1.00, head 1.00
#   slerp, t [0, 1], GPT-2: embed 0.00, layers 0.00 0.50 1.00, norm 0.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'safetensors==0.8.0' \
    'mergekit==0.1.5'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

folder = Path.cwd()
for kind, build in (
        ("llama", lambda: LlamaForCausalLM(LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=2, tie_word_embeddings=False))),
        ("gpt2", lambda: GPT2LMHeadModel(GPT2Config(
            vocab_size=64, n_positions=16, n_embd=32, n_layer=3, n_head=2,
            bos_token_id=0, eos_token_id=0)))):
    for number in (1, 2):
        torch.manual_seed(number)
        model = build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder / f"{kind}{number}")


def amounts(name, kind, config, expected):
    """Merge; print how much of the embedding, layers, norm and output matrix is the second's."""
    first, second = (f"{folder}/{kind}{number}" for number in (1, 2))
    config = config.replace("FIRST", first).replace("SECOND", second)
    config = yaml.safe_load(f"dtype: float32\n{config}\n")
    run_merge(MergeConfiguration.model_validate(config), "merged", MergeOptions())
    merged, first, second = (load_file(Path(path, "model.safetensors"))
                             for path in ("merged", first, second))

    def amount(tensor):
        difference = (second[tensor] - first[tensor]).flatten()
        return torch.dot((merged[tensor] - first[tensor]).flatten(), difference) / (
            difference.square().sum())

    tensors = {
        "llama": ["model.embed_tokens.weight",
                  *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)),
                  "model.norm.weight", "lm_head.weight"],
        "gpt2": ["transformer.wte.weight",
                 *(f"transformer.h.{i}.mlp.c_fc.weight" for i in range(3)),
                 "transformer.ln_f.weight"]}[kind]
    got = [amount(tensor).item() for tensor in tensors]
    shown = [f"{abs(value):.2f}" for value in got]
    print(f"= {name}: embed {shown[0]}, layers {' '.join(shown[1:4])}, norm {shown[4]}"
          + (f", head {shown[5]}" if kind == "llama" else ""))
    assert all(abs(a - b) < 0.02 for a, b in zip(got, expected, strict=True))


slerp = """merge_method: slerp
base_model: FIRST
parameters: {t: [0, 1]}
"""
whole = "models: [{model: FIRST}, {model: SECOND}]"
single = "slices: [" + ", ".join(
    f"{{sources: [{{model: FIRST, layer_range: [{i}, {i + 1}]}}, "
    f"{{model: SECOND, layer_range: [{i}, {i + 1}]}}]}}" for i in range(3)) + "]"
filters = "{t: [" + ", ".join(f"{{filter: {name}, value: 1}}" for name in (
    "lm_head", "model.norm")) + ", {value: [0, 1]}]}"
amounts("linear, weights [1, 0] and [0, 1]", "llama", """merge_method: linear
models:
  - {model: FIRST, parameters: {weight: [1, 0]}}
  - {model: SECOND, parameters: {weight: [0, 1]}}""", [0, 0, 0.5, 1, 0, 0])
amounts("slerp, t [0, 1]", "llama", slerp + whole, [0, 0, 0.5, 1, 0, 0])
amounts("slerp, t [0, 1], a slice per layer", "llama", slerp + single, [0, 1, 1, 1, 0, 0])
amounts("slerp, t [0, 1], filters", "llama",
        slerp.replace("{t: [0, 1]}", filters) + whole, [0, 0, 0.5, 1, 1, 1])
amounts("slerp, t [0, 1], GPT-2", "gpt2", slerp + whole, [0, 0, 0.5, 1, 0])
END
sed -n 's/^= //p' "$folder/out"
