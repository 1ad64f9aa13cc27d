#!/bin/bash
# Guess: mlx-lm gives greedily for a GPT-2 the same tokens with a draft model (speculative decoding)
# as without one, also with its penalties for repetition: a draft model only saves time.
#
# mlx-lm 0.32.2 (mlx 0.32.4, CPU): not with a penalty. The penalties, as all logits processors, are
# given the tokens so far: without a draft model, and in a batch, the prompt and the new ones. With
# one, the prompt is read into the caches of both models and isn't added to that list; of the prompt
# only the last token is on it. So what stands in the prompt isn't penalised, whatever the draft
# model proposes and even if it's the model itself. The first 20 new tokens are affected (the window
# of the penalties), more with a larger window, and any processor that looks for something in the
# prompt. In 0.31.3 it was so without a draft model, too (issue 1773); only that was corrected. By
# its source, mlx_lm.server with --draft-model does the same with a request's repetition_penalty.
#
# Seen (GPT-2 with random weights, 4 prompts of 14 to 19 letters, 12 new letters, presence_penalty
# 1.5; how many are as computed by hand with the whole prompt, and with only its last letter; the
# letters after "thequickbrownfox"):
#   no draft model, penalty 0: 4 of 4 right, 4 of 4 without the prompt; kssosypbvkcc
#   in a batch, penalty 0: 4 of 4 right, 4 of 4 without the prompt; kssosypbvkcc
#   draft model: itself, penalty 0: 4 of 4 right, 4 of 4 without the prompt; kssosypbvkcc
#   draft model: another, penalty 0: 4 of 4 right, 4 of 4 without the prompt; kssosypbvkcc
#   no draft model, penalty 1.5: 4 of 4 right, 0 of 4 without the prompt; vsypgympvcuc
#   in a batch, penalty 1.5: 4 of 4 right, 0 of 4 without the prompt; vsypgympvcuc
#   draft model: itself, penalty 1.5: 0 of 4 right, 4 of 4 without the prompt; ksvmpcoygisc
#   draft model: another, penalty 1.5: 0 of 4 right, 4 of 4 without the prompt; ksvmpcoygisc

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6' 'transformers==5.24.0' \
    'tokenizers==0.23.3' 'mlx==0.32.4' 'mlx-cpu==0.32.4' 'mlx-lm==0.32.2' 2>"$folder/log" ||
    { cat "$folder/log"; exit 1; }

cd "$folder"
export HF_HUB_OFFLINE=1
venv/bin/python - 2>log <<'PY' || { cat log; exit 1; }
from string import ascii_lowercase

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm import batch_generate, stream_generate
from mlx_lm.models.gpt2 import Model, ModelArgs
from mlx_lm.sample_utils import make_logits_processors
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

NAMES = [*ascii_lowercase, "<|endoftext|>"]
PROMPTS = ("thequickbrownfox", "jumpsoverthelazydog", "loremipsumdolorsit", "attentionisall")
NEW = 12


def gpt2(seed):
    mx.random.seed(seed)
    model = Model(ModelArgs(model_type="gpt2", n_ctx=64, n_positions=64, n_embd=32, n_head=2,
                            n_layer=2, layer_norm_epsilon=1e-5, vocab_size=len(NAMES)))
    model.update(tree_map(lambda p: 0.3 * mx.random.normal(p.shape) if p.ndim > 1 else p,
                          model.parameters()))
    return model


def by_hand(ids, context, penalty):
    """Return the new ids, those among the last 20 of context and the new ones being penalised."""
    new = []
    for _ in range(NEW):
        logits = np.array(model(mx.array([ids + new]))[0, -1])
        logits[-1] = -np.inf
        logits[list(set((context + new)[-20:]))] -= penalty
        new.append(int(logits.argmax()))
    return new


model, other = gpt2(0), gpt2(1)
tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(NAMES)}, merges=[]))
tokenizer.decoder = decoders.Fuse()
tokenizer = TokenizerWrapper(
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=NAMES[-1]))
prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
assert [len(ids) for ids in prompts] == [len(prompt) for prompt in PROMPTS]

for penalty in (0, 1.5):
    options = {"max_tokens": NEW, "logits_processors": make_logits_processors(
        logit_bias={len(NAMES) - 1: -1e9}, presence_penalty=penalty)}
    whole = [by_hand(ids, ids, penalty) for ids in prompts]
    last = [by_hand(ids, ids[-1:], penalty) for ids in prompts]
    for name, draft in (("no draft model", {}), ("in a batch", None),
                        ("draft model: itself", {"draft_model": model}),
                        ("draft model: another", {"draft_model": other, "num_draft_tokens": 3})):
        if draft is None:
            texts = batch_generate(model, tokenizer, prompts, **options).texts
            found = [tokenizer.encode(text) for text in texts]
        else:
            found = [[part.token for part in stream_generate(model, tokenizer, ids, **options,
                                                             **draft)] for ids in prompts]
        print(f"{name}, penalty {penalty}: {sum(map(list.__eq__, found, whole))} of 4 right, "
              f"{sum(map(list.__eq__, found, last))} of 4 without the prompt; "
              f"{tokenizer.decode(found[0])}")
        assert found == (last if draft else whole)
    assert penalty == 0 or not any(map(list.__eq__, whole, last))
PY
