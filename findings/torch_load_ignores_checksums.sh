#!/usr/bin/env bash
# The guess: torch.save writes a zip file with a checksum (CRC-32) of every record, which takes time,
# so torch.load compares them: a bit that flipped on the disk or in a copy is an error.
#
# torch 2.13.0: nothing is compared, whether the file is read or mapped. A weight with one flipped
# bit is loaded as whatever it is now, here as NaN, without a word. Python's zipfile finds it, and
# torch.serialization.set_crc32_options only says whether checksums are written. After a copy over
# an unreliable link, run zipfile.ZipFile(path).testzip() first.
#
# Seen (the first weight):
#   saved: -1.1258
#   loaded after a bit has flipped: nan
#   mapped after a bit has flipped: nan
#   zipfile's testzip: damaged/data/0

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

cd "$folder"
"$folder/venv/bin/python" - <<'END'
import math
import zipfile
from pathlib import Path

import torch

assert torch.serialization.get_crc32_options()  # checksums are written
torch.manual_seed(0)
weight = torch.randn(1000)
path = Path("damaged.pt")
torch.save({"weight": weight}, path)
intact = path.read_bytes()
assert zipfile.ZipFile(path).testzip() is None

place = intact.index(weight.numpy().tobytes()) + 3  # of the first weight's sign and exponent
damaged = bytearray(intact)
damaged[place] ^= 0x40
path.write_bytes(damaged)

loaded = torch.load(path, weights_only=True)["weight"]
mapped = torch.load(path, weights_only=True, mmap=True)["weight"]
record = zipfile.ZipFile(path).testzip()
print(f"saved: {weight[0]:.4f}")
print(f"loaded after a bit has flipped: {loaded[0]:.4f}")
print(f"mapped after a bit has flipped: {mapped[0]:.4f}")
print(f"zipfile's testzip: {record}")
assert math.isnan(loaded[0]) and math.isnan(mapped[0])
assert loaded[1:].equal(weight[1:])
assert record is not None
END
