#!/usr/bin/env bash
# Guess: orbax's CheckpointManager with best_fn, best_mode="min" and max_to_keep=2 keeps the two
# checkpoints with the smallest validation loss. If a run diverges and the loss is NaN, that
# checkpoint is the worst, and goes first; the good ones from before stay.
#
# orbax-checkpoint 0.12.8, jax 0.10.2: a NaN counts as the best. The checkpoint with it is kept, and
# a good one deleted for it, on disk; best_step() gives the diverged one, and restoring it gives
# weights of NaN. With max_to_keep=1 nothing else is left. It's so with best_mode="max", too, so NaN
# isn't taken for a small or large number: the checkpoints are sorted by their value with Python's
# sorted(), and the last ones stay. A NaN is neither smaller nor larger than anything, so that it
# stays at the end, where it was put as the newest. While it's there, later checkpoints with bad
# losses take the place of better ones, too, until the best of the whole run are gone. Nothing is
# said about it. A best_fn that turns NaN into infinity (minus infinity for "max") keeps the right
# ones. The documentation of best_fn, best_mode and BestN says nothing about NaN.
#
# Seen (validation losses of steps 0, 1, 2 ...; the steps that are left, best_step(), the loss and
# the weights that restoring it gives, which are the step's number, or NaN if the loss is):
#   min of 3.1 2.2 2.0 2.4, keep 2: steps [1, 2], best 2, loss 2.0, weights 2.0
#   min of 3.1 2.2 2.0 inf, keep 2: steps [1, 2], best 2, loss 2.0, weights 2.0
#   min of 3.1 2.2 2.0 nan, keep 2: steps [2, 3], best 3, loss nan, weights nan
#   min of 3.1 2.2 2.0 nan, keep 1: steps [3], best 3, loss nan, weights nan
#   min of 3.1 2.2 2.0 nan 7.5, keep 2: steps [3, 4], best 4, loss 7.5, weights 4.0
#   min of 3.1 2.2 2.0 nan 7.5 7.1 6.9, keep 2: steps [5, 6], best 6, loss 6.9, weights 6.0
#   max of 0.3 0.6 0.7 nan, keep 2: steps [2, 3], best 3, loss nan, weights nan
#   with a best_fn that makes it infinity:
#   min of 3.1 2.2 2.0 nan, keep 2: steps [1, 2], best 2, loss 2.0, weights 2.0
#   min of 3.1 2.2 2.0 nan 7.5 7.1 6.9, keep 2: steps [1, 2], best 2, loss 2.0, weights 2.0

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'jax==0.10.2' \
    'jaxlib==0.10.2' 'orbax-checkpoint==0.12.8'

cd "$folder"
export JAX_PLATFORMS=cpu
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import itertools
import math
import os

import jax.numpy as jnp
import orbax.checkpoint as ocp

count = itertools.count()
nan = math.nan


def run(losses, keep, best_fn=lambda metrics: metrics["loss"], mode="min"):
    where = os.path.abspath(f"run{next(count)}")
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, best_fn=best_fn, best_mode=mode)
    with ocp.CheckpointManager(where, options=options) as manager:
        for step, loss in enumerate(losses):
            weights = {"wte": jnp.full((2, 3), nan if math.isnan(loss) else step, jnp.float32)}
            manager.save(step, args=ocp.args.StandardSave(weights), metrics={"loss": loss})
        manager.wait_until_finished()
        best = manager.best_step()
        weight = manager.restore(best, args=ocp.args.StandardRestore(weights))["wte"][0, 0].item()
    with ocp.CheckpointManager(where, options=options) as manager:  # what is on disk
        assert manager.best_step() == best
        left = sorted(manager.all_steps())
    assert left == sorted(int(name) for name in os.listdir(where) if name.isdigit())
    print(f"{mode} of {' '.join(map(str, losses))}, keep {keep}: steps {left}, best {best}, "
          f"loss {losses[best]}, weights {weight}")
    return left, best


def no_nan(metrics):
    return math.inf if math.isnan(metrics["loss"]) else metrics["loss"]


assert run([3.1, 2.2, 2.0, 2.4], 2) == ([1, 2], 2)
assert run([3.1, 2.2, 2.0, math.inf], 2) == ([1, 2], 2)
assert run([3.1, 2.2, 2.0, nan], 2) == ([2, 3], 3)
assert run([3.1, 2.2, 2.0, nan], 1) == ([3], 3)
assert run([3.1, 2.2, 2.0, nan, 7.5], 2) == ([3, 4], 4)
assert run([3.1, 2.2, 2.0, nan, 7.5, 7.1, 6.9], 2) == ([5, 6], 6)
assert run([0.3, 0.6, 0.7, nan], 2, mode="max") == ([2, 3], 3)
print("with a best_fn that makes it infinity:")
assert run([3.1, 2.2, 2.0, nan], 2, no_nan) == ([1, 2], 2)
assert run([3.1, 2.2, 2.0, nan, 7.5, 7.1, 6.9], 2, no_nan) == ([1, 2], 2)
END
