#!/usr/bin/env bash
# Guess: on a CPU, the same function, inputs, machine and number of threads give the same gradients,
# bit for bit. torch.compile may round differently from eager mode, but not differently from itself.
#
# torch 2.13.0: the compiled backward of an embedding shares the tokens out to the threads, which
# add to the same rows with atomic additions, in whatever order they arrive. So with two threads,
# repeated calls of one compiled function differ. The eager backward, and the compiled one under
# torch.use_deterministic_algorithms(True), repeat themselves exactly.
#
# Seen (two threads; the number can vary):
#   eager: 0 of 9 repeats differ from the first
#   compiled: 9 of 9 repeats differ from the first
#   compiled, deterministic: 0 of 9 repeats differ from the first
#
# torch.compile needs a C++ compiler, and the threads need two cores.

set -euo pipefail

if ! command -v g++ > /dev/null || [ "$(nproc)" -lt 2 ]; then
    echo "needs g++ and two cores" >&2
    exit 1
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import torch
import torch.nn.functional as F

torch.manual_seed(0)
torch.set_num_threads(2)
weight = torch.randn(1000, 64, requires_grad=True)
tokens = torch.randint(0, 1000, (64, 1024))
output_gradient = torch.randn(64, 1024, 64)


def embed(weight, tokens):
    return F.embedding(tokens, weight)


def n_different(name, function):
    gradients = []
    for _ in range(10):
        output = function(weight, tokens)
        gradients += torch.autograd.grad(output, weight, output_gradient)
    n = sum(not torch.equal(gradients[0], gradient) for gradient in gradients[1:])
    print(f"{name}: {n} of 9 repeats differ from the first")
    return n


assert n_different("eager", embed) == 0
assert n_different("compiled", torch.compile(embed)) > 0
torch.use_deterministic_algorithms(True)
torch.compiler.reset()
assert n_different("compiled, deterministic", torch.compile(embed)) == 0
END
