#!/usr/bin/env bash
# Guess: evalica makes a ranking of language models (or texts) from pairwise comparisons. For clear
# data, where each model beats all those below it most of the time, its seven methods give the same
# order, and eigen(), the eigenvector method of Bonacich (1987), is one of them: a model's score is
# the sum of the scores of those it has beaten, each times how often.
#
# evalica 0.4.2: eigen() turns the ranking upside down. In its matrix, rows have won against
# columns, and its power iteration multiplies by the transposed matrix: a model's score is the sum
# of the scores of those that have beaten it. The scores come sorted, the highest first, so the
# table starts with the worst model, and one that has won all its comparisons has 0. Both solvers,
# Rust and Python, do it alike, so the tests that compare them see nothing (and in the file that
# they check against, Tacos, first by all other methods, are the last by eigen). pagerank() calls
# the same iteration, but transposes the matrix itself beforehand, and is right. The documentation
# says no more than "eigenvalue-based scores". With X and Y exchanged in all winners, eigen() gives
# the right scores.
#
# Seen (models A to F, each beats a worse one in 70 of 100 comparisons, with 10 ties; the order by
# each method, and scores by eigen, of the matrix by hand, and of eigen with the winners exchanged):
#   counting, average_win_rate, bradley_terry, elo, newman, pagerank: ABCDEF
#   eigen:            FEDCBA
#   eigen:            A 0.24 B 0.28 C 0.34 D 0.41 E 0.49 F 0.59
#   by hand:          A 0.59 B 0.49 C 0.41 D 0.34 E 0.28 F 0.24
#   exchanged:        A 0.59 B 0.49 C 0.41 D 0.34 E 0.28 F 0.24
#   A wins both, B and C one each: A 0.00 B 0.71 C 0.71

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'evalica==0.4.2' 'numpy==2.4.6'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { tail "$folder/log"; exit 1; }
from itertools import combinations

import evalica
import numpy as np
from evalica import Winner

MODELS = "ABCDEF"
xs, ys, winners = [], [], []
wins = np.zeros((6, 6))
for i, j in combinations(range(6), 2):
    for k in range(100):
        a, b = (i, j) if k % 2 else (j, i)  # either may be on the left
        best = i if k < 70 else j
        xs.append(MODELS[a])
        ys.append(MODELS[b])
        winners.append(Winner.Draw if k >= 90 else Winner.X if best == a else Winner.Y)
    wins[i, j], wins[j, i] = 70 + 5, 20 + 5

methods = (evalica.counting, evalica.average_win_rate, evalica.bradley_terry, evalica.elo,
           evalica.newman, evalica.pagerank, evalica.eigen)
for method in methods:
    orders = {"".join(method(xs, ys, winners, solver=solver).scores.index)
              for solver in ("pyo3", "naive")}
    print(f"  {method.__name__ + ':':17} {' '.join(orders)}")
    assert orders == {"FEDCBA" if method is evalica.eigen else "ABCDEF"}


def eigen(winners):
    return evalica.eigen(xs, ys, winners).scores[list(MODELS)].to_numpy()


by_hand = np.ones(6)
for _ in range(1000):
    by_hand = wins @ by_hand
    by_hand /= np.linalg.norm(by_hand)
other = {Winner.X: Winner.Y, Winner.Y: Winner.X, Winner.Draw: Winner.Draw}
exchanged = eigen([other[winner] for winner in winners])
for name, scores in (("eigen", eigen(winners)), ("by hand", by_hand), ("exchanged", exchanged)):
    print(f"  {name + ':':17}", *(f"{model} {score:.2f}" for model, score in zip(MODELS, scores)))
assert abs(exchanged - by_hand).max() < 1e-4 and abs(eigen(winners) - by_hand).max() > 0.2
assert list(by_hand) == sorted(by_hand, reverse=True)

# Two wins of A, one of B over C and one of C over B.
scores = evalica.eigen(list("AABC"), list("BCCB"), [Winner.X] * 4).scores
print("  A wins both, B and C one each:", *(f"{model} {scores[model]:.2f}" for model in "ABC"))
assert scores["A"] == scores.min() == 0
END
