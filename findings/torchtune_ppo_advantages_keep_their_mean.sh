#!/usr/bin/env bash
# Guess: torchtune's estimate_advantages gives PPO's advantages (GAE), normalised over the batch as
# elsewhere: mean 0 and variance 1. So whether a reward model's scores are around 5, 0 or -5 is no
# matter where nothing is discounted, and the better half of a batch is made likelier.
#
# torchtune 0.6.1, torch 2.13.0: the variance is 1, but the mean is still there. Its whiten(), taken
# from TRL by its docstring, subtracts the mean, divides, and with shift_mean=True, the default,
# adds the mean back. In TRL (and in OpenAI's code for the first RLHF) that happens with
# shift_mean=False, for rewards; advantages are centred. estimate_advantages goes by the default,
# and there is no setting for it; the PPO recipe calls it as below. So a constant in the scores goes
# into the policy's gradient undivided: with scores around -5 and a value head that is not yet
# trained, PPO makes every text that was drawn less likely, the best as well, and with scores around
# 5 every text likelier. It is so until the value head has learned the mean. whiten(...,
# shift_mean=False) of what estimate_advantages would have normalised is right.
#
# Seen (8 texts of 3 to 6 tokens with scores of standard deviation 1 around a mean, values 0, no
# discount; mean and standard deviation of the advantages of all tokens, and for how many texts the
# gradient of PPOLoss raises the log-probability):
#   scores around -5: mean -5.09, deviation 1.00, 0 of 8 likelier (centred by hand: 0.00, 4 of 8)
#   scores around 0: mean -0.09, deviation 1.00, 3 of 8 likelier (centred by hand: 0.00, 4 of 8)
#   scores around 5: mean 4.91, deviation 1.00, 8 of 8 likelier (centred by hand: 0.00, 4 of 8)
#   whiten(shift_mean=False) is what is centred by hand: True

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'torchao==0.10.0' 'torchtune==0.6.1'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from torchtune import rlhf
from torchtune.rlhf.loss import PPOLoss

TEXTS, LENGTH = 8, 6
torch.manual_seed(0)
lengths = torch.randint(3, LENGTH + 1, (TEXTS,))
real = torch.arange(LENGTH) < lengths[:, None]
noise = torch.randn(TEXTS)
noise = (noise - noise.mean()) / noise.std()
log_probs = -torch.rand(TEXTS, LENGTH)
values = torch.zeros(TEXTS, LENGTH)


def likelier(advantages, returns):
    """Return for each text whether a step on PPO's loss raises its log-probability."""
    new = log_probs.clone().requires_grad_()
    loss, *_ = PPOLoss()(log_probs, new, advantages, values, values, returns, real, real)
    loss.backward()
    return (new.grad * real).sum(1) < 0


by_hand = []
for mean in (-5, 0, 5):
    scores = noise + mean
    rewards, _, _ = rlhf.get_rewards_ppo(scores, log_probs, log_probs, kl_coeff=0.1,
                                         valid_score_idxs=lengths - 1)
    found, returns = rlhf.estimate_advantages(values, rewards, gamma=1.0, lmbda=1.0, masks=real)

    # Without discount and with values of 0, the advantage of each token is the text's score.
    raw = scores[:, None].expand(TEXTS, LENGTH)
    assert torch.allclose(returns[real], raw[real], atol=1e-5)
    centred = torch.where(real, (raw - raw[real].mean()) / raw[real].std(), 0)
    by_hand.append(centred)
    assert torch.allclose(centred, by_hand[0], atol=1e-5)

    up, up_by_hand = likelier(found, returns), likelier(centred, returns)
    print(f"scores around {mean}: mean {found[real].mean():.2f}, deviation "
          f"{found[real].std():.2f}, {up.sum()} of {TEXTS} likelier (centred by hand: "
          f"{abs(centred[real].mean()):.2f}, {up_by_hand.sum()} of {TEXTS})")
    assert torch.allclose(found[real], centred[real] + raw[real].mean(), atol=1e-4)
    assert torch.allclose(centred[real].std(), torch.tensor(1.0), atol=1e-4)
    assert torch.equal(up_by_hand, noise > noise[:, None].expand_as(raw)[real].mean())
    if mean:
        assert up.all() if mean > 0 else not up.any()

same = torch.allclose(rlhf.whiten(raw, mask=real, shift_mean=False)[real], centred[real], atol=1e-4)
print(f"whiten(shift_mean=False) is what is centred by hand: {same}")
assert same
END
