#!/usr/bin/env bash
# Guess: LoRAProAdamW (lora-pro-adamw) knows how PEFT scales an adapter. LoRA-Pro chooses the steps
# of A and B so that the whole weight W makes the step nearest to that of full fine-tuning, so in
# mode "full" W's step is the same for any lora_alpha, and also with use_rslora=True. It's made for
# the adapter that is being trained, whatever its name.
#
# lora-pro-adamw 0.2.1, peft 0.21.2, torch 2.13.0: with use_rslora=True W's steps are sqrt(r) times
# as long as that, 8 times with r=64. The optimizer takes lora_alpha / r for the scale. PEFT's is
# lora_alpha / sqrt(r) then, and is in the layer's "scaling", which isn't asked for. The gradients
# of A and B have PEFT's scale in them, but are divided by the square of the other. Also, if there
# is an adapter named "default", it's taken in any case. When another is trained beside it, steps
# are AdamW's, to the last bit, without any LoRA-Pro. Nothing is said about either; the README says
# that PEFT's layers are supported. Setting "s" of each of optimizer._pairs is a way around the
# first one, and having no adapter of that name around the second.
#
# Seen (adapters of a 2-layer GPT-2's c_fc; the scale of PEFT and of the optimizer; the length of
# W's first step divided by the learning rate, in brackets by hand, with the gradient of W itself):
#   r=4, lora_alpha=16: 4, 4; 107.7 (107.7)
#   r=4, lora_alpha=16, use_rslora=True: 8, 4; 215.4 (107.7)
#   r=4, lora_alpha=16, use_rslora=True, set: 8, 8; 107.7 (107.7)
#   r=64, lora_alpha=16: 0.25, 0.25; 128.0 (128.0)
#   r=64, lora_alpha=16, use_rslora=True: 2, 0.25; 1024.0 (128.0)
#   r=64, lora_alpha=16, use_rslora=True, set: 2, 2; 128.0 (128.0)
#   default trained, largest difference from AdamW: 0.0095
#   second trained, largest difference from AdamW: 0.0000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'peft==0.21.2' 'accelerate==1.15.0' \
    'lora-pro-adamw==0.2.1'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from lora_pro import LoRAProAdamW
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

texts = (torch.arange(16) + torch.arange(50)[:, None]) % 50


def build(**settings):
    """Return a GPT-2 with an adapter, always the same for one rank, and the adapted layer."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=16, n_embd=64, n_layer=2, n_head=2, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))
    config = LoraConfig(target_modules=["c_fc"], fan_in_fan_out=True, **settings)
    model = get_peft_model(model, config)
    return model, model.base_model.model.transformer.h[0].mlp.c_fc, config


def by_hand(layer, model):
    """Return the length of Adam's first step with W's gradient, as far as A lets W go."""
    weight, a = layer.base_layer.weight.requires_grad_(True), layer.lora_A["default"].weight
    gradient = torch.autograd.grad(model(texts, labels=texts).loss, weight)[0].double().T
    onto = torch.linalg.pinv(a.detach().double()) @ a.detach().double()
    return ((gradient @ onto).sign() @ onto).norm().item()


def run(repair=False, **settings):
    """Make one step; print and return its length, and that by hand."""
    wanted = by_hand(*reversed(build(**settings)[:2]))
    model, layer, _ = build(**settings)
    optimizer = LoRAProAdamW(model, lr=1e-3, weight_decay=0)
    if repair:
        for pair in optimizer._pairs:
            pair.s = layer.scaling["default"]
    model(texts, labels=texts).loss.backward()
    optimizer.step()
    length = layer.get_delta_weight("default").norm().item() / 1e-3
    name = ", ".join(f"{key}={value}" for key, value in settings.items()) + ", set" * repair
    scales = f"{layer.scaling['default']:g}, {optimizer._pairs[0].s:g}"
    print(f"{name}: {scales}; {length:.1f} ({wanted:.1f})")
    return length / wanted


for rank in (4, 64):
    assert abs(run(r=rank, lora_alpha=16) - 1) < 1e-3
    assert abs(run(r=rank, lora_alpha=16, use_rslora=True) / rank ** 0.5 - 1) < 1e-3
    assert abs(run(True, r=rank, lora_alpha=16, use_rslora=True) - 1) < 1e-3


def train(name, optimizer):
    """Train the adapter of that name beside "default"; return what it adds to W."""
    model, layer, config = build(r=4, lora_alpha=16)
    if name != "default":
        model.add_adapter(name, config)
        model.set_adapter(name)
    optimizer = optimizer(model)
    for _ in range(5):
        model(texts, labels=texts).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return layer.get_delta_weight(name).detach()


for name in ("default", "second"):
    difference = train(name, lambda model: LoRAProAdamW(model, lr=1e-3, weight_decay=0))
    difference -= train(name, lambda model: torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-3, weight_decay=0))
    print(f"{name} trained, largest difference from AdamW: {difference.abs().max():.4f}")
    assert bool(difference.any()) == (name == "default")
END
