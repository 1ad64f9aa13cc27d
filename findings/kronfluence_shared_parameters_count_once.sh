#!/usr/bin/env bash
# Guess: kronfluence's influence scores of a GPT whose block is run several times (a looped model)
# are right with has_shared_parameters=True: each is the product of the two texts' gradients, which
# sum over all the uses of a layer, as autograd's do. (Without that setting they may be wrong.)
#
# kronfluence 1.0.1, accelerate 1.15.0, torch 2.13.0: the self-influence scores are right, the
# pairwise scores are not. For the query all uses count, for the training text the last use in the
# forward pass alone. The hook of the pairwise scores runs first for that use,
# writes its product into the matrix of scores (it doesn't add it), and then clears the tracker's
# cache, with which it also removes the hooks of the other uses. So the more often a block is run,
# the smaller the part that counts, and the text with the largest influence is another. The scores
# of a set against itself don't have the self-influence scores on their diagonal. The setting's
# description is that it says whether there are shared parameters in the forward pass, and a message
# for modules that are met several times tells one to set it. Without it all scores are wrong.
#
# Seen (a GPT with random weights that runs one block 1, 2 or 4 times, 6 queries, 40 training texts,
# strategy "identity"; has_shared_parameters, relative errors of the pairwise and of the
# self-influence scores, of the pairwise scores if only the last use were to count for the training
# text, and for how many queries the text with the largest score is the right one):
#   1 times, False: pairs 0.000, self 0.000, pairs by last use 0.000, 6 of 6 queries
#   1 times, True: pairs 0.000, self 0.000, pairs by last use 0.000, 6 of 6 queries
#   2 times, False: pairs 0.754, self 0.752, pairs by last use 0.500, 5 of 6 queries
#   2 times, True: pairs 0.513, self 0.000, pairs by last use 0.000, 5 of 6 queries
#   4 times, False: pairs 0.940, self 0.940, pairs by last use 0.735, 4 of 6 queries
#   4 times, True: pairs 0.780, self 0.000, pairs by last use 0.000, 4 of 6 queries

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'torchvision==0.28.0' \
    'numpy==2.4.6' 'accelerate==1.15.0' 'kronfluence==1.0.1'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import copy

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.nn import functional as F

VOCAB, WIDTH, LENGTH = 30, 16, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc, self.proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        x = x + self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x))))


class Looped(nn.Module):
    """A small GPT that runs one block several times."""

    def __init__(self, times):
        super().__init__()
        self.times, self.block = times, Block()
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens, last=None):
        x = self.wte(tokens) + self.wpe.weight
        for i in range(self.times):
            block = self.block if last is None or i < self.times - 1 else last
            x = block(x)
        return self.lm_head(x)


class Texts(Task):
    def compute_train_loss(self, batch, model, sample=False):
        logits = model(batch)[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum")

    def compute_measurement(self, batch, model):
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self):
        return ["block.c_attn", "block.c_proj", "block.fc", "block.proj"]


def gradients(model, texts, last_only=False):
    """Return each text's gradient by the tracked layers, or by their last use alone."""
    last = copy.deepcopy(model.block) if last_only else model.block
    weights = [weight for name, weight in last.named_parameters() if "ln" not in name]
    rows = []
    for text in texts:
        logits = model(text[None], last)[0, :-1]
        loss = F.cross_entropy(logits, text[1:], reduction="sum")
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows)


def error(given, right):
    return ((given - right).norm() / right.norm()).item()


torch.manual_seed(1)
torch.set_num_threads(1)
train, queries = torch.randint(VOCAB, (40, LENGTH)), torch.randint(VOCAB, (6, LENGTH))
for times in (1, 2, 4):
    for shared in (False, True):
        torch.manual_seed(0)
        model = Looped(times)
        expected = gradients(model, queries) @ gradients(model, train).T
        squares = gradients(model, train).square().sum(dim=1)
        last = gradients(model, queries) @ gradients(model, train, last_only=True).T
        task = Texts()
        analyzer = Analyzer("a", prepare_model(model, task), task, cpu=True, output_dir="results",
                            disable_tqdm=True)
        analyzer.fit_all_factors("factors", train, overwrite_output_dir=True, factor_args=
                                 FactorArguments("identity", has_shared_parameters=shared))
        analyzer.compute_pairwise_scores("pairs", "factors", queries, train, 4, 8,
                                         overwrite_output_dir=True)
        pairs = analyzer.load_pairwise_scores("pairs")["all_modules"]
        analyzer.compute_self_scores("self", "factors", train, 8, overwrite_output_dir=True)
        self_scores = analyzer.load_self_scores("self")["all_modules"]
        best = (pairs.argmax(dim=1) == expected.argmax(dim=1)).sum().item()
        errors = error(pairs, expected), error(self_scores, squares), error(pairs, last)
        print(f"{times} times, {shared}: pairs {errors[0]:.3f}, self {errors[1]:.3f}, "
              f"pairs by last use {errors[2]:.3f}, {best} of 6 queries")
        assert best == 6 if times == 1 else errors[0] > 0.3
        assert (errors[0] < 1e-4) == (times == 1)
        assert (errors[1] < 1e-4) == (times == 1 or shared)
        assert (errors[2] < 1e-4) == (times == 1 or shared)
END
grep -E '^[0-9] times' "$folder/out"
