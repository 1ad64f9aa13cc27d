#!/bin/bash
# Guess: AdamAtan2ClipGrok of adam-atan2-pytorch is AdamAtan2 and, after each step, a soft limit for
# the norms of a matrix's rows, clip_to_grok_max_norm=2.0 ("weight norm clipping", says the paper
# that it names). Rows well below the limit stay as they are, longer ones end near it. The higher
# the limit, the less it does; 1000 is none.
#
# adam-atan2-pytorch 0.4.1, torch 2.13.0: every row gets shorter in every step, also without any
# gradient, and the higher the limit, the faster. soft_clip_max_norm() squashes the norm into the
# range from 1 to the limit and divides the row by that number. To get a row of that norm it would
# have to divide by the old norm, too. So the number is a divisor, above 1 for every row: 1.02 a
# step for a row of GPT-2's embedding at the start (norm 0.55) with the default limit, 2 for a very
# long row, and with a limit of 1000, 120 for all. The learning rate has no influence on it. With
# the default the rows of tokens that don't occur die away; with 10 a model hardly learns, and
# with 1000, which no row ever comes near, it learns nothing: its matrices are next to 0.
#
# Seen (norms of rows after 100 steps with a gradient of 0; then the loss of a small GPT-2 after 200
# steps on a text of 32 tokens that it can learn by heart (3.91 is the logarithm of its 50 tokens),
# and the largest norm of a row):
#   at the start       0.30 0.55 1.00 1.90 10.00
#   limit 2.0, by hand 0.30 0.55 1.00 1.90 2.00
#   limit 2.0          0.16 0.21 0.23 0.23 0.24
#   limit 4.0          0.00 0.00 0.00 0.00 0.00
#   limit 1000.0       0.00 0.00 0.00 0.00 0.00
#   AdamAtan2: loss 0.02, longest row 0.86
#   clipped to 2 by hand: loss 0.02, longest row 0.86
#   ClipGrok, off: loss 0.02, longest row 0.86
#   ClipGrok, limit 2.0: loss 0.36, longest row 0.45
#   ClipGrok, limit 10.0: loss 3.79, longest row 0.01
#   ClipGrok, limit 1000.0: loss 3.91, longest row 0.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'einops==0.8.2' 'adam-atan2-pytorch==0.4.1'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from adam_atan2_pytorch import AdamAtan2, AdamAtan2ClipGrok
from transformers import GPT2Config, GPT2LMHeadModel

NORMS = torch.tensor([0.3, 0.55, 1.0, 1.9, 10.0])


def clip(weights, limit):
    """Scale the rows that are longer than the limit to it."""
    norm = weights.data.norm(dim=-1, keepdim=True)
    weights.data *= (limit / norm).clamp(max=1)


def rows(limit, by_hand=False):
    """Return the norms of rows that have no gradient after 100 steps."""
    weights = torch.nn.Parameter(NORMS[:, None] / 8 * torch.ones(5, 64))
    optimizer = (AdamAtan2([weights], lr=1e-3) if by_hand else
                 AdamAtan2ClipGrok([weights], lr=1e-3, clip_to_grok_max_norm=limit))
    for _ in range(100):
        weights.grad = torch.zeros_like(weights)
        optimizer.step()
        if by_hand:
            clip(weights, limit)
    norms = weights.detach().norm(dim=-1)
    print(f"limit {limit}{', by hand' * by_hand}".ljust(18), *(f"{norm:.2f}" for norm in norms))
    return norms


def train(name, optimizer, limit=None, **settings):
    """Return the last loss of a small GPT-2, and its matrices' longest row."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=32, n_embd=64, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0))
    text = torch.randint(0, 50, (1, 32))
    optimizer = optimizer(model.parameters(), lr=1e-3, **settings)
    for _ in range(200):
        loss = model(text, labels=text).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for weights in model.parameters() if limit else ():
            if weights.ndim > 1:
                clip(weights, limit)
    longest = max(p.detach().norm(dim=-1).max().item() for p in model.parameters() if p.ndim > 1)
    print(f"{name}: loss {loss.item():.2f}, longest row {longest:.2f}")
    return loss.item(), longest


print("at the start      ", *(f"{norm:.2f}" for norm in NORMS))
assert torch.allclose(rows(2.0, by_hand=True), NORMS.clamp(max=2.0))
default, four, thousand = rows(2.0), rows(4.0), rows(1000.0)
assert default[0] < 0.2 and default.max() < 0.3 and four.max() < 0.01 and thousand.max() == 0

assert train("AdamAtan2", AdamAtan2)[0] < 0.1
assert train("clipped to 2 by hand", AdamAtan2, limit=2.0)[0] < 0.1
assert train("ClipGrok, off", AdamAtan2ClipGrok, clip_to_grok=False)[0] < 0.1
runs = [train(f"ClipGrok, limit {limit}", AdamAtan2ClipGrok, clip_to_grok_max_norm=limit)
        for limit in (2.0, 10.0, 1000.0)]
assert runs == sorted(runs, key=lambda run: run[0])  # the higher the limit, the worse
assert runs[0][1] < 0.6 and runs[1][0] > 3 and runs[2][0] > 3.8 and runs[2][1] < 0.01
END
