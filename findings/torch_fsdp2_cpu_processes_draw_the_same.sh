#!/usr/bin/env bash
# Guess: a model that is built on "meta", sharded with fully_shard(), given memory by to_empty()
# and initialised, with the same seed in each process, has independent random numbers in all of
# its rows, also where the processes compute on a CPU.
#
# torch 2.13.0: on a CPU each process draws its shard from the start of the same random stream.
# With two processes the second half of the rows of each matrix is a copy of the first half, with
# n processes there are n copies: half of GPT-2's tokens have the embedding of another token, half
# of its positions that of another position, half of a layer's outputs double the other half.
# Dropout on a sharded tensor takes the same mask in each process, too. (For GPUs, by its source,
# DTensor moves each process's stream to its own part; that was not run.) There is a warning, that
# random operators "may not have complete support", and no error. With a different seed in each
# process, or with weights that were drawn before they are sharded, rows differ.
#
# Seen (two processes, how many of the 512 rows of the embedding are a copy of another one):
#   drawn, then sharded: 0
#   sharded, then drawn, same seed: 256
#   sharded, then drawn, another seed in each process: 0
#   dropout is the same in both: True

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
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor


def build():
    return nn.Sequential(nn.Embedding(512, 32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 512))


def copies(model):
    weight = model[0].weight.full_tensor()
    return len(weight) - len(weight.unique(dim=0))


def main(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = dist.init_device_mesh("cpu", (2,))

    def shard(model):
        for part in model[0], model[1], model[3], model:
            fully_shard(part, mesh=mesh)
        return model

    def show(*what):
        if rank == 0:
            print(*what, flush=True)

    def from_meta(seed):
        with torch.device("meta"):
            model = shard(build())
        model.to_empty(device="cpu")
        torch.manual_seed(seed)
        for part in model[0], model[1], model[3]:
            part.reset_parameters()
        return model

    torch.manual_seed(0)
    seen = copies(shard(build()))
    show("drawn, then sharded:", seen)
    assert seen == 0

    seen = copies(from_meta(0))
    show("sharded, then drawn, same seed:", seen)
    assert seen == 256

    seen = copies(from_meta(rank))
    show("sharded, then drawn, another seed in each process:", seen)
    assert seen == 0

    torch.manual_seed(0)
    ones = distribute_tensor(torch.ones(2, 1000), mesh, [Shard(0)])
    mask = nn.functional.dropout(ones, 0.5).full_tensor()
    show("dropout is the same in both:", torch.equal(mask[0], mask[1]))
    assert torch.equal(mask[0], mask[1])
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (os.getcwd(),), nprocs=2)
END
venv/bin/python check.py 2>log || { cat log; exit 1; }
