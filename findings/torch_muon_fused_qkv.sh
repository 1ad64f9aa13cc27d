#!/usr/bin/env bash
# The guess: Muon's updates don't depend on the size of the gradient, so it makes no difference
# whether queries, keys and values are three matrices or, as in GPT-2, one of 3C x C: each of the
# three is updated by as much.
#
# torch 2.13.0: torch.optim.Muon orthogonalises the fused matrix as one, which fixes the size of the
# whole update but not how it is shared out. With gradients of queries and keys that are 100 times
# smaller than those of the values, the values' update is over 10 times as large as the
# others. With three matrices, all updates are of a size.
#
# Seen (root mean square of the first update at lr = 1):
#   fused: queries 0.011, keys 0.010, values 0.135
#   three matrices: queries 0.079, keys 0.079, values 0.078

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import torch

torch.manual_seed(0)
C = 128


def update(gradients):
    """Return the parameters' first updates."""
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    optimizer = torch.optim.Muon(parameters, lr=1.0, weight_decay=0)
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.clone()
    optimizer.step()
    return [parameter.detach() for parameter in parameters]


def sizes(name, updates):
    q, k, v = (update.square().mean().sqrt().item() for update in updates)
    print(f"{name}: queries {q:.3f}, keys {k:.3f}, values {v:.3f}")
    return q, k, v


gradients = [torch.randn(C, C) / 100, torch.randn(C, C) / 100, torch.randn(C, C)]
fused, = update([torch.cat(gradients)])
q, k, v = sizes("fused", fused.split(C))
assert v > 5 * max(q, k)
q, k, v = sizes("three matrices", update(gradients))
assert max(q, k, v) < 1.2 * min(q, k, v)
END
