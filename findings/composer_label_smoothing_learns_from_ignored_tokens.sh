#!/usr/bin/env bash
# Guess: Composer's LabelSmoothing leaves tokens of label -100 alone: they're ignored "in conversion
# to one-hot labels", as it warns, and soft_cross_entropy, Composer's loss for smoothed labels, says
# that it weighs the loss anew for ignored examples. So the gradient is that of PyTorch's
# cross_entropy with label_smoothing, which ignores them, too.
#
# composer (mosaicml) 0.32.1, torch 2.13.0, transformers 5.24.0: ignored tokens are learned from,
# and weaken the others. An ignored token becomes a label of zeros, but then smoothing adds its part
# to it, as to any other: 0.1 / vocabulary size for each token of the vocabulary. So the model is
# trained to be unsure at padding and at the tokens of a prompt. The loss is divided by the sum of
# all labels, in which each ignored token counts 0.1 now: with 14 of 16 tokens ignored, that's 1.7
# times what it should be. The loss in the log looks much as usual. The pull request that introduced
# it (763) wanted labels of zeros to be ignored as by ignore_index. Without ignored tokens, or with
# label_smoothing of PyTorch's cross_entropy, it's right.
#
# Seen (a small GPT-2 that has learned to count, and one step of SGD for another task by Composer's
# Trainer, texts of 16 tokens; loss in the log, in brackets by hand; length of the step by that by
# hand; cosine to it; the part of the gradient by the logits that is at ignored tokens):
#   0 of 16 tokens ignored: loss 8.72 (8.72), length 1.00, cosine 1.000, ignored 0 %
#   4 of 16 tokens ignored: loss 8.70 (8.71), length 0.97, cosine 1.000, ignored 4 %
#   14 of 16 tokens ignored: loss 8.52 (8.71), length 0.65, cosine 0.980, ignored 19 %

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet --no-compile"
$pip --no-deps 'mosaicml==0.32.1' 'torchvision==0.28.0' 'torch-optimizer==0.3.0' \
    'pytorch-ranger==0.1.1'
$pip 'torch==2.13.0' 'numpy==2.2.6'
$pip 'torch==2.13.0' 'numpy==2.2.6' 'torchmetrics==1.7.4' 'mosaicml-cli==0.7.5' 'pyyaml==6.0.4' \
    'py-cpuinfo==9.0.0' 'psutil==7.2.2' 'coolname==5.0.0' 'tabulate==0.9.0' 'backoff==2.2.1' \
    'importlib-metadata==10.2.0' 'pillow==13.0.0' 'requests==2.34.2' 'tqdm==4.70.1' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 2>/dev/null

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import copy

import torch

if torch.version.cuda is None:  # PyPI's torchvision is built for CUDA; composer imports it
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")

from composer import Trainer
from composer.algorithms import LabelSmoothing
from composer.loggers import InMemoryLogger
from composer.loss import soft_cross_entropy
from composer.models import ComposerModel
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel


class Model(ComposerModel):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        logits = self.model(batch[0]).logits.transpose(1, 2)
        logits.register_hook(lambda gradient: kept.update(gradient=gradient))
        return logits

    def loss(self, outputs, batch):
        return soft_cross_entropy(outputs, batch[1])


torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2,
                                  bos_token_id=0, eos_token_id=0, resid_pdrop=0, embd_pdrop=0,
                                  attn_pdrop=0))
ids = (torch.arange(50)[:, None] + torch.arange(17)) % 50
optimizer = torch.optim.AdamW(gpt2.parameters(), lr=3e-3)
for _ in range(150):  # learn to count, as a model that is fine-tuned has learned its language
    optimizer.zero_grad()
    F.cross_entropy(gpt2(ids[:, :-1]).logits.transpose(1, 2), ids[:, 1:]).backward()
    optimizer.step()
gpt2.zero_grad()
start = torch.nn.utils.parameters_to_vector(gpt2.parameters()).detach()
kept, results = {}, []
for ignored in (0, 4, 14):
    labels = (ids[:, 1:] + 5) % 50  # another task
    labels[:, :ignored] = -100  # a prompt
    model = copy.deepcopy(gpt2)
    hand = F.cross_entropy(model(ids[:, :-1]).logits.transpose(1, 2), labels, label_smoothing=0.1)
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(
        hand, list(model.parameters()))])
    log = InMemoryLogger()
    trainer = Trainer(
        model=Model(model), max_duration="1ba", algorithms=[LabelSmoothing(0.1)], loggers=[log],
        train_dataloader=torch.utils.data.DataLoader(list(zip(ids[:, :-1], labels)), batch_size=50),
        optimizers=torch.optim.SGD(model.parameters(), lr=1.0), device="cpu", progress_bar=False)
    trainer.fit()
    step = start - torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    squares = kept["gradient"].square().sum((0, 1))
    loss = float(log.data["loss/train/total"][0][1])
    part = (squares[:ignored].sum() / squares.sum()).sqrt().item()
    results.append((loss, hand.item(), (step.norm() / expected.norm()).item(),
                    F.cosine_similarity(step, expected, dim=0).item(), part))
    print("= {} of 16 tokens ignored: loss {:.2f} ({:.2f}), length {:.2f}, cosine {:.3f}, "
          "ignored {:.0f} %".format(ignored, *results[-1][:4], 100 * part))
    trainer.close()
assert abs(results[0][2] - 1) < 1e-3 and results[0][3] > 0.9999 and results[0][4] == 0
assert results[2][2] < 0.7 and results[2][3] < 0.99 and results[2][4] > 0.05
END
sed -n 's/^= //p' "$folder/out"
