#!/bin/bash
# Guess: timm's ModelEmaV3 (and ModelEmaV2, ModelEma) keeps the average of every weight of a GPT-2
# with the decay that was given, whether or not the output layer is tied to the embedding.
#
# timm 1.0.31, transformers 5.24.0, torch 2.13.0: the tied matrix, which is nearly a third of
# GPT-2's weights, gets decay ** 2. An update goes through the values of state_dict(), where a tied
# matrix stands twice, as wte and as lm_head, and moves each of them in place towards the model: the
# one matrix moves twice. Its average looks back half as far as that of the blocks (with a decay of
# 0.9999, over 5,000 steps and not 10,000), so that the averaged model joins an embedding and
# blocks of different ages. foreach=False is the same. With exclude_buffers=True, a setting about
# something else, parameters() is gone through, which has the matrix once, and all is right. So it
# is in bfloat16, by chance: there the update is computed from copies of the weights, so that both
# moves start at the same value and the second overwrites the first. But the copies are made for
# some 4 million numbers at a time, and a matrix as large as GPT-2's is moved twice again. (The last
# two lines have matrices of 40,000 and of 4,200,000 numbers.)
#
# Seen (all weights of the averages 0, those of the model 1, decay 0.9, after 5 updates; right is
# 1 - 0.9 ** 5 = 0.4095; 1 - 0.81 ** 5 is 0.6513):
#   ModelEmaV3: embedding 0.6513, blocks 0.4095
#   ModelEmaV3, foreach=False: embedding 0.6513, blocks 0.4095
#   ModelEmaV2: embedding 0.6513, blocks 0.4095
#   ModelEma: embedding 0.6513, blocks 0.4095
#   ModelEmaV3, exclude_buffers=True: embedding 0.4095, blocks 0.4095
#   ModelEmaV3, not tied: embedding 0.4095, blocks 0.4095
#   ModelEmaV3, bfloat16, 40,000: embedding 0.4095, blocks 0.4095
#   ModelEmaV3, bfloat16, 4,200,000: embedding 0.6513, blocks 0.4095

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'timm==1.0.31' 'torchvision==0.28.0'

cd "$folder"
venv/bin/python - 2>log <<'PY' || { cat log; exit 1; }
import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA; timm imports it
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")

from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)


def average(name, kind, embedding, tied=True, dtype=torch.float32, words=1000, n_embd=40, **more):
    config = GPT2Config(n_layer=2, n_head=2, n_embd=n_embd, vocab_size=words, n_positions=32,
                        bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied)
    model = GPT2LMHeadModel(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        ema = kind(model, decay=0.9, **more)
        for parameter in model.parameters():
            parameter.fill_(1)
    for _ in range(5):
        ema.update(model)
    averaged = getattr(ema, "ema", None) or ema.module
    assert (averaged.lm_head.weight is averaged.transformer.wte.weight) is tied
    means = {key: value.double().mean().item() for key, value in averaged.named_parameters()}
    wte = means.pop("transformer.wte.weight")
    block = means["transformer.h.1.mlp.c_fc.weight"]
    print(f"{name}: embedding {wte:.4f}, blocks {block:.4f}")
    assert abs(wte - embedding) < 2e-3
    assert all(abs(mean - right) < (1e-5 if dtype == torch.float32 else 2e-2)
               for mean in means.values())


right, twice = 1 - 0.9 ** 5, 1 - 0.81 ** 5
average("ModelEmaV3", ModelEmaV3, twice)
average("ModelEmaV3, foreach=False", ModelEmaV3, twice, foreach=False)
average("ModelEmaV2", ModelEmaV2, twice)
average("ModelEma", ModelEma, twice)
average("ModelEmaV3, exclude_buffers=True", ModelEmaV3, right, exclude_buffers=True)
average("ModelEmaV3, not tied", ModelEmaV3, right, tied=False)
half = dict(dtype=torch.bfloat16)
average("ModelEmaV3, bfloat16, 40,000", ModelEmaV3, right, **half)
average("ModelEmaV3, bfloat16, 4,200,000", ModelEmaV3, twice, words=105000, **half)
PY
