#!/usr/bin/env bash
# Guess: generate() of transformers with guidance_scale (classifier-free guidance) compares, at each
# step, the logits after the prompt and the new tokens with those after the negative prompt (without
# one, the prompt's last token) and the same new tokens. So it does with beams, each with its own
# tokens, and with prompt lookup, which only saves time.
#
# transformers 5.24.0, torch 2.13.0: only for greedy decoding and sampling. The processor that does
# it keeps the negative text of each row, or a key/value cache of it, from call to call, and appends
# the last token of the row. In beam search, a row goes on with a beam that stood in another row
# before. generate() reorders its own cache and ids; nothing tells the processor, so a beam is
# compared with a mixture of tokens of several beams, a text that nobody wrote. With prompt lookup,
# the processor is called for every proposed token, also those that are rejected, and these stay in
# its text; the greedy tokens change, which speculation should never do. (An assistant model has the
# same effect, but comes with a warning about the processor.) Nothing is said, and use_cache=False
# doesn't help. The same formula in a processor that keeps nothing is right everywhere.
#
# Seen (a 2-layer GPT-2 with random weights, guidance_scale 1.5, 12 new tokens for 8 prompts; how
# many texts are those of a processor that reads the whole negative text anew at each step):
#   greedy                       8 of 8, with a negative prompt 8 of 8
#   sampling                     8 of 8, with a negative prompt 8 of 8
#   3 beams                      1 of 8, with a negative prompt 0 of 8
#   3 beams, no cache            1 of 8, with a negative prompt 0 of 8
#   3 beams, sampling            1 of 8, with a negative prompt 1 of 8
#   greedy, prompt lookup        0 of 8, with a negative prompt 0 of 8

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3'
cd "$folder"

export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor

SCALE, NEW, VOCABULARY = 1.5, 12, 64


class Guidance(LogitsProcessor):
    """Read the negative prompt (or the prompt's last token) and the row's new tokens, each time."""

    def __init__(self, model, negative, length):
        self.model, self.negative, self.length = model, negative, length

    def __call__(self, ids, scores):
        texts = torch.cat([self.negative.expand(len(ids), -1), ids[:, self.length:]], 1)
        without = self.model(texts, use_cache=False).logits[:, -1].log_softmax(-1)
        return without + SCALE * (scores.log_softmax(-1) - without)


torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.25,
    bos_token_id=0, eos_token_id=None, pad_token_id=0)).eval()
draw = torch.Generator().manual_seed(1)
prompts = [torch.randint(1, VOCABULARY, (1, 8), generator=draw).repeat(1, 2) for _ in range(8)]
negatives = [torch.randint(1, VOCABULARY, (1, 5), generator=draw) for _ in range(8)]


def right(beams, sample, extra, with_negative):
    """Return for how many prompts guidance_scale gives what Guidance gives."""
    count = 0
    for prompt, negative in zip(prompts, negatives):
        settings = {"max_new_tokens": NEW, "num_beams": beams, "do_sample": sample,
                    "attention_mask": torch.ones_like(prompt)}
        options = {"negative_prompt_ids": negative.expand(beams, -1)} if with_negative else {}
        torch.manual_seed(2)
        one = model.generate(prompt, guidance_scale=SCALE, **options, **extra, **settings)
        torch.manual_seed(2)
        two = model.generate(prompt, logits_processor=[Guidance(
            model, negative if with_negative else prompt[:, -1:], prompt.shape[1])], **settings)
        count += torch.equal(one, two)
    return count


for name, beams, sample, extra in (
        ("greedy", 1, False, {}), ("sampling", 1, True, {}), ("3 beams", 3, False, {}),
        ("3 beams, no cache", 3, False, {"use_cache": False}), ("3 beams, sampling", 3, True, {}),
        ("greedy, prompt lookup", 1, False, {"prompt_lookup_num_tokens": 3})):
    counts = [right(beams, sample, extra, with_negative) for with_negative in (False, True)]
    print(f"{name:28} {counts[0]} of 8, with a negative prompt {counts[1]} of 8")
    if name in ("greedy", "sampling"):
        assert counts == [8, 8]
    else:
        assert max(counts) < 6
END
