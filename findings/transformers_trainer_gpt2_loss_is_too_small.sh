#!/usr/bin/env bash
# Guess: transformers' Trainer reports, in training and from evaluate(), the mean cross-entropy of
# the predicted tokens, for GPT-2 as for Llama: n tokens of text are n - 1 predictions. So exp() of
# eval_loss is the perplexity.
#
# transformers 5.24.0, torch 2.13.0: for Llama, not for GPT-2. The Trainer counts the labels of the
# batches and the model divides its sum by that count. The first label of each row is no prediction,
# since the loss shifts the labels, and a correction of May 2026 leaves it out of the count. But the
# Trainer applies it only to models whose loss_type it recognises, and that comes from the name of
# the class, which has to contain "ForCausalLM" or the like. GPT2LMHeadModel has no loss_type; its
# loss is the same function all the same, taken as the fallback. So GPT-2's sum over n - 1 tokens is
# divided by n: the loss, its gradients and eval_loss are too small by 1 / n. That is nothing for
# rows of 1024 tokens, but for short texts (sentences, names, moves, verses) it's much: a tenth for
# 10 tokens. A GPT-2 then seems to be better than a Llama that gives the same probabilities, better
# with short rows than with long ones, and better with padding than with the same texts packed.
# evaluate() passes the count, too, so it agrees with the loss in training; nothing looks wrong. (A
# warning says that loss_type=None is unrecognized and the default loss is used, which is right.)
# TRL 1.16.0's SFTTrainer takes its count from the Trainer in training. The model's own loss, called
# without the Trainer, is right, and so are labels whose first one is -100 in each row.
#
# Seen (a GPT-2 and a Llama, both random; 64 texts; losses in nats; "by hand" is the mean of the
# log-probabilities of all predicted tokens, negated):
#   GPT2LMHeadModel, 4 tokens: training 4.334, evaluate() 4.334, by hand 5.778
#   GPT2LMHeadModel, 10 tokens: training 5.171, evaluate() 5.171, by hand 5.746
#   GPT2LMHeadModel, 100 tokens: training 5.659, evaluate() 5.659, by hand 5.716
#   LlamaForCausalLM, 4 tokens: training 5.561, evaluate() 5.561, by hand 5.561
#   LlamaForCausalLM, 10 tokens: training 5.558, evaluate() 5.558, by hand 5.558
#   LlamaForCausalLM, 100 tokens: training 5.554, evaluate() 5.554, by hand 5.554
#   GPT-2's gradient with 10 tokens is 0.900 of the right one
#   perplexity of GPT-2 that knows nothing, 257 tokens, rows of 4: 64.2

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'accelerate==1.15.0'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import math

import torch
from transformers import (GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          PrinterCallback, Trainer, TrainingArguments)

VOCABULARY, TEXTS = 257, 64


def make(kind, scale=0.1):
    """Return a model without dropout and with random weights."""
    torch.manual_seed(0)
    if kind is GPT2LMHeadModel:
        return kind(GPT2Config(
            vocab_size=VOCABULARY, n_positions=128, n_embd=32, n_layer=2, n_head=4,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, initializer_range=scale,
            bos_token_id=256, eos_token_id=256))
    return kind(LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=128, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4))


def losses(model, ids):
    """Return the loss that the Trainer logs for a step, eval_loss, and the step's gradient."""
    rows = [{"input_ids": row, "labels": row} for row in ids]
    arguments = TrainingArguments(
        output_dir="out", report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=TEXTS, per_device_eval_batch_size=TEXTS, max_steps=1,
        logging_steps=1, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        max_grad_norm=0.0)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    evaluated = trainer.evaluate()["eval_loss"]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer.train()
    moved = torch.cat([(old - new.detach()).flatten()
                       for old, new in zip(before, model.parameters())])
    trained = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trained[0], evaluated, moved


def by_hand(model, ids):
    """Return the mean over all predicted tokens, and its gradient."""
    logs = model(ids).logits[:, :-1].log_softmax(-1)
    loss = -logs.gather(-1, ids[:, 1:, None]).mean()
    assert torch.allclose(loss, model(ids, labels=ids).loss, atol=1e-5)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


ratios = {}
for kind in (GPT2LMHeadModel, LlamaForCausalLM):
    for length in (4, 10, 100):
        torch.manual_seed(length)
        ids = torch.randint(0, VOCABULARY, (TEXTS, length))
        right, gradient = by_hand(make(kind), ids)
        trained, evaluated, moved = losses(make(kind), ids)
        print(f"{kind.__name__}, {length} tokens: training {trained:.3f}, "
              f"evaluate() {evaluated:.3f}, by hand {right:.3f}")
        factor = 1 if kind is LlamaForCausalLM else (length - 1) / length
        assert abs(trained - factor * right) < 1e-3 and abs(evaluated - factor * right) < 1e-3
        ratios[kind, length] = ratio = (moved.norm() / gradient.norm()).item()
        assert abs(ratio - factor) < 1e-3
        assert torch.allclose(moved, factor * gradient, atol=1e-4)
print(f"GPT-2's gradient with 10 tokens is {ratios[GPT2LMHeadModel, 10]:.3f} of the right one")

ids = torch.randint(0, VOCABULARY, (TEXTS, 4))
nothing = make(GPT2LMHeadModel)
torch.nn.init.zeros_(nothing.lm_head.weight)
assert abs(math.exp(by_hand(nothing, ids)[0]) - VOCABULARY) < 0.1
perplexity = math.exp(losses(nothing, ids)[1])
print(f"perplexity of GPT-2 that knows nothing, {VOCABULARY} tokens, rows of 4: {perplexity:.1f}")
assert perplexity < 65
END
