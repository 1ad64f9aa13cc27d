#!/usr/bin/env bash
# Guess: what a GPT-2 generates to its end with a JsonSchemaParser of lm-format-enforcer parses as
# JSON, however unlikely the text; that is what it is for. Optional properties are supported, it
# says, and numbers in all the ways that JSON has.
#
# lm-format-enforcer 0.11.3, transformers 4.57.6: no. After a comma in an object, the parser is in
# the same state as after the opening brace: if all that is required is there, the object may be
# closed, so {"a":1,} is complete. That is so wherever something else could follow: properties that
# aren't required (fields with a default, in Pydantic), or an object with free keys. A model likes
# to write the comma, which it has seen before every other property, and then finds that it wants to
# stop. With required properties alone there is no such place; arrays are right. Numbers may end
# with their point before an exponent (5.E2), "integer" included (-0.E0). json.loads refuses all of
# these.
#
# Seen (a 2-layer GPT-2 with random weights, 200 samples each; documents that came to their end, how
# many of them don't parse, and the first of these, without spaces):
#   an array, required: 176 ended, 0 don't parse
#   two booleans, required: 200 ended, 0 don't parse
#   two integers, one required: 198 ended, 25 don't parse, {"a":6,}
#   integers with free keys: 103 ended, 19 don't parse,
#       {"a":{"!x5lhw,DddI[,?39sD+DzxDp":9998E8999939,}}
#   a number: 200 ended, 6 don't parse, {"a":4885.E66399694859888882}

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
from lmformatenforcer import JsonSchemaParser
from lmformatenforcer.integrations.transformers import build_transformers_prefix_allowed_tokens_fn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"
INTEGER = {"type": "integer"}

# GPT-2's kind of tokenizer, with single characters only; \u0120 stands for a space, as there.
names = [END, "\u0120", *string.ascii_letters, *string.digits, *'{}[]":,.!?-+']
tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens([END])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=len(names), n_positions=128, n_embd=64, n_layer=2, n_head=4, initializer_range=0.1,
    bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()


def parses(text):
    """Return whether a text is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def sample(name, properties, required, **more):
    """Generate objects; return those that are complete and don't parse, without spaces."""
    schema = {"type": "object", "properties": properties, "required": required, **more}
    function = build_transformers_prefix_allowed_tokens_fn(tokenizer, JsonSchemaParser(schema))
    prompt = tokenizer("json:", return_tensors="pt")
    torch.manual_seed(0)
    ids = model.generate(**prompt, max_new_tokens=100, prefix_allowed_tokens_fn=function,
                         do_sample=True, top_k=0, num_return_sequences=200)
    ended = [row for row in ids[:, prompt.input_ids.shape[1]:].tolist() if 0 in row]
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in ended]
    wrong = [text.replace(" ", "") for text in texts if not parses(text)]
    print(f"{name}: {len(texts)} ended, {len(wrong)} don't parse" + "".join(
        f", {text}" for text in wrong[:1]))
    assert len(texts) > 100
    return wrong


two = {"a": INTEGER, "b": INTEGER}
array = {"type": "array", "items": {"type": "boolean"}}
assert not sample("an array, required", {"a": array}, ["a"])
assert not sample("two booleans, required", dict.fromkeys("ab", {"type": "boolean"}), ["a", "b"])
optional = sample("two integers, one required", two, ["a"])
assert sum(text.endswith(",}") for text in optional) > 4
free = sample("integers with free keys", {
    "a": {"type": "object", "additionalProperties": INTEGER}}, ["a"])
assert sum(text.endswith(",}}") for text in free) > 4
number = sample("a number", {"a": {"type": "number"}}, ["a"])
assert number and all(".e" in text.lower() for text in number)

# By hand, without a model.
for text, complete in (('{"a":1}', True), ('{"a":1,"b":2}', True), ('{"a":1,}', True),
                       ('{"a":-0.E0}', True), ('{"a":1', False), ('{"a":1,', False)):
    parser = JsonSchemaParser({"type": "object", "properties": two, "required": ["a"]})
    for character in text:
        assert character in parser.get_allowed_characters()
        parser = parser.add_character(character)
    assert parser.can_end() == complete
END
