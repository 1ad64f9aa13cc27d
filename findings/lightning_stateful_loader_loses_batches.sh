#!/usr/bin/env bash
# Guess: a run with Lightning's Trainer and torchdata's StatefulDataLoader that is resumed from a
# checkpoint by steps has the batches and the weights of the run that wasn't interrupted, for a
# dataset with a length and for a stream.
#
# lightning 2.6.6, torchdata 0.11.0, torch 2.13.0: not always. Lightning saves the state of such a
# loader in its checkpoints, and warns of every other loader in the middle of an epoch. (1) If the
# dataset is an IterableDataset, as streamed text is, and so has no length, Lightning fetches a
# batch ahead, to know which one is the last; the state that it saves is the one after that batch.
# So a resumed run begins one batch too late, and each resumption loses a batch. (2) If a checkpoint
# by steps (every_n_train_steps) falls on the last step of an epoch of a dataset with a length,
# Lightning goes on with the next epoch, but gives it the state of the loader at the end of the last
# one, which has nothing left: the whole epoch is empty, and only the one after that is trained. If
# it was the last one, fit() returns at once, without an error, as if the training were complete.
# Nothing is said in either case, the step counter and a schedule by steps are then behind. Right
# are other steps of a dataset with a length, checkpoints at the end of an epoch, and for (2) an
# ordinary DataLoader; a loop of one's own with the same loader is right for (1).
#
# Seen (22 texts, batches of 2, 3 epochs; which batches are trained on after the checkpoint, and
# the largest difference of a weight at the end from the run without interruption):
#   with a length, step 5: 28 of 28 batches, from number 5 on, difference 0.0000
#   with a length, ordinary loader, step 5: 28 of 28 batches, from number 0 on, difference 0.1367,
#     warned
#   stream, step 5: 27 of 28 batches, from number 6 on, difference 0.0611
#   stream, step 14: 18 of 19 batches, from number 4 on, difference 0.0480
#   with a length, step 11: 11 of 22 batches, from number 0 on, difference 0.1043
#   with a length, step 22: 0 of 11 batches, from number - on, difference 0.1043
#   with a length, ordinary loader, step 11: 22 of 22 batches, from number 0 on, difference 0.0000
#   stream in a loop of one's own, step 5: from number 5 on

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'lightning==2.6.6' 'torchdata==0.11.0'

cd "$folder"
venv/bin/python - <<'END'
import logging
import tempfile
import warnings

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
texts = torch.randint(60, (22, 9), generator=torch.Generator().manual_seed(0))
texts[:, 0] = torch.arange(22)  # the first token says which one it is


class Stream(IterableDataset):
    """The texts one after the other, with a state."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        while self.next < len(texts):
            self.next += 1
            yield texts[self.next - 1]
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Model(lightning.LightningModule):
    """GPT-2's embedding and output layer, with the last layer norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.ln_f = nn.Embedding(60, 16), nn.LayerNorm(16)
        self.batches = []

    def training_step(self, batch, index):
        self.batches.append(batch[0, 0].item() // 2)
        logits = self.ln_f(self.wte(batch)) @ self.wte.weight.T
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(loader, callbacks=(), checkpoint=None):
    model = Model()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=3, logger=False, callbacks=list(callbacks),
            enable_checkpointing=bool(callbacks), enable_progress_bar=False,
            enable_model_summary=False)
        trainer.fit(model, loader, ckpt_path=checkpoint)
    warned = any("resuming from a checkpoint" in str(w.message) for w in said)
    return model, trainer, warned


def resumed(name, make, step):
    with tempfile.TemporaryDirectory() as folder:
        saver = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=step,
                                save_top_k=-1)
        whole, _, _ = fit(make(), [saver])
        assert whole.batches == [*range(11)] * 3
        model, trainer, warned = fit(make(), checkpoint=f"{folder}/step={step}.ckpt")
    same = model.batches == whole.batches[step:]
    pairs = zip(model.parameters(), whole.parameters())
    difference = max((a - b).abs().max().item() for a, b in pairs)
    print(f"{name}, step {step}: {len(model.batches)} of {33 - step} batches, from number "
          f"{model.batches[0] if model.batches else '-'} on, difference {difference:.4f}"
          f"{', warned' if warned else ''}")
    assert same == (difference == 0)
    assert trainer.global_step == step + len(model.batches)
    return same, model.batches, warned


def stateful():
    return StatefulDataLoader(texts, batch_size=2)


def ordinary():
    return DataLoader(texts, batch_size=2)


def stream():
    return StatefulDataLoader(Stream(), batch_size=2)


same, _, warned = resumed("with a length", stateful, 5)
assert same and not warned
same, _, warned = resumed("with a length, ordinary loader", ordinary, 5)
assert not same and warned

same, batches, warned = resumed("stream", stream, 5)
assert batches == [*range(6, 11)] + [*range(11)] * 2 and not warned
same, batches, warned = resumed("stream", stream, 14)
assert batches == [*range(4, 11)] + [*range(11)] and not warned

same, batches, warned = resumed("with a length", stateful, 11)
assert batches == [*range(11)] and not warned
same, batches, warned = resumed("with a length", stateful, 22)
assert batches == [] and not warned
same, _, warned = resumed("with a length, ordinary loader", ordinary, 11)
assert same and not warned

# The same stream and its state in a loop of one's own.
loader = stream()
for number, batch in enumerate(loader, 1):
    if number == 5:
        state = loader.state_dict()
        break
loader = stream()
loader.load_state_dict(state)
rest = [batch[0, 0].item() // 2 for batch in loader]
print("stream in a loop of one's own, step 5: from number", rest[0], "on")
assert rest == [*range(5, 11)]
END
