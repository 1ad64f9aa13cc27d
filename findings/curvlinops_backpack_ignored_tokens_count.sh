#!/usr/bin/env bash
# Guess: tokens with the label -100, which the loss ignores (prompts, padding), are in no curvature
# of that loss: curvlinops' GGN, Fisher and KFAC and BackPACK's DiagGGN are those of the other
# tokens. With many samples the Monte-Carlo Fisher comes to the GGN.
#
# curvlinops-for-pytorch 3.0.1, backpack-for-pytorch 1.7.1, torch 2.13.0: only those that
# differentiate the loss itself leave such tokens out (curvlinops' Hessian and GGN).
# FisherMCLinearOperator, KFACLinearOperator and EKFACLinearOperator (fisher_type "mc", their
# default, or "type-2") and BackPACK's DiagGGNExact and DiagGGNMC make up their own gradients at the
# outputs from the prediction, and do so at every token: of the loss they use the reduction, not
# ignore_index. With prompts longer than the answers most of the result is the prompts'. With
# reduction="mean" it is divided by all tokens where the loss divides by those it counts, so that
# the size looks nearly right; and the empirical Fisher is too large by tokens / counted tokens.
# Neither library says so, in the docs or at run time; BackPACK refuses any ignore_index but -100,
# which alone is "implemented". A way around: drop the rows of ignored tokens from labels and
# output.
#
# Seen (8 texts, 9 tokens of 12 without label; a bigram model; the trace as a multiple of that by
# hand, and the part of the embedding's trace that is of words which only the prompts have):
#   sum, GGN: 1.00, 0.00
#   sum, Fisher of 300 samples: 3.62, 0.79
#   sum, KFAC type-2 (last layer): 3.06
#   sum, BackPACK DiagGGNExact: 3.62, 0.79
#   sum, empirical Fisher: 1.00, 0.00
#   mean, GGN: 1.00, 0.00
#   mean, Fisher of 300 samples: 0.90, 0.79
#   mean, KFAC type-2 (last layer): 0.76
#   mean, BackPACK DiagGGNExact: 0.90, 0.79
#   mean, empirical Fisher: 4.00, 0.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' \
    'curvlinops-for-pytorch==3.0.1' 'backpack-for-pytorch==1.7.1'

cat >"$folder/check.py" <<'END'
import copy

import torch
from backpack import backpack, extend
from backpack.custom_module.permute import Permute
from backpack.extensions import DiagGGNExact
from curvlinops import (EFLinearOperator, FisherMCLinearOperator, GGNLinearOperator,
                        KFACLinearOperator)
from torch import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
tokens = torch.cat([torch.randint(7, (8, 9)), torch.randint(7, 20, (8, 4))], 1)
x, y = tokens[:, :-1], tokens[:, 1:].clone()
y[:, :9] = -100
counted = y != -100
model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 20),
                      Permute(0, 2, 1))
plain = copy.deepcopy(model)
last = [model[3].weight]


def by_hand(reduction, empirical=False):
    """The diagonal of GGN or empirical Fisher over the tokens that have a label."""
    def logits(weights):
        return torch.func.functional_call(plain, weights, (x,)).mT[counted]

    weights = {name: weight.detach() for name, weight in plain.named_parameters()}
    slopes = torch.func.jacrev(logits)(weights).values()
    slopes = torch.cat([slope.flatten(2) for slope in slopes], 2)
    p = logits(weights).softmax(-1)
    if empirical:
        error = p - nn.functional.one_hot(y[counted], 20)
        diagonal = torch.einsum("nv,nvp->np", error, slopes).square().sum(0)
    else:
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        diagonal = torch.einsum("nvp,nvw,nwp->p", slopes, inner, slopes)
    return diagonal / (counted.sum() if reduction == "mean" else 1)


def show(name, diagonal, right):
    trace = (diagonal.sum() / right.sum()).item()
    prompts = (diagonal[:7 * 8].sum() / diagonal[:20 * 8].sum()).item()
    print(f"{name}: {trace:.2f}", end="\n" if len(right) == 200 else f", {prompts:.2f}\n")
    return trace, prompts


for reduction in ("sum", "mean"):
    loss = nn.CrossEntropyLoss(reduction=reduction)

    def curvature(kind, weights=None, **options):
        weights = weights or list(model.parameters())
        operator = kind(model, loss, weights, [(x, y)], **options)
        return (operator @ torch.eye(sum(weight.numel() for weight in weights))).diagonal()

    right = by_hand(reduction)
    head = slice(-220, -20)
    true = show(f"{reduction}, GGN", curvature(GGNLinearOperator), right)
    wrong = [show(f"{reduction}, Fisher of 300 samples",
                  curvature(FisherMCLinearOperator, mc_samples=300), right),
             show(f"{reduction}, KFAC type-2 (last layer)",
                  curvature(KFACLinearOperator, last, fisher_type="type-2"), right[head])]
    extended, criterion = extend(copy.deepcopy(plain)), extend(copy.deepcopy(loss))
    with backpack(DiagGGNExact()):
        criterion(extended(x), y).backward()
    wrong.append(show(f"{reduction}, BackPACK DiagGGNExact", torch.cat(
        [weight.diag_ggn_exact.flatten() for weight in extended.parameters()]), right))
    factor, _ = show(f"{reduction}, empirical Fisher", curvature(EFLinearOperator),
                     by_hand(reduction, empirical=True))
    assert abs(true[0] - 1) < 1e-6 and true[1] == 0
    assert wrong[0][1] > 0.5 and wrong[2][1] > 0.5
    assert all(abs(trace - (4 if reduction == "sum" else 1)) < 1 for trace, _ in wrong)
    assert abs(factor - (4 if reduction == "mean" else 1)) < 1e-6
END
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/check.py" 2>"$folder/log" \
    || { cat "$folder/log"; exit 1; }
