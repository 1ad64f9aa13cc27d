#!/usr/bin/env bash
# Guess: torch.distributed.checkpoint's HuggingFaceStorageWriter with enable_consolidation=True
# writes, beside the shards, model files in safetensors format that have every tensor of the state
# dict as it is in the model. The folder is as good as one that rank 0 writes alone, without shards.
#
# torch 2.13.0, safetensors 0.8.0: tensors without dimensions, single numbers, are zeros in the
# consolidated file. Name, type and (empty) shape are there, the index lists them, and they are
# right in the shards that it is made of; nothing is said. Parts of a tensor are copied into a
# buffer of zeros, and the function that does it leaves at once "for empty tensors" if the shape is
# [], which isn't that of an empty tensor but that of one number. Learned gates, temperatures and
# the scales of quantized weights are often such tensors. The loaded model has lost its gated layer,
# and with its temperature 0 all tokens are equally likely. A tensor of shape [1] is kept.
# HuggingFaceStorageReader reads the zeros from that folder too. consolidate_safetensors_files, for
# shards that were saved without it, does the same. Shards alone, or files by rank 0 alone, are
# right.
#
# Seen (a residual layer with a gate of 0.5, logits times 0.25; numbers read from the files, and the
# loss of the loaded model for 16 tokens; the logarithm of 10 tokens is 2.3026):
#   model: gate 0.5, temperature 0.25, other tensors equal True, loss 2.6955
#   rank 0 alone: gate 0.5, temperature 0.25, other tensors equal True, loss 2.6955
#   shards: gate 0.5, temperature 0.25, other tensors equal True, loss 2.6955
#   consolidated: gate 0.0, temperature 0.0, other tensors equal True, loss 2.3026
#   shards, consolidated later: gate 0.0, temperature 0.0, other tensors equal True, loss 2.3026
#   consolidated, read by torch: gate 0.0, temperature 0.0, other tensors equal True, loss 2.3026

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'safetensors==0.8.0'
cd "$folder"

OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - 2>log <<'END' || { cat log; exit 1; }
import math
import os

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
from torch.nn.functional import cross_entropy

NUMBERS = ("gate", "temperature")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layer = nn.Linear(4, 4)
        self.gate = nn.Parameter(torch.tensor(0.5))
        self.temperature = nn.Parameter(torch.tensor(0.25))
        self.one = nn.Parameter(torch.tensor([7.0]))

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.gate * self.layer(x)
        return self.temperature * (x @ self.embedding.weight.T)


torch.manual_seed(0)
model = Model()
state = {name: value.detach().clone() for name, value in model.state_dict().items()}
tokens = torch.randint(10, (17,))


def check(name, tensors, right):
    model.load_state_dict(tensors)
    same = all(torch.equal(tensors[key], state[key]) for key in state if key not in NUMBERS)
    with torch.no_grad():
        loss = cross_entropy(model(tokens[:-1]), tokens[1:]).item()
    numbers = {key: tensors[key].item() for key in NUMBERS}
    print(f"{name}: gate {numbers['gate']}, temperature {numbers['temperature']}, "
          f"other tensors equal {same}, loss {loss:.4f}")
    assert same and numbers == ({"gate": 0.5, "temperature": 0.25} if right
                                else {"gate": 0.0, "temperature": 0.0})
    assert right or abs(loss - math.log(10)) < 1e-5


def save(path, **options):
    dcp.save(state, storage_writer=HuggingFaceStorageWriter(path, **options))


save("alone")
save("shards", save_distributed=True)
save("consolidated", save_distributed=True, enable_consolidation=True)
os.makedirs("later")
consolidate_safetensors_files("shards", "later", dict.fromkeys(state, 1))

FILE = "model-00001-of-00001.safetensors"
SHARD = "shard-00001-" + FILE
check("model", state, True)
check("rank 0 alone", load_file(f"alone/{FILE}"), True)
check("shards", load_file(f"shards/{SHARD}"), True)
check("consolidated", load_file(f"consolidated/{FILE}"), False)
assert load_file(f"consolidated/sharded/{SHARD}")["gate"] == 0.5
check("shards, consolidated later", load_file(f"later/{FILE}"), False)
loaded = {name: torch.full_like(value, -1) for name, value in state.items()}
dcp.load(loaded, storage_reader=HuggingFaceStorageReader("consolidated"))
check("consolidated, read by torch", loaded, False)
END
