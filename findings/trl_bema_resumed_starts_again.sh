#!/usr/bin/env bash
# Guess: a training with TRL's BEMACallback that is stopped and resumed from a checkpoint of Trainer
# ends with the same average of the weights as one that isn't stopped, as the weights themselves,
# the optimizer and the order of the data do. If it couldn't, it would say so.
#
# trl 1.16.0, transformers 5.24.0, torch 2.13.0: the callback saves nothing. When training is
# resumed, on_train_begin() takes the weights of the checkpoint for those before training, from
# which the correction is counted, and starts a new average with them. The number of steps goes on,
# so that the new average moves as slowly as one that has seen them all. What is written to the
# folder bema at the end is the average over the part since the last start. If no update falls into
# that part (there is one in 400 steps, unless set), it's the weights of the checkpoint, with
# nothing that was learned since: the "averaged" model is behind the one it is to be better than.
# restore_callback_states_from_checkpoint=True doesn't help, and nothing is said.
#
# Seen (a small GPT-2 that learns to count, 20 steps; losses of the model and of the average
# that is saved; the largest difference of the average's weights from those by hand, of all steps):
#   not stopped: 0.823 0.682, 0.0000
#   stopped after 9, update_freq=2: 0.823 0.846, 0.0324
#   stopped after 18, update_freq=2: 0.823 0.877, 0.0368
#   stopped after 18, update_freq=8: 0.823 1.033, 0.0521
#   the last is the checkpoint: True

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' 'trl==1.16.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import torch
from datasets import Dataset
from transformers import (
    GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments)
from trl import BEMACallback

STEPS = 20
torch.manual_seed(0)
text = (torch.arange(16) + torch.randint(50, (64, 1))) % 50
data = Dataset.from_dict({"input_ids": text.tolist(), "labels": text.tolist()})


def copy_of(model):
    return [p.detach().clone() for p in model.parameters()]


class Keep(TrainerCallback):
    """Keep the weights after each step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model, **_):
        self.weights.append(copy_of(model))


def train(update_freq, resume=None):
    """Train; return the model, its average, and the weights before and after each step."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0))
    before, keep = copy_of(model), Keep()
    args = TrainingArguments(
        "run" if resume is None else "resumed", per_device_train_batch_size=8, max_steps=STEPS,
        learning_rate=1e-2, lr_scheduler_type="constant", save_steps=9, use_cpu=True,
        restore_callback_states_from_checkpoint=resume is not None, report_to="none")
    Trainer(model, args, train_dataset=data, callbacks=[
        BEMACallback(update_freq=update_freq), keep]).train(resume_from_checkpoint=resume)
    average = GPT2LMHeadModel.from_pretrained(f"{args.output_dir}/bema")
    return model, average, [before, *keep.weights]


def by_hand(weights, update_freq):
    """Return the average by the formulas of the documentation, with the default settings."""
    average = result = weights[0]
    for step in range(update_freq, STEPS + 1, update_freq):
        beta, alpha = (10 + step) ** -0.5, (10 + step) ** -0.2
        average = [(1 - beta) * a + beta * w for a, w in zip(average, weights[step])]
        result = [a + alpha * (w - first)
                  for a, w, first in zip(average, weights[step], weights[0])]
    return result


def far(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b))


def report(name, model, average, right):
    """Print and return the losses, and how far the average is from that by hand."""
    with torch.no_grad():
        losses = [m.eval()(text, labels=text).loss.item() for m in (model, average)]
    difference = far(average.parameters(), right)
    print(f"{name}: {losses[0]:.3f} {losses[1]:.3f}, {difference:.4f}")
    return *losses, difference


model, average, weights = train(2)
right = by_hand(weights, 2)
_, whole, difference = report("not stopped", model, average, right)
assert difference < 1e-5
for stop, update_freq in ((9, 2), (18, 2), (18, 8)):
    again, average, _ = train(update_freq, f"run/checkpoint-{stop}")
    assert far(again.parameters(), model.parameters()) < 1e-6
    _, other, difference = report(
        f"stopped after {stop}, update_freq={update_freq}", again, average,
        by_hand(weights, update_freq))
    assert difference > 0.01 and other > whole
print("the last is the checkpoint:", far(average.parameters(), weights[18]) == 0)
assert far(average.parameters(), weights[18]) == 0
END
grep -E '^(not|stopped|the last)' "$folder/out"
