#!/usr/bin/env bash
# Guess: a tool that opens a folder with a GPT-2 in transformers' format computes what its
# config.json says, or refuses a setting that it can't handle.
#
# ctranslate2 4.8.5 and mlx-lm 0.32.2 (mlx 0.32.4, CPU): neither says a word of a setting that it
# ignores. (mlx-lm wants the tensors' names of OpenAI's own file, and n_ctx in the config; both are
# changed for it here, the settings aren't.) CTranslate2 reads activation_function, but not
# layer_norm_epsilon (it takes 1e-5, unless one writes the value into the config.json that it made)
# nor the two settings of attention's scale; mlx-lm reads layer_norm_epsilon, but not
# activation_function (it takes the tanh approximation of GELU) nor the scale. So a GPT-2 that was
# trained with one of these settings has other probabilities in one of the tools or in both. A check
# with a model that has GPT-2's own settings doesn't show it: there both are right to float32's
# precision.
#
# Seen (largest error of a token's log-probability against transformers 5.24.0, 4 layers of width
# 64, random weights):
#   GPT-2's own settings                  ctranslate2 9.5e-07  mlx-lm 1.4e-06
#   activation_function='relu'            ctranslate2 1.4e-06  mlx-lm 2.6e-01
#   layer_norm_epsilon=0.01               ctranslate2 4.2e-02  mlx-lm 1.9e-06
#   scale_attn_by_inverse_layer_idx=True  ctranslate2 1.3e-01  mlx-lm 1.3e-01
#   scale_attn_weights=False              ctranslate2 4.9e-01  mlx-lm 4.9e-01

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'safetensors==0.8.0' 'ctranslate2==4.8.5' \
    'mlx==0.32.4' 'mlx-cpu==0.32.4' 'mlx-lm==0.32.2'

cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import json
import shutil
from pathlib import Path

import ctranslate2
import mlx.core as mx
import mlx_lm
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

names = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=names[0],
                                    eos_token=names[0], unk_token=names[0])
ids = torch.randint(1, len(names), (8, 32), generator=torch.Generator().manual_seed(0))


def of_next(logits):
    """Return the log-probabilities of ids[:, 1:]."""
    logits = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return logits.gather(-1, ids[:, 1:, None])[..., 0]


def with_transformers(folder):
    with torch.no_grad():
        return of_next(GPT2LMHeadModel.from_pretrained(folder).eval()(ids).logits)


def with_ctranslate2(folder):
    ctranslate2.converters.TransformersConverter(folder).convert("converted", force=True)
    generator = ctranslate2.Generator("converted", compute_type="float32")
    scores = generator.score_batch([[names[i] for i in row] for row in ids.tolist()])
    return torch.tensor([score.log_probs for score in scores])


def with_mlx(folder):
    # mlx-lm wants the names of OpenAI's own file, and n_ctx, which transformers 5 no longer writes.
    shutil.copytree(folder, "mlx", dirs_exist_ok=True)
    weights = load_file(f"{folder}/model.safetensors")
    save_file({name.removeprefix("transformer."): tensor for name, tensor in weights.items()},
              "mlx/model.safetensors", metadata={"format": "pt"})
    config = json.loads(Path(folder, "config.json").read_text())
    Path("mlx/config.json").write_text(json.dumps(config | {"n_ctx": config["n_positions"]}))
    model, _ = mlx_lm.load("mlx")
    logits = model(mx.array(ids.tolist())).astype(mx.float32)
    return of_next(torch.from_numpy(np.array(logits)))


for settings, wrong in (({}, []),
                        ({"activation_function": "relu"}, ["mlx-lm"]),
                        ({"layer_norm_epsilon": 0.01}, ["ctranslate2"]),
                        ({"scale_attn_by_inverse_layer_idx": True}, ["ctranslate2", "mlx-lm"]),
                        ({"scale_attn_weights": False}, ["ctranslate2", "mlx-lm"])):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(names), n_positions=64, n_embd=64, n_layer=4,
                                       n_head=2, bos_token_id=0, eos_token_id=0, **settings))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.6 if "c_attn" in name else 0.3)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")

    expected = with_transformers("model")
    errors = {"ctranslate2": (with_ctranslate2("model") - expected).abs().max().item(),
              "mlx-lm": (with_mlx("model") - expected).abs().max().item()}
    what = "".join(f"{key}={value!r}" for key, value in settings.items()) or "GPT-2's own settings"
    print(f"{what:37}",
          "  ".join(f"{tool} {error:.1e}" for tool, error in errors.items()))
    for tool, error in errors.items():
        assert error > 1e-3 if tool in wrong else error < 1e-4
END
