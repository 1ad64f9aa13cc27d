#!/usr/bin/env bash
# Guess: Lily of PEFT gives all layers of a kind one common matrix B. A second Lily adapter, put on
# a model by add_adapter() with the same settings, is built like the first: it has as many weights
# to train, and once it's trained and saved, loading it on the base model gives what was trained.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: only the adapter that a PeftModel is made with
# shares. Sharing is set up after the layers, in a hook that is called when the model is made, but
# not by add_adapter() or load_adapter(). The second adapter gets a B, and with stride_A an A, for
# each layer, and all of them are trained and saved. Loaded on the base model it's the first one,
# and shared: each layer's B overwrites that of the layer before, so that all have the last layer's.
# Nothing is said in training, saving or loading. A good adapter that is loaded beside another and
# trained further is broken in the same way. What was trained comes back if the file is loaded
# beside another again.
#
# Seen (a Llama of 4 layers, its loss 4.06; the weights that are trained, the loss after training,
# and after saving and loading):
#   LoRA, first: 7168 weights, trained 1.40, loaded 1.40
#   LoRA, second: 7168 weights, trained 1.41, loaded 1.41
#   Lily, first: 5312 weights, trained 1.58, loaded 1.58
#   Lily, second: 11456 weights, trained 1.41, loaded 3.95
#   the same beside another: 1.41
#   Lily with stride_A=2, first: 3776 weights, trained 1.70, loaded 1.70
#   Lily with stride_A=2, second: 11456 weights, trained 1.41, loaded 4.05
#   Lily, loaded beside another and trained further: 11456 weights, trained 1.33, loaded 3.44

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
from peft import LilyConfig, LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
    num_attention_heads=2, initializer_range=0.1, bos_token_id=0, eos_token_id=0))
text = torch.randint(50, (8, 16))
modules = {"target_modules": ["q_proj", "v_proj", "up_proj"]}


def loss_of(model):
    return model(input_ids=text, labels=text).loss


def load(path, **settings):
    return PeftModel.from_pretrained(copy.deepcopy(base), path, **settings)


def train(label, model, name):
    """Train and save one adapter; return how many weights it has, its loss, that of the file."""
    model.set_adapter(name)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(100):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(label, selected_adapters=[name])
    trained = loss_of(model).item()
    loaded = loss_of(load(label if name == "default" else f"{label}/{name}")).item()
    count = sum(weight.numel() for weight in weights)
    print(f"{label}: {count} weights, trained {trained:.2f}, loaded {loaded:.2f}")
    return count, trained, loaded


def two(kind, config):
    """Train two adapters of one kind on a model, one after the other."""
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), config)
    model.add_adapter("second", copy.deepcopy(config))
    first = train(f"{kind}, first", model, "default")
    assert abs(first[1] - first[2]) < 1e-4
    return first, train(f"{kind}, second", model, "second")


first, second = two("LoRA", LoraConfig(r=8, **modules))
assert first[0] == second[0] and abs(second[1] - second[2]) < 1e-4

shared, second = two("Lily", LilyConfig(r=8, **modules))
assert second[0] > 2 * shared[0] and second[1] < 2 and second[2] > 3
beside = load("Lily, first")
beside.load_adapter("Lily, second/second", "other")
beside.set_adapter("other")
print(f"the same beside another: {loss_of(beside).item():.2f}")
assert abs(loss_of(beside).item() - second[1]) < 1e-4

first, second = two("Lily with stride_A=2", LilyConfig(r=8, stride_A=2, **modules))
assert first[0] < shared[0] and second[1] < 2 and second[2] > 3

model = load("Lily, first")
model.load_adapter("Lily, first", "other", is_trainable=True)
model.set_adapter("other")
assert abs(loss_of(model).item() - shared[1]) < 1e-4
further = train("Lily, loaded beside another and trained further", model, "other")
assert further[0] > 2 * shared[0] and further[1] < shared[1] and further[2] > 3
END
