#!/usr/bin/env bash
# Guess: a GPT-2 checkpoint holds both transformer.wte.weight and
# lm_head.weight. Whether they are one matrix after loading is for
# config.tie_word_embeddings to say: true, as in GPT-2, means one.
#
# Versions: torch 2.13.0, transformers 5.24.0, safetensors 0.8.0.
#
# Seen: the values decide. Equal matrices are tied, but one element that is off by the least step of
# float32 gives a model with two, which has more parameters and would be trained as two, while its
# config still says that they are tied. (A line of the log says that both are in the checkpoint with
# different values and won't be tied.) That lasts until the vocabulary is resized: then they are
# tied after all and the head that was loaded is thrown away.
#
#   equal matrices: tied True, 424192 parameters
#   one element one step off: tied False, 744192 parameters, config True
#   another head: tied False, as in the checkpoint True
#   another head, one token added: tied True, as in the checkpoint False
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
    'torch==2.13.0' 'transformers==5.24.0' 'safetensors==0.8.0'

"$work/venv/bin/python" - "$work/model" 2>"$work/log" <<'PY' || {
import sys

import torch
from safetensors.torch import save_file
from transformers import GPT2Config
from transformers import GPT2LMHeadModel

torch.manual_seed(0)
folder = sys.argv[1]
VOCAB = 5000
config = GPT2Config(
    vocab_size=VOCAB,
    n_positions=64,
    n_embd=64,
    n_layer=2,
    n_head=4,
    bos_token_id=0,
    eos_token_id=0,
)
original = GPT2LMHeadModel(config)
original.save_pretrained(folder)
wte = original.transformer.wte.weight.detach()


def load(head):
    weights = {k: v.clone() for k, v in original.state_dict().items()}
    weights["lm_head.weight"] = head.clone()
    path = f"{folder}/model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    return GPT2LMHeadModel.from_pretrained(folder)


def tied(model):
    return model.lm_head.weight is model.transformer.wte.weight


def kept(model, head):
    return torch.equal(model.lm_head.weight[:VOCAB], head)


model = load(wte)
small = model.num_parameters()
print(f"equal matrices: tied {tied(model)}, {small} parameters")
assert tied(model)

head = wte.clone()
head[0, 0] = torch.nextafter(head[0, 0], torch.tensor(1.0))
model = load(head)
large = model.num_parameters()
says = model.config.tie_word_embeddings
print(
    f"one element one step off: tied {tied(model)}, {large} parameters, "
    f"config {says}"
)
assert not tied(model)
assert says
assert large == small + wte.numel()

head = torch.randn_like(wte)
model = load(head)
print(
    f"another head: tied {tied(model)}, "
    f"as in the checkpoint {kept(model, head)}"
)
assert not tied(model)
assert kept(model, head)

model.resize_token_embeddings(VOCAB + 1)
print(
    f"another head, one token added: tied {tied(model)}, "
    f"as in the checkpoint {kept(model, head)}"
)
assert tied(model)
assert not kept(model, head)
PY
    cat "$work/log" >&2
    exit 1
}
