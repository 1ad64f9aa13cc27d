#!/usr/bin/env bash
# Guess: torchax's ScannedModule(blocks) is the blocks one after the other, compiled as one: with
# the same weights it gives the same result, and with dropout each block draws a mask of its own,
# another one in each call, as the blocks themselves do (and as they do within jax_jit).
#
# torchax 0.0.14.dev20261026 (the release 0.0.13 can't be imported with torch 2.13), jax 0.10.2,
# torch 2.13.0: without dropout, yes. With dropout all blocks share one mask: jax.lax.scan traces
# the first block only, once, and the random key isn't among what scan hands from block to block, so
# it is a constant of the loop. The same units are dropped in each of the 12 blocks: with p=0.5 and
# a residual, half of the units get no update from any block, and the others get all of them twice
# as large. Means are as expected, so that nothing is noticed; the variance is 12 times as large
# (for residual blocks). And what the blocks drew doesn't move on the generator: a second call has
# the same masks as the first, unless something outside ScannedModule draws in between.
#
# Seen (12 blocks x + dropout(1), p=0.5, of 10000 zeros; mean 12, variance 12 expected; the last
# digits change from run to run):
#   one after the other: mean 12.01, variance 11.8; units that no block reached: 0.000
#   ScannedModule: mean 11.87, variance 144.0; units that no block reached: 0.506
#   second call equal to the first: one after the other False, ScannedModule True
#   the same in jax_jit: one after the other False 11.9, ScannedModule True 144.0
#   without dropout, largest difference of the two: 0.0

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'jax==0.10.2' 'jaxlib==0.10.2' \
    'flax==0.12.8' 'optax==0.2.8' 'torchax==0.0.14.dev20261026'

cd "$folder"
export JAX_PLATFORMS=cpu OMP_NUM_THREADS=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
import torchax
from torchax.interop import jax_jit
from torchax.train import ScannedModule

BLOCKS, UNITS, P = 12, 10000, 0.5


class Block(torch.nn.Module):
    def __init__(self, p):
        super().__init__()
        self.dropout = torch.nn.Dropout(p)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x + self.dropout(self.scale * torch.ones_like(x))


def both(p):
    torch.manual_seed(1)
    blocks = [Block(p) for _ in range(BLOCKS)]
    with torch.no_grad():
        for i, block in enumerate(blocks):
            block.scale.fill_(1 if p else i)
    scanned = ScannedModule(blocks).to("jax").train()
    return torch.nn.Sequential(*blocks).to("jax").train(), scanned


def draw(call, x):
    first, second = call(x), call(x)
    same = bool(torch.equal(first, second))
    mean = first.mean().item()
    return mean, ((first - mean) ** 2).mean().item(), (first == 0).float().mean().item(), same


def jitted(model):
    weights = dict(model.named_parameters())
    step = jax_jit(lambda weights, x: torch.func.functional_call(model, weights, (x,)))
    return lambda x: step(weights, x)


with torchax.default_env():
    x = torch.zeros(1, UNITS).to("jax")
    plain, scanned = both(P)
    results = [draw(plain, x), draw(scanned, x), draw(jitted(plain), x), draw(jitted(scanned), x)]
    for name, (mean, variance, missed, _) in zip(["one after the other", "ScannedModule"], results):
        print(f"{name}: mean {mean:.2f}, variance {variance:.1f}; units that no block reached: "
              f"{missed:.3f}")
    same = [result[3] for result in results]
    print(f"second call equal to the first: one after the other {same[0]}, "
          f"ScannedModule {same[1]}")
    print(f"the same in jax_jit: one after the other {same[2]} {results[2][1]:.1f}, "
          f"ScannedModule {same[3]} {results[3][1]:.1f}")
    plain, scanned = both(0.0)
    difference = (plain(x) - scanned(x)).abs().max().item()
    print("without dropout, largest difference of the two:", difference)

expected = BLOCKS * P * (1 - P) / (1 - P) ** 2
for (_, variance, missed, _), shared in zip(results, [False, True, False, True]):
    assert abs(variance / expected - (BLOCKS if shared else 1)) < 0.1 * BLOCKS ** shared
    assert abs(missed - (P if shared else P ** BLOCKS)) < 0.03
assert same == [False, True, False, True] and difference == 0
END
