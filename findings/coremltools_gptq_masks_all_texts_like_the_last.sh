#!/usr/bin/env bash
# Guess: coremltools' LayerwiseCompressor (GPTQ), given calibration texts one by one, sends each of
# them through the model's blocks as the model itself would. So whether four padded texts come in
# one batch or in four makes no difference to the weights, but for rounding; nor does their order.
#
# coremltools 9.0, torch 2.13.0, transformers 5.24.0: its input_cacher "gpt" keeps what comes in at
# the first block for each batch, but of keyword arguments only those of the last batch, and gives
# these to all blocks for all batches. The attention mask is one. (So are rotary embeddings.) If the
# last text is short, all others are read as if they were as short: their tokens don't see what
# comes after its end, not even themselves. So all inputs after the first attention are others than
# the model's, and the weights are fitted to these. Nothing is said, if all batches have the same
# shape. With all texts in one batch it's right, and also if the last one is the longest, as padding
# on the right isn't seen by real tokens anyway.
#
# Seen (a Llama that pads on the right, 4 texts of 32, 28, 24 and 4 tokens; largest difference, per
# text, of an input of the first block's o_proj from what it is in the model; distance of the logits
# of the model in 4 bits from those of the first one, relative to their size):
#   one batch: 0.0000 0.0000 0.0000 0.0000; 0.330
#   four batches: 5.6729 7.0489 5.3945 0.0000; 0.426
#   four batches, the longest last: 0.0000 0.0000 0.0000 0.0000; 0.325

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'coremltools==9.0' 'transformers==5.24.0' \
    'tokenizers==0.23.3'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import copy

import torch
from coremltools.optimize.torch.layerwise_compression import (
    LayerwiseCompressor, LayerwiseCompressorConfig)
from transformers import LlamaConfig, LlamaForCausalLM


class Model(torch.nn.Module):
    """A Llama whose texts are padded with token 0."""

    def __init__(self):
        super().__init__()
        self.llama = LlamaForCausalLM(LlamaConfig(
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=64,
            intermediate_size=128, vocab_size=100, max_position_embeddings=32, pad_token_id=0,
            initializer_range=0.2, use_cache=False))

    def forward(self, texts):
        return self.llama(texts, attention_mask=(texts != 0).long()).logits


def inputs_seen(model, run):
    """Run, and return what came in at the first block's o_proj, per text."""
    seen = []
    layer = model.llama.model.layers[0].self_attn.o_proj
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    run()
    hook.remove()
    return torch.cat(seen)[:4]  # later ones are from after the layer's compression


torch.manual_seed(0)
model = Model().eval().requires_grad_(False)
torch.manual_seed(1)
texts = torch.randint(3, 100, (4, 32))
for text, length in zip(texts, (32, 28, 24, 4)):
    text[length:] = 0
real = texts != 0
right = model(texts)
inputs = inputs_seen(model, lambda: model(texts))


def compress(name, batches, order=slice(None)):
    compressed = copy.deepcopy(model)
    compressor = LayerwiseCompressor(compressed, LayerwiseCompressorConfig.from_dict({
        "global_config": {"algorithm": "gptq", "weight_dtype": "uint4"}, "input_cacher": "gpt",
        "layers": [r"llama\.model\.layers\.\d+"], "calibration_nsamples": len(batches)}))
    seen = inputs_seen(compressed, lambda: compressor.compress(batches, "cpu", inplace=True))
    differences = [(seen[order][i] - inputs[i])[real[i]].abs().max().item() for i in range(4)]
    distance = ((compressed(texts) - right)[real].norm() / right[real].norm()).item()
    print(f"{name}:", *(f"{difference:.4f}" for difference in differences), end="; ")
    print(f"{distance:.3f}")
    return differences, distance


differences, together = compress("one batch", [texts])
assert max(differences) < 1e-4
differences, distance = compress("four batches", list(texts.split(1)))
assert min(differences[:3]) > 1 and differences[3] < 1e-4 and distance > 1.1 * together
differences, distance = compress("four batches, the longest last", list(texts.flip(0).split(1)),
                                 [3, 2, 1, 0])
assert max(differences) < 1e-4 and abs(distance / together - 1) < 0.1
END
