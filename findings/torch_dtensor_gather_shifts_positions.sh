#!/usr/bin/env bash
# Guess: the log-probabilities of a text's tokens, logprobs.gather(-1, tokens[:, 1:, None]), are the
# same for a DTensor that is sharded by positions (sequence or context parallel) as for one tensor,
# at every length.
#
# torch 2.13.0: at some lengths only. gather() takes an index that is smaller than its input in the
# other dimensions, here by the last position, which has no next token. DTensor's rule shards input
# and index alike in such a dimension and lets each process gather in its part. But the n positions
# of the input and the n - 1 of the index are not always cut at the same places: with 2 processes
# and an odd n the second one looks up its tokens in the log-probabilities of the next position.
# Even lengths are right, so a test may well pass. (With more processes, the last one then refuses,
# since its index is larger than its input.) With an index that is smaller by more, as for the
# tokens of a prompt, it is silent for 4 processes, too. The result has the right shape and says
# that it is sharded. backward() is right, as it gathers all first: the loss is that of other
# positions, but the gradients of its mean are the right ones, so that the run learns all the same.
# Those of exp(new - old), a ratio, depend on the numbers and aren't. Cutting the other positions
# off first, logprobs[:, :-1], is right.
#
# Seen (2 texts of a model that is sure of its tokens; mean log-probability by one process, then
# sharded; how many positions have another number, and the largest error of the gradient):
#   2 processes, 15 of 16, gather: -0.20 and -0.20, 0 positions, gradient 1e-08
#   2 processes, 16 of 17, gather: -0.19 and -2.79, 8 positions, gradient 9e-09
#   2 processes, 17 of 18, gather: -0.19 and -0.19, 0 positions, gradient 1e-08
#   2 processes, 18 of 19, gather: -0.18 and -3.01, 9 positions, gradient 9e-09
#   2 processes, 8 of 20, gather: -0.18 and -3.09, 4 positions, gradient 2e-08
#   4 processes, 8 of 20, gather: -0.18 and -4.53, 6 positions, gradient 2e-08
#   (and "cut first" after each of them: the right number, 0 positions)

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


def by_hand(logits, tokens):
    """One position after the other, without gather."""
    rows = []
    for text, ids in zip(logits, tokens):
        rows.append([text[i, ids[i + 1]] - text[i].logsumexp(0) for i in range(len(ids) - 1)])
    return torch.stack([torch.stack(row) for row in rows])


def main(rank, processes, folder):
    store = f"file://{folder}/store{processes}"
    dist.init_process_group("gloo", store, rank=rank, world_size=processes)
    torch.set_num_threads(1)
    mesh = dist.init_device_mesh("cpu", (processes,))
    for length, count in (16, 15), (17, 16), (18, 17), (19, 18), (20, 8):
        torch.manual_seed(0)
        tokens = torch.randint(50, (2, length))
        logits = torch.randn(2, length, 50)
        logits[:, :-1].scatter_(2, tokens[:, 1:, None], 6.0)  # sure of the next token
        logits.requires_grad_()
        right = by_hand(logits, tokens)[:, :count]
        right.mean().backward()
        index = distribute_tensor(tokens[:, 1:1 + count, None].contiguous(), mesh, [Replicate()])

        for name in "gather", "cut first":
            if processes == 4 and count > 8:
                continue
            sharded = distribute_tensor(logits.detach().clone(), mesh, [Shard(1)])
            logprobs = sharded.requires_grad_().log_softmax(-1)
            if name == "cut first":
                logprobs = logprobs[:, :count]
            found = logprobs.gather(-1, index).squeeze(-1)
            found.mean().backward()
            found, gradient = found.full_tensor(), sharded.grad.full_tensor()
            assert found.shape == right.shape
            other = ((found - right).abs() > 1e-4).any(0).sum().item()
            error = (gradient - logits.grad).abs().max().item()
            shifted = name == "gather" and (length % 2 == 1 or count == 8)
            assert (other > 0) == shifted and error < 1e-5
            if rank == 0:
                print(f"{processes} processes, {count} of {length}, {name}: {right.mean():.2f} and",
                      f"{found.mean():.2f}, {other} positions, gradient {error:.0e}", flush=True)
            if shifted:
                # the second process has its own positions, but the tokens of earlier ones
                first, cut = -(-length // processes), -(-count // processes)
                part = logits[:, first:first + cut].detach().log_softmax(-1)
                wrong = part.gather(2, tokens[:, 1 + cut:1 + 2 * cut, None]).squeeze(2)
                assert torch.allclose(found[:, cut:2 * cut], wrong, atol=1e-5)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    for processes in 2, 4:
        torch.multiprocessing.spawn(main, (processes, os.getcwd()), nprocs=processes)
END
OMP_NUM_THREADS=1 venv/bin/python check.py 2>log || { cat log; exit 1; }
