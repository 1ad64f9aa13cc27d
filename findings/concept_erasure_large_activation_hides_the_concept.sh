#!/usr/bin/env bash
# Guess: after LEACE (concept-erasure's LeaceEraser.fit(x, z), then eraser(x)), a linear probe knows
# nothing about z, also in float32 and with hidden states like GPT-2's, whose first token has a few
# values in the thousands. Rounding may leave a trace, no more.
#
# concept-erasure 0.2.4, torch 2.13.0: with these nothing is erased in float32, and nothing said.
# LEACE whitens x, and directions with nearly no variance are left out of that. What counts as
# nearly none is relative: less than the largest variance times the width times float32's epsilon,
# a limit that is for telling a rank. One coordinate of 3,000 in every 64th token has a variance
# of 138,000, so at a width of 768 everything below 12.7 is left out, and the whitening matrix
# knows one direction out of 768. The concept isn't in it, and stays whole. The float32 statistics
# are good enough: LEACE's formula with solve() in place of the whitening erases z from them, and
# method="orth" does, too. So does float64, which the README's example has, since it comes from
# numpy; what a model gives is float32. shrinkage and constrain_cov_trace don't change it, nor does
# svd_tol, the setting that is described as the threshold. "Erasing it doesn't change the model's
# behavior, so it isn't used" is what one reads from it.
#
# Seen (100 texts of 64 tokens, width 768, z shifts 5 coordinates; the size of the large values, how
# many directions of float32's covariance are above the limit, the R2 of a linear probe for z before
# and after each erasure):
#   0: 768 directions, R2 0.502; leace 0.000, orth 0.000, by hand 0.000, float64 0.000
#   300: 768 directions, R2 0.502; leace 0.000, orth 0.000, by hand 0.000, float64 0.000
#   1000: 768 directions, R2 0.502; leace 0.000, orth 0.000, by hand 0.000, float64 0.000
#   3000: 1 directions, R2 0.502; leace 0.501, orth 0.000, by hand 0.000, float64 0.000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'concept-erasure==0.2.4'

"$folder/venv/bin/python" - <<'END'
import torch
from concept_erasure import LeaceEraser

TEXTS, LENGTH, WIDTH = 100, 64, 768


def known(x, z):
    """Return how much a linear probe knows about z: its R2, with a slight ridge penalty."""
    x, z = (x - x.mean(dim=0)).double(), z.double() - z.double().mean()
    weights = torch.linalg.solve(x.T @ x + 1e-3 * len(x) * torch.eye(WIDTH).double(), x.T @ z)
    return abs(1 - ((x @ weights - z).square().sum() / z.square().sum()).item())


def by_hand(x, z):
    """Return x without z: LEACE for one number per token, by its formula."""
    centred = x - x.mean(dim=0)
    both = centred.T @ (z - z.to(x.dtype).mean()) / len(x)
    weights = torch.linalg.solve(centred.T @ centred / len(x), both)
    return x - (centred @ weights / (both @ weights))[:, None] * both


torch.manual_seed(0)
torch.set_num_threads(1)
z = torch.randint(2, (TEXTS * LENGTH,))
hidden = 2 * torch.randn(TEXTS * LENGTH, WIDTH)
hidden[:, :5] += 1.6 * z[:, None]
for large in (0, 300, 1000, 3000):
    x = hidden.clone()
    x[::LENGTH, 447] += large  # the first token of each text
    variances = torch.linalg.eigvalsh(x.T.cov())
    limit = variances[-1] * WIDTH * torch.finfo(x.dtype).eps
    left = (variances > limit).sum().item()
    rest = [LeaceEraser.fit(x, z)(x), LeaceEraser.fit(x, z, method="orth")(x), by_hand(x, z),
            LeaceEraser.fit(x.double(), z)(x.double())]
    before, leace, orth, hand, double = [known(one, z) for one in (x, *rest)]
    print(f"{large}: {left} directions, R2 {before:.3f}; leace {leace:.3f}, orth {orth:.3f}, "
          f"by hand {hand:.3f}, float64 {double:.3f}")
    assert before > 0.4 and max(orth, hand, double) < 1e-3
    if large <= 300:
        assert left == WIDTH and leace < 1e-3
    elif large == 3000:
        assert left == 1 and leace > before - 0.01
        for setting in ({"shrinkage": False}, {"constrain_cov_trace": False}, {"svd_tol": 1e-6}):
            assert known(LeaceEraser.fit(x, z, **setting)(x), z) > before - 0.01
END
