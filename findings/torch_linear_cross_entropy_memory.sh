#!/usr/bin/env bash
# The guess: torch.nn.functional.linear_cross_entropy(), new in 2.13, is there to spare the memory
# of the logits. Calling it instead of linear() and cross_entropy() is all one has to do.
#
# torch 2.13.0: as called by default, it is linear() and cross_entropy(), and its peak is the same:
# about three times the logits, for forward and backward. Only with
# options=torch.nn.LinearCrossEntropyOptions() does it go through the logits in pieces.
#
# Seen (logits of 128 MB; the peak is what forward and backward add):
#   by hand: 387 MB
#   default: 387 MB
#   options: 11 MB

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

cat > "$folder/peak.py" <<'END'
import resource
import sys

import torch
import torch.nn.functional as F


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB on Linux


def loss(way, x, weight, targets):
    if way == "by hand":
        return F.cross_entropy(F.linear(x, weight), targets)
    if way == "default":
        return F.linear_cross_entropy(x, weight, targets)
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(x, weight, targets, options=options)


def batch(n_tokens, vocab_size):
    x = torch.randn(n_tokens, 64, requires_grad=True)
    weight = torch.randn(vocab_size, 64, requires_grad=True)
    return x, weight, torch.randint(0, vocab_size, (n_tokens,))


torch.manual_seed(0)
way = sys.argv[1]
loss(way, *batch(64, 128)).backward()  # loads what is loaded once
inputs = batch(2048, 16384)
before = peak()
loss(way, *inputs).backward()
print(round(peak() - before))
END
by_hand=$("$folder/venv/bin/python" "$folder/peak.py" "by hand")
default=$("$folder/venv/bin/python" "$folder/peak.py" default)
options=$("$folder/venv/bin/python" "$folder/peak.py" options)
echo "by hand: $by_hand MB"
echo "default: $default MB"
echo "options: $options MB"
[ "$((10 * default))" -gt "$((8 * by_hand))" ]
[ "$options" -lt "$((default / 2))" ]
