#!/usr/bin/env bash
# Guess: CTranslate2 scales the attention scores of Gemma 2 and Gemma 3 as their config.json says:
# by 1 / sqrt(query_pre_attn_scalar). The logits of a converted model agree with transformers.
#
# ctranslate2 4.8.5, transformers 5.23.0, torch 2.13.0: the converter doesn't read this number; the
# scores are always divided by sqrt(head_dim). That is the same for the smaller models, but not for
# the two with 27 billion parameters: 144 in Gemma 2 and 168 in Gemma 3, where head_dim is 128, so
# that their scores come out 6 and 15 % too large, and all attention is too sharp. Nothing is said.
# Dividing the queries by the square root of the ratio before converting helps.
#
# Seen (random weights; largest difference of a logit from transformers with the model's number,
# with head_dim as the number, and of the model with its queries changed before converting):
#   Gemma2, 1.0000 x head_dim: 0.000 0.000 0.000
#   Gemma2, 1.1250 x head_dim: 0.140 0.000 0.000
#   Gemma3Text, 1.0000 x head_dim: 0.000 0.000 0.000
#   Gemma3Text, 1.3125 x head_dim: 0.602 0.000 0.000

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
import transformers
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

WORDS, LENGTH, HEAD = 100, 40, 32
tokens = torch.randint(5, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(1))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({f"t{i}": i for i in range(WORDS)}, "t3")),
    unk_token="t3", bos_token="t1", eos_token="t2", pad_token="t0")


def build(name, scalar):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")
    return getattr(transformers, f"{name[:6]}ForCausalLM")(config(
        vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=HEAD, initializer_range=0.3,
        query_pre_attn_scalar=scalar, sliding_window=128, max_position_embeddings=128,
        final_logit_softcapping=None, attn_logit_softcapping=None, pad_token_id=0,
        bos_token_id=1, eos_token_id=2)).float().eval()


def logits_of(model):
    with torch.no_grad():
        return model(tokens, use_cache=False).logits[0]


def converted(model):
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    TransformersConverter("model").convert("converted", force=True)
    generator = ctranslate2.Generator("converted", compute_type="float32", intra_threads=1)
    text = [[f"t{i}" for i in tokens[0].tolist()]]
    return torch.from_numpy(np.array(generator.forward_batch(text)))[0]


def compare(name, ratio):
    """ratio: of query_pre_attn_scalar to head_dim, 1 in most of the published models"""
    model = build(name, int(HEAD * ratio))
    wanted = logits_of(model)
    found = converted(model)
    differences = [(found - wanted).abs().max().item(),
                   (found - logits_of(build(name, HEAD))).abs().max().item()]
    with torch.no_grad():
        for layer in model.model.layers:
            part = layer.self_attn
            weight = part.q_norm.weight if hasattr(part, "q_norm") else part.q_proj.weight
            offset = 1 if hasattr(part, "q_norm") else 0  # a norm multiplies by 1 + weight
            weight.copy_((offset + weight) / ratio ** 0.5 - offset)
    differences.append((converted(model) - wanted).abs().max().item())
    print(f"{name}, {ratio:.4f} x head_dim:", *(f"{value:.3f}" for value in differences))
    return differences


for name, ratio in (("Gemma2", 144 / 128), ("Gemma3Text", 168 / 128)):
    assert max(compare(name, 1.0)) < 0.005
    asked, as_head, mended = compare(name, ratio)
    assert asked > 0.05 and as_head < 0.005 and mended < 0.005
END
