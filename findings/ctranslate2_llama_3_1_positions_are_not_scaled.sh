#!/usr/bin/env bash
# Guess: CTranslate2's converter keeps the scaling of Llama 3.1, 3.2 and 3.3's rotary positions
# (rope_type "llama3"): its code and its runtime have a case for it, and other types of scaling
# that it doesn't know are refused. The logits agree to rounding.
#
# ctranslate2 4.8.5, transformers 5.23.0, torch 2.13.0: converted models aren't scaled at all. The
# runtime needs four numbers. The converter writes low_freq_factor and high_freq_factor. It writes
# the factor for the type "linear" only, and original_max_position_embeddings not at all; the
# runtime takes 1 and 0 for them, and its formula then changes no frequency. Nothing is said. The
# slow frequencies, which Llama 3.1 divides by 8 and the small Llama 3.2 by 32, are that many times
# too high, and the error grows with a text's length.
#
# Seen (a Llama with random weights and Llama 3.1's rotary settings; largest difference of a logit
# from transformers at positions 1, 10, 100 and 599, with the settings and without any scaling):
#   default: 0.0000 0.0000 0.0000 0.0000
#     without scaling: 0.0000 0.0000 0.0000 0.0000
#   linear: 0.0000 0.0000 0.0000 0.0000
#     without scaling: 0.0399 4.1692 3.2596 5.1070
#   llama3: 0.0002 0.0096 0.1113 1.0382
#     without scaling: 0.0000 0.0000 0.0000 0.0000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.23.0' 'tokenizers==0.23.3' 'ctranslate2==4.8.5'
cd "$folder"

HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import ctranslate2
import numpy as np
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS, LENGTH = 100, 600
tokens = torch.randint(5, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(1))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(WORDS)}, "t3")),
    unk_token="t3", bos_token="t1", eos_token="t2")
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
LLAMA_3_1 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LINEAR = {"rope_type": "linear", "rope_theta": 500000.0, "factor": 8.0}


def build(rope):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=WORDS, hidden_size=256, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, initializer_range=0.1,
        max_position_embeddings=131072, rope_parameters=rope)).float().eval()


def logits_of(model):
    with torch.no_grad():
        return model(tokens, use_cache=False).logits[0]


def compare(name, rope):
    model = build(rope)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    TransformersConverter("model").convert("converted", force=True)
    generator = ctranslate2.Generator("converted", compute_type="float32", intra_threads=1)
    text = [[f"t{i}" for i in tokens[0].tolist()]]
    found = torch.from_numpy(np.array(generator.forward_batch(text)))[0]
    results = []
    for wanted in (logits_of(model), logits_of(build(PLAIN))):
        difference = (found - wanted).abs().amax(1)
        results.append(difference)
        print(f"{name}:", *(f"{difference[i]:.4f}" for i in (1, 10, 100, 599)))
        name = "  without scaling"
    return [result.max() for result in results]


assert max(compare("default", PLAIN)) < 0.001
scaled, plain = compare("linear", LINEAR)
assert scaled < 0.001 and plain > 0.5
scaled, plain = compare("llama3", LLAMA_3_1)
assert scaled > 0.5 and plain < 0.001
END
