#!/usr/bin/env bash
# Guess: Muon_adv of adv-optm with nnmf_factor=True keeps its momentum in compressed form (two
# vectors and a bit per weight) and makes otherwise the same steps, up to the rounding. Training a
# GPT-2 further with a small learning rate changes its loss a little per step, and with lr=0 not.
#
# adv-optm 2.5.16, torch 2.13.0, transformers 5.24.0: with nnmf_factor=True, or
# state_precision="factored", which is the same, the steps of matrices aren't multiplied by the
# learning rate. The Newton-Schulz steps make all singular values about 1, and such a matrix is
# subtracted from the weights as it is, as if lr was 1. One step throws away what a model has
# learned, a warmup doesn't help, and with lr=0 it's the same. Without compression, and with the
# compressed states of AdaMuon_adv and AdamW_adv, all is as guessed. Weight decay and the vectors,
# which AdamW gets, do follow the learning rate. There's no warning, and the documentation
# recommends compressed states for large models.
#
# Seen (a 2-layer GPT-2 that has learned to count; its loss before, after 1 and 5 steps; the norm
# of the first change of a matrix):
#   AdamW_adv, lr=0.0001, nnmf_factor=False: 0.00 0.00 0.00, 0.00315
#   AdaMuon_adv, lr=0.0001, nnmf_factor=False: 0.00 0.00 0.00, 0.00064
#   Muon_adv, lr=0.0001, nnmf_factor=False: 0.00 0.00 0.00, 0.00064
#   AdamW_adv, lr=0.0001, nnmf_factor=True: 0.00 0.00 0.00, 0.00315
#   AdaMuon_adv, lr=0.0001, nnmf_factor=True: 0.00 0.00 0.00, 0.00064
#   Muon_adv, lr=0.01, nnmf_factor=True: 0.00 5.94 5.11, 5.15905
#   Muon_adv, lr=0.0001, nnmf_factor=True: 0.00 5.85 5.28, 5.15905
#   Muon_adv, lr=0, nnmf_factor=True: 0.00 5.85 4.69, 5.15905

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

import torch
from adv_optm import AdaMuon_adv, AdamW_adv, Muon_adv
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
learned = GPT2LMHeadModel(GPT2Config(
    vocab_size=48, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
    attn_pdrop=0, bos_token_id=0, eos_token_id=0))
text = (torch.arange(16) + torch.randint(48, (32, 1))) % 48


def loss_of(model):
    return model(text, labels=text).loss


adamw = torch.optim.AdamW(learned.parameters(), lr=1e-2)
for _ in range(150):
    loss_of(learned).backward()
    adamw.step()
    adamw.zero_grad()


def run(optimizer, lr, factored):
    """Train further; print and return the losses; return the first change of a matrix, too."""
    model = copy.deepcopy(learned)
    optimizer = optimizer(model.parameters(), lr=lr, nnmf_factor=factored)
    matrix = model.transformer.h[0].attn.c_proj.weight
    losses, before = [loss_of(model).item()], matrix.detach().clone()
    for step in range(5):
        loss_of(model).backward()
        if step == 0:
            gradient = matrix.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            change = matrix.detach() - before
        losses.append(loss_of(model).item())
    losses = [losses[0], losses[1], losses[5]]
    print(f"{type(optimizer).__name__}, lr={lr:g}, nnmf_factor={factored}:",
          *(f"{loss:.2f}" for loss in losses), end=f", {change.norm():.5f}\n")
    assert losses[0] < 0.01
    return losses[1], losses[2], change, gradient


def orthogonal(matrix):
    """Make the singular values of a matrix about 1, as Muon does, by five Newton-Schulz steps."""
    matrix = matrix / matrix.norm()
    for _ in range(5):
        square = matrix @ matrix.T
        matrix = 3.4445 * matrix + (-4.775 * square + 2.0315 * square @ square) @ matrix
    return matrix


for optimizer in (AdamW_adv, AdaMuon_adv, Muon_adv):
    after, last, _, _ = run(optimizer, 1e-4, False)
    assert after < 0.01 and last < 0.01
for optimizer in (AdamW_adv, AdaMuon_adv):
    after, last, _, _ = run(optimizer, 1e-4, True)
    assert after < 0.01 and last < 0.01
changes = []
for lr in (1e-2, 1e-4, 0):
    after, last, change, gradient = run(Muon_adv, lr, True)
    assert after > 3 and last > 3
    changes.append(change)
    update = orthogonal(gradient)
    assert torch.cosine_similarity(change.flatten(), -update.flatten(), dim=0) > 0.99
    assert 0.9 < change.norm() / update.norm() < 1.1  # and not lr times as much
torch.testing.assert_close(changes[0], changes[2], rtol=0, atol=1e-6)
END
