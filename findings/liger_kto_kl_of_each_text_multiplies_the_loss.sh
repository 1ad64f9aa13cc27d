#!/usr/bin/env bash
# Guess: LigerFusedLinearKTOLoss takes the KL of each text (kl, a tensor of shape (batch_size,), as
# its documentation says) off the log-ratio of the same text, and the loss is the mean over the
# texts. chunk_size is about memory: the loss doesn't depend on it.
#
# liger-kernel 0.8.5, torch 2.13.0: only the logits are computed in chunks of texts; kl goes to each
# chunk as a whole. With chunk_size=1, the default, the one log-ratio of a chunk is compared with
# the KL of each text of the batch, and all these terms are added up. The loss is then about
# batch_size times too large, and so is the gradient (a learning rate that grows with the batch
# size); no text is compared with its own KL alone. Other chunk sizes below the batch size end in
# an error about sizes, unless they come out as a single chunk; then the loss is right. So it is
# with a kl of one number: a trainer that passes the mean over the batch isn't concerned.
#
# Seen (8 texts, KL from 0.5 to 4; the loss and the norm of its gradient for the last layer; in
# brackets by hand):
#   kl=None, chunk_size 1: 0.5530 (0.5530), 0.1188 (0.1188)
#   kl=None, chunk_size 8: 0.5530 (0.5530), 0.1188 (0.1188)
#   kl of one number, chunk_size 1: 0.5539 (0.5539), 0.1151 (0.1151)
#   kl of each text, chunk_size 1: 4.4302 (0.5470), 0.9187 (0.1140)
#   kl of each text, chunk_size 8: 0.5470 (0.5470), 0.1140 (0.1140)
#   8 calls, each with a text and its kl, their mean: 0.5470
#   each text with the kl of each, added up by hand: 4.4302

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
# Triton, which it asks for, isn't needed for these losses.
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps 'liger-kernel==0.8.5'
cd "$folder"

OMP_NUM_THREADS=1 venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from liger_kernel.chunked_loss import LigerFusedLinearKTOLoss

TEXTS, LENGTH, WIDTH, WORDS, BETA = 8, 12, 16, 50, 0.1
torch.manual_seed(0)
hidden, hidden_of_reference = torch.randn(2, TEXTS, LENGTH, WIDTH)
head, head_of_reference = 0.3 * torch.randn(2, WORDS, WIDTH)
head.requires_grad_()
targets = torch.randint(WORDS, (TEXTS, LENGTH))
good = torch.arange(TEXTS) % 2 == 0


def log_probs(states, weight, rows):
    logits = (states[rows] @ weight.T).log_softmax(-1)
    return logits.gather(-1, targets[rows, :, None]).sum((1, 2))


def by_hand(kl, rows=slice(None)):
    ratios = log_probs(hidden, head, rows)
    ratios = ratios - log_probs(hidden_of_reference, head_of_reference, rows)
    sign = good[rows].float() * 2 - 1
    return (1 - torch.sigmoid(BETA * sign * (ratios - (0 if kl is None else kl)))).mean()


def liger(kl, chunk_size, rows=slice(None)):
    loss = LigerFusedLinearKTOLoss(
        beta=BETA, compiled=False, use_ref_model=True, chunk_size=chunk_size)
    return loss(hidden[rows], head, targets[rows], preference_labels=good[rows],
                ref_input=hidden_of_reference[rows], ref_weight=head_of_reference, kl=kl)[0]


def gradient(loss):
    return torch.autograd.grad(loss, head)[0].norm().item()


def compare(name, kl, chunk_size):
    """Print, and return the factor of the loss and of the gradient."""
    got, wanted = liger(kl, chunk_size), by_hand(kl)
    norms = gradient(got), gradient(wanted)
    print(f"{name}, chunk_size {chunk_size}: {got.item():.4f} ({wanted.item():.4f}), "
          f"{norms[0]:.4f} ({norms[1]:.4f})")
    return got.item() / wanted.item(), norms[0] / norms[1]


def right(factors):
    return all(abs(factor - 1) < 1e-3 for factor in factors)


kl = torch.arange(1, TEXTS + 1) / 2
assert right(compare("kl=None", None, 1)) and right(compare("kl=None", None, TEXTS))
assert right(compare("kl of one number", kl.mean(), 1))
loss, norm = compare("kl of each text", kl, 1)
assert TEXTS * 0.9 < loss < TEXTS * 1.1 and TEXTS * 0.8 < norm < TEXTS * 1.2
assert right(compare("kl of each text", kl, TEXTS))
for chunk_size in (2, 4):
    try:
        liger(kl, chunk_size)
    except RuntimeError:
        continue
    raise SystemExit(f"no error for chunk_size {chunk_size}")

rows = [slice(row, row + 1) for row in range(TEXTS)]
single = torch.stack([liger(kl[row], 1, row) for row in rows]).mean()
print(f"8 calls, each with a text and its kl, their mean: {single.item():.4f}")
assert abs(single - by_hand(kl)) < 1e-4
every = torch.stack([by_hand(value) for value in kl]).sum()
print(f"each text with the kl of each, added up by hand: {every.item():.4f}")
assert abs(liger(kl, 1) - every) < 1e-4
END
