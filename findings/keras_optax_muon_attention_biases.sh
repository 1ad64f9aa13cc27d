#!/usr/bin/env bash
# Guess: the Muon optimizers of Keras and Optax take the matrices of a transformer's hidden layers
# and leave biases and gains to Adam. (That embeddings and the last layer, matrices like any other,
# may have to be named is well known.)
#
# keras 3.15.1, optax 0.2.8, flax 0.12.8: they go by the number of dimensions, 2 or not, as their
# documentation says. It doesn't say what that means in attention: in both frameworks' own
# MultiHeadAttention the four matrices have 3 dimensions (width, heads, size of a head), the biases
# of queries, keys and values have 2 (heads, size of a head). So it is the wrong way round: those
# biases are orthogonalised, as matrices with one row for each head, and the matrices get Adam, with
# Muon's learning rate. A third of the weights that Muon is for never see it, in silence. In Optax,
# where the two kinds of update differ in size, Adam's elements are over ten times Muon's. There,
# muon_weight_dimension_numbers can say what to do with each parameter; in Keras, exclude_layers can
# only keep the biases out.
#
# Seen (first update, random gradients, learning rate 1: "Adam" if all elements are of one size,
# "Muon" if the matrix is nearly orthogonal; and the elements' root mean square):
#   keras: dense kernel (64, 256) Muon 0.17, query kernel (64, 4, 16) Adam 1.00,
#       query bias (4, 16) Muon 0.16
#   optax: dense kernel (64, 256) Muon 0.11, query kernel (64, 4, 16) Adam 1.47,
#       query bias (4, 16) Muon 0.41

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'keras==3.15.1' 'jax==0.10.2' 'jaxlib==0.10.2' \
    'optax==0.2.8' 'flax==0.12.8' 'numpy==2.4.6'

cd "$folder"
KERAS_BACKEND=jax KERAS_HOME="$folder" JAX_PLATFORMS=cpu \
    "$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from flax import nnx

WIDTH, HEADS = 64, 4
rng = np.random.default_rng(0)


def gradients(shapes):
    """Return random gradients, none of them near 0, where Adam's epsilon would show."""
    drawn = [rng.standard_normal(shape) for shape in shapes]
    return [jnp.asarray(x + 0.1 * np.sign(x), jnp.float32) for x in drawn]


def from_keras():
    """Return the updates of a dense layer's kernel and of an attention layer's parameters."""
    dense, attention = keras.layers.Dense(4 * WIDTH), keras.layers.MultiHeadAttention(
        HEADS, WIDTH // HEADS)
    dense.build((None, None, WIDTH))
    attention.build((None, None, WIDTH), (None, None, WIDTH))
    variables = dense.trainable_variables + attention.trainable_variables
    before = [np.array(variable.value) for variable in variables]
    muon = keras.optimizers.Muon(1.0, weight_decay=None, adam_weight_decay=None)
    muon.apply(gradients(variable.shape for variable in variables), variables)
    return {"/".join(variable.path.split("/")[-2:]): np.array(variable.value) - old
            for variable, old in zip(variables, before)}


def from_optax():
    """Return the same of Flax's layers."""
    dense = nnx.Linear(WIDTH, 4 * WIDTH, rngs=nnx.Rngs(0))
    attention = nnx.MultiHeadAttention(num_heads=HEADS, in_features=WIDTH, decode=False,
                                       rngs=nnx.Rngs(0))
    parameters = {"dense": nnx.to_pure_dict(nnx.state(dense, nnx.Param)),
                  **nnx.to_pure_dict(nnx.state(attention, nnx.Param))}
    leaves, tree = jax.tree.flatten(parameters)
    muon = optax.contrib.muon(1.0)
    updates, _ = muon.update(jax.tree.unflatten(tree, gradients(leaf.shape for leaf in leaves)),
                             muon.init(parameters), parameters)
    return {f"{layer}/{name}": np.asarray(update)
            for layer, both in updates.items() for name, update in both.items()}


def kind(update):
    sizes = np.abs(update)
    if sizes.max() < 1.02 * sizes.min():
        return "Adam"
    singular = np.linalg.svd(update, compute_uv=False)
    assert singular.max() < 2 * singular.min()
    return "Muon"


for library, updates in (("keras", from_keras()), ("optax", from_optax())):
    lines = []
    for name, shape, expected in (("dense/kernel", (64, 256), "Muon"),
                                  ("query/kernel", (64, 4, 16), "Adam"),
                                  ("query/bias", (4, 16), "Muon")):
        update = updates[name]
        assert update.shape == shape and kind(update) == expected, (library, name, kind(update))
        size = np.sqrt(np.mean(update**2))
        lines.append(f"{name.replace('/', ' ')} {shape} {expected} {size:.2f}")
    print(f"{library}: {', '.join(lines[:2])},\n    {lines[2]}")
    for name, update in updates.items():
        if update.ndim == 3:
            assert kind(update) == "Adam"
        if name.split("/")[0] in ("query", "key", "value") and name.endswith("bias"):
            assert kind(update) == "Muon"
END
