#!/usr/bin/env bash
# Guess: a batch of texts with one adapter for each, adapter_names=["formal", "rude", "__base__"] in
# the forward pass or generate(), is computed by PEFT with these adapters, or refused where a method
# can't do it (as DoRA is, and an adapter that doesn't exist).
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: LoRA does it. IA3, VeRA, HiRA, FourierFT, VB-LoRA
# and GraLoRA take the argument and drop it: every text gets the adapter that is active, even the
# one that ought to have none, and a name that doesn't exist is accepted. PeftModel keeps
# adapter_names from the model, whatever the method, and hands it to the method's
# _enable_peft_forward_hooks, if there is one; LoRA, X-LoRA, RoAd and GLoRA have it, and without it
# nothing happens. (In a Llama, where all methods work, 27 don't obey.) HiRA's file has a hook for
# it, which nothing registers. PEFT's guide describes such batches in the section on LoRA; nothing
# warns elsewhere. Grouping the texts by adapter, with set_adapter() before each group, is right.
#
# Seen (a 2-layer GPT-2 with random weights, two random adapters and three texts; largest difference
# of a logit from the text's with its adapter alone, and from that with the active adapter, "rude"):
#   LORA: formal 0.00 (5.10), rude 0.00 (0.00), __base__ 0.00 (3.45); unknown name: ValueError
#   LORA with DoRA: ValueError
#   IA3: formal 2.38 (0.00), rude 0.00 (0.00), __base__ 2.12 (0.00); unknown name: accepted
#   VERA: formal 0.62 (0.00), rude 0.00 (0.00), __base__ 0.54 (0.00); unknown name: accepted
#   HIRA: formal 1.45 (0.00), rude 0.00 (0.00), __base__ 0.67 (0.00); unknown name: accepted
#   FOURIERFT: formal 6.15 (0.00), rude 0.00 (0.00), __base__ 5.19 (0.00); unknown name: accepted
#   VBLORA: formal 4.50 (0.00), rude 0.00 (0.00), __base__ 2.42 (0.00); unknown name: accepted
#   GRALORA: formal 5.07 (0.00), rude 0.00 (0.00), __base__ 4.21 (0.00); unknown name: accepted
#   generate() with IA3: 3 of 3 texts are those of the active adapter, 1 of 3 its own

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'peft==0.21.2'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import peft
import torch
from transformers import GPT2Config, GPT2LMHeadModel

LAYERS, NAMES = ["c_attn", "c_proj", "c_fc"], ["formal", "rude", "__base__"]
torch.manual_seed(2)
texts = torch.randint(1, 64, (3, 9))


def make_model(config):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0))
    model = peft.get_peft_model(model, config, adapter_name="formal")
    model.add_adapter("rude", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if {"formal", "rude"} & set(name.split(".")):
                parameter += torch.randn_like(parameter) * 0.2
    model.set_adapter("rude")
    return model.eval()


def alone(model, call):
    """Return the result of a call with each of the adapters for all of the texts."""
    results = {}
    for name in NAMES[:2]:
        model.set_adapter(name)
        results[name] = call()
    with model.disable_adapter():
        results["__base__"] = call()
    return results


@torch.no_grad()
def check(label, config, obeys):
    model = make_model(config)
    logits = model(input_ids=texts, adapter_names=NAMES).logits
    single = alone(model, lambda: model(input_ids=texts).logits)
    line = []
    for row, name in enumerate(NAMES):
        own, active = ((logits[row] - single[of][row]).abs().max().item() for of in (name, "rude"))
        line.append(f"{name} {own:.2f} ({active:.2f})")
        assert (own < 1e-4) == (obeys or name == "rude"), (label, name, own)
        assert (active < 1e-4) == (not obeys or name == "rude"), (label, name, active)
    try:
        model(input_ids=texts, adapter_names=["formal", "rood", "rude"])
        unknown = "accepted"
    except ValueError:
        unknown = "ValueError"
    assert unknown == ("ValueError" if obeys else "accepted")
    print(f"{label}: {', '.join(line)}; unknown name: {unknown}")


check("LORA", peft.LoraConfig(target_modules=LAYERS, r=4), obeys=True)
try:
    check("DoRA", peft.LoraConfig(target_modules=LAYERS, r=4, use_dora=True), obeys=True)
    raise SystemExit("DoRA in mixed batches is no longer refused")
except ValueError:
    print("LORA with DoRA: ValueError")

ia3 = peft.IA3Config(target_modules=LAYERS, feedforward_modules=["c_fc"], task_type="CAUSAL_LM")
for config in (ia3, peft.VeraConfig(target_modules=LAYERS),
               peft.HiraConfig(target_modules=LAYERS, r=4),
               peft.FourierFTConfig(target_modules=LAYERS, n_frequency=50),
               peft.VBLoRAConfig(target_modules=LAYERS, r=4, vector_length=16, num_vectors=20),
               peft.GraloraConfig(target_modules=LAYERS)):
    check(config.peft_type.value, config, obeys=False)

model = make_model(ia3)
options = dict(input_ids=texts, attention_mask=torch.ones_like(texts), max_new_tokens=8,
               do_sample=False, eos_token_id=None, pad_token_id=0)
mixed = model.generate(adapter_names=NAMES, **options)
single = alone(model, lambda: model.generate(**options))
own = sum(torch.equal(mixed[row], single[name][row]) for row, name in enumerate(NAMES))
active = sum(torch.equal(mixed[row], single["rude"][row]) for row in range(3))
print(f"generate() with IA3: {active} of 3 texts are those of the active adapter, "
      f"{own} of 3 its own")
assert (active, own) == (3, 1)
END
