#!/usr/bin/env bash
# The guess: if the mask of scaled_dot_product_attention() leaves a query no key at all, as for
# the padding on the left of a short prompt, its softmax is 0 / 0 and its output is NaN, as it is
# when attention is written out.
#
# torch 2.13.0: the output is 0, and so is that query's gradient, whether the mask is boolean or
# holds -inf. A padded batch that is free of NaN with this function isn't with the formula in its
# documentation.
#
# Seen (output of the query that may look nowhere):
#   boolean mask: [0.0, 0.0]
#   mask of -inf: [0.0, 0.0]
#   written out: [nan, nan]

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import math

import torch
import torch.nn.functional as F

torch.manual_seed(0)
q, k, v = torch.randn(3, 1, 1, 4, 2).unbind()
q.requires_grad_()
may_look = torch.ones(4, 4, dtype=torch.bool).tril()
may_look[0] = False  # the first query may look nowhere
mask = torch.zeros(4, 4).masked_fill(~may_look, -math.inf)

boolean = F.scaled_dot_product_attention(q, k, v, attn_mask=may_look)
added = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
scores = q @ k.mT / math.sqrt(2) + mask
written_out = F.softmax(scores, dim=-1) @ v

print("boolean mask:", boolean[0, 0, 0].tolist())
print("mask of -inf:", added[0, 0, 0].tolist())
print("written out:", written_out[0, 0, 0].tolist())
assert (boolean[0, 0, 0] == 0).all()
assert (added[0, 0, 0] == 0).all()
assert written_out[0, 0, 0].isnan().all()
assert torch.allclose(boolean[0, 0, 1:], written_out[0, 0, 1:], atol=1e-5)

boolean.sum().backward()
assert q.grad.isfinite().all()
assert (q.grad[0, 0, 0] == 0).all()
END
