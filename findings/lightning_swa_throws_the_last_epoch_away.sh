#!/usr/bin/env bash
# Guess: StochasticWeightAveraging of Lightning takes the weights as they are after each epoch from
# swa_epoch_start on, as the averaging of torch and of its paper does, and gives the model their
# mean when the training ends. The last epoch is a part of it. A single epoch leaves the model
# with the weights of that epoch.
#
# lightning 2.6.6, torch 2.13.0: the weights are added at the START of an epoch, from the one
# before swa_epoch_start on, and never after the last one. So what the last epoch has learned,
# at the learning rate for averaging, is thrown away, and the weights of one epoch too early count
# instead. With max_epochs=1 fit() ends with the very weights that it began with: a pretrained
# model isn't trained at all, though its loss falls meanwhile. With two epochs it's the mean of
# the weights before training and after the first. A float for swa_epoch_start (0.8 is the
# default) is times max_epochs, and 0 counts as 1. Nothing is raised or logged about it. This is
# for models without batch norm; with it, another pass follows for its statistics, in which the
# optimizer takes one more step. WeightAveraging, the newer callback, averages after each step.
#
# Seen (a bigram model; after which epochs the weights are that the mean is of, 0 for those before
# the training; loss of the model, and in brackets that of the mean by hand, which is of the
# weights after the epochs from swa_epoch_start on):
#   before training: loss 3.57; 1 epoch without averaging: loss 0.81
#   max_epochs=1: 0; loss 3.57 (0.81)
#   max_epochs=2: 0, 1; loss 1.99 (0.49)
#   max_epochs=3: 1, 2; loss 0.49 (0.20)
#   max_epochs=5: 3, 4; loss 0.12 (0.08)
#   max_epochs=10: 7, 8, 9; loss 0.04 (0.03)
#   max_epochs=5, swa_epoch_start=1: 0, 1, 2, 3, 4; loss 0.54 (0.19)
#   max_epochs=5, swa_epoch_start=5: 4; loss 0.09 (0.07)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'lightning==2.6.6'
cd "$folder"

OMP_NUM_THREADS=1 venv/bin/python - >out 2>log <<'END' || { cat out log; exit 1; }
import logging

import lightning
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.nn.functional import cross_entropy

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
WORDS = 20
following = torch.randperm(WORDS, generator=torch.Generator().manual_seed(0))
words = torch.randint(WORDS, (640,), generator=torch.Generator().manual_seed(1))


class Bigrams(lightning.LightningModule):
    """Learns which word comes next, and keeps its weights after each epoch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(WORDS, WORDS))
        self.kept = [self.table.detach().clone()]

    def training_step(self, batch, index):
        return cross_entropy(self.table[batch], following[batch])

    def on_train_epoch_end(self):
        self.kept.append(self.table.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=2.0)


def train(epochs, *callbacks):
    model = Bigrams()
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(model, torch.utils.data.DataLoader(words, batch_size=16))
    assert len(model.kept) == epochs + 1
    return model


def loss_of(table):
    return cross_entropy(table, following).item()


def compare(epochs, **settings):
    """Print after which epochs the weights are in the mean; return the model."""
    model = train(epochs, StochasticWeightAveraging(swa_lrs=2.0, **settings))
    table, kept = model.table.detach(), model.kept
    found = [(first, last) for first in range(epochs + 1) for last in range(first, epochs + 1)
             if torch.allclose(torch.stack(kept[first:last + 1]).mean(0), table, atol=1e-5)]
    (first, last), = found
    start = settings.get("swa_epoch_start", max(int(0.8 * epochs), 1))
    by_hand = torch.stack(kept[start:]).mean(0)
    names = "".join(f", {name}={value}" for name, value in settings.items())
    print(f"max_epochs={epochs}{names}: {', '.join(map(str, range(first, last + 1)))}; "
          f"loss {loss_of(table):.2f} ({loss_of(by_hand):.2f})")
    assert first == start - 1 and last == epochs - 1
    return model


model = train(1)
before, after = loss_of(model.kept[0]), loss_of(model.table)
print(f"before training: loss {before:.2f}; 1 epoch without averaging: loss {after:.2f}")
assert after < before - 1
model = compare(1)
assert torch.equal(model.table, model.kept[0]) and not torch.equal(*model.kept)
for epochs in (2, 3, 5, 10):
    compare(epochs)
compare(5, swa_epoch_start=1)
compare(5, swa_epoch_start=5)
END
cat out
