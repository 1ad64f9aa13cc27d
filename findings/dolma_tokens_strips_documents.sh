#!/usr/bin/env bash
# Guess: "dolma tokens" writes the ids of every document as they are, each with the end token
# after it, into files of at most max_size bytes, as its help says.
#
# dolma 1.2.1, tokenizers 0.19.1: neither. White space at both ends of a document is taken off
# before it is tokenized, which neither help nor documentation say, and no option turns off. Text
# files end with a newline: its id is nowhere at the end of a document, so a model that was trained
# on such files has never seen one before <|endoftext|>, and an excerpt of code that begins with an
# indented line has its first line put to the left, where all others stay. A document of white space
# alone is left out. And max_size counts tokens: the files are twice as large as asked for, and four
# times with a vocabulary that needs uint32. The inside of a document is kept, and each is there
# once.
#
# Seen (a tokenizer of bytes; four documents, then 40 times the first one):
#   "KING:\nSpeak.\n" -> "KING:\nSpeak."
#   "    if a:\n        b()\n    c()\n" -> "if a:\n        b()\n    c()"
#   "  " -> left out
#   "To be, \n\n or not" -> "To be, \n\n or not"
#   --max_size 300: files of 598, 442 bytes

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'dolma==1.2.1' 'tokenizers==0.19.1' \
    'numpy==1.26.4' 'boto3==1.28.17' 'botocore==1.31.17' 'aiobotocore==2.5.4' 's3fs==2023.6.0' \
    'fsspec==2023.6.0' 'smart-open==9.0.2' 'omegaconf==2.4.0'

cd "$folder"
venv/bin/python - <<'END'
import gzip
import json
import subprocess
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

letters = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["<|endoftext|>"]
tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(["<|endoftext|>"])
tokenizer.save("tokenizer.json")


def tokens(texts, *options):
    name = f"texts{len(texts)}"
    Path(name).mkdir()
    with gzip.open(f"{name}/texts.jsonl.gz", "wt") as file:
        for i, text in enumerate(texts):
            print(json.dumps({"id": str(i), "text": text, "source": "test"}), file=file)
    done = subprocess.run(
        ["venv/bin/dolma", "tokens", "--documents", f"{name}/*.gz", "--destination", f"{name}/ids",
         "--tokenizer.name_or_path", "tokenizer.json", "--tokenizer.eos_token_id", "256",
         "--tokenizer.pad_token_id", "256", "--dtype", "uint16", *options],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(Path(name, "ids").rglob("*.npy"))


texts = ["KING:\nSpeak.\n", "    if a:\n        b()\n    c()\n", "  ", "To be, \n\n or not"]
[path] = tokens(texts)
ids = np.fromfile(path, np.uint16).tolist()
assert ids.count(256) == 3 and ids[-1] == 256
found, rest = set(), ids
while rest:
    end = rest.index(256)
    found.add(tokenizer.decode(rest[:end]))
    rest = rest[end + 1:]
for text in texts:
    kept = [other for other in found if other.strip() == text.strip()]
    print(json.dumps(text), "->", json.dumps(kept[0]) if kept else "left out")
assert found == {text.strip() for text in texts if text.strip()}
assert tokenizer.decode(tokenizer.encode(texts[1]).ids) == texts[1]

sizes = [path.stat().st_size for path in tokens(texts[:1] * 40, "--max_size", "300")]
print("--max_size 300: files of", ", ".join(map(str, sizes)), "bytes")
assert 560 < max(sizes) <= 600
END
