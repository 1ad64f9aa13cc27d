#!/usr/bin/env bash
# Guess: TRL's DPOTrainer with precompute_ref_log_probs=True computes the reference model's
# log-probabilities once, before training, to save memory. The loss is the one without it, whatever
# the other settings: in a search for ld_alpha (LD-DPO: how much of what the longer answer has more
# than the shorter one counts), each run has the reference for its own alpha.
#
# trl 1.16.0, transformers 5.24.0, datasets 5.2.0: not with max_length=None (no truncation). TRL
# keeps what it computed beside the dataset's other files, and a later run takes it from there. The
# sums that it keeps are those with alpha in them, but the name of the file is made from the
# prepared dataset and the weights of the model; alpha isn't in it. So the first run decides, also
# for other processes: all others subtract the reference's sums for the first alpha from the
# policy's for their own. A policy that is still the reference has no loss of log 2 and no rewards
# of 0 then, but looks as if it had learned (or unlearned) a lot, by however much the answers differ
# in length. Nothing is said about it. With a max_length it goes well by chance: a filter for too
# long prompts, whose function holds all settings, takes part in the dataset's name. (With the
# deprecated truncation_mode="keep_end" there is no filter, either, and so there max_length itself
# can be that of another run.) Deleting the dataset's cache before each run is right.
#
# Seen (a 2-layer GPT-2 as policy and as reference, the first step; both are the same model, so that
# the loss has to be log 2 = 0.6931 and the margin of the rewards 0; one process for the first two
# lines and another one for the rest):
#   alpha None, max_length None, at each step: loss 0.6931, margin 0.00
#   alpha None, max_length None, before, cache: loss 0.6931, margin 0.00
#   alpha 0.2, max_length None, at each step: loss 0.6931, margin 0.00
#   alpha 0.2, max_length None, before, cache: loss 10.7141, margin -10.71
#   alpha 0.0, max_length None, before, cache: loss 13.3926, margin -13.39
#   alpha 0.2, max_length None, before, new cache: loss 0.6931, margin 0.00
#   alpha None, max_length None, before, new cache: loss 0.0000, margin 10.71
#   alpha None, max_length 64, before, third cache: loss 0.6931, margin 0.00
#   alpha 0.2, max_length 64, before, third cache: loss 0.6931, margin 0.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'trl==1.16.0'

cd "$folder"
cat >run.py <<'END'
import json
import math
import sys

import torch
from datasets import load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback
from trl import DPOConfig, DPOTrainer

END_OF_TEXT = "<|endoftext|>"
names = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytes_only = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token=END_OF_TEXT,
                                    pad_token=END_OF_TEXT)


def make_model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(names), n_positions=64, n_embd=32, n_layer=2,
                                      n_head=2, bos_token_id=0, eos_token_id=0, pad_token_id=0))


def run(alpha, max_length=None, precompute=True, cache="cache", right=True):
    dataset = load_dataset("json", data_files="pairs.jsonl", split="train", cache_dir=cache)
    config = DPOConfig(output_dir="out", use_cpu=True, bf16=False, report_to=[], max_steps=1,
                       save_strategy="no", logging_steps=1, per_device_train_batch_size=1,
                       activation_checkpointing=False, disable_tqdm=True, ld_alpha=alpha,
                       max_length=max_length, precompute_ref_log_probs=precompute)
    trainer = DPOTrainer(make_model(), ref_model=make_model(), args=config, train_dataset=dataset,
                         processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    step = trainer.state.log_history[0]
    when = f"before, {cache}" if precompute else "at each step"
    print(f"alpha {alpha}, max_length {max_length}, {when}: loss {step['loss']:.4f}, "
          f"margin {step['rewards/margins']:.2f}")
    assert (abs(step["loss"] - math.log(2)) < 1e-4) is right
    assert (abs(step["rewards/margins"]) < 1e-4) is right


if sys.argv[1] == "first":
    with open("pairs.jsonl", "w") as file:
        json.dump({"prompt": "Tea?", "chosen": " Yes.",
                   "rejected": " No, not at this time of day."}, file)
    run(None, precompute=False)
    run(None)
else:
    run(0.2, precompute=False)
    run(0.2, right=False)
    run(0.0, right=False)
    run(0.2, cache="new cache")
    run(None, cache="new cache", right=False)
    run(None, max_length=64, cache="third cache")
    run(0.2, max_length=64, cache="third cache")
END
for part in first others; do
    "$folder/venv/bin/python" run.py $part 2>log || { cat log; exit 1; }
done
