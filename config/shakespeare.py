"""The quick start: verse from a text of 0.3 to 1 MB in one to three minutes on two CPU cores.

    python prepare.py
    python train.py config/shakespeare.py
    python sample.py --start="O gentle night"

For a text of a megabyte, such as Tiny Shakespeare, add --max_iters=970.
"""
import torch

n_layer = 4
n_head = 4
n_embd = 192
block_size = 64
batch_size = 32
max_iters = 394  # 9 epochs of input.txt: then it begins to know the text by heart
dropout = 0.05  # makes that later
optimizer = "muon"
muon_learning_rate = 0.04
learning_rate = 0.005
weight_decay = 0.1
lr_schedule = "linear"
warmup_iters = 10
eval_interval = 240
snapshot_interval = 100
sample_interval = 240
sample_prompt = "\n"

if device == "cuda" or (device == "auto" and torch.cuda.is_available()):  # noqa: F821
    n_layer = 6
    n_head = 6
    n_embd = 384
    block_size = 128
    batch_size = 64
    dropout = 0.2  # costs a GPU nothing
    max_iters = 300
