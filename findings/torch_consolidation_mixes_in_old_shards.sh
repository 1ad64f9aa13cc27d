#!/usr/bin/env bash
# Guess: saving a model again with torch.distributed.checkpoint's HuggingFaceStorageWriter and
# enable_consolidation=True into the same folder, from fewer processes than the last time (training
# went on with fewer GPUs), gives model files with the weights of this time, as with the native
# format.
#
# torch 2.13.0, safetensors 0.8.0: rows of the earlier save are mixed in. Each process writes files
# sharded/shard-RANK-model-...; those of ranks that are no longer there are left in place, and the
# consolidation takes all files that it finds in the folder, not those just written. A row that is
# in two of them is of the file that comes later in the file system's order, so each matrix may have
# other old rows, or none. It goes on so in every later save; nothing is said, whereas the native
# format warns that it overwrites a checkpoint, and then reads only the files of the last save. Both
# HuggingFaceStorageReader and any other reader get these weights. In a new folder all is right.
#
# Seen (8 matrices of 8 rows, in 8 files; save n has n everywhere; last the matrix with the fewest
# rows of the last save, which depends on the file system):
#   save 1, 4 processes: 0 of 8 matrices with old rows, native format 0; 11111111
#   save 2, 2 processes: 8 of 8 matrices with old rows, native format 0; 22221111
#   save 3, 2 processes: 8 of 8 matrices with old rows, native format 0; 33331111
#   save 4, 2 processes, new folder: 0 of 8 matrices with old rows, native format 0; 44444444

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'safetensors==0.8.0'
cd "$folder"

cat >save.py <<'END'
import os
from glob import glob

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

NAMES = [f"layers.{number}.weight" for number in range(8)]


def save(rank, processes, number, folder):
    """Save matrices, each split by rows among the processes, in both formats."""
    dist.init_process_group("gloo", f"file://{os.getcwd()}/group{number}", rank=rank,
                            world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    state = {name: distribute_tensor(torch.full((8, 4), float(number)), mesh, [Shard(0)])
             for name in NAMES}
    dcp.save(state, checkpoint_id=f"{folder}_native")
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(
        folder, {name: file for file, name in enumerate(NAMES, 1)},
        save_distributed=True, enable_consolidation=True))
    dist.destroy_process_group()


def look(processes, number, folder):
    state = {}
    for file in glob(f"{folder}/model-*.safetensors"):
        state |= load_file(file)
    read, native = ({name: torch.zeros(8, 4) for name in NAMES} for _ in range(2))
    dcp.load(read, storage_reader=HuggingFaceStorageReader(folder), no_dist=True)
    dcp.load(native, checkpoint_id=f"{folder}_native", no_dist=True)
    assert sorted(state) == NAMES and all(torch.equal(read[name], state[name]) for name in NAMES)

    wrong, native_wrong = (sum((value != number).any().item() for value in tensors.values())
                           for tensors in (state, native))
    rows = min((value[:, 0].int().tolist() for value in state.values()),
               key=lambda rows: rows.count(number))
    print(f"save {number}, {processes} processes{', new folder' * (folder == 'new')}: {wrong} of 8 "
          f"matrices with old rows, native format {native_wrong}; "
          f"{''.join(map(str, rows))}")
    assert native_wrong == 0 and set(rows) <= {1, number}
    assert (wrong > 0) == (number in (2, 3))


if __name__ == "__main__":
    for number, (processes, folder) in enumerate(
            ((4, "again"), (2, "again"), (2, "again"), (2, "new")), 1):
        torch.multiprocessing.start_processes(save, (processes, number, folder), processes,
                                              start_method="fork")
        look(processes, number, folder)
END
OMP_NUM_THREADS=1 "$folder/venv/bin/python" save.py 2>log || { cat log; exit 1; }
