#!/usr/bin/env bash
# Guess: metrax's Perplexity over an evaluation set is the formula in its docstring, exp of minus
# the sum of w log P over the sum of w, over all tokens, whatever the batches are: each batch's
# metric is merged into the total, and padding and prompts have the weight 0.
#
# google-metrax 0.2.4, jax 0.10.2: within a batch, yes. merge() though weighs the mean loss of each
# batch by its number of rows, not by the sum of its weights, so that the tokens of a batch with few
# answer tokens count for more than those of a full one. Sorting texts by length, which is usual, or
# short texts at the end, changes the result; a batch that's all padding (the last one of a
# process that has run out of texts) even counts as tokens with a perplexity of 1. Without weights
# it is right if all batches are equally long, and otherwise too long a batch counts too little.
# metrax.nnx.Perplexity is the same. metrax.Average with the same weights, then exp, is right.
#
# Seen (16 texts of 2 to 32 tokens, the later ones harder):
#   by hand: 19.97
#   one batch: 19.97
#   batches of 8 rows: 13.44
#   batches of 1 row: 11.49
#   batches of 8 rows and one of 8 rows of padding: 5.65
#   nnx, batches of 8 rows: 13.44
#   Average, batches of 8 rows: 19.97

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'jax==0.10.2' 'jaxlib==0.10.2' \
    'flax==0.12.8' 'google-metrax==0.2.4'

cd "$folder"
JAX_PLATFORMS=cpu venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
from functools import reduce

import jax
import jax.numpy as jnp
import metrax
import metrax.nnx
import numpy as np

TEXTS, LENGTH, VOCABULARY = 16, 32, 64
rng = np.random.default_rng(1)
lengths = np.arange(1, TEXTS + 1) * 2
weights = (np.arange(LENGTH) < lengths[:, None]).astype("float32")
targets = rng.integers(0, VOCABULARY, (TEXTS, LENGTH))
logits = 0.5 * rng.normal(size=(TEXTS, LENGTH, VOCABULARY)).astype("float32")
surer = np.linspace(4, 0, TEXTS)[:, None]  # the model is surer of the shorter texts
logits[np.arange(TEXTS)[:, None], np.arange(LENGTH), targets] += surer


def batches(rows):
    for i in range(0, TEXTS, rows):
        part = slice(i, i + rows)
        yield {"predictions": jnp.array(logits[part]), "labels": jnp.array(targets[part]),
               "sample_weights": jnp.array(weights[part]), "from_logits": True}


def merged(parts):
    metrics = [metrax.Perplexity.from_model_output(**part) for part in parts]
    return reduce(lambda a, b: a.merge(b), metrics).compute()


def nnx(parts):
    metric = metrax.nnx.Perplexity()
    for part in parts:
        metric.update(**part)
    return metric.compute()


def average(parts):
    total = metrax.Average.empty()
    for part in parts:
        log = jax.nn.log_softmax(part["predictions"])
        log = jnp.take_along_axis(log, part["labels"][..., None], -1)[..., 0]
        total = total.merge(metrax.Average.from_model_output(-log, part["sample_weights"]))
    return jnp.exp(total.compute())


logs = logits.astype("float64")
logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
loss = -np.take_along_axis(logs, targets[..., None], -1)[..., 0]
padding = {**list(batches(8))[0], "sample_weights": jnp.zeros((8, LENGTH))}
result = {
    "by hand": np.exp((loss * weights).sum() / weights.sum()),
    "one batch": merged(batches(TEXTS)),
    "batches of 8 rows": merged(batches(8)),
    "batches of 1 row": merged(batches(1)),
    "batches of 8 rows and one of 8 rows of padding": merged([*batches(8), padding]),
    "nnx, batches of 8 rows": nnx(batches(8)),
    "Average, batches of 8 rows": average(batches(8)),
}
result = {name: float(value) for name, value in result.items()}
for name, value in result.items():
    print(f"{name}: {value:.2f}")


def mean_of_batches(rows, extra=0):
    means = [(loss * weights)[i:i + rows].sum() / weights[i:i + rows].sum()
             for i in range(0, TEXTS, rows)]
    return np.exp(sum(means) / (len(means) + extra))


right, whole, eight, one, padded, same, plain = result.values()
assert abs(whole / right - 1) < 1e-4 and abs(plain / right - 1) < 1e-4
assert abs(eight / mean_of_batches(8) - 1) < 1e-4 and abs(same / eight - 1) < 1e-5
assert abs(one / mean_of_batches(1) - 1) < 1e-4
assert abs(padded / mean_of_batches(8, extra=1) - 1) < 1e-4
assert eight < 0.9 * right and one < 0.9 * eight and padded < 0.5 * eight
END
