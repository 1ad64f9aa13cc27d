#!/usr/bin/env bash
# Guess: a Generator of onnxruntime-genai that has written some tokens and gets others by
# append_tokens() (the user's next turn, the result of a tool) goes on as if it had been given the
# whole text at once: same logits, same text.
#
# onnxruntime-genai 0.18.0, a Llama made by its builder (float32, CPU), transformers 5.24.0: not if
# the caller stopped before the end token, after a number of tokens, at a stop word or a closing
# bracket. The token that generate_next_token() drew last has not been through the model; the next
# call would do that. append_tokens() doesn't: only the tokens appended are computed, at positions
# as if the drawn one were there, and in its place the cache still has what it was made with, zeros.
# To all later tokens, in every layer and head, it is a key that scores 0 and a value of nothing.
# get_sequence() shows the right text, and nothing fails. (With past_present_share_buffer off, which
# the builder turns on, attention refuses it with an error.) After the end token, which isn't kept,
# all is right. It's right, too, if get_logits() is called before, since that computes the token,
# or if rewind_to() takes it away and it is appended with the others. Pull request 1110 corrected
# this once (0.6); it's gone from the source now, it seems since 1814, of October 2025, which was to
# leave out the end token.
#
# Seen (a 2-layer model with random weights, prompt of 12 tokens, two tokens appended; largest error
# of the logits against transformers with the whole text, and against transformers with the last
# generated token's keys and values set to 0; the 12 tokens that follow greedily):
#   0 generated: error 0.000, text right
#   1 generated: error 1.587 (0.000 with zeros), text wrong
#   3 generated: error 0.761 (0.000 with zeros), text wrong
#   6 generated: error 0.750 (0.000 with zeros), text wrong
#   6 generated, get_logits() before: error 0.000, text right
#   6 generated, rewound by one before: error 0.000, text right

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'onnxruntime-genai==0.18.0' \
    'onnxruntime==1.32.0' 'onnx==1.23.2' 'onnx-ir==1.1.0'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat >model.py <<'END'
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = ["<|endoftext|>"] + sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=letters[0], eos_token=letters[0],
                        pad_token=letters[0]).save_pretrained("llama")
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    initializer_range=0.15, bos_token_id=0, eos_token_id=0)).save_pretrained("llama")
END
{ venv/bin/python model.py
  venv/bin/python -m onnxruntime_genai.models.builder -i llama -o onnx -p fp32 -e cpu -c cache
} >log 2>&1 || { cat log; exit 1; }
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import numpy as np
import onnxruntime_genai as og
import torch
from transformers import LlamaForCausalLM

llama = LlamaForCausalLM.from_pretrained("llama").eval()
model = og.Model("onnx")
prompt = np.random.default_rng(0).integers(1, 257, 12).tolist()
extra = [77, 88]


def array(ids):
    return np.array(ids, dtype=np.int32)


@torch.no_grad()
def transformers(ids, zeros=False):
    cache = llama(torch.tensor([ids]), use_cache=True).past_key_values
    if zeros:
        for layer in cache.layers:
            layer.keys[:, :, -1] = layer.values[:, :, -1] = 0
    return llama(torch.tensor([extra]), past_key_values=cache).logits[0, -1].numpy()


def run(new, before="", right=True):
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + new + 2 + 12)
    generator = og.Generator(model, params)
    generator.append_tokens(array(prompt))
    for _ in range(new):
        generator.generate_next_token()
        assert not generator.is_done()
    text = generator.get_sequence(0).tolist()
    assert text[:12] == prompt and len(text) == 12 + new
    if before == ", get_logits() before":
        generator.get_logits()
    if before == ", rewound by one before":
        generator.rewind_to(len(text) - 1)
        generator.append_tokens(array(text[-1:]))
    generator.append_tokens(array(extra))
    assert generator.get_sequence(0).tolist() == text + extra
    logits = generator.get_logits()[0, -1]
    error = abs(logits - transformers(text)).max()
    zeros = abs(logits - transformers(text, zeros=True)).max()
    while not generator.is_done():
        generator.generate_next_token()
    greedy = llama.generate(torch.tensor([text + extra]), max_new_tokens=12, do_sample=False,
                            pad_token_id=0)[0].tolist()
    same = generator.get_sequence(0).tolist() == greedy
    print(f"{new} generated{before}: error {error:.3f}" + (
        "" if right else f" ({zeros:.3f} with zeros)") + f", text {'right' if same else 'wrong'}")
    assert same == right
    assert error < 1e-4 if right else error > 0.1 and zeros < 1e-4


run(0)
for new in (1, 3, 6):
    run(new, right=False)
run(6, ", get_logits() before")
run(6, ", rewound by one before")
END
