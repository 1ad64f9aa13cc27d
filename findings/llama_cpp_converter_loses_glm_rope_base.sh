#!/usr/bin/env bash
# Guess: llama.cpp's converter, which accepts GlmForCausalLM, takes GLM's rotary base, context
# length and epsilon from the config.json that transformers writes: from rope_parameters (or
# rope_theta), max_position_embeddings and rms_norm_eps. The logits agree to rounding.
#
# llama.cpp as in llama-cpp-python 0.3.36, transformers 5.23.0: it only knows the names of the
# older ChatGLM files: rope_ratio, seq_length, layernorm_epsilon. Where they are missing, it says
# nothing and writes a base of 10,000, the model's WIDTH as its context length, and an epsilon of
# 1e-5. transformers' own script that converts GLM-4 multiplies rope_ratio into the base: it is
# 5,000,000 for the chat model (rope_ratio is 500), so that in llama.cpp all of its positions are
# turned by other angles. llama.cpp's setting for the base (rope_freq_base) makes it right again.
#
# Seen (random weights; what the file says, and the largest difference of a logit from that of
# transformers, with the file as it is and with the base given to llama.cpp):
#   base 10,000: the file has 10,000, a context of 64, 1e-05; differences 0.003, 0.003
#   base 5,000,000: the file has 10,000, a context of 64, 1e-05; differences 7.259, 0.003

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
import gguf
import llama_cpp
import numpy as np
import torch
from conversion.chatglm import ChatGLMModel
from transformers import GlmConfig, GlmForCausalLM

WORDS, WIDTH, LENGTH = 100, 64, 60
tokens = torch.randint(5, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def set_vocab(self):
    """Write a vocabulary; the model has no tokenizer, which doesn't matter here."""
    self.gguf_writer.add_tokenizer_model("gpt2")
    self.gguf_writer.add_tokenizer_pre("gpt-2")
    self.gguf_writer.add_token_list([f"t{i}" for i in range(WORDS)])
    self.gguf_writer.add_token_merges(["a b"])


ChatGLMModel.set_vocab = set_vocab


def differences(base):
    torch.manual_seed(0)
    model = GlmForCausalLM(GlmConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": base}, initializer_range=0.2,
        pad_token_id=0, eos_token_id=0)).float().eval()
    with torch.no_grad():
        wanted = model(tokens).logits[0]
    model.save_pretrained("model")
    sys.argv = ["", "model", "--outfile", "model.gguf", "--outtype", "f32"]
    convert_hf_to_gguf.main()
    fields = gguf.GGUFReader("model.gguf").fields
    found = [fields[f"chatglm.{name}"].contents() for name in
             ("rope.freq_base", "context_length", "attention.layer_norm_rms_epsilon")]
    result = []
    for given in (0.0, base):  # 0: as in the file
        llama = llama_cpp.Llama("model.gguf", n_ctx=LENGTH, logits_all=True, type_k=0, type_v=0,
                                rope_freq_base=given, verbose=False)
        llama.eval(tokens[0].tolist())
        result.append((torch.from_numpy(np.array(llama.scores[:LENGTH])) - wanted).abs().max())
    print(f"base {base:,.0f}: the file has {found[0]:,.0f}, a context of {found[1]}, "
          f"{found[2]:.0e}; differences {result[0]:.3f}, {result[1]:.3f}")
    assert found[:2] == [10000, WIDTH] and result[1] < 0.01
    return result[0]


assert differences(10000.0) < 0.01
assert differences(5e6) > 0.5
END
