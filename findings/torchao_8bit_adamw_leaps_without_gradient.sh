#!/usr/bin/env bash
# Guess: torchao's AdamW8bit and AdamWFp8 move each weight as AdamW does, within a few percent. In
# particular no weight moves much farther than the learning rate in one step.
#
# torchao 0.18.0, torch 2.13.0: both moments are rounded to 8 bits, relative to the largest of 256
# neighbours, with more digits for small ones. But the second moment is a square. An element whose
# gradient was a thousandth of the largest keeps its first moment, while its second one, a
# millionth, becomes 0. As long as there are new gradients, little is seen. If the next one is 0, as
# it is for the row of an embedding whose token isn't in the batch, the step is lr * moment / (0 +
# eps), with an eps of 1e-8: a few weights leap by hundreds of learning rates. AdamW4bit has no code
# for 0 in its second moment, and doesn't leap. (The paper on 8-bit Adam keeps embeddings in 32
# bits; torchao's classes quantize the state of every parameter of 4096 or more elements.)
#
# Seen (farthest weight, number of weights that moved over 10 and over 40 learning rates):
#   one step with gradients of about 0.01, one without; 30720 weights, lr 0.001
#     AdamW: 0.0017, 0
#     AdamW8bit: 0.7135, 35
#     AdamW4bit: 0.0018, 0
#     AdamWFp8: 2.3541, 115
#   an embedding of 2000 tokens and an output layer, 30 steps of 128 tokens
#     AdamW: 0.0156, 0
#     AdamW8bit: 0.0353, 0
#     AdamW4bit: 0.0164, 0
#     AdamWFp8: 0.1567, 443

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torchao==0.18.0' 'torch==2.13.0' \
    'numpy==2.4.6'

"$folder/venv/bin/python" - 2> "$folder/warnings" <<'END'
import torch
import torchao.optim
from torch.nn import functional

# The optimizers compile their step. This backend needs no C++ compiler; with one, Inductor gives
# the same leaps.
compile = torch.compile
torch.compile = lambda function, **settings: compile(function, backend="aot_eager", **settings)

LR = 1e-3


def two_steps(optimizer):
    torch.manual_seed(1)
    weights = torch.nn.Parameter(torch.zeros(40, 768))
    optimizer = optimizer([weights], lr=LR, weight_decay=0.0)
    for size in (0.01, 0.0):
        weights.grad = size * torch.randn(weights.shape)
        optimizer.step()
    return weights.detach().abs()


def embedding(optimizer):
    torch.manual_seed(1)
    wte = torch.nn.Embedding(2000, 256)
    head = torch.nn.Linear(256, 2000, bias=False)
    for module in (wte, head):
        torch.nn.init.normal_(module.weight, std=0.02)
    start = wte.weight.detach().clone()
    optimizer = optimizer([wte.weight, head.weight], lr=LR, weight_decay=0.0)
    for _ in range(30):
        tokens = torch.randint(2000, (129,))
        optimizer.zero_grad()
        functional.cross_entropy(head(wte(tokens[:-1])), tokens[1:]).backward()
        optimizer.step()
    return (wte.weight.detach() - start).abs()


classes = {"AdamW": torch.optim.AdamW, "AdamW8bit": torchao.optim.AdamW8bit,
           "AdamW4bit": torchao.optim.AdamW4bit, "AdamWFp8": torchao.optim.AdamWFp8}
for train, many in ((two_steps, 10), (embedding, 40)):
    print(train.__name__)
    for name, optimizer in classes.items():
        moved = train(optimizer)
        far = moved.max().item()
        leaps = (moved > many * LR).sum().item()
        print(f"  {name}: {far:.4f}, {leaps}")
        if name in ("AdamW", "AdamW4bit"):
            assert leaps == 0
        elif train is two_steps:
            assert far > 100 * LR and leaps > 5
        elif name == "AdamWFp8":
            assert leaps > 50
END
