#!/usr/bin/env bash
# Guess: training that is stopped and resumed from a checkpoint with GrokAdamW, which is one of the
# optimizers of transformers' Trainer (optim="grokadamw"), goes on as training without a stop does,
# as with AdamW: the averages of the gradients and the count of steps are in the checkpoint.
#
# grokadamw 0.1.2, torch 2.13.0, transformers 5.24.0: the optimizer starts again. It keeps its
# averages in the settings of a group, by parameter, and not in the optimizer's "state". In the
# checkpoint the parameters are written as tensors of their own, so after loading the averages
# belong to copies that are no parameter of the model, and each parameter gets new ones, with a
# count of 0. Nothing is said about it, and the size of optimizer.pt looks right, as all is in it.
# What's more, the first step after that is up to ten times the learning rate. The average of the
# i-th tensor of a group has a beta1 of 0.9 * 0.9 ** i (meant is the number of the layer). That of
# a late one is nearly the gradient at once, but each is divided by 1 - 0.9 ** step. Neither a past
# warm-up nor a learning rate that is small by now help. Giving the averages to the model's
# parameters after loading is a way around.
#
# Seen (a 2-layer GPT-2 learns to count with a constant learning rate; its loss after 150 steps,
# after one and ten more; largest change of a weight in step 151, divided by the learning rate, in
# brackets by hand for a step that is the first one):
#   adamw_torch, without a stop: 0.5017 0.4923 0.4185, 1.5
#   adamw_torch, resumed: 0.5017 0.4923 0.4185, 1.5
#   grokadamw, without a stop: 0.1610 0.1568 0.1251, 1.3
#   grokadamw, resumed: 0.1610 0.5351 0.1132, 8.5 (8.5)
#   grokadamw, resumed, averages put in place: 0.1610 0.1568 0.1251, 1.3

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'grokadamw==0.1.2'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import contextlib
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

texts = [{"input_ids": ids, "labels": ids} for ids in (torch.arange(50)[:, None]
                                                       + torch.arange(16)) % 50]
together = {key: torch.stack([text[key] for text in texts]) for key in texts[0]}
STOP, LR = 150, 1e-3


class Watch(TrainerCallback):
    """Note the loss after some steps and the weights around the first step after the stop."""

    def __init__(self, repair):
        self.losses, self.weights, self.repair = {}, {}, repair

    def on_train_begin(self, args, state, control, optimizer, **kwargs):
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if self.repair:
            for group in optimizer.param_groups:
                group["state"] = dict(zip(group["params"], group["state"].values(), strict=True))

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.note(state.global_step, model)

    def on_step_end(self, args, state, control, model, **kwargs):
        self.note(state.global_step, model)

    def note(self, step, model):
        if step in (STOP, STOP + 1, STOP + 10):
            with torch.no_grad():
                self.losses[step] = model.eval()(**together).loss.item()
            model.train()
            self.weights[step] = [weight.detach().clone() for weight in model.parameters()]


def run(name, optim, resume=False, repair=False):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))
    watch = Watch(repair)
    trainer = Trainer(model=model, train_dataset=texts, callbacks=[watch], args=TrainingArguments(
        output_dir=optim, optim=optim, learning_rate=LR, lr_scheduler_type="constant",
        max_steps=STOP + 10, per_device_train_batch_size=10, save_steps=STOP, report_to="none",
        disable_tqdm=True, logging_strategy="no", use_cpu=True, weight_decay=0))
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train(resume_from_checkpoint=f"{optim}/checkpoint-{STOP}" if resume else None)
    change = max((b - a).abs().max().item() for a, b in zip(
        watch.weights[STOP], watch.weights[STOP + 1], strict=True)) / LR
    losses = [watch.losses[step] for step in (STOP, STOP + 1, STOP + 10)]
    first = max((1 - 0.9 ** len(group["params"])) / 0.1 for group in trainer.optimizer.param_groups)
    by_hand = f" ({first:.1f})" if resume and optim == "grokadamw" and not repair else ""
    print(f"{name}:", *(f"{loss:.4f}" for loss in losses), end=f", {change:.1f}{by_hand}\n")
    return losses, change, first


for optim in ("adamw_torch", "grokadamw"):
    straight = run(f"{optim}, without a stop", optim)
    resumed = run(f"{optim}, resumed", optim, resume=True)
    if optim == "adamw_torch":
        assert resumed == straight
assert resumed[0][0] == straight[0][0] and resumed[0][1] > 2 * straight[0][1]
assert straight[1] < 2 and abs(resumed[1] / resumed[2] - 1) < 0.05
assert run(f"{optim}, resumed, averages put in place", optim, True, repair=True) == straight
END
