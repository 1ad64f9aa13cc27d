#!/usr/bin/env bash
# Guess: F.mse_loss() of a DTensor, a batch that is sharded over the processes, gives the loss and
# the gradients of the whole batch in one process, as cross_entropy() and (x - y).pow(2).mean() do.
#
# torch 2.13.0: the loss is right, its gradient is as many times too large as there are processes;
# so are those of smooth_l1_loss, huber_loss and soft_margin_loss. DTensor has no rule for
# aten::mse_loss_backward. It looks at the function's decomposition for the placements that would
# be right, (input - target) * grad * 2 / input.numel(), finds that each shard can be done alone,
# and then runs not the decomposition but the function itself on the shards, where numel() is that
# of the shard. Of the decomposition's two parts the number is not checked. If the last shard is
# smaller, the gradients of its rows are too large by more than those of the others, and the loss is
# the mean of the shards' means. Nothing is said. A distillation's or a value head's loss so weighs
# 8 times as much beside the cross entropy on 8 processes. reduction="sum" and a mean by hand are
# right, and binary_cross_entropy_with_logits and kl_div are.
#
# Seen (a linear head on a model's last states, sharded by texts; the loss and the gradient of the
# head's weight, divided by those of one process):
#   2 processes, 8 texts, by hand: loss 1.00, gradient 1.00
#   2 processes, 8 texts, mse_loss, sum: loss 1.00, gradient 1.00
#   2 processes, 8 texts, bce_with_logits: loss 1.00, gradient 1.00
#   2 processes, 8 texts, kl_div: loss 1.00, gradient 1.00
#   2 processes, 8 texts, mse_loss: loss 1.00, gradient 2.00
#   2 processes, 8 texts, huber_loss: loss 1.00, gradient 2.00
#   2 processes, 8 texts, smooth_l1_loss: loss 1.00, gradient 2.00
#   2 processes, 8 texts, soft_margin_loss: loss 1.00, gradient 2.00
#   2 processes, 7 texts, by hand: loss 1.00, gradient 1.00
#   2 processes, 7 texts, mse_loss: loss 1.03, gradient 2.08
#   4 processes, ... (the first four as above)
#   4 processes, 8 texts, mse_loss: loss 1.00, gradient 4.00 (and the three like it)
#   4 processes, 7 texts, mse_loss: loss 1.07, gradient 4.34

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'numpy==2.4.6'

cd "$folder"
cat >check.py <<'END'
import os

import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn import functional as F

LOSSES = {
    "by hand": lambda x, y: (x - y).pow(2).mean(),
    "mse_loss, sum": lambda x, y: F.mse_loss(x, y, reduction="sum"),
    "bce_with_logits": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
    "kl_div": lambda x, y: F.kl_div(x.log_softmax(1), y.softmax(1)),
    "mse_loss": F.mse_loss,
    "huber_loss": F.huber_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "soft_margin_loss": lambda x, y: F.soft_margin_loss(x, y.sign()),
}


def main(rank, processes, folder):
    store = f"file://{folder}/store{processes}"
    dist.init_process_group("gloo", store, rank=rank, world_size=processes)
    torch.set_num_threads(1)
    mesh = dist.init_device_mesh("cpu", (processes,))
    for texts in 8, 7:
        torch.manual_seed(0)
        states, target, head = torch.randn(texts, 16), torch.randn(texts, 8), torch.randn(8, 16)
        for name, function in LOSSES.items():
            weight = head.clone().requires_grad_()
            right = function(states @ weight.T, target)
            right.backward()

            shared = distribute_tensor(head.clone(), mesh, [Replicate()]).requires_grad_()
            split = [distribute_tensor(part, mesh, [Shard(0)]) for part in (states, target)]
            loss = function(split[0] @ shared.T, split[1])
            loss.backward()

            part = (loss.full_tensor() / right).item()
            found = shared.grad.full_tensor()
            times = ((found * weight.grad).sum() / weight.grad.square().sum()).item()
            error = ((found - weight.grad).norm() / weight.grad.norm()).item()
            wrong = list(LOSSES).index(name) > 3
            if rank == 0 and (texts == 8 or name in ("by hand", "mse_loss")):
                print(f"{processes} processes, {texts} texts, {name}: loss {part:.2f},",
                      f"gradient {times:.2f}", flush=True)
            if texts == 8 and wrong:
                assert abs(part - 1) < 1e-3
                assert torch.allclose(found, processes * weight.grad, atol=1e-4)
            elif name == "by hand" or name == "mse_loss, sum":
                assert abs(part - 1) < 1e-3 and error < 1e-3
            elif name == "mse_loss":
                assert abs(part - 1) > 1e-3 and times > 1.5
            elif texts == 8:
                assert abs(part - 1) < 1e-3 and error < 1e-3
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    for processes in 2, 4:
        torch.multiprocessing.spawn(main, (processes, os.getcwd()), nprocs=processes)
END
OMP_NUM_THREADS=1 venv/bin/python check.py 2>log || { cat log; exit 1; }
