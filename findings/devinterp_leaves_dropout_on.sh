#!/usr/bin/env bash
# Guess: devinterp's sample() measures the losses of a model's weights as they wander (SGLD). For a
# GPT-2 that was given in evaluation mode, the learning coefficient (LLC) and the Bayesian influence
# function (BIF) come from those: where the weights stand still, no loss changes and the LLC is 0,
# and two copies of a text have a correlation of 1.
#
# devinterp 2.0.1, transformers 5.24.0, torch 2.13.0: not if the model has dropout, as every GPT-2
# has (0.1 in three places, in its config). sample() copies the model and calls train() on the copy,
# for the loss at the start, the steps and the observables, whatever mode it was in; nothing sets it
# back, not even for the observables, which need no gradient. So each loss has new noise, which
# is not from the weights. The LLC is n_beta times a difference of two such losses. The correlations
# of the BIF, and the covariances of the susceptibilities, which are made of small changes of the
# loss, are those of weights and noise together: the smaller the steps, the more noise. Two copies
# of a text are far from alike. No argument changes that, and model.eval() before has no effect
# (the caller's own model is in evaluation mode again afterwards). GPT-2 is in the list of models
# whose layers and heads can be chosen. With dropout 0 in the config everything is as it should be.
#
# Seen (a 2-layer GPT-2 with random weights, 8 texts, two of them the same, 2 chains of 50 draws;
# the losses are the observable's; those by hand are of the weights at the start):
#   weights stand still, no dropout: losses up to 0.0000 from those by hand, LLC -0.000
#   weights stand still, GPT-2 dropout: losses up to 0.2326 from those by hand, LLC 0.086
#   lr = 1e-5, no dropout: losses up to 0.1643 from those by hand, LLC -0.038, correlation of the
#     copies 1.00
#   lr = 1e-5, GPT-2 dropout: losses up to 0.3342 from those by hand, LLC 0.114, correlation of
#     the copies 0.18

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'devinterp==2.0.1' \
    'transformers==5.24.0' 'datasets==5.2.0' 'xarray==2026.9.0' 'zarr==3.1.6'

cd "$folder"
export HF_HUB_OFFLINE=1 TMPDIR="$folder"
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from datasets import Dataset
from devinterp.slt.bif import compute_bif
from devinterp.slt.llc import compute_llc
from devinterp.slt.sampling import sample
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

torch.set_num_threads(1)
torch.manual_seed(1)
texts = torch.randint(50, (8, 17))
texts[1] = texts[0]
data = Dataset.from_dict({"input_ids": texts.tolist()}).with_format("torch")


def measure(dropout, lr):
    torch.manual_seed(0)
    settings = {} if dropout else {"embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0}
    config = GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2,
                        initializer_range=0.1, bos_token_id=0, eos_token_id=0, **settings)
    assert config.resid_pdrop == (0.1 if dropout else 0)
    model = GPT2LMHeadModel(config).eval()
    samples = sample(model, data, {"texts": (data, 1)}, lr=lr, n_beta=30.0, num_chains=2,
                     num_draws=50, batch_size=8, num_init_loss_batches=50, device="cpu")
    assert not model.training
    order = samples.dataset["input_ids_texts"].values
    with torch.no_grad():
        logits = model(torch.tensor(order)).logits[:, :-1]
    by_hand = F.cross_entropy(logits.transpose(1, 2), torch.tensor(order)[:, 1:], reduction="none")
    losses = samples.dataset["loss_texts"].values.mean(-1)  # of 2 chains, 50 draws, 8 texts
    error = abs(losses - by_hand.mean(-1).numpy()).max()
    a, b = [i for i, row in enumerate(order) if (row == texts[0].numpy()).all()]
    twins = float(compute_bif(samples, correlation_method="sequence")["influences"][a, b])
    return error, float(compute_llc(samples)["llc_mean"]), twins


for lr, name in ((1e-20, "weights stand still"), (1e-5, "lr = 1e-5")):
    for dropout in (False, True):
        error, llc, twins = measure(dropout, lr)
        print(f"{name}, {'GPT-2 dropout' if dropout else 'no dropout'}: losses up to {error:.4f} "
              f"from those by hand, LLC {llc:.3f}", end="")
        if lr < 1e-10:
            assert (error > 0.01) == dropout and (abs(llc) > 0.01) == dropout
            print()
        else:
            print(f", correlation of the copies {twins:.2f}")
            assert abs(twins) < 0.8 if dropout else twins > 0.999
END
