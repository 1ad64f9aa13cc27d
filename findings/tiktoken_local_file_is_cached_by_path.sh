#!/usr/bin/env bash
# The guess: load_tiktoken_bpe("tokenizer.model") of a file on the disk reads that file. tiktoken's
# cache is for downloads.
#
# tiktoken 0.14.0: a local file is cached, too, in the folder for temporary files, under a hash of
# the path as it was given. So a vocabulary that was trained again under the same name is not seen,
# and two projects that both say "tokenizer.model" share one: the second gets the first's tokens,
# from whatever folder it runs in, until the cache is deleted or TIKTOKEN_CACHE_DIR is set to "".
#
# Seen (tokens in the file, tokens loaded):
#   first project: 257 257
#   trained again: 258 257
#   second project, in a folder of its own: 300 257
#   second project, TIKTOKEN_CACHE_DIR empty: 300 300

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'tiktoken==0.14.0'
mkdir "$folder/first" "$folder/second" "$folder/tmp"

cat > "$folder/load.py" <<'END'
import base64
import sys
from pathlib import Path

from tiktoken.load import load_tiktoken_bpe

n_tokens = int(sys.argv[2])
tokens = [bytes([byte]) for byte in range(256)]
tokens += [b"e" + bytes([97 + i]) for i in range(n_tokens - 256)]
lines = [base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)]
Path("tokenizer.model").write_bytes(b"".join(lines))
print(f"{sys.argv[1]}:", n_tokens, len(load_tiktoken_bpe("tokenizer.model")))
END

export TMPDIR="$folder/tmp"
unset TIKTOKEN_CACHE_DIR DATA_GYM_CACHE_DIR
load() { (cd "$folder/$1" && "$folder/venv/bin/python" ../load.py "$2" "$3"); }
{
    load first "first project" 257
    load first "trained again" 258
    load second "second project, in a folder of its own" 300
    TIKTOKEN_CACHE_DIR="" load second "second project, TIKTOKEN_CACHE_DIR empty" 300
} | tee "$folder/output"

diff "$folder/output" - <<'END'
first project: 257 257
trained again: 258 257
second project, in a folder of its own: 300 257
second project, TIKTOKEN_CACHE_DIR empty: 300 300
END
