#!/usr/bin/env bash
# Guess: llama.cpp turns queries and keys of gpt-oss by the same angles as transformers does: the
# GGUF file has all of its YaRN settings (factor 32, beta 32 and 1, 4,096 original positions), and
# with float32 weights the logits agree to rounding.
#
# llama-cpp-python 0.3.36, transformers 5.23.0, gguf 0.19.0: they don't. Between two bounds, YaRN
# slows the frequencies down little by little. gpt-oss's bounds aren't rounded ("truncate": false
# in its config.json, also transformers' default for it): 8.09 and 17.40. llama.cpp always rounds
# them, to 8 and 18. GGUF has no key for this, and the converter drops the setting without a word.
# Frequencies in between are up to 1.76 times too high, and the angle between two tokens is off
# by up to 0.22 of a radian for each 1,000 tokens of their distance, so that long texts suffer
# most. Models whose bounds are rounded, as they are by default, agree (the second line).
#
# Seen (2 layers of gpt-oss's kind with random weights and its own rope settings; largest
# difference of a logit at positions 10, 100, 1000 and 1999, from transformers with the setting
# as it is and with the other one):
#   truncate=False: 0.0023 0.0349 0.1151 0.1572
#   truncate=True: 0.0000 0.0000 0.0000 0.0001
#   deviation of the logits: 1.13
#   bounds 8.09 and 17.40; frequencies up to 1.76 times as high, 0.22 of a radian in 1,000 tokens

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.23.0' 'gguf==0.19.0' 'llama-cpp-python==0.3.36'
cd "$folder"

HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import math

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import GptOssConfig, GptOssForCausalLM

WORDS, WIDTH, LAYERS, LENGTH = 100, 32, 2, 2000
config = GptOssConfig(
    vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS,
    num_attention_heads=4, num_key_value_heads=2, head_dim=64, num_local_experts=4,
    num_experts_per_tok=2, initializer_range=0.2)
rope = config.rope_parameters
assert rope["truncate"] is False and config.max_position_embeddings == 131072
tokens = torch.randint(5, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def model(**changes):
    torch.manual_seed(0)
    config.rope_parameters = rope | changes
    return GptOssForCausalLM._from_config(config, attn_implementation="eager").float().eval()


def write(model):
    """Write what llama.cpp's converter writes for gpt-oss, with a vocabulary of its own."""
    writer = gguf.GGUFWriter("model.gguf", "gpt-oss")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(48)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(WORDS)])
    writer.add_token_merges(["a b"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, LAYERS)
    for name, tensor in model.state_dict().items():
        parts = {name: tensor}
        if "experts" in name:  # (experts, in, out); gate and up take turns
            name = name.replace("_proj_bias", "_proj.bias")
            name = name if name.endswith("bias") else f"{name}.weight"
            tensor = tensor if name.endswith("bias") else tensor.mT
            parts = {name: tensor}
            if "gate_up" in name:
                parts = {name.replace("gate_up", part): tensor[:, start::2]
                         for start, part in enumerate(("gate", "up"))}
        for name, tensor in parts.items():
            name = f"{name}.weight" if name.endswith("sinks") else name
            new = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(new, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_logits():
    llama = llama_cpp.Llama("model.gguf", n_ctx=LENGTH, n_batch=LENGTH, n_ubatch=LENGTH,
                            logits_all=True, verbose=False, n_threads=1, type_k=0, type_v=0)
    llama.eval(tokens[0].tolist())
    return torch.from_numpy(np.array(llama.scores[:LENGTH]))


def compare(truncate):
    with torch.no_grad():
        wanted = model(truncate=truncate)(tokens, use_cache=False).logits[0]
    difference = (found - wanted).abs().amax(1)
    print(f"truncate={truncate}:", *(f"{difference[i]:.4f}" for i in (10, 100, 1000, 1999)))
    return difference, wanted.std()


write(model())
found = llama_logits()
wrong, deviation = compare(False)
right, _ = compare(True)
print(f"deviation of the logits: {deviation:.2f}")
assert wrong[1000:].max() > 0.02 and right.max() < 0.001

bounds = [64 * math.log(4096 / (beta * 2 * math.pi)) / (2 * math.log(150000)) for beta in (32, 1)]
frequency = 150000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
both = []
for low, high in (bounds, (math.floor(bounds[0]), math.ceil(bounds[1]))):
    share = ((torch.arange(32) - low) / (high - low)).clamp(0, 1)
    both.append(frequency * (1 - share) + frequency / 32 * share)
ratio = (both[1] / both[0]).max().item()
turn = (both[1] - both[0]).abs().max().item() * 1000
print(f"bounds {bounds[0]:.2f} and {bounds[1]:.2f}; frequencies up to {ratio:.2f} times as high, "
      f"{turn:.2f} of a radian in 1,000 tokens")
END
