#!/usr/bin/env bash
# Guess: a Qwen3 that tunix loads from transformers' safetensors, with the ModelConfig that goes
# with it, gives transformers' logits but for rounding, whatever its rope_theta is: it's a field of
# ModelConfig without a default, and tunix's config for Qwen3-4B-Instruct-2507 (and -Thinking-2507)
# sets it to 5000000, while the other Qwen3 models have 1000000.
#
# google-tunix 0.1.7, transformers 5.12.1: only with 1000000. tunix's Qwen3 doesn't hand its
# rope_theta to the function that turns queries and keys, which has 1000000 as a default. So
# Qwen3-4B-Instruct-2507 is trained and sampled with other positions than it was made with, and
# nothing tells it; the difference grows with the distance of the tokens. tunix's Qwen2 hands its
# rope_theta on, and is right with another one, too.
#
# Seen (small random models, text of 512 tokens; largest difference of a log-probability from
# transformers' among the first 16 tokens, and among all):
#   Qwen3, rope_theta 1000000: 0.0000, 0.0000
#   Qwen3, rope_theta 5000000: 0.5350, 4.5735
#   Qwen3, rope_theta 10000: 2.0011, 6.8116
#   tunix's logits of the three configs with the same weights are equal: True
#   Qwen2, rope_theta 10000: 0.0000, 0.0000

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
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from tunix.models.qwen2 import model as qwen2, params as qwen2_params
from tunix.models.qwen3 import model as qwen3, params as qwen3_params

LENGTH = 512
assert qwen3.ModelConfig.qwen3_4b_instruct_2507().rope_theta == 5_000_000
torch.manual_seed(1)
text = torch.randint(64, (1, LENGTH))
mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))


def compare(name, theta):
    torch.manual_seed(2)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    if name == "Qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(head_dim=32, **size))
        module, params = qwen3, qwen3_params
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**size))
        module, params = qwen2, qwen2_params
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        wanted = model.eval()(text).logits[0].log_softmax(-1).numpy()
    model.save_pretrained("model")
    assert model.config.rope_parameters["rope_theta"] == theta
    config = module.ModelConfig(
        num_layers=3, vocab_size=64, embed_dim=64, hidden_dim=64, num_heads=2, head_dim=32,
        num_kv_heads=1, rope_theta=theta, norm_eps=model.config.rms_norm_eps)
    loaded = params.create_model_from_safe_tensors("model", config, mesh, dtype=jnp.float32)
    mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
    logits = loaded(jnp.array(text.numpy()), jnp.arange(LENGTH)[None], None, mask)[0][0]
    difference = np.abs(np.array(jax.nn.log_softmax(logits)) - wanted).max(1)
    print(f"{name}, rope_theta {theta}: {difference[:16].max():.4f}, {difference.max():.4f}",
          flush=True)
    return np.array(logits), difference


first, difference = compare("Qwen3", 1_000_000)
assert difference.max() < 1e-3
same = True
for theta in (5_000_000, 10_000):
    logits, difference = compare("Qwen3", theta)
    same = same and np.array_equal(logits, first)
    assert difference[0] < 1e-3 and difference.max() > 0.1
print("tunix's logits of the three configs with the same weights are equal:", same)
assert same
_, difference = compare("Qwen2", 10_000)
assert difference.max() < 1e-3
END
