#!/usr/bin/env bash
# Guess: an ensemble of tied GPT-2s, by stack_module_state() and functional_call(), gives the logits
# that each model gives alone.
#
# torch 2.13.0: not if the model that functional_call() gets is on "meta", as in PyTorch's
# tutorial on ensembles and its notes on moving from functorch
# (copy.deepcopy(models[0]).to("meta"), so that it takes no memory). stack_module_state() gives
# the tied matrix once, under the name that comes first, and functional_call() would put it into
# both places, as its documentation says. But to(), which keeps ties when it changes the dtype,
# makes a new parameter for each name when it goes to "meta". So wte gets the stacked weights and
# lm_head keeps its own, which has no values. And the product of a matrix on the CPU with one on
# "meta" isn't refused, as a sum of the two is: nothing is computed, and the result is a CPU
# tensor whose memory holds whatever was there before, zeros or what other tensors left. It has
# the right shape, dtype and device, and vmap() and functional_call() pass it on. So an ensemble
# of GPT-2s has random logits without an error, which may look plausible. With a copy that stays
# on the CPU, or with both names in the dictionary, each model's logits are right, and untied
# models are right with "meta", too.
#
# Seen (3 small models with random weights; which of them have their own logits; the logits of the
# wrong ones vary from run to run):
#   copy on the CPU, tied: right right right
#   copy on meta, tied: wrong wrong wrong (a tensor on cpu)
#   copy on meta, tied, without vmap: wrong wrong wrong (a tensor on cpu)
#   copy on meta, both names given: right right right
#   copy on meta, untied: right right right
#   tied after to(float64), to(meta): True False
#   CPU @ meta: a tensor on cpu; CPU + meta: refused

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

cd "$folder"
venv/bin/python - <<'END'
import copy

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F


class Model(nn.Module):
    """GPT-2's embedding, one block's MLP, the last layer norm and the output layer."""

    def __init__(self, tied):
        super().__init__()
        self.wte = nn.Embedding(60, 16)
        self.c_fc, self.c_proj = nn.Linear(16, 64), nn.Linear(64, 16)
        self.ln_f = nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, 60, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens)
        return self.lm_head(self.ln_f(x + self.c_proj(F.gelu(self.c_fc(x)))))


torch.manual_seed(0)
torch.set_num_threads(1)
tokens = torch.randint(60, (2, 9))


def ensemble(name, tied, device, expected, mapped=True, both=False):
    models = [Model(tied) for _ in range(3)]
    own = [model(tokens) for model in models]
    params, buffers = stack_module_state(models)
    assert ("lm_head.weight" in params) is not tied
    if both:
        params["lm_head.weight"] = params["wte.weight"]
    base = copy.deepcopy(models[0]).to(device)

    def call(params, buffers):
        return functional_call(base, (params, buffers), (tokens,))

    if mapped:
        logits = vmap(call)(params, buffers)
    else:
        logits = [call({key: value[i] for key, value in params.items()}, {}) for i in range(3)]
    right = [torch.allclose(a, b, atol=1e-4) for a, b in zip(logits, own)]
    where = "" if all(right) else f" (a tensor on {logits[0].device})"
    print(f"{name}:", *("right" if one else "wrong" for one in right), end=where + "\n")
    assert right == [expected] * 3
    assert logits[0].device.type == "cpu" and logits[0].shape == own[0].shape


ensemble("copy on the CPU, tied", True, "cpu", True)
ensemble("copy on meta, tied", True, "meta", False)
ensemble("copy on meta, tied, without vmap", True, "meta", False, mapped=False)
ensemble("copy on meta, both names given", True, "meta", True, both=True)
ensemble("copy on meta, untied", False, "meta", True)

ties = []
for target in (torch.float64, "meta"):
    model = Model(True).to(target)
    ties.append(model.lm_head.weight is model.wte.weight)
print("tied after to(float64), to(meta):", *ties)
assert ties == [True, False]

a, b = torch.ones(4, 4), torch.ones(4, 4, device="meta")
product = a @ b
try:
    total = a + b
except RuntimeError:
    total = None
print(f"CPU @ meta: a tensor on {product.device}; CPU + meta:",
      "refused" if total is None else f"a tensor on {total.device}")
assert product.device.type == "cpu" and total is None
END
