#!/usr/bin/env bash
# Guess: PEFT's convert_to_lora() gives a LoRA adapter that does what the adapter did, but for what
# a low rank leaves out, or it refuses, as with IA3 or OFT: model.supports_lora_conversion() tells
# before. LoRA itself can be converted, to make it smaller. With a rank as large as the weights are
# wide nothing is left out.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: so it is for LoRA and LoHa. But
# supports_lora_conversion() is also true for
# - DoRA: only B A is converted, DoRA's magnitudes are dropped;
# - PiSSA: B A is converted, but the base model that it belongs to is the one from which PiSSA took
#   the largest singular values away, not the original one;
# - lora_bias=True: the biases are dropped (the check looks at bias, which is "none");
# - two adapters with modules_to_save: the copy of the module (here lm_head) is that of the adapter
#   that was added last, whatever adapter_name is.
# The result loads and runs, and nothing is said about it. The documentation says that conversion is
# lossy, and the better the higher the rank; here no rank helps. The difference between merged and
# original weights, cut to the same rank, gives the right model for DoRA and PiSSA.
#
# Seen (a small Llama that has learned to count; adapters of rank 8 trained to count by other steps;
# the loss without adapter, with it, converted with rank 32, and by hand as described above):
#   LoRA: 10.47, 0.03, converted 0.03, by hand 0.03
#   LoHa: 10.47, 0.01, converted 0.01, by hand 0.01
#   DoRA: 10.47, 0.07, converted 3.15, by hand 0.07
#   PiSSA: 10.47, 0.03, converted 0.13, by hand 0.03
#   LoRA with lora_bias: 10.47, 0.02, converted 0.33
#   LoHa and lm_head: 10.47, 0.00, converted 0.00
#   the same after a second one: 10.47, 0.00, converted 3.90

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
"$folder/venv/bin/python" - >"$folder/out" 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import copy

import torch
from peft import (
    LoHaConfig, LoraConfig, convert_to_lora, get_peft_model, set_peft_model_state_dict)
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, bos_token_id=0, eos_token_id=0))
texts = {step: (step * torch.arange(16) + torch.randint(50, (32, 1))) % 50 for step in (1, 2, 3)}
targets = ["q_proj", "v_proj", "up_proj", "down_proj"]


def loss_of(model, step):
    return model(input_ids=texts[step], labels=texts[step]).loss


def train(model, step, lr):
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(120):
        loss_of(model, step).backward()
        adamw.step()
        adamw.zero_grad()


def by_hand(model, rank):
    """Return the base model plus the difference of the merged weights, cut to the rank."""
    merged, result = copy.deepcopy(model).merge_and_unload().state_dict(), copy.deepcopy(base)
    with torch.no_grad():
        for name, weight in result.named_parameters():
            if name.split(".")[-2] in targets:
                u, s, v = torch.linalg.svd(merged[name] - weight, full_matrices=False)
                weight += u[:, :rank] * s[:rank] @ v[:rank]
    return result


def compare(name, model, step, right, adapter="default", hand=True):
    """Print the losses of the base model, the adapter, the converted one and the one by hand."""
    assert model.supports_lora_conversion()
    config, weights = convert_to_lora(model, rank=32, adapter_name=adapter)
    converted = get_peft_model(copy.deepcopy(base), config)
    set_peft_model_state_dict(converted, weights)
    models = [base, model, converted] + ([by_hand(model, 32)] if hand else [])
    before, loss, after, *rest = (loss_of(model, step).item() for model in models)
    print(f"{name}: {before:.2f}, {loss:.2f}, converted {after:.2f}",
          *(f"by hand {loss:.2f}" for loss in rest), sep=", ")
    assert loss < 0.1 * before and all(abs(other - loss) < 1e-3 for other in rest)
    assert abs(after - loss) < 1e-3 if right else after > 2 * loss + 0.05


train(base, 1, 1e-2)
for name, right, config in (
        ("LoRA", True, LoraConfig(r=8)),
        ("LoHa", True, LoHaConfig(r=8)),
        ("DoRA", False, LoraConfig(r=8, use_dora=True)),
        ("PiSSA", False, LoraConfig(r=8, init_lora_weights="pissa")),
        ("LoRA with lora_bias", False, LoraConfig(r=8, lora_bias=True))):
    config.target_modules = set(targets)
    model = get_peft_model(copy.deepcopy(base), config)
    train(model, 2, 1e-2)
    compare(name, model, 2, right, hand="bias" not in name)

config = LoHaConfig(r=8, target_modules=set(targets), modules_to_save=["lm_head"])
model = get_peft_model(copy.deepcopy(base), config, "two")
train(model, 2, 1e-2)
compare("LoHa and lm_head", model, 2, True, "two", hand=False)
model.add_adapter("three", copy.deepcopy(config))
model.set_adapter("three")
train(model, 3, 1e-2)
model.set_adapter("two")
compare("the same after a second one", model, 2, False, "two", hand=False)
head = convert_to_lora(model, rank=32, adapter_name="two")[1]["base_model.model.lm_head.weight"]
heads = model.base_model.model.lm_head.modules_to_save
assert torch.equal(head, heads["three"].weight) and not torch.equal(head, heads["two"].weight)
END
cat "$folder/out"
