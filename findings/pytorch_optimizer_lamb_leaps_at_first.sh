#!/usr/bin/env bash
# Guess: LAMB (You et al. 2020) changes each matrix, in each step, by the learning rate times the
# matrix's own norm, whatever the gradient is: that's what its trust ratio is for. The Lamb of
# pytorch_optimizer does, as optax's and a plain version do, with or without bias correction
# ("without", it says in its docstring).
#
# pytorch_optimizer 4.1.0, optax 0.2.8: its first step is ten times as large, the second 5.3 times,
# the tenth still 1.5 times. The trust ratio makes an update as long as the weights are, so that a
# bias correction before it hardly counts: a factor cancels out. Here it comes after it: the step
# size is divided by 1 - beta1^t, as in Adam, which has no trust ratio. So LAMB begins with the
# leaps that it is there to prevent. Second, the norm of the weights is taken to be at most 10, of
# which no argument tells (an attribute, clamp, as in an early PyTorch version of LAMB). GPT-2's
# matrices have norms of 15 to 120 when they are new, and more later. For all of these a step has
# the length 10 times the learning rate, whatever the layer: the part of LAMB that adapts to layers
# is gone, and after the first steps large matrices move by less than the learning rate says. With
# the undocumented keyword adam_debias=True, and clamp set to infinity, it's LAMB.
#
# Seen (the change of a matrix, divided by its norm and the learning rate, in steps 1, 2, 10, 60):
#   64 x 64, norm 1.3:
#     plain:               1.00  1.00  1.00  1.00
#     optax:               1.00  1.00  1.00  1.00
#     pytorch_optimizer:  10.00  5.26  1.54  1.00
#     both changed:        1.00  1.00  1.00  1.00
#   768 x 3072, norm 30.7:
#     plain:               1.00  1.00  1.00  1.00
#     optax:               1.00  1.00  1.00  1.00
#     pytorch_optimizer:   3.26  1.71  0.50  0.33
#     both changed:        1.00  1.00  1.00  1.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'pytorch_optimizer==4.1.0' 'optax==0.2.8' 'jax==0.10.2' 'jaxlib==0.10.2'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { tail "$folder/log"; exit 1; }
import jax.numpy as jnp
import numpy as np
import optax
import torch
from pytorch_optimizer import Lamb

LR, STEPS = 1e-3, 60


class PlainLamb:
    """LAMB for one matrix, as in the paper's algorithm 2, without weight decay."""

    def __init__(self, weights):
        self.weight, = weights
        self.t = self.m = self.v = 0

    @torch.no_grad()
    def step(self):
        gradient, self.t = self.weight.grad, self.t + 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient ** 2
        m, v = self.m / (1 - 0.9 ** self.t), self.v / (1 - 0.999 ** self.t)
        update = m / (v.sqrt() + 1e-6)
        self.weight -= LR * self.weight.norm() / update.norm() * update


def changes(make, weights, gradients):
    """Return the relative change in each step, in learning rates, by step()."""
    weight = torch.nn.Parameter(weights.clone())
    optimizer, found = make([weight]), []
    for gradient in gradients:
        before, weight.grad = weight.detach().clone(), gradient.clone()
        optimizer.step()
        found.append(((weight.detach() - before).norm() / before.norm() / LR).item())
    return found


def changes_of_optax(weights, gradients):
    weight, optimizer, found = jnp.array(weights.numpy()), optax.lamb(LR), []
    state = optimizer.init(weight)
    for gradient in gradients:
        update, state = optimizer.update(jnp.array(gradient.numpy()), state, weight)
        found.append(float(jnp.linalg.norm(update) / jnp.linalg.norm(weight) / LR))
        weight = weight + update
    return found


def without_clamp(weights):
    optimizer = Lamb(weights, lr=LR, adam_debias=True)
    optimizer.clamp = float("inf")
    return optimizer


torch.manual_seed(0)
for rows, columns in ((64, 64), (768, 3072)):
    weights = 0.02 * torch.randn(rows, columns)
    gradients = [1e-3 * torch.randn(rows, columns) for _ in range(STEPS)]
    norm = weights.norm().item()
    found = {"plain": changes(PlainLamb, weights, gradients),
             "optax": changes_of_optax(weights, gradients),
             "pytorch_optimizer": changes(lambda w: Lamb(w, lr=LR), weights, gradients),
             "both changed": changes(without_clamp, weights, gradients)}
    print(f"  {rows} x {columns}, norm {norm:.1f}:")
    for name, values in found.items():
        print(f"    {name + ':':19}", *(f"{values[t - 1]:5.2f}" for t in (1, 2, 10, 60)))
        expected = np.ones(STEPS)
        if name == "pytorch_optimizer":
            expected = min(10 / norm, 1) / (1 - 0.9 ** np.arange(1, STEPS + 1))
        assert np.allclose(values, expected, rtol=0.03)
END
