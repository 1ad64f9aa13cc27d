#!/usr/bin/env bash
# Guess: init_lora_weights="olora" factors the weight, W = Q R, keeps part of it in the adapter and
# takes that part away from W, so a model with a fresh adapter computes what it did before. If PEFT
# could not do that for GPT-2's Conv1D, whose weights are transposed, it would refuse, as it does
# elsewhere; "pissa", which does the same with another factorisation, handles both.
#
# peft 0.21.2, transformers 5.24.0: a warning says that fan_in_fan_out is set to True for Conv1D,
# but OLoRA doesn't look at it: the two factors lie the wrong way round. Where the matrix isn't
# square, the forward pass stops at the shapes. Attention's output matrix (attn.c_proj, width x
# width) is square: there B A is taken away from the transposed weight, no error is raised, and
# fine-tuning starts from a damaged model. Merging the fresh adapter writes the damage down.
#
# Seen (largest change of a logit through a fresh adapter of rank 8):
#   standard deviation of the logits: 0.4
#   Conv1D, pissa: 4.5e-07
#   Conv1D, olora: 3.7e-01
#   Conv1D, olora, merged: 3.7e-01
#   Linear, olora: 4.8e-07
#   Conv1D, olora on c_fc: RuntimeError

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'peft==0.21.2' 'accelerate==1.15.0'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

WIDTH = 64
ids = torch.arange(1, 33)[None]


def gpt2(linear=False):
    """Return a GPT-2 with random weights, its attention's output matrices as Conv1D or Linear."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=32, n_embd=WIDTH, n_layer=2,
                                       n_head=2, bos_token_id=0, eos_token_id=0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for block in model.transformer.h if linear else []:
        old, block.attn.c_proj = block.attn.c_proj, torch.nn.Linear(WIDTH, WIDTH)
        block.attn.c_proj.weight.data = old.weight.data.T.contiguous()
        block.attn.c_proj.bias.data = old.bias.data.clone()
    return model


def adapt(model, scheme, target="attn.c_proj"):
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=[target],
                                            init_lora_weights=scheme)).eval()


@torch.no_grad()
def difference(model):
    return (model(ids).logits - before).abs().max().item()


with torch.no_grad():
    before = gpt2()(ids).logits
print(f"standard deviation of the logits: {before.std():.1f}")
assert difference(gpt2(linear=True)) < 1e-4
broken = adapt(gpt2(), "olora")
found = {"Conv1D, pissa": difference(adapt(gpt2(), "pissa")),
         "Conv1D, olora": difference(broken),
         "Conv1D, olora, merged": difference(broken.merge_and_unload()),
         "Linear, olora": difference(adapt(gpt2(linear=True), "olora"))}
for name, value in found.items():
    print(f"{name}: {value:.1e}")
    assert value > 0.1 if name.startswith("Conv1D, olora") else value < 1e-4
try:
    difference(adapt(gpt2(), "olora", "c_fc"))
except RuntimeError as error:
    assert "shapes" in str(error)
    print(f"Conv1D, olora on c_fc: {type(error).__name__}")
else:
    raise SystemExit("c_fc has worked")
END
