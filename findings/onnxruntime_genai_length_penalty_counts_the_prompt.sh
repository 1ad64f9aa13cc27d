#!/usr/bin/env bash
# Guess: beam search of onnxruntime-genai finds the texts that transformers finds for the same
# model: a finished text's score is the sum of the log-probabilities of its new tokens over their
# number to the power of length_penalty (1 unless told otherwise: the mean).
#
# onnxruntime-genai 0.18.0, a Llama made by its builder (float32, CPU), transformers 5.24.0: the sum
# is over the new tokens, but it's divided by the number of all, with the prompt. After a prompt of
# 30 tokens, a text of 2 is divided by 32, one of 12 by 42: the mean is none, length_penalty hardly
# counts anymore, and the shorter text wins nearly as with 0, the empty one often being the best.
# How long answers are depends on how long the prompt is, and a length_penalty that was chosen with
# transformers, or for short prompts, does something else here. In the source (CPU and CUDA) a
# hypothesis is the whole sequence, and its size is what is divided by; and so it's decided, too,
# whether a beam can still get better. Nothing says which length is meant. transformers did
# the same until pull request 27351 (2023) corrected it; vLLM's issue 2606 was about it.
# With length_penalty=0 both find the same texts.
#
# Seen (a 2-layer model with random weights, any of 40 tokens ends a text, 4 beams; new tokens of
# the best three texts):
#   length_penalty=0, prompt of 2: genai 0 1 1, transformers 0 1 1
#   length_penalty=0, prompt of 10: genai 5 7 8, transformers 5 7 8
#   length_penalty=0, prompt of 30: genai 1 4 4, transformers 1 4 4
#   length_penalty=0, prompt of 60: genai 1 2 3, transformers 1 2 3
#   length_penalty=1, prompt of 2: genai 3 5 7, transformers 7 6 5
#   length_penalty=1, prompt of 10: genai 2 3 5, transformers 9 5 2
#   length_penalty=1, prompt of 30: genai 1 1 2, transformers 2 3 1
#   length_penalty=1, prompt of 60: genai 0 1 4, transformers 0 4 4
#   length_penalty=2, prompt of 2: genai 5 4 3, transformers 5 4 3
#   length_penalty=2, prompt of 10: genai 0 0 1, transformers 1 1 0
#   length_penalty=2, prompt of 30: genai 0 2 4, transformers 5 4 2
#   length_penalty=2, prompt of 60: genai 10 10 12, transformers 13 12 10

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
import json

import numpy as np
import onnxruntime_genai as og
import torch
from transformers import LlamaForCausalLM

llama = LlamaForCausalLM.from_pretrained("llama").eval()
ends = list(range(40))
config = og.Config("onnx")
config.overlay(json.dumps({"model": {"eos_token_id": ends}}))
model = og.Model(config)
NEW = 20


def cut(text, prompt):
    new = text[len(prompt):]
    return new[:next((i for i, token in enumerate(new) if token in ends), len(new))]


def genai(prompt, penalty):
    params = og.GeneratorParams(model)
    params.set_search_options(num_beams=4, num_return_sequences=3, length_penalty=penalty,
                              early_stopping=True, max_length=len(prompt) + NEW)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [cut(generator.get_sequence(i).tolist(), prompt) for i in range(3)]


def transformers(prompt, penalty):
    texts = llama.generate(
        torch.tensor([prompt]), num_beams=4, num_return_sequences=3, length_penalty=penalty,
        early_stopping=True, max_new_tokens=NEW, do_sample=False, eos_token_id=ends, pad_token_id=0)
    return [cut(text, prompt) for text in texts.tolist()]


@torch.no_grad()
def by_hand(prompt, penalty, length):
    """Beam search that divides by the length (of the new tokens, with the end) it is told."""
    beams, finished = [(0.0, [])], []
    while len(finished) < 4 and len(beams[0][1]) < NEW:
        rows = llama(torch.tensor([prompt + new for _, new in beams])).logits[:, -1]
        rows = rows.log_softmax(-1).tolist()
        ways = sorted(((total + row[token], new + [token]) for (total, new), row
                       in zip(beams, rows) for token in range(257)), reverse=True)[:8]
        finished += [(total / length(new) ** penalty, new[:-1])
                     for total, new in ways[:4] if new[-1] in ends]
        beams = [way for way in ways if way[1][-1] not in ends][:4]
        finished = sorted(finished, reverse=True)[:4]
    if len(finished) < 4:
        finished += [(total / length(new + [0]) ** penalty, new) for total, new in beams]
    return [new for _, new in sorted(finished, reverse=True)[:3]]


random = np.random.default_rng(5)
different = 0
for penalty in (0.0, 1.0, 2.0):
    for length in (2, 10, 30, 60):
        prompt = random.integers(40, 257, length).tolist()
        ours, theirs = genai(prompt, penalty), transformers(prompt, penalty)
        print(f"length_penalty={penalty:.0f}, prompt of {length}: genai "
              f"{' '.join(str(len(new)) for new in ours)}, transformers "
              f"{' '.join(str(len(new)) for new in theirs)}")
        assert ours == by_hand(prompt, penalty, lambda new: len(prompt) + len(new) - 1)
        assert theirs == by_hand(prompt, penalty, lambda new: len(new))
        if penalty == 0:
            assert ours == theirs
        different += ours != theirs
assert different >= 4
END
