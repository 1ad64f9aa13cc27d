#!/usr/bin/env bash
# Guess: sparsify with wandb_log_frequency=10 logs every tenth step, and what it logs is the mean of
# the last ten steps' FVU (or cross-entropy, with loss_fn="ce"), or else the last step's.
#
# eai-sparsify 1.3.3, transformers 5.24.0, torch 2.13.0: it is the last step's, divided by ten. Each
# step's FVU is divided by the frequency and added to a sum, as for a mean, but the sum is set to
# zero after every step, not only after those that are logged. So the fraction of the variance that
# a sparse autoencoder of a language model doesn't explain looks 5 or 10 times smaller than it is,
# a model that is run with the autoencoder seems to have a cross-entropy of a fifth or a tenth, and
# runs with different frequencies can't be compared. AuxK, Multi-TopK FVU and KL divergence are
# divided so, too. With the default, 1, all is right; the training itself doesn't change. Nothing is
# said about the setting but its name.
#
# Seen (a GPT-2 with random weights, 20 steps; by hand is from the autoencoder's inputs and outputs,
# the cross-entropy from the logits):
#   fvu, frequency 1: after step 19 0.269; by hand 0.269, mean of 1: 0.269
#   fvu, frequency 5: after step 19 0.054; by hand 0.269, mean of 5: 0.275
#   fvu, frequency 10: after step 19 0.027; by hand 0.269, mean of 10: 0.283
#   ce, frequency 1: after step 19 4.151; by hand 4.151, mean of 1: 4.151
#   ce, frequency 5: after step 19 0.830; by hand 4.151, mean of 5: 4.188
#   ce, frequency 10: after step 19 0.415; by hand 4.151, mean of 10: 4.209

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'schedulefree==1.4.1' 'eai-sparsify==1.3.3'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import sys
import types

import torch
from datasets import Dataset
from sparsify import SaeConfig, TrainConfig, Trainer
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

STEPS, BATCH, LENGTH = 20, 8, 16

logged = {}
sys.modules["wandb"] = types.SimpleNamespace(  # a stand-in that keeps what is logged
    init=lambda **settings: None, log=lambda values, step: logged.update({step: values}))


def run(loss, frequency):
    """Train an autoencoder, and compare what is logged with the values of all steps by hand."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0)).eval()
    texts = torch.randint(1, 50, (STEPS * BATCH, LENGTH))
    data = Dataset.from_dict({"input_ids": texts.tolist()}).with_format("torch")
    trainer = Trainer(TrainConfig(
        SaeConfig(expansion_factor=4, k=8), batch_size=BATCH, layers=[1], loss_fn=loss,
        wandb_log_frequency=frequency), data, model)
    by_hand = []

    def fvu(module, args, settings, output):
        x, difference = settings["x"], settings["x"] - output.sae_out
        by_hand.append((difference.square().sum() / (x - x.mean(dim=0)).square().sum()).item())

    def cross_entropy(module, args, settings, output):
        by_hand.append(F.cross_entropy(output.logits[:, :-1].flatten(0, 1),
                                       args[0][:, 1:].flatten()).item())

    if loss == "fvu":
        name = "fvu/h.1"
        trainer.saes["h.1"].register_forward_hook(fvu, with_kwargs=True)
    else:
        name = "ce_loss"
        model.register_forward_hook(cross_entropy, with_kwargs=True)
    logged.clear()
    trainer.fit()
    if loss == "ce":
        del by_hand[0]  # of the model as it is, run once before the first step
    assert len(by_hand) == STEPS
    step = max(step for step in logged if step < STEPS)
    value, last = logged[step][name], by_hand[step - 1]
    mean = sum(by_hand[step - frequency:step]) / frequency
    print(f"{loss}, frequency {frequency}: after step {step} {value:.3f}; by hand {last:.3f}, "
          f"mean of {frequency}: {mean:.3f}")
    assert abs(value - last / frequency) < 1e-4 * last
    assert frequency == 1 or value < 0.3 * min(last, mean)


for loss in ("fvu", "ce"):
    for frequency in (1, 5, 10):
        run(loss, frequency)
END
grep -E '^(fvu|ce),' "$folder/out"
