#!/usr/bin/env bash
# Guess: litgpt's generate_fn() and batched_generate_fn() stop at the first place where one of the
# stop sequences, of one token or several, stands in the new text, whatever is before it.
#
# litgpt 0.5.13, torch 2.13.0: not if the token before it is the sequence's own first one. For each
# stop sequence litgpt counts how many of its tokens have come so far. A token that doesn't go on
# with it sets the count to 0, without looking whether that token is the first one of a new match.
# So for the two tokens "\n", "User", where the model's turn ends, an empty line before "User" is
# enough: the second newline breaks the match that the first began and isn't counted itself. The
# model goes on and writes the user's part, too, and the rest of the conversation. With a space, a
# full stop or a letter before the sequence it stops, as it does for sequences of one token. (The
# batched function then leaves the sequence's beginning, here the newline, in the text.)
#
# Seen (a model that writes a given text; GPT-2's ids: 198 is a newline, 12982 "User", 220 a
# space; new tokens that come out):
#   one newline, generate_fn: 314 716 13
#   one newline, batched_generate_fn: 314 716 13 198
#   two newlines, generate_fn: 314 716 13 198 198 12982 25 17250 0
#   two newlines, batched_generate_fn: 314 716 13 198 198 12982 25 17250 0
#   newline, space, newline, generate_fn: 314 716 13 198 220
#   newline, space, newline, batched_generate_fn: 314 716 13 198 220 198

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'litgpt==0.5.13' 'lightning==2.6.6'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from litgpt.generate.base import batched_generate_fn, generate_fn


class Recital(torch.nn.Module):
    """A model that is certain of the next token of one text."""

    def __init__(self, ids):
        super().__init__()
        self.ids = ids
        self.max_seq_length = 64

    def forward(self, idx, input_pos, input_pos_maxp1=None):
        logits = torch.zeros(*idx.shape, 50257)
        logits[:, -1, self.ids[input_pos[-1] + 1]] = 50.0
        return logits


prompt = torch.tensor([15496, 11])
stop = [198, 12982]
end = [12982, 25, 17250, 0]
texts = {"one newline": [314, 716, 13, 198, *end],
         "two newlines": [314, 716, 13, 198, 198, *end],
         "newline, space, newline": [314, 716, 13, 198, 220, 198, *end]}
for name, text in texts.items():
    model = Recital([*prompt.tolist(), *text])
    options = {"stop_tokens": (stop,), "include_prompt": False, "include_eos": False}
    length = len(prompt) + len(text)
    alone = [int(token) for token in generate_fn(
        model, prompt, length, temperature=0.0, **options)]
    batch = [int(tokens[0]) for tokens in batched_generate_fn(
        model, prompt[None], length, sample_args={"temperature": 0.0}, **options)]
    place = next(i for i in range(len(text)) if text[i:i + 2] == stop)
    for way, seen in (("generate_fn", alone), ("batched_generate_fn", batch)):
        print(f"{name}, {way}:", *seen)
        extra = 1 if way == "batched_generate_fn" else 0
        assert seen == (text if name == "two newlines" else text[:place + extra])
END
