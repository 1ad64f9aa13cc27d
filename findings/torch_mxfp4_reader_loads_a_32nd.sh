#!/usr/bin/env bash
# Guess: dcp.load with torch.distributed.checkpoint's QuantizedHuggingFaceStorageReader, made to
# read gpt-oss's MXFP4 weights (tensors *_blocks and *_scales) dequantizing them while it reads,
# fills a tensor of the dequantized shape with the weights, as it does for DeepSeek's
# weights of 8 bits with a scale for each block.
#
# torch 2.13.0, safetensors 0.8.0: of each row of an MXFP4 tensor, only the first 1/32 is read; the
# rest of the tensor is left as it was before (here 7.0; the random or zero weights of a new model),
# and nothing is said. The file has a row as G groups of 16 bytes, 32 weights in each. The reader
# corrects the size in the metadata to G * 32 columns, which is what dcp.load checks, but not the
# sizes of the parts that are in the file: so for the plan of what to read, the row ends after G
# columns. For gpt-oss-20b that's 90 of 2880 columns of all experts. What is read is right, and so
# are weights of 8 bits, and all others. With the part's size corrected too (a subclass of a few
# lines) all is read.
#
# Seen (2 experts of 6 rows with 4 groups of 32; share of weights as dequantized by hand, as they
# were before, and columns that are right):
#   8 bits, scales for blocks of 64 x 64: as by hand 1.0000, as before 0.0000
#   MXFP4: as by hand 0.0312, as before 0.9688; columns 0 to 3 of 128
#   MXFP4, size of the part corrected: as by hand 1.0000, as before 0.0000; columns 0 to 127 of 128

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'safetensors==0.8.0'
cd "$folder"

cat >check.py <<'END'
import json
import os

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import QuantizedHuggingFaceStorageReader

EXPERTS, ROWS, GROUPS, BLOCK = 2, 6, 4, 64
BEFORE = 7.0


class Corrected(QuantizedHuggingFaceStorageReader):
    def read_metadata(self):
        metadata = super().read_metadata()
        for name, tensor in metadata.state_dict_metadata.items():
            if name.endswith("_blocks"):
                part, = tensor.chunks
                part.sizes = torch.Size([*tensor.size, part.sizes[-1]])
        return metadata


def number(code):
    """Return the value of 4 bits: a sign, 2 bits of exponent (bias 1) and 1 of mantissa."""
    sign, exponent, mantissa = -1 if code & 8 else 1, code >> 1 & 3, code & 1
    return sign * ((1 + mantissa / 2) * 2 ** (exponent - 1) if exponent else mantissa / 2)


torch.manual_seed(0)
blocks = torch.randint(256, (EXPERTS, ROWS, GROUPS, 16), dtype=torch.uint8)
scales = torch.randint(120, 130, (EXPERTS, ROWS, GROUPS), dtype=torch.uint8)
values = torch.tensor([[number(byte & 15), number(byte >> 4)] for byte in range(256)])
mxfp4 = values[blocks.long()].flatten(-2) * 2.0 ** (scales.float() - 127).unsqueeze(-1)
mxfp4 = mxfp4.flatten(-2)

inverse = torch.rand(3, 2) + 0.5
expanded = inverse.repeat_interleave(BLOCK, 0)[:150].repeat_interleave(BLOCK, 1)[:, :100]
quantized = torch.randn(150, 100).to(torch.float8_e4m3fn)
by_hand = {"mlp.weight": quantized.float() * expanded, "experts.gate_up_proj_blocks": mxfp4}

os.mkdir("model")
tensors = {"mlp.weight": quantized, "mlp.weight_scale_inv": inverse,
           "experts.gate_up_proj_blocks": blocks, "experts.gate_up_proj_scales": scales}
save_file(tensors, "model/model-00001-of-00001.safetensors")
with open("model/model.safetensors.index.json", "w") as file:
    json.dump({"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}, file)


def check(label, name, reader, right):
    state = {name: torch.full_like(by_hand[name], BEFORE)}
    dcp.load(state, storage_reader=reader("model", block_size=BLOCK), no_dist=True)
    same = state[name] == by_hand[name]
    share = same.float().mean().item()
    kept = (state[name] == BEFORE).float().mean().item()
    columns = same.flatten(0, -2).all(0).nonzero().flatten().tolist()
    assert columns == list(range(len(columns))) and share + kept == 1
    print(f"{label}: as by hand {share:.4f}, as before {kept:.4f}" + (
        f"; columns 0 to {columns[-1]} of {same.shape[-1]}" if name.endswith("_blocks") else ""))
    assert share == right


check("8 bits, scales for blocks of 64 x 64", "mlp.weight", QuantizedHuggingFaceStorageReader, 1)
check("MXFP4", "experts.gate_up_proj_blocks", QuantizedHuggingFaceStorageReader, 1 / 32)
check("MXFP4, size of the part corrected", "experts.gate_up_proj_blocks", Corrected, 1)
END
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore check.py 2>log || { cat log; exit 1; }
