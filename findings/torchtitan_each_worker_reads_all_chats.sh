#!/usr/bin/env bash
# Guess: num_workers of torchtitan's data loaders, "number of worker processes for data loading", is
# a matter of speed. With 4 workers an epoch has the same chats as with none, each of them once,
# perhaps in another order.
#
# torchtitan 0.3.0, torchdata 0.11.0, datasets 4.7.0, torch 2.13.0: each worker reads all of them.
# ChatDataset and HuggingFaceTextDataset are iterable datasets, of which each worker gets a copy,
# and neither asks which worker it is. Only a streamed dataset is shared, since the library datasets
# does it, file by file. A loaded one, which load_dataset returns by default, so that of almost all
# fine-tuning, comes from every worker from the beginning, with the same shuffle: each batch comes
# num_workers times, directly one after the other. An epoch has as many times the steps, and a run
# of a fixed number of steps sees only a part of the data: with 4 workers 100 steps are 25 batches,
# each trained on four times in a row. InterleavedChatDataLoader's copies draw from the mixture with
# one seed and do the same. Nothing is said, and the loss looks better than it is. That iterable
# datasets are copied is in PyTorch's documentation, for who writes such a dataset; here the dataset
# is the library's, and num_workers a setting.
#
# Seen (48 chats, 4 to a batch; batches of an epoch, how often each chat comes, how many of the
# first 12 batches are the same as the one before, and chats in these 12):
#   loaded, no workers: 12 batches, each chat [1] times, 0 repeated, 48 chats
#   loaded, 1 worker: 12 batches, each chat [1] times, 0 repeated, 48 chats
#   loaded, 2 workers: 24 batches, each chat [2] times, 6 repeated, 24 chats
#   loaded, 4 workers: 48 batches, each chat [4] times, 9 repeated, 12 chats
#   mixture, 4 workers: 48 batches, each chat [4] times, 9 repeated, 12 chats
#   streamed, 4 workers: 12 batches, each chat [1] times, 0 repeated, 48 chats

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'torchtitan==0.3.0' 'torchdata==0.11.0' 'datasets==4.7.0'
cd "$folder"

export HF_HUB_OFFLINE=1 HF_HOME="$folder" OMP_NUM_THREADS=1
cat >run.py <<'END'
import json
from collections import Counter

from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.hf_datasets.text_datasets import (
    ChatDataLoader, ChatDataSource, InterleavedChatDataLoader)

CHATS, FILES, FIRST = 48, 4, 12


class Words:
    """A tokenizer whose tokens are numbers; 0 ends a chat."""
    eos_id = 0

    def encode(self, text, add_bos=False, add_eos=False):
        return [int(word) for word in text.split()]

    def apply_chat_template(self, messages, add_generation_prompt=False):
        return " ".join(message["content"] for message in messages)


def as_messages(chat):
    """Return a chat of the data as two messages: the user says 1, the answer is the number."""
    return [{"role": "user", "content": "1"}, {"role": "assistant", "content": chat["number"]}]


def batches(streaming, workers, mixture):
    """Return the numbers of the chats of each batch of an epoch."""
    settings = dict(
        dataset_path="json", sample_processor=as_messages, infinite=False, num_workers=workers,
        load_dataset_kwargs={"data_files": [f"{i}.jsonl" for i in range(FILES)], "split": "train",
                             "streaming": streaming})
    kind, config = ChatDataLoader, ChatDataLoader.Config(**settings)
    if mixture:
        kind = InterleavedChatDataLoader
        config = kind.Config(sources=[ChatDataSource(**settings)], num_workers=workers)
    loader = kind(config, dp_world_size=1, dp_rank=0, tokenizer=Words(), seq_len=4,
                  local_batch_size=2)
    return [[n for n in labels.flatten().tolist() if n not in (0, IGNORE_INDEX)]
            for _, labels in loader]


if __name__ == "__main__":
    numbers = range(2, CHATS + 2)
    for part in range(FILES):
        with open(f"{part}.jsonl", "w") as file:
            for number in numbers[part::FILES]:
                print(json.dumps({"number": str(number)}), file=file)
    for name, streaming, workers, mixture in (
            ("loaded, no workers", False, 0, False), ("loaded, 1 worker", False, 1, False),
            ("loaded, 2 workers", False, 2, False), ("loaded, 4 workers", False, 4, False),
            ("mixture, 4 workers", False, 4, True), ("streamed, 4 workers", True, 4, False)):
        epoch = batches(streaming, workers, mixture)
        counts = Counter(number for batch in epoch for number in batch)
        repeated = sum(a == b for a, b in zip(epoch[:FIRST], epoch[1:FIRST]))
        seen = len({number for batch in epoch[:FIRST] for number in batch})
        times = 1 if streaming else max(workers, 1)
        print(f"{name}: {len(epoch)} batches, each chat {sorted(set(counts.values()))} times, "
              f"{repeated} repeated, {seen} chats", flush=True)
        assert set(counts) == set(numbers) and set(counts.values()) == {times}
        assert len(epoch) == FIRST * times and seen == CHATS // times
        assert repeated == FIRST - FIRST // times
END
"$folder/venv/bin/python" run.py >"$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
grep -oE '(loaded|mixture|streamed), .*chats$' "$folder/out"
