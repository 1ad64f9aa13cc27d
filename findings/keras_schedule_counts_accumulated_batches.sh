#!/usr/bin/env bash
# Guess: Keras' gradient_accumulation_steps=k makes k batches count as one large batch. So a run
# with k batches of a quarter of the size, for k = 4, ends with the weights of the run with whole
# batches: decay, clipping, Adam's bias correction and optimizer.iterations all go by updates, and
# the learning rate schedule does too.
#
# keras 3.15.1: all but the schedule. It is called with the number of batches, not with
# optimizer.iterations, so it runs k times too fast: a cosine decay over 32 updates has ended after
# 8, and the other three quarters of the training change nothing, since the learning rate is 0. A
# warm-up is as much too short. Without a schedule both runs agree. To get what was meant, all
# lengths of a schedule have to be multiplied by k.
#
# Seen (32 updates; learning rate at updates 1, 8, 9 and 32; largest difference of a weight from the
# run with whole batches):
#   constant, whole batches: 1.00e-02 1.00e-02 1.00e-02 1.00e-02
#   constant, 4 quarters: 1.00e-02 1.00e-02 1.00e-02 1.00e-02; largest
#     difference 3.0e-08
#   cosine, whole batches: 1.00e-02 8.87e-03 8.54e-03 2.41e-05
#   cosine, 4 quarters: 9.78e-03 2.41e-05 0.00e+00 0.00e+00; largest
#     difference 1.2e-01
#   cosine four times as long, 4 quarters: 9.99e-03 8.62e-03 8.27e-03 1.51e-06; largest
#     difference 7.2e-03 (an update reads the schedule at its last batch)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'keras==3.15.1' 'torch==2.13.0' 'numpy==2.4.6'

KERAS_BACKEND=torch "$folder/venv/bin/python" - <<'END'
import keras
import numpy as np

UPDATES, BATCH, QUARTERS = 32, 16, 4
rng = np.random.default_rng(1)
inputs = rng.normal(size=(UPDATES * BATCH, 8)).astype("float32")
targets = rng.normal(size=(UPDATES * BATCH, 4)).astype("float32")


def cosine(length):
    return keras.optimizers.schedules.CosineDecay(0.01, length)


def train(name, rate, parts):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    optimizer = keras.optimizers.AdamW(rate, weight_decay=0.1, clipnorm=0.5,
                                       gradient_accumulation_steps=parts if parts > 1 else None)
    optimizer.build(model.trainable_variables)
    rates = []
    size = BATCH // parts
    for i in range(UPDATES * parts):
        rows = slice(i * size, (i + 1) * size)
        used = float(optimizer.learning_rate)
        model.zero_grad()
        wanted = keras.ops.convert_to_tensor(targets[rows])
        keras.ops.mean(keras.ops.square(model(inputs[rows]) - wanted)).backward()
        optimizer.apply([v.value.grad for v in model.trainable_variables],
                        model.trainable_variables)
        if (i + 1) % parts == 0:
            rates.append(used)
    assert int(optimizer.iterations) == len(rates) == UPDATES
    print(f"{name}:", *(f"{rates[i]:.2e}" for i in (0, 7, 8, 31)))
    return np.concatenate([w.ravel() for w in model.get_weights()]), rates


def difference(a, b):
    result = float(abs(a - b).max())
    print(f"    largest difference: {result:.1e}")
    return result


whole, _ = train("constant, whole batches", 0.01, 1)
parts, _ = train("constant, 4 quarters", 0.01, QUARTERS)
assert difference(whole, parts) < 1e-6

whole, rates = train("cosine, whole batches", cosine(UPDATES), 1)
parts, fast = train("cosine, 4 quarters", cosine(UPDATES), QUARTERS)
assert all(rates) and not any(fast[8:])
assert difference(whole, parts) > 0.05

parts, _ = train("cosine four times as long, 4 quarters", cosine(UPDATES * QUARTERS), QUARTERS)
assert difference(whole, parts) < 0.02
END
