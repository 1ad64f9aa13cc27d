#!/usr/bin/env bash
# Guess: what llguidance lets a model write for a JSON schema is valid for that schema, and valid
# JSON in its usual spelling can be written; what it can't do, it refuses. So a number with a
# minimum and a maximum can be any number between them, and none outside.
#
# llguidance 1.9.1: a number may not stop where the maximum has more digits to come. With a maximum
# of 0.95, a model that has written 0.9 must add another digit, 0 to 5: a "0.9" that was meant comes
# out as 0.95 or 0.90, whichever it likes better then. With 0.125, both 0.1 and 0.12 are missing.
# The range becomes a regular expression that compares digit by digit and wants a digit for each of
# the maximum's. With an exclusive minimum of 0 and such a maximum it is wrong the other way, too:
# 0 itself can be written. Nothing is reported. A maximum like 1 or 0.5, and integers, are right;
# so is the other spelling, 0.90, if a model thinks of it. xgrammar is right for all of these.
#
# Seen (numbers of up to three digits after the point, none of them ending in 0, from 0 to above the
# maximum; "next" is what may follow in an object with one such number; missing, wrongly allowed):
#   minimum 0, maximum 0.95: llguidance ['0.9'] [], xgrammar [] []
#   minimum 0, maximum 0.125: llguidance ['0.1', '0.12'] [], xgrammar [] []
#   minimum 0, maximum 2.25: llguidance ['2.2'] [], xgrammar [] []
#   minimum 0, maximum 99.99: llguidance ['99.9'] [], xgrammar [] []
#   exclusiveMinimum 0, maximum 0.95: llguidance ['0.9'] ['0'], xgrammar [] []
#   minimum 0, maximum 1: llguidance [] [], xgrammar [] []
#   minimum 0, maximum 0.5: llguidance [] [], xgrammar [] []
#   maximum 0.95, next after {"p":0.9 is one of 012345
#   maximum 0.95, next after {"p":0.8 is one of 0123456789 } and white space

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'llguidance==1.9.1' 'xgrammar==0.2.9' 'jsonschema==4.26.0'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json
from decimal import Decimal

import jsonschema
import llguidance
import llguidance.numpy
import numpy as np
import xgrammar

tokenizer = llguidance.LLTokenizer("byte")
info = xgrammar.TokenizerInfo([bytes([i]) for i in range(256)] + [b"</s>"], stop_token_ids=[256])
compiler = xgrammar.GrammarCompiler(info)


def written(schema, text):
    """Return llguidance's matcher after this text, or None if the text is not allowed."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    assert not matcher.get_error()
    ids = tokenizer.tokenize_str(text)
    return matcher if matcher.try_consume_tokens(ids) == len(ids) else None


def by_llguidance(schema, text):
    matcher = written(schema, text)
    return matcher is not None and matcher.is_accepting()


def by_xgrammar(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    return matcher.accept_string(text) and matcher.is_completed()


def texts(end):
    """Yield numbers from 0 to a little above end: many with few digits, some with three."""
    yield "0"
    for digits in range(4):
        unit = Decimal(10) ** -digits
        last = int((Decimal(end) + unit) / unit) + 1
        for i in {i * last // 150 for i in range(151)} | set(range(last - 20, last + 1)):
            if i > 0 and (digits == 0 or i % 10):
                yield str(i * unit)


for bounds, missing, wrong in (
        ({"minimum": 0, "maximum": 0.95}, {"0.9"}, set()),
        ({"minimum": 0, "maximum": 0.125}, {"0.1", "0.12"}, set()),
        ({"minimum": 0, "maximum": 2.25}, {"2.2"}, set()),
        ({"minimum": 0, "maximum": 99.99}, {"99.9"}, set()),
        ({"exclusiveMinimum": 0, "maximum": 0.95}, {"0.9"}, {"0"}),
        ({"minimum": 0, "maximum": 1}, set(), set()),
        ({"minimum": 0, "maximum": 0.5}, set(), set())):
    schema = {"type": "number", **bounds}
    validator = jsonschema.Draft202012Validator(schema)
    every = set(texts(bounds["maximum"]))
    valid = {text for text in every if validator.is_valid(json.loads(text))}
    assert len(valid) > 50 and len(every) > len(valid)
    found = []
    for allows in by_llguidance, by_xgrammar:
        allowed = {text for text in every if allows(schema, text)}
        found.append((valid - allowed, allowed - valid))
    print(", ".join(f"{name} {value}" for name, value in bounds.items())
          + f": llguidance {sorted(found[0][0])} {sorted(found[0][1])}"
          + f", xgrammar {sorted(found[1][0])} {sorted(found[1][1])}")
    assert found == [(missing, wrong), (set(), set())]

schema = {"type": "object", "properties": {"p": {"type": "number", "minimum": 0,
                                                 "maximum": 0.95}},
          "required": ["p"], "additionalProperties": False}
assert by_llguidance(schema, '{"p":0.8}') and not by_llguidance(schema, '{"p":0.9}')
for text, expected in ('{"p":0.9', "012345"), ('{"p":0.8', "0123456789}"):
    mask = llguidance.numpy.allocate_token_bitmask(1, tokenizer.vocab_size)
    llguidance.numpy.fill_next_token_bitmask(written(schema, text), mask, 0)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:256]
    following = "".join(chr(i) for i in np.flatnonzero(bits))
    black = "".join(following.split())
    print(f"maximum 0.95, next after {text} is one of {black[:10]}"
          + (f" {black[10:]}" if black[10:] else "")
          + (" and white space" if black != following else ""))
    assert black == expected
END
