#!/usr/bin/env bash
# Guess: ema-pytorch's PostHocEMA keeps averages with the profile of Karras et al. (2024): sigma_rel
# is the profile's width as a part of the training so far, and the average for another sigma_rel is
# made afterwards from checkpoints of two. update_every=10 only saves time: the average is nearly
# the same, as weights hardly change in 10 steps.
#
# ema-pytorch 0.8.3, torch 2.13.0: that is so with update_every=1 only. The decay of an update is
# (1 - 1/t) ** (1 + gamma), the one for a single step, however many steps lie between two updates;
# with update_every=n it would have to be (1 - n/t) ** (1 + gamma). So the averages look back far
# further than asked for. With the settings of the README's example (sigma_rel 0.05 and 0.28,
# update_every=10) the shorter one looks back nearly as far as the longer one ought to, and the
# longer one consists, by more than half, of the untrained weights that the model had at first. With
# update_every left out, which means 100, these make up most of both. A longer training hardly
# helps: they fade with a small power of its length only. What is synthesized is wrong, too, since
# it takes the checkpoints for what their sigma_rel says. (The page of a fork, nitrous-ema, says
# that the rate is too slow without its step_size_correction.)
#
# Seen (1000 steps, the weight grows from 0 to 1; the average, and the first weights' part of it, of
# sigma_rel 0.05, of 0.28, and of 0.15, which is synthesized from the two):
#   by hand:          0.948 ( 0 %), 0.539 ( 0 %), 0.820 ( 0 %)
#   update_every=1:   0.948 ( 0 %), 0.539 ( 0 %), 0.820 ( 0 %)
#   update_every=10:  0.640 ( 0 %), 0.104 (56 %), 0.241 (41 %)
#   default:          0.141 (60 %), 0.011 (97 %), 0.039 (89 %)
#   10, corrected:    0.944 ( 0 %), 0.539 ( 0 %)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'ema-pytorch==0.8.3'

cd "$folder"
venv/bin/python - <<'END'
import tempfile

import numpy as np
import torch
from ema_pytorch import PostHocEMA
from ema_pytorch.post_hoc_ema import KarrasEMA
from torch import nn

STEPS = 1000
model = nn.Module()
model.weight = nn.Parameter(torch.zeros(2))  # grows from 0 to 1; 1 at first, then 0


def train(after_step):
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([step / STEPS, float(step == 1)]))
        after_step()


def gamma(sigma):  # the width of t ** gamma between 0 and 1: a Beta distribution's
    def width(x):
        return ((x + 1) / ((x + 2) ** 2 * (x + 3))) ** 0.5
    low, high = 0, 1000
    for _ in range(100):
        low, high = ((low + high) / 2, high) if width((low + high) / 2) > sigma else (
            low, (low + high) / 2)
    return low


def by_hand(sigma):
    t = np.arange(1, STEPS + 1)
    part = t ** gamma(sigma) / (t ** gamma(sigma)).sum()
    return (part * t / STEPS).sum(), part[0]


def measure(**settings):
    with tempfile.TemporaryDirectory() as folder:
        averages = PostHocEMA(model, sigma_rels=(0.05, 0.28), checkpoint_every_num_steps=100,
                              checkpoint_folder=folder, checkpoint_dtype=torch.float32,
                              **settings)
        assert abs(averages.gammas[0] - gamma(0.05)) < 1e-3
        train(averages.update)
        found = [ema.ema_model.weight.tolist() for ema in averages.ema_models]
        return found + [averages.synthesize_ema_model(sigma_rel=0.15).ema_model.weight.tolist()]


def corrected(every):  # the decay of all the steps since the last update
    class Corrected(KarrasEMA):
        beta = property(lambda self: max(0, 1 - every / (self.step.item() + 1)) ** (
            1 + self.gamma))

    averages = [Corrected(model, sigma_rel=sigma, update_every=every) for sigma in (0.05, 0.28)]
    train(lambda: [ema.update() for ema in averages])
    return [ema.ema_model.weight.tolist() for ema in averages]


results = {"by hand": [by_hand(sigma) for sigma in (0.05, 0.28, 0.15)],
           "update_every=1": measure(update_every=1), "update_every=10": measure(update_every=10),
           "default": measure(), "10, corrected": corrected(10)}
for name, found in results.items():
    print(f"{name + ':':17}", ", ".join(f"{a:.3f} ({100 * b:2.0f} %)" for a, b in found))
truth, one, ten, hundred, right = map(np.array, results.values())
assert abs(one - truth).max() < 0.01
assert abs(right - truth[:2]).max() < 0.01
assert (ten[:, 0] < truth[:, 0] - 0.25).all() and ten[1, 1] > 0.5
assert (hundred[:, 0] < truth[:, 0] - 0.4).all() and hundred[1, 1] > 0.9
END
