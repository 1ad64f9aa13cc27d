#!/usr/bin/env bash
# Guess: Gefen, "a drop-in replacement for the AdamW optimizer" that keeps its averages in 8 bits
# and shares second moments within blocks, leaves a weight alone whose gradient has always been
# exactly 0 (without weight decay), as AdamW does; and no weight moves by more than a few learning
# rates in a step, but for the rounding and the sharing.
#
# gefen 1.2.3, transformers 5.24.0, torch 2.13.0: weights without a gradient move by hundreds of
# learning rates in the first step and go on in one direction. An average of gradients is kept as
# one of 256 numbers between -1 and 1, learned from the first gradients, times the largest average
# of the block. They are centres of cells of a histogram with an edge at 0; none of them is 0. So an
# average of 0 becomes a small one, say 0.0005 times the largest of its up to 256 neighbours. Where
# a block shares its second moment that does no harm. But Gefen gives many vectors and small
# matrices a second moment for each weight (its "automatic period" is 1), exact, and so 0 here: the
# step is 0.0005 * largest / (0 + 1e-8), each time. In T5, the biases of attention for distances
# that do not occur in training get to -40 or 40 in 100 steps, so that in longer texts all tokens
# farther away are masked, or nothing else is seen. GPT-2's key biases, whose gradient is 0 but for
# rounding (it doesn't change attention), leap as well. The loss in training shows nothing. (The
# CUDA kernels look up the same numbers; not tried here.)
#
# Seen (a small T5 learns texts of 32 tokens; how far the biases of unused distances are moved after
# 1, 10 and 100 steps, in learning rates, the same of used ones, the last loss; then the share of
# attention on tokens 35 and more back in texts of 256; then the farthest moves of GPT-2's biases of
# queries, keys and values in the first step, in learning rates):
#   AdamW: unused 0 0 0 used 1 7 81 loss 1.63, far tokens 0.774, GPT-2 1 0 1
#   Gefen: unused 570 2706 38996 used 1 7 80 loss 1.64, far tokens 1.000, GPT-2 4 808 1
#   the code nearest to 0: -0.0005 of 256

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'transformers==5.24.0' 'gefen==1.2.3'
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

"$folder/venv/bin/python" - 2> "$folder/err" <<'END' || { cat "$folder/err"; exit 1; }
import contextlib
import io

import torch
from gefen import Gefen
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

rate, words = 1e-3, 64


def texts(seed, count, length):
    """Random words, each of which usually decides the next."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randint(2, words, (count, length), generator=source)
    for i in range(1, length):
        usual = torch.rand(count, generator=source) < 0.8
        x[usual, i] = (x[usual, i - 1] * 5 + 1) % (words - 2) + 2
    return x


def made(name, model):
    with contextlib.redirect_stdout(io.StringIO()):         # it says that there is no GPU
        return (torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
                if name == 'AdamW' else Gefen(model.named_parameters(), lr=rate))


for name in 'AdamW', 'Gefen':
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=words, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2,
        dropout_rate=0.0, decoder_start_token_id=0, attn_implementation='eager'))
    optimizer = made(name, model)
    bias = model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    start, unused, far, near = bias.detach().clone(), torch.ones(len(bias)).bool(), [], []
    for step in range(100):
        x = texts(step, 8, 32)
        optimizer.zero_grad()
        loss = model(input_ids=x[:, :4], labels=x).loss
        loss.backward()
        unused &= (bias.grad == 0).all(dim=1)
        optimizer.step()
        if step in (0, 9, 99):
            moved = (bias.detach() - start) / rate
            far.append(round(moved[unused].abs().min().item()))
            near.append(round(moved[~unused].abs().max().item()))
    with torch.no_grad():
        x = texts(1000, 8, 256)
        output = model(input_ids=x[:, :4], labels=x, output_attentions=True)
    share = torch.stack([a[:, :, -1, :-35].sum(dim=-1) for a in output.decoder_attentions]).mean()

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=words, n_positions=32, n_embd=64, n_layer=1, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0))
    optimizer = made(name, model)
    x = texts(0, 8, 32)
    model(input_ids=x, labels=x).loss.backward()
    optimizer.step()
    leaps = [round(part.abs().max().item() / rate)
             for part in model.transformer.h[0].attn.c_attn.bias.detach().split(64)]
    print(f'{name}: unused', *far, 'used', *near, f'loss {loss:.2f}, far tokens {share:.3f},',
          'GPT-2', *leaps)
    if name == 'AdamW':
        assert far == [0, 0, 0] and max(leaps) <= 1 and 0.3 < share < 0.99, (far, leaps, share)
    else:
        codes = optimizer._gefen_codebook
        print(f'the code nearest to 0: {codes[codes.abs().argmin()]:.4f} of {len(codes)}')
        assert far[0] > 50 and far[2] > 5000 and near[2] < 500, (far, near)
        assert share < 0.01 or share > 0.99, share
        assert leaps[1] > 50 and leaps[0] < 10 and leaps[2] < 10, leaps
        assert codes.abs().min() > 0
END
