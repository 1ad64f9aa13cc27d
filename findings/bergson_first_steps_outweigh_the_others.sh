#!/usr/bin/env bash
# Guess: bergson's GradientCollectorCallback with an Adam optimizer (use_optimizer_state=True and
# scale_by_lr=True, the defaults) stores for each text its part of the update in the step in which
# it was trained, lr * gradient / sqrt(v): so says the description. Together the parts of a step are
# about what the optimizer subtracts but for the momentum, so no element is much larger than lr.
#
# bergson 2.5.1, transformers 5.24.0, torch 2.13.0: it's another number for each step. The v of the
# optimizer is read at the end of a step, for the gradients of the next one: those of step t are
# divided by the square root of the v of step t - 1, and those of the first step are stored as they
# are, without lr or v. And v is taken from the state as it is, without Adam's bias correction by
# 1 - 0.999^t. In step 2 it's thus a thousandth of the square of one earlier gradient, and where
# that was near zero the result is huge. After 20 steps all of it is still 7 times too large, after
# 1000 steps 1.3 times. So how much a text seems to have done depends on when it was seen: those of
# step 2 outweigh all others. Nothing is said, and texts are shuffled, so it looks as if a few of
# them had much influence.
#
# Seen (a small GPT-2, lr=1e-3 throughout, one epoch, 40 texts, two per step; for the sum of both:
# norm stored and by hand, largest element over lr stored and by hand, relative difference of what
# is stored from lr * gradient / sqrt(v of the step before), in step 1 from the gradient):
#   step 1: 0.283 0.055, 26.89 1.00, 0.0000
#   step 2: 93.268 0.055, 51324.13 1.41, 0.0001
#   step 3: 3.234 0.054, 966.28 1.73, 0.0000
#   step 4: 1.899 0.057, 348.40 1.99, 0.0000
#   step 5: 1.391 0.059, 171.67 2.20, 0.0000
#   step 10: 0.597 0.051, 49.04 2.65, 0.0000
#   step 20: 0.344 0.046, 27.47 2.92, 0.0000
# step 2's part of the squares of all steps: 0.997, by hand 0.051

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
import contextlib
import pathlib
import sys

import numpy
import torch
from bergson.data import load_gradients
from bergson.huggingface import GradientCollectorCallback, prepare_for_gradient_collection
from datasets import Dataset, load_from_disk
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

texts = torch.randint(50, (40, 12), generator=torch.Generator().manual_seed(0))
labels = texts.index_fill(1, torch.tensor([0]), -100)  # so that the Trainer counts 11 per text
data = Dataset.from_dict({"input_ids": texts.tolist(), "labels": labels.tolist()})
rate, beta = 1e-3, 0.999


def make():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=12, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0))


callback = GradientCollectorCallback(
    path=pathlib.Path("run"), projection_dim=0, dtype=numpy.dtype("float32"), track_order=True)
settings = TrainingArguments(
    "output", num_train_epochs=1, per_device_train_batch_size=2, learning_rate=rate,
    lr_scheduler_type="constant", max_grad_norm=0, report_to=[], save_strategy="no",
    use_cpu=True, logging_strategy="no")
trained = make()
trainer = Trainer(trained, settings, train_dataset=data, callbacks=[callback])
with contextlib.redirect_stdout(sys.stderr):
    prepare_for_gradient_collection(trainer).train()
order = [row["_idx"] for row in load_from_disk("run/order.hf")]
stored = torch.from_numpy(load_gradients("run/train/epoch_0").copy())

# The same training by hand; the Trainer's loss is the mean over the two texts.
model = make()
weights = [weight for name, weight in model.transformer.h.named_parameters()
           if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))]
adamw = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, beta), weight_decay=0)


def flat(tensors):
    return torch.cat([tensor.T.flatten() for tensor in tensors])


def difference(one, other):
    return ((one - other).norm() / other.norm()).item()


moment, rows = None, []
for step in range(1, 21):
    batch = order[2 * step - 2:2 * step]
    losses = [model(texts[[text]], labels=texts[[text]]).loss / 2 for text in batch]
    gradients = torch.stack([flat(torch.autograd.grad(loss, weights, retain_graph=True))
                             for loss in losses])
    sum(losses).backward()
    adamw.step()
    adamw.zero_grad()
    # What the text's gradient would be with the v of the step before, and none in the first step.
    late = gradients if moment is None else rate * gradients / (moment.sqrt() + rate * 1e-8)
    moment = flat([adamw.state[weight]["exp_avg_sq"] for weight in weights])
    right = rate * gradients / ((moment / (1 - beta ** step)).sqrt() + 1e-8)
    rows.append((stored[batch], late, right))
for one, other in zip(model.parameters(), trained.parameters()):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)

for step in (1, 2, 3, 4, 5, 10, 20):
    one, late, right = (row.sum(0) for row in rows[step - 1])
    print(f"  step {step}: {one.norm():.3f} {right.norm():.3f}, {one.abs().max() / rate:.2f}",
          f"{right.abs().max() / rate:.2f}, {difference(one, late):.4f}")
    assert difference(one, late) < 1e-2
    assert right.abs().max() < 10 * rate and (step not in (2, 3) or one.abs().max() > 500 * rate)
parts = [torch.stack([row[kind].sum(0).square().sum() for row in rows]) for kind in (0, 2)]
parts = [(part[1] / part.sum()).item() for part in parts]
print(f"step 2's part of the squares of all steps: {parts[0]:.3f}, by hand {parts[1]:.3f}")
assert parts[0] > 0.9 and parts[1] < 0.2
END
