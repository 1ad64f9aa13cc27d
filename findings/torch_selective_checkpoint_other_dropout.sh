#!/usr/bin/env bash
# Guess: selective checkpointing (create_selective_checkpoint_contexts) with a policy that saves one
# random op (dropout) of a block and recomputes a later dropout: gradients equal those without
# checkpointing.
#
# torch 2.13.0: they don't. checkpoint() puts the random state back to where it was before the
# block (preserve_rng_state, on unless told otherwise), and a block that is recomputed whole draws
# its masks again. A saved operation isn't run again: its result is taken from the cache, and so it
# draws nothing. Every random operation that comes after it in the block then draws the numbers that
# the saved one had drawn, and the gradients are those of other dropout masks than the loss. To save
# attention, the costly part, and to recompute the rest is what such policies are made for, and
# GPT-2 has dropout in its attention and twice behind it. The loss is exactly right, the shapes are
# as they were, so checkpoint()'s own check finds nothing, and nothing warns; the documentation says
# that dropout is taken care of. Policies that save matrix products only, or all random operations,
# or none, are right, and so is attention without dropout.
#
# In this script attention is a registered operation of its own, as in packages with a kernel for
# it, since on a CPU torch's scaled_dot_product_attention() falls apart into smaller operations if
# it has dropout. (By the source the same holds for it on a GPU; that was not run.)
#
# Seen (a 2-layer GPT-2 with random weights, dropout 0.1; difference of the loss from that without
# checkpointing, relative error of the gradients of the first layer's matrix of queries, keys and
# values and output matrix of the MLP, and of the second layer's):
#   all recomputed: loss 0.0, errors 0.00 0.00 0.00 0.00
#   matrix products saved: loss 0.0, errors 0.00 0.00 0.00 0.00
#   attention saved: loss 0.0, errors 0.61 0.39 0.52 0.32
#   attention saved, it has no dropout: loss 0.0, errors 0.00 0.00 0.00 0.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

cd "$folder"
venv/bin/python - <<'END'
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

torch.set_num_threads(1)
DROPOUT = 0.1
HEADS = 2


@torch.library.custom_op("small::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
              dropout: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Causal attention; also gives back the weights and the mask of the dropout, for backward."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    if dropout:
        kept = (torch.rand_like(weights) >= dropout) / (1 - dropout)
    else:
        kept = torch.ones_like(weights)
    return (weights * kept) @ v, weights, kept


def setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output[1:])


def backward(ctx, grad, *_):
    q, k, v, weights, kept = ctx.saved_tensors
    of_weights = grad @ v.transpose(-1, -2) * kept
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
    of_scores = of_scores / q.shape[-1] ** 0.5
    of_v = (weights * kept).transpose(-1, -2) @ grad
    return of_scores @ k, of_scores.transpose(-1, -2) @ q, of_v, None


attention.register_autograd(backward, setup_context=setup)


class Block(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.dropout = dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = attention(*qkv, self.dropout)[0].transpose(1, 2).reshape(x.shape)
        x = x + F.dropout(self.c_proj(y), DROPOUT)
        return x + F.dropout(self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)))), DROPOUT)


def train(saved, dropout=DROPOUT):
    """Loss and gradients of one batch; what is saved is None (no checkpointing) or a list."""
    torch.manual_seed(0)
    wte = nn.Embedding(50, 32)
    blocks = nn.ModuleList([Block(32, dropout) for _ in range(2)])
    tokens = torch.randint(50, (4, 17))
    x = wte(tokens[:, :-1])
    for block in blocks:
        if saved is None:
            x = block(x)
        elif not saved:
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = checkpoint(block, x, use_reentrant=False,
                           context_fn=partial(create_selective_checkpoint_contexts, saved))
    loss = F.cross_entropy((x @ wte.weight.T).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    matrices = [m.weight.grad for b in blocks for m in (b.c_attn, b.mlp_proj)]
    return loss.item(), matrices


aten = torch.ops.aten
attention_only = [torch.ops.small.attention.default]
for name, saved, dropout, right in (
        ("all recomputed", [], DROPOUT, True),
        ("matrix products saved", [aten.mm.default, aten.addmm.default], DROPOUT, True),
        ("attention saved", attention_only, DROPOUT, False),
        ("attention saved, it has no dropout", attention_only, 0.0, True)):
    plain, reference = train(None, dropout)
    loss, gradients = train(saved, dropout)
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(gradients, reference)]
    print(f"{name}: loss {abs(loss - plain)}, errors", *(f"{error:.2f}" for error in errors))
    assert loss == plain
    assert max(errors) < 1e-5 if right else min(errors) > 0.05
END
