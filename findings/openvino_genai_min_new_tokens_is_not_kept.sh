#!/usr/bin/env bash
# Guess: min_new_tokens=12 of OpenVINO GenAI forbids the end tokens for the first 12 new ones, with
# greedy decoding, prompt lookup (which only saves time) and beam search alike. It is one of the
# general parameters, and what beam search cannot do (the penalties) is refused.
#
# openvino-genai 2026.4.1, a GPT-2 exported by optimum-intel 2.2.0, float32: greedy decoding obeys
# it, the other two don't. Beam search takes the model's logits as they are and never asks what
# would change them, so that min_new_tokens has no effect at all (nor has structured output, which
# isn't refused, either). Prompt lookup obeys until a proposal is rejected. Then the number of new
# tokens is corrected, to a number that has the prompt in it: from there on, a prompt of 12 or more
# tokens counts as 12 new ones and the text may end at once, as it would without min_new_tokens. A
# draft model, by the source, takes the same way. The penalties are right with prompt lookup.
#
# Seen (a 2-layer model with random weights and 20 of 63 tokens that end a text; 20 prompts of 4 and
# 20 of 16 tokens, made of a few words that are repeated; how many texts are shorter than 12):
#   greedy, prompts of 4: 0 too short, 20 as transformers, 1 as without min_new_tokens
#   greedy, prompts of 16: 0 too short, 20 as transformers, 3 as without min_new_tokens
#   prompt lookup, prompts of 4: 6 too short, 14 as transformers, 5 as without min_new_tokens
#   prompt lookup, prompts of 16: 14 too short, 6 as transformers, 9 as without min_new_tokens
#   4 beams, prompts of 4: 20 too short, 0 as transformers, 20 as without min_new_tokens
#   4 beams, prompts of 16: 15 too short, 4 as transformers, 20 as without min_new_tokens

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.5.4' 'tokenizers==0.22.2' 'optimum==2.3.0' 'optimum-intel==2.2.0' \
    'nncf==3.4.0' 'openvino==2026.4.1' 'openvino-genai==2026.4.1.0' \
    'openvino-tokenizers==2026.4.1.0'
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision  # one for another build of torch
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
venv/bin/python - >log 2>&1 <<'PYTHON' || { cat log; exit 1; }
import string

import numpy as np
import openvino as ov
import openvino_genai as genai
import torch
from optimum.exporters.openvino import main_export
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END, LEAST, MOST = "<|endoftext|>", 12, 24
ENDS = list(range(20))
letters = [END, *string.ascii_letters, *string.digits]
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END,
                        pad_token=END).save_pretrained("gpt2")
torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(GPT2Config(
    vocab_size=len(letters), n_positions=64, n_embd=64, n_layer=2, n_head=2,
    initializer_range=0.15, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
gpt2.save_pretrained("gpt2")
main_export("gpt2", "openvino", task="text-generation-with-past", stateful=True)
generator = np.random.default_rng(0)
words = [generator.integers(20, len(letters), 2).tolist() for _ in range(4)]


def until_end(text):
    return next((text[:i + 1] for i, token in enumerate(text) if token in ENDS), text)


def transformers(prompt, beams):
    text = gpt2.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=MOST, min_new_tokens=LEAST, num_beams=beams, early_stopping=beams > 1,
        eos_token_id=ENDS, pad_token_id=len(letters) - 1)[0, len(prompt):]
    return until_end(text.tolist())


def run(name, length, beams=1, **assisted):
    pipeline = genai.LLMPipeline(
        "openvino", "CPU", INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32",
        INFERENCE_NUM_THREADS=1, **({"prompt_lookup": True} if assisted else {}))
    texts, right, without = [], 0, 0
    for _ in range(20):
        prompt = sum((words[i] for i in generator.integers(4, size=length // 2)), [])
        settings = dict(max_new_tokens=MOST, num_beams=beams, stop_token_ids=set(ENDS),
                        stop_criteria=genai.StopCriteria.EARLY, **assisted)
        text, free = (pipeline.generate(ov.Tensor(np.array([prompt])), genai.GenerationConfig(
            min_new_tokens=least, **settings)).tokens[0] for least in (LEAST, 0))
        texts.append(text)
        right += text == transformers(prompt, beams)
        without += text == free
    short = sum(len(text) < LEAST for text in texts)
    print(f"{name}, prompts of {length}: {short} too short, {right} as transformers, {without} as "
          "without min_new_tokens")
    return short, right, without


for length in (4, 16):
    short, right, without = run("greedy", length)
    assert short == 0 and right == 20 and without < 10
short, right, _ = run("prompt lookup", 4, num_assistant_tokens=3, max_ngram_size=1)
assert short < 10 <= right
short, right, _ = run("prompt lookup", 16, num_assistant_tokens=3, max_ngram_size=1)
assert right < 10 < short
for length in (4, 16):
    short, right, without = run("4 beams", length, beams=4)
    assert short > 10 and right < 10 and without == 20
PYTHON
grep -E '^(greedy|prompt lookup|4 beams), ' log
