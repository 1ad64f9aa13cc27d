#!/usr/bin/env bash
# Guess: dattri's IFAttributorEKFAC gives the influence scores of EK-FAC, as computed by hand from a
# language model's gradients: those are changed to the eigenbasis of each layer's two covariance
# matrices, divided by their mean squares there plus the damping, and changed back.
#
# dattri 0.3.0, torch 2.13.0: the basis is another one. torch.linalg.eigh returns eigenvectors as
# columns, but they are used as rows: Q @ gradient @ Q.T where it should be Q.T @ gradient @ Q, for
# the mean squares and for the scores. That's a rotation still, so nothing looks odd, but one
# to axes without a meaning. If a layer has a bias, its gradient is put behind the whole weight's
# before that is cut into rows with one more column: the bias isn't in the last column, as it is in
# the covariances, and almost all weights are in wrong places. With both, the scores here are
# farther from those with the whole Fisher matrix of each layer than scores of 0 would be. (The
# layers' inputs must have two dimensions, so of a GPT's only a head on the last position's can
# be used. With a large damping the basis matters little.)
#
# Seen (a neural trigram model with random weights, 60 training texts, 10 test texts; relative
# differences):
#   without biases: dattri to EK-FAC 0.65, to EK-FAC with dattri's layout 0.0000
#   without biases, to the whole Fisher matrices: EK-FAC 0.54, dattri 0.94
#   with biases: dattri to EK-FAC 1.43, to EK-FAC with dattri's layout 0.0000
#   with biases, to the whole Fisher matrices: EK-FAC 0.56, dattri 1.78

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'scipy==1.17.1' 'dattri==0.3.0'
cd "$folder"

"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import torch
from dattri.algorithm import IFAttributorEKFAC
from dattri.task import AttributionTask
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

VOCAB, CONTEXT, WIDTH, TRAIN, TEST, DAMPING = 12, 3, 4, 60, 10, 0.01


class NGram(nn.Module):
    """A language model that predicts a token from the last three."""

    def __init__(self, bias):
        super().__init__()
        self.wte = nn.Embedding(VOCAB, WIDTH)
        self.hidden = nn.Linear(CONTEXT * WIDTH, 6, bias=bias)
        self.head = nn.Linear(6, VOCAB, bias=bias)

    def forward(self, tokens):
        self.a = self.wte(tokens).flatten(1)
        self.b = self.hidden(self.a)
        self.c = torch.tanh(self.b)
        self.d = self.head(self.c)
        return self.d


def by_dattri(model, *texts):
    def loss(params, data):
        tokens, targets = data
        logits = torch.func.functional_call(model, params, (tokens.reshape(-1, CONTEXT),))
        return F.cross_entropy(logits, targets.reshape(-1))

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    attributor = IFAttributorEKFAC(task=task, damping=DAMPING)
    train, test = [DataLoader(TensorDataset(*data), batch_size=TRAIN) for data in texts]
    attributor.cache(train)
    return attributor.attribute(train, test)


def factors(model, texts):
    """Return each layer's inputs (with a 1 for the bias) and gradients by its outputs."""
    loss = F.cross_entropy(model(texts[0]), texts[1], reduction="sum")
    gradients = torch.autograd.grad(loss, (model.b, model.d))
    inputs = [x.detach() for x in (model.a, model.c)]
    if model.head.bias is not None:
        inputs = [torch.cat([x, torch.ones(len(x), 1)], dim=1) for x in inputs]
    return zip(inputs, gradients)


def by_hand(model, train, test, layout="right"):
    """Return the scores of EK-FAC, and those with the whole Fisher matrix of each layer."""
    scores, exact = 0, 0
    for (a, g), (a_test, g_test) in zip(factors(model, train), factors(model, test)):
        q_a = torch.linalg.eigh(a.T @ a / TRAIN, UPLO="U").eigenvectors
        q_g = torch.linalg.eigh(g.T @ g / TRAIN, UPLO="U").eigenvectors
        x, y = torch.einsum("no,ni->noi", g, a), torch.einsum("no,ni->noi", g_test, a_test)
        fisher = x.flatten(1).T @ x.flatten(1) / TRAIN + DAMPING * torch.eye(x[0].numel())
        exact = exact + x.flatten(1) @ torch.linalg.solve(fisher, y.flatten(1).T)
        if layout == "dattri's":
            q_a, q_g = q_a.T, q_g.T
        squares = (q_g.T @ x @ q_a).square().mean(0)
        if layout == "dattri's" and model.head.bias is not None:
            x, y = (torch.cat([z[:, :, :-1].flatten(1), z[:, :, -1]], dim=1).view(z.shape)
                    for z in (x, y))
        y = q_g @ (q_g.T @ y @ q_a / (squares + DAMPING)) @ q_a.T
        scores = scores + x.flatten(1) @ y.flatten(1).T
    return scores, exact


def difference(given, right):
    return ((given - right).norm() / right.norm()).item()


torch.set_num_threads(1)
print()
for bias in (False, True):
    torch.manual_seed(1)
    model = NGram(bias)
    texts = [(torch.randint(VOCAB, (n, CONTEXT)), torch.randint(VOCAB, (n,)))
             for n in (TRAIN, TEST)]
    given = by_dattri(model, *texts)
    right, exact = by_hand(model, *texts)
    same, _ = by_hand(model, *texts, layout="dattri's")
    name = "with biases" if bias else "without biases"
    print(f"\n{name}: dattri to EK-FAC {difference(given, right):.2f}, to EK-FAC with dattri's "
          f"layout {difference(given, same):.4f}\n{name}, to the whole Fisher matrices: EK-FAC "
          f"{difference(right, exact):.2f}, dattri {difference(given, exact):.2f}")
    assert difference(given, same) < 0.01 and difference(given, right) > 0.4
    assert difference(right, exact) < 0.6 and difference(given, exact) > (1.2 if bias else 0.8)
END
grep -E '^with' "$folder/out"
