#!/usr/bin/env bash
# Guess: bitsandbytes' LAMB (32 bits) trains what starts at zero too: a GPT-2's biases, or the
# matrices B of LoRA. The step is limited to lr times the norm of the weights, and for a norm of 0,
# where that ratio makes no sense, it's taken as 1, as in the code of LAMB's authors, apex and timm.
#
# bitsandbytes 0.50.2, peft 0.21.2, transformers 5.24.0, torch 2.13.0: they stay at zero forever. A
# step is scaled by max_unorm * |w| / |step| whenever |step| is larger than max_unorm * |w|, so by
# 0 if w is all zeros; there's no exception for it. (The Triton kernel and the "default" backend
# have the same line for LAMB; on a CPU LARS does it too.) A GPT-2 is trained with all its biases
# left out. With LoRA nothing is trained at all: B stays zero, A has no gradient as long as B is
# zero, and the loss is the same to the last digit. Gradients and the optimizer's state are as
# always, and nothing is said. LAMB8bit and LARS8bit are like this too for parameters of less than
# 4096 elements, as biases and LoRA's matrices often are; larger ones they train without any limit
# (LAMB8bit says so).
#
# Seen (a small GPT-2, 60 steps; loss before and after, how many elements of the biases aren't zero
# at the end; then LoRA, and its matrices B instead of the biases):
#   all weights, AdamW: 3.93 0.00, 736 of 736
#   all weights, LAMB: 3.93 3.33, 0 of 736
#   all weights, LAMB8bit: 3.93 2.79, 0 of 736
#   all weights, LARS: 3.93 3.87, 0 of 736
#   all weights, LAMB by hand: 3.93 0.18, 736 of 736
#   LoRA, AdamW: 3.93 3.52, 2304 of 2304
#   LoRA, LAMB: 3.93 3.93, 0 of 2304
#   LoRA, LAMB8bit: 3.93 3.93, 0 of 2304
#   LoRA, LARS: 3.93 3.93, 0 of 2304
#   LoRA, LAMB by hand: 3.93 3.50, 2304 of 2304

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'peft==0.21.2' \
    'bitsandbytes==0.50.2'

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import bitsandbytes
import peft
import torch
from transformers import GPT2Config, GPT2LMHeadModel

text = (torch.arange(16) + torch.randint(
    50, (16, 1), generator=torch.Generator().manual_seed(0))) % 50


class LambByHand(torch.optim.Optimizer):
    """LAMB with a ratio of at most 1, as bitsandbytes has it, and 1 for a norm of 0."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state.update(step=0, first=torch.zeros_like(weight),
                                 second=torch.zeros_like(weight))
                state["step"] += 1
                state["first"].lerp_(weight.grad, 0.1)
                state["second"].lerp_(weight.grad ** 2, 0.001)
                move = state["first"] / (1 - 0.9 ** state["step"])
                move /= (state["second"] / (1 - 0.999 ** state["step"])).sqrt() + 1e-8
                norm, length = weight.norm().item(), move.norm().item()
                ratio = min(1, norm / length) if norm > 0 and length > 0 else 1
                weight -= group["lr"] * ratio * move


def train(name, lora, optimizer, lr=0.03):
    """Train a new model; return the losses, and how many elements moved from zero."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0))
    if lora:
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True))
    zeros = [weight for key, weight in model.named_parameters()
             if key.endswith(("lora_B.default.weight" if lora else ".bias",))]
    assert not any(weight.any() for weight in zeros)
    optimizer = optimizer([w for w in model.parameters() if w.requires_grad], lr=lr)
    losses = []
    for _ in range(61):
        loss = model(input_ids=text, labels=text).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = sum(int(weight.count_nonzero()) for weight in zeros)
    total = sum(weight.numel() for weight in zeros)
    print(f"{name}: {losses[0]:.2f} {losses[-1]:.2f}, {moved} of {total}")
    return losses[0], losses[-1], moved / total


def lars(weights, lr):
    return bitsandbytes.optim.LARS(weights, lr=lr, momentum=0.9)


optimizers = {"AdamW": torch.optim.AdamW, "LAMB": bitsandbytes.optim.LAMB,
              "LAMB8bit": bitsandbytes.optim.LAMB8bit, "LARS": lars, "LAMB by hand": LambByHand}
for kind, lora in (("all weights", False), ("LoRA", True)):
    for name, optimizer in optimizers.items():
        before, after, moved = train(f"{kind}, {name}", lora, optimizer)
        stays = name not in ("AdamW", "LAMB by hand")
        assert moved == 0 if stays else moved > 0.9
        assert after == before if stays and lora else after < before - 0.02
END
