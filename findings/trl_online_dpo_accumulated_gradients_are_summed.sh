#!/usr/bin/env bash
# Guess: OnlineDPOTrainer with gradient_accumulation_steps=N averages the gradients of N batches, as
# Trainer does: a step with 8 batches of 2 prompts is one with a batch of 16, but for the texts that
# are drawn.
#
# trl 1.16.0, transformers 5.24.0, accelerate 1.15.0, torch 2.13.0: it adds them. It has a
# training_step of its own, which calls accelerator.backward() with the loss of a batch. Trainer
# tells Accelerate that one step is accumulated, so that this doesn't divide, and divides itself, in
# the training_step that is replaced. What is returned for the log is divided, so the loss in the
# log looks right. With N = 8 the gradient is eight times as large. SGD's step is too; with AdamW,
# which knows no scale, max_grad_norm (1 unless set) is an eighth of what it says, and gradients are
# cut that are shorter. The grad_norm in the log is that of the sum. TRL's list of trainers with
# wrong scaling under accumulation (issue 2617) has this trainer as done. Not tried: DeepSpeed.
#
# Seen (a small GPT-2, one step of SGD, 16 prompts; in brackets by hand, of the 16 pairs that were
# drawn; the length of the step by that of the gradient by hand):
#   1 batch of 16: loss 0.6931 (0.6931), grad_norm 0.87 (0.87), step 1.00
#   2 batches of 8: loss 0.6931 (0.6931), grad_norm 1.48 (0.74), step 2.00
#   4 batches of 4: loss 0.6931 (0.6931), grad_norm 3.53 (0.88), step 4.00
#   8 batches of 2: loss 0.6931 (0.6931), grad_norm 6.06 (0.76), step 8.00
#   8 batches of 2, max_grad_norm=1: loss 0.6931 (0.6931), grad_norm 6.06 (0.76), step 1.32

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' 'trl==1.16.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TRL_EXPERIMENTAL_SILENCE=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import copy

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import logsigmoid
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

PROMPTS, BETA, END = 16, 0.1, 2
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w1"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="w0", eos_token="w2", padding_side="left")
prompts = [f"w{3 + i} w{10 + i} w{20 + i}" for i in range(PROMPTS)]
torch.manual_seed(0)
first = GPT2LMHeadModel(GPT2Config(
    vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2, initializer_range=0.1,
    resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=END, eos_token_id=END, pad_token_id=0))


def log_probability(model, prompt, answer):
    """Return that of an answer (ids) up to its end, after a prompt (text)."""
    answer = answer[:answer.index(END) + 1] if END in answer else answer
    text = torch.tensor(tokenizer(prompt)["input_ids"] + answer)
    logits = model(text[None]).logits[0, -len(answer) - 1:-1]
    return logits.log_softmax(-1).gather(-1, text[-len(answer):, None]).sum()


def compare(batches, max_grad_norm):
    """Take a step of so many batches; print and return its length by that by hand."""
    drawn = []  # of each batch: its prompts twice, all first and all second answers, rewards

    def reward(prompts, completion_ids, **_):
        drawn.append((prompts, completion_ids, [float(sum(ids) % 7) for ids in completion_ids]))
        return drawn[-1][2]

    model = copy.deepcopy(first)
    trainer = OnlineDPOTrainer(
        model=model, reward_funcs=reward, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": prompts}), args=OnlineDPOConfig(
            "run", per_device_train_batch_size=PROMPTS // batches, max_new_tokens=8, beta=BETA,
            gradient_accumulation_steps=batches, max_steps=1, optim="sgd", learning_rate=1.0,
            lr_scheduler_type="constant", max_grad_norm=max_grad_norm, logging_steps=1,
            bf16=False, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True))
    trainer.train()
    log = trainer.state.log_history[0]

    losses = []
    hand = copy.deepcopy(first)
    for texts, answers, rewards in drawn:
        for i in range(len(texts) // 2):
            pair = sorted((i, i + len(texts) // 2), key=lambda j: -rewards[j])
            margins = [log_probability(m, texts[pair[0]], answers[pair[0]])
                       - log_probability(m, texts[pair[1]], answers[pair[1]])
                       for m in (hand, first)]
            losses.append(-logsigmoid(BETA * (margins[0] - margins[1].detach())))
    loss = sum(losses) / len(losses)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in hand.parameters()])
    step = torch.cat([(a - b).detach().flatten()
                      for a, b in zip(first.parameters(), model.parameters())])
    ratio = (step.norm() / gradient.norm()).item()
    print(f"{batches} batch{'es' * (batches > 1)} of {PROMPTS // batches}"
          f"{', max_grad_norm=1' * (max_grad_norm == 1)}: "
          f"loss {log['loss']:.4f} ({loss.item():.4f}), grad_norm {log['grad_norm']:.2f} "
          f"({gradient.norm().item():.2f}), step {ratio:.2f}")
    assert len(losses) == PROMPTS and len(drawn) == batches
    assert torch.cosine_similarity(step, gradient, dim=0) > 0.9999
    assert abs(log["loss"] - loss.item()) < 1e-3
    assert abs(log["grad_norm"] / gradient.norm().item() - batches) < 1e-3 * batches
    return ratio, gradient.norm().item()


for batches in (1, 2, 4, 8):
    ratio, _ = compare(batches, 0)
    assert abs(ratio - batches) < 1e-3 * batches
ratio, norm = compare(8, 1)
assert norm < 1 and abs(ratio * norm - 1) < 1e-3  # it's cut to 1, though the mean is shorter
END
grep -E '^[1248] batch' "$folder/out"
