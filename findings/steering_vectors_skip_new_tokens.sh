#!/usr/bin/env bash
# Guess: a vector of the steering-vectors package, applied with min_token_index = the length of the
# prompt, steers what a GPT-2 generates after the prompt, and with token_indices=[0] the first token
# of the text alone. The key/value cache, used unless told otherwise, only saves time.
#
# steering-vectors 0.12.2, transformers 4.57.6 (the versions it allows are below 5): with the cache
# min_token_index = the length of the prompt steers nothing at all. The text is, token by token,
# that of the model as it was. A smaller one steers the rest of the prompt, and no new token;
# token_indices=[0], or a slice that is to stay within the prompt, steers every new token. A layer
# gets the newest token only, and the hook counts from the beginning of what the layer gets, not of
# the text. Without both settings all tokens are steered, with the cache, too; use_cache=False is
# right, and so is a forward pass over the whole text, which shows the effect that generation then
# lacks. So "this vector changes nothing in the answers", and comparisons of where to steer, are of
# something else. The documentation calls it the minimum token index to apply the patch to.
# (token_indices is refused with a message unless min_token_index=None goes with it.)
#
# Seen (a 3-layer GPT-2 with random weights, 8 prompts of 8 tokens, 20 new ones each, greedy; how
# many of the new tokens are the likeliest given the text before them, with the vector added by hand
# at the positions asked for, and without any vector):
#   all, no cache: 160 of 160 with the vector, 40 without
#   all, cache: 160 of 160 with the vector, 40 without
#   from the first new token, no cache: 160 of 160 with the vector, 37 without
#   from the first new token, cache: 33 of 160 with the vector, 160 without
#   from token 4, no cache: 160 of 160 with the vector, 36 without
#   from token 4, cache: 34 of 160 with the vector, 121 without
#   first token, no cache: 160 of 160 with the vector, 149 without
#   first token, cache: 43 of 160 with the vector, 44 without

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==4.57.6' 'tokenizers==0.22.2' 'scikit-learn==1.9.1' \
    'steering-vectors==0.12.2'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from steering_vectors import SteeringVector
from transformers import GPT2Config, GPT2LMHeadModel

PROMPT, NEW, ROWS, LAYER, WIDTH = 8, 20, 8, 1, 64

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=100, n_positions=64, n_embd=WIDTH, n_layer=3, n_head=4, initializer_range=0.2,
    bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
model.generation_config.eos_token_id = None
prompts = torch.randint(1, 100, (ROWS, PROMPT))
direction = 4 * torch.randn(WIDTH)
vector = SteeringVector({LAYER: direction}, "decoder_block")


def generate(**settings):
    """Return the prompts and what the model writes after them, greedily."""
    return model.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts),
                          max_new_tokens=NEW, do_sample=False, **settings)


def likeliest(ids, positions):
    """Return the likeliest tokens after each text, with the vector added by hand at positions."""
    def add(module, inputs, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, positions] += direction
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.transformer.h[LAYER].register_forward_hook(add)
    try:
        with torch.no_grad():
            return model(ids).logits[:, PROMPT - 1:-1].argmax(dim=-1)
    finally:
        handle.remove()


def check(name, where, positions, **settings):
    """Return how many new tokens are right, and how many are those of the model as it was."""
    with vector.apply(model, **where):
        ids = generate(**settings)
        with torch.no_grad():
            whole = model(ids).logits[:, PROMPT - 1:-1].argmax(dim=-1)
    steered = likeliest(ids, positions)
    assert torch.equal(whole, steered)  # one pass over the whole text is as by hand
    new = ids[:, PROMPT:]
    right, plain = [(new == tokens).sum().item() for tokens in (steered, likeliest(ids, []))]
    print(f"{name}: {right} of {new.numel()} with the vector, {plain} without")
    return right, plain, ids


every = ROWS * NEW
for name, where, positions in (
        ("all", {}, slice(None)),
        ("from the first new token", {"min_token_index": PROMPT}, slice(PROMPT, None)),
        ("from token 4", {"min_token_index": 4}, slice(4, None)),
        ("first token", {"token_indices": [0], "min_token_index": None}, slice(0, 1))):
    right, plain, _ = check(f"{name}, no cache", where, positions, use_cache=False)
    assert right == every and plain < every
    right, plain, ids = check(f"{name}, cache", where, positions)
    if name == "all":
        assert right == every and plain < every / 2
    elif positions.start == PROMPT:
        assert right < every / 2 and plain == every
        assert torch.equal(ids, generate())  # as without the vector
    else:
        assert right < every / 2
END
