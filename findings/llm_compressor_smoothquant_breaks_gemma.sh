#!/usr/bin/env bash
# Guess: llm-compressor's SmoothQuantModifier without a quantizer after it leaves the logits as they
# are but for rounding, for each architecture in its registry of mappings: it divides a norm's
# weight by a factor per channel and multiplies the linear layers that read the norm by the same.
#
# llmcompressor 0.14.0.1, transformers 5.17.0: Gemma 2 and Gemma 3, which are in the registry, come
# out as other models. They have Llama's mappings there, in which gate_proj and up_proj are paired
# with post_attention_layernorm. In Llama that is the norm before the MLP; in Gemma 2 and 3 it's the
# one after the attention, whose output is added to the residual, and the MLP reads
# pre_feedforward_layernorm. So what the attention adds is divided by the factors, and the MLP's
# input is multiplied by them, which have nothing to do with it. The same package's mappings for AWQ
# have the right norm for Gemma. Nothing is said, and the quantizer that follows, as in the usual
# recipe, takes the broken weights for the model. With the two mappings written out by hand the
# logits are kept (Gemma's 1 + weight is taken care of).
#
# Seen (small models with random weights, 16 texts of 24 tokens for calibration; largest difference
# of a logit, how often the likeliest token is the same, standard deviation of the logits):
#   LlamaForCausalLM: 0.0000, 1.00, 1.14
#   Gemma2ForCausalLM: 3.0787, 0.67, 1.21
#   Gemma3ForCausalLM: 3.3057, 0.68, 1.16
#   Gemma2ForCausalLM, mappings by hand: 0.0000, 1.00, 1.21
#   Gemma3ForCausalLM, mappings by hand: 0.0000, 1.00, 1.16

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.17.0' 'accelerate==1.15.0' 'compressed-tensors==0.19.0' \
    'llmcompressor==0.14.0.1'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 LLM_COMPRESSOR_LOG_DISABLED=true
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.modifiers.transform.smoothquant.utils import MAPPINGS_REGISTRY
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import (
    Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig,
    LlamaForCausalLM, PreTrainedTokenizerFast)

# oneshot() asks for a tokenizer; the texts are token ids already.
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), pad_token="a")
texts = torch.randint(64, (16, 24), generator=torch.Generator().manual_seed(1))
data = DataLoader([{"input_ids": text, "attention_mask": torch.ones_like(text)}
                   for text in texts], batch_size=4)
by_hand = [[["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"],
           [["re:.*gate_proj", "re:.*up_proj"], "re:.*pre_feedforward_layernorm"]]


@torch.no_grad()
def compare(config, kind, mappings=None):
    torch.manual_seed(0)
    model = kind(config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.2))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # the norms, which start as ones or zeros
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained("model")
    model = kind.from_pretrained("model").eval()
    before = model(texts).logits
    assert kind.__name__ in MAPPINGS_REGISTRY
    oneshot(model=model, processor=tokenizer, dataset=data, num_calibration_samples=16,
            max_seq_length=24,
            recipe=[SmoothQuantModifier(smoothing_strength=0.5, mappings=mappings)])
    after = model(texts).logits
    off = (after - before).abs().max().item()
    same = (after.argmax(-1) == before.argmax(-1)).float().mean().item()
    print(f"{kind.__name__}{', mappings by hand' if mappings else ''}: {off:.4f}, {same:.2f}, "
          f"{before.std():.2f}")
    return off, same


off, same = compare(LlamaConfig, LlamaForCausalLM)
assert off < 1e-3 and same > 0.99
kinds = ((Gemma2Config, Gemma2ForCausalLM), (Gemma3TextConfig, Gemma3ForCausalLM))
for kind in kinds:
    off, same = compare(*kind)
    assert off > 1 and same < 0.9
for kind in kinds:
    off, same = compare(*kind, by_hand)
    assert off < 1e-3 and same > 0.99
END
