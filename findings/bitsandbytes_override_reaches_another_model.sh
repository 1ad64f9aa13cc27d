#!/usr/bin/env bash
# Guess: settings that GlobalOptimManager.register_module_override gives to one parameter, say a
# smaller lr for a model's embedding, count for that parameter and for no other, also if there's
# a second optimizer for a second model in the same process, or another run after the first.
#
# bitsandbytes 0.50.2, torch 2.13.0: it also counts for the parameter at the same place in every
# other optimizer of bitsandbytes. The manager, one per process, notes a setting by the number of
# the parameter's group and its number in that group, without the optimizer, and every optimizer
# looks there. So a second model's first parameter gets the first model's lr, from the first
# optimizer's first step on, in the middle of its own training too, and so does a later run, be its
# first parameter an embedding or not. A schedule has no effect on it, param_groups and state_dict()
# don't show it, and nothing is said. override_config() before register_parameters() writes to the
# same place; after it, as in its own example, the setting goes by the parameter's id and is right.
# (The Trainer of transformers registers each embedding for states of 32 bits in this way.)
#
# Seen (lr=0.01 for all, 0.0001 for the first model's embedding; how far each parameter moves with
# gradients of 1):
#   second model: 0.0100 0.0100 0.0100
#   first model: 0.0001 0.0100 0.0100
#   second model, next step: 0.0001 0.0100 0.0100
#   third model, new: 0.0001 0.0100 0.0100
#   linear layers, with Lion: 0.0001 0.0100 0.0100 0.0100
#   third model, index2config cleared: 0.0100 0.0100 0.0100
#   first model, with override_config() after register_parameters(): 0.0001 0.0100 0.0100
#   second model: 0.0100 0.0100 0.0100

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'bitsandbytes==0.50.2'

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import bitsandbytes
import torch

manager = bitsandbytes.optim.GlobalOptimManager.get_instance()


def step(name, optimizer, model):
    """Do a step with gradients of 1; print and return how far each parameter moves."""
    before = [weight.detach().clone() for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    moves = [f"{(weight - old).abs().max().item():.4f}"
             for weight, old in zip(model.parameters(), before)]
    print(f"{name}:", *moves)
    return moves


def make():
    model = torch.nn.Sequential(torch.nn.Embedding(50, 8), torch.nn.Linear(8, 50))
    return bitsandbytes.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0), model


even, small = ["0.0100"] * 3, ["0.0001", "0.0100", "0.0100"]
first, second, third = make(), make(), make()
assert step("second model", *second) == even
manager.register_module_override(first[1][0], "weight", {"lr": 0.0001})
assert step("first model", *first) == small
assert step("second model, next step", *second) == small
assert [group["lr"] for group in second[0].param_groups] == [0.01]
assert step("third model, new", *third) == small
layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
lion = bitsandbytes.optim.Lion(layers.parameters(), lr=0.01)
assert step("linear layers, with Lion", lion, layers) == [*small, "0.0100"]

manager.index2config.clear()
assert step("third model, index2config cleared", *third) == even
first = make()
manager.register_parameters(first[1].parameters())
manager.override_config(first[1][0].weight, "lr", 0.0001)
name = "first model, with override_config() after register_parameters()"
assert step(name, *first) == small
assert step("second model", *second) == even
END
