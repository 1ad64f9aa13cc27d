#!/usr/bin/env bash
# Guess: EKFACLinearOperator with fisher_type="type-2" is what "mc", its default, comes to with many
# samples, without the noise. EKFAC keeps KFAC's eigenvectors and takes for each the GGN's true size
# along it. So it has the trace of the GGN's block, and is never further from it than KFAC is.
#
# curvlinops-for-pytorch 3.0.1, torch 2.13.0: so it is as long as each text has one token. In a
# language model (all tokens' logits as rows, as EKFAC wants them) "type-2" is too large, the more
# so the more tokens a text has, and ever further from the GGN, while "mc" and KFAC of either kind
# are right. "type-2" goes back through the model once for each word of the vocabulary, from that
# word's column of the root of the loss's Hessian, for all tokens at the same time. KFAC squares
# each token's part by itself; EKFAC adds them up over a text, then squares. With labels drawn at
# random the products of two tokens cancel on average; with the columns, each of which raises its
# own word's logit, they don't. Nothing says that "type-2" wants one token per text; the setting
# num_per_example_loss_terms ("e.g., the number of tokens in a sequence") is accepted, and scales
# only. Around it: fisher_type="mc" with a larger mc_samples.
#
# Seen (the last layer of a bigram model on 8 texts; trace as a multiple of the GGN's, and distance
# from the GGN as a part of it; "by hand": columns added up over each text, then squared):
#   1 tokens, KFAC mc: 1.00, 0.25
#   1 tokens, KFAC type-2: 1.00, 0.22
#   1 tokens, EKFAC mc: 1.00, 0.20
#   1 tokens, EKFAC type-2: 1.00, 0.18
#   1 tokens, by hand: 1.00
#   3 tokens, KFAC mc: 1.00, 0.25
#   3 tokens, KFAC type-2: 1.00, 0.23
#   3 tokens, EKFAC mc: 1.00, 0.19
#   3 tokens, EKFAC type-2: 1.55, 0.72
#   3 tokens, by hand: 1.55
#   12 tokens, KFAC mc: 1.00, 0.20
#   12 tokens, KFAC type-2: 1.00, 0.20
#   12 tokens, EKFAC mc: 1.00, 0.15
#   12 tokens, EKFAC type-2: 2.47, 1.91
#   12 tokens, by hand: 2.47

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' \
    'curvlinops-for-pytorch==3.0.1'

cat >"$folder/check.py" <<'END'
import torch
from curvlinops import EKFACLinearOperator, GGNLinearOperator, KFACLinearOperator
from torch import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
loss = nn.CrossEntropyLoss(reduction="sum")
model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 20),
                      nn.Flatten(0, 1))
weights = [model[3].weight]
texts = torch.randint(20, (8, 13))
for length in (1, 3, 12):
    x, y = texts[:, :length], texts[:, 1:length + 1].flatten()

    def matrix(kind, **options):
        return kind(model, loss, weights, [(x, y)], **options) @ torch.eye(200)

    with torch.no_grad():
        inputs = model[:3](x)
        p = model[:4](x).softmax(-1)
    inner = torch.diag_embed(p) - p[..., None] * p[..., None, :]
    ggn = torch.einsum("ntvw,nti,ntj->viwj", inner, inputs, inputs).reshape(200, 200)
    torch.testing.assert_close(matrix(GGNLinearOperator), ggn)
    columns = torch.diag_embed(p.sqrt()) - p[..., None] * p.sqrt()[..., None, :]
    torch.testing.assert_close(columns @ columns.mT, inner)
    mixed = torch.einsum("ntvc,nti->ncvi", columns, inputs).square().sum() / ggn.trace()

    seen = {}
    for name, kind in (("KFAC", KFACLinearOperator), ("EKFAC", EKFACLinearOperator)):
        for fisher_type in ("mc", "type-2"):
            samples = 300 if fisher_type == "mc" else 1
            found = matrix(kind, fisher_type=fisher_type, mc_samples=samples)
            trace = (found.trace() / ggn.trace()).item()
            distance = ((found - ggn).norm() / ggn.norm()).item()
            print(f"{length} tokens, {name} {fisher_type}: {trace:.2f}, {distance:.2f}")
            seen[name, fisher_type] = trace, distance
    print(f"{length} tokens, by hand: {mixed:.2f}")
    trace, distance = seen.pop(("EKFAC", "type-2"))
    assert abs(trace - mixed) < 1e-6 and all(
        abs(other - 1) < 0.05 and far < 0.3 for other, far in seen.values())
    assert abs(trace - 1) < 1e-6 if length == 1 else trace > 1.2 and distance > 0.3
assert trace > 2 and distance > 1.5
END
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/check.py" 2>"$folder/log" \
    || { cat "$folder/log"; exit 1; }
