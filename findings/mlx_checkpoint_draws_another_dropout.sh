#!/usr/bin/env bash
# Guess: with MLX's mx.checkpoint and dropout, the backward pass has the forward pass's mask.
#
# mlx 0.32.4 (mlx-cpu), mlx-lm 0.32.2: it isn't. For the backward pass a checkpointed function is
# called again, and what is drawn in it comes from mx.random.state as that is by then. Nothing
# remembers where it stood in the forward pass, as PyTorch's checkpoint() does unless told otherwise
# and JAX does by its keys. So the loss is that of one dropout mask and the gradient of a block that
# of another: no gradient of this loss or of any other. In GPT-2, whose dropout stands at the end of
# each branch, weights get gradients through elements that were 0 in the loss and none through
# others that weren't. The loss is right, the gradients have the usual size, nothing warns, and
# neither mx.checkpoint's documentation nor nn.utils.checkpoint's mentions random numbers.
# mlx-lm's grad_checkpoint(), which its LoRA training uses (--grad-checkpoint), is built on the same
# function, so LoRA's dropout is wrong with it. Right are a dropout of 0, and masks drawn with a key
# that was made outside the checkpointed function (nn.Dropout takes none).
#
# Seen (two MLPs of GPT-2's kind, tied embedding, the same seed for all; the loss, and how fast it
# grows along a random direction of the blocks' weights: by differences, and by the gradient):
#   dropout 0.5: 4.2593, 1.086 and 1.086
#   dropout 0.5, nn.utils.checkpoint: 4.2593, 1.086 and 0.734
#   masks by keys, nn.utils.checkpoint: 4.2516, -0.257 and -0.256
#   no dropout, nn.utils.checkpoint: 4.2145, 0.582 and 0.583
#   dropout 0.5, mlx-lm's grad_checkpoint: 4.2593, 1.086 and 0.734
#   no dropout, mlx-lm's grad_checkpoint: 4.2145, 0.582 and 0.583

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'mlx[cpu]==0.32.4' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps 'mlx-lm==0.32.2'

cd "$folder"
venv/bin/python - <<'END'
import importlib.util
import re

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

mx.set_default_device(mx.cpu)

# mlx-lm's function alone: the package imports transformers, which isn't needed here.
source = open(importlib.util.find_spec("mlx_lm").submodule_search_locations[0]
              + "/tuner/trainer.py").read()
names = {"mx": mx}
exec(re.search(r"^def grad_checkpoint.*?(?=^\S)", source, re.M | re.S)[0], names)


class Block(nn.Module):
    """The MLP of a GPT-2 block; with a list of keys, its dropout takes its mask from them."""

    def __init__(self, p):
        super().__init__()
        self.ln = nn.LayerNorm(16)
        self.c_fc, self.c_proj = nn.Linear(16, 64), nn.Linear(64, 16)
        self.drop = nn.Dropout(p)
        self._key = None

    def __call__(self, x):
        y = self.c_proj(nn.gelu_approx(self.c_fc(self.ln(x))))
        if self._key is None:
            return x + self.drop(y)
        return x + y * mx.random.bernoulli(0.5, y.shape, self._key) / 0.5


class LikeBlock(Block):
    """A type of its own for grad_checkpoint(), which changes the type."""


class GPT(nn.Module):
    def __init__(self, p, kind=Block, wrap=lambda block: block):
        super().__init__()
        self.wte = nn.Embedding(60, 16)
        self.h = [kind(p), kind(p)]
        self._wrap = wrap

    def __call__(self, tokens):
        x = self.wte(tokens)
        for block in self.h:
            x = self._wrap(block)(x)
        return self.wte.as_linear(x)


tokens = mx.array(np.random.default_rng(0).integers(60, size=(4, 12)))


def loss_of(model):
    logits = model(tokens)
    return nn.losses.cross_entropy(logits[:, :-1], tokens[:, 1:], reduction="mean")


def slopes(name, right, p=0.5, keyed=False, **options):
    mx.random.seed(0)
    model = GPT(p, **options)
    model.wte.freeze()
    mx.eval(model.parameters())
    if keyed:
        for block, seed in zip(model.h, (1, 2)):
            block._key = mx.random.key(seed)
    weights = model.trainable_parameters()
    mx.random.seed(7)
    direction = tree_map(lambda w: mx.random.normal(w.shape), weights)
    mx.eval(direction)

    mx.random.seed(3)
    loss, gradient = nn.value_and_grad(model, loss_of)(model)
    mx.eval(loss, gradient)
    pairs = zip(tree_flatten(gradient), tree_flatten(direction))
    by_gradient = sum((g * d).sum().item() for (_, g), (_, d) in pairs)

    ends = []
    for step in (1e-3, -1e-3):
        model.update(tree_map(lambda w, d: w + step * d, weights, direction))
        mx.random.seed(3)
        ends.append(loss_of(model).item())
    by_difference = (ends[0] - ends[1]) / 2e-3
    print(f"{name}: {loss.item():.4f}, {by_difference:.3f} and {by_gradient:.3f}")
    close = abs(by_difference - by_gradient) < 0.03
    far = abs(by_difference - by_gradient) > 0.3
    assert close if right else far
    return loss.item()


plain = slopes("dropout 0.5", True)
checkpointed = slopes("dropout 0.5, nn.utils.checkpoint", False, wrap=nn.utils.checkpoint)
assert plain == checkpointed
slopes("masks by keys, nn.utils.checkpoint", True, keyed=True, wrap=nn.utils.checkpoint)
slopes("no dropout, nn.utils.checkpoint", True, p=0.0, wrap=nn.utils.checkpoint)
names["grad_checkpoint"](LikeBlock(0.5))
assert slopes("dropout 0.5, mlx-lm's grad_checkpoint", False, kind=LikeBlock) == plain
slopes("no dropout, mlx-lm's grad_checkpoint", True, p=0.0, kind=LikeBlock)
END
