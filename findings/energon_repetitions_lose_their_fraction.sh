#!/usr/bin/env bash
# Guess: "repetitions: 1.5" in a blend_epochized of Megatron-Energon, which may be a fraction, takes
# one and a half times the texts of a dataset in every epoch, and 0.5 takes half of them, the other
# half in the next epoch. A blend of two datasets has the same proportions all the time.
#
# megatron-energon 7.4.1, torch 2.13.0: only in the first epoch. Where the fraction ends, the pass
# over the dataset is left open, and the next epoch goes on in it, but counts what is left of that
# pass as a whole one. So with 1.5 each epoch but the first has the half that was left and another
# half: exactly one repetition, as for any number from 1 to 2; 2.5 is 2. With 0.5 the second epoch
# ends together with the pass, the third finds nothing in it and is empty, and so on: a third of
# what was meant is missing. With 0.75 it's 0.75 and 0.25 in turn, so a half on average. Whole
# numbers are right. It's the same whether one iterates over the loader once for each epoch, with
# repeat=False, or leaves the repeating to get_train_dataset as by default; there are no epochs to
# be counted then, and the blend just has other proportions than those in its file. There's
# no warning, and the documentation of blend_epochized has no word on it.
#
# Seen (the texts of a dataset of 100 in each epoch; then its share in the first 4000 texts of a
# blend with another one of 100 texts and 1 repetition, by default, and in brackets as it's meant):
#   repetitions 0.5: 50 50 0 50 50 0 50, share 0.25 (0.33)
#   repetitions 0.75: 75 25 75 25 75 25 75, share 0.34 (0.43)
#   repetitions 1: 100 100 100 100 100 100 100, share 0.50 (0.50)
#   repetitions 1.5: 150 100 100 100 100 100 100, share 0.51 (0.60)
#   repetitions 2: 200 200 200 200 200 200 200, share 0.67 (0.67)
#   repetitions 2.5: 250 200 200 200 200 200 200, share 0.67 (0.71)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'megatron-energon==7.4.1'
cd "$folder"

for name in first second; do
    for number in $(seq 100); do echo "{\"text\": \"$name $number\"}"; done >"$name.jsonl"
    "$folder/venv/bin/energon" prepare "$name.jsonl" >"$folder/log" 2>&1
done

OMP_NUM_THREADS=1 "$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' \
    || { cat "$folder/out"; exit 1; }
import itertools
import json
from collections import Counter
from pathlib import Path

from megatron.energon import (Cooker, DefaultTaskEncoder, TextSample, WorkerConfig,
                              basic_sample_keys, get_loader, get_train_dataset, stateless)

EPOCHS, TEXTS, LONG = 7, 100, 4000


@stateless
def cook(sample):
    return TextSample(**basic_sample_keys(sample), text=sample["json"]["text"])


class Encoder(DefaultTaskEncoder):
    cookers = [Cooker(cook)]


def loader(repetitions, repeat):
    """Return the loader of a blend of the first dataset, repeated, with the second."""
    blend = [{"repetitions": repetitions, "path": str(Path("first.jsonl").absolute())},
             {"repetitions": 1, "path": str(Path("second.jsonl").absolute())}]
    Path("blend.yaml").write_text(json.dumps({
        "__module__": "megatron.energon", "__class__": "MetadatasetV2",
        "splits": {"train": {"blend_epochized": blend}}}))
    return get_loader(get_train_dataset(
        "blend.yaml", worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        batch_size=1, shuffle_buffer_size=None, max_samples_per_sequence=None,
        task_encoder=Encoder(), repeat=repeat))


def count(batches):
    """Return how many texts are of the first dataset and of the second."""
    names = Counter(text.split()[0] for batch in batches for text in batch.text)
    return names["first"], names["second"]


EXPECTED = {0.5: [50, 50, 0, 50, 50, 0, 50], 0.75: [75, 25, 75, 25, 75, 25, 75], 1: [100] * 7,
            1.5: [150] + [100] * 6, 2: [200] * 7, 2.5: [250] + [200] * 6}
for repetitions, expected in EXPECTED.items():
    epochs = loader(repetitions, repeat=False)
    counts = [count(epochs) for _ in range(EPOCHS)]
    firsts = [first for first, _ in counts]
    first, second = count(itertools.islice(loader(repetitions, repeat=True), LONG))
    share, meant = first / (first + second), repetitions / (repetitions + 1)
    print(f"repetitions {repetitions}:", *firsts, end=f", share {share:.2f} ({meant:.2f})\n")
    assert all(second == TEXTS for _, second in counts) and firsts == expected
    later = sum(expected[1:]) / (EPOCHS - 1) / TEXTS
    assert abs(share - later / (later + 1)) < 0.02
    assert (later < repetitions) == (repetitions % 1 > 0)
END
grep '^repetitions' "$folder/out"
