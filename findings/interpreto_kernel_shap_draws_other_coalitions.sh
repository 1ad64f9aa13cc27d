#!/usr/bin/env bash
# Guess: interpreto's KernelShap comes as near to the Shapley values of a prompt's tokens as one
# likes, given enough perturbations, and the values add up to what all tokens together do to the
# target's logit.
#
# interpreto 0.5.2, transformers 5.24.0, torch 2.13.0: neither. How many tokens are replaced is to
# be drawn in proportion to 1 / (k (n - k)), as its docstring says, so that a plain regression has
# the weights of the Shapley kernel: most often one token, or all but one. It is drawn in proportion
# to k (n - k), the inverse, so that half of the tokens is the most frequent (a comment calls the
# right one weird). And the prompt itself and the one with everything replaced, which the kernel
# gives infinite weight, are never drawn, so nothing ties the sum to the difference. If tokens act
# together (redundant evidence, a negation), the values are others than Shapley's, and more
# perturbations only make them more certain.
#
# Seen (2-layer GPT-2s with random weights, a prompt of 12 tokens each, 8,000 perturbations, which
# is nearly all that interpreto allows here; "all ways" is a regression on all 4,096 coalitions,
# with these frequencies of the sizes as weights; largest error of an attribution against the exact
# Shapley value, relative to the largest of those):
#   exact: sum -2.25
#       KernelShap: error 12.0%, sum -1.81
#       k (n - k), all ways: error 13.8%, sum -1.77
#       Shapley kernel, all ways: error 0.0%, sum -2.25
#   exact: sum -0.30
#       KernelShap: error 17.7%, sum 0.31
#       k (n - k), all ways: error 18.9%, sum 0.33
#       Shapley kernel, all ways: error 0.0%, sum -0.30
#   exact: sum -1.47
#       KernelShap: error 13.5%, sum -0.30
#       k (n - k), all ways: error 13.6%, sum -0.38
#       Shapley kernel, all ways: error 0.0%, sum -1.47

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'nnsight==0.7.0' 'interpreto==0.5.2'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import itertools
import math
import random
import string

import torch
from interpreto import Granularity, KernelShap
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END, SPACE = "<|endoftext|>", "\u0120"
LENGTH, DRAWS = 12, 8000

# GPT-2's kind of tokenizer, for words of one letter, with the token that interpreto puts in.
words = [SPACE + letter for letter in string.ascii_lowercase]
names = [END, SPACE, *string.ascii_lowercase, *words]
tokenizer = Tokenizer(models.BPE(
    vocab={name: i for i, name in enumerate(names)}, merges=[tuple(word) for word in words]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([END])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)
tokenizer.add_tokens(["[REPLACE]"])
replace = tokenizer.convert_tokens_to_ids("[REPLACE]")
target = tokenizer(" m").input_ids
assert len(target) == 1

# All ways to keep some of the tokens, in the order of binary numbers.
kept = torch.tensor(list(itertools.product([0, 1], repeat=LENGTH)))
size = kept.sum(dim=1)


def shapley(values):
    """Return the exact Shapley values, from the values of all ways."""
    factor = [math.factorial(i) for i in range(LENGTH + 1)]
    weight = torch.tensor([factor[k] * factor[LENGTH - 1 - k] / factor[LENGTH]
                           for k in range(LENGTH)] + [0.0], dtype=torch.float64)
    number, result = torch.arange(2**LENGTH), []
    for i in range(LENGTH):
        bit = 1 << (LENGTH - 1 - i)
        without = number[number & bit == 0]
        gain = values[without | bit] - values[without]
        result.append((weight[size[without]] * gain).sum())
    return torch.stack(result)


def regression(values, ways, weights):
    """Return the coefficients of a weighted linear regression."""
    columns = torch.cat([torch.ones(len(ways), 1), ways], dim=1).double()
    root = weights.double().sqrt()[:, None]
    return torch.linalg.lstsq(columns * root, values[:, None] * root).solution[1:, 0]


def chances(frequency):
    """Return a weight for each way, from the frequency of how many tokens are replaced."""
    each = [frequency(k) / math.comb(LENGTH, k) for k in range(1, LENGTH)]
    return torch.tensor([0.0, *each, 0.0], dtype=torch.float64)[size]


for seed in range(3):
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=64, n_layer=2, n_head=4,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
    prompt = " ".join(random.Random(seed).choices(string.ascii_lowercase, k=LENGTH))
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids.shape == (1, LENGTH)
    with torch.no_grad():
        values = torch.cat([model(part).logits[:, -1, target[0]] for part in torch.where(
            kept == 1, ids, replace).split(512)]).double()
    exact, difference = shapley(values), (values[-1] - values[0]).item()
    assert abs(exact.sum() - difference) < 1e-4

    method = KernelShap(model, tokenizer, n_perturbations=DRAWS, batch_size=500,
                        granularity=Granularity.ALL_TOKENS)
    theirs = method.explain([prompt], [" m"])[0].attributions[0, :LENGTH].double()

    # The Shapley kernel: these frequencies, and nearly infinite weights for both ends.
    right = chances(lambda k: 1 / (k * (LENGTH - k)))
    right[[0, -1]] = 1e6
    by_hand = regression(values, kept, right)
    inverse = regression(values, kept, chances(lambda k: k * (LENGTH - k)))

    print(f"exact: sum {exact.sum():.2f}")
    errors = []
    for name, attributions in (("KernelShap", theirs), ("k (n - k), all ways", inverse),
                               ("Shapley kernel, all ways", by_hand)):
        errors.append(((attributions - exact).abs().max() / exact.abs().max()).item())
        print(f"    {name}: error {errors[-1]:.1%}, sum {attributions.sum():.2f}")
    assert errors[0] > 0.04 and errors[2] < 1e-3
    assert (theirs - inverse).abs().max() < 0.5 * (theirs - exact).abs().max()
    assert abs(by_hand.sum() - difference) < 1e-3 < abs(theirs.sum() - difference)
END
