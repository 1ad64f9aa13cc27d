#!/usr/bin/env bash
# Guess: interpreto's IntegratedGradients, with a hundred steps, gives each token of the prompt
# of a GPT-2 its part of the difference that the prompt makes to the target's logit, compared with
# the baseline: together they are that difference, a token that speaks against the target counts
# negative, and with the prompt itself as the baseline all are 0.
#
# interpreto 0.5.2, transformers 5.24.0, torch 2.13.0: what it gives is something else. At each of
# the points between prompt and baseline the gradient is multiplied by that point, not by the way
# from the baseline to the prompt, and the absolute values of all these products are averaged over
# the width of the embedding, before the mean over the points. So all attributions are positive,
# they don't add up to anything, a baseline that is farther away doesn't count more, and tokens that
# change nothing (prompt and baseline are the same there) have attributions like the others. What
# speaks for and against cancels within a token in integrated gradients, not here: tokens with
# hardly any influence come first. The docstring has the paper's reference and says nothing of it;
# input_x_gradient, which is on by default, is said to multiply by the embeddings. (GradientShap
# works by the same code.)
#
# Seen (a 2-layer GPT-2 with random weights, 20 prompts of 10 tokens, the logit of one token to
# follow, 100 steps; "by hand" is the integral, which IntegratedGradients should be):
#   sum of the attributions, first prompt: by hand -0.41, IntegratedGradients 0.30
#       (difference of the logits: -0.41; mean of |gradient * point|: 0.30)
#   negative attributions: by hand 108 of 200, IntegratedGradients 0 of 200
#   most important token: as by hand for 7 of 20 prompts
#   mean size of the attributions: IntegratedGradients 0.025
#       with the prompt as its own baseline 0.043

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
import random
import string

import torch
from interpreto import Granularity, IntegratedGradients
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END, SPACE = "<|endoftext|>", "\u0120"
STEPS, LENGTH, PROMPTS = 100, 10, 20

# GPT-2's kind of tokenizer, for words of one letter.
words = [SPACE + letter for letter in string.ascii_lowercase]
names = [END, SPACE, *string.ascii_lowercase, *words]
tokenizer = Tokenizer(models.BPE(
    vocab={name: i for i, name in enumerate(names)}, merges=[tuple(word) for word in words]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([END])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=len(names), n_positions=32, n_embd=64, n_layer=2, n_head=4, initializer_range=0.2,
    bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
target = tokenizer(" m").input_ids
assert len(target) == 1


def logit(points):
    """Return the target's logit after texts that are given as embeddings."""
    return model(inputs_embeds=points).logits[:, -1, target[0]]


def gradients(start, end):
    """Return evenly spaced points from start to end, and the logit's gradients there."""
    way = torch.linspace(0, 1, STEPS)[:, None, None]
    points = (start + way * (end - start)).requires_grad_()
    return points.detach(), torch.autograd.grad(logit(points).sum(), points)[0]


def integral(values):
    """Return the integral over a way of length 1, by the trapezoidal rule."""
    return torch.trapezoid(values, dim=0) / (STEPS - 1)


def explain(prompt, **settings):
    """Return the attributions by interpreto, for the tokens of the prompt."""
    method = IntegratedGradients(
        model, tokenizer, n_perturbations=STEPS, batch_size=STEPS,
        granularity=Granularity.ALL_TOKENS, **settings)
    output = method.explain([prompt], [" m"])[0]
    assert [element.strip() for element in output.elements] == [*prompt.split(), "m"]
    assert output.attributions.shape == (1, LENGTH + 1)
    return output.attributions[0, :LENGTH]


dice = random.Random(0)
right, theirs, unmoved = [], [], []
for number in range(PROMPTS):
    prompt = " ".join(dice.choices(string.ascii_lowercase, k=LENGTH))
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids.shape == (1, LENGTH)
    end = model.get_input_embeddings()(ids)[0].detach()
    start = torch.full_like(end, 1e-6)  # interpreto's default

    points, slopes = gradients(start, end)
    right.append((integral(slopes) * (end - start)).sum(dim=-1))
    theirs.append(explain(prompt))
    with_target = model.get_input_embeddings()(torch.cat([ids[0], torch.tensor(target)])).detach()
    unmoved.append(explain(prompt, baseline=with_target))

    with torch.no_grad():
        difference = (logit(end[None]) - logit(start[None])).item()
    by_hand = integral((slopes * points).abs().mean(dim=-1))
    assert abs(right[-1].sum() - difference) < 0.02 * max(1, abs(difference))
    torch.testing.assert_close(theirs[-1], by_hand, rtol=1e-3, atol=1e-5)
    if number == 0:
        print(f"sum of the attributions, first prompt: by hand {right[0].sum():.2f}, "
              f"IntegratedGradients {theirs[0].sum():.2f}\n    (difference of the logits: "
              f"{difference:.2f}; mean of |gradient * point|: {by_hand.sum():.2f})")

right, theirs, unmoved = map(torch.stack, (right, theirs, unmoved))
same = (right.abs().argmax(dim=-1) == theirs.argmax(dim=-1)).sum()
print(f"negative attributions: by hand {(right < 0).sum()} of {right.numel()}, "
      f"IntegratedGradients {(theirs < 0).sum()} of {theirs.numel()}")
print(f"most important token: as by hand for {same} of {PROMPTS} prompts")
print(f"mean size of the attributions: IntegratedGradients {theirs.abs().mean():.3f}\n"
      f"    with the prompt as its own baseline {unmoved.abs().mean():.3f}")
assert (right < 0).sum() > 50 and (theirs > 0).all()
assert same < PROMPTS
assert (unmoved > 0).all() and unmoved.mean() > theirs.mean() / 2
END
