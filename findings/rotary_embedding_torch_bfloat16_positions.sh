#!/usr/bin/env bash
# Guess: RotaryEmbedding of rotary-embedding-torch (in the GPTs and transformers of many
# repositories) computes positions and angles in float32, whatever the dtype of the queries and
# keys, and rounds what it has rotated. So bfloat16, by autocast or not, costs bfloat16's
# precision. Its cache of angles only saves time.
#
# rotary-embedding-torch 0.9.1, torch 2.13.0: the positions come from arange in the dtype of the
# queries. bfloat16 holds all integers up to 256 only; beyond, positions are rounded to even
# numbers, from 512 on to multiples of 4, and so on. In a context of 1024 half of the tokens have
# the position of the one before, and the fastest angles are off by up to 2 radians, although the
# frequencies are float32 and autocast is off in there. float16 is exact up to 2048. The angles are
# cached for the longest sequence so far, and all dtypes share the cache, so the first call of a
# length decides: bfloat16 after float32 is right, and float32 after bfloat16, as in an evaluation
# without autocast of a model that was trained with it, is as wrong as bfloat16. The cache isn't
# saved, so the same model computes something else when it is loaded from its checkpoint. Under
# autocast, a float32 call of the full length right after building the model makes all of it right.
#
# Seen (1024 positions; how many are rotated exactly as the one before, and the largest error of a
# rotated number, whose sizes are about 1):
#   float32: 0 as the one before, error 0.000
#   float16: 0 as the one before, error 0.001
#   bfloat16: 511 as the one before, error 2.718
#   bfloat16 by autocast: 511 as the one before, error 2.718
#   float32, after bfloat16: 511 as the one before, error 2.715
#   bfloat16, after float32: 0 as the one before, error 0.008

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'einops==0.8.2' 'rotary-embedding-torch==0.9.1'

"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from rotary_embedding_torch import RotaryEmbedding

LENGTH = 1024
torch.manual_seed(0)
# The same query at all positions, so that what differs is the rotation.
query = torch.randn(64).expand(1, 1, LENGTH, 64)
query = query.bfloat16().float()

angles = torch.arange(LENGTH).double()[:, None] * 10000 ** (-torch.arange(0, 64, 2).double() / 64)
pairs = torch.view_as_complex(query[0, 0].double().unflatten(1, (32, 2)).contiguous())
expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(1)


def check(name, rotated, wrong):
    rotated = rotated[0, 0]
    same = (rotated[1:] == rotated[:-1]).all(dim=1).sum().item()
    error = (rotated.double() - expected).abs().max().item()
    print(f"{name}: {same} as the one before, error {error:.3f}")
    assert same > 500 and error > 1 if wrong else same == 0 and error < 0.05


check("float32", RotaryEmbedding(64).rotate_queries_or_keys(query), wrong=False)
check("float16", RotaryEmbedding(64).rotate_queries_or_keys(query.half()), wrong=False)
check("bfloat16", RotaryEmbedding(64).rotate_queries_or_keys(query.bfloat16()), wrong=True)

rotary = RotaryEmbedding(64)
project = torch.nn.Linear(64, 64, bias=False)
torch.nn.init.eye_(project.weight)
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    check("bfloat16 by autocast", rotary.rotate_queries_or_keys(project(query)), wrong=True)
check("float32, after bfloat16", rotary.rotate_queries_or_keys(query), wrong=True)

rotary = RotaryEmbedding(64)
rotary.rotate_queries_or_keys(query)
check("bfloat16, after float32", rotary.rotate_queries_or_keys(query.bfloat16()), wrong=False)
END
