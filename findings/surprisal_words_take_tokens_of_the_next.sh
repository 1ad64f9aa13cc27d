#!/usr/bin/env bash
# Guess: surprisal's s[a:b, "word"] is the sum of the surprisals of the tokens of words a to b - 1,
# for a text alone and in a batch: s[3, "word"] is what the fourth word costs.
#
# surprisal 0.1.7, transformers 5.24.0, torch 2.13.0: only if the word after them is a single token.
# To find the end of the slice, it goes over the tokens and puts the end at each one that belongs to
# word b, and so at last before the final token of that word, in place of its first. All tokens of
# the next word but one are counted, too. A common word before a rare name costs many times what it
# should, and the sums of neighbouring words overlap. In experiments on reading times, this puts the
# cost of a rare word on the word before it as well. Second, a slice that goes to the end of a text,
# by its last word or by s[a:], is infinite in a batch with a longer text: the end token that it is
# padded with counts as part of the text, and its probability has been set to 0 (as in the text
# itself, where an end token is impossible, so that all others are a little likelier). No word that
# isn't followed by a longer one is wrong, like those of README's example; nor are spans of
# characters, s[13:17]. Of both, nothing is said.
#
# Seen (a 2-layer GPT-2 with random weights, whose tokenizer knows all words but one, of 7 letters):
#   the words of 'the cat is on the sofabed mat', as sliced (by hand):
#   the 6.05 (6.05), cat 7.85 (7.85), is 8.52 (8.52)
#   on 5.52 (5.52), the 63.48 (5.95), sofabed 64.23 (64.23)
#   mat 7.55 (7.55)
#   by characters: ' the' 5.95, ' sofabed' 64.23
#   in a batch with a longer text: the inf

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'surprisal==0.1.7'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END_OF_PYTHON' || { cat "$folder/log"; exit 1; }
import math

import torch
from surprisal import AutoHuggingFaceModel
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

TEXT, END = "the cat is on the sofabed mat", "<|endoftext|>"
bpe = ByteLevelBPETokenizer()
bpe.train_from_iterator(["the cat is on the mat"] * 9, vocab_size=300, special_tokens=[END])
bpe.save_model(".")
tokenizer = GPT2TokenizerFast(vocab="vocab.json", merges="merges.txt")
tokenizer.save_pretrained("gpt2")
torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2,
                                  n_head=2, initializer_range=0.3, bos_token_id=0, eos_token_id=0))
gpt2.eval().save_pretrained("gpt2")

# by hand: the surprisal of each token after <|endoftext|>, which can't come again, summed by word
encoding = tokenizer(TEXT)
with torch.no_grad():
    logits = gpt2(torch.tensor([[0] + encoding.input_ids])).logits[0, :-1]
logits[:, 0] = -math.inf
costs = [-row[token].item() for row, token in zip(logits.log_softmax(-1), encoding.input_ids)]
words = TEXT.split()
by_hand = [sum(cost for cost, of in zip(costs, encoding.word_ids()) if of == i)
           for i in range(len(words))]
counts = [encoding.word_ids().count(i) for i in range(len(words))]

model = AutoHuggingFaceModel.from_pretrained("gpt2")
[result] = model.surprise(TEXT)
assert all(abs(a - b) < 1e-3 for a, b in zip(result.surprisals, costs, strict=True))
sliced = [float(result[i:i + 1, "word"]) for i in range(len(words))]
print(f"the words of {TEXT!r}, as sliced (by hand):")
line = [f"{word} {a:.2f} ({b:.2f})" for word, a, b in zip(words, sliced, by_hand)]
print("\n".join(", ".join(line[i:i + 3]) for i in range(0, len(line), 3)))
rare = words.index("sofabed")
assert counts[rare] > 5 and counts.count(1) == len(words) - 1
for i, (a, b) in enumerate(zip(sliced, by_hand)):
    first = sum(counts[:i + 1])
    excess = sum(costs[first:first + counts[rare] - 1]) if i == rare - 1 else 0
    assert abs(a - b - excess) < 1e-3
assert sliced[rare - 1] > 5 * by_hand[rare - 1]

the, sofabed = float(result[13:17]), float(result[17:25])
print(f"by characters: {TEXT[13:17]!r} {the:.2f}, {TEXT[17:25]!r} {sofabed:.2f}")
assert abs(the - by_hand[rare - 1]) < 1e-3 and abs(sofabed - by_hand[rare]) < 1e-3
short, _ = model.surprise(["the cat is on the", TEXT])
print(f"in a batch with a longer text: the {float(short[4:5, 'word']):.2f}")
assert float(short[4:5, "word"]) == math.inf
END_OF_PYTHON
