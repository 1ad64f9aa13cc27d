#!/usr/bin/env bash
# Guess: PEFT's hotswap_adapter puts the LoRA adapter of a folder in the place of the one that is
# loaded, and the model then computes what it computes with that adapter loaded from the start. It
# refuses what it can't swap. To swap an adapter for itself changes nothing.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: not if the adapter has a rank_pattern or an
# alpha_pattern (other ranks or alphas for some layers than for the rest). A swap computes each
# layer's factor alpha / rank anew, and looks up both in the patterns; but it looks for the name of
# the weight, which ends in "c_fc.lora_A.default.weight", among patterns that have to match the end
# of the layer's name, "c_fc". Nothing is ever found, and all layers get lora_alpha / r. So with
# rank 32 here and 4 there the first count 8 times as much as they were trained to, the weights
# being right. Two adapters that were trained with the same settings are wrong after the swap, and
# so is the adapter that was just loaded, swapped for itself. The check for what can't be swapped
# compares the two alpha_patterns and finds them equal. Nothing is said. Without patterns, or with
# other ranks or alphas for the whole adapter, a swap is right, and so are load_adapter() and
# set_adapter().
#
# Seen (a 2-layer GPT-2 with random weights; largest difference of a logit from those of the second
# adapter, loaded from the start; "base" is the model without any adapter; and the factors of c_attn
# and c_fc):
#   no pattern: swapped 0.00, for itself 0.00, set_adapter() 0.00, base 2.38; factors (2.0, 2.0)
#   another rank and alpha for all: swapped 0.00, for itself 0.00, set_adapter() 0.00, base 4.75;
#     factors (4.0, 4.0)
#   both with the same rank_pattern: swapped 2.35, for itself 2.35, set_adapter() 0.00, base 1.89;
#     factors (2.0, 2.0), not (2.0, 0.25)
#   both with the same alpha_pattern: swapped 1.43, for itself 1.43, set_adapter() 0.00, base 2.04;
#     factors (2.0, 2.0), not (2.0, 0.25)
#   the second one with a rank_pattern: swapped 2.35, for itself 2.35, set_adapter() 0.00, base
#     1.89; factors (2.0, 2.0), not (2.0, 0.25)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'peft==0.21.2' 'accelerate==1.15.0'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)
tokens = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))


def make_model():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2,
                                       n_head=4, bos_token_id=0, eos_token_id=0))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=tokens).logits


def save_adapter(folder, seed, **settings):
    model = get_peft_model(make_model(), LoraConfig(target_modules=["c_attn", "c_fc"], **settings))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


def scales(model):
    block = model.base_model.model.transformer.h[0]
    return block.attn.c_attn.scaling["default"], block.mlp.c_fc.scaling["default"]


def check(name, right, first, second):
    save_adapter("first", 1, **first)
    save_adapter("second", 2, **second)
    loaded = PeftModel.from_pretrained(make_model(), "second").eval()
    expected = logits(loaded)
    swapped = PeftModel.from_pretrained(make_model(), "first").eval()
    hotswap_adapter(swapped, "second", adapter_name="default", torch_device="cpu")
    itself = PeftModel.from_pretrained(make_model(), "second").eval()
    hotswap_adapter(itself, "second", adapter_name="default", torch_device="cpu")
    both = PeftModel.from_pretrained(make_model(), "first")
    both.load_adapter("second", adapter_name="other")
    both.set_adapter("other")
    others = [(logits(model) - expected).abs().max().item()
              for model in (swapped, itself, both.eval(), make_model())]
    print(f"{name}: swapped {others[0]:.2f}, for itself {others[1]:.2f}, set_adapter() "
          f"{others[2]:.2f}, base {others[3]:.2f}; factors {scales(swapped)}, not {scales(loaded)}"
          .replace(f", not {scales(swapped)}", ""))
    assert others[2] < 1e-4 and others[3] > 0.5
    for value in others[:2]:
        assert value < 1e-4 if right else value > 0.2
    assert (scales(swapped) == scales(loaded)) is right


plain = {"r": 4, "lora_alpha": 8}
ranks = {**plain, "rank_pattern": {"c_fc": 32}}
alphas = {**plain, "alpha_pattern": {"c_fc": 1}}
check("no pattern", True, plain, plain)
check("another rank and alpha for all", True, plain, {"r": 8, "lora_alpha": 32})
check("both with the same rank_pattern", False, ranks, ranks)
check("both with the same alpha_pattern", False, alphas, alphas)
check("the second one with a rank_pattern", False, plain, ranks)
END
