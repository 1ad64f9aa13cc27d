#!/usr/bin/env bash
# Guess: torchmetrics' Perplexity, which takes logits, computes exp of the mean cross-entropy.
# It goes by log_softmax, so logits in float16 cost a little precision; one unlikely token among
# thousands costs nothing.
#
# torchmetrics 1.9.0, torch 2.13.0: it takes softmax in the dtype of the logits, looks up the
# probability of each target, and only then takes the logarithm. In float16 a probability below
# 2**-25 (17.3 nats) is 0 and its logarithm -inf. Since Perplexity adds up over all batches, one
# such token anywhere makes the perplexity of the whole evaluation infinite. The sum over a batch
# is in float16, too: above 65504 nats it is infinite without any unlikely token. In float32 the
# first happens at 104 nats. No warning; float16 is accepted on purpose, a check that refused it
# was dropped on request. exp() of cross_entropy(logits.float(), ids) is right for all.
#
# Seen (perplexity; 2,048 tokens of 50,257, each about as likely as one in 27, but for one):
#   float16, one token at 15 nats: Perplexity 27.28, by cross_entropy 27.27
#   float16, one token at 18 nats: Perplexity inf, by cross_entropy 27.31
#   float32, one token at 18 nats: Perplexity 27.31, by cross_entropy 27.31
#   float32, one token at 110 nats: Perplexity inf, by cross_entropy 28.56
#   float16, 10,240 tokens of 1,024, all equally likely: Perplexity inf, by cross_entropy 1024.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'torchmetrics==1.9.0'

"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import math

import torch
from torch.nn.functional import cross_entropy
from torchmetrics.text import Perplexity

torch.manual_seed(0)


def both(logits, ids):
    """Return the perplexity by torchmetrics and by cross_entropy, each in batches of one row."""
    metric = Perplexity()
    nats = 0.0
    for row, targets in zip(logits.split(1), ids.split(1)):
        metric.update(row, targets)
        nats += cross_entropy(row[0].float(), targets[0], reduction="sum").double().item()
    return metric.compute().item(), math.exp(nats / ids.numel())


noise = torch.randn(4, 512, 50257)
ids = torch.randint(50257, (4, 512))
# Give each target the logit that makes it cost about 3.3 nats.
others = noise.scatter(2, ids[..., None], -math.inf).logsumexp(2)
usual = others - math.log(math.exp(3.3) - 1)


def logits_with(nats):
    """Return logits where one target, in the third row, costs this many nats."""
    values = usual.clone()
    values[2, 100] = others[2, 100] - nats
    return noise.scatter(2, ids[..., None], values[..., None])


for dtype, nats, infinite in ((torch.float16, 15, False), (torch.float16, 18, True),
                              (torch.float32, 18, False), (torch.float32, 110, True)):
    found, expected = both(logits_with(nats).to(dtype), ids)
    print(f"{str(dtype)[6:]}, one token at {nats} nats: Perplexity {found:.2f}, "
          f"by cross_entropy {expected:.2f}")
    assert 25 < expected < 35
    assert found == math.inf if infinite else abs(found / expected - 1) < 0.01

logits = torch.zeros(1, 10240, 1024, dtype=torch.float16)
found, expected = both(logits, torch.randint(1024, (1, 10240)))
print(f"float16, 10,240 tokens of 1,024, all equally likely: Perplexity {found:.2f}, "
      f"by cross_entropy {expected:.2f}")
assert found == math.inf and abs(expected - 1024) < 1
END
