#!/usr/bin/env bash
# Guess: Two LoRA adapters of PEFT that were trained with the same layer_replication on the same
# base model can be loaded on one model and switched by set_adapter(), like any two adapters. Each
# gives what it gives alone; as both want the same layers, none is repeated a second time.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: load_adapter() and add_adapter() apply the second
# adapter's layer_replication to the layers that the first one's has left. With [[0, 4], [2, 5]] a
# model of 5 layers becomes 0 1 2 3 2 3 4, as documented, and then 0 1 2 3 2 3 2: as many as before,
# so that all weights of the second adapter find their place, but the last layer is layer 2 now.
# Nothing is said. The second adapter has another model than the one it was trained on, and the
# first one is wrong as well, for the layers are copied with its LoRA weights. The model without
# adapters has changed, too. With no layer_replication in the second one's adapter_config.json
# both are right, as its layers are there already.
#
# Seen (a Llama of 5 layers; for each layer the one in the base with its weights; the losses; "base"
# is the largest change of a logit without adapters by loading the second one):
#   first alone: layers [0, 1, 2, 3, 2, 3, 4], loss 0.27
#   second alone: layers [0, 1, 2, 3, 2, 3, 4], loss 0.28
#   both: layers [0, 1, 2, 3, 2, 3, 2], losses 1.31 and 0.98, base 2.15
#   the second without the setting: layers [0, 1, 2, 3, 2, 3, 4], losses 0.27 and 0.28, base 0.00

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
import json

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=5,
    num_attention_heads=2, initializer_range=0.2, bos_token_id=0, eos_token_id=0))
texts = {name: torch.randint(1, 64, (4, 12)) for name in ("first", "second")}
NAMES = list(texts)


@torch.no_grad()
def loss_of(model, name):
    return model(input_ids=texts[name], labels=texts[name]).loss.item()


@torch.no_grad()
def plain(model):
    """Return the logits without adapters."""
    with model.disable_adapter():
        return model(input_ids=texts["first"]).logits


def origin(model):
    """Return which layer of the base each layer's weights are."""
    weights = [layer.mlp.gate_proj.weight for layer in base.model.layers]
    return [next(i for i, weight in enumerate(weights) if torch.equal(
        weight, layer.mlp.gate_proj.weight)) for layer in model.base_model.model.model.layers]


def load():
    """Load both adapters on one model; print and return its layers and the losses."""
    model = PeftModel.from_pretrained(copy.deepcopy(base), "first", adapter_name="first")
    before = plain(model)
    model.load_adapter("second", "second")
    losses = []
    for name in NAMES:
        model.set_adapter(name)
        losses.append(loss_of(model, name))
    change = (plain(model) - before).abs().max().item()
    print(f"layers {origin(model)}, losses {losses[0]:.2f} and {losses[1]:.2f}, "
          f"base {change:.2f}")
    return origin(model), losses, change


trained = []
for name in NAMES:
    model = get_peft_model(copy.deepcopy(base), LoraConfig(
        layer_replication=[[0, 4], [2, 5]], target_modules=["q_proj", "v_proj", "up_proj"]))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(60):
        model(input_ids=texts[name], labels=texts[name]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained.append(loss_of(model, name))
    print(f"{name} alone: layers {origin(model)}, loss {trained[-1]:.2f}")
    assert origin(model) == [0, 1, 2, 3, 2, 3, 4]
    model.save_pretrained(name)

print("both:", end=" ")
layers, losses, change = load()
assert layers == [0, 1, 2, 3, 2, 3, 2] and change > 0.5
assert all(loss > wanted + 0.5 for loss, wanted in zip(losses, trained, strict=True))

with open("second/adapter_config.json") as file:
    config = json.load(file)
with open("second/adapter_config.json", "w") as file:
    json.dump({**config, "layer_replication": None}, file)
print("the second without the setting:", end=" ")
layers, losses, change = load()
assert layers == [0, 1, 2, 3, 2, 3, 4] and change < 1e-4
assert all(abs(loss - wanted) < 1e-4 for loss, wanted in zip(losses, trained, strict=True))
END
