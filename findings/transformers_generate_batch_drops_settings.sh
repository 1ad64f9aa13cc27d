#!/usr/bin/env bash
# Guess: generate_batch() of transformers (continuous batching) takes the settings of generate() and
# gives, for greedy decoding, the same texts. ContinuousBatchingConfig says that processors of
# logits which it doesn't support are removed, and it warns of them; all else is kept.
#
# transformers 5.24.0, torch 2.13.0: min_new_tokens and min_length are dropped without a warning, so
# texts end before them. Both need the ids of the end as a tensor. generate() puts it into its
# prepared copy of the settings; generate_batch() takes the settings as they are, and where there is
# no tensor, the processor isn't made, so there's nothing to warn of. (repetition_penalty is dropped
# with a warning.) For the same reason nothing fills in what is unset: with do_sample=True,
# generate() draws from the 50 likeliest tokens, and generate_batch() from all. And settings as
# keyword arguments, generate()'s usual way, are taken and thrown away, but for max_new_tokens: with
# do_sample=True each text is the greedy one, and a misspelt name is no error, as it is in
# generate(). A GenerationConfig with all values set is a way around, but for the lengths.
#
# Seen (a small Llama; 8 prompts; how many texts are those of generate(), the shortest and the
# longest text, warnings of the settings):
#   greedy: 8 of 8, 1 to 24 tokens, 0 warnings
#   min_new_tokens=24: 3 of 8, 1 to 24 tokens, 0 warnings
#   min_length=32: 3 of 8, 1 to 24 tokens, 0 warnings
#   repetition_penalty=1.3: 3 of 8, 1 to 24 tokens, 1 warnings
#   drawn with do_sample=True, 400 times: up to the 50th likeliest token by generate(),
#     the 196th by generate_batch(), the 1st with the setting as a keyword argument, 0 warnings

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import logging

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation import ContinuousBatchingConfig

END, NEW, PROMPTS = 59, 24, 8
warnings = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger("ContinuousBatchingLogger").addHandler(handler)


def build(size, spread):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=spread, bos_token_id=0, eos_token_id=END,
        pad_token_id=END)).eval()


def batch(model, prompts, config, **settings):
    """Return the new tokens of generate_batch() and the warnings that are about settings."""
    warnings.clear()
    outputs = model.generate_batch(
        prompts, generation_config=config, warmup=False,
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=64),
        **settings)
    texts = [output.generated_tokens for output in outputs.values()]
    return texts, [text for text in warnings if "rocessor" in text]


def compare(name, **settings):
    """Print and return how many texts are the same, their lengths, and the warnings."""
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=END,
                              pad_token_id=END, **settings)
    right = []
    for prompt in prompts:
        text = model.generate(torch.tensor([prompt]), generation_config=config)[0].tolist()
        right.append(text[len(prompt):])
    texts, told = batch(model, prompts, config)
    lengths = [len(text) for text in texts]
    same = sum(a == b for a, b in zip(texts, right))
    print(f"{name}: {same} of {PROMPTS}, {min(lengths)} to {max(lengths)} tokens, "
          f"{len(told)} warnings")
    assert "min" not in name or {len(text) for text in right} == {NEW}
    return same, min(lengths), len(told), texts


model = build(60, 0.3)
prompts = [torch.randint(1, 58, (8,)).tolist() for _ in range(PROMPTS)]
same, shortest, told, greedy = compare("greedy")
assert same == PROMPTS and shortest < NEW and told == 0
for name, value in (("min_new_tokens", NEW), ("min_length", 8 + NEW)):
    same, shortest, told, texts = compare(f"{name}={value}", **{name: value})
    assert same < PROMPTS and shortest < NEW and told == 0 and texts == greedy
_, _, told, texts = compare("repetition_penalty=1.3", repetition_penalty=1.3)
assert told == 1 and texts == greedy

model = build(200, 0.15)
prompts = [torch.randint(1, 58, (6,)).tolist()] * 400
sample = GenerationConfig(max_new_tokens=1, do_sample=True, eos_token_id=END, pad_token_id=END)
with torch.no_grad():
    place = model(torch.tensor(prompts[:1])).logits[0, -1].argsort(descending=True).argsort() + 1
ids = torch.tensor(prompts)
last = [place[model.generate(ids, generation_config=sample)[:, -1]].max().item()]
for config, settings in ((sample, {}), (None, dict(do_sample=True, max_new_tokens=1, tempratur=9))):
    texts, told = batch(model, prompts, config, **settings)
    last.append(place[torch.tensor(texts)].max().item())
    assert not told
print(f"drawn with do_sample=True, 400 times: up to the {last[0]}th likeliest token by generate(),")
print(f"  the {last[1]}th by generate_batch(), the {last[2]}st with the setting as a keyword "
      "argument, 0 warnings")
assert last[0] <= 50 and last[1] > 150 and last[2] == 1
END
