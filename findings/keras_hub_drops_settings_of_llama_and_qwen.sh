#!/usr/bin/env bash
# Guess: keras_hub.models.Backbone.from_preset(folder) takes a model in Hugging Face's format with
# the settings of its config.json. What it doesn't know is an error, as with a Llama whose
# rope_scaling is of another type than Llama 3's: "The config should be a valid llama3 config".
#
# keras-hub 0.32.0, keras 3.15.1, transformers 5.23.0: several settings are dropped without a word.
# - Llama: attention_bias and mlp_bias. The biases stay in the file, and the model computes without
#   them. IBM's Granite code models of 3 and 8 billion parameters are Llamas with both.
# - Llama: rms_norm_eps. The norms have 1e-6, where Llama 2 and 3 have 1e-5, which is not nothing in
#   the first layers, whose inputs are small. Qwen and Mistral get theirs from the config.
# - Qwen 2 and 3: rope_scaling. YaRN's, which the model cards of Qwen 2.5 and 3 tell to write into
#   config.json for long texts, changes nothing.
# - Llama: rope_scaling of a model that transformers 5 has saved. It's in rope_parameters then, from
#   which the base is read, but not the scaling: so a fine-tuned Llama 3.1 loses it.
# - Mistral: weights in float32 or bfloat16 are rounded to float16 on the way to the float32 model.
#
# Seen (largest difference of a logit from transformers' model, in their standard deviations):
#   Llama as it comes: 0.0000
#   Llama, rms_norm_eps=1e-5: 0.2405
#   Llama, attention_bias and mlp_bias: 5.3825
#   Llama 3's rope_scaling, old place: 0.0000
#   Llama 3's rope_scaling, saved by transformers 5: 3.5683
#   Qwen 2 as it comes: 0.0000
#   Qwen 2 with YaRN: 4.5360
#   Qwen 3 as it comes: 0.0001
#   Qwen 3 with YaRN: 3.0996
#   Mistral as it comes: 0.0067
#   Mistral with weights that float16 can hold: 0.0000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'keras-hub==0.32.0' 'keras==3.15.1' \
    'transformers==5.23.0'
cd "$folder"

export OMP_NUM_THREADS=1 KERAS_BACKEND=torch TF_CPP_MIN_LOG_LEVEL=3 HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json

import keras_hub
import numpy as np
import torch
import transformers

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32,
           "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def write_old_place(folder):
    """Move the rotary settings to where all published configs have them: out of rope_parameters."""
    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file)


@torch.no_grad()
def compare(name, kind, is_right, rope=None, old_place=True, half=False, **settings):
    rope = {"rope_theta": 10000.0, **(rope or {"rope_type": "default"})}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        rope_parameters=rope, **{"rms_norm_eps": 1e-6} | settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for key, parameter in model.named_parameters():
        if "bias" in key or "proj" in key:
            parameter.normal_(std=0.2)
        if half:
            parameter.copy_(parameter.half())
    model.save_pretrained("model")
    if old_place:
        write_old_place("model")
    ids = torch.randint(100, (2, 60))
    wanted = model(ids).logits
    backbone = keras_hub.models.Backbone.from_preset("model")
    hidden = backbone({"token_ids": ids.numpy(), "padding_mask": np.ones((2, 60), bool)})
    logits = backbone.token_embedding(hidden, reverse=True)
    difference = ((logits - wanted).abs().max() / wanted.std()).item()
    print(f"{name}: {difference:.4f}")
    assert (difference < 3e-4) == is_right


compare("Llama as it comes", "Llama", True)
compare("Llama, rms_norm_eps=1e-5", "Llama", False, rms_norm_eps=1e-5)
compare("Llama, attention_bias and mlp_bias", "Llama", False, attention_bias=True, mlp_bias=True)
compare("Llama 3's rope_scaling, old place", "Llama", True, LLAMA_3)
compare("Llama 3's rope_scaling, saved by transformers 5", "Llama", False, LLAMA_3, False)
for number in (2, 3):
    compare(f"Qwen {number} as it comes", f"Qwen{number}", True)
    compare(f"Qwen {number} with YaRN", f"Qwen{number}", False, YARN)
compare("Mistral as it comes", "Mistral", False)
compare("Mistral with weights that float16 can hold", "Mistral", True, half=True)
try:
    compare("", "Llama", True, {"rope_type": "linear", "factor": 2.0})
except ValueError as error:
    assert "valid llama3 config" in str(error)
else:
    raise SystemExit("no error for another rope_scaling")
END
