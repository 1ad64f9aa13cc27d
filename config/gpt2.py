"""GPT-2 (124M) from the beginning, on a corpus of gigabytes, on one GPU or many.

    python prepare.py --input=corpus.txt --tokenizer=gpt2 --out_dir=data_corpus
    python train.py config/gpt2.py --data_dir=data_corpus

Width, depth and context are those of the GPT-2 paper (Radford et al. 2019); what it
doesn't say (learning rate, betas, clipping, warmup, decay to a tenth) is as in the GPT-3 paper's
appendix B for its model of this size, and so is the batch of about half a million tokens.
"""
out_dir = "out_gpt2"
size = "gpt2"
block_size = 1024
batch_size = 16
gradient_accumulation_steps = 32  # 32 * 16 * 1024 = 524,288 tokens an iteration
max_iters = 19_073  # 10 billion tokens; 600,000 in nanoGPT's longest runs
dropout = 0.0  # less than one epoch: there is nothing to overfit
optimizer = "adamw"
learning_rate = 6e-4
min_lr = learning_rate / 10
lr_schedule = "cosine"
warmup_iters = 715  # GPT-3 warms up over 375 million tokens
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0
eval_interval = 250
eval_iters = 100
log_interval = 10
snapshot_interval = 1000
sample_interval = 1000
sample_prompt = "Once upon a time"
