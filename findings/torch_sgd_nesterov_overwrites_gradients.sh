#!/usr/bin/env bash
# Guess: an optimizer's step() reads the gradients and leaves them as they are, so that a gradient
# norm is the same whether it is taken before the step or after it; and foreach=True, which is by
# its documentation what CUDA gets by default, is the same computation in fewer calls.
#
# torch 2.13.0: SGD with nesterov=True and foreach=True adds the momentum to .grad itself. After
# the step .grad holds the direction of the update, about twice the gradient and more if gradients
# go on pointing the same way. It does so only without weight decay and maximize, which make a
# copy; so with GPT-2's usual two groups the matrices' gradients are untouched, those of biases and
# gains are not. The weights come out right. What is wrong is whatever reads .grad after step(): a
# logged norm, an estimate of the gradient's noise, one more backward() that adds to gradients kept
# on purpose. Of 13 optimizers in torch.optim, with and without foreach and fused, no other one
# does it. Read gradients before step(), or say foreach=False.
#
# Seen (norm of the gradient after step() divided by that before it, third step, the same gradient
# in each):
#   foreach=False: matrix with decay 1.00, bias without 1.00
#   foreach=True: matrix with decay 1.00, bias without 3.44
#   foreach=True, nesterov=False: matrix with decay 1.00, bias without 1.00
#   weights of foreach=True and False: equal
#   others that change gradients: none

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import torch


def run(foreach, nesterov):
    """Three steps; the gradients' growth through the last one, and the weights."""
    torch.manual_seed(0)
    matrix, bias = torch.nn.Parameter(torch.randn(8, 8)), torch.nn.Parameter(torch.randn(8))
    gradients = [torch.randn(8, 8), torch.randn(8)]
    optimizer = torch.optim.SGD([{"params": [matrix], "weight_decay": 0.1},
                                 {"params": [bias], "weight_decay": 0.0}],
                                lr=0.01, momentum=0.9, nesterov=nesterov, foreach=foreach)
    for _ in range(3):
        for parameter, gradient in zip((matrix, bias), gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    growth = [float(parameter.grad.norm() / gradient.norm())
              for parameter, gradient in zip((matrix, bias), gradients, strict=True)]
    return growth, torch.cat([matrix.detach().ravel(), bias.detach()])


def show(name, growth):
    print(f"{name}: matrix with decay {growth[0]:.2f}, bias without {growth[1]:.2f}")


loop, loop_weights = run(foreach=False, nesterov=True)
show("foreach=False", loop)
foreach, foreach_weights = run(foreach=True, nesterov=True)
show("foreach=True", foreach)
plain, _ = run(foreach=True, nesterov=False)
show("foreach=True, nesterov=False", plain)
assert loop == plain == [1.0, 1.0]
assert foreach[0] == 1.0 and abs(foreach[1] - (1 + 0.9 * 2.71)) < 0.01
assert torch.allclose(loop_weights, foreach_weights)
print("weights of foreach=True and False: equal")

names = ["ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam",
         "RAdam", "RMSprop", "Rprop", "SGD"]
settings = [{}, {"weight_decay": 0.1}, {"maximize": True}, {"amsgrad": True}, {"momentum": 0.9},
            {"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}]
tried, changing = set(), set()
for name in names:
    for setting in settings:
        for how in ({"foreach": False}, {"foreach": True}, {"fused": True}, {}):
            parameter = torch.nn.Parameter(torch.ones(4, 4))
            try:
                optimizer = getattr(torch.optim, name)([parameter], lr=0.01, **setting, **how)
            except TypeError:  # has no such setting
                continue
            for _ in range(3):
                parameter.grad = torch.eye(4) + 1
                try:
                    optimizer.step()
                except RuntimeError:  # or refuses it only now
                    break
                tried.add(name)
                if not torch.equal(parameter.grad, torch.eye(4) + 1):
                    changing.add((name, *setting, *how))
assert tried == set(names)
changing.remove(("SGD", "momentum", "nesterov", "foreach"))
print("others that change gradients:", ", ".join(map(str, sorted(changing))) or "none")
assert not changing
END
