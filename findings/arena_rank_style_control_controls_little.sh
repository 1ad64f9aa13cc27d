#!/usr/bin/env bash
# Guess: arena-rank's ContextualBradleyTerry, the style control of a leaderboard of chat models,
# tells style from strength. Models that are equally good, of which some only write longer, get
# equal ratings once there are enough battles, and the length gets the coefficient that it has.
# reg=1.0 is a prior like C=1.0 of scikit-learn: many battles outweigh it.
#
# arena-rank 0.1.1, jax 0.8.1: no number of battles does. The log-likelihood is a mean over the
# battles, and reg stands next to it undivided, so it's as strong for 100,000 battles as for 1000.
# A feature of variance 1 (from_pandas makes it so) adds at most 1/4 to the curvature, against the
# 1 of reg: of a small coefficient at most a fifth is left, and the effect that it doesn't take is
# put down to the models. The longest writer leads by hundreds of points, with an interval of +-4.
# The Hessian of the sandwich estimator has no reg in it, so the intervals don't fit either: they
# are far wider than the spread of these ratings over other battles. The example notebook for
# LMArena's style control does as here, and calls it maximum likelihood estimation. With
# reg=1/battles, which is a reg of 1 next to a sum, ratings, coefficient and intervals are right.
#
# Seen (three models of the same strength with short, medium and long answers; log-odds of a vote
# 1 per unit of length; ratings, +- half the interval, coefficient of the length as standardized):
#   1000 battles, by hand: 1015 999 986, coefficient 1.86
#   1000 battles, reg=1.0: 869 1001 1130 +-37, coefficient 0.09
#   1000 battles, reg=1/battles: 1011 999 989 +-32, coefficient 1.81
#   100000 battles, by hand: 1000 998 1001, coefficient 1.71
#   100000 battles, reg=1.0: 864 999 1137 +-4, coefficient 0.08
#   100000 battles, reg=1/battles: 1000 998 1001 +-3, coefficient 1.71
#   1000 battles, 300 times: 95% of the ratings lie within +-22, with reg=1/battles within +-32

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'arena-rank==0.1.1' 'jax==0.8.1' \
    'jaxlib==0.8.1' 'optax==0.2.8' 'jaxtyping==0.3.11' 'numpy==2.3.3' 'pandas==3.1.1'
cd "$folder"

export OMP_NUM_THREADS=1 JAX_PLATFORMS=cpu
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import numpy as np
import pandas as pd
from arena_rank.models.contextual_bradley_terry import ContextualBradleyTerry
from arena_rank.utils.data_utils import ContextualPairDataset

POINTS = 400 / np.log(10)
CENTRE = np.eye(3) - 1 / 3


def battles(count, seed):
    """Models of equal strength; the longer answer is liked better. In numbers and in words."""
    random = np.random.default_rng(seed)
    first = random.integers(3, size=count)
    second = (first + random.integers(1, 3, size=count)) % 3
    length = 1.0 * (first - second) + random.normal(size=count)
    won = random.random(count) < 1 / (1 + np.exp(-length))
    table = pd.DataFrame({"model_a": np.array(["a", "b", "c"])[first],
                          "model_b": np.array(["a", "b", "c"])[second],
                          "winner": np.where(won, "model_a", "model_b"), "length": length})
    matrix = np.zeros((count, 4))
    matrix[np.arange(count), first] = 1
    matrix[np.arange(count), second] = -1
    matrix[:, 3] = (length - length.mean()) / length.std()
    return table, matrix, won


def by_hand(matrix, won, reg=0.0):
    """Newton's method for the mean log-likelihood less reg / 2 * coefficient**2."""
    weights, prior = np.zeros(4), np.diag([0, 0, 0, reg])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-matrix @ weights))
        slope = matrix.T @ (won - chance) / len(won) - prior @ weights
        curve = (matrix.T * (chance * (1 - chance))) @ matrix / len(won) + prior
        weights = weights + np.linalg.pinv(curve, rcond=1e-10) @ slope
    return 1000 + POINTS * CENTRE @ weights[:3], weights[3]


def show(name, ratings, coefficient, half=None):
    print(f"{name}:", *(f"{rating:.0f}" for rating in ratings),
          end=f" +-{half:.0f}" if half else "")
    print(f", coefficient {coefficient:.2f}")


def library(name, table, reg):
    data = ContextualPairDataset.from_pandas(table, ["length"], reweighted=False)
    model = ContextualBradleyTerry(3, 1, reg=reg)
    result = model.compute_ratings_and_cis(data, significance_level=0.05)
    ratings, coefficient = np.array(result["ratings"]), float(model.params["coeffs"][0])
    half = float(result["rating_upper"][2] - result["rating_lower"][2]) / 2
    show(name, ratings, coefficient, half)
    return ratings, coefficient, half


told = {}
for count in (1000, 100000):
    table, matrix, won = battles(count, 1)
    right = by_hand(matrix, won)
    show(f"{count} battles, by hand", *right)
    ratings, coefficient, half = library(f"{count} battles, reg=1.0", table, 1.0)
    np.testing.assert_allclose(ratings, by_hand(matrix, won, 1.0)[0], atol=0.5)
    assert ratings[2] - ratings[0] > 220 and coefficient < 0.1 * right[1]
    told[count] = [half]
    ratings, coefficient, half = library(f"{count} battles, reg=1/battles", table, 1 / count)
    np.testing.assert_allclose(ratings, right[0], atol=1 if count > 1000 else 5)
    told[count].append(half)
assert np.ptp(right[0]) < 10 and abs(right[1] - 3**0.5) < 0.03 and max(told[count]) < 6

found = [1.96 * np.std([by_hand(*battles(1000, seed)[1:], reg)[0][2] for seed in range(300)])
         for reg in (1.0, 1 / 1000)]
print("1000 battles, 300 times: 95% of the ratings lie within "
      "+-{:.0f}, with reg=1/battles within +-{:.0f}".format(*found))
assert told[1000][0] > 1.4 * found[0] and 0.85 < told[1000][1] / found[1] < 1.15
END
