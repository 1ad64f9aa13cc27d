#!/usr/bin/env bash
# Guess: PEFT's activated LoRA (alora_invocation_tokens) changes the tokens from the invocation on
# and none before, in the forward pass and at each step of generate(). The key/value cache only
# saves time.
#
# peft 0.21.2, transformers 5.24.0, torch 2.13.0: without the cache, generate() writes another text.
# Where the adapter begins is noted as a number of tokens counted back from the end of the prompt,
# once for the whole of generate(). With the cache each step has one token, fewer than that number,
# and so it is changed, which is right. With use_cache=False each step reads the whole text, which
# has become longer: the part that the adapter changes keeps its length and moves on. After as many
# new tokens as there are between the invocation and the prompt's end, the invocation itself is read
# without the adapter, like all that follows it but for the last few tokens. Nothing is said. The
# forward pass is right, and so is plain LoRA without a cache.
#
# Seen (a 2-layer GPT-2 with random weights, 16 prompts of 10 tokens, invocation at 4 and 5, 12 new
# tokens each, greedy: how many of 192 are the likeliest one by the forward pass, and by one in
# which the adapter changes the last 6 tokens; then the same for LoRA):
#   aLoRA, with cache: 192, 136 by the last 6
#   aLoRA, without cache: 134, 192 by the last 6
#   LoRA, with cache: 192
#   LoRA, without cache: 192

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'peft==0.21.2'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

INVOCATION, START, LENGTH, NEW = [60, 61], 4, 10, 12


def make_model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0)).eval()


def with_adapter(**options):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn", "c_proj", "c_fc"], r=4,
                        init_lora_weights=False, **options)
    model = make_model()
    torch.manual_seed(1)
    return get_peft_model(model, config).eval()


def by_hand(adapted, begin):
    """Return a plain GPT-2 that adds what the adapter adds to the tokens from begin on."""
    layers = dict(adapted.base_model.model.named_modules())
    plain = make_model()
    for name, module in plain.named_modules():
        if isinstance(module, Conv1D):
            def add(module, inputs, output, layer=layers[name]):
                change = layer.lora_B["default"](layer.lora_A["default"](inputs[0]))
                change = change * layer.scaling["default"]
                there = torch.arange(change.shape[1])[:, None] >= begin(change.shape[1])
                return output + change * there
            module.register_forward_hook(add)
    return plain


@torch.no_grad()
def likeliest(model, texts):
    """Return how many new tokens of texts are the likeliest one by a forward pass over each."""
    return sum((model(texts[:, :end]).logits[:, -1].argmax(-1) == texts[:, end]).sum().item()
               for end in range(LENGTH, texts.shape[1]))


torch.manual_seed(2)
prompts = torch.randint(1, 60, (16, LENGTH))
prompts[:, START:START + 2] = torch.tensor(INVOCATION)
alora, lora = with_adapter(alora_invocation_tokens=INVOCATION), with_adapter()
fixed = by_hand(alora, lambda length: START)
last = by_hand(alora, lambda length: length - (LENGTH - START))
with torch.no_grad():
    assert torch.allclose(fixed(prompts).logits, alora(input_ids=prompts).logits, atol=1e-4)
    assert (alora(input_ids=prompts).logits - lora(input_ids=prompts).logits).abs().max() > 0.1

total = prompts.shape[0] * NEW
for name, model in (("aLoRA", alora), ("LoRA", lora)):
    for cache in (True, False):
        texts = model.generate(
            input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW,
            do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=cache)
        right = likeliest(fixed if model is alora else lora, texts)
        line = f"{name}, {'with' if cache else 'without'} cache: {right}"
        if model is alora:
            moved = likeliest(last, texts)
            line += f", {moved} by the last {LENGTH - START}"
            assert (right, moved) == (total, moved) if cache else (right, moved) == (right, total)
            assert min(right, moved) < 0.8 * total
        else:
            assert right == total
        print(line)
END
