#!/usr/bin/env bash
# Guess: Generator.generate_batch with include_prompt_in_result=True and
# max_length=12 gives back at most 12 ids, the prompt among them. A prompt
# longer than max_length is refused, or given back whole with nothing new.
#
# Versions: ctranslate2 4.8.5.
#
# Seen: 13 ids, since the prompt's first token is not counted; without the
# prompt in the result max_length is exact. A prompt that is too long is cut:
# what comes back is its beginning, with no new token and a score of 0.
#
#   max_length 12, prompt included: 13 ids, 4 of them new
#   max_length 12, prompt left out: 12 ids
#   max_length 5, prompt of 9 included: [10, 11, 12, 13, 14, 15] score 0.0
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
prompt = list(range(10, 19))
tokens = [f"t{i}" for i in prompt]


def generate(max_length, include):
    result = generator.generate_batch(
        [tokens],
        max_length=max_length,
        min_length=max_length,
        include_prompt_in_result=include,
        return_scores=True,
    )[0]
    return result.sequences_ids[0], result.scores[0]


ids, _ = generate(12, True)
new = len(ids) - len(prompt)
print(f"max_length 12, prompt included: {len(ids)} ids, {new} of them new")
assert ids[:len(prompt)] == prompt
assert len(ids) == 13

ids, _ = generate(12, False)
print(f"max_length 12, prompt left out: {len(ids)} ids")
assert len(ids) == 12

ids, score = generate(5, True)
print("max_length 5, prompt of 9 included:", ids, "score", score)
assert ids == prompt[:6]
assert score == 0
PY
