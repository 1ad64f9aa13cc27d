#!/usr/bin/env bash
# Guess: a moving average leaves alone what never changes. So AveragedModel with use_buffers=True
# can average a GPT-2 that keeps its position numbers 0 to 1023 in a buffer: the copy has the same
# numbers, however long the training.
#
# torch 2.13.0: buffers of integers are averaged like weights, decay * a + (1 - decay) * b in
# float32, and the result is cut to an integer. For some numbers rounding leaves the sum just below
# a, and they lose 1, for good: with a decay of 0.9999 a fifth of the positions, at the first
# averaging. For these the copy looks up the embedding of the position before, so neighbours share
# one, and a checkpoint of the copy keeps the wrong numbers. With decays of 0.99 and 0.999, the
# default, no position is hit, so a test with those finds nothing. A buffer of booleans, such as the
# causal mask, stays as it is. Buffers that don't change are best left out of the average, which is
# what use_buffers=False does, or kept outside of the model.
#
# Seen (nothing changes, 100 updates; wrong positions, largest change of an element of token plus
# position embedding, largest change of a weight):
#   decay 0.9: 290 of 1024 positions, output 5.46, weights 0e+00
#   decay 0.99: 0 of 1024 positions, output 0.00, weights 0e+00
#   decay 0.999: 0 of 1024 positions, output 0.00, weights 0e+00
#   decay 0.9995: 311 of 1024 positions, output 6.26, weights 0e+00
#   decay 0.9999: 205 of 1024 positions, output 5.01, weights 0e+00
#   decay 0.9999, one averaging: 205 of 1024 positions

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(500, 16)
        self.wpe = nn.Embedding(1024, 16)
        self.register_buffer("positions", torch.arange(1024))
        self.register_buffer("mask", torch.ones(1024, 1024, dtype=torch.bool).tril())

    def forward(self, tokens):
        return self.wte(tokens) + self.wpe(self.positions[:len(tokens)])


def averaged(model, updates, **kind):
    average = AveragedModel(model, use_buffers=True, **kind)
    for _ in range(updates):
        average.update_parameters(model)
    return average


torch.manual_seed(1)
model = Embeddings()
tokens = torch.randint(500, (1024,))
n_wrong = {}
for decay in (0.9, 0.99, 0.999, 0.9995, 0.9999):
    average = averaged(model, 100, multi_avg_fn=get_ema_multi_avg_fn(decay))
    shift = average.module.positions - model.positions
    n_wrong[decay] = (shift != 0).sum().item()
    with torch.no_grad():
        change = (average(tokens) - model(tokens)).abs().max().item()
    weights = max((a - b).abs().max().item()
                  for a, b in zip(average.module.parameters(), model.parameters()))
    print(f"decay {decay}: {n_wrong[decay]} of 1024 positions, output {change:.2f}, "
          f"weights {weights:.0e}")
    assert weights < 1e-5
    assert shift.unique().tolist() in ([0], [-1, 0])
    assert (change > 1) == (n_wrong[decay] > 0)
    assert torch.equal(average.module.mask, model.mask)

    single = averaged(model, 100, avg_fn=get_ema_avg_fn(decay))
    assert torch.equal(single.module.positions, average.module.positions)

early = averaged(model, 2, multi_avg_fn=get_ema_multi_avg_fn(0.9999))
early = (early.module.positions != model.positions).sum().item()
print(f"decay 0.9999, one averaging: {early} of 1024 positions")

assert n_wrong[0.99] == n_wrong[0.999] == 0
assert min(n_wrong[0.9], n_wrong[0.9995], n_wrong[0.9999]) > 100
assert early == n_wrong[0.9999]
END
