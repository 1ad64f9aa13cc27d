#!/usr/bin/env bash
# Guess: pytorch_optimizer's AdamMini, which is given the model and its number
# of heads, divides the matrices of a GPT-2 as Adam-mini's paper does: a second
# moment for each head of query and key, and no weight decay of LayerNorms.
#
# Versions: torch 2.13.0, pytorch_optimizer 4.1.0.
#
# Seen: it goes by the names of Llama's parameters, without a word for others.
# GPT-2's c_attn, which holds query, key and value of all heads, has a single
# second moment, where query and key under Llama's names have 12 each; ln_1 and
# ln_2 are decayed, ln_f is not. (The package of the paper's authors knows no
# c_attn, either, but says so when it is made.)
#
#   Llama's names: q_proj 12, k_proj 12, v_proj 1 second moments
#   GPT-2's names: c_attn 1 second moment
#   decayed: ln_1, ln_2, not decayed: ln_f
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
    'torch==2.13.0' 'numpy==2.4.6' 'pytorch_optimizer==4.1.0'

"$work/venv/bin/python" - 2>"$work/log" <<'PY' || {
import torch
from pytorch_optimizer import AdamMini
from torch import nn

WIDTH = 768
HEADS = 12
torch.manual_seed(0)


class Model(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attn = nn.ModuleDict(attention)
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, x):
        outputs = [layer(self.ln_1(x)) for layer in self.attn.values()]
        return self.ln_f(self.ln_2(torch.cat(outputs, dim=-1)[..., :WIDTH]))


def linear(n):
    return nn.Linear(WIDTH, n, bias=False)


def second_moments(model):
    """Return {name: numbers of its second moment}, and {name: weight decay}."""
    optimizer = AdamMini(model, lr=1e-3, weight_decay=0.1,
                         num_embeds=WIDTH, num_heads=HEADS)
    model(torch.randn(4, WIDTH)).square().sum().backward()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    numbers = {}
    decays = {}
    for group in optimizer.param_groups:
        state = optimizer.state[group["params"][0]]
        kept = [v for key, v in state.items() if key.startswith("v")]
        numbers[group["name"]] = sum(v.numel() for v in kept)
        decays[group["name"]] = group["weight_decay"]
    return numbers, decays


llama, _ = second_moments(Model({f"{x}_proj": linear(WIDTH) for x in "qkv"}))
q, k, v = [llama[f"attn.{x}_proj.weight"] for x in "qkv"]
print(f"Llama's names: q_proj {q}, k_proj {k}, v_proj {v} second moments")
gpt2, decays = second_moments(Model({"c_attn": linear(3 * WIDTH)}))
fused = gpt2["attn.c_attn.weight"]
print(f"GPT-2's names: c_attn {fused} second moment")
norms = ["ln_1", "ln_2", "ln_f"]
decayed = [name for name in norms if decays[f"{name}.weight"] > 0]
others = [name for name in norms if name not in decayed]
print(f"decayed: {', '.join(decayed)}, not decayed: {', '.join(others)}")

assert (q, k, fused) == (12, 12, 1)
assert decayed == ["ln_1", "ln_2"]
PY
    cat "$work/log" >&2
    exit 1
}
