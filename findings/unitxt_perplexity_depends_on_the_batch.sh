#!/usr/bin/env bash
# Guess: unitxt's metric Perplexity, with a decoder-only model and the templates "{reference}" and
# "{prediction}", is the perplexity of the prediction after the reference: exp of the mean loss of
# its tokens, at least 1, the lower the better, as its docstring says. It's the same whether texts
# are scored alone or together.
#
# unitxt 1.26.10, transformers 5.24.0, torch 2.13.0: it's 1 divided by that, at most 1, the higher
# the better (of several references it takes the largest). And it's right only if a text is alone,
# or all have the same numbers of tokens. Sources and targets are padded separately, each on the
# right, and then joined. So the padding of a shorter source lies between it and its target: the
# first token of the target is predicted after a token of padding, and all of them at positions that
# are too large, as the mask hides the padding but shifts nothing. batch_size=1 is a way around.
# Also, the token with the id 0 (GPT-2's "!") adds its loss, but isn't counted: with it the mean is
# too large, and a target of it alone has 0, which is an infinite perplexity. Encoder-decoder models
# aren't affected (unitxt's catalog has T5 models: their padding is masked, and its id is 0).
#
# Seen (a random GPT-2; by hand: perplexity and 1 / perplexity; by unitxt: alone, all together, all
# with batch_size=1):
#   the cat sat on the mat and then | it slept: by hand 91.97, 0.0109; unitxt 0.0109, 0.0109, 0.0109
#   the dog | slept and slept: by hand 14.69, 0.0681; unitxt 0.0681, 0.0360, 0.0681
#   the dog | slept still: by hand 32.25, 0.0310; unitxt 0.0310, 0.0192, 0.0310
#   it | was a cat !: by hand 25.33, 0.0395; unitxt 0.0134, 0.0029, 0.0134
#   was it still a cat | !: by hand 28.30, 0.0353; unitxt 0.0000, 0.0000, 0.0000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'transformers==5.24.0' \
    'tokenizers==0.23.3' 'datasets==5.2.0' 'evaluate==0.4.6' 'unitxt==1.26.10'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import os

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from unitxt.metrics import Perplexity

words = "! a and cat dog it mat on sat slept still the then was <|endoftext|>".split()
tokenizer = Tokenizer(models.WordLevel(dict(zip(words, range(99))), unk_token="<|endoftext|>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
torch.manual_seed(0)
last = len(words) - 1
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=len(words), n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
    bos_token_id=last, eos_token_id=last)).eval()
model.save_pretrained("gpt2")
tokenizer.save_pretrained("gpt2")


def by_hand(source, target):
    ids, labels = (tokenizer(text).input_ids for text in (source, target))
    with torch.no_grad():
        logits = model(torch.tensor([ids + labels])).logits[0, len(ids) - 1:-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).exp().item()


def unitxt(pairs, **settings):
    sources, targets = zip(*pairs)
    metric = Perplexity(model_name=os.path.abspath("gpt2"), source_template="{reference}",
                        target_template="{prediction}", **settings)
    scores = metric.compute(references=[[source] for source in sources],
                            predictions=list(targets), task_data=[{} for _ in pairs])
    return [score["perplexity"] for score in scores]


def close(a, b):
    return abs(a - b) < 1e-3 * b


pairs = [("the cat sat on the mat and then", "it slept"), ("the dog", "slept and slept"),
         ("the dog", "slept still"), ("it", "was a cat !"), ("was it still a cat", "!")]
together, one_by_one = unitxt(pairs), unitxt(pairs, batch_size=1)
for pair, in_batch, single in zip(pairs, together, one_by_one):
    right = by_hand(*pair)
    alone = unitxt([pair])[0]
    print(*pair, sep=" | ", end=f": by hand {right:.2f}, {1 / right:.4f}; ")
    print(f"unitxt {alone:.4f}, {in_batch:.4f}, {single:.4f}")
    count = len(pair[1].split())
    others = count - pair[1].count("!")
    assert close(alone, right ** (-count / others)) if others else alone == 0
    assert close(single, alone) or single == alone == 0
    assert close(in_batch, alone) == (pair == pairs[0]) or others == 0
same = [pairs[2], ("a cat", "sat on")]
assert all(close(a, 1 / by_hand(*pair)) for a, pair in zip(unitxt(same), same))
END
