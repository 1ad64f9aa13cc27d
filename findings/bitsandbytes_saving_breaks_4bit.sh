#!/usr/bin/env bash
# Guess: taking the state_dict of a layer leaves the layer as it is, and the
# saved weights are those it computed with, also with bitsandbytes' 4-bit layers on
# a CPU (Linear4bit, which transformers' load_in_4bit puts into a model).
#
# Versions: torch 2.13.0, bitsandbytes 0.50.2.
#
# Seen: once such a layer has been called on a CPU with AVX512-BF16, the next
# state_dict (save_pretrained takes one) destroys it, in the file and in memory,
# if it was quantized without compress_statistics (bnb_4bit_use_double_quant in
# transformers, which is off unless asked for).
# The first call rearranges the codes and transposes the scales, one for each
# 64 weights, in place. Before saving, the codes are put back; the scales only
# where they were quantized, too. All others are left to be read in the wrong
# order, as plausible numbers, without a word.
#
#   error of the weights, compared with float32, for GPT-2's c_fc:
#   compress_statistics=True:  0.092 as quantized, 0.092 after state_dict
#   compress_statistics=False: 0.092 as quantized, 0.632 after state_dict
#
# (On another CPU, the script does by hand what the first call does there.)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
    'torch==2.13.0' 'numpy==2.4.6' 'bitsandbytes==0.50.2'

"$work/venv/bin/python" - 2>"$work/log" <<'PY' || {
import bitsandbytes as bnb
import torch
from bitsandbytes import functional

torch.manual_seed(0)
# Rows of different sizes, as trained weights have them.
sizes = torch.linspace(0.2, 2.0, 3072)[:, None]
weight = 0.02 * sizes * torch.randn(3072, 768)
rearranges = functional.has_avx512bf16()
print("this CPU has AVX512-BF16:", rearranges)


def error(layer):
    """Return how far the layer's weights are from the original ones."""
    found = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return ((found.float() - weight).norm() / weight.norm()).item()


for compressed in (True, False):
    layer = bnb.nn.Linear4bit(768, 3072, quant_type="nf4", compute_dtype=torch.bfloat16,
                              compress_statistics=compressed)
    layer.load_state_dict({"weight": weight, "bias": torch.zeros(3072)})
    layer = layer.to("cpu").eval()
    before = error(layer)
    with torch.inference_mode():
        layer(torch.randn(1, 768))
    if not rearranges:
        packed = functional._convert_weight_packed_for_cpu(
            layer.weight.data, layer.weight.quant_state)
        layer.weight.data, layer.weight.quant_state = packed
    layer.state_dict()
    after = error(layer)
    print(f"compress_statistics={compressed}: {before:.3f} as quantized, "
          f"{after:.3f} after state_dict")
    if compressed:
        assert after < 1.1 * before
    else:
        assert after > 3 * before
PY
    cat "$work/log" >&2
    exit 1
}
