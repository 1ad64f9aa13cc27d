#!/usr/bin/env bash
# Guess: Delphi's SurprisalScorer tells how well an explanation of a latent predicts texts: for each
# text it gives the losses of its tokens after the prompt with the explanation, and after one with
# "Various unrelated sentences.". They don't depend on which other texts are scored, nor on their
# order. The texts go through the model ten at a time, with one key-value cache for the prompt.
#
# eai-delphi 0.1.3, transformers 5.24.0, torch 2.13.0: only the first ten are scored so. The model
# appends what it reads to the cache that it's given, and Delphi gives the same one to every batch.
# So text 11 is read after the prompt and text 1, text 21 after the prompt, text 1 and text 11, each
# without a break between them. Which texts these are is up to chance, as the scorer shuffles them;
# scored again, the same text has other losses. Where a latent's texts are alike, as they should be,
# the earlier ones predict the later, with or without explanation. In a batch, a text that is
# shorter than the longest also gets a loss of 0 at its end, for a token that it doesn't have.
# (A number of texts that isn't a multiple of ten ends in an error.) Older versions of
# Transformers, in which a cache was a tuple of tensors that stayed as it was, aren't affected.
#
# Seen (30 texts of 16 tokens, a random GPT-2; mean loss with the explanation and without, of the
# first, the 11th and the 21st text that were scored, and how many of the 30 are right, in each of
# two runs; then the losses of a text of 5 tokens that is scored with nine longer ones):
#   text 1 ("house number 103"): by hand 7.79 7.01 Delphi 7.79 7.01
#   text 11 ("house number 120"): by hand 7.80 7.23 Delphi 6.80 7.61
#   text 21 ("house number 109"): by hand 7.91 7.20 Delphi 8.06 7.43
#   right: 10, of them in the first ten 10
#   text 1 ("house number 126"): by hand 7.67 6.82 Delphi 7.67 6.82
#   text 11 ("house number 109"): by hand 7.91 7.20 Delphi 6.90 7.45
#   text 21 ("house number 114"): by hand 7.59 6.91 Delphi 7.96 7.16
#   right: 10, of them in the first ten 10
#   "house": by hand 5.13 9.71 10.26 3.94 Delphi 5.13 9.71 10.26 3.94 0.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet --no-compile"
$pip 'torch==2.13.0'
$pip 'numpy==2.4.6' 'transformers==5.24.0' 'tokenizers==0.23.3' 'jaxtyping==0.3.11' \
    'simple-parsing==0.1.9' 'blobfile==3.3.0' 'orjson==3.13.0' 'asyncer==0.0.18' 'httpx==0.28.1' \
    'beartype==0.23.1' 'tiktoken==0.14.0'
$pip --no-deps 'eai-delphi==0.1.3'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import asyncio
import random
import sys
from statistics import fmean
from unittest.mock import MagicMock

for name in ("vllm", "vllm.distributed", "vllm.distributed.parallel_state", "vllm.inputs",
             "faiss", "sentence_transformers"):
    sys.modules[name] = MagicMock()  # Delphi imports them for other scorers

import torch
from delphi.latents import ActivatingExample, Latent, LatentRecord
from delphi.scorers.surprisal.prompts import BASEPROMPT
from delphi.scorers.surprisal.surprisal import SurprisalScorer
from torch.nn.functional import cross_entropy
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

tokenizer = ByT5Tokenizer()  # its tokens are bytes
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=len(tokenizer), n_positions=4096, n_embd=32, n_layer=2, n_head=2,
    initializer_range=0.3, bos_token_id=0, eos_token_id=0)).eval()
model.tokenizer = tokenizer
EXPLANATION = "Numbers of houses."
texts = [f"house number {100 + i}" for i in range(30)]


def encode(text):
    return tokenizer.encode(text, add_special_tokens=False)


def example(text):
    return ActivatingExample(tokens=torch.tensor(encode(text)), str_tokens=list(text),
                             activations=torch.ones(len(text)))


def by_hand(text, explanation):
    """The losses of the tokens from the second, after the prompt and nothing else."""
    prompt = encode(f"{BASEPROMPT}Description: \n{explanation}\n Sentences:\n")
    ids = encode(text)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt):-1]
    return cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()


def score(texts, seed):
    examples = [example(text) for text in texts]
    random.seed(seed)
    record = LatentRecord(latent=Latent("layer", 0), explanation=EXPLANATION,
                          extra_examples=examples[:5], test=examples[5:])
    return asyncio.run(SurprisalScorer(model, verbose=False, batch_size=10)(record)).score


for seed in (0, 1):
    right = []
    for place, found in enumerate(score(texts, seed)):
        hands = [fmean(by_hand(found.text, explanation))
                 for explanation in (EXPLANATION, "Various unrelated sentences.")]
        delphis = [fmean(found.explanation), fmean(found.no_explanation)]
        right.append(all(abs(a - b) < 1e-3 for a, b in zip(hands, delphis)))
        assert len(found.explanation) == len(found.text) - 1
        if place % 10 == 0:
            print(f"text {place + 1} (\"{found.text}\"): by hand", *(f"{x:.2f}" for x in hands),
                  "Delphi", *(f"{x:.2f}" for x in delphis))
    print(f"right: {sum(right)}, of them in the first ten {sum(right[:10])}")
    assert all(right[:10]) and not any(right[10:])

found = {found.text: found.explanation for found in score(texts[:9] + ["house"], 0)}["house"]
print("\"house\": by hand", *(f"{x:.2f}" for x in by_hand("house", EXPLANATION)),
      "Delphi", *(f"{x:.2f}" for x in found))
assert len(found) == 5 and found[-1] == 0
END
