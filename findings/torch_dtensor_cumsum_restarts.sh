#!/usr/bin/env bash
# Guess: an operation along the dimension in which a DTensor is sharded gives what it gives for
# the whole tensor (topk, sort, argmax, softmax do), or it is refused (unbind is). It is never
# done in each process for itself and called a result.
#
# torch 2.13.0: cumsum(1), cumprod(1) and logcumsumexp(1) gather a tensor that is sharded in
# dimension 1 first, and are right. cumsum(-1), cumprod(-1) and logcumsumexp(-1) are not: their
# rule for sharding compares -1, as it was given, with the sharded dimensions 0 and 1, finds
# nothing to gather, and each process starts again. The result is a DTensor that calls itself
# sharded, with nothing to say that it is wrong. So for a text that is sharded along its
# positions, as for context parallelism, the usual position numbers of a padded batch,
# attention_mask.cumsum(-1) - 1, begin again at 0 in each process; and probabilities that are
# sharded along the vocabulary never add up to 1, as top-p sampling needs them to. Of the other
# functions tried (topk, sort, argmax, softmax, logsumexp, cummax, cummin, median, gather, roll,
# flip and more), all take -1 as they should.
#
# Seen (two processes on a CPU, 8 positions, the first 3 of the second row are padding):
#   one tensor: [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 1, 2, 3, 4]]
#   sharded by rows: [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 1, 2, 3, 4]]
#   sharded by positions: [[0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 0, 0, 0, 1, 2, 3]]
#   sharded by positions, cumsum(1): [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 1, 2, 3, 4]]
#   as for one tensor: topk sort argmax softmax logsumexp cummax cummin cumsum(1) cumprod(1)
#       logcumsumexp(1)
#   other results: cumsum(-1) cumprod(-1) logcumsumexp(-1)
#   largest cumulated probability: 0.52

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

cd "$folder"
cat >check.py <<'END'
import os

import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor


def main(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = dist.init_device_mesh("cpu", (2,))

    def show(*what):
        if rank == 0:
            print(*what, flush=True)

    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, :3] = 0
    right = (mask.cumsum(-1) - 1).clamp(min=0)
    show("one tensor:", right.tolist())

    for name, place in ("rows", Shard(0)), ("positions", Shard(1)):
        sharded = distribute_tensor(mask, mesh, [place])
        result = (sharded.cumsum(-1) - 1).clamp(min=0)
        assert result.placements == (place,)
        whole = result.full_tensor()
        show(f"sharded by {name}:", whole.tolist())
        assert torch.equal(whole, right) == (name == "rows")
    assert whole[:, 4:].tolist() == [[0, 1, 2, 3]] * 2

    whole = (sharded.cumsum(1) - 1).clamp(min=0).full_tensor()
    show("sharded by positions, cumsum(1):", whole.tolist())
    assert torch.equal(whole, right)

    torch.manual_seed(0)
    numbers = torch.rand(4, 50).softmax(-1)
    sharded = distribute_tensor(numbers, mesh, [Shard(1)])
    agreeing, wrong = [], []
    for name, function in [
        ("topk", lambda x: x.topk(5)[0]),
        ("sort", lambda x: x.sort(descending=True)[0]),
        ("argmax", lambda x: x.argmax(-1)),
        ("softmax", lambda x: x.softmax(-1)),
        ("logsumexp", lambda x: x.logsumexp(-1)),
        ("cummax", lambda x: x.cummax(-1)[0]),
        ("cummin", lambda x: x.cummin(-1)[0]),
        ("cumsum(1)", lambda x: x.cumsum(1)),
        ("cumprod(1)", lambda x: x.cumprod(1)),
        ("logcumsumexp(1)", lambda x: x.logcumsumexp(1)),
        ("cumsum(-1)", lambda x: x.cumsum(-1)),
        ("cumprod(-1)", lambda x: x.cumprod(-1)),
        ("logcumsumexp(-1)", lambda x: x.logcumsumexp(-1)),
    ]:
        same = torch.allclose(function(sharded).full_tensor(), function(numbers))
        (agreeing if same else wrong).append(name)
    show("as for one tensor:", *agreeing)
    show("other results:", *wrong)
    assert wrong == ["cumsum(-1)", "cumprod(-1)", "logcumsumexp(-1)"]
    end = sharded.cumsum(-1).full_tensor()[:, -1]
    show(f"largest cumulated probability: {end.max():.2f}")
    assert end.max() < 0.6
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (os.getcwd(),), nprocs=2)
END
venv/bin/python check.py 2>log || { cat log; exit 1; }
