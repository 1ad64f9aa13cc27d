#!/usr/bin/env bash
# Guess: dattri's self_attribute with a loader of batch size 1, as is usual for texts, gives each
# text's influence on itself: the diagonal of what attribute gives for the same loader twice.
#
# dattri 0.3.0, torch 2.13.0: every text gets the sum of all texts' values. Each batch's values are
# added to the whole vector of scores, not to the batch's part of it; with one value per batch that
# is spread over the vector. With one batch of all texts the values are right. So a ranking by
# self-influence, for texts that are unusual or learned by heart, is a tie of all. By its source,
# the other attributors with the method of BaseInnerProductAttributor (Explicit, CG, Arnoldi, LiSSA,
# EK-FAC) do the same, and batches of other sizes end in an error.
#
# Seen (a small GPT with random weights, 4 texts, IFAttributorDataInf):
#   batch size 4: attribute 249.48 308.03 365.75 279.39
#   batch size 4: self_attribute 249.48 308.03 365.75 279.39
#   batch size 1: attribute 249.48 308.03 365.75 279.39
#   batch size 1: self_attribute 1202.65 1202.65 1202.65 1202.65

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'scipy==1.17.1' 'dattri==0.3.0'
cd "$folder"

"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import torch
from dattri.algorithm import IFAttributorDataInf
from dattri.task import AttributionTask
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

VOCAB, WIDTH, LENGTH, TEXTS = 20, 8, 6, 4


class GPT(nn.Module):
    """A GPT of one block and one head."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe.weight
        q, k, v = self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        mask = torch.full((LENGTH, LENGTH), -1e9).triu(1)
        scores = (q @ k.mT / WIDTH ** 0.5 + mask).softmax(-1)
        x = x + self.c_proj(scores @ v)
        return (x + self.proj(F.gelu(self.fc(self.ln_2(x))))) @ self.wte.weight.T


torch.manual_seed(0)
torch.set_num_threads(1)
model = GPT()
texts = torch.randint(VOCAB, (TEXTS, LENGTH))


def loss(params, data):
    tokens = data[0].reshape(-1, LENGTH)
    logits = torch.func.functional_call(model, params, (tokens,))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
for size in (TEXTS, 1):
    attributor = IFAttributorDataInf(task=task, regularization=0.1)
    loader = DataLoader(TensorDataset(texts), batch_size=size)
    attributor.cache(loader)
    right = attributor.attribute(loader, loader).diag().detach()
    given = attributor.self_attribute(loader).detach()
    for name, values in (("attribute", right), ("self_attribute", given)):
        print(f"\nbatch size {size}: {name}", *(f"{x:.2f}" for x in values.tolist()))
    assert right.max() > 1.2 * right.min()
    expected = right if size == TEXTS else right.sum().expand(TEXTS)
    assert torch.allclose(given, expected, rtol=1e-4)
END
grep -E '^batch' "$folder/out"
