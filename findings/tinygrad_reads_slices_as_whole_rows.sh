#!/usr/bin/env bash
# Guess: tinygrad's torch_load() gives the tensors that torch.load() gives, or refuses a layout it
# doesn't know. (torch.save() keeps views as views: the strides are in the file.)
#
# tinygrad 0.14.0: strides are only used to tell whether dimensions are swapped. If they are in the
# usual order, it takes the elements from the first one on as if nothing lay between them. So a
# slice of rows and a transposed matrix are right, but a slice of columns, as the query, key and
# value parts of GPT-2's attn.c_attn.weight, is filled with the first rows of the whole matrix,
# queries, keys and values mixed: of the right shape and scale, without a warning. Every second row
# is as wrong. The other way, an expanded tensor is refused. Before torch.save(), call contiguous().
#
# Seen (elements that are as saved):
#   whole: 9216 of 9216
#   transposed: 9216 of 9216
#   rows: 2304 of 2304
#   query: 48 of 3072
#   key: 48 of 3072
#   value: 48 of 3072
#   every second row: 144 of 4608

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'tinygrad==0.14.0' 'torch==2.13.0' \
    'numpy==2.4.6'

# tinygrad's usual device on a CPU needs clang, its interpreter in Python doesn't. For the latter,
# the file has to be in torch.save()'s older format; the newer one is read by the same function.
cd "$folder"
DEV=PYTHON "$folder/venv/bin/python" - <<'END'
import torch
from tinygrad.nn.state import torch_load

torch.manual_seed(1)
width = 48  # GPT-2 has 768 there, for 12 heads
whole = torch.randn(64, 3 * width)
query, key, value = whole.split(width, dim=1)
tensors = {"whole": whole, "transposed": whole.T, "rows": whole[8:24], "query": query, "key": key,
           "value": value, "every second row": whole[::2]}
torch.save(tensors, "gpt2.pt", _use_new_zipfile_serialization=False)

again = torch.load("gpt2.pt")
read = torch_load("gpt2.pt")
for name, tensor in tensors.items():
    assert torch.equal(again[name], tensor)
    found = torch.from_numpy(read[name].numpy())
    assert found.shape == tensor.shape
    right = (found == tensor).sum().item()
    print(f"{name}: {right} of {tensor.numel()}")
    if name in ("whole", "transposed", "rows"):
        assert right == tensor.numel()
    else:
        assert right < tensor.numel() / 10
        assert abs(found.std() - tensor.std()) < 0.1

start = whole.flatten()[:query.numel()].reshape(query.shape)
assert torch.equal(torch.from_numpy(read["query"].numpy()), start)
END
