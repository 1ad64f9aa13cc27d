#!/usr/bin/env bash
# Guess: bergson's GradientCollectorCallback with accumulate_grads=True stores for each training
# text the sum of its gradients over all epochs, as described. With track_order=True it stores the
# step and the epoch of every text in every epoch, also when gradients are accumulated.
#
# bergson 2.5.1, transformers 5.24.0, torch 2.13.0: what is stored is the gradient of the last epoch
# alone. The file is kept from one epoch to the next, but a text's row is set, not added to, so each
# epoch overwrites the one before. A score from it is that of a single, late checkpoint, as if there
# were no option. The gradients that are stored per epoch without it are right; summing them by hand
# gives what it says. The order has two faults. It's written once per step of the optimizer, from
# the indices of the last batch, so with gradient_accumulation_steps=n only one text of n is in
# it. And its epoch is the Trainer's at the end of a step, which at the last step of an epoch is the
# next one's number already: those texts are said to be of the epoch after, one that may not exist.
#
# Seen (a small GPT-2, 8 texts, 3 epochs, batches of 2; relative differences of all gradients):
#   stored per epoch, from those by hand: 0.0000 0.0000 0.0000
#   accumulate_grads=True, from their sum: 0.72, from the last epoch's: 0.0000
#   texts in the order per epoch: 0: 6, 1: 8, 2: 8, 3: 2
#   the same with gradient_accumulation_steps=2: 0: 2, 1: 4, 2: 4, 3: 2

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'peft==0.21.2' \
    'datasets==5.2.0' 'jaxtyping==0.3.11' 'ml_dtypes==0.6.0' 'natsort==8.4.0' 'petname==2.9' \
    'scipy==1.17.1' 'simple-parsing==0.1.9' 'torchopt==0.7.3'
# It's without torchvision, torchaudio and bitsandbytes, which aren't used here.
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps 'bergson==2.5.1'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import collections
import contextlib
import pathlib
import sys

import numpy
import torch
from bergson.data import load_gradients
from bergson.huggingface import GradientCollectorCallback, prepare_for_gradient_collection
from datasets import Dataset, load_from_disk
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

texts = torch.randint(50, (8, 12), generator=torch.Generator().manual_seed(0))
labels = texts.index_fill(1, torch.tensor([0]), -100)  # so that the Trainer counts 11 per text
data = Dataset.from_dict({"input_ids": texts.tolist(), "labels": labels.tolist()})


def make():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=12, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0))


def train(name, total, accumulation=1):
    """Train with the callback; return the order that it stores."""
    callback = GradientCollectorCallback(
        path=pathlib.Path(name), projection_dim=0, dtype=numpy.dtype("float32"),
        accumulate_grads=total, use_optimizer_state=False, track_order=True)
    settings = TrainingArguments(
        "output", num_train_epochs=3, per_device_train_batch_size=2, learning_rate=1e-2,
        lr_scheduler_type="constant", max_grad_norm=0, report_to=[], save_strategy="no",
        gradient_accumulation_steps=accumulation, use_cpu=True, logging_strategy="no")
    trainer = Trainer(make(), settings, train_dataset=data, callbacks=[callback])
    with contextlib.redirect_stdout(sys.stderr):
        prepare_for_gradient_collection(trainer).train()
    return list(load_from_disk(f"{name}/order.hf"))


def difference(one, other):
    return float(numpy.linalg.norm(one - other) / numpy.linalg.norm(other))


def per_epoch(order):
    return dict(sorted(collections.Counter(row["epoch"] for row in order).items()))


order = train("separate", False)
separate = [load_gradients(f"separate/train/epoch_{epoch}") for epoch in range(3)]

# The same training by hand; the Trainer's loss is the mean over the two texts.
model, by_hand = make(), numpy.zeros((3, *separate[0].shape), dtype="float32")
weights = [weight for name, weight in model.transformer.h.named_parameters()
           if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))]
adamw = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
for step in range(12):
    batch = [row["_idx"] for row in order[2 * step:2 * step + 2]]
    for text in batch:
        loss = model(texts[text:text + 1], labels=texts[text:text + 1]).loss / 2
        by_hand[step // 4, text] = torch.cat([
            gradient.T.flatten() for gradient in torch.autograd.grad(
                loss, weights, retain_graph=True)]).numpy()
        loss.backward()
    adamw.step()
    adamw.zero_grad()
correct = [difference(*pair) for pair in zip(separate, by_hand)]
print("stored per epoch, from those by hand:", *(f"{value:.4f}" for value in correct))
assert max(correct) < 1e-3

assert train("summed", True) == order
summed = load_gradients("summed/train")
to_sum, to_last = difference(summed, by_hand.sum(0)), difference(summed, by_hand[2])
print(f"accumulate_grads=True, from their sum: {to_sum:.2f}, from the last epoch's: {to_last:.4f}")
assert to_sum > 0.3 and to_last < 1e-3

accumulated = train("accumulated", False, 2)
for name, result in (("texts in the order per epoch", per_epoch(order)),
                     ("the same with gradient_accumulation_steps=2", per_epoch(accumulated))):
    print(f"{name}:", ", ".join(f"{epoch}: {count}" for epoch, count in result.items()))
assert per_epoch(order) == {0: 6, 1: 8, 2: 8, 3: 2}
assert per_epoch(accumulated) == {0: 2, 1: 4, 2: 4, 3: 2}
END
