#!/usr/bin/env bash
# Guess: Generator.generate_batch with include_prompt_in_result=False gives for
# each prompt of a batch what it gives for that prompt alone, also where one of
# the prompts is a single token, as "<|endoftext|>" is for a text from nothing.
#
# Versions: ctranslate2 4.8.5.
#
# Seen: beside a prompt of one token, all other prompts are returned as part of
# their results, except for their first token. They count towards max_length,
# so that fewer new tokens follow, or none, and as certain tokens in the score,
# which becomes higher. Beside a prompt of two tokens or more, all is as guessed.
#
#   alone:                 8 new tokens, score -2.88
#   beside a prompt of 2:  8 new tokens, score -2.88
#   beside a prompt of 1:  [11, 12, 13, 14, 15] and 3 new tokens, score -1.04
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile 'ctranslate2==4.8.5'

"$work/venv/bin/python" - "$work/model" <<'PY'
import os
import sys

import ctranslate2
import numpy as np
from ctranslate2.specs import Activation
from ctranslate2.specs import TransformerDecoderModelSpec

VOCAB = 200
WIDTH = 32
POSITIONS = 64
rng = np.random.default_rng(0)


def random(*shape):
    return rng.normal(0, 0.2, shape).astype(np.float32)


def fill_linear(linear, rows, columns):
    linear.weight = random(rows, columns)
    linear.bias = random(rows)


def fill_norm(norm):
    norm.gamma = np.ones(WIDTH, np.float32)
    norm.beta = np.zeros(WIDTH, np.float32)


def make_gpt2(folder):
    spec = TransformerDecoderModelSpec.from_config(
        num_layers=2,
        num_heads=4,
        pre_norm=True,
        activation=Activation.GELUTanh,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = random(VOCAB, WIDTH)
    decoder.position_encodings.encodings = random(POSITIONS, WIDTH)
    decoder.projection.weight = decoder.embeddings.weight
    fill_norm(decoder.layer_norm)
    for layer in decoder.layer:
        fill_norm(layer.self_attention.layer_norm)
        fill_linear(layer.self_attention.linear[0], 3 * WIDTH, WIDTH)
        fill_linear(layer.self_attention.linear[1], WIDTH, WIDTH)
        fill_norm(layer.ffn.layer_norm)
        fill_linear(layer.ffn.linear_0, 4 * WIDTH, WIDTH)
        fill_linear(layer.ffn.linear_1, WIDTH, 4 * WIDTH)
    words = [f"t{i}" for i in range(1, VOCAB)]
    spec.register_vocabulary(["<|endoftext|>"] + words)
    for name in ("bos_token", "eos_token", "unk_token"):
        setattr(spec.config, name, "<|endoftext|>")
    spec.validate()
    spec.optimize()
    os.mkdir(folder)
    spec.save(folder)


make_gpt2(sys.argv[1])
generator = ctranslate2.Generator(sys.argv[1], intra_threads=1)
prompt = list(range(10, 16))


def generate(*prompts):
    """Return what is generated for the first of these prompts."""
    result = generator.generate_batch(
        [[f"t{i}" for i in ids] for ids in prompts],
        max_length=8,
        min_length=8,
        include_prompt_in_result=False,
        return_scores=True,
    )[0]
    return result.sequences_ids[0], result.scores[0]


alone, score = generate(prompt)
print(f"alone:                 {len(alone)} new tokens, score {score:.2f}")
assert len(alone) == 8

found, same = generate(prompt, [20, 21])
print(f"beside a prompt of 2:  {len(found)} new tokens, score {same:.2f}")
assert found == alone
assert abs(same - score) < 1e-4

found, higher = generate(prompt, [20])
old, new = found[:5], found[5:]
print(f"beside a prompt of 1:  {old} and {len(new)} new tokens, score {higher:.2f}")
assert old == prompt[1:]
assert new == alone[:3]
assert higher > score + 1
PY
