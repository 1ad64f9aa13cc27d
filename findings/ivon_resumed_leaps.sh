#!/usr/bin/env bash
# Guess: IVON, the optimizer of variational learning from ivon-opt, resumes as AdamW does: with its
# state_dict() loaded, and random numbers from the same seed, training goes on as without a stop, to
# the last bit.
#
# ivon-opt 0.1.3, torch 2.13.0, transformers 5.24.0: the first step after it is ten times as long.
# The average of the gradients is in the checkpoint, but the count of steps, current_step, isn't. So
# the average, which is a full one by now, is divided again by 1 - 0.9 ** 1 = 0.1, then by 0.19,
# 0.271 and so on, as has to be done with one that is fresh. The first ten steps count as 33 that
# way. With beta1=0.95 the first is twenty times as long. It's no matter how small the learning rate
# is at the end of a schedule, the steps are that much longer than it says. Nothing is said about
# it. Setting current_step after loading is a way around; with debias=False there is no factor.
#
# Seen (a 2-layer GPT-2 learns to count by steps of one or two, lr=0.1 as in the README; its loss
# after 300 steps and after 1, 3 and 10 more; length of step 301, divided by that without a stop):
#   beta1=0.9, without a stop: 0.871 0.867 0.861 0.850, 1.0
#   beta1=0.9, resumed: 0.871 0.962 0.948 0.907, 10.0
#   beta1=0.9, resumed, count set: 0.871 0.867 0.861 0.850, 1.0
#   beta1=0.95, without a stop: 0.878 0.877 0.875 0.870, 1.0
#   beta1=0.95, resumed: 0.878 1.011 1.137 0.980, 20.0
#   beta1=0.95, resumed, count set: 0.878 0.877 0.875 0.870, 1.0
#   debias=False, without a stop: 0.891 0.887 0.884 0.881, 1.0
#   debias=False, resumed: 0.891 0.887 0.884 0.881, 1.0
#   debias=False, resumed, count set: 0.891 0.887 0.884 0.881, 1.0

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'ivon-opt==0.1.3'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from ivon import IVON
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
texts = (torch.randint(50, (500, 1)) + torch.randint(1, 3, (500, 16)).cumsum(1)) % 50


def build(**settings):
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))
    return model, IVON(model.parameters(), lr=0.1, ess=1e5, hess_init=0.1, **settings)


def step(model, optimizer):
    batch = texts[torch.randint(len(texts), (4,))]
    with optimizer.sampled_params(train=True):
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
    optimizer.step()


@torch.no_grad()
def loss_of(model):
    return model(texts, labels=texts).loss.item()


def flat(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def go_on(name, model, optimizer, length=None):
    """Make ten more steps; print and return the losses, the first step's length and the weights."""
    torch.manual_seed(1)
    losses, before = [loss_of(model)], flat(model)
    for count in range(1, 11):
        step(model, optimizer)
        if count == 1:
            first = (flat(model) - before).norm().item()
        if count in (1, 3, 10):
            losses.append(loss_of(model))
    factor = first / length if length else 1.0
    print(f"{name}:", *(f"{loss:.3f}" for loss in losses), end=f", {factor:.1f}\n")
    return losses, first, factor, flat(model)


for settings, wanted in (({"beta1": 0.9}, 10), ({"beta1": 0.95}, 20), ({"debias": False}, 1)):
    name = ", ".join(f"{key}={value}" for key, value in settings.items())
    model, optimizer = build(**settings)
    for _ in range(300):
        step(model, optimizer)
    torch.save([model.state_dict(), optimizer.state_dict()], "checkpoint.pt")
    straight, length, _, weights = go_on(f"{name}, without a stop", model, optimizer)
    for count in (None, 300):
        model, optimizer = build(**settings)
        saved = torch.load("checkpoint.pt")
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        assert optimizer.current_step == 0
        if count:
            optimizer.current_step = count
        losses, _, factor, end = go_on(
            f"{name}, resumed" + ", count set" * bool(count), model, optimizer, length)
        if count or wanted == 1:
            assert losses == straight and torch.equal(end, weights)
        else:
            assert abs(factor / wanted - 1) < 0.05 and losses[0] == straight[0]
            assert min(losses[1:]) > max(straight) + 0.03
END
