#!/usr/bin/env bash
# Guess: onnxruntime-genai's model builder makes of a model of transformers one that computes the
# same, or says that it can't: "The dynamic RoPE style is not currently supported."
#
# onnxruntime-genai 0.18.0, onnxruntime 1.32.0, transformers 5.23.0: not so, and without a word:
# - OLMo has LayerNorm without weights. The builder gives it weights of 1 and biases of 0, but the
#   kind of norm stays the default, RMSNorm: the mean isn't subtracted. So no OLMo model works.
# - It looks for the norms' epsilon only under the name rms_norm_eps. Phi's layer_norm_eps and
#   Nemotron's norm_eps, both 1e-5, become 1e-6, as does OLMo's constant 1e-5.
# - A Llama's positions are scaled only if rope_type is "llama3". With "linear", as in DeepSeek
#   Coder, with "yarn" and with "longrope" they stay as they are. Mistral and Qwen 2 get the linear
#   scaling, and an error for types that the builder can't do.
#
# Seen (40 tokens, the largest difference of a logit of the last one from transformers' model, in
# standard deviations of the logits):
#   OLMo: 2.00115
#   OLMo, compared with RMSNorm: 0.00000
#   Phi: 0.00090
#   Phi, compared with an epsilon of 1e-6: 0.00000
#   Nemotron: 0.00045
#   Nemotron, compared with an epsilon of 1e-6: 0.00000
#   Llama: 0.00000
#   Llama, linear: 3.83445
#   Llama, yarn: 1.98072
#   Mistral, linear: 0.00000
#   Qwen 2, linear: 0.00000
#   The dynamic RoPE style is not currently supported.

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'onnxruntime-genai==0.18.0' \
    'onnxruntime==1.32.0' 'onnx==1.23.2' 'onnx-ir==1.1.0' 'transformers==5.23.0'
cd "$folder"

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import contextlib
import runpy
import shutil
import sys

import numpy as np
import onnxruntime_genai
import torch
import transformers
from tokenizers import Tokenizer, models
from torch.nn.functional import rms_norm

TOKENS = 40
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(100)}, "w0")),
    bos_token="w1", eos_token="w2", pad_token="w3", unk_token="w0")


def make(kind, **settings):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=2, pad_token_id=3, initializer_range=0.15, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.05)  # as in a trained model, the mean isn't 0
    return model


def build(model):
    """The logits of the last token, computed by what the builder makes of the model."""
    for name in ("model", "onnx"):
        shutil.rmtree(name, ignore_errors=True)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    sys.argv = "builder -i model -o onnx -p fp32 -e cpu -c cache".split()
    with contextlib.redirect_stdout(sys.stderr):
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    built = onnxruntime_genai.Model("onnx")
    params = onnxruntime_genai.GeneratorParams(built)
    params.set_search_options(max_length=TOKENS + 2)
    generator = onnxruntime_genai.Generator(built, params)
    generator.append_tokens(np.array(IDS[0], dtype=np.int32))
    return torch.from_numpy(np.array(generator.get_output("logits"))).float().reshape(-1, 100)[-1]


def compare(name, kind, is_right, other=None, **settings):
    model = make(kind, **settings)
    logits = build(model)
    if other:
        other(model)
    with torch.no_grad():
        wanted = model(IDS).logits[0, -1]
    difference = ((logits - wanted).abs().max() / wanted.std()).item()
    print(f"{name}: {difference:.5f}")
    assert (difference < 1e-4) == is_right


def use_rms_norm(model):
    for module in model.modules():
        if type(module).__name__ == "OlmoLayerNorm":
            module.forward = lambda hidden: rms_norm(hidden, hidden.shape[-1:], eps=1e-6)


def set_epsilon(model):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6


IDS = torch.randint(4, 100, (1, TOKENS), generator=torch.Generator().manual_seed(0))
WHOLE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 32}
compare("OLMo", "Olmo", False)
compare("OLMo, compared with RMSNorm", "Olmo", True, use_rms_norm)
for kind in ("Phi", "Nemotron"):
    compare(kind, kind, False, rope_parameters=WHOLE)
    compare(f"{kind}, compared with an epsilon of 1e-6", kind, True, set_epsilon,
            rope_parameters=WHOLE)
compare("Llama", "Llama", True)
compare("Llama, linear", "Llama", False, rope_parameters=LINEAR)
compare("Llama, yarn", "Llama", False, rope_parameters=YARN)
compare("Mistral, linear", "Mistral", True, rope_parameters=LINEAR, sliding_window=None)
compare("Qwen 2, linear", "Qwen2", True, rope_parameters=LINEAR)
try:
    build(make("Qwen2", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}))
except NotImplementedError as error:
    print(error)
    assert "dynamic RoPE style is not currently supported" in str(error)
else:
    raise SystemExit("no error")
END
