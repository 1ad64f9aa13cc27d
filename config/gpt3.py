"""GPT-3's sizes with the learning rate and the batch of each: Table 2.1 of Brown et al. 2020.

    python train.py config/gpt3.py --data_dir=data_corpus                       # 125M
    python train.py config/gpt3.py --size=gpt3-1.3b --data_dir=data_corpus

GPT-3's blocks alternate between dense and sparse attention; here all of them are dense, as in
GPT-2. The optimizer is the paper's; for the smallest size, see what config/gpt2.py says about Muon.
python tests/bench_scale.py --paper estimates the memory and time that each size takes.
"""
_table = {  # learning rate, batch in tokens
    "gpt3-125m": (6.0e-4, 0.5e6),
    "gpt3-350m": (3.0e-4, 0.5e6),
    "gpt3-760m": (2.5e-4, 0.5e6),
    "gpt3-1.3b": (2.0e-4, 1e6),
    "gpt3-2.7b": (1.6e-4, 1e6),
    "gpt3-6.7b": (1.2e-4, 2e6),
    "gpt3-13b": (1.0e-4, 2e6),
    "gpt3-175b": (0.6e-4, 3.2e6),
    "": (6.0e-4, 0.5e6),  # --size= with --n_layer etc.: a shape of your own
}
out_dir = "out_gpt3"
size = "gpt3-125m"  # --size on the command line wins, also in the lines below
if size not in _table:
    raise ValueError(f"{size=}: expected one of {', '.join(filter(None, _table))}")
learning_rate, _batch = _table[size]
min_lr = learning_rate / 10
block_size = 2048
batch_size = 8
gradient_accumulation_steps = 8 * max(1, round(_batch / (8 * batch_size * block_size)))  # 8 GPUs
max_iters = round(300e9 / (gradient_accumulation_steps * batch_size * block_size))
lr_decay_iters = round(max_iters * 260 / 300)  # the cosine ends after 260 billion tokens
lr_schedule = "cosine"
warmup_iters = round(375e6 / (gradient_accumulation_steps * batch_size * block_size))
optimizer = "adamw"
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0
eval_interval = 500
eval_iters = 50
snapshot_interval = 1000
