#!/usr/bin/env bash
# Guess: mosaicml-streaming with batching_method="stratified": "every global batch respects dataset
# mixing exactly", as its documentation says, and an epoch has the same documents as with "random".
# At most the last batch of a stream isn't full, and is dropped with a warning.
#
# mosaicml-streaming 0.10.0: neither, unless each stream's share of the batch is a whole number. A
# share is rounded to whole documents (7% of a batch of 8 to 1 document, or 12.5%), and the epoch is
# over when the first stream is used up. The small one is, since it was rounded up, and the rest of
# the large one is never read: here nearly half. len() of the dataset, and so of its loader, still
# counts all, so a schedule of the learning rate that is made from it never gets to its end. The
# warning is about a part of a batch that isn't full at the end of a stream: it's there if one
# document is left over, and isn't if 441 are lost. Streams of given proportions are rounded, too:
# the model is trained on another mixture than was asked for, in every batch of the run. A share
# that is a whole number is right.
#
# Seen (documents with numbers, no shuffling, one process; "random" beside it; "warned" if there is
# the warning):
#   931 + 70, batch 8, random: 1001 of 1001 documents, 7.0% from the small stream
#   931 + 70, batch 8, stratified: 560 of 1001 documents, 12.5% from the small stream
#   850 + 150, batch 10, stratified: 750 of 1000 documents, 20.0% from the small stream, warned
#   840 + 120, batch 8, stratified: 960 of 960 documents, 12.5% from the small stream
#   500 + 500 as 0.93 : 0.07, batch 8, random: 1000 documents, 7.0% from the small stream
#   500 + 500 as 0.93 : 0.07, batch 8, stratified: 560 documents, 12.5% from the small stream,
#     warned

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet --no-compile"
$pip 'torch==2.13.0' 'numpy==2.4.6'
$pip 'torch==2.13.0' 'numpy==2.4.6' 'mosaicml-streaming==0.10.0' 'torchvision==0.28.0'

cd "$folder"
export TMPDIR="$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import itertools
import logging

import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA; streaming imports it
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")

from streaming import MDSWriter, Stream, StreamingDataLoader, StreamingDataset

count = itertools.count()
warnings = []
handler = logging.Handler()
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("streaming").addHandler(handler)


def run(sizes, batch_size, method, proportions=(None, None)):
    streams = []
    for which, (size, proportion) in enumerate(zip(sizes, proportions)):
        name = f"stream{next(count)}"
        with MDSWriter(out=name, columns={"id": "int"}) as writer:
            for i in range(size):
                writer.write({"id": 10000 * which + i})
        streams.append(Stream(local=name, proportion=proportion))
    data = StreamingDataset(streams=streams, batch_size=batch_size, batching_method=method,
                            shuffle=False, num_canonical_nodes=1)
    loader = StreamingDataLoader(data, batch_size=batch_size)
    warnings.clear()
    ids = [batch["id"].tolist() for batch in loader]
    warned = any("are being dropped" in warning for warning in warnings)
    seen = sum(ids, [])
    small = sum(i >= 10000 for i in seen) / len(seen)
    if method == "stratified":  # every batch is of one kind, and counts wrong if rounded
        assert all(sum(i >= 10000 for i in batch) == small * batch_size for batch in ids)
    assert len(data) == sum(sizes) and len(loader) == -(-sum(sizes) // batch_size)
    label = " as {} : {}".format(*proportions) if proportions[0] else ""
    total = "" if label else f" of {sum(sizes)}"
    if not label:
        assert len(set(seen)) == len(seen)
    print(f"{sizes[0]} + {sizes[1]}{label}, batch {batch_size}, {method}: {len(seen)}{total} "
          f"documents, {small:.1%} from the small stream{', warned' * warned}")
    return len(seen), round(small, 3), warned


assert run((931, 70), 8, "random") == (1001, 0.07, False)
assert run((931, 70), 8, "stratified") == (560, 0.125, False)
assert run((850, 150), 10, "stratified") == (750, 0.2, True)
assert run((840, 120), 8, "stratified") == (960, 0.125, False)
assert run((500, 500), 8, "random", (0.93, 0.07)) == (1000, 0.07, False)
assert run((500, 500), 8, "stratified", (0.93, 0.07)) == (560, 0.125, True)
END
