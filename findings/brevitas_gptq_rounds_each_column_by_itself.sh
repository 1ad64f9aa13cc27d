#!/usr/bin/env bash
# Guess: Brevitas' gptq_mode lowers the error of a model whose weights are rounded to 4 bits, with a
# scale per output channel (Int8WeightPerChannelFloat, weight_bit_width=4), on the texts it has
# seen; the same for the asymmetric ShiftedUint8WeightPerChannelFloat.
#
# brevitas 0.13.4, torch 2.13.0: with the first it changes nothing, and with the second it makes the
# model useless. GPTQ rounds one column of weights after the other and spreads its error over the
# columns to come. Brevitas rounds the column by giving only that column to the quantizer, and these
# quantizers take the scale from what they are given: one weight per channel, which is its own
# largest and comes back as it is. So there is no error to spread. The asymmetric one gives a single
# positive weight back, too, but turns a negative one into 0: the errors to spread are as large as
# the weights. In the end all are rounded with the scales of whole channels. No warning. With a
# quantizer that stores its scale (Int8WeightPerChannelFloatMSE), and with gpfq_mode, which rounds
# the whole matrix each time, it works.
#
# Seen (a small Llama with random weights; standard deviation of the error of its logits on the
# calibration texts: rounded to the nearest, with gptq_mode, with gpfq_mode):
#   Int8WeightPerChannelFloat: 0.5811, 0.5811, 0.3080
#   ShiftedUint8WeightPerChannelFloat: 0.5230, 1.8047, 0.2677
#   Int8WeightPerChannelFloatMSE: 0.5431, 0.3155, 0.2528
#   the logits themselves: 1.26
#   error of the weights, together: 0.01163
#   error of the weights, by hand: 0.01163
#   error of the weights, one by one: 0.00000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'brevitas==0.13.4'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import brevitas.nn as qnn
import brevitas.quant as quant
import torch
from brevitas.graph.gpfq import gpfq_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.quantize import layerwise_quantize
from transformers import LlamaConfig, LlamaForCausalLM

texts = torch.randint(64, (16, 24), generator=torch.Generator().manual_seed(1))


def make(name=None):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, initializer_range=0.1, use_cache=False,
        bos_token_id=0, eos_token_id=0))
    for part, weight in model.named_parameters():
        if "norm" in part:
            weight.data.mul_(torch.rand_like(weight) + 0.5)
    if name:
        model.model = layerwise_quantize(model.model, {torch.nn.Linear: (
            qnn.QuantLinear, {"weight_quant": getattr(quant, name), "weight_bit_width": 4})})
    return model.eval()


@torch.no_grad()
def error(model):
    return (model(texts).logits - logits).std().item()


@torch.no_grad()
def improve(mode, name):
    model = make(name)
    model(texts)  # some quantizers set their scales now
    with mode(model) as running:
        for _ in range(running.num_layers):
            for start in range(0, 16, 4):
                running.model(texts[start:start + 4])
            running.update()
    return model


def weights(model):
    return torch.cat([layer.weight.flatten() for layer in model.model.modules()
                      if isinstance(layer, torch.nn.Linear)])


logits = make()(texts).logits.detach()
found = {}
for name in ("Int8WeightPerChannelFloat", "ShiftedUint8WeightPerChannelFloat",
             "Int8WeightPerChannelFloatMSE"):
    model = improve(gptq_mode, name)
    found[name] = error(make(name)), error(model), error(improve(gpfq_mode, name))
    print(name, ", ".join(f"{value:.4f}" for value in found[name]), sep=": ")
    # GPTQ leaves the rounded weights in the layers, unless it has changed nothing.
    assert torch.allclose(weights(model), weights(make()), atol=1e-6) == (
        name == "Int8WeightPerChannelFloat")
print(f"the logits themselves: {logits.std():.2f}")

# One layer: its columns, rounded together and one by one.
layer = make("Int8WeightPerChannelFloat").model.layers[0].mlp.up_proj
together = layer.quant_weight().value
alone = torch.cat([layer.quant_weight(subtensor_slice_list=[None, (column, column + 1)]).value
                   for column in range(128)], 1)
step = layer.weight.abs().amax(1, keepdim=True) / 7
by_hand = (layer.weight / step).round() * step
for name, rounded in (("together", together), ("by hand", by_hand), ("one by one", alone)):
    print(f"error of the weights, {name}: {(rounded - layer.weight).std():.5f}")
assert torch.allclose(together, by_hand, atol=1e-6)
assert torch.allclose(alone, layer.weight, atol=1e-6)
nearest, gptq, gpfq = found["Int8WeightPerChannelFloat"]
assert abs(gptq - nearest) < 1e-4 and gpfq < 0.7 * nearest
nearest, gptq, gpfq = found["ShiftedUint8WeightPerChannelFloat"]
assert gptq > 2 * nearest and gpfq < 0.7 * nearest
nearest, gptq, gpfq = found["Int8WeightPerChannelFloatMSE"]
assert gptq < 0.8 * nearest
END
