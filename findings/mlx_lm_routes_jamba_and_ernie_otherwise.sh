#!/usr/bin/env bash
# Guess: a Jamba or an ERNIE 4.5 with experts computes the same in mlx-lm, which lists both models,
# as in transformers, but for rounding; a part of the model that mlx-lm doesn't have is an error, as
# load_model(strict=True) is the default.
#
# mlx-lm 0.32.2, mlx 0.32.4, transformers 5.23.0: neither does, and nothing is said.
# - Jamba's experts are weighted by their share of the softmax over all experts, here 2 of 8. mlx-lm
#   takes the softmax over the chosen ones, so that the weights add up to 1: each expert layer's
#   output is too large, the more so the less sure the router is. That's all Jambas but the one with
#   3 billion parameters, which has no experts.
# - ERNIE's router adds a bias to the probabilities when it chooses (not when it weights): training
#   balanced the load of the experts with it. mlx-lm throws it away while it loads the weights, and
#   chooses other experts for many tokens. Without the bias both agree.
#
# Seen (random weights; the largest difference of a logit, in the standard deviations of the logits,
# from transformers as it is, and from transformers with what mlx-lm does):
#   Jamba with 8 experts: 2.6396, 0.0000
#   Jamba without experts: 0.0000, 0.0000
#   ERNIE 4.5, biases of about 0.05: 0.9070, 0.0000
#   ERNIE 4.5, biases of 0: 0.0000, 0.0000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'mlx[cpu]==0.32.4' \
    'mlx-lm==0.32.2' 'numpy==2.4.6' 'transformers==5.23.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import (Ernie4_5_MoeConfig, Ernie4_5_MoeForCausalLM, JambaConfig,
                          JambaForCausalLM)

mx.set_default_device(mx.cpu)
SMALL = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
         "tie_word_embeddings": False}
IDS = torch.randint(3, 100, (1, 40), generator=torch.Generator().manual_seed(0))


def by_mlx(model):
    model.save_pretrained("model")
    path = Path("model/config.json")
    config = json.loads(path.read_text())
    if rope := config.pop("rope_parameters", None):  # where published configs have it
        config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    path.write_text(json.dumps(config))
    loaded, _ = load_model(Path("model"))
    loaded.set_dtype(mx.float32)
    return torch.from_numpy(np.array(loaded(mx.array(IDS.numpy()))))


@torch.no_grad()
def compare(name, model, is_right, change):
    logits = by_mlx(model)
    differences = []
    for step in (lambda model: None, change):
        step(model)
        wanted = model(IDS, use_cache=False).logits
        differences.append(((logits - wanted).abs().max() / wanted.std()).item())
    print(f"{name}: {differences[0]:.4f}, {differences[1]:.4f}")
    assert (differences[0] < 1e-3) == is_right and differences[1] < 1e-3


def normalise(model):  # the experts' weights of a Jamba
    def normalised(module, inputs, outputs):
        *rest, weights, chosen = outputs
        return (*rest, weights / weights.sum(-1, keepdim=True), chosen)

    for layer in model.model.layers:
        if hasattr(layer.feed_forward, "router"):
            layer.feed_forward.router.register_forward_hook(normalised)


def forget_bias(model):
    for parameter in biases(model):
        parameter.zero_()


def biases(model):
    return [p for name, p in model.named_parameters() if "e_score_correction_bias" in name]


def jamba(experts):
    torch.manual_seed(0)
    return JambaForCausalLM(JambaConfig(
        num_experts=experts, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8,
        mamba_dt_rank=4, use_mamba_kernels=False, **SMALL)).eval()


def ernie(bias):
    torch.manual_seed(0)
    model = Ernie4_5_MoeForCausalLM(Ernie4_5_MoeConfig(
        moe_num_experts=8, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=1,
        moe_layer_start_index=1, head_dim=8, **SMALL)).eval()
    assert biases(model)
    with torch.no_grad():
        for parameter in biases(model):
            parameter.normal_(std=bias)
    return model


compare("Jamba with 8 experts", jamba(8), False, normalise)
compare("Jamba without experts", jamba(1), True, lambda model: None)
compare("ERNIE 4.5, biases of about 0.05", ernie(0.05), False, forget_bias)
compare("ERNIE 4.5, biases of 0", ernie(0.0), True, forget_bias)
END
