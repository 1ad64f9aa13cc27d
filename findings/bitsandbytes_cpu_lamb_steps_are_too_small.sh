#!/usr/bin/env bash
# Guess: bitsandbytes' LAMB on a CPU does what its other backends do: it limits the length of
# Adam's step, with the bias correction, to the norm of the weights, and multiplies it by lr. So as
# long as that limit holds, as it does for small weights, each step is lr times that norm long.
#
# bitsandbytes 0.50.2, torch 2.13.0: its steps are up to 6.5 times shorter. The backend for CPUs,
# new in 0.50, measures the step before the bias correction, m / sqrt(v), and multiplies it by
# sqrt(1 - 0.999^t) / (1 - 0.9^t) afterwards. The "default" backend of the same release measures
# what is really subtracted. So the first step has 0.32 of its length, the 10th 0.15, the 100th
# 0.31, the 1000th 0.80: a slow warm-up that nobody set. The same model with the same settings
# learns much less, and doesn't follow its run on another device. Where the limit doesn't take
# effect the steps are right (max_unorm=0, or large weights), so those of Adam are too.
#
# Seen (a bigram model of 50 tokens, lr=0.01; length of steps 1, 2, 10, 50, 100 and 200 over lr
# times the norm of the weights, then the loss after 500 steps):
#   bitsandbytes: 0.316 0.235 0.153 0.222 0.309 0.426; loss 3.74
#   its default backend: 1.000 1.000 1.000 1.000 1.000 1.000; loss 1.76
#   by hand: 1.000 1.000 1.000 1.000 1.000 1.000; loss 1.76
#   by hand, measured too early: 0.316 0.235 0.153 0.222 0.309 0.426; loss 3.74

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'bitsandbytes==0.50.2'

# The "default" backend's functions run without a compiler then.
export TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import math

import bitsandbytes
import torch
from bitsandbytes.backends.default import ops
from torch.nn.functional import cross_entropy

rate = 0.01


class Default:
    """LAMB with the functions that bitsandbytes has for devices without a backend of their own."""

    def __init__(self, weight):
        self.weight, self.step_number = weight, 0
        self.first, self.second = torch.zeros_like(weight), torch.zeros_like(weight)

    @torch.no_grad()
    def step(self):
        self.step_number += 1
        length, moments = torch.zeros(1), (self.first, self.second)
        # 3 is the number of Adam and LAMB.
        ops._optimizer_precondition_32bit(
            self.weight.grad, self.weight, *moments, length, 0.9, 0.999, 1e-8, 0.0,
            self.step_number, rate, 1.0, 3)
        ops._optimizer_update_32bit(
            self.weight.grad, self.weight, *moments, length, 1.0, self.weight.norm().item(), 0.9,
            0.999, 0.0, 0.0, 1e-8, 0.0, self.step_number, rate, 1.0, 3)


class ByHand(Default):
    """LAMB by hand; with early=True the step's length is taken before the bias correction."""

    def __init__(self, weight, early=False):
        super().__init__(weight)
        self.early = early

    @torch.no_grad()
    def step(self):
        self.step_number += 1
        self.first.lerp_(self.weight.grad, 0.1)
        self.second.lerp_(self.weight.grad ** 2, 0.001)
        one, two = 1 - 0.9 ** self.step_number, math.sqrt(1 - 0.999 ** self.step_number)
        move = (self.first / one) / (self.second.sqrt() / two + 1e-8)
        length = move.norm() * (one / two if self.early else 1)
        self.weight -= rate * move * min(1, (self.weight.norm() / length).item())


def train(name, optimizer):
    """Train a bigram model; return the length of each step over lr times the weights' norm."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(0.02 * torch.randn(50, 50, generator=generator))
    optimizer, lengths = optimizer(weight), []
    for step in range(501):
        text = torch.randint(50, (64,), generator=generator)
        loss = cross_entropy(weight[text], (text + 1) % 50)
        weight.grad = torch.autograd.grad(loss, weight)[0]
        before = weight.detach().clone()
        optimizer.step()
        lengths.append(((weight - before).norm() / before.norm() / rate).item())
    chosen = [lengths[step - 1] for step in (1, 2, 10, 50, 100, 200)]
    print(f"{name}:", *(f"{length:.3f}" for length in chosen), end=f"; loss {loss.item():.2f}\n")
    return weight.detach(), torch.tensor(chosen), loss.item()


library = train("bitsandbytes", lambda weight: bitsandbytes.optim.LAMB([weight], lr=rate))
default = train("its default backend", Default)
right = train("by hand", ByHand)
early = train("by hand, measured too early", lambda weight: ByHand(weight, early=True))
torch.testing.assert_close(default[0], right[0], atol=1e-3, rtol=0)
torch.testing.assert_close(library[0], early[0], atol=1e-3, rtol=0)
assert (right[1] - 1).abs().max() < 1e-3 and library[1].max() < 0.5 and library[1].min() < 0.16
assert right[2] < 2 and library[2] > 3.5
END
