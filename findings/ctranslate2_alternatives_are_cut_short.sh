#!/usr/bin/env bash
# Guess: CTranslate2's Generator with return_alternatives=True and include_prompt_in_result=False
# gives, for each of the likeliest next tokens, what follows it: up to max_length new tokens, as
# without alternatives. The scores are of the same kind as those of any other hypothesis, the sum of
# the log-probabilities of its tokens over their number (length_penalty=1, the default).
#
# ctranslate2 4.8.5, transformers 5.24.0, torch 2.13.0: neither is true. For alternatives max_length
# counts the prompt, too, all but its last token, though it isn't in the result; without
# alternatives it counts new tokens, since 2023. If the prompt is longer than max_length (512,
# unless told otherwise), each alternative is one token, and nothing tells that it was cut. Second,
# the score is the log-probability of the first token plus the mean of the others: only what follows
# the alternative is divided by its length. It is about twice what it should be, can't be compared
# with the score of any other text, depends on the first token as much as on all others together,
# and may put alternatives into another order. One gets the true ones by adding up with
# length_penalty=0 and dividing by hand. The tokens themselves are right as far as they go.
#
# Seen (a 2-layer GPT-2 with random weights, max_length=16, three alternatives, greedy from there;
# number of new tokens; score, in brackets the mean of the log-probabilities by hand):
#   prompt of 1, plain:        16 tokens; score -2.04 (-2.04)
#   prompt of 1, beams:        16 tokens; score -1.94 (-1.94), -1.95 (-1.95), -1.95 (-1.95)
#   prompt of 1, alternatives: 16 tokens; score -4.50 (-2.04), -5.43 (-2.55), -5.17 (-2.13)
#   prompt of 5, plain:        16 tokens; score -2.08 (-2.08)
#   prompt of 5, beams:        16 tokens; score -1.93 (-1.93), -1.99 (-1.99), -2.00 (-2.00)
#   prompt of 5, alternatives: 12 tokens; score -4.55 (-2.32), -4.93 (-1.91), -5.37 (-2.25)
#   prompt of 12, plain:        16 tokens; score -2.31 (-2.31)
#   prompt of 12, beams:        16 tokens; score -2.10 (-2.10), -2.11 (-2.11), -2.12 (-2.12)
#   prompt of 12, alternatives: 5 tokens; score -5.73 (-2.66), -5.64 (-2.57), -5.95 (-2.75)
#   prompt of 30, plain:        16 tokens; score -2.09 (-2.09)
#   prompt of 30, beams:        16 tokens; score -2.13 (-2.13), -2.14 (-2.14), -2.17 (-2.17)
#   prompt of 30, alternatives: 1 tokens; score -2.07 (-2.07), -2.93 (-2.93), -3.04 (-3.04)
#   1 of 4 prompts have their alternatives in another order by score than by mean

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'transformers==5.24.0' \
    'tokenizers==0.23.3' 'ctranslate2==4.8.5'

cd "$folder"
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["<|endoftext|>"]
bytelevel = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
bytelevel.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytelevel.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=bytelevel, bos_token="<|endoftext|>",
                        eos_token="<|endoftext|>", unk_token="<|endoftext|>"
                        ).save_pretrained("gpt2")
torch.manual_seed(3)
gpt2 = GPT2LMHeadModel(GPT2Config(
    vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.25,
    bos_token_id=256, eos_token_id=256)).eval()
gpt2.save_pretrained("gpt2")
TransformersConverter("gpt2").convert("ct2")
generator = ctranslate2.Generator("ct2", device="cpu", compute_type="float32")


def logprobs(prompt, new):
    with torch.no_grad():
        rows = gpt2(torch.tensor([prompt + new])).logits[0].log_softmax(-1)
    return [rows[len(prompt) - 1 + i, token].item() for i, token in enumerate(new)]


def generate(prompt, **options):
    result = generator.generate_batch(
        [[letters[i] for i in prompt]], max_length=16, end_token=[], return_scores=True,
        include_prompt_in_result=False, **options)[0]
    return result.sequences_ids, result.scores


changed = 0
for length in (1, 5, 12, 30):
    prompt = torch.randint(256, (length,)).tolist()
    with torch.no_grad():
        three = gpt2(torch.tensor([prompt])).logits[0, -1].topk(3).indices.tolist()
    for label, options in (("plain", {}), ("beams", {"beam_size": 3, "num_hypotheses": 3}),
                           ("alternatives", {"return_alternatives": True, "num_hypotheses": 3})):
        texts, scores = generate(prompt, **options)
        parts = [logprobs(prompt, text) for text in texts]
        means = [sum(part) / len(part) for part in parts]
        print(f"prompt of {length}, {label + ':':13} {len(texts[0])} tokens; score " + ", ".join(
            f"{score:.2f} ({mean:.2f})" for score, mean in zip(scores, means)))
        assert len({len(text) for text in texts}) == 1
        if label != "alternatives":
            assert len(texts[0]) == 16
            assert all(abs(a - b) < 1e-3 for a, b in zip(scores, means))
            continue
        assert [text[0] for text in texts] == three
        assert len(texts[0]) == max(16 - (length - 1), 1)
        for text, part, score, mean in zip(texts, parts, scores, means):
            following = gpt2.generate(torch.tensor([prompt + text[:1]]), max_new_tokens=15,
                                      do_sample=False, eos_token_id=None, pad_token_id=256)
            assert following[0, length:].tolist()[:len(text)] == text  # right as far as it goes
            rest = part[1:] or [0]
            assert abs(score - part[0] - sum(rest) / len(rest)) < 1e-3
            assert len(text) == 1 or score < 1.5 * mean
        changed += sorted(range(3), key=scores.__getitem__) != sorted(
            range(3), key=means.__getitem__)
        _, sums = generate(prompt, length_penalty=0, **options)
        assert all(abs(a - sum(b)) < 1e-3 for a, b in zip(sums, parts))
print(f"{changed} of 4 prompts have their alternatives in another order by score than by mean")
assert changed > 0
END
