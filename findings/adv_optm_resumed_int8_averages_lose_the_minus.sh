#!/usr/bin/env bash
# Guess: an optimizer of adv-optm with state_precision="int8_sr" can be saved and resumed as any
# other: its average of gradients is in the checkpoint, in 8 bits with a scale per 2048 values, and
# training goes on as it would have without a break, up to the stochastic rounding.
#
# adv-optm 2.5.16, torch 2.13.0, transformers 5.24.0: after load_state_dict() no average is
# negative. torch turns the integers into floats, as the weights are, and adv-optm turns them back,
# but into numbers from 0 to 255: -1 becomes 255 (on x86-64), so that what was a bit below zero is
# twice the largest value there was, and positive. The tensor keeps this type, so that negative
# averages become large positive ones in all later steps, too. Nothing is raised or warned of.
# AdamW_adv, Adopt_adv and SignSGD_adv do so. (Muon_adv, AdaMuon_adv and Prodigy_adv with int8_sr
# raise an error for it.) Putting the saved averages back into optimizer.state by hand mends it.
#
# Seen (a 2-layer GPT-2 that learns to count, 60 steps, saved, 60 more; its loss after the first
# 60, at the end without a break, and at the end resumed; how many averages of a matrix are
# negative and the largest one, before saving and after loading):
#   SignSGD_adv, put back by hand: 3.086 2.535 2.534, 49% 0.0021 -> 49% 0.0021
#   SignSGD_adv: 3.086 2.535 2.708, 49% 0.002 -> 0% 0.004
#   Adopt_adv, put back by hand: 0.071 0.001 0.001, 47% 2.1 -> 47% 2.1
#   Adopt_adv: 0.070 0.001 over 100, 45% 2.2 -> 0% 4.4
#   AdamW_adv, put back by hand: 1.926 0.727 0.727, 49% 0.00087 -> 49% 0.00087
#   AdamW_adv: 1.926 0.726 over 100, 49% 0.00086 -> 0% 0.0017

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'adv-optm==2.5.16'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import copy
import io

import torch
from adv_optm import AdamW_adv, Adopt_adv, SignSGD_adv
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
start = GPT2LMHeadModel(GPT2Config(
    vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
    attn_pdrop=0, bos_token_id=0, eos_token_id=0))
text = (torch.arange(16) + torch.randint(50, (32, 1))) % 50
HALF = 60


def train(model, optimizer):
    for _ in range(HALF):
        model(text, labels=text).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run(kind, mended, **settings):
    """Train, save, train on with and without a break; print and return the numbers."""
    model = copy.deepcopy(start)
    optimizer = kind(model.parameters(), state_precision="int8_sr", **settings)
    train(model, optimizer)
    losses = [model(text, labels=text).loss.item()]
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, states = torch.load(file)

    resumed = copy.deepcopy(start)
    resumed.load_state_dict(weights)
    resumed_optimizer = kind(resumed.parameters(), state_precision="int8_sr", **settings)
    resumed_optimizer.load_state_dict(states)
    if mended:
        for parameter, old in zip(resumed.parameters(), model.parameters()):
            resumed_optimizer.state[parameter]["exp_avg"] = (
                optimizer.state[old]["exp_avg"].clone())

    negative, largest = [], []
    for a_model, an_optimizer in ((model, optimizer), (resumed, resumed_optimizer)):
        matrix = a_model.transformer.h[0].mlp.c_fc.weight
        average = an_optimizer.state[matrix]["exp_avg"].flatten().double()
        scales = an_optimizer.state[matrix]["exp_avg_scale"].double()
        average *= scales.repeat_interleave(2048)
        negative.append((average < 0).double().mean().item())
        largest.append(average.abs().max().item())
        train(a_model, an_optimizer)
        losses.append(a_model(text, labels=text).loss.item())
    if not mended:
        assert resumed_optimizer.state[matrix]["exp_avg"].min() >= 0  # to the end

    name = kind.__name__ + (", put back by hand" if mended else "")
    print(f"{name}:", *(f"{x:.3f}" if x < 100 else "over 100" for x in losses), end=", ")
    print(*(f"{100 * n:.0f}% {value:.2g}" for n, value in zip(negative, largest)), sep=" -> ")
    return losses, negative, largest


for kind, settings in (
        (SignSGD_adv, {"lr": 3e-4}), (Adopt_adv, {"lr": 3e-3}),
        (AdamW_adv, {"lr": 1e-3, "factored_2nd": True})):
    for mended in (True, False):
        losses, negative, largest = run(kind, mended, **settings)
        assert 0.4 < negative[0] < 0.6 and losses[1] < losses[0]
        if mended:
            assert negative[1] == negative[0] and largest[1] == largest[0]
            assert abs(losses[2] - losses[1]) < 0.02
        else:
            assert negative[1] == 0 and 1.9 < largest[1] / largest[0] < 2.1
            assert losses[2] > losses[1] + 0.08
END
