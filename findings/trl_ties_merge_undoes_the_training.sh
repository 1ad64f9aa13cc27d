#!/usr/bin/env bash
# Guess: TRL's MergeModelCallback with MergeConfig("ties") or ("dare_ties") saves, beside a
# checkpoint, a merge of the trained model (policy) and the one it was trained from (target, unless
# another is given), to which both add their part, as policy_model_weight and target_model_weight
# (1.0 each) and the densities say. So it has some of the training, as with "linear".
#
# trl 1.16.0, mergekit 0.1.5, transformers 5.24.0: it has none. Both methods are given the trained
# model as the base. TIES adds differences from the base to it, and the base's own is left out, so
# the only one is what leads from the trained model back to the target. It is added whole
# (target_model_density is [1.0], and normalize divides its weight away), and the result is the
# target: the model from before the training, or another one if that is given. policy_model_weight,
# policy_model_density and target_model_weight change nothing. A smaller target_model_density undoes
# less of the training, the largest changes first. Nothing is said; the merged model is saved, and
# uploaded with push_to_hub, as if all were well. The pull request that added the callback has an
# example with "ties" and weights of 0.7 and 0.3. "linear" and "slerp" are right. (Merged here in
# float32 instead of the default float16.)
#
# Seen (a small GPT-2 fine-tuned by SFTTrainer, distance of the merged weights from those before and
# after the training, by the distance of these two, and the loss; before 3.93, after 1.73):
#   linear: 0.50 and 0.50, loss 2.67
#   slerp: 0.57 and 0.44, loss 2.55
#   ties: 0.00 and 1.00, loss 3.93
#   ties, weights 0.9 and 0.1, densities 1: 0.00 and 1.00, loss 3.93
#   dare_ties: 0.00 and 1.00, loss 3.93
#   ties, target_model_density=[0.5]: 0.35 and 0.94, loss 3.65

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'accelerate==1.15.0' 'datasets==5.2.0' \
    'safetensors==0.8.0' 'peft==0.21.2' 'trl==1.16.0' 'mergekit==0.1.5'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 START="$folder/start"
"$folder/venv/bin/python" - >"$folder/out" 2>&1 <<'END' || { cat "$folder/out"; exit 1; }
import os
import tempfile

import torch
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.experimental.merge_model_callback import MergeConfig, MergeModelCallback

words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w1"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w0")
start = os.environ["START"]
torch.manual_seed(0)
GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2,
                           bos_token_id=0, eos_token_id=0)).save_pretrained(start)
tokenizer.save_pretrained(start)
data = Dataset.from_dict({"text": 8 * [
    " ".join(f"w{(first + i) % 50}" for i in range(12)) for first in range(50)]})


def loss(folder):
    ids = (torch.arange(50)[:, None] + torch.arange(12)) % 50
    with torch.no_grad():
        return GPT2LMHeadModel.from_pretrained(folder).eval()(ids, labels=ids).loss.item()


def run(name, method, **settings):
    config, folder = MergeConfig(method), tempfile.mkdtemp(dir=os.path.dirname(start))
    for key, value in {"dtype": "float32", **settings}.items():
        assert hasattr(config, key)
        setattr(config, key, value)
    trainer = SFTTrainer(GPT2LMHeadModel.from_pretrained(start), SFTConfig(
        folder, num_train_epochs=3, per_device_train_batch_size=20, learning_rate=3e-3,
        save_strategy="epoch", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True),
        train_dataset=data, processing_class=tokenizer, callbacks=[MergeModelCallback(config)])
    trainer.train()
    trained = f"{folder}/checkpoint-{trainer.state.global_step}"
    before, after, merged = (
        torch.cat([tensor.flatten() for _, tensor in sorted(
            load_file(f"{each}/model.safetensors").items())])
        for each in (start, trained, f"{trained}/merged"))
    result = [((merged - each).norm() / (after - before).norm()).item() for each in (before, after)]
    result.append(loss(f"{trained}/merged"))
    print("= {}: {:.2f} and {:.2f}, loss {:.2f}".format(name, *result))
    assert abs(loss(start) - 3.93) < 0.1 and loss(trained) < 2
    return result


assert run("linear", "linear")[2] < 3
assert run("slerp", "slerp")[2] < 3
for name, method, settings in (("ties", "ties", {}),
                               ("ties, weights 0.9 and 0.1, densities 1", "ties", {
                                   "policy_model_weight": 0.9, "target_model_weight": 0.1,
                                   "policy_model_density": [1.0]}),
                               ("dare_ties", "dare_ties", {})):
    from_before, from_after, last = run(name, method, **settings)
    assert from_before < 1e-5 and abs(from_after - 1) < 1e-5 and last > 3.8
from_before, from_after, _ = run("ties, target_model_density=[0.5]", "ties",
                                 target_model_density=[0.5])
assert 0.1 < from_before < 0.6 and from_after > 0.8
END
sed -n 's/^= //p' "$folder/out"
