#!/bin/bash
# Guess: GRPOLoss of torchrl with kl_to_ref_coeff=c adds c times the mean of the KL estimate over
# the tokens that count, those of the response, as the objective is a mean over them. How long the
# prompts are, and how much padding a batch has, is no matter.
#
# torchrl 0.14.1, tensordict 0.14.3, torch 2.13.0: the KL is divided by the number of all tokens,
# those of the prompt and padding, too. They are set to 0 by the mask, and then mean() goes over the
# whole tensor; objective and entropy are divided by the tokens in the mask. So the same coefficient
# is another one for each batch: with prompts seven times as long as the responses the model is
# held to its reference an eighth as much as meant, and one long prompt in a batch loosens it for
# all others. The kl_to_ref that is logged is too small by the same factor, so that a model seems
# to stay near its reference. kl_to_inference comes from the same function, and DAPO and CISPOLoss
# inherit it. Neither "token_mean" nor "prompt_mean" for aggregation changes it, and nothing of it
# is in the documentation of the loss.
#
# Seen (a small Llama, three responses of 8 tokens, coefficient 1; the norm of the gradient is that
# of the KL's part of the loss; in brackets by hand):
#   no prompt but one token: objective -0.167, KL 0.2977 (0.3349), gradient 3.349 (3.767)
#   prompts of 8: objective -0.167, KL 0.1056 (0.2113), gradient 1.848 (3.697)
#   prompts of 8, padding of 48: objective -0.167, KL 0.0264 (0.2113), gradient 0.462 (3.697)
#   the same, prompt_mean: objective -0.167, KL 0.0264 (0.2113), gradient 0.462 (3.697)
#   prompts of 56: objective -0.167, KL 0.0290 (0.2323), gradient 0.411 (3.288)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'torchrl==0.14.1' 'tensordict==0.14.3'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import torch
from tensordict import TensorDict
from tokenizers import Tokenizer, models
from torch.nn.functional import pad
from torchrl.modules.llm import TransformersWrapper
from torchrl.objectives.llm import GRPOLoss
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RESPONSE, ROWS = 8, 3


def build():
    """Return a small model, which has relative positions: padding doesn't change it."""
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=0.1, bos_token_id=0, eos_token_id=0)).eval()


def log_probs(model, text, mask):
    """Return the log-probability of each token but the first."""
    logits = model(text, attention_mask=mask).logits[:, :-1]
    return pad(logits.log_softmax(-1).gather(-1, text[:, 1:, None])[..., 0], (1, 0))


def compare(name, text, padding=0, **settings):
    """Print the KL and the norm of its gradient by GRPOLoss and by hand."""
    mask = pad(torch.ones_like(text, dtype=torch.bool), (padding, 0))
    text = pad(text, (padding, 0))
    with torch.no_grad():
        old, fixed = log_probs(model, text, mask), log_probs(reference, text, mask)
    advantages = torch.tensor([1.0, 0.5, -1.0])[:, None, None].expand(-1, text.shape[1], 1)
    batch = TensorDict({
        "tokens": {"full": text, "prompt": text[:, :-RESPONSE], "response": text[:, -RESPONSE:]},
        "masks": {"all_attention_mask": mask}, "log_probs": {"full": old},
        "advantage": advantages, "next": {"ref_log_probs": {"full": fixed}}}, batch_size=[ROWS])
    loss = GRPOLoss(actor, kl_to_ref_coeff=1.0, entropy_bonus=False, **settings)(batch)

    difference = (fixed - log_probs(model, text, mask))[:, -RESPONSE:]
    kl = (difference.exp() - 1 - difference).mean()
    norms = []
    for value in (loss.loss_kl_to_ref, kl):
        gradients = torch.autograd.grad(value, model.parameters(), retain_graph=True)
        norms.append(sum(g.square().sum() for g in gradients).sqrt().item())
    print(f"{name}: objective {loss.loss_objective.item():.3f}, "
          f"KL {loss.kl_to_ref.item():.4f} ({kl.item():.4f}), "
          f"gradient {norms[0]:.3f} ({norms[1]:.3f})")
    assert abs(loss.loss_objective.item() + 0.5 / 3) < 1e-4
    for got, wanted in ((loss.kl_to_ref.item(), kl.item()), norms):
        assert abs(got / wanted - RESPONSE / text.shape[1]) < 1e-3


torch.manual_seed(0)
model, reference = build(), build()
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w1"))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="w0", eos_token="w0", padding_side="left")
actor = TransformersWrapper(model, tokenizer=tokenizer, input_mode="tokens", generate=False,
                            return_log_probs=True, pad_output=True)
text = torch.randint(1, 50, (ROWS, 56 + RESPONSE))
short = text[:, -8 - RESPONSE:]
compare("no prompt but one token", text[:, -1 - RESPONSE:])
compare("prompts of 8", short)
compare("prompts of 8, padding of 48", short, 48)
compare("the same, prompt_mean", short, 48, aggregation="prompt_mean")
compare("prompts of 56", text)
END
grep -E '^(no prompt|prompts|the same)' "$folder/out"
