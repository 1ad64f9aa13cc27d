#!/usr/bin/env bash
# Guess: torchao's WandaSparsifier prunes as in the Wanda paper, which its docstring names: it takes
# away those weights whose magnitude times the L2 norm of their input over the calibration texts is
# smallest ("the product of the input activation norm and the weight magnitude").
#
# torchao 0.18.0, torch 2.13.0: it multiplies by the square of that norm. Its observer,
# PerChannelNormObserver ("computes the L2 norm of each channel"), adds up squares, as the authors'
# code does, but nobody takes the root afterwards. So the inputs count too much and the weights too
# little: about one weight in ten is pruned instead of another, for 2:4 sparsity and for
# unstructured one, and the layer's outputs on the texts it was calibrated with are further off
# than with the paper's product. It matters where inputs differ in size, as they do in GPTs, whose
# few large features are why Wanda was made. The smallest case: of weights 1.0 and 0.4 with norms 1
# and 2 (products 1.0 and 0.8) the first is pruned. Taking the root of each observer's buffer before
# step() is a way around.
#
# Seen (weights pruned otherwise than by |weight| * norm and by |weight| * norm ** 2; mean squared
# error of the outputs relative to their size, for torchao, norm, squared norm and magnitude alone):
#   2:4: 9.2% 0.0%; 0.0280 0.0253 0.0280 0.1986
#   2:4, root taken: 0.0% 9.2%; 0.0253 0.0253 0.0280 0.1986
#   unstructured: 9.0% 0.0%; 0.0109 0.0087 0.0109 0.1237
#   unstructured, root taken: 0.0% 9.0%; 0.0087 0.0087 0.0109 0.1237
#   weights 1.0 0.4, norms 1 2: left 0.0 0.4

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torchao==0.18.0'

cd "$folder"
export OMP_NUM_THREADS=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from torchao.sparsity import PerChannelNormObserver, WandaSparsifier


def by_torchao(weight, texts, block, root=False):
    """The weight as WandaSparsifier leaves it after seeing the texts."""
    model = torch.nn.Sequential(torch.nn.Linear(*weight.shape[::-1], bias=False))
    model[0].weight.data.copy_(weight)
    sparsifier = WandaSparsifier(0.5, semi_structured_block_size=block)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    for text in texts:
        model(text)
    if root:
        for module in model.modules():
            if isinstance(module, PerChannelNormObserver):
                module.norm.sqrt_()
    sparsifier.step()
    sparsifier.squash_mask()
    return model[0].weight.detach()


def by_hand(weight, score, block):
    """The weight without the lower half of its scores, in blocks of a row or in all of it."""
    score = score.view(-1, block or score.numel())
    lower = score.argsort(1)[:, :score.shape[1] // 2]
    return weight * torch.ones_like(score).scatter(1, lower, 0).view_as(weight)


torch.manual_seed(0)
size = torch.randn(256).exp()  # of each input feature
texts = [size * torch.randn(8, 16, 256) for _ in range(4)]
tokens = torch.cat(texts).flatten(0, 1)
weight = torch.empty(256, 256).uniform_(-1, 1)
norm = tokens.norm(dim=0)


def error(pruned):
    right = tokens @ weight.T
    return ((tokens @ pruned.T - right).square().mean() / right.square().mean()).item()


def compare(name, block, root):
    pruned = by_torchao(weight, texts, block, root)
    hand = [by_hand(weight, weight.abs() * factor, block) for factor in (norm, norm ** 2, 1)]
    other = [((pruned != 0) != (hand[i] != 0)).float().mean().item() for i in (0, 1)]
    errors = [error(pruned), *map(error, hand)]
    print(f"{name}:", *(f"{share:.1%}" for share in other), end="; ")
    print(*(f"{value:.4f}" for value in errors))
    assert abs((pruned != 0).float().mean().item() - 0.5) < 1e-6
    return other, errors


for name, block in (("2:4", 4), ("unstructured", None)):
    (norms, squares), errors = compare(name, block, False)
    assert squares < 0.001 and norms > 0.07 and errors[0] > 1.1 * errors[1]
    (norms, squares), errors = compare(f"{name}, root taken", block, True)
    assert norms < 0.001 and squares > 0.07 and abs(errors[0] / errors[1] - 1) < 0.01

left = by_torchao(torch.tensor([[1.0, 0.4]]), [torch.tensor([[1.0, 2.0]])], None)
print("weights 1.0 0.4, norms 1 2: left", *(f"{value:.1f}" for value in left[0].tolist()))
assert left[0, 0] == 0 and left[0, 1] != 0
END
