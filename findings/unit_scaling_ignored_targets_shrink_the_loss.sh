#!/usr/bin/env bash
# Guess: eval() turns off every dropout of unit-scaling's TransformerDecoder (and of its parts
# TransformerLayer and MHSA), as it does for PyTorch's own layers: the loss on a validation text is
# the same at each call, the one without dropout. U.cross_entropy, "unit-scaled" but otherwise
# F.cross_entropy (its documentation is PyTorch's), gives the mean over targets that aren't -100.
#
# unit-scaling 0.3.5, torch 2.13.0: neither is true. (1) The residual dropout is off, but that of
# the attention weights stays on: MHSA hands its dropout_p to scaled_dot_product_attention, which
# knows nothing of eval(), without asking whether it's in training. So logits and validation losses
# are random. Setting dropout_p of the MHSA layers to 0 helps. (2) The mean divides by the number of
# all targets. With padding or a masked prompt the loss is too small by the share of the ignored
# ones: with 6 of 8 ignored, a quarter. ignore_index isn't among the arguments that it lists as
# unsupported, and those targets are left out of the sum. Without any it's PyTorch's number.
#
# Seen (a small model with random weights in evaluation mode; losses of the same text):
#   dropout_p=0.2, eval(): 8 losses of 8 different, logits differ by 0.225
#   MHSA dropout_p set to 0: 1 losses of 8 different, logits differ by 0.000
#   cross_entropy, 0 of 8 ignored: 4.599, PyTorch 4.599
#   cross_entropy, 6 of 8 ignored: 1.175, PyTorch 4.702

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'unit-scaling==0.3.5'

cd "$folder"
venv/bin/python - <<'END'
import torch
import unit_scaling
import unit_scaling.functional as U
from torch.nn import functional as F

torch.set_num_threads(1)
torch.manual_seed(0)
model = unit_scaling.TransformerDecoder(
    hidden_size=64, vocab_size=50, layers=2, heads=4, dropout_p=0.2).eval()
text = torch.randint(50, (2, 12))


@torch.no_grad()
def measure(name):
    """Print and return how many of 8 losses differ, and by how much two calls' logits do."""
    losses = {model.loss(text).item() for _ in range(8)}
    difference = (model(text) - model(text)).abs().max().item()
    print(f"{name}: {len(losses)} losses of 8 different, logits differ by {difference:.3f}")
    return len(losses), difference


assert not any(module.training for module in model.modules())
count, difference = measure("dropout_p=0.2, eval()")
assert count == 8 and difference > 0.05
for module in model.modules():
    if isinstance(module, unit_scaling.MHSA):
        module.dropout_p = 0.0
assert measure("MHSA dropout_p set to 0") == (1, 0.0)

torch.manual_seed(1)
logits, targets = torch.randn(8, 50), torch.randint(50, (8,))
for ignored in (0, 6):
    targets[:ignored] = -100
    loss = U.cross_entropy(logits, targets).item()
    module_loss = unit_scaling.CrossEntropyLoss()(logits, targets).item()
    right = F.cross_entropy(logits, targets).item()
    print(f"cross_entropy, {ignored} of 8 ignored: {loss:.3f}, PyTorch {right:.3f}")
    assert abs(loss - right * (8 - ignored) / 8) < 1e-4 and loss == module_loss
END
