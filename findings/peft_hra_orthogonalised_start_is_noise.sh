#!/usr/bin/env bash
# Guess: a fresh HRA adapter of PEFT's leaves the model as it is, with apply_GS=True as well. HRA
# multiplies a weight by reflections along learned vectors, of which its default start makes each
# two equal, so that they cancel. apply_GS makes the vectors orthogonal to each other, and the
# product is a rotation (singular values 1) in either case.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: with both, the adapter starts from noise. Of two
# equal vectors Gram-Schmidt leaves nothing but rounding errors for the second, and it divides them
# by their length. What comes out points anywhere and isn't orthogonal to the others, so the
# "rotation" stretches the weight to the threefold along some direction. Where the difference is
# exactly zero (with other seeds and sizes), the loss is NaN from the start; elsewhere the gradient
# is larger by up to twelve orders of magnitude, as it's divided by that length, too. Nothing is
# said about it. With init_weights=False (random vectors; one is told not to change that) it is a
# rotation, though not by zero; so it is with an odd r, of which PEFT warns that the vectors don't
# pair. The numbers with apply_GS depend on how the processor rounds.
#
# Seen (a small Llama that has learned to count, adapter on all its linear layers; the loss, the
# norm of its gradient, the largest and smallest singular value of the layers' rotations):
#   without an adapter: 0.0026
#   r=2: 0.0026, gradient 2e-06, 1.00 to 1.00
#   r=2, apply_GS: 0.0042, gradient 2e+04, 2.99 to 0.58
#   r=2, apply_GS, random vectors: 0.0032, gradient 0.0003, 1.00 to 1.00
#   r=8: 0.0026, gradient 9e-06, 1.00 to 1.00
#   r=8, apply_GS: 0.0943, gradient 5e+06, 3.40 to 0.28
#   r=8, apply_GS, random vectors: 0.0093, gradient 0.01, 1.00 to 1.00
#   r=16: 0.0026, gradient 2e-05, 1.00 to 1.00
#   r=16, apply_GS: 0.9844, gradient 5e+07, 3.59 to 0.24
#   r=16, apply_GS, random vectors: 0.0542, gradient 0.2, 1.00 to 1.00
#   r=7, apply_GS: 0.0072, gradient 0.007, 1.00 to 1.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'safetensors==0.8.0' \
    'peft==0.21.2'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import copy
import math

import torch
from peft import HRAConfig, get_peft_model
from peft.tuners.hra import HRALinear
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
learned = LlamaForCausalLM(LlamaConfig(
    vocab_size=50, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=2, bos_token_id=0, eos_token_id=0))
text = (torch.arange(16) + torch.randint(50, (32, 1))) % 50


def loss_of(model):
    return model(text, labels=text).loss


adamw = torch.optim.AdamW(learned.parameters(), lr=5e-3)
for _ in range(150):
    loss_of(learned).backward()
    adamw.step()
    adamw.zero_grad()
before = loss_of(learned).item()
print(f"without an adapter: {before:.4f}")
assert before < 0.01


def start(name, **settings):
    """Print and return the loss, its gradient's norm and singular values with a new adapter."""
    torch.manual_seed(1)
    model = get_peft_model(
        copy.deepcopy(learned), HRAConfig(target_modules="all-linear", **settings))
    loss = loss_of(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norm = sum(g.square().sum() for g in torch.autograd.grad(loss, trained)).sqrt().item()
    rotations = [module.get_delta_weight("default").detach()
                 for module in model.modules() if isinstance(module, HRALinear)]
    # a layer with NaN has no singular values
    values = torch.cat([torch.linalg.svdvals(r) for r in rotations if r.isfinite().all()])
    largest, smallest = values.max().item(), values.min().item()
    missing = sum(not r.isfinite().all() for r in rotations)
    print(f"{name}: {loss.item():.4f}, gradient {norm:.1g}, {largest:.2f} to {smallest:.2f}"
          + f", NaN in {missing} of {len(rotations)} layers" * (missing > 0))
    return loss.item(), norm, largest


def is_rotation(largest):
    return abs(largest - 1) < 1e-3


for r in (2, 8, 16):
    loss, norm, largest = start(f"r={r}", r=r)
    assert abs(loss - before) < 1e-3 and norm < 0.01 and is_rotation(largest)
    loss, norm, largest = start(f"r={r}, apply_GS", r=r, apply_GS=True)
    assert math.isnan(loss) or norm > 1000 and loss > before + 1e-3
    assert largest > 1.5
    _, norm, largest = start(f"r={r}, apply_GS, random vectors", r=r, apply_GS=True,
                             init_weights=False)
    assert norm < 100 and is_rotation(largest)
_, norm, largest = start("r=7, apply_GS", r=7, apply_GS=True)
assert norm < 100 and is_rotation(largest)

# Each two vectors are equal, so a second one that is orthogonal to the first doesn't exist
model = get_peft_model(copy.deepcopy(learned), HRAConfig(r=2, target_modules=["q_proj"]))
pairs = [module.hra_u["default"] for module in model.modules() if isinstance(module, HRALinear)]
assert pairs and all(torch.equal(pair[:, 0], pair[:, 1]) for pair in pairs)
END
