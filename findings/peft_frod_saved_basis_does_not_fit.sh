#!/usr/bin/env bash
# Guess: An adapter that PEFT's FRoD has saved with its projections, as it does by default, is what
# was trained when it's on the same base model again, as with LoRA: if the base is in bfloat16 then,
# but for rounding, and whatever other adapters there were in training. The help of save_projection
# says that it "guarantees that we can reload the adapter on all system configurations".
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: FRoD writes a weight W as U L V^T, learns L and a
# few entries beside its diagonal, and has one V for all layers of a kind. V is saved, U isn't:
# loading builds the adapter anew, with a V from the base at hand and U from that V, then puts the
# saved V in the place of V and keeps U. They fit only if the new V is the old one to the last bit,
# or nearly. It isn't when the base is rounded: eigenvectors change sign and order. Nor when V came
# from other layers than those of the adapter, as for an adapter which is the second one in training
# and has fewer layers than the first. The model is then worse than the base alone, since U L V^T
# has lost W, too. Nothing is said. Taking U from the saved V by hand gives what was trained.
#
# Seen (a Llama of 2 layers; the loss of the base, trained, loaded, and loaded with U by hand):
#   LoRA, float32 base: 4.77, trained 0.26, loaded 0.26
#   LoRA, bfloat16 base: 4.77, trained 0.26, loaded 0.26
#   FRoD, float32 base: 4.77, trained 1.23, loaded 1.23, by hand 1.23
#   FRoD, bfloat16 base: 4.77, trained 1.23, loaded 4.87, by hand 1.23
#   FRoD, second, of one layer, float32 base: 4.77, trained 2.50, loaded 4.91, by hand 2.50

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

import torch
from peft import FrodConfig, LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, initializer_range=0.2, bos_token_id=0, eos_token_id=0))
text = torch.randint(1, 64, (4, 12))
modules = {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}


@torch.no_grad()
def loss_of(model):
    return model(input_ids=text, labels=text).loss.item()


def train(model):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-2)
    for _ in range(60):
        model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss_of(model)


def fit(model):
    """Make U anew from V, as it is now, and the weights of the base."""
    for module in model.modules():
        if hasattr(module, "frod_U"):
            weight = module.get_base_layer().weight.double()
            scaled = torch.linalg.solve(module.frod_V["default"].double(), weight.T).T
            module.frod_U["default"] = (scaled / scaled.norm(dim=0)).float()


def load(name, path, base, trained):
    """Load an adapter on a base, print its losses, and return that and the one by hand."""
    plain = loss_of(base)
    model = PeftModel.from_pretrained(copy.deepcopy(base), path)
    losses = [loss_of(model)]
    print(f"{name}: {plain:.2f}, trained {trained:.2f}, loaded {losses[0]:.2f}", end="")
    if "FRoD" in name:
        fit(model)
        losses.append(loss_of(model))
        print(f", by hand {losses[1]:.2f}", end="")
    print()
    return losses


def near(loss, other):
    return abs(loss - other) < 0.05


rounded = copy.deepcopy(base).bfloat16()
for kind, config in (("LoRA", LoraConfig(**modules)), ("FRoD", FrodConfig(**modules))):
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), config)
    trained = train(model)
    model.save_pretrained(kind)
    assert near(load(f"{kind}, float32 base", kind, base, trained)[0], trained)
    losses = load(f"{kind}, bfloat16 base", kind, rounded, trained)
    if kind == "LoRA":
        assert near(losses[0], trained)
assert losses[0] > loss_of(base) and near(losses[1], trained)

model.add_adapter("second", FrodConfig(layers_to_transform=[1], **modules))
model.set_adapter("second")
trained = train(model)
model.save_pretrained("FRoD", selected_adapters=["second"])
losses = load("FRoD, second, of one layer, float32 base", "FRoD/second", base, trained)
assert losses[0] > loss_of(base) and near(losses[1], trained)
END
