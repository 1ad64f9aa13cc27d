#!/usr/bin/env bash
# Guess: TRL's KTOTrainer with a preference dataset (prompt, chosen, rejected), which it takes apart
# into single answers by itself, learns from chosen and rejected answers side by side. It is the
# same, but for chance, as giving it the single answers in any other order.
#
# trl 1.16.0, transformers 5.24.0: it trains on 1000 chosen answers, then on the 1000 rejected ones
# for the same prompts, and so on; with up to 1000 pairs on all the chosen ones first. The dataset
# is taken apart in batches of 1000 rows, whose chosen answers come before the rejected ones, and
# KTO doesn't shuffle: the order has to be kept, since its estimate of the KL divergence pairs each
# prompt with the answer of its neighbour. So all answers of a batch are of one kind, but where two
# blocks meet. Then the KL, which the reward is compared with, is that of chosen answers alone, and
# rises by far; with the default schedule and one epoch over up to 1000 pairs three quarters of the
# learning rate go to the chosen ones; and rewards/margins, by which the documentation would have
# one see whether the training works, is never logged. The documentation tells of the sequential
# order and its reason, and that the dataset is taken apart, but nothing of blocks or shuffling.
# unpair_preference_dataset(...).shuffle(...) before is right.
#
# Seen (a 2-layer GPT-2, learning to count up and not down, batches of 10, one epoch; batches with
# only chosen (+), only rejected (-) and both answers (*), the part of the learning rates that
# chosen answers get, the highest KL, how often a margin is logged, and the margin at last):
#   500 pairs: +50 -50, 75 %, KL 4.2, margin logged 0 times, 0.50
#   500 pairs, taken apart and shuffled: *100, 51 %, KL 1.6, margin logged 100 times, 0.72
#   1500 pairs: +100 -100 +50 -50, 64 %, KL 8.6, margin logged 0 times, 1.57
#   1500 pairs, taken apart and shuffled: *300, 50 %, KL 3.0, margin logged 300 times, 2.34

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'trl==1.16.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import copy
import itertools

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer, unpair_preference_dataset

words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w1"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w0")


def pairs(count):
    starts = torch.randint(50, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    up, down = (["".join(f" w{(start + step * i) % 50}" for i in range(1, 5)) for start in starts]
                for step in (1, -1))
    return Dataset.from_dict(
        {"prompt": [f"w{start}" for start in starts], "chosen": up, "rejected": down})


class Trainer(KTOTrainer):
    """Keep the labels and the learning rate of each batch."""
    seen = []

    def compute_loss(self, model, inputs, **settings):
        self.seen.append((inputs["label"].float().mean().item(), self._get_learning_rate()))
        return super().compute_loss(model, inputs, **settings)


def score(model, reference, answers):
    """Return the mean reward of the answers by hand: 0.1 times the log-ratio."""
    ids = tokenizer([prompt + answer + " w0" for prompt, answer in zip(
        data["prompt"], data[answers])], return_tensors="pt").input_ids
    logs = [each.eval()(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).sum((1, 2))
            for each in (model, reference)]
    return 0.1 * (logs[0] - logs[1]).mean().item()


def train(name, dataset):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2,
                                       n_head=2, bos_token_id=0, eos_token_id=0))
    reference = copy.deepcopy(model)
    Trainer.seen = seen = []
    trainer = Trainer(model, copy.deepcopy(model), KTOConfig(
        "result", per_device_train_batch_size=10, num_train_epochs=1, learning_rate=1e-3,
        logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False,
        disable_tqdm=True), train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    kinds = [{0: "-", 1: "+"}.get(chosen, "*") for chosen, _ in seen]
    blocks = [f"{kind}{len(list(group))}" for kind, group in itertools.groupby(kinds)]
    part = sum(chosen * rate for chosen, rate in seen) / sum(rate for _, rate in seen)
    log = [entry for entry in trainer.state.log_history if "kl" in entry]
    kl, logged = max(entry["kl"] for entry in log), sum("rewards/margins" in each for each in log)
    with torch.no_grad():
        margin = score(model, reference, "chosen") - score(model, reference, "rejected")
    print(f"= {name}: {' '.join(blocks)}, {100 * part:.0f} %, KL {kl:.1f}, "
          f"margin logged {logged} times, {margin:.2f}")
    return blocks, part, kl, logged, margin


for count, expected, share in ((500, ["+50", "-50"], 0.75),
                               (1500, ["+100", "-100", "+50", "-50"], 0.64)):
    data = pairs(count)
    blocks, part, kl, logged, margin = train(f"{count} pairs", data)
    assert blocks == expected and abs(part - share) < 0.01 and logged == 0
    _, part, other_kl, logged, other = train(
        f"{count} pairs, taken apart and shuffled", unpair_preference_dataset(data).shuffle(seed=0))
    assert abs(part - 0.5) < 0.02 and logged > 0.9 * count / 5
    assert kl > 2 * other_kl and margin < 0.9 * other
END
sed -n 's/^= //p' "$folder/out"
