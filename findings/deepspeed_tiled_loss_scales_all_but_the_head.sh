#!/usr/bin/env bash
# Guess: DeepSpeed's TiledFusedLogitsLoss computes the loss of a long text in pieces, to save the
# memory for all logits at once, and is otherwise like the same loss in one piece: the gradients of
# all weights are equal, also when the loss is multiplied by a number before backward().
#
# deepspeed 0.19.8, torch 2.13.0: multiplied is the gradient of all weights but those of the head,
# the function's own. It runs backward() on each piece in its forward and puts the head's gradient
# where it belongs at once, as if the loss came last; what comes back later, a factor other than 1,
# is put on the gradient of the hidden states alone. A factor is nothing unusual: the engine itself
# divides the loss by gradient_accumulation_steps, so with 4 of them the head learns four times as
# fast as the rest (and gradient_clipping, which sees a larger norm, then slows down everything).
# With the scale of a GradScaler, as for float16, the head learns nothing. The loss is right, and
# nothing is said about it. A loss that is only looked at leaves a gradient in the head, too,
# without any backward(). sequence_tiled_compute(), which computes all twice, has none of that.
#
# Seen (a model with an embedding, a layer and a head; length of each weight's gradient, compared to
# that of the loss in one piece: embedding, layer, head):
#   loss: fused 1.00 1.00 1.00, tiled compute 1.00 1.00 1.00
#   loss / 4: fused 1.00 1.00 4.00, tiled compute 1.00 1.00 1.00
#   loss * 1024: fused 1.00 1.00 0.00, tiled compute 1.00 1.00 1.00
#   head's gradient without backward(): fused 0.43, tiled compute none
# The same of the step that an engine takes with SGD:
#   1 micro batch: fused 1.00 1.00 1.00, tiled compute 1.00 1.00 1.00
#   4 micro batches: fused 1.00 1.00 4.00, tiled compute 1.00 1.00 1.00
#   4 micro batches, clipped at the norm in one piece: fused 0.28 0.28 1.10,
#       tiled compute 1.00 1.00 1.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'setuptools==84.2.1' 'wheel==0.46.3'
DS_BUILD_OPS=0 "$folder/venv/bin/pip" install --quiet --no-compile --no-build-isolation \
    'deepspeed==0.19.8'
cd "$folder"

export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu RANK=0 LOCAL_RANK=0 WORLD_SIZE=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import copy

import deepspeed
import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import (TiledFusedLogitsLoss,
                                                            sequence_tiled_compute)
from torch import nn
from torch.nn.functional import cross_entropy

VOCABULARY = 40
KINDS = {"fused": "fused", "tiled": "tiled compute"}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.layer = nn.Linear(16, 16, bias=False)
        self.head = nn.Linear(16, VOCABULARY, bias=False)

    def forward(self, tokens, targets, kind):
        def loss(_, hidden, targets):
            return cross_entropy(self.head(hidden).flatten(0, -2), targets.flatten())

        hidden = self.embedding(tokens)
        hidden = hidden + self.layer(hidden).tanh()
        if kind == "fused":
            return TiledFusedLogitsLoss.apply(loss, self, hidden, targets, None, 4,
                                              [self.head.weight], "mean")
        if kind == "tiled":
            return sequence_tiled_compute(
                loss, tokens.shape[1], 4, {"hidden": hidden, "targets": targets}, {"_": self},
                "hidden", [self.head.weight], 0, "mean")
        return loss(self, hidden, targets)


torch.manual_seed(0)
original = Model()
tokens, targets = torch.randint(VOCABULARY, (2, 8, 16))


def gradients(kind, factor):
    model = copy.deepcopy(original)
    loss = model(tokens, targets, kind)
    (loss * factor).backward()
    return loss.item(), [weight.grad for weight in model.parameters()]


def step(kind, parts, clipping):
    model = copy.deepcopy(original)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        config={"train_micro_batch_size_per_gpu": 8 // parts, "gradient_clipping": clipping,
                "gradient_accumulation_steps": parts})
    for part in zip(tokens.chunk(parts), targets.chunk(parts)):
        engine.backward(engine(*part, kind))
        engine.step()
    return [old - new for old, new in zip(original.parameters(), model.parameters())]


def compare(name, results, plain, fused):
    """Print the lengths of vectors, compared to those of the plain ones; check their direction."""
    text = []
    for kind, vectors in results.items():
        ratios = [vector.norm() / other.norm() for vector, other in zip(vectors, plain)]
        text.append(KINDS[kind] + "".join(f" {ratio:.2f}" for ratio in ratios))
        for ratio, vector, other in zip(ratios, vectors, plain):
            torch.testing.assert_close(vector, other * ratio, rtol=1e-3, atol=1e-5)
        wanted = torch.tensor(fused if kind == "fused" else [1, 1, 1], dtype=torch.float32)
        torch.testing.assert_close(torch.stack(ratios), wanted, rtol=0, atol=0.01)
    print(f"# {name}: {', '.join(text)}")


for name, factor in (("loss", 1), ("loss / 4", 1 / 4), ("loss * 1024", 1024)):
    loss, plain = gradients("plain", factor)
    results = {kind: gradients(kind, factor) for kind in KINDS}
    assert all(abs(other - loss) < 1e-5 for other, _ in results.values())
    compare(name, {kind: vectors for kind, (_, vectors) in results.items()}, plain,
            [1, 1, 1 / factor])
left = []
for kind in KINDS:
    model = copy.deepcopy(original)
    model(tokens, targets, kind)
    left.append(model.head.weight.grad)
print(f"# head's gradient without backward(): fused {left[0].norm():.2f}, tiled compute",
      "none" if left[1] is None else "some")
torch.testing.assert_close(left[0], gradients("plain", 1)[1][2])
assert left[1] is None

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0,
                                     world_size=1)
plain = gradients("plain", 1)[1]
norm, wrong = (torch.stack([vector.norm() for vector in (*plain[:2], plain[2] * factor)]).norm()
               for factor in (1, 4))
for name, parts, clipping, fused in (
        ("1 micro batch", 1, 0.0, [1, 1, 1]), ("4 micro batches", 4, 0.0, [1, 1, 4]),
        ("4 micro batches, clipped at the norm in one piece", 4, norm.item(),
         [norm / wrong, norm / wrong, 4 * norm / wrong])):
    compare(name, {kind: step(kind, parts, clipping) for kind in KINDS}, plain, fused)
END
sed -n 's/^# //p' "$folder/out"
