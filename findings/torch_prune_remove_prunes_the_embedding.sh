#!/usr/bin/env bash
# Guess: torch.nn.utils.prune.l1_unstructured on the output layer of a GPT-2 prunes its token
# embedding, too, since both are one matrix: the embedding sees the pruned weights. The zeros stay
# through training.
#
# torch 2.13.0, transformers 5.24.0: not until prune.remove(), and then all at once. Pruning leaves
# the shared matrix as it is, as "weight_orig", and gives the output layer a masked copy before each
# forward. So the embedding goes on with all its weights, and a model that is trained and evaluated
# like this has a dense embedding and a sparse output. remove(), which by its documentation makes
# the pruning permanent and for any other layer changes nothing in what is computed, puts the
# masked values into the shared matrix. Now most of the embedding is gone, too, and with it what
# was learned while it was there: the model that is saved isn't the one that was measured. No
# warning. Untying the two first (a clone of the matrix for lm_head) does what one expects.
#
# Seen (a 2-layer GPT-2, trained on a toy language; 80 % of lm_head pruned, then trained on):
#   tied:
#     loss 0.395 before pruning
#     loss 0.403 before remove(); zeros: head 0.80, embedding 0.00
#     loss 1.129 after remove(); zeros: head 0.80, embedding 0.80
#   untied first:
#     loss 0.395 before pruning
#     loss 0.400 before remove(); zeros: head 0.80, embedding 0.00
#     loss 0.400 after remove(); zeros: head 0.80, embedding 0.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from torch.nn.utils import prune
from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)
VOCABULARY, PRUNED = 96, 0.8


def texts(count):
    """Return texts of a toy language, in which the next token is a function of two."""
    rows = torch.randint(0, VOCABULARY, (count, 2))
    for _ in range(14):
        following = (rows[:, -1] * 5 + rows[:, -2] % 2 + 1) % VOCABULARY
        rows = torch.cat([rows, following[:, None]], 1)
    return rows


def train(model, steps):
    """Train the model for some steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        ids = texts(32)
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()


@torch.no_grad()
def loss(model):
    """Return the loss on texts that are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ids = texts(256)
    return model(ids, labels=ids).loss.item()


def zeros(layer):
    """Return the part of the layer's weights, as its forward uses them, that is 0."""
    return (layer.weight == 0).float().mean().item()


seen = {}
for tied in (True, False):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=48, n_layer=2, n_head=4, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None))
    head, embedding = model.lm_head, model.transformer.wte
    assert head.weight is embedding.weight
    train(model, 400)
    if not tied:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
    print("tied:" if tied else "untied first:")
    dense = loss(model)
    prune.l1_unstructured(head, "weight", PRUNED)
    train(model, 200)
    before = loss(model), zeros(head), zeros(embedding)
    prune.remove(head, "weight")
    after = loss(model), zeros(head), zeros(embedding)
    assert (head.weight is embedding.weight) == tied
    print(f"  loss {dense:.3f} before pruning")
    for when, values in (("before", before), ("after", after)):
        print("  loss {:.3f} {} remove(); zeros: head {:.2f}, embedding {:.2f}".format(
            values[0], when, *values[1:]))
    assert abs(before[1] - PRUNED) < 1e-3 and before[1] == after[1] and before[2] == 0
    if tied:
        assert after[2] == after[1] and after[0] > before[0] + 0.1
    else:
        assert after[2] == 0 and abs(after[0] - before[0]) < 1e-5
END
