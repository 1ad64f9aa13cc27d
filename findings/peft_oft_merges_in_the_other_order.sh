#!/usr/bin/env bash
# Guess: two adapters of PEFT's that are active together (set_adapter(["facts", "style"])) give the
# same output before and after merge_and_unload(), but for rounding, with OFT as with LoRA. OFT
# multiplies a layer's weight by a rotation, and of two rotations the order matters; so it's that of
# the list, before and after.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: not with OFT. Unmerged, the adapters turn the
# layer's input, the first of the list before the second: W R2 R1 x. Merging goes through the list
# in the same order and multiplies each rotation onto the weight from the input's side, W R1, then
# W R1 R2: now the second one acts on the input first. That is another model than the one that was
# evaluated, or than the one that "style" was trained in, on top of "facts". Nothing is said, by
# safe_merge=True neither. It's so in a PeftMixedModel as well, which is documented as the way to
# use several adapters together. HRA, which multiplies, too, merges in the right order. With
# OFT and the list reversed, merge_and_unload(adapter_names=["style", "facts"]), the merged model
# is the right one. One adapter alone is merged right.
#
# Seen (a 2-layer Llama with random weights, two random adapters; the root mean square of the
# difference of the logits from those of both adapters before merging, and the loss on the tokens
# that were then the likeliest):
#   OFT, before merging: 0.0000, loss 2.14
#   OFT, merged: 0.7423, loss 2.69
#   OFT, merged with safe_merge: 0.7423, loss 2.69
#   OFT, merged by the reversed list: 0.0000, loss 2.14
#   OFT, the first adapter alone: 1.1184, loss 3.48
#   OFT in a PeftMixedModel, before merging: 0.0000, loss 2.14
#   OFT in a PeftMixedModel, merged: 0.7423, loss 2.69
#   OFT in a PeftMixedModel, merged by the reversed list: 0.0000, loss 2.14
#   OFT in a PeftMixedModel, the first adapter alone: 1.1184, loss 3.48
#   HRA, before merging: 0.0000, loss 2.13
#   HRA, merged: 0.0000, loss 2.13
#   HRA, merged with safe_merge: 0.0000, loss 2.13
#   HRA, the first adapter alone: 0.6109, loss 2.47
#   LoRA, before merging: 0.0000, loss 2.11
#   LoRA, merged: 0.0000, loss 2.11
#   LoRA, merged with safe_merge: 0.0000, loss 2.11
#   LoRA, the first adapter alone: 0.8478, loss 2.79

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'peft==0.21.2' 'accelerate==1.15.0'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import copy

import torch
from peft import HRAConfig, LoraConfig, OFTConfig, get_peft_model
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS = ["q_proj", "v_proj", "up_proj"]
torch.set_num_threads(1)
torch.manual_seed(0)
tokens = torch.randint(64, (8, 24))
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64,
                                    num_hidden_layers=2, num_attention_heads=4))
for parameter in base.parameters():
    if parameter.ndim > 1:
        torch.nn.init.normal_(parameter, std=0.2)


@torch.no_grad()
def logits(model):
    return model(input_ids=tokens).logits


def check(name, config, reversed_order, mixed=False):
    model = get_peft_model(copy.deepcopy(base), config, "facts", mixed=mixed).eval()
    model.add_adapter("style", config)
    for seed, adapter in enumerate(("facts", "style")):
        torch.manual_seed(seed)
        for key, parameter in model.named_parameters():
            if adapter in key.split("."):
                parameter.data += 0.1 * torch.randn_like(parameter)
    tuner = model if mixed else model.base_model
    tuner.set_adapter(["facts", "style"])
    both = logits(model)

    def compare(label, other, expected):
        found = logits(other)
        difference = (found - both).square().mean().sqrt().item()
        loss = F.cross_entropy(found.flatten(0, 1), both.argmax(-1).flatten()).item()
        print(f"{name}, {label}: {difference:.4f}, loss {loss:.2f}")
        assert (difference < 1e-4) is expected and (difference > 0.1) is not expected

    def merged(**arguments):
        return copy.deepcopy(model).merge_and_unload(**arguments)

    compare("before merging", model, True)
    compare("merged", merged(), not reversed_order)
    if not mixed:
        compare("merged with safe_merge", merged(safe_merge=True), not reversed_order)
    if reversed_order:
        compare("merged by the reversed list", merged(adapter_names=["style", "facts"]), True)
    tuner.set_adapter(["facts"])
    compare("the first adapter alone", model, False)
    assert torch.allclose(logits(merged()), logits(model), atol=1e-4)


oft = OFTConfig(oft_block_size=8, r=0, target_modules=LAYERS)
check("OFT", oft, reversed_order=True)
check("OFT in a PeftMixedModel", oft, reversed_order=True, mixed=True)
check("HRA", HRAConfig(r=4, target_modules=LAYERS), reversed_order=False)
check("LoRA", LoraConfig(r=4, target_modules=LAYERS), reversed_order=False)
END
