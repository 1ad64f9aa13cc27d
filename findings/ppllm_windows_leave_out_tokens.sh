#!/usr/bin/env bash
# Guess: ppllm's windowed perplexity ("of arbitrarily long texts") scores each token of a text once,
# in windows that advance by half of their width. Perplexity is the exponential of the mean over the
# tokens that were predicted: all, or without BOS, as the README says, all but the first.
#
# ppllm 0.2.3 (the newest) with transformers 5.24.0, torch 2.13.0: neither is true for GPT-2.
# (1) After the first window, the logits of the older half are cut off as if they were aligned with
# the tokens, not one ahead: the first token that is new in a window is predicted by the last logits
# that are cut off, and in the window before it was past the end. So one token of each half window
# is in none. Its surprisal is missing in the sum, but it is counted: with the 64 of the README one
# of 32 tokens is free, so that a perplexity of 1000 becomes 1000 ** (31 / 32) = 806, and a smaller
# window makes it better still, where less context should make it worse. A text that fits in one
# window is not affected. (2) Whether there is a BOS is decided by tokenizer.bos_token. GPT-2 has
# one, <|endoftext|>, but its tokenizer doesn't put it before a text. So n - 1 surprisals are
# divided by n; a text of two tokens has the square root of its perplexity. (lmppl 0.3.2, by its
# source, divides by n - 1.) With a tokenizer that begins with BOS only (1) remains.
#
# Seen (a 2-layer GPT-2 with random weights; in brackets by hand, every token once):
#   GPT-2, 128 tokens, no window: 127 predicted, perplexity 1582.81 (127, 1677.34)
#   GPT-2, 128 tokens, window 64: 125 predicted, perplexity 1409.83 (127, 1707.46)
#   GPT-2, 128 tokens, window 8: 97 predicted, perplexity 285.27 (127, 1365.07)
#   GPT-2, 2 tokens, no window: 1 predicted, perplexity 31.31 (1, 980.26)
#   with BOS, 128 tokens, no window: 128 predicted, perplexity 1738.07 (128, 1738.07)
#   with BOS, 128 tokens, window 64: 125 predicted, perplexity 1320.22 (128, 1565.66)
#   with BOS, 128 tokens, window 8: 97 predicted, perplexity 253.93 (128, 1326.67)
#   with BOS, 2 tokens, no window: 2 predicted, perplexity 1296.94 (2, 1296.94)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'transformers==5.24.0' \
    'tokenizers==0.23.3' 'datasets==5.2.0' 'jsonargparse==4.41.0'
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps 'ppllm==0.2.3'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import random

import torch
from ppllm.ppl import LoaderKwargs, compute_ppl, sample_level
from ppllm.utils import fix_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
letters = [END_OF_TEXT] + sorted(pre_tokenizers.ByteLevel.alphabet())


def tokenizer(bos):
    """Return a tokenizer with one token for each letter, with or without BOS before a text."""
    letterwise = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    letterwise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letterwise.decoder = decoders.ByteLevel()
    if bos:
        letterwise.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)])
    result = PreTrainedTokenizerFast(tokenizer_object=letterwise, bos_token=END_OF_TEXT,
                                     eos_token=END_OF_TEXT)
    fix_tokenizer(result)
    return result


def by_hand(ids, window):
    """Return the loss of each token but the first, from windows that begin every half window."""
    losses = {}
    for start in range(0, len(ids), (window or len(ids)) // 2):
        part = torch.tensor([ids[start:start + (window or len(ids))]])
        with torch.no_grad():
            logs = model(part).logits[0].log_softmax(-1)
        for i in range(1, part.shape[1]):
            losses.setdefault(start + i, -logs[i - 1, part[0, i]].item())
    return losses


torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    vocab_size=257, n_positions=256, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
    bos_token_id=0, eos_token_id=0)).eval()
random.seed(0)
text = "".join(random.choices("abcdefgh ", k=128))

for name, bos in (("GPT-2", False), ("with BOS", True)):
    for length, window in ((128, None), (128, 64), (128, 8), (2, None)):
        seen = compute_ppl([{"text": text[:length]}], model, tokenizer(bos), window=window,
                           loader_kwargs=LoaderKwargs(batch_size=1, num_workers=0))
        count = len(seen["all_losses"])
        found = sample_level(*(seen[x] for x in ("total_losses", "total_chars", "total_tokens")))
        ids = tokenizer(bos)(text[:length])["input_ids"]
        losses = by_hand(ids, window)
        truth = torch.tensor(list(losses.values())).mean().exp().item()
        print(f"{name}, {length} tokens, {f'window {window}' if window else 'no window'}: {count} "
              f"predicted, perplexity {found['ppls'].item():.2f} ({len(losses)}, {truth:.2f})")
        # what is seen is the sum by hand without the first new token of each later window
        lost = range(window, len(ids), window // 2) if window else []
        total = sum(losses.values()) - sum(losses[i] for i in lost)
        assert len(losses) == len(ids) - 1 and count == len(losses) - len(lost)
        assert abs(seen["total_losses"].item() / total - 1) < 1e-4
        assert abs(found["ppls"].log2().item() / (total / length / 0.6931472) - 1) < 1e-4
        if bos and not window:
            assert abs(found["ppls"].item() / truth - 1) < 1e-3
        else:
            assert found["ppls"].item() < 0.96 * truth
END
