#!/usr/bin/env bash
# Guess: a DeepSeek-V2 of the large kind (topk_method "group_limited_greedy": V2, V2.5 and Coder-V2
# with 236 billion parameters) routes its tokens in llama.cpp as in transformers, and the logits
# agree to rounding.
#
# llama.cpp as in llama-cpp-python 0.3.36, transformers 5.23.0: its tokens get other experts. V2
# ranks the groups of experts by their best expert, V3 by the sum of their two best. llama.cpp
# has V3's rule only. The converter writes the number of groups for V2 as well, and doesn't look
# at topk_method, so that V3's rule is taken, without a word. V2-Lite ("greedy", a single group)
# isn't concerned.
#
# Seen (random weights; the largest difference of a logit from that of transformers, the share of
# positions whose most likely token is another one, and the difference from a model with V3's rule
# put in by hand):
#   greedy, 1 of 1 groups: 0.000, 0%, V3's 0.000
#   group_limited_greedy, 2 of 4 groups: 2.472, 4%, V3's 0.000
#   group_limited_greedy, 3 of 8 groups: 1.689, 3%, V3's 0.000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.23.0' 'llama-cpp-python==0.3.36'
cd "$folder"
# The converter is in the package's source.
venv/bin/pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
tar -xzf llama_cpp_python-0.3.36.tar.gz --strip-components=3 --wildcards \
    '*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion/*' \
    '*/vendor/llama.cpp/gguf-py/*'

HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import sys

sys.path[:0] = [".", "gguf-py"]

import convert_hf_to_gguf
import llama_cpp
import numpy as np
import torch
from conversion.deepseek import DeepseekV2Model
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

WORDS, LENGTH, EXPERTS, CHOSEN = 100, 200, 16, 4
tokens = torch.randint(5, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def set_vocab(self):
    """Write a vocabulary; the model has no tokenizer, which doesn't matter here."""
    self.gguf_writer.add_tokenizer_model("gpt2")
    self.gguf_writer.add_tokenizer_pre("gpt-2")
    self.gguf_writer.add_token_list([f"t{i}" for i in range(WORDS)])
    self.gguf_writer.add_token_merges(["a b"])


DeepseekV2Model.set_vocab = set_vocab


def router(rank):
    """Return a router's forward function that ranks groups of probabilities as rank says."""
    def forward(self, states):
        logits = states.flatten(0, -2).float() @ self.weight.float().T
        groups = logits.softmax(-1).unflatten(-1, (self.num_group, -1))
        best = rank(groups).topk(self.topk_group).indices[..., None]
        kept = torch.zeros_like(groups[..., :1]).scatter(1, best, 1.0)
        weights, experts = (groups * kept).flatten(1).topk(CHOSEN)
        return logits, weights * self.routed_scaling_factor, experts
    return forward


def compare(method, groups, used):
    torch.manual_seed(0)
    model = DeepseekV2ForCausalLM(DeepseekV2Config(
        vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, head_dim=8, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, first_k_dense_replace=1,
        n_routed_experts=EXPERTS, num_experts_per_tok=CHOSEN, n_shared_experts=1,
        moe_intermediate_size=48, topk_method=method, n_group=groups, topk_group=used,
        max_position_embeddings=256, initializer_range=0.3)).float().eval()
    model.save_pretrained("model")
    sys.argv = ["", "model", "--outfile", "model.gguf", "--outtype", "f32"]
    convert_hf_to_gguf.main()
    llama = llama_cpp.Llama("model.gguf", n_ctx=LENGTH, n_batch=LENGTH, logits_all=True,
                            type_k=0, type_v=0, verbose=False)
    llama.eval(tokens[0].tolist())
    found = torch.from_numpy(np.array(llama.scores[:LENGTH]))
    original = DeepseekV2TopkRouter.forward
    results = []
    for forward in (original, router(lambda groups: groups.amax(-1)),
                    router(lambda groups: groups.topk(2).values.sum(-1))):
        DeepseekV2TopkRouter.forward = forward
        with torch.no_grad():
            results.append(model(tokens, use_cache=False).logits[0])
    DeepseekV2TopkRouter.forward = original
    wanted, by_max, by_sum = results
    assert torch.allclose(wanted, by_max, atol=1e-4)  # the router by hand is right
    difference = (found - wanted).abs().max().item()
    other = (found.argmax(1) != wanted.argmax(1)).float().mean().item()
    as_v3 = (found - by_sum).abs().max().item()
    print(f"{method}, {used} of {groups} groups: {difference:.3f}, {other:.0%}, V3's {as_v3:.3f}")
    return difference, other, as_v3


assert compare("greedy", 1, 1)[0] < 0.01
for groups, used in ((4, 2), (8, 3)):
    difference, other, as_v3 = compare("group_limited_greedy", groups, used)
    assert difference > 0.5 and other > 0.02 and as_v3 < 0.01
END
