"""Overfits a short text, in 20 seconds on two cores: the quickest proof that training works.

    head -c 2000 input.txt > short.txt
    python prepare.py --input=short.txt --vocab_size=400 --val_fraction=0 --test_fraction=0 \
        --out_dir=data_memorize
    python train.py config/memorize.py
    python sample.py --out_dir=out_memorize --temperature=0 --start="Set down, Mizzle."
"""
data_dir = "data_memorize"
out_dir = "out_memorize"
n_layer = 2
n_head = 4
n_embd = 128
block_size = 32  # little context to predict from: the rest has to be memorized
batch_size = 32  # the whole text in each iteration
max_iters = 2000  # it stops long before
lr_schedule = "constant"
target_loss = 0.05  # of one batch; it then repeats the text almost word for word
learning_rate = 0.003
muon_learning_rate = 0.005
weight_decay = 0.0
log_interval = 20
snapshot_interval = 200
sample_prompt = "CHOCK:\n"
num_return_sequences = 1
