#!/usr/bin/env bash
# Guess: pyDVL's influences with second_order_mode=SecondOrderMode.GAUSS_NEWTON are test gradient *
# (G + regularization)^-1 * training gradient, G being the mean of gradient * gradient^T over the
# texts of fit()'s loader, whichever method computes it. Its batches are a matter of memory only.
#
# pyDVL 0.10.0, torch 2.13.0: no method gives that. The results of the batches are averaged with
# the length of the result as the number of texts, and that's the number of weights. In the sum,
# the first batch isn't multiplied by it as the others are, but all is divided by it. So
# CgInfluence, ArnoldiInfluence and NystroemSketchInfluence lose the first batch: with one batch of
# all texts they divide G by the number of weights, and what is left is the product of the
# gradients, as if there were no G. For DirectInfluence, which builds the matrix, the first batch
# counts in the sum, but not in the number of texts: with one batch all values are nan, with more,
# G is too small again. InverseHarmonicMeanInfluence takes its average over the texts that one asks
# about, so the values of a pair depend on which others are asked about with it. The most
# influential texts are other ones, and nothing is said. With the Hessian (the default) the average
# is another one; it's right for batches of equal size.
#
# Seen (a neural trigram model, 900 weights, 40 training and 6 test texts; relative differences from
# G by hand, from G with the average as it is by hand and from G = 0; for how many test texts the
# most influential text is the right one):
#   CG, 1 batches: 5.012 0.000 0.007; 2 of 6
#   CG, 4 batches: 1.121 0.000 0.823; 3 of 6
#   CG, 40 batches: 0.265 0.000 0.844; 6 of 6
#   Arnoldi, 1 batches: 5.012 0.000 0.007; 2 of 6
#   Arnoldi, 4 batches: 1.121 0.000 0.823; 3 of 6
#   Arnoldi, 40 batches: 0.265 0.000 0.844; 6 of 6
#   direct, 1 batch: nan
#   direct, 4 batches: 4.561 0.000 0.085; 3 of 6
#   direct, 40 batches: 5.011 0.000 0.007; 2 of 6
#   harmonic mean, 1 batch, 40 training texts: 0.975, 0.000 when multiplied by 40
#   harmonic mean, 1 batch, 10 training texts: 0.900, 0.000 when multiplied by 10

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==1.26.4'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==1.26.4' \
    'pydvl[influence]==0.10.0' 'dask==2026.8.0' 'distributed==2026.8.0' 'zarr==3.1.5'

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from pydvl.influence.torch import (
    ArnoldiInfluence, CgInfluence, DirectInfluence, InverseHarmonicMeanInfluence,
    SecondOrderMode)
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
regularization = 0.05
model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(24, 16), nn.Tanh(),
                      nn.Linear(16, 20)).double()
texts, next_tokens = torch.randint(20, (40, 3)), torch.randint(20, (40,))
tests, next_tests = torch.randint(20, (6, 3)), torch.randint(20, (6,))


def gradients(texts, targets):
    rows = []
    for text, target in zip(texts, targets):
        loss = cross_entropy(model(text[None]), target[None])
        rows.append(torch.cat([
            part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(rows)


train, test = gradients(texts, next_tokens), gradients(tests, next_tests)
size = train.shape[1]
identity = torch.eye(size, dtype=torch.float64)
newton = train.T @ train / 40


def by_hand(matrix):
    return test @ torch.linalg.solve(matrix + regularization * identity, train.T)


right, none = by_hand(newton), by_hand(0 * newton)


def difference(one, other):
    return ((one - other).norm() / other.norm()).item()


def influences(method, batch, asked=40, **settings):
    method = method(model, cross_entropy, regularization=regularization, **settings)
    method = method.fit(DataLoader(TensorDataset(texts, next_tokens), batch_size=batch))
    return method.influences(tests, next_tests, texts[:asked], next_tokens[:asked])


def averaged(name, batch):
    """Return the G that comes from batches as large as this."""
    if name == "direct":
        return newton * 40 / (size * (40 / batch - 1))
    first = train[:batch].T @ train[:batch] / 40
    return newton - first + first / size


methods = {
    "CG": (CgInfluence, {"rtol": 1e-10, "maxiter": 500}),
    "Arnoldi": (ArnoldiInfluence, {"rank": 60}), "direct": (DirectInfluence, {})}
for name, (method, settings) in methods.items():
    for batch in (40, 10, 1):
        values = influences(method, batch, second_order_mode=SecondOrderMode.GAUSS_NEWTON,
                            **settings)
        if name == "direct" and batch == 40:
            print("direct, 1 batch: nan")
            assert values.isnan().all()
            continue
        wrong, same = difference(values, right), difference(values, by_hand(averaged(name, batch)))
        found = int((values.argmax(1) == right.argmax(1)).sum())
        print(f"{name}, {40 // batch} batches: {wrong:.3f} {same:.3f}",
              f"{difference(values, none):.3f}; {found} of 6")
        assert wrong > 0.2 and same < 1e-3

mean = sum((identity - torch.outer(row, row) / (regularization + row @ row)) / regularization
           for row in train) / 40
harmonic = test @ mean @ train.T
for asked in (40, 10):
    values = influences(InverseHarmonicMeanInfluence, 40, asked)
    wrong = difference(values, harmonic[:, :asked])
    same = difference(asked * values, harmonic[:, :asked])
    print(f"harmonic mean, 1 batch, {asked} training texts: {wrong:.3f},",
          f"{same:.3f} when multiplied by {asked}")
    assert abs(wrong - 1 + 1 / asked) < 1e-3 and same < 1e-3
END
