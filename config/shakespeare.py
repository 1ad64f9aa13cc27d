"""The quick start: verse from 0.3 MB of text in about two minutes on two CPU cores.

    python prepare.py
    python train.py config/shakespeare.py
    python sample.py --start="O gentle night"

For a text of a megabyte, such as Tiny Shakespeare, add --max_iters=680. This shape is the best on a
GPU, too: larger ones (6 layers of 256 or 384) overfit so short a text and take longer.
How the optimizer's settings and the length were chosen is in tests/bench_train.py.
"""
n_layer = 4
n_head = 4
n_embd = 192
block_size = 64
batch_size = 32
max_iters = 230  # 5 epochs of input.txt; more would overfit
optimizer = "muon"
muon_learning_rate = 0.04
muon_polynomials = "polar-express"
learning_rate = 0.005
weight_decay = 0.1
embedding_weight_decay = 1.0
lr_schedule = "linear"
warmup_iters = 10
eval_interval = ((max_iters or 230) // 8) + 1  # eight evaluations
snapshot_interval = 100
sample_interval = 100
sample_prompt = "\n"
