#!/usr/bin/env bash
# Guess: mergekit's sce gives each model a coefficient per tensor, its share of the mean squares of
# the differences from the base ("derived from the mean of the squares of the elements within each
# task vector and normalized across the models", says the guide). It's a share, so it's the same if
# all differences are ten times as small: a model that has changed ten times as much as the other
# gets 99 %, at a learning rate of 1e-3 as at one of 1e-5.
#
# mergekit 0.1.5, transformers 5.24.0, torch 2.13.0: if the mean squares of all models together are
# below 1e-6, every model gets the same coefficient. It's meant for tensors that no model has
# changed, where the share would be 0 / 0, but it's no small bound: with two models it's reached
# when both differ from the base by less than 0.0007 in root mean square. AdamW moves a weight by
# about the learning rate in a step at most, and so 100 steps at 1e-5 stay below. Then sce is the
# mean of the models where their signs agree, and a model that has hardly changed halves what
# another has learned. It's tensor by tensor, so in one merge some tensors are weighed and others
# are not (below at 1e-4 the bias of the last norm). Nothing is said or logged of it. Multiplying
# all differences by 100 before and dividing by 100 after gives the coefficients of the guide.
#
# Seen (a small GPT-2, fine-tuned for 100 and for 10 steps of AdamW; for the matrix c_fc the root
# mean squares of the changes and the first model's coefficient, in brackets by hand; how many of
# the 28 tensors have the coefficients of the guide; how large the merged change is, all in all, by
# that by hand):
#   learning rate 1e-3: 0.01462 and 0.00518, 0.888 (0.888), 28 of 28 tensors, 1.00 of the change
#   learning rate 1e-4: 0.00411 and 0.00062, 0.977 (0.977), 27 of 28 tensors, 1.00 of the change
#   learning rate 1e-5: 0.00056 and 0.00006, 0.500 (0.988), 0 of 28 tensors, 0.81 of the change

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'safetensors==0.8.0' \
    'peft==0.21.2' 'mergekit==0.1.5'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>log <<'END' || { cat log; exit 1; }
import copy

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

MATRIX = "transformer.h.0.mlp.c_fc.weight"

torch.manual_seed(0)
base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=64, n_layer=2, n_head=2,
                                  bos_token_id=0, eos_token_id=0))
base.save_pretrained("base")


def tune(steps, stride, rate):
    """Learn to count in strides."""
    model = copy.deepcopy(base).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        batch = (torch.randint(64, (8, 1)) + stride * torch.arange(16)) % 64
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def by_hand(changes):
    """Return the merged change and the first model's coefficient as the guide has it."""
    squares = torch.stack([change.square().mean() for change in changes])
    shares = squares / squares.sum()
    sign = torch.where(changes.sum(0) >= 0, 1, -1)
    weights = shares.view(-1, *[1] * (changes.dim() - 1)) * (changes.sign() == sign)
    return (changes * weights).sum(0) / weights.sum(0).clamp(min=1e-6), shares[0].item()


def length(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).norm().item()


for rate in ("1e-3", "1e-4", "1e-5"):
    models = [f"{steps} steps, {rate}" for steps in (100, 10)]  # no folder twice: they are kept
    tune(100, 1, float(rate)).save_pretrained(models[0])
    tune(10, 3, float(rate)).save_pretrained(models[1])
    run_merge(MergeConfiguration.model_validate({
        "merge_method": "sce", "base_model": "base", "dtype": "float32",
        "models": [{"model": model} for model in models]}), f"merged {rate}", MergeOptions(
        quiet=True, write_model_card=False))
    start, merged, *tuned = (load_file(f"{name}/model.safetensors").items()
                             for name in ("base", f"merged {rate}", *models))
    start, merged, tuned = dict(start), dict(merged), [dict(each) for each in tuned]
    right, got, expected = 0, [], []
    for name in start:
        changes = torch.stack([each[name] - start[name] for each in tuned])
        change, share = by_hand(changes)
        got.append(merged[name] - start[name])
        expected.append(change)
        right += (got[-1] - change).norm().item() < 0.01 * change.norm().item()
        if name == MATRIX:
            agree = changes[0].sign() == changes[1].sign()
            gap = (changes[0] - changes[1])[agree]
            coefficient = ((got[-1] - changes[1])[agree] @ gap / (gap @ gap)).item()
            sizes = changes.square().mean((1, 2)).sqrt().tolist()
            result = coefficient, share
    part = length(got) / length(expected)
    print(f"learning rate {rate}: {sizes[0]:.5f} and {sizes[1]:.5f}, {result[0]:.3f} "
          f"({result[1]:.3f}), {right} of {len(start)} tensors, {part:.2f} of the change")
    assert len(start) == 28 and right == {"1e-3": 28, "1e-4": 27, "1e-5": 0}[rate]
    if rate == "1e-5":
        assert abs(result[0] - 0.5) < 0.001 and result[1] > 0.98 and part < 0.9
    else:
        assert abs(result[0] - result[1]) < 0.001 and abs(part - 1) < 0.01
END
