#!/usr/bin/env bash
# Guess: ExecuTorch: a GPT-2 layer that is exported and lowered to the XNNPACK backend computes what
# it computes in PyTorch, to float32's precision, also where its matrix product is torch.addmm (as
# in transformers' Conv1D) with the factors that addmm has: beta * bias + alpha * (x @ weight).
#
# executorch 1.5.1, torch 2.13.0: the factors are lost. XNNPACK's partitioner takes addmm with a
# bias and a weight that are parameters for a fully connected layer, which has no factors, and
# doesn't look at alpha and beta: it computes bias + x @ weight. The program is made and runs
# without a word. So a branch that is scaled down with the number of layers isn't. Without the
# partitioner, the portable operators compute it right. (With torch.add and torch.sub the
# partitioner does look at alpha, and leaves those with another than 1 to the portable operators.)
#
# Seen (the MLP of a GPT-2 layer of width 32, the second product scaled; largest difference from
# PyTorch, by hand and from ExecuTorch, and XNNPACK's from the unscaled MLP):
#   factors {}: by hand 1e-06, portable 1e-06, XNNPACK 1e-06, from unscaled 1e-06
#   factors {'alpha': 0.204}: by hand 3e-07, portable 4e-07, XNNPACK 5e+00, from unscaled 1e-06
#   factors {'beta': 0.5}: by hand 1e-06, portable 1e-06, XNNPACK 2e-01, from unscaled 1e-06

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' 2>"$folder/log"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'executorch==1.5.1' 'torchao==0.18.0' 2>"$folder/log" || { cat "$folder/log"; exit 1; }

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import math

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

WIDTH, LAYERS = 32, 12


class MLP(torch.nn.Module):
    """The MLP of a GPT-2 layer, with weights stored as in transformers' Conv1D."""

    def __init__(self, **factors):
        super().__init__()
        self.factors = factors
        generator = torch.Generator().manual_seed(0)
        for name, shape in (("up", (WIDTH, 4 * WIDTH)), ("up_bias", 4 * WIDTH),
                            ("down", (4 * WIDTH, WIDTH)), ("down_bias", WIDTH)):
            values = torch.empty(shape).normal_(0, 0.2, generator=generator)
            setattr(self, name, torch.nn.Parameter(values))

    def forward(self, x):
        x = torch.relu(torch.addmm(self.up_bias, x, self.up))
        return torch.addmm(self.down_bias, x, self.down, **self.factors)


def run(model, x, partitioner):
    program = to_edge_transform_and_lower(
        torch.export.export(model, (x,)), partitioner=partitioner).to_executorch()
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    return method.execute([x])[0]


x = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))
unscaled = MLP()(x).detach()
for factors in ({}, {"alpha": 1 / math.sqrt(2 * LAYERS)}, {"beta": 0.5}):
    model = MLP(**factors)
    expected = model(x).detach()
    hidden = (x.double() @ model.up.double() + model.up_bias).relu()
    by_hand = (factors.get("alpha", 1) * (hidden @ model.down.double())
               + factors.get("beta", 1) * model.down_bias).detach()
    portable, xnnpack = run(model, x, []), run(model, x, [XnnpackPartitioner()])
    errors = [(y - z).abs().max().item() for y, z in (
        (by_hand, expected), (portable, expected), (xnnpack, expected), (xnnpack, unscaled))]
    shown = {name: round(value, 3) for name, value in factors.items()}
    print("factors {}: by hand {:.0e}, portable {:.0e}, XNNPACK {:.0e}, from unscaled {:.0e}"
          .format(shown, *errors))
    assert max(errors[:2]) < 1e-5 and errors[3] < 1e-5
    assert (errors[2] > 0.1) == bool(factors)
END
