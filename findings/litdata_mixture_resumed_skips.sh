#!/usr/bin/env bash
# Guess: a mixture of two sets of tokens (litdata's CombinedStreamingDataset with a
# StreamingDataLoader, everything at its defaults: all blocks of both once per epoch) that is
# interrupted within an epoch, as often as one likes, and goes on from the loader's state_dict() has
# the rest of the epoch before it, in the order of the run that wasn't interrupted. litdata's page
# says that such a mixture can be resumed with the same numbers of processes, workers and batches.
#
# litdata 0.2.76, torch 2.13.0: only the first time. The second resumption skips as many blocks as
# had been read at the first stop, the third as many again as had been read at the second, and so
# on; the epoch ends early, without a word. load_state_dict() asks for the length of the mixture, to
# see whether the epoch was over, and len() is get_len(1, 1), which also writes batch size 1 into
# the parts. So each part takes itself for resumed with another batch size, and goes the way for
# changed settings: it drops what was read from the head of its order, and remembers how many these
# were, to add them to what is read from there on. That suits a single set, whose count starts at
# 0 again then. The counts of a mixture go on from those in its state, so that the next state has
# the first part of the epoch twice (sample_in_epoch). set_batch_size() after load_state_dict()
# puts it right. A mixture with weights (iterate_over_all=False), whose length isn't asked for, and
# a single StreamingDataset are right as they are.
#
# Seen (two sets of 200 blocks, batches of 4, each run but the last stopped after 10 batches; for 1,
# 2 and 3 stops: blocks that the epoch leaves out, and blocks that come twice):
#   all once: 0 never, 0 again; 40 never, 0 again; 120 never, 0 again
#   all once, set_batch_size: 0 never, 0 again; 0 never, 0 again; 0 never, 0 again
#   weights: 0 never, 0 again; 0 never, 0 again; 0 never, 0 again
#   single set: 0 never, 0 again; 0 never, 0 again; 0 never, 0 again

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'torchvision==0.28.0' 'litdata==0.2.76'
cd "$folder"

cat >mixture.py <<'END'
import copy

import torch
from litdata import (CombinedStreamingDataset, StreamingDataLoader, StreamingDataset, TokensLoader,
                     optimize)

BLOCK, BLOCKS, BATCH, STEPS = 8, 200, 4, 10


def tokens(first):
    """Return the tokens of some blocks: each one has its number, again and again."""
    return torch.arange(first, first + 20).repeat_interleave(BLOCK)


def loader(kind):
    parts = [StreamingDataset(name, item_loader=TokensLoader(BLOCK), shuffle=True)
             for name in ("one", "two")]
    if kind == "single set":
        dataset = parts[0]
    elif kind == "weights":
        dataset = CombinedStreamingDataset(parts, weights=[0.7, 0.3], iterate_over_all=False)
    else:
        dataset = CombinedStreamingDataset(parts)
    return StreamingDataLoader(dataset, batch_size=BATCH)


def epoch(kind, stops):
    """Return the numbers of the blocks of an epoch that is stopped and resumed."""
    blocks, state = [], None
    for run in range(stops + 1):
        batches = loader(kind)
        if state is not None:
            batches.load_state_dict(state)
            if kind == "all once, set_batch_size":
                batches.dataset.set_batch_size(BATCH)
        for step, batch in enumerate(batches, 1):
            assert (batch == batch[:, :1]).all()
            blocks += batch[:, 0].tolist()
            if run < stops and step == STEPS:
                state = copy.deepcopy(batches.state_dict())
                break
    return blocks


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, start in (("one", 0), ("two", BLOCKS)):
        optimize(tokens, list(range(start, start + BLOCKS, 20)), output_dir=name, num_workers=1,
                 chunk_size=20 * BLOCK, item_loader=TokensLoader())
    for kind in ("all once", "all once, set_batch_size", "weights", "single set"):
        whole, found = epoch(kind, 0), []
        assert len(set(whole)) == len(whole)
        assert kind == "weights" or len(whole) == (BLOCKS if kind == "single set" else 2 * BLOCKS)
        for stops in (1, 2, 3):
            seen = epoch(kind, stops)
            found.append((len(set(whole) - set(seen)), len(seen) - len(set(seen))))
            assert (seen == whole) is (found[-1] == (0, 0))
        text = "; ".join(f"{never} never, {again} again" for never, again in found)
        print(f"RESULT {kind}: {text}", flush=True)
        assert found == ([(0, 0), (40, 0), (120, 0)] if kind == "all once" else [(0, 0)] * 3)
END
"$folder/venv/bin/python" mixture.py >"$folder/out" 2>&1 || { cat "$folder/out"; exit 1; }
sed -n 's/^RESULT //p' "$folder/out"
