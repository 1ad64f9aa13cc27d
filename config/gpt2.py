"""GPT-2 (124M) from scratch, on a corpus of gigabytes, on one GPU or many.

    python prepare.py --input=corpus.txt --tokenizer=gpt2 --out_dir=data_corpus
    python train.py config/gpt2.py --data_dir=data_corpus
    torchrun --standalone --nproc_per_node=8 train.py config/gpt2.py --data_dir=data_corpus

Two machines with eight GPUs each: run this on both. node1 is one of the two; both mount /shared.

    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_id=gpt2 \
        --rdzv_endpoint=node1:29500 train.py config/gpt2.py --data_dir=/shared/data_corpus \
        --out_dir=/shared/out_gpt2

Under Slurm, as job.sh; submitting it again resumes the run:

    #!/bin/bash
    #SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=32
    #SBATCH --time=24:00:00
    #SBATCH --signal=TERM@300           # five minutes before the end: write a snapshot and stop
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node=8 --max-restarts=3 \
        --shutdown-timeout=240 --rdzv_backend=c10d --rdzv_id="$SLURM_JOB_ID" \
        --rdzv_endpoint="$first:29500" \
        train.py config/gpt2.py --data_dir=/shared/data_corpus --out_dir=/shared/out_gpt2

With --max-restarts, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is needed: without it, PyTorch 2.13 keeps
its rendezvous store across a restart, and new processes can wait forever for those that were
killed (pytorch/pytorch, issue 135712). Don't combine restarts with --init_from=scratch: it refuses
what the first start has written, and with --overwrite every restart would begin from scratch.

Width, depth and the batch of half a million tokens are those of GPT-2 and of GPT-3's model of this
size, the context is GPT-2's. The optimizer is what was best in 300 iterations of 131,072 tokens of
Linux 6.1's source on an H200, by validation loss: Muon with these learning rates 1.804, AdamW as in
the GPT-3 paper (6e-4, cosine to a tenth) 2.915, nanoGPT with the same 2.979. Muon reached nanoGPT's
loss in 100 iterations, each of which took 1.03 times as long. Longer runs were not compared. AdamW:
--optimizer=adamw --learning_rate=6e-4 --min_lr=6e-5 --lr_schedule=cosine
"""
out_dir = "out_gpt2"
size = "gpt2"
block_size = 1024
batch_size = 16
gradient_accumulation_steps = 32  # 32 * 16 * 1024 = 524,288 tokens per iteration
max_iters = 19_073  # 10 billion tokens; 600,000 in nanoGPT's longest runs
dropout = 0.0  # with 10 billion tokens of text or more, no token is seen twice
optimizer = "muon"
muon_learning_rate = 0.02
learning_rate = 0.002
min_lr = 0.0
lr_schedule = "linear"
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
