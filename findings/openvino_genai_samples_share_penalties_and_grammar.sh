#!/usr/bin/env bash
# Guess: LLMPipeline of OpenVINO GenAI with do_sample and num_return_sequences=3 gives three texts
# that don't know of each other. Each is penalised for the prompt's tokens and its own
# (repetition_penalty and the like), and with structured output each obeys the grammar, as a single
# text does.
#
# openvino-genai 2026.4.1, a GPT-2 exported by optimum-intel 2.2.0, float32: neither is true, for
# one and the same reason. What changes the logits is kept once for a request, not once for a text:
# one table of generated tokens and one state of the grammar. A token of one text is penalised in
# the others, too, so that more samples make each of them worse, and the second a text that avoids
# what the first one says. By hand, with one table for all, the same texts come out. The grammar is
# told the tokens of all texts in turn, as if they were one text: where one text has written "n",
# the next gets what may follow "n", and the letters of a valid answer are dealt out to the three.
# When that answer is complete, the rest is free. Nothing is refused, no text fits, and what is
# asked for here is usual: several answers in JSON, to choose from or to vote. Three calls
# with three seeds are right. (num_beams > 1 with structured output isn't refused, either, though
# beam search doesn't apply the grammar at all; with the penalties it is.)
#
# Seen (a 2-layer model with random weights; the penalty at a temperature of 0.0001, so that all
# texts should be the greedy one; the pattern is (yes|no|maybe), [a-z]{3}[0-9]{2}):
#   penalty, 1 texts: 1 right, as with one table for all: True
#   penalty, 2 texts: 0 right, as with one table for all: True
#   penalty, 3 texts: 0 right, as with one table for all: True
#   pattern, three calls: 3 valid: 'maybe, z' 'maybe, m' 'no, dfo4'
#   pattern, 2 texts: 0 valid: 'ys z2' 'me,md1P\ufffd'
#   pattern, 3 texts: 0 valid: 'me f' 'ysz1\ufffd\u078c\x14\ufffd' 'n,f1\ufffd\ufffd\u02b9\ufffd'

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
import re

import numpy as np
import openvino as ov
import openvino_genai as genai
import torch
from optimum.exporters.openvino import main_export
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END, NEW, PENALTY, PATTERN = "<|endoftext|>", 12, 1.3, "(yes|no|maybe), [a-z]{3}[0-9]{2}"
letters = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
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
main_export("gpt2", "openvino", task="text-generation-with-past", stateful=True,
            convert_tokenizer=True)
pipeline = genai.LLMPipeline(
    "openvino", "CPU", ATTENTION_BACKEND="PA", INFERENCE_PRECISION_HINT="f32",
    KV_CACHE_PRECISION="f32", INFERENCE_NUM_THREADS=1)
prompt = [76, 105, 215, 131, 11, 90, 60, 244, 178]


def by_hand(tables):
    """Return greedy texts; text i is penalised for the tokens in the set tables[i]."""
    texts = [[] for _ in tables]
    for step in range(NEW):
        with torch.no_grad():
            logits = gpt2(torch.tensor([prompt + text for text in texts])).logits[:, -1]
        for row, text, table in zip(logits, texts, tables):
            for token in {*prompt, *(table if step else ())}:  # at step 0 all are drawn at once
                row[token] *= PENALTY if row[token] < 0 else 1 / PENALTY
            text.append(row.argmax().item())
            table.add(text[-1])
    return texts


alone, = by_hand([set()])
for count in (1, 2, 3):
    texts = pipeline.generate(ov.Tensor(np.array([prompt])), genai.GenerationConfig(
        do_sample=True, temperature=1e-4, repetition_penalty=PENALTY, max_new_tokens=NEW,
        num_return_sequences=count, ignore_eos=True, rng_seed=1)).tokens
    right = [text == alone for text in texts]
    shared = sorted(texts) == sorted(by_hand([set()] * count))
    print(f"penalty, {count} texts: {sum(right)} right, as with one table for all: {shared}")
    assert shared and (all(right) if count == 1 else not any(right))


def structured(count, seed):
    return pipeline.generate(["An answer:"], genai.GenerationConfig(
        do_sample=True, max_new_tokens=20, num_return_sequences=count, rng_seed=seed,
        eos_token_id=0, apply_chat_template=False,
        structured_output_config=genai.StructuredOutputConfig(regex=PATTERN))).texts


for name, texts in (("three calls", [structured(1, seed)[0] for seed in (1, 2, 3)]),
                    ("2 texts", structured(2, 1)), ("3 texts", structured(3, 1))):
    valid = [re.fullmatch(PATTERN, text) is not None for text in texts]
    print(f"pattern, {name}: {sum(valid)} valid:", *(ascii(text[:8]) for text in texts))
    assert all(valid) if name == "three calls" else not any(valid)
PYTHON
grep -E '^(penalty|pattern), ' log
