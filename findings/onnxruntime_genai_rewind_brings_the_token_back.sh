#!/usr/bin/env bash
# Guess: after rewind_to(n), a Generator of onnxruntime-genai has the first n tokens of its text,
# and generate_next_token() adds one, drawn from what the model says after those n.
#
# onnxruntime-genai 0.18.0, a Llama made by its builder (float32, CPU), transformers 5.24.0: it adds
# two. The first is the token that was just taken away, the old one at position n; only the second
# is drawn. token_count() is n after rewind_to(n), and n + 2 after one call. So a text that is
# rewound because of a bad token, to draw another, gets the same bad token again, however often and
# with any temperature or seed; and one rewound into the prompt goes on with the prompt's own
# next token as if the model had written it. With greedy search from a generated part nothing is
# seen but the count, as the model would choose the same. rewind_to() is to keep the
# last token of the text, so that the next call can compute the logits after it, but looks it up at
# n in place of n - 1. (That get_logits() after it is wrong, too, is known: pull request 2555.)
# Rewinding to n - 1 and appending the token n - 1 again is right.
#
# Seen (a 2-layer model with random weights, prompt of 12 tokens and 6 drawn; 300 times rewound to n
# and one call; tokens added, how often token n was the old one, different tokens n, and how far
# their frequencies are from the model's probabilities, half the sum of the differences):
#   rewind_to(15): 2 added, token 15 the old one 300 of 300 times, 1 different, far 0.87
#   rewind_to(12): 2 added, token 12 the old one 300 of 300 times, 1 different, far 0.61
#   rewind_to(8): 2 added, token 8 the old one 300 of 300 times, 1 different, far 1.00
#   rewind_to(14), append 1: 1 added, token 15 the old one 53 of 300 times, 10 different, far 0.07
#   rewind_to(8), greedy: 45 is next, the model's choice is 232, the prompt's 45
# (without a seed the numbers vary a little from run to run)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'onnxruntime-genai==0.18.0' \
    'onnxruntime==1.32.0' 'onnx==1.23.2' 'onnx-ir==1.1.0'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
cat >model.py <<'END'
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = ["<|endoftext|>"] + sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=letters[0], eos_token=letters[0],
                        pad_token=letters[0]).save_pretrained("llama")
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=257, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    initializer_range=0.15, bos_token_id=0, eos_token_id=0)).save_pretrained("llama")
END
{ venv/bin/python model.py
  venv/bin/python -m onnxruntime_genai.models.builder -i llama -o onnx -p fp32 -e cpu -c cache
} >log 2>&1 || { cat log; exit 1; }
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import collections

import numpy as np
import onnxruntime_genai as og
import torch
from transformers import LlamaForCausalLM

llama = LlamaForCausalLM.from_pretrained("llama").eval()
model = og.Model("onnx")
prompt = np.random.default_rng(0).integers(1, 257, 12).tolist()


def array(ids):
    return np.array(ids, dtype=np.int32)


def start(sample):
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=sample, top_k=10, temperature=1.0, max_length=64,
                              min_length=64)  # no end token
    generator = og.Generator(model, params)
    generator.append_tokens(array(prompt))
    for _ in range(6):
        generator.generate_next_token()
    text = generator.get_sequence(0).tolist()
    assert text[:12] == prompt and len(text) == 18
    return generator, text


def probabilities(text):
    with torch.no_grad():
        logits = llama(torch.tensor([text])).logits[0, -1]
    logits[0] = -torch.inf
    top = logits.topk(10)
    return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist()))


def rewind(n, append=False):
    generator, text = start(True)
    drawn, added = collections.Counter(), set()
    for _ in range(300):
        generator.rewind_to(n - append)
        assert generator.get_sequence(0).tolist() == text[:n - append]
        if append:
            generator.append_tokens(array([text[n - 1]]))
        assert generator.token_count() == n
        generator.generate_next_token()
        new = generator.get_sequence(0).tolist()
        assert new[:n] == text[:n]
        added.add(len(new) - n)
        drawn[new[n]] += 1
    model_says = probabilities(text[:n])
    far = sum(abs(drawn[token] / 300 - model_says.get(token, 0))
              for token in {*drawn, *model_says}) / 2
    print(f"rewind_to({n - append}){', append 1' * append}: {max(added)} added, token {n} the old "
          f"one {drawn[text[n]]} of 300 times, {len(drawn)} different, far {far:.2f}")
    if append:
        assert added == {1} and set(drawn) <= set(model_says) and far < 0.15
    else:
        assert added == {2} and drawn[text[n]] == 300 and len(drawn) == 1


for n in (15, 12, 8):
    rewind(n)
rewind(15, append=True)
generator, text = start(False)
generator.rewind_to(8)
generator.generate_next_token()
token, choice = generator.get_sequence(0)[8], max(
    (p, token) for token, p in probabilities(text[:8]).items())[1]
print(f"rewind_to(8), greedy: {token} is next, the model's choice is {choice}, "
      f"the prompt's {prompt[8]}")
assert token == prompt[8] != choice
END
