#!/usr/bin/env bash
# Guess: quanda's MislabelingDetectionMetric sorts the training texts by their self-influence,
# largest first, and gives the area under the curve of wrong labels found. So a factor for all
# influences (TracIn's learning rate) and the order of the texts in the data set are no matter.
#
# quanda 0.5.0 (captum 0.8.0, torch 2.13.0): 0.0001 times its position in the data set is added to
# the influence of each text before they are sorted, to have an order for equal ones. Nothing makes
# that small beside the influences: in a data set of 50,000 texts the last gets 5 more than the
# first. TracIn multiplies by the learning rate, such as 0.001; averages and projections can be
# small, too. Then the texts are ranked by their position, the last one first, and the metric, which
# is there to compare methods of attribution, tells where in the data set the wrong labels are and
# how large a method's numbers are. It's the same for influences that are handed over as they are
# (precomputed_self_influence), and for SelfInfluenceRanking. The documentation doesn't mention it.
#
# Seen (1,000 texts, 100 with a wrong label; TracIn's influence of the last layer, which is right;
# the score with the texts as they were drawn, those with a wrong label moved to the start of the
# data set, and to its end; by hand):
#   learning rate 1: 0.931 0.931 0.932 (0.931 0.931 0.931)
#   learning rate 0.01: 0.929 0.909 0.938 (0.931 0.931 0.931)
#   learning rate 0.001: 0.865 0.748 0.948 (0.931 0.931 0.931)
#   learning rate 0.0001: 0.555 0.132 0.950 (0.931 0.931 0.931)
#   the first texts in the ranking, learning rate 0.0001, wrong ones at the start: 989 998 999 995

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==1.26.4' \
    'quanda==0.5.0' 'captum==0.8.0' 'lightning==2.5.5' 'torchmetrics==1.9.0' 'datasets==5.0.1' \
    'pyarrow==21.0.0' 'pandas==2.3.3' 'transformers==5.24.0' 'torchvision==0.28.0' \
    'omegaconf==2.4.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA; quanda imports it
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")

from quanda.explainers.wrappers import CaptumTracInCPFast
from quanda.metrics.downstream_eval import MislabelingDetectionMetric
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import TensorDataset

TEXTS, WRONG, CLASSES = 1000, 100, 4
torch.manual_seed(0)
texts = torch.randint(50, (TEXTS, 8))
labels = texts[:, 0] % CLASSES
wrong = torch.zeros(TEXTS, dtype=torch.bool)
wrong[torch.randperm(TEXTS)[:WRONG]] = True
labels[wrong] = (labels[wrong] + torch.randint(1, CLASSES, (WRONG,))) % CLASSES

model = nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.Linear(128, CLASSES))
adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(60):
    cross_entropy(model(texts), labels).backward()
    adamw.step()
    adamw.zero_grad()
torch.save(model.state_dict(), "checkpoint.pt")

with torch.no_grad():  # the squared norm of the gradient of the last layer's weight
    error = model(texts).softmax(-1) - one_hot(labels, CLASSES)
    influence = error.square().sum(-1) * model[:2](texts).square().sum(-1)


def area(ranking, wrong):
    """Return the area under the curve of the share of wrong labels that are found."""
    return torch.trapezoid(wrong[ranking].cumsum(0) / WRONG).item() / TEXTS


def compare(learning_rate):
    """Print and return the scores by quanda, and the ranking with wrong labels at the start."""
    def load(model, path):  # Captum wants the checkpoint's learning rate
        model.load_state_dict(torch.load(path))
        return learning_rate

    scores, hand, rankings = [], [], []
    for order in (torch.arange(TEXTS), wrong.int().argsort(descending=True, stable=True),
                  wrong.int().argsort(stable=True)):
        metric = MislabelingDetectionMetric(
            model, TensorDataset(texts[order], labels[order]),
            wrong[order].nonzero()[:, 0].tolist(), CaptumTracInCPFast,
            dict(final_fc_layer=model[2], loss_fn=nn.CrossEntropyLoss(reduction="sum"),
                 batch_size=100),
            checkpoints=["checkpoint.pt"], checkpoints_load_func=load)
        right = influence[order] * learning_rate
        torch.testing.assert_close(
            metric.explainer.self_influence(), right, rtol=1e-3, atol=1e-9)
        scores.append(metric.compute()["score"])
        rankings.append(metric.global_ranker.get_global_rank())
        hand.append(area(right.argsort(descending=True), wrong[order]))
    print(f"learning rate {learning_rate}:", *(f"{x:.3f}" for x in scores), end=" ")
    print(f"({' '.join(f'{x:.3f}' for x in hand)})")
    assert hand[0] > 0.9 and max(hand) - min(hand) < 1e-3
    return *scores, rankings[1]


for learning_rate in (1, 0.01, 0.001, 0.0001):
    drawn, start, end, ranking = compare(learning_rate)
    assert start < drawn < end
    if learning_rate == 1:
        assert end - start < 1e-3
first = ranking[:4].tolist()
print("the first texts in the ranking, learning rate 0.0001, wrong ones at the start:", *first)
assert start < 0.2 and drawn < 0.6 and end > 0.949 and min(first) >= TEXTS - WRONG
END
