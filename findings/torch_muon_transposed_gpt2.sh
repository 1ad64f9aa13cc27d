#!/usr/bin/env bash
# Guess: Muon makes the same step for transformers' GPT-2, whose Conv1D keeps its matrices as
# inputs x outputs, as for the same model made of nn.Linear, which keeps outputs x inputs: a
# transposed matrix has the transposed update.
#
# torch 2.13.0, transformers 5.24.0: the direction is transposed, as it should be; the length
# differs. By default (adjust_lr_fn "original") torch.optim.Muon multiplies the learning rate by the
# square root of rows / columns where there are more rows, which is meant to be outputs / inputs. In
# GPT-2's Conv1D rows are inputs. So c_fc, which widens, moves half as far as it would as a Linear,
# and mlp.c_proj, which narrows, twice as far; c_attn moves less by a factor of 1.7. So mlp.c_proj
# moves 4 times as far, relative to c_fc, as Muon's recipe has it, and a learning rate that was
# tuned on a GPT of nn.Linear (nanoGPT, say) doesn't carry over. No warning. "match_rms_adamw" goes
# by the larger side and is the same both ways.
#
# Seen (relative length of the first update, as Conv1D divided by as Linear; and how well the two
# point in the same direction, as a cosine):
#   original
#     attn.c_attn: 0.58, cosine 1.000
#     attn.c_proj: 1.00, cosine 1.000
#     mlp.c_fc: 0.50, cosine 1.000
#     mlp.c_proj: 2.00, cosine 1.000
#   match_rms_adamw
#     attn.c_attn: 1.00, cosine 1.000
#     attn.c_proj: 1.00, cosine 1.000
#     mlp.c_fc: 1.00, cosine 1.000
#     mlp.c_proj: 1.00, cosine 1.000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3'

cd "$folder"
export HF_HUB_OFFLINE=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)
names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def build(linear):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=128, n_head=4, vocab_size=100, n_positions=64, bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    for name in names if linear else []:
        old = model.transformer.h[0].get_submodule(name)
        new = nn.Linear(*old.weight.shape)
        new.weight.data.copy_(old.weight.data.T)
        new.bias.data.copy_(old.bias.data)
        model.transformer.h[0].set_submodule(name, new)
    return model


def update(linear, adjust):
    model = build(linear)
    block = model.transformer.h[0]
    weights = [block.get_submodule(name).weight for name in names]
    before = [weight.detach().clone() for weight in weights]
    text = torch.arange(256).view(4, 64) * 7 % 100
    loss = model(input_ids=text, labels=text).loss
    loss.backward()
    torch.optim.Muon(weights, lr=1.0, weight_decay=0.0, adjust_lr_fn=adjust).step()
    moved = [weight.detach() - old for weight, old in zip(weights, before)]
    return loss.item(), [move.T if linear else move for move in moved]


for adjust, expected in ("original", [3**-0.5, 1, 0.5, 2]), ("match_rms_adamw", [1, 1, 1, 1]):
    loss, as_conv = update(False, adjust)
    other_loss, as_linear = update(True, adjust)
    assert abs(loss - other_loss) < 1e-5
    print(adjust)
    for name, one, other, ratio in zip(names, as_conv, as_linear, expected):
        length = (one.norm() / other.norm()).item()
        cosine = torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()
        print(f"  {name}: {length:.2f}, cosine {cosine:.3f}", flush=True)
        assert abs(length / ratio - 1) < 0.02 and cosine > 0.98
END
