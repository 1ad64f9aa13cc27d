#!/usr/bin/env bash
# Guess: a step of mlx's Muon takes lr * weight_decay of each weight off, as torch's Muon does,
# however large the gradient is.
#
# mlx 0.32.4 (mlx-cpu): it adds weight_decay times the weight to the gradient, before momentum and
# orthogonalisation. What comes out of these has the size of the learning rate, whatever goes in, so
# all depends on which of the two is larger. A language model's gradient is small: with a norm of 1,
# an element of GPT-2's 124 million has 0.0001. Its weights, 0.02 at first, times the default decay
# of 0.01 are 0.0002, point the same way in every step, and aren't averaged out by momentum. Then
# the larger part of Muon's full step goes into shrinking the weights: with a learning rate at which
# a decay of lr * weight_decay takes 3 % of them, they lose most of their norm. And Muon doesn't
# care how large a gradient is, which is what one relies on when a loss is a sum or a mean or is
# scaled; here a hundredth of the loss is another training. The documentation says "L2 penalty", but
# so does torch's of its Muon, which takes lr * weight_decay off the weights themselves, as do the
# original, which mlx's says to follow, Keras' and Optax's. (mlx's AdamW does so, too.) With
# weight_decay=0, and weights multiplied by 1 - lr * weight_decay before each update, mlx's steps
# are torch's.
#
# Seen (one matrix, 20 steps at 0.02 with gradients of unit size and of 0.0001: how much of its norm
# is left; then a GPT-2 of one layer, 150 steps at 0.02, learning which token follows another: norm
# of the matrices that Muon trains, and loss on other texts; the least possible is 1.78):
#   torch, decay 0.01: 1.037 and 1.037
#   mlx, decay 0.01: 1.040 and 0.594
#   mlx, decay 0: 1.041 and 1.041
#   mlx, decay 0.01 by hand: 1.037 and 1.037
#   decay 0: norm 23.5, loss 2.077
#   decay 0.01 by hand: norm 23.0, loss 2.077
#   decay 0.01, the default: norm 6.3, loss 2.159
#   decay 0, a hundredth of the loss: norm 23.5, loss 2.077
#   decay 0.01, a hundredth of the loss: norm 0.3, loss 3.172

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'mlx[cpu]==0.32.4'

cd "$folder"
venv/bin/python - <<'END'
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import torch
from mlx.utils import tree_flatten

mx.set_default_device(mx.cpu)
torch.set_num_threads(1)
rng = np.random.default_rng(0)
weight = rng.normal(size=(32, 48)).astype(np.float32) * 0.1
gradients = [rng.normal(size=weight.shape).astype(np.float32) for _ in range(20)]


def with_mlx(scale, decay, by_hand=0.0):
    holder = nn.Linear(48, 32, bias=False)
    holder.weight = mx.array(weight)
    optimizer = optim.Muon(0.02, weight_decay=decay)
    for gradient in gradients:
        holder.weight = holder.weight * (1 - 0.02 * by_hand)
        optimizer.update(holder, {"weight": mx.array(gradient * scale)})
    return np.array(holder.weight)


def with_torch(scale, decay):
    parameter = torch.nn.Parameter(torch.tensor(weight))
    optimizer = torch.optim.Muon([parameter], 0.02, weight_decay=decay)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient * scale)
        optimizer.step()
    return parameter.detach().numpy()


def left(name, right, decay=0.01, **options):
    ends = [(with_mlx if "mlx" in name else with_torch)(scale, decay, **options)
            for scale in (1, 1e-4)]
    norms = [np.linalg.norm(end) / np.linalg.norm(weight) for end in ends]
    print(f"{name}: {norms[0]:.3f} and {norms[1]:.3f}")
    assert (abs(norms[0] - norms[1]) < 0.01) if right else (norms[1] < norms[0] - 0.2)
    return ends


torch_ends = left("torch, decay 0.01", True)
left("mlx, decay 0.01", False)
left("mlx, decay 0", True, decay=0.0)
hand_ends = left("mlx, decay 0.01 by hand", True, decay=0.0, by_hand=0.01)
assert all(np.abs(a - b).max() < 0.02 for a, b in zip(torch_ends, hand_ends))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiHeadAttention(width, 2)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def __call__(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, mask)
        return x + self.c_proj(nn.gelu_approx(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(64, width), nn.Embedding(16, width)
        self.h, self.ln_f = Block(width), nn.LayerNorm(width)

    def __call__(self, tokens):
        x = self.wte(tokens) + self.wpe(mx.arange(16))
        mask = nn.MultiHeadAttention.create_additive_causal_mask(16)
        return self.wte.as_linear(self.ln_f(self.h(x, mask)))


follows = np.random.default_rng(0).dirichlet([0.05] * 64, size=64)
least = -(follows * np.log(follows + 1e-30)).sum(1).mean()


def texts(rng, number):
    tokens = rng.integers(64, size=(number, 16))
    for i in range(1, 16):
        chances = follows[tokens[:, i - 1]].cumsum(1)
        tokens[:, i] = np.minimum((chances < rng.random((number, 1))).sum(1), 63)
    return mx.array(tokens)


def loss_of(model, tokens):
    logits = model(tokens)
    return nn.losses.cross_entropy(logits[:, :-1], tokens[:, 1:], reduction="mean")


def is_hidden(path, value):
    return value.ndim == 2 and path.startswith("h.")


def train(name, decay, scale=1.0, by_hand=0.0):
    mx.random.seed(0)
    model = GPT()
    muon = optim.Muon(0.02, weight_decay=decay)
    optimizer = optim.MultiOptimizer([muon, optim.AdamW(3e-3, weight_decay=0.0)], [is_hidden])
    state = [model.state, optimizer.state]
    gradient_of = nn.value_and_grad(model, lambda model, tokens: loss_of(model, tokens) * scale)

    def step(tokens):
        _, gradients = gradient_of(model, tokens)
        optimizer.update(model, gradients)
        mx.eval(state)

    rng = np.random.default_rng(1)
    for _ in range(150):
        if by_hand:
            for path, value in tree_flatten(model.h.parameters()):
                if value.ndim == 2:
                    model.load_weights([("h." + path, value * (1 - 0.02 * by_hand))], False)
        step(texts(rng, 16))
    loss = loss_of(model, texts(np.random.default_rng(2), 128)).item()
    norm = sum(float((value ** 2).sum()) for path, value in tree_flatten(model.parameters())
               if is_hidden(path, value)) ** 0.5
    print(f"{name}: norm {norm:.1f}, loss {loss:.3f}")
    return norm, loss


assert abs(least - 1.78) < 0.01
plain = train("decay 0", 0.0)
hand = train("decay 0.01 by hand", 0.0, by_hand=0.01)
default = train("decay 0.01, the default", 0.01)
small = train("decay 0, a hundredth of the loss", 0.0, 0.01)
default_small = train("decay 0.01, a hundredth of the loss", 0.01, 0.01)
assert optim.Muon(0.02).weight_decay == 0.01
assert 0.9 < hand[0] / plain[0] < 1 and abs(hand[1] - plain[1]) < 0.05
assert default[0] < 0.5 * plain[0] and default_small[0] < 0.1 * plain[0]
assert default_small[1] > plain[1] + 0.5
assert abs(small[1] - plain[1]) < 0.05
END
