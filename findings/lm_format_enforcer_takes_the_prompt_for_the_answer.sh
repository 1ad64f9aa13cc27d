#!/usr/bin/env bash
# Guess: a prefix function of lm-format-enforcer, made once and given to a transformers pipeline
# together with a list of prompts, holds every answer to the format: each prompt gets what it gets
# alone, with a prefix function of its own.
#
# lm-format-enforcer 0.11.3, transformers 4.57.6: not if one prompt is an earlier one and one token
# more, as "Great film" and "Great film!" are. The function is given the tokens of prompt and answer
# together, and knows how far an answer is by looking up all but the last of them. The earlier
# prompt is there, as the beginning of its answer, so the last token of the new prompt is taken for
# the first of the new answer. If it doesn't fit the format, only the end token is allowed from then
# on (the exception goes to the debug log): the answer is empty. If it does fit, the answer is one
# token too short. The order counts: with the longer prompt first, both are right. So some texts of
# a data set get no answer, where a schema has required fields, and others a wrong number. A new
# prefix function for each prompt (the costly preparation of the tokenizer can be shared) is right.
#
# Seen (a 2-layer GPT-2 with random weights, greedy; answers to a list of prompts with one function
# for all of them, and with one for each):
#   JSON, 'great film': shared '{"ok":false }', own '{"ok":false }'
#   JSON, 'great film!': shared '', own '{"ok":true}'
#   JSON, 'great film!': shared '{"ok":true}', own '{"ok":true}'
#   JSON, 'great film': shared '{"ok":false }', own '{"ok":false }'
#   yes|no, 'great film': shared 'yes', own 'yes'
#   yes|no, 'great film!': shared '', own 'yes'
#   [0-9]{4}, 'item 1': shared '1111', own '1111'
#   [0-9]{4}, 'item 12': shared '111', own '1111'

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==4.57.6' 'tokenizers==0.22.2' 'pydantic==2.14.4' 'interegular==0.3.3' \
    'lm-format-enforcer==0.11.3'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json
import string

import torch
from lmformatenforcer import JsonSchemaParser, RegexParser
from lmformatenforcer.integrations.transformers import build_transformers_prefix_allowed_tokens_fn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, pipeline

END = "<|endoftext|>"
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}

# GPT-2's kind of tokenizer, with single characters only; \u0120 stands for a space, as there.
names = [END, "\u0120", *string.ascii_lowercase, *string.digits, *'{}":,.!?']
tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([END])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=len(names), n_positions=128, n_embd=64, n_layer=2, n_head=4, initializer_range=0.3,
    bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
generator = pipeline("text-generation", model=model, tokenizer=tokenizer)


def answer(prompts, parser):
    """Return the answers to a list of prompts, with one prefix function."""
    function = build_transformers_prefix_allowed_tokens_fn(tokenizer, parser)
    outputs = generator(prompts, prefix_allowed_tokens_fn=function, max_new_tokens=64,
                        do_sample=False, return_full_text=False)
    return [output[0]["generated_text"] for output in outputs]


def compare(name, make, prompts):
    """Print and return the answers with one prefix function, and with one for each prompt."""
    shared = answer(prompts, make())
    own = [answer([prompt], make())[0] for prompt in prompts]
    for prompt, ours, theirs in zip(prompts, own, shared):
        print(f"{name}, {prompt!r}: shared {theirs.strip()!r}, own {ours.strip()!r}")
    return shared, own


def schema():
    """Return a parser for the JSON that is asked for."""
    return JsonSchemaParser(SCHEMA)


def regex(pattern):
    """Return a function that makes a parser for a regular expression."""
    return lambda: RegexParser(pattern)


shared, own = compare("JSON", schema, ["great film", "great film!"])
assert json.loads(own[0])["ok"] in (True, False) and json.loads(own[1])["ok"] in (True, False)
assert shared == [own[0], ""]
shared, own = compare("JSON", schema, ["great film!", "great film"])
assert shared == own  # the longer one first
shared, own = compare("yes|no", regex("yes|no"), ["great film", "great film!"])
assert own[1] in ("yes", "no") and shared == [own[0], ""]
shared, own = compare("[0-9]{4}", regex("[0-9]{4}"), ["item 1", "item 12"])
assert len(own[0]) == len(own[1]) == 4 and own[1].isdigit()
assert shared[0] == own[0] and len(shared[1]) == 3
END
