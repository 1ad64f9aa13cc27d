#!/usr/bin/env bash
# Guess: datasets: set_epoch(n) of a stream that was never shuffled changes nothing. What is drawn
# (a shuffle buffer, the sources of interleave_datasets with probabilities) is drawn anew in each
# epoch, from the seed that was given and the epoch: another seed, another order, in all of them.
#
# datasets 5.2.0: neither is true after the first epoch (4.8.5 is the same). In epoch 1 and later
# every stream has its shards put into another order, whether or not it was shuffled, and the
# parts of a concatenation count as shards: "easy texts, then hard ones" is a curriculum for one
# epoch, and later the hard ones may come first. Second, the generator for that is made of the
# epoch alone, and interleave_datasets takes it in place of its own. So its seed has no effect any
# more: runs with ten seeds draw their sources in ten ways in epoch 0, and all in the same way in
# each epoch after it. What differs between such runs says less about chance than it seems.
# Trainers call set_epoch by themselves. shuffle() does keep its seed ("initial seed + current
# epoch", as the documentation says), and take(n) behind a stream keeps its order.
#
# Seen (four shards of two documents each; three streams concatenated; the orders of ten seeds):
#   epoch 0: 0 1 2 3 4 5 6 7; easy0 easy1 medium0 medium1 hard0 hard1
#   epoch 1: 0 1 2 3 4 5 6 7; easy0 easy1 medium0 medium1 hard0 hard1
#   epoch 2: 6 7 4 5 0 1 2 3; hard0 hard1 easy0 easy1 medium0 medium1
#   epoch 3: 6 7 4 5 2 3 0 1; hard0 hard1 medium0 medium1 easy0 easy1
#   epoch 0, ten seeds: 10 orders of the mixture, 10 of shuffle()
#   epoch 1, ten seeds: 1 orders of the mixture, 10 of shuffle()
#   epoch 2, ten seeds: 1 orders of the mixture, 10 of shuffle()
#   epoch 3, ten seeds: 1 orders of the mixture, 10 of shuffle()
# (That epoch 1 keeps its order here is chance: 0 1 2 3 and 0 1 2 are what it drew.)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'datasets==5.2.0' 'numpy==2.4.6' \
    'pyarrow==26.0.1'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
from datasets import Dataset, concatenate_datasets, interleave_datasets

SEEDS = range(10)


def stream(name, documents, shards=1):
    """Return a stream of documents, in order."""
    texts = [f"{name}{i}" for i in range(documents)]
    return Dataset.from_dict({"text": texts}).to_iterable_dataset(num_shards=shards)


def epoch(dataset, number):
    dataset.set_epoch(number)
    return [row["text"] for row in dataset]


def orders(make, number):
    """Return in how many orders the documents come with ten seeds."""
    return len({tuple(epoch(make(seed), number)) for seed in SEEDS})


plain = stream("", 8, shards=4)
parts = concatenate_datasets([stream("easy", 2), stream("medium", 2), stream("hard", 2)])
fixed = parts.take(6)
for number in range(4):
    print(f"epoch {number}: {' '.join(epoch(plain, number))}; {' '.join(epoch(parts, number))}")
    assert sorted(epoch(parts, number)) == sorted(epoch(parts, 0))  # all of them, once each
    assert epoch(fixed, number) == epoch(fixed, 0)
assert any(epoch(plain, number) != epoch(plain, 0) for number in range(1, 4))
assert any(epoch(parts, number) != epoch(parts, 0) for number in range(1, 4))


def mixture(seed):
    return interleave_datasets([stream("a", 30), stream("b", 30)], probabilities=[0.5, 0.5],
                               seed=seed)


def shuffled(seed):
    return stream("a", 30).shuffle(seed=seed, buffer_size=30)


for number in range(4):
    print(f"epoch {number}, ten seeds: {orders(mixture, number)} orders of the mixture, "
          f"{orders(shuffled, number)} of shuffle()")
    assert orders(mixture, number) == (10 if number == 0 else 1)
    assert orders(shuffled, number) == 10
END
