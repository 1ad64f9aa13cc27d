#!/usr/bin/env bash
# Guess: Prodigy and D-Adaptation have one learning rate for all parameter groups, "lr" times their
# estimate d, and raise an error if groups differ, but for 0: "is only supported for values of 0".
# So a group is frozen by setting its lr to 0, as with any optimizer of torch: its weights stay
# exactly as they are, whether it was trained before or not.
#
# prodigyopt 1.1.2, dadaptation 3.2, torch 2.13.0: only the averages stay as they are. The update
# takes the largest lr of all groups for each of them. So layers that are frozen after some training
# go on for the rest of the run in the direction of their last step, with the full step size, and
# no gradient stops them any more: the loss rises, then d, and Prodigy's steps with d. Layers with
# lr=0 from the start have no averages, but decoupled weight decay still shrinks them. (lr=0 for all
# groups is right, so the end of a schedule is.) What helps is to take the gradients away:
# requires_grad_(False), and grad = None once. The READMEs have no word on freezing, but the release
# notes of D-Adaptation tell of "improved support of edge cases such as learning rate zero".
#
# Seen (a 2-layer GPT-2 that learns to count up; after 100 of 300 steps all but the last block is
# frozen; how far the frozen weights went since then, in brackets by hand (sum of d times the length
# of the frozen average over the root of the frozen squared average), and the mean loss of 10 steps,
# before freezing and at the end):
#   AdamW, lr=0: 0.0, loss 2.2 -> 2.1
#   Prodigy, lr=0: 1230.5 (1231.1), loss 1.2 -> 242.5
#   Prodigy, no gradients: 0.0, loss 1.2 -> 1.0
#   DAdaptAdam, lr=0: 66.1 (66.1), loss 1.4 -> 4.1
#   DAdaptAdam, no gradients: 0.0, loss 1.4 -> 1.1
#   lr=0 from the start, weight_decay=0.1, length of the weights: AdamW 10.0 -> 10.0, Prodigy 10.0
#     -> 9.4 (9.4), DAdaptAdam 10.0 -> 7.6 (7.6)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'prodigyopt==1.1.2' 'dadaptation==3.2'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import torch
from dadaptation import DAdaptAdam
from prodigyopt import Prodigy
from transformers import GPT2Config, GPT2LMHeadModel


def length(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).norm().item()


def train(kind, freeze, at=100, steps=300, **settings):
    """Freeze all but the last block; return lengths, distance, that by hand and losses."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2,
                                       n_head=2, bos_token_id=0, eos_token_id=0)).eval()
    last = list(model.transformer.h[1].parameters())
    rest = [p for p in model.parameters() if all(p is not each for each in last)]
    optimizer = kind([{"params": last}, {"params": rest}], **settings)
    generator, losses, ds = torch.Generator().manual_seed(0), [], []
    for i in range(steps):
        if i == at:
            before = [p.detach().clone() for p in rest]
            states = [{k: v.clone() for k, v in optimizer.state[p].items() if k != "step"}
                      for p in rest]
            if freeze == "lr=0":
                optimizer.param_groups[1]["lr"] = 0.0
            else:
                for p in rest:
                    p.requires_grad_(False)
                    p.grad = None
        start, stride = (torch.randint(low, high, (8, 1), generator=generator)
                         for low, high in ((0, 50), (1, 4)))
        batch = (start + stride * torch.arange(12)) % 50
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        if i >= at:
            ds.append(optimizer.param_groups[0].get("d", 0.0))
        optimizer.step()
        losses.append(loss.item())
    moved, hand = length([p - b for p, b in zip(rest, before)]), 0.0
    if at and kind is not torch.optim.AdamW:  # each repeats its last step
        eps = 1e-8 * ds[0] if kind is Prodigy else 1e-8
        unit = length([s["exp_avg"] / (s["exp_avg_sq"].sqrt() + eps) for s in states])
        # Prodigy multiplies by d; DAdaptAdam's average has it inside, from when it was frozen
        hand = unit * (sum(ds) if kind is Prodigy else len(ds))
    decay = torch.tensor([1 - 0.1 * d for d in ds]).prod().item()
    return (length(before), length(rest), decay, moved, hand,
            sum(losses[at - 10:at]) / 10, sum(losses[-10:]) / 10)


kinds = {"AdamW": (torch.optim.AdamW, {"lr": 1e-3}), "Prodigy": (Prodigy, {}),
         "DAdaptAdam": (DAdaptAdam, {"decouple": True})}
parts = []
for name, (kind, settings) in kinds.items():
    for freeze in ("lr=0", "no gradients")[:1 if name == "AdamW" else 2]:
        _, _, _, moved, hand, first, last = train(kind, freeze, weight_decay=0, **settings)
        wrong = name != "AdamW" and freeze == "lr=0"
        print(f"= {name}, {freeze}: {moved:.1f}{f' ({hand:.1f})' * wrong}, "
              f"loss {first:.1f} -> {last:.1f}")
        if wrong:
            assert moved > 30 and abs(moved / hand - 1) < 0.01 and last > 2 * first
        else:
            assert moved == 0 and last < first
    before, after, decay, *_ = train(kind, "lr=0", 0, weight_decay=0.1, **settings)
    parts.append(f"{name} {before:.1f} -> {after:.1f}"
                 + f" ({before * decay:.1f})" * (name != "AdamW"))
    assert abs(after - before * decay) < 0.01 and (after < 0.96 * before) == (name != "AdamW")
print("= lr=0 from the start, weight_decay=0.1, length of the weights:", ", ".join(parts))
END
sed -n 's/^= //p' "$folder/out"
