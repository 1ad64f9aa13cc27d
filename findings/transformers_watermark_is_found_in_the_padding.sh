#!/usr/bin/env bash
# Guess: WatermarkDetector of transformers, given the tokens of generate() for a batch, as in its
# documentation, judges each text by itself. Whether there is a longer one in the batch, so that a
# text has padding at its end, is no matter.
#
# transformers 5.24.0, torch 2.13.0: the padding is part of the text. Each padding token after a
# padding token counts as one more, and these are either all green or all red, by the vocabulary and
# the key: with the default key green for Qwen2.5 (padding 151643 of 151936 tokens) and for Llama 3
# with <|eot_id|> as padding, red for GPT-2 and for Llama 2 with </s>. If green, each short text
# beside a long one has a watermark, with certainty, even if nobody has put one there. If red, a
# watermark that is there isn't found. The detector has no argument for a mask, and its
# documentation advises only to remove the prompt. ignore_repeated_ngrams=True, which counts each
# pair of tokens once, is nearly right, and cutting each text at its end is.
#
# Seen (texts of 40 tokens, drawn by small models with random weights; z-scores alone and beside a
# text of 240 tokens, 3 is the threshold; Qwen2.5's differ a little from run to run):
#   Qwen2.5, without watermark: -0.28 alone, 22.15 in a batch, p 6e-109, repeats ignored -0.09
#   Qwen2.5, with watermark: 7.12 alone, 25.13 in a batch, p 1e-139, repeats ignored 7.12
#   GPT-2, without watermark: -1.02 alone, -7.88 in a batch, p 1e+00, repeats ignored -1.17
#   GPT-2, with watermark: 8.97 alone, -3.70 in a batch, p 1e+00, repeats ignored 8.93

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import torch
from transformers import (
    GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM, WatermarkDetector,
    WatermarkingConfig)

SHORT, LONG = 40, 240
watermark = WatermarkingConfig(bias=2.5)


def until(ids, scores, **_):
    """Stop the first text after SHORT tokens (and its prompt of one), the second one later."""
    return torch.tensor([ids.shape[1] > SHORT, ids.shape[1] > LONG])


def score_by_hand(model, text):
    """Return the z-score with a green list for each token, drawn as in the paper's method."""
    size, green = model.config.vocab_size, 0
    for before, token in zip(text[:-1].tolist(), text[1:].tolist()):
        generator = torch.Generator().manual_seed(watermark.hashing_key * before)
        colours = torch.randperm(size, generator=generator)
        green += token in colours[:int(size * watermark.greenlist_ratio)]
    count, ratio = len(text) - 1, watermark.greenlist_ratio
    return (green - count * ratio) / (count * ratio * (1 - ratio)) ** 0.5


def compare(name, model, padding):
    """Draw two texts without and with a watermark; score the short one alone and beside it."""
    for setting in (None, watermark):
        torch.manual_seed(1)
        batch = model.generate(
            torch.full((2, 1), 7), attention_mask=torch.ones(2, 1), do_sample=True, top_k=0,
            max_new_tokens=LONG, pad_token_id=padding, stopping_criteria=[until],
            watermarking_config=setting)[:, 1:]
        assert (batch[0, SHORT:] == padding).all() and (batch[0, :SHORT] != padding).all()
        detect = WatermarkDetector(model.config, "cpu", watermark)
        once = WatermarkDetector(model.config, "cpu", watermark, ignore_repeated_ngrams=True)
        alone = detect(batch[:1, :SHORT], return_dict=True)
        beside = detect(batch, return_dict=True)
        ignored = once(batch, return_dict=True).z_score[0]
        print(f"{name}, with{'' if setting else 'out'} watermark: {alone.z_score[0]:.2f} alone, "
              f"{beside.z_score[0]:.2f} in a batch, p {beside.p_value[0]:.0e}, "
              f"repeats ignored {ignored:.2f}")
        assert abs(alone.z_score[0] - score_by_hand(model, batch[0, :SHORT])) < 1e-4
        assert abs(beside.z_score[0] - score_by_hand(model, batch[0])) < 1e-4
        assert bool(alone.prediction[0]) == (ignored > 3) == bool(setting)
        assert bool(beside.prediction[0]) == (padding == 151643)


def is_green(size, padding):
    config = GPT2Config(vocab_size=size, bos_token_id=0)
    return WatermarkDetector(config, "cpu", watermark)(torch.full((1, 200), padding)).item()


torch.manual_seed(0)
compare("Qwen2.5", Qwen2ForCausalLM(Qwen2Config(
    vocab_size=151936, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, bos_token_id=151643,
    eos_token_id=151645)).eval(), 151643)
compare("GPT-2", GPT2LMHeadModel(GPT2Config(
    n_positions=256, n_embd=16, n_layer=1, n_head=2)).eval(), 50256)
assert is_green(151936, 151643) and is_green(128256, 128009)
assert not is_green(50257, 50256) and not is_green(32000, 2)
END
