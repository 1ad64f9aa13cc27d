#!/usr/bin/env bash
# Guess: PEFT's prefix tuning, prompt tuning and p-tuning generate with a GPT-2 by what was
# trained: greedily, each new token is the likeliest one by the forward pass, with the cache as
# without it.
#
# peft 0.21.2 with transformers 5.24.0: none of the three does, with the cache that generate()
# uses unless told otherwise. GPT-2 in transformers 5.24.0 hands its cache around under the name
# "cache"; PEFT looks for "past_key_values", and adds one of that name. For prefix tuning, whose
# trained vectors are such a cache, GPT-2 then has both and ignores PEFT's, so that nothing of the
# prefix is left (a FutureWarning says that past_key_values is ignored). For the other two PEFT
# doesn't find the cache, and so doesn't cut the text to its newest token: from the second new
# token on the whole text is put behind what is in the cache already, again and again, at ever
# higher positions; a text that would fit ends in an IndexError, a shorter one is wrong without a
# word. Losses and logits are right, and so is all with transformers 5.23.0.
#
# Seen (a 2-layer GPT-2 with random weights, 8 prompts of 6 tokens, 8 new ones each, greedy: how
# many are the likeliest one by the forward pass, and whether another trained prompt makes a
# difference):
#   prefix tuning, with cache: 41 of 64, the same text with another prompt
#   prefix tuning, without cache: 64 of 64, other text with another prompt
#   prompt tuning, with cache: 35 of 64, other text with another prompt
#   prompt tuning, without cache: 64 of 64, other text with another prompt
#   p-tuning, with cache: 22 of 64, other text with another prompt
#   p-tuning, without cache: 64 of 64, other text with another prompt

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'peft==0.21.2' 'accelerate==1.15.0'

cd "$folder"
export HF_HUB_OFFLINE=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)


@torch.no_grad()
def look(name, config):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=2, n_embd=64, n_head=4, vocab_size=100, n_positions=256, bos_token_id=0,
            eos_token_id=None, pad_token_id=0,
        )
    ).eval()
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    prompts = torch.randint(1, 100, (8, 6))
    settings = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 8, "do_sample": False}
    model = get_peft_model(model, config).eval()

    def draw():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()

    seen = []
    for use_cache in True, False:
        draw()
        other = model.generate(input_ids=prompts, use_cache=use_cache, **settings)
        draw()
        text = model.generate(input_ids=prompts, use_cache=use_cache, **settings)
        logits = model(input_ids=text, attention_mask=torch.ones_like(text)).logits
        likeliest = logits[:, -text.shape[1] :][:, 5:-1].argmax(-1)
        right = (text[:, 6:] == likeliest).sum().item()
        same = torch.equal(text, other)
        print(
            f"{name}, {'with' if use_cache else 'without'} cache: {right} of 64,",
            f"{'the same' if same else 'other'} text with another prompt",
            flush=True,
        )
        seen.append((right, same))
    return seen


for name, make in [
    ("prefix tuning", PrefixTuningConfig),
    ("prompt tuning", PromptTuningConfig),
    ("p-tuning", PromptEncoderConfig),
]:
    more = {"encoder_hidden_size": 32} if make is PromptEncoderConfig else {}
    cached, uncached = look(name, make(task_type="CAUSAL_LM", num_virtual_tokens=5, **more))
    assert cached[0] < 60 and cached[1] == (name == "prefix tuning")
    assert uncached == (64, False)
END
