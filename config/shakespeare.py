"""The quick start: input.txt in under three minutes on two CPU cores.

    python prepare.py
    python train.py config/shakespeare.py
"""
out_dir = "out"
n_layer = 4
n_head = 4
n_embd = 192
block_size = 64
batch_size = 32
max_iters = 600
