#!/usr/bin/env bash
# Guess: Lightning's EMAWeightAveraging(update_starting_at_epoch=e) keeps the epochs before e out of
# the average, as update_starting_at_step=s does with the steps before s: the first weights that
# count are those of epoch e, after its first step or at its end.
#
# lightning 2.6.6, torch 2.13.0: it starts at the first step of the run, whatever e is. The callback
# asks itself after each step and after each epoch whether to update. After a step it looks only
# at the settings for steps, and update_starting_at_step=None means "from the first one", so every
# step is averaged. update_starting_at_epoch matters at the end of an epoch alone: from e on, the
# last weights of an epoch go into the average once more. With an e that isn't reached, not even
# that. With decay=0.999, the weights of a first epoch of 500 steps still make up a third of the
# average 1,000 steps later. Validation losses, checkpoints and the final weights are those of this
# average, and nothing says so. Giving the first step of that epoch as update_starting_at_step is
# right.
#
# Seen (a small language model, 3 epochs of 10 steps, decay 0.9, counted from 0; largest difference
# of the final weights from averages by hand of the weights after each step):
#   update_starting_at_epoch=2: average from epoch 2 on 0.07799, from the first step 0.00000
#   update_starting_at_epoch=50: average from epoch 2 on 0.10270, from the first step 0.00000
#   update_starting_at_step=20: average from epoch 2 on 0.00000, from the first step 0.10270
# ("From the first step" has the additional updates in it, where there are any.)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'lightning==2.6.6'

cd "$folder"
venv/bin/python - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import logging

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

DECAY, EPOCHS, STEPS = 0.9, 3, 10
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)


class Model(lightning.LightningModule):
    """A bigram language model."""

    def __init__(self):
        super().__init__()
        self.wte, self.lm_head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)

    def training_step(self, batch, index):
        logits = self.lm_head(self.wte(batch[:, :-1]))
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)

    def weights(self):
        return torch.cat([p.detach().flatten().clone() for p in self.parameters()])


class Remember(lightning.Callback):
    """Remembers the weights after each step."""

    def __init__(self):
        self.after = []

    def on_train_batch_end(self, trainer, model, outputs, batch, index):
        self.after.append(model.weights())


def average(weights):
    """Return the moving average of a list of weights, beginning with the first."""
    result = weights[0]
    for one in weights[1:]:
        result = DECAY * result + (1 - DECAY) * one
    return result


def train(**settings):
    """Train, and compare the final weights with two averages by hand."""
    torch.manual_seed(0)
    model, remember = Model(), Remember()
    texts = torch.utils.data.DataLoader(torch.randint(30, (STEPS * 4, 9)), batch_size=4)
    lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[remember, EMAWeightAveraging(decay=DECAY, **settings)]).fit(model, texts)
    after = remember.after
    assert len(after) == EPOCHS * STEPS
    first = settings.get("update_starting_at_epoch", EPOCHS)
    every = []  # all steps, and the last of each epoch from that epoch on once more
    for epoch in range(EPOCHS):
        steps = after[epoch * STEPS:(epoch + 1) * STEPS]
        every += steps + steps[-1:] * (epoch >= first)
    wanted, started = ((average(weights) - model.weights()).abs().max().item()
                       for weights in (after[2 * STEPS:], every))
    (name, value), = settings.items()
    print(f"{name}={value}: average from epoch 2 on {wanted:.5f}, "
          f"from the first step {started:.5f}")
    return wanted, started


wanted, started = train(update_starting_at_epoch=2)
assert wanted > 1e-3 and started < 1e-6
wanted, started = train(update_starting_at_epoch=50)
assert wanted > 1e-3 and started < 1e-6
wanted, started = train(update_starting_at_step=2 * STEPS)
assert wanted < 1e-6 and started > 1e-3
END
