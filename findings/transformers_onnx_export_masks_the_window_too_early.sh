#!/usr/bin/env bash
# Guess: transformers' OnnxExporter().export_for_generation, given a batch with left padding, writes
# a prefill and a decode step that give the model's logits for any batch, with padding, too: the
# step takes attention_mask (one number for each token so far), position_ids and the cache.
#
# transformers 5.24.0, torch 2.13.0, onnx 1.23.2, onnxruntime 1.32.0: not for models with a sliding
# window (Gemma 2 and 3, gpt-oss, Mistral's first), once a text is longer than the window. Their
# cache then only has the last tokens, so that the mask of a step must be its last numbers; the
# exported step takes the first ones, since the offset isn't in the graph. So if there are 3 tokens
# of padding at the beginning of the batch, long gone from the window, the first 3 tokens in the
# window are hidden instead, in each step. Texts without padding are right, whatever else is in the
# batch; so is a model without a window, and all of it without export. It is like a shorter window:
# the text that comes out is worse, not nonsense.
#
# Seen (a window of 8, prompts of 20 tokens, one step; for rows with padding of 0 to 5 the largest
# difference of a logit from the model's without a cache; "from the rest of the window" compares the
# exported step with the model's own, whose cache has lost as many of its first tokens):
#   Llama: 0: 0.000, 1: 0.000, 3: 0.000, 5: 0.000
#   Llama, exported: 0: 0.000, 1: 0.000, 3: 0.000, 5: 0.000
#   Mistral: 0: 0.000, 1: 0.000, 3: 0.000, 5: 0.000
#   Mistral, exported: 0: 0.000, 1: 1.559, 3: 3.802, 5: 3.649
#   exported, from the rest of the window: 0: 0.000, 1: 0.000, 3: 0.000, 5: 0.000
#   Gemma 3: 0: 0.000, 1: 0.000, 3: 0.000, 5: 0.000
#   Gemma 3, exported: 0: 0.000, 1: 2.171, 3: 1.543, 5: 1.047

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'onnx==1.23.2' 'onnxscript==0.7.2' 'onnxruntime==1.32.0'
cd "$folder"

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" >"$folder/out" <<'END' || { cat "$folder/log"; exit 1; }
import copy

import torch
from transformers import (Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM)
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

WINDOW, PROMPT = 8, 20
PADDINGS = [0, 1, 3, 5]  # of the rows of a batch
SMALL = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def batch(paddings, length):
    mask = torch.ones(len(paddings), length, dtype=torch.long)
    for row, padding in zip(mask, paddings):
        row[:padding] = 0
    ids = torch.randint(3, 100, mask.shape) * mask
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def compare(name, model, has_window):
    model = model.eval()
    ids, mask, _ = batch([0, 2], 12)
    model.generation_config.eos_token_id = None
    exported = OnnxExporter().export_for_generation(
        model, {"input_ids": ids, "attention_mask": mask}, OnnxConfig(dynamic=True))
    decode = exported.runners["decode"]
    assert {"input_ids", "attention_mask", "position_ids"} < set(decode.metadata.kwargs)

    ids, mask, positions = batch(PADDINGS, PROMPT + 1)
    wanted = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
    cache = model(ids[:, :-1], attention_mask=mask[:, :-1], position_ids=positions[:, :-1],
                  use_cache=True).past_key_values
    step = {"input_ids": ids[:, -1:], "attention_mask": mask, "position_ids": positions[:, -1:]}
    plain = model(**step, past_key_values=copy.deepcopy(cache)).logits[:, -1]
    logits = decode(**step, cache=copy.deepcopy(cache)).logits[:, -1]
    for text, other in ((name, plain), (f"{name}, exported", logits)):
        errors = (other - wanted).abs().amax(-1).tolist()
        print(f"# {text}: " + ", ".join(f"{p}: {e:.3f}" for p, e in zip(PADDINGS, errors)))
        for padding, error in zip(PADDINGS, errors):
            is_wrong = has_window and other is logits and padding > 0
            assert error > 0.2 if is_wrong else error < 1e-4
    if name == "Mistral":  # by hand: without the first tokens in the window
        errors = []
        for row, padding in enumerate(PADDINGS):
            shorter = copy.deepcopy(cache)
            for layer in shorter.layers:
                layer.keys = layer.keys[row:row + 1, :, padding:]
                layer.values = layer.values[row:row + 1, :, padding:]
                layer.cumulative_length = layer.keys.shape[2]
            other = model(ids[row:row + 1, -1:], position_ids=positions[row:row + 1, -1:],
                          past_key_values=shorter).logits[0, -1]
            errors.append((other - logits[row]).abs().max().item())
        print("# exported, from the rest of the window: "
              + ", ".join(f"{p}: {e:.3f}" for p, e in zip(PADDINGS, errors)))
        assert max(errors) < 1e-4


torch.manual_seed(0)
compare("Llama", LlamaForCausalLM(LlamaConfig(**SMALL)), False)
compare("Mistral", MistralForCausalLM(MistralConfig(sliding_window=WINDOW, **SMALL)), True)
compare("Gemma 3", Gemma3ForCausalLM(Gemma3TextConfig(
    sliding_window=WINDOW, query_pre_attn_scalar=8,
    layer_types=["sliding_attention", "full_attention"], **SMALL)), True)
END
sed -n 's/^# //p' "$folder/out"
