"""Fine-tunes OpenAI's GPT-2 on your own text.

    python prepare.py --tokenizer=gpt2 --out_dir=data_gpt2
    python train.py config/finetune_gpt2.py
    python sample.py --out_dir=out_finetune --start="O gentle night"
"""
data_dir = "data_gpt2"
out_dir = "out_finetune"
init_from = "gpt2"
block_size = 256
batch_size = 4
gradient_accumulation_steps = 8
max_iters = 0  # no limit: max_epochs ends the run
max_epochs = 3.0
optimizer = "adamw"
learning_rate = 3e-5
lr_schedule = "linear"
warmup_iters = 10
weight_decay = 0.1
dropout = 0.1
eval_interval = 20
eval_iters = 10
snapshot_interval = 20
