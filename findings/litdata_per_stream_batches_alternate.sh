#!/usr/bin/env bash
# Guess: litdata's CombinedStreamingDataset with batching_method="per_stream" draws for each batch
# one of its sets, with the weights that are given, or by their lengths without. The page says "each
# batch comes from only one randomly selected dataset".
#
# litdata 0.2.76, torch 2.13.0: after each batch it draws again and again until it has another set
# than the last one. Two sets alternate, so half of the batches are of each, whatever the weights
# are. Of more sets, none gets more than half, and light ones come oftener than they should. Without
# weights, where all of both sets is read once, the smaller one is used up early in the epoch, and
# what is left is of the larger one alone. The default, "stratified", which draws for each text, is
# as expected. Nothing is said.
#
# Seen (batches of 4; share of each set; in brackets what drawing by hand gives, with the weights as
# they are, and if no set may come twice in a row):
#   stratified, weights [0.9, 0.1]: 0.90 0.10 (by hand 0.90 0.10, never twice 0.50 0.50)
#   per_stream, weights [0.9, 0.1]: 0.50 0.50 (by hand 0.90 0.10, never twice 0.50 0.50)
#   stratified, weights [0.8, 0.1, 0.1]: 0.80 0.10 0.10 (by hand 0.80 0.10 0.10, never twice 0.47
#     0.26 0.27)
#   per_stream, weights [0.8, 0.1, 0.1]: 0.47 0.26 0.27 (by hand 0.80 0.10 0.10, never twice 0.47
#     0.26 0.27)
#   stratified, no weights, 3600 and 400 texts: last batch of the smaller set: 1000 of 1000
#   per_stream, no weights, 3600 and 400 texts: last batch of the smaller set: 200 of 1000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'torchvision==0.28.0' 'litdata==0.2.76'
cd "$folder"

cat >mixture.py <<'END'
import random

import torch
from litdata import (CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader,
                     optimize)

BLOCK, BATCH = 8, 4


def tokens(number):
    """Return the tokens of 100 blocks, which all have the number of their set."""
    return torch.full((100 * BLOCK,), number)


def make(number, length):
    optimize(fn=tokens, inputs=[number] * (length // 100), output_dir=f"set{number}_{length}",
             chunk_size=100 * BLOCK, item_loader=TokensLoader(BLOCK), num_workers=1, verbose=False)


def read(lengths, method, weights=None):
    """Return the number of the set of each block, batch by batch."""
    sets = [StreamingDataset(f"set{number}_{length}", item_loader=TokensLoader(BLOCK))
            for number, length in enumerate(lengths)]
    mixture = CombinedStreamingDataset(sets, weights=weights, iterate_over_all=not weights,
                                       batching_method=method)
    batches = [batch[:, 0].tolist() for batch in StreamingDataLoader(mixture, batch_size=BATCH)]
    assert method == "stratified" or all(len(set(batch)) == 1 for batch in batches)
    return batches


def shares(draws, sets):
    return [draws.count(number) / len(draws) for number in range(sets)]


def by_hand(weights, twice):
    """Draw sets for many batches; unless twice, draw again while it is the last one."""
    generator, draws = random.Random(1), [-1]
    for _ in range(20_000):
        draw = draws[-1]
        while draw == draws[-1]:
            draw = generator.choices(range(len(weights)), weights)[0]
            if twice:
                break
        draws.append(draw)
    return shares(draws[1:], len(weights))


def text(values):
    return " ".join(f"{value:.2f}" for value in values)


def close(first, second, error=0.05):
    return all(abs(a - b) < error for a, b in zip(first, second))


if __name__ == "__main__":
    for number, length in ((0, 3600), (1, 3600), (2, 3600), (1, 400)):
        make(number, length)
    for method, weights in (("stratified", [0.9, 0.1]), ("per_stream", [0.9, 0.1]),
                            ("stratified", [0.8, 0.1, 0.1]), ("per_stream", [0.8, 0.1, 0.1])):
        batches = read([3600] * len(weights), method, weights)
        found = shares([number for batch in batches for number in batch], len(weights))
        never_twice = by_hand(weights, False)
        print(f"{method}, weights {weights}: {text(found)} "
              f"(by hand {text(by_hand(weights, True))}, never twice {text(never_twice)})")
        assert close(found, weights if method == "stratified" else never_twice)
    for method in ("stratified", "per_stream"):
        batches = read([3600, 400], method)
        last = max(place for place, batch in enumerate(batches, 1) if 1 in batch)
        print(f"{method}, no weights, 3600 and 400 texts: last batch of the smaller set: {last} of "
              f"{len(batches)}")
        assert len(batches) == 1000 and (last > 900 if method == "stratified" else last == 200)
END
OMP_NUM_THREADS=1 "$folder/venv/bin/python" mixture.py 2>log || { cat log; exit 1; }
