#!/usr/bin/env bash
# Guess: transformers' from_pretrained(folder, gguf_file=...) makes of a GGUF file the model that it
# was made from: same logits, as those of llama.cpp. What it can't read is an error.
#
# transformers 5.23.0 (gguf 0.19.0, accelerate 1.15.0), llama.cpp as in llama-cpp-python 0.3.36: the
# files are right, and llama.cpp computes with them what the original does, but transformers reads
# only some of the file's settings, and says nothing about the others:
# - No scaling of positions is read, neither the tensor rope_freqs that Llama 3.1 to 3.3 have, nor
#   rope.scaling.type and factor (linear, as DeepSeek Coder, and yarn, as Qwen for long texts).
# - StarCoder2's rope.freq_base isn't read: its models have about 1,000,000, and get 10,000. So each
#   StarCoder2 from a GGUF file has other positions in texts of any length.
# - Biases of a Llama (as IBM's Granite code models have) are left out.
#
# Seen (random weights, 60 tokens; largest difference of a logit from the original, of llama.cpp and
# of transformers with the same file, and how many keys from_pretrained reports as left over):
#   Llama: 0.000, 0.000, 0
#   Llama, as 3.1: 0.000, 7.978, 0
#   Llama, linear: 0.000, 8.511, 0
#   Llama, biases: 0.000, 5.062, 0
#   Qwen 2: 0.000, 0.000, 0
#   Qwen 2, yarn: 0.000, 7.117, 0
#   StarCoder2, base 10,000: 0.002, 0.000, 0
#   StarCoder2, base 1,000,000: 0.003, 4.784, 0

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.23.0' 'accelerate==1.15.0' 'gguf==0.19.0' 'llama-cpp-python==0.3.36'
cd "$folder"
# The converter is in the package's source.
venv/bin/pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
tar -xzf llama_cpp_python-0.3.36.tar.gz --strip-components=3 --wildcards \
    '*/vendor/llama.cpp/convert_hf_to_gguf.py' '*/vendor/llama.cpp/conversion/*' \
    '*/vendor/llama.cpp/gguf-py/*'

HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import importlib
import sys

sys.path[:0] = [".", "gguf-py"]

import convert_hf_to_gguf
import llama_cpp
import numpy as np
import torch
import transformers

WORDS, LENGTH = 100, 60
tokens = torch.randint(5, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(1))


def set_vocab(self):
    """Write a vocabulary; the models have no tokenizer, which doesn't matter here."""
    self.gguf_writer.add_tokenizer_model("gpt2")
    self.gguf_writer.add_tokenizer_pre("gpt-2")
    self.gguf_writer.add_token_list([f"t{i}" for i in range(WORDS)])
    self.gguf_writer.add_token_merges(["a b"])


for module, name in (("llama", "LlamaModel"), ("qwen", "Qwen2Model"), ("base", "TextModel"),
                     ("starcoder", "StarCoder2Model")):
    getattr(importlib.import_module(f"conversion.{module}"), name).set_vocab = set_vocab


def make(kind, rope, **settings):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        rope_parameters={"rope_theta": 10000.0, **rope}, initializer_range=0.2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


def compare(name, kind, is_right, rope=None, **settings):
    model = make(kind, rope or {"rope_type": "default"}, **settings)
    with torch.no_grad():
        wanted = model(tokens).logits[0]
    model.save_pretrained("model")
    sys.argv = ["", "model", "--outfile", "model.gguf", "--outtype", "f32"]
    convert_hf_to_gguf.main()
    llama = llama_cpp.Llama("model.gguf", n_ctx=64, logits_all=True, verbose=False, n_threads=1,
                            type_k=0, type_v=0)
    llama.eval(tokens[0].tolist())
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        ".", gguf_file="model.gguf", dtype=torch.float32, output_loading_info=True)
    with torch.no_grad():
        logits = loaded.eval()(tokens).logits[0]
    differences = [(other - wanted).abs().max().item() for other in
                   (torch.from_numpy(np.array(llama.scores[:LENGTH])), logits)]
    left_out = sum(len(value) for value in report.values())
    print(f"{name}: {differences[0]:.3f}, {differences[1]:.3f}, {left_out}")
    assert differences[0] < 0.02 and not left_out
    assert differences[1] < 0.02 if is_right else differences[1] > 0.5


LLAMA_3_1 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32,
             "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
compare("Llama", "Llama", True)
compare("Llama, as 3.1", "Llama", False, LLAMA_3_1)
compare("Llama, linear", "Llama", False, {"rope_type": "linear", "factor": 4.0})
compare("Llama, biases", "Llama", False, attention_bias=True, mlp_bias=True)
compare("Qwen 2", "Qwen2", True)
compare("Qwen 2, yarn", "Qwen2", False, YARN)
compare("StarCoder2, base 10,000", "Starcoder2", True, sliding_window=None)
compare("StarCoder2, base 1,000,000", "Starcoder2", False,
        {"rope_type": "default", "rope_theta": 1000000.0}, sliding_window=None)
END
