#!/usr/bin/env bash
# Guess: inseq: step scores (probability, crossentropy, entropy, kl...) in a batch equal those
# alone.
#
# inseq 0.7.1, transformers 5.24.0: only the longest prompt is treated so. Prompts given together
# are padded on the left, with <|endoftext|> for GPT-2. attribute() generates from the ids alone,
# without the attention mask, so that the shorter prompts are continued as if they began with
# <|endoftext|>, once or many times. Then these continuations are attributed, and scored, by another
# forward pass, which does get the mask but no positions: GPT-2 sees the text without the padding,
# but as if it stood further back. So the tokens are those of one function and the probabilities,
# entropies and gradients those of another, and neither is the model's for that prompt: of the
# greedy tokens below, which should each have the highest probability, most don't. transformers
# warns of the missing mask in its log. A call of attribute() for each prompt is right, and so is a
# continuation that is given (for that inseq takes one text at a time by itself).
#
# Seen (a 2-layer GPT-2 with random weights and letters as tokens, 6 new ones, greedy; all 3 prompts
# in one call):
#   prompt of 44 letters: 6 of 6 tokens are the likeliest, error of log-probabilities 0.00
#   prompt of 11 letters: 0 of 6 tokens are the likeliest, error of log-probabilities 0.77
#   prompt of 11 letters: 2 of 6 tokens are the likeliest, error of log-probabilities 1.62

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'captum==0.9.0' 'inseq==0.7.1'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import inseq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

letters = [chr(i) for i in range(33, 127)] + ["\u0120"]  # all printable ones, and the space
bytelevel = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytelevel.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytelevel, bos_token="<|endoftext|>",
                                    eos_token="<|endoftext|>")
torch.manual_seed(0)
gpt2 = GPT2LMHeadModel(GPT2Config(
    vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2,
    bos_token_id=95, eos_token_id=95)).eval()
model = inseq.load_model(gpt2, "saliency", tokenizer=tokenizer)
prompts = ["The cat sat on the mat and looked at the dog", "Hello there", "The old man"]


def attribute(prompts):
    """Return the new ids, their log-probabilities and the attributions for each prompt."""
    results = model.attribute(
        prompts, step_scores=["probability"], show_progress=False, pretty_progress=False,
        generation_args={"max_new_tokens": 6, "do_sample": False})
    return [([token.id for token in result.target][-6:],
             result.step_scores["probability"].log()) for result in results]


@torch.no_grad()
def by_hand(prompt):
    """Return the 6 greedy ids after a prompt, each with its log-probability."""
    ids, logprobs = tokenizer(prompt).input_ids, []
    for _ in range(6):
        best = gpt2(torch.tensor([ids])).logits[0, -1].log_softmax(-1).max(-1)
        ids.append(best.indices.item())
        logprobs.append(best.values)
    return ids[-6:], torch.stack(logprobs)


together = attribute(prompts)
one_by_one = [attribute([prompt])[0] for prompt in prompts]
for prompt, seen, alone in zip(prompts, together, one_by_one):
    ids, logprobs = by_hand(prompt)
    assert alone[0] == ids and (alone[1] - logprobs).abs().max() < 1e-4
    with torch.no_grad():
        row = torch.tensor([tokenizer(prompt).input_ids + seen[0]])
        all_logprobs = gpt2(row).logits[0, -7:-1].log_softmax(-1)
    true = all_logprobs.gather(1, torch.tensor(seen[0])[:, None])[:, 0]
    best = sum(id == best for id, best in zip(seen[0], all_logprobs.argmax(-1).tolist()))
    error = (seen[1] - true).abs().max().item()
    print(f"prompt of {len(prompt):2} letters: {best} of 6 tokens are the likeliest, "
          f"error of log-probabilities {error:.2f}")
    if prompt == prompts[0]:
        assert seen[0] == ids and best == 6 and error < 1e-4
    else:
        assert seen[0] != ids and best < 4 and error > 0.5
END
