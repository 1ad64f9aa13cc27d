#!/usr/bin/env bash
# Guess: dare_linear of mergekit with density 0.5 sets each element of the difference between a
# fine-tuned model and its base to 0 or doubles it: DARE drops elements and divides the others by
# the share that is kept, so that each is right on average. DELLA keeps large elements more often
# than small ones and divides each by its own probability, with the same result on average.
#
# mergekit 0.1.5, transformers 5.24.0, torch 2.13.0: neither divides by a probability. "rescale", on
# for the DARE and DELLA methods unless told otherwise ("applies DARE's rescaling", it says in the
# guide), multiplies what is left of a tensor by one number, so that the sum of its absolute values
# is what it was. For DARE and a large matrix that is near 2. But if one element holds much of the
# sum, as in a bias or norm with a large value, it's near 1 when that one stays, and all others lose
# up to half of their size on average; when it's dropped, the others get its part and are far too
# large. For DELLA it's wrong in every matrix: one number can't undo different probabilities, so
# that small changes shrink to a third and large ones grow. With rescale: false and lambda: 2 (1
# over the density; lambda multiplies the sum over all models) dare_linear is DARE; DELLA has no
# such way.
#
# Seen (GPT-2's c_fc, one element of the bias changed by 4, all others by 0.01 times a normal draw;
# DARE: what kept elements are multiplied by, for 6 seeds; DELLA: the mean of what each fifth of a
# row's elements, from the smallest to the largest, is multiplied by, zeros included):
#   DARE: matrix 2.02 2.00 1.99 1.99 2.00 1.99 bias 3.96 3.90 3.80 1.36 3.79 1.36
#   DARE, rescale: false, lambda: 2: matrix 2.00 2.00 2.00 2.00 2.00 2.00 bias 2.00 2.00 2.00 2.00
#     2.00 2.00
#   DELLA, epsilon 0.15: mean 0.70 0.78 0.90 1.00 1.11 by the paper 1.01 1.01 1.01 1.01 1.01
#   DELLA, epsilon 0.4: mean 0.31 0.52 0.76 1.00 1.25 by the paper 1.00 1.00 1.00 1.01 1.01

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'safetensors==0.8.0' \
    'peft==0.21.2' 'mergekit==0.1.5'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>log <<'END' || { cat log; exit 1; }
import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

WEIGHT, BIAS = "transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=128, vocab_size=64, n_positions=32,
                                   bos_token_id=0, eos_token_id=0))
model.save_pretrained("base")
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    model.state_dict()[BIAS][7] += 4
model.save_pretrained("tuned")
base, tuned = (load_file(f"{name}/model.safetensors") for name in ("base", "tuned"))


def merge(method, seed, model, **settings):
    """Merge, and return each tensor's change relative to the fine-tuned model's change."""
    config = MergeConfiguration.model_validate({
        "merge_method": method, "base_model": "base", "dtype": "float32", "parameters": settings,
        "models": [{"model": "tuned", "parameters": {"weight": 1, **model}}]})
    run_merge(config, "merged", MergeOptions(
        random_seed=seed, quiet=True, write_model_card=False))
    merged = load_file("merged/model.safetensors")
    return {name: ((merged[name] - base[name]).double(), (tuned[name] - base[name]).double())
            for name in (WEIGHT, BIAS)}


def factors(change, full):
    """Return the smallest and the largest factor of the elements that were kept."""
    kept = (change.abs() > 1e-4) & (full.abs() > 1e-3)
    ratio = (change / full)[kept]
    return ratio.min().item(), ratio.max().item()


def dare(name, **settings):
    matrix, bias = [], []
    for seed in range(6):
        tensors = merge("dare_linear", seed, {"density": 0.5}, **settings)
        for result, key in ((matrix, WEIGHT), (bias, BIAS)):
            small, large = factors(*tensors[key])
            assert large - small < 0.01
            result.append(large)
    print(f"{name}: matrix", *(f"{one:.2f}" for one in matrix), "bias",
          *(f"{one:.2f}" for one in bias))
    return matrix, bias


matrix, bias = dare("DARE")
assert all(abs(one - 2) < 0.05 for one in matrix)
assert all(one < 1.5 or one > 2.5 for one in bias) and min(bias) < 1.5 and max(bias) > 2.5
matrix, bias = dare("DARE, rescale: false, lambda: 2", rescale=False, **{"lambda": 2})
assert all(abs(one - 2) < 0.01 for one in matrix + bias)


def mean_factors(change, full):
    """Return the mean factor, with zeros, of each fifth of a row's elements by their size."""
    order = full.abs().argsort(1)
    fifths = (part.abs().sum() for part in change.gather(1, order).tensor_split(5, 1))
    return [(one / part.abs().sum()).item()
            for one, part in zip(fifths, full.gather(1, order).tensor_split(5, 1))]


for density, epsilon in ((0.5, 0.15), (0.5, 0.4)):
    change, full = merge("della_linear", 0, {"density": density, "epsilon": epsilon})[WEIGHT]
    seen = mean_factors(change, full)
    ranks = full.abs().argsort(1).argsort(1) / (full.shape[1] - 1)
    keep = density - epsilon + 2 * epsilon * ranks
    paper = mean_factors(full * torch.bernoulli(keep) / keep, full)
    print(f"DELLA, epsilon {epsilon}: mean", *(f"{one:.2f}" for one in seen), "by the paper",
          *(f"{one:.2f}" for one in paper))
    assert all(abs(one - 1) < 0.15 for one in paper)
    assert seen == sorted(seen) and seen[0] < 0.8 and seen[-1] > 1.05
END
