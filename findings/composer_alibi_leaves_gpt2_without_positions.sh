#!/bin/bash
# Guess: apply_alibi of MosaicML's composer (and Alibi, the algorithm for its Trainer, which calls
# it) gives a GPT-2 of transformers ALiBi, for any version of transformers that composer asks for:
# the position embeddings go, and each head adds to its scores a bias that falls with the distance.
# Where it can't, it says so ("ALiBi had no effect on the model!").
#
# mosaicml 0.32.1 with transformers 4.53.3, the newest that it allows (< 4.54): the position
# embeddings go, and nothing comes in their place. composer replaces the method _attn of GPT-2's
# attention by one that adds the bias. Since 4.48, transformers has no such method and calls a
# function, so the replacement stays in the model and is never called. What is left is a GPT-2
# without any position; the causal mask alone says something about order. No warning: composer
# counts the modules that it changed, and those are as many as ever. The biases are there, as a
# buffer of each layer, and longer texts are accepted. In 4.47.1 it is right with
# attn_implementation="eager" and likewise without ALiBi with "sdpa", the default.
# (composer asks for torch < 2.7.1. With 2.7.0 and 4.53.3 it's the same; here it runs with 2.13.0,
# since 2.7.0 takes 5 GB, most of it for CUDA.)
#
# Seen (a GPT-2 with random weights, largest difference of its logits after apply_alibi from those
# of a forward pass written here, with ALiBi and with no positions at all):
#   transformers 4.47.1, eager: from ALiBi 0.0000, from no positions 0.4506; 3 changed, no warning
#   transformers 4.47.1, sdpa: from ALiBi 0.4506, from no positions 0.0000; 3 changed, no warning
#   transformers 4.53.3, eager: from ALiBi 0.4506, from no positions 0.0000; 3 changed, no warning
#   transformers 4.53.3, sdpa: from ALiBi 0.4506, from no positions 0.0000; 3 changed, no warning

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet --no-compile"
$pip --no-deps 'mosaicml==0.32.1' 'torchvision==0.28.0' 'torch-optimizer==0.3.0' \
    'pytorch-ranger==0.1.1'
$pip 'torch==2.13.0' 'numpy==2.2.6' 'torchmetrics==1.7.4' 'mosaicml-cli==0.7.5' 'pyyaml==6.0.4' \
    'py-cpuinfo==9.0.0' 'psutil==7.2.2' 'coolname==5.0.0' 'tabulate==0.9.0' 'backoff==2.2.1' \
    'importlib-metadata==10.2.0' 'pillow==13.0.0' \
    'requests==2.34.2' 'tqdm==4.70.1' 2>/dev/null

cat >"$folder/alibi.py" <<'PY'
import logging

import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA; composer imports it
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")

import transformers
from composer.algorithms.alibi import apply_alibi
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

messages = []
handler = logging.Handler(logging.INFO)
handler.emit = lambda record: messages.append(record)
logging.getLogger("composer").addHandler(handler)
logging.getLogger("composer").setLevel(logging.INFO)


def forward(w, tokens, slopes):
    """The logits of a GPT-2 without position embeddings, with slopes of ALiBi."""
    def linear(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"])

    x = w["transformer.wte.weight"][tokens]
    places = torch.arange(tokens.shape[1])
    distances = places[:, None] - places
    for block in ("transformer.h.0.", "transformer.h.1."):
        q, k, v = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in
                   linear(norm(x, block + "ln_1"), block + "attn.c_attn").chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / 4 - slopes[:, None, None] * distances
        scores = scores.masked_fill(distances < 0, -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(y, block + "attn.c_proj")
        y = F.gelu(linear(norm(x, block + "ln_2"), block + "mlp.c_fc"), approximate="tanh")
        x = x + linear(y, block + "mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


torch.manual_seed(0)
torch.set_num_threads(1)
version = transformers.__version__
tokens = torch.randint(100, (2, 12))
for attention in ("eager", "sdpa"):
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=100, n_positions=64, bos_token_id=0,
        eos_token_id=0, initializer_range=0.2, attn_implementation=attention)).eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    messages.clear()
    apply_alibi(model, max_sequence_length=128)
    changed = [m.getMessage().split()[0] for m in messages if "instances" in m.getMessage()]
    assert not [m for m in messages if m.levelno >= logging.WARNING]
    with torch.no_grad():
        logits = model(tokens).logits
        alibi = forward(weights, tokens, torch.tensor([2.0 ** -4, 2.0 ** -8]))
        none = forward(weights, tokens, torch.zeros(2))
    a, b = ((logits - other).abs().max().item() for other in (alibi, none))
    print(f"transformers {version}, {attention}: from ALiBi {a:.4f}, from no positions {b:.4f}; "
          f"{''.join(changed)} changed, no warning")
    right = (version, attention) == ("4.47.1", "eager")
    assert (a < 1e-4 and b > 0.1) if right else (a > 0.1 and b < 1e-4)
PY

cd "$folder"
for version in 4.47.1 4.53.3; do
    $pip "transformers==$version"
    venv/bin/python alibi.py 2>log || { cat log; exit 1; }
done
