#!/usr/bin/env bash
# Guess: tunix's Sampler with a Gemma 2 continues each prompt of a batch as if it were alone, as
# transformers does with the same weights: shorter prompts are padded on the left, the padding is
# masked, and positions are counted without it.
#
# google-tunix 0.1.7, transformers 5.12.1: not in the layers with a sliding window, every second one
# of Gemma 2. The window is laid by positions, which don't count the padding, but over places in
# the cache, which do. So with a padding of n tokens the window lies n places too far back. If n is
# at least the size of the window (4096 tokens in Gemma 2), a token sees nothing there but padding
# and, as that's masked, spreads its attention evenly over all places, even those of later tokens;
# with less, the window is n tokens too long. The Sampler pads to a power of 2, so a prompt of 5000
# tokens that is alone has a padding of 3192. Log-probabilities for training, with left-padded
# prompts, are computed by the same function. Without padding, and in tunix's Gemma 3, the windows
# are right.
#
# Seen (small random models, prompts of 8 tokens padded to the length that's given; how many of 20
# texts of 8 tokens are transformers', and largest difference of a log-probability of the first
# token):
#   Gemma 2, window 4, padded to 8: 20 of 20, 0.0000
#   Gemma 2, window 4, padded to 10: 7 of 20, 5.1776
#   Gemma 2, window 4, padded to 32: 9 of 20, 6.5705
#   Gemma 2, window 64, padded to 32: 20 of 20, 0.0000
#   Gemma 3, window 4, padded to 32: 20 of 20, 0.0000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'transformers==5.12.1' \
    'tokenizers==0.22.2' 'safetensors==0.7.0' 'jax==0.10.2' 'jaxlib==0.10.2' 'flax==0.12.8' \
    'google-tunix==0.1.7'

cd "$folder"
export JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
venv/bin/python - 2>log <<'END' || { tail log; exit 1; }
import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import (Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig)
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.gemma import model as gemma2, params_safetensors as gemma2_params
from tunix.models.gemma3 import model as gemma3, params_safetensors as gemma3_params

PROMPTS, LENGTH, NEW, LAYERS, VOCABULARY = 20, 8, 8, 6, 32
mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
rng = np.random.default_rng(1)
prompts = np.c_[np.full(PROMPTS, 2), rng.integers(3, VOCABULARY, (PROMPTS, LENGTH - 1))]


class Tokenizer:
    def encode(self, text):
        return [int(token) for token in text.split()]

    def decode(self, ids):
        return " ".join(map(str, ids))

    pad_id, eos_id, bos_id = lambda self: 0, lambda self: 1, lambda self: 2


def make(name, window):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "query_pre_attn_scalar": 8, "vocab_size": VOCABULARY, "sliding_window": window,
            "attn_implementation": "eager"}
    shape = {"num_layers": LAYERS, "num_embed": VOCABULARY, "embed_dim": 32, "hidden_dim": 64,
             "num_heads": 4, "head_dim": 8, "num_kv_heads": 2, "sliding_window_size": window}
    torch.manual_seed(1)
    if name == "Gemma 2":
        model = Gemma2ForCausalLM(Gemma2Config(**size))
        kinds = gemma2.AttentionType
        params, config = gemma2_params, gemma2.ModelConfig(
            final_logit_softcap=30.0, attn_logits_soft_cap=50.0, use_post_attn_norm=True,
            use_post_ffw_norm=True, attention_types=(kinds.LOCAL_SLIDING, kinds.GLOBAL) * 3,
            **shape)
    else:
        model = Gemma3ForCausalLM(Gemma3TextConfig(**size))
        params, config = gemma3_params, gemma3.ModelConfig(
            local_base_frequency=10_000, global_base_frequency=1_000_000, **shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(name)
    return model.eval(), params.create_model_from_safe_tensors(name, config, mesh,
                                                                dtype=jnp.float32)


def compare(name, window, padded):
    model, loaded = make(name, window)
    texts, first = torch.tensor(prompts), None
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(texts).logits[:, -1]
        first = logits.log_softmax(-1).numpy() if first is None else first
        logits[:, :2] = -torch.inf  # neither padding nor the end
        texts = torch.cat([texts, logits.argmax(-1, keepdim=True)], 1)
    sampler = Sampler(loaded, Tokenizer(), CacheConfig(64, LAYERS, 2, 8))
    output = sampler([Tokenizer().decode(prompt) for prompt in prompts], NEW, padded,
                     forbidden_tokens=[0, 1], return_logprobs=True)
    ids = np.array([Tokenizer().encode(text) for text in output.text])
    same = int((ids == texts[:, LENGTH:].numpy()).all(1).sum())

    pad = padded - LENGTH
    ids = jnp.array(np.pad(prompts, ((0, 0), (pad, 0))))
    places = jnp.arange(padded)
    mask = (places[:, None] >= places) & (places >= pad)
    logits = loaded(ids, jnp.broadcast_to(jnp.maximum(places - pad, 0), ids.shape), None,
                    jnp.broadcast_to(mask, (PROMPTS, padded, padded)))[0][:, -1]
    difference = float(np.abs(np.array(jax.nn.log_softmax(logits)) - first).max())
    print(f"{name}, window {window}, padded to {padded}: {same} of {PROMPTS}, {difference:.4f}",
          flush=True)
    return same, difference


for name, window, padded, right in [
    ("Gemma 2", 4, 8, True),
    ("Gemma 2", 4, 10, False),
    ("Gemma 2", 4, 32, False),
    ("Gemma 2", 64, 32, True),
    ("Gemma 3", 4, 32, True),
]:
    same, difference = compare(name, window, padded)
    if right:
        assert same == PROMPTS and difference < 1e-3
    else:
        assert same < PROMPTS / 2 and difference > 0.1
END
