#!/usr/bin/env bash
# Guess: parallelize_module() on a tied GPT-2 (RowwiseParallel for wte, ColwiseParallel for lm_head)
# keeps the tie, and the gradients are those of one process.
#
# torch 2.13.0: the tie is lost. Each style replaces the parameters of the module that it is for by
# new ones, and nobody notes that the one of lm_head is that of wte: there are two sharded matrices
# of the same values from then on, although both are cut along the vocabulary, in the same way, and
# could have stayed one. The first loss is exactly right. Each matrix gets its part of the gradient
# only, the optimizer moves them apart with the first step, and the gradient's norm, for clipping,
# is another one. Nothing warns; a checkpoint has both names, as that of a tied model has, and the
# tied GPT-2 that loads it takes the one for the other. fully_shard() looks for shared parameters:
# it keeps the tie if both modules are in one group and refuses otherwise. Setting lm_head.weight =
# wte.weight again after parallelize_module() is right.
#
# Seen (two processes, a GPT-2 of 2 layers with random weights; number of parameters, error of the
# loss and of the gradient of wte and lm_head against one process; after 20 steps of AdamW the
# difference of the two matrices, and of the loss from that of one process):
#   tied, one process: 28 parameters, one matrix, 20 steps 0.00
#   tensor parallel: 29 parameters, loss 0.00, gradients 0.81 0.61, 20 steps 0.19 and 0.02
#   tied again: 28 parameters, loss 0.00, gradients 0.00 0.00, 20 steps 0.00 and 0.00

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0'

cd "$folder"
cat >check.py <<'END'
import os

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel, RowwiseParallel, parallelize_module)
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def make():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0,
                        eos_token_id=0)
    return GPT2LMHeadModel(config)


def losses(model, steps, optimizer=None):
    for step in range(steps):
        tokens = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(step))
        logits = model(tokens).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        if optimizer:
            optimizer.zero_grad()
        loss.backward()
        if optimizer:
            optimizer.step()
    return loss.item()


def train(model):
    """First loss and gradients, then the loss and both matrices after some steps."""
    first = losses(model, 1)
    wte, head = model.transformer.wte.weight, model.lm_head.weight
    gradients = [whole(weight.grad).clone() for weight in (wte, head)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    last = losses(model, 20, optimizer)
    apart = (whole(wte) - whole(head)).abs().max().item()
    return first, gradients, last, apart, len(list(model.parameters()))


def main(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    mesh = dist.init_device_mesh("cpu", (2,))

    first, gradients, last, apart, count = train(make())
    assert apart == 0
    if rank == 0:
        print(f"tied, one process: {count} parameters, one matrix, 20 steps {apart:.2f}")
    for name in "tensor parallel", "tied again":
        model = make()
        assert model.lm_head.weight is model.transformer.wte.weight
        model = parallelize_module(model, mesh, {
            "transformer.wte": RowwiseParallel(input_layouts=Replicate()),
            "lm_head": ColwiseParallel(output_layouts=Replicate())})
        if name == "tied again":
            model.lm_head.weight = model.transformer.wte.weight
        loss, parts, end, apart, found = train(model)
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip(parts, gradients)]
        total = ((sum(parts) - gradients[0]).norm() / gradients[0].norm()).item()
        if rank == 0:
            print(f"{name}: {found} parameters, loss {abs(loss - first):.2f}, gradients",
                  " ".join(f"{error:.2f}" for error in errors) + ",",
                  f"20 steps {apart:.2f} and {abs(end - last):.2f}", flush=True)
        assert abs(loss - first) < 1e-4
        if name == "tied again":
            assert found == count and max(errors) < 1e-4
            assert apart == 0 and abs(end - last) < 0.01
        else:
            assert found == count + 1 and min(errors) > 0.1 and total < 1e-4
            assert apart > 0.01 and abs(end - last) > 0.01
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (os.getcwd(),), nprocs=2)
END
venv/bin/python check.py 2>errors || { cat errors; exit 1; }
