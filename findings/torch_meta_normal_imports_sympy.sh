#!/usr/bin/env bash
# Guess: on the meta device, a model has shapes but neither numbers nor memory, so that building it
# there is as good as free, and the way to load weights without drawing random ones first.
#
# torch 2.13.0: it is, for linear layers, layer norms, dropout: initializing them there imports at
# most one module. The first normal_ of a process, which is how nn.Embedding is initialized, finds
# no kernel for "meta" and loads PyTorch's decompositions, and with them sympy, mpmath and the
# symbolic shapes of torch.fx: more than 800 modules, nearly as many as `import torch` itself has
# loaded. That takes longer than to draw the 10 million numbers of a small GPT for real. uniform_,
# zero_ and fill_ have kernels. Whoever loads a GPT this way pays for it once in each process,
# unless nn.init.normal_ is left out while the model is built.
#
# Seen (modules imported, MB of memory gained; seconds depend on the machine):
#   import torch: 1115 modules
#   Linear, LayerNorm, Dropout on meta: 1 modules, 3 MB, 0.00 s, sympy False
#   uniform_, zero_, fill_ on meta: 0 modules, 0 MB, 0.00 s, sympy False
#   Embedding, for real, 10 million numbers: 0 modules, 39 MB, 0.06 s, sympy False
#   Embedding without normal_ on meta: 0 modules, 0 MB, 0.00 s, sympy False
#   Embedding on meta: 822 modules, 33 MB, 1.24 s, sympy True
#   Embedding on meta, second time: 0 modules, 0 MB, 0.00 s, sympy True

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torch==2.13.0' 'numpy==2.4.6' 'sympy==1.14.0'

"$folder/venv/bin/python" - <<'END'
import resource
import sys
import time
from unittest import mock

import torch
from torch import nn

print(f"import torch: {len(sys.modules)} modules")


def memory():  # MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def imported(name, action):
    modules, before, start = len(sys.modules), memory(), time.perf_counter()
    action()
    seconds = time.perf_counter() - start
    gained = len(sys.modules) - modules
    print(f"{name}: {gained} modules, {memory() - before:.0f} MB, {seconds:.2f} s, "
          f"sympy {'sympy' in sys.modules}")
    return gained


def layers():
    with torch.device("meta"):
        nn.Sequential(nn.Linear(384, 384), nn.LayerNorm(384), nn.Dropout(0.1))


def fills():
    x = torch.empty(3, 3, device="meta")
    x.uniform_()
    x.zero_()
    x.fill_(1.0)


def embedding(device="meta"):
    with torch.device(device):
        nn.Embedding(26_042, 384)


def uninitialized():
    with mock.patch("torch.nn.init.normal_"):
        embedding()


assert imported("Linear, LayerNorm, Dropout on meta", layers) <= 1
assert imported("uniform_, zero_, fill_ on meta", fills) <= 1
assert imported("Embedding, for real, 10 million numbers", lambda: embedding("cpu")) <= 1
assert imported("Embedding without normal_ on meta", uninitialized) <= 1
assert "sympy" not in sys.modules
assert imported("Embedding on meta", embedding) > 500
assert "sympy" in sys.modules and "torch.fx.experimental.symbolic_shapes" in sys.modules
assert imported("Embedding on meta, second time", embedding) == 0
END
