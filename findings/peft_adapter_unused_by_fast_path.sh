#!/usr/bin/env bash
# Guess: a GPT of nn.TransformerEncoderLayers, whose linear1 and linear2 have LoRA adapters from
# PEFT, computes the same in train mode and in eval mode, since it has no dropout. At worst PEFT
# refuses a layer that it can't handle.
#
# peft 0.21.2, torch 2.13.0: training lowers the loss as it should, but in eval mode the adapter
# counts for nothing: the outputs are those from before the training. There the layer takes its
# fast path for inference, which hands linear1.weight and the others to one kernel and doesn't call
# linear1. PEFT's replacement for linear1 has an attribute weight, that of the layer it wraps, so
# nothing is missed. It isn't a matter of no_grad(): all weights that the layer looks at are
# frozen, so it takes the fast path with gradients enabled, too. So a validation loss stays where
# it was, whatever one tries, and the adapter seems useless, while the model after
# merge_and_unload() is the trained one, as it is after
# torch.backends.mha.set_fastpath_enabled(False). There is no warning.
#
# Seen (loss on the text it was trained on, random weights before):
#   before: 6.37
#   trained, train mode: 3.05
#   trained, eval mode, no_grad(): 6.37
#   trained, eval mode, gradients enabled: 6.37
#   trained, eval mode, fast path disabled: 3.05
#   trained, eval mode, merged: 3.05

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'peft==0.21.2'

"$folder/venv/bin/python" - <<'END'
import warnings

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(500, 64)
        self.wpe = nn.Embedding(64, 64)
        block = nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True,
                                           norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, norm=nn.LayerNorm(64),
                                            enable_nested_tensor=False)
        self.head = nn.Linear(64, 500, bias=False)

    def forward(self, tokens):
        n = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        x = self.wte(tokens) + self.wpe(torch.arange(n))
        return self.head(self.blocks(x, mask=mask, is_causal=True))


def loss(model):
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def show(name, model):
    value = loss(model).item()
    print(f"{name}: {value:.2f}")
    return value


torch.manual_seed(1)
tokens = torch.randint(500, (4, 33))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = GPT().eval()
    before = show("before", model)
    model = get_peft_model(model, LoraConfig(r=8, target_modules=["linear1", "linear2"]))

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for _ in range(100):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    trained = show("trained, train mode", model)

    model.eval()
    with torch.no_grad():
        no_grad = show("trained, eval mode, no_grad()", model)
    evaluated = show("trained, eval mode, gradients enabled", model)

    torch.backends.mha.set_fastpath_enabled(False)
    slow = show("trained, eval mode, fast path disabled", model)
    torch.backends.mha.set_fastpath_enabled(True)
    merged = show("trained, eval mode, merged", model.merge_and_unload().eval())

about = [str(w.message) for w in caught if "path" in str(w.message) or "LoRA" in str(w.message)]
assert not about, about
assert trained < before - 2
assert abs(no_grad - before) < 1e-3 and abs(evaluated - before) < 1e-3
assert abs(slow - trained) < 1e-2 and abs(merged - trained) < 1e-2
END
