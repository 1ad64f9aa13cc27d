"""Text -> tokens: train a tokenizer, split the text, write data/train.bin, val.bin and test.bin.

    python prepare.py                                    # input.txt, a BPE trained on it
    python prepare.py --input=mine.txt --tokenizer=gpt2  # OpenAI's vocabulary, for fine-tuning

A .bin file is nothing but token ids, as nanoGPT's are; meta.json says what they mean."""

import collections
import hashlib
import itertools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import regex  # comes with tiktoken, which splits text by it too
import tiktoken

import config

input = "input.txt"  # the text, UTF-8
tokenizer = "bpe"  # 'bpe': trained here on the training split; 'gpt2': OpenAI's 50,257 tokens
vocab_size = 2048  # tokens of the trained BPE, <|endoftext|> among them; 257 is plain bytes
val_fraction = 0.1  # share of the text held out for validation while training
test_fraction = 0.1  # share held out for one last test
out_dir = "data"  # folder for train.bin, val.bin, test.bin and meta.json

SPLITS = ("train", "val", "test")
END_OF_TEXT = "<|endoftext|>"
# GPT-2's rule for what may become one token: a contraction, a word or a number or punctuation,
# each with one space before it, or white space. Tokens never reach across such pieces.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
RETRY_DELAYS = (1, 2, 4, 8)  # seconds before each new attempt at a download
TIMEOUT = 30  # seconds without a byte after which a connection counts as broken

@contextmanager
def whole_file(path, mode="wb"):
    """Open a file for writing that takes its name only when all of it is safely on the disk."""
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch.save hides the error of a write behind its own
            error = error.__context__ or error
        if isinstance(error, OSError):
            error.filename = str(path)
        raise error

def download(url, path, headers=None):
    """Fetch an address into the file path, whole or not at all. What a broken attempt left in
    path.part is gone on with, by up to four more attempts and by the next call. The length and
    the sha256 in X-Linked-Etag are checked. Raises OSError, one line that names the address."""
    import requests  # here, since that takes as long as preparing a small text
    part = Path(f"{path}.part{os.environ.get('RANK', '')}")  # torchrun's processes have one each
    part.parent.mkdir(parents=True, exist_ok=True)
    for delay in (*RETRY_DELAYS, None):
        size = part.stat().st_size if part.exists() else 0
        asked = {**(headers or {}), "Accept-Encoding": "identity", "Range": f"bytes={size}-"}
        try:
            with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT) as response:
                if response.status_code == 416:  # there is nothing from there on
                    part.unlink(missing_ok=True)
                response.raise_for_status()
                size *= response.status_code == 206  # else all of it comes, whatever was asked for
                total = size + int(response.headers.get("Content-Length", 0))
                start, old = time.monotonic(), size
                with open(part, "ab" if size else "wb") as file:
                    for block in response.iter_content(1 << 16):
                        size += file.write(block)
                        speed = (size - old) / 1e6 / (time.monotonic() - start + 1e-9)
                        print(f"{part.stem}: {size / 1e6:.1f} of {total / 1e6:.1f} MB, {speed:.1f} "
                              "MB/s", file=sys.stderr, end="\n" if size == total else "  \r")
            if size < total:
                raise ConnectionError(f"{size:,} of {total:,} bytes came")
            linked = [each.headers.get("X-Linked-Etag") for each in (*response.history, response)]
            promised = regex.search("[0-9a-f]{64}", str(linked))
            with open(part, "rb") as file:
                os.fsync(file.fileno())
                if promised and hashlib.file_digest(file, "sha256").hexdigest() != promised[0]:
                    part.unlink()
                    raise ConnectionError("what came hasn't the sha256 of X-Linked-Etag")
            return os.replace(part, path)
        except (requests.RequestException, ConnectionError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            reason = error if type(error) is ConnectionError else type(error).__name__
            message = f"{url}: " + (f"status {status}" if status else f"no connection ({reason})")
            if refused := status in (401, 403, 404):
                message += ": there is no such file, or it needs another HF_TOKEN"
            if refused or delay is None:
                raise (FileNotFoundError if status == 404 else OSError)(message) from error
            print(f"{message}; trying again in {delay} s", file=sys.stderr)
            time.sleep(delay)
        except OSError as error:  # of the disk
            raise OSError(error.errno, error.strerror, str(path)) from error

def fingerprint(path):
    """Return a sha256 of a file's size and of up to 64 stretches of it: cheap at any size."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(i * size // 64)
            digest.update(file.read(min(65536, size // 64 + 1)))
    return digest.hexdigest()

def train_bpe(word_counts, vocab_size):
    """Learn a byte-level BPE: {word: count} -> list of tokens, as latin-1; the id is the place.
    The most frequent pair of neighbouring tokens becomes a new token, again and again; of equally
    frequent pairs, the one with the smaller ids. A pair seen once is no pattern, and ends it.
    (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", 3.2.)"""
    words = [word.encode().decode("latin-1") for word in word_counts]  # a token is its chr(id)
    counts = list(word_counts.values())
    tokens = {chr(byte): chr(byte) for byte in range(256)}  # chr(id) -> token
    characters = dict(tokens)  # token -> chr(id)
    pair_counts = collections.Counter()
    places = collections.defaultdict(set)  # pair -> the words it has been in
    def count(place, sign):
        for pair in itertools.pairwise(words[place]):
            pair_counts[pair] += sign * counts[place]
            places[pair].add(place)
    for place in range(len(words)):
        count(place, 1)
    while len(tokens) < vocab_size - 1:  # the last id is <|endoftext|>'s
        most = max(pair_counts.values(), default=0)
        if most < 2:
            break
        pair = min(pair for pair, number in pair_counts.items() if number == most)
        token = tokens[pair[0]] + tokens[pair[1]]
        new = characters.setdefault(token, chr(len(characters)))  # perhaps made otherwise before
        tokens[new] = token
        for place in list(places[pair]):
            count(place, -1)
            words[place] = words[place].replace("".join(pair), new)
            count(place, 1)
        del pair_counts[pair]
    return list(characters)

def load_tokenizer(description):
    """Return the tiktoken.Encoding of a description: {"name", "tokens"}, each token as latin-1."""
    ranks = {token.encode("latin-1"): i for i, token in enumerate(description["tokens"])}
    return tiktoken.Encoding(description["name"], pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={END_OF_TEXT: len(description["tokens"])})

def gpt2_tokenizer():
    """Return the description of OpenAI's tokenizer, which tiktoken downloads once and caches."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except OSError as error:
        raise OSError(f"the vocabulary of gpt2 can't be downloaded ({type(error).__name__}): "
                      "try again with a network, or use --tokenizer=bpe") from error
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return {"name": "gpt2", "tokens": [token.decode("latin-1") for token in tokens]}

def pieces(path, start=0, end=sys.maxsize):
    """Yield a text file, from one character to another, in pieces of about a megabyte that can be
    tokenized one by one: they end before white space that follows something else, which no token
    reaches across. Raises ValueError with the offset of the first byte that is not UTF-8."""
    rest, position = "", 0
    with open(path, encoding="utf-8", newline="") as file:
        try:
            while position < end and (block := file.read(1 << 20)):
                rest += block[max(0, start - position):end - position]
                position += len(block)
                if safe := regex.match(r"(?s).*\S(?=[ \n])", rest):
                    yield safe[0]
                    rest = rest[safe.end():]
        except UnicodeDecodeError as error:
            place = file.buffer.tell() - len(error.object) + error.start
            raise ValueError(f"{path}: byte {place} is not UTF-8 ({error.reason})") from error
    yield rest

def sealed(meta):  # -> the same with a sha256 of itself
    return meta | {"sha256": hashlib.sha256(json.dumps(meta).encode()).hexdigest()}

def read_meta(folder):
    """Return what meta.json says, None without one; ValueError if it is not as it was written."""
    path = Path(folder, "meta.json")
    with suppress(ValueError, TypeError, RecursionError):
        meta = json.loads(path.read_bytes()) if path.exists() else None
        if meta is None or meta == sealed({key: meta[key] for key in meta if key != "sha256"}):
            return meta
    raise ValueError(f"{path} is damaged: python prepare.py --out_dir={folder} makes it anew")

def settle(folder):
    """Finish a writing that was cut off after meta.json: its .bin.new files take their names."""
    meta = read_meta(folder)
    for split in SPLITS if meta else ():
        new = Path(folder, f"{split}.bin.new")
        if new.exists() and fingerprint(new) == meta["splits"][split]["fingerprint"]:
            os.replace(new, new.with_suffix(""))

def main(arguments=None):
    globals().update(config.override(__file__, arguments))
    config.one_of(globals(), tokenizer=("bpe", "gpt2"))
    config.at_least(globals(), 257, "vocab_size")
    if val_fraction + test_fraction >= 1:
        config.usage(f"{val_fraction=} and {test_fraction=} leave nothing for training: lower them")

    shares = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    characters = sum(map(len, pieces(input)))
    if characters * min(filter(None, shares)) < 1 or not os.path.isfile(input):  # (read thrice)
        raise ValueError(f"{input} has {characters} characters, too few for {val_fraction=} and "
                         f"{test_fraction=}, or is a pipe: give a file, a longer text, or set 0")
    ends = [int(characters * share) for share in (shares[0], 1 - test_fraction, 1)]

    if tokenizer == "gpt2":
        description = gpt2_tokenizer()
    else:
        words = collections.Counter(word for text in pieces(input, 0, ends[0])
                                    for word in regex.findall(PATTERN, text))
        description = {"name": "bpe", "tokens": train_bpe(words, vocab_size)}
    encoding = load_tokenizer(description)
    encode = lambda text: encoding.encode_to_numpy(text, disallowed_special=())
    dtype = np.dtype("<u2" if encoding.n_vocab <= 65536 else "<u4")

    Path(out_dir).mkdir(parents=True, exist_ok=True)
    with suppress(ValueError):  # files that an earlier writing left to rename aren't written over
        settle(out_dir)
    print(f"{input} -> {out_dir}/  ({encoding.name}, {encoding.n_vocab:,} tokens, {dtype.name})")
    print(f"{'split':6}{'tokens':>14}{'bytes':>16}{'bytes/token':>14}")
    splits = {}
    for split, start, end in zip(SPLITS, [0, *ends], ends):
        path = Path(out_dir, f"{split}.bin.new")
        size = count = 0
        texts = pieces(input, start, end)
        with whole_file(path) as file, ThreadPoolExecutor(os.cpu_count()) as threads:
            while batch := list(itertools.islice(texts, 32)):  # all cores work on them
                for text, ids in zip(batch, threads.map(encode, batch)):
                    size += len(text.encode())
                    count += len(ids)
                    file.write(ids.astype(dtype).tobytes())
        splits[split] = {"tokens": count, "bytes": size, "fingerprint": fingerprint(path)}
        print(f"{split:6}{count:14,}{size:16,}{size / max(1, count):14.2f}")
    with open(input, "rb") as file:
        source = {"name": input, "bytes": os.path.getsize(input),
                  "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    meta = {"vocab_size": encoding.n_vocab, "dtype": dtype.name, "splits": splits,
            "source": source, "tokenizer": description}
    with whole_file(Path(out_dir, "meta.json"), "w") as file:
        json.dump(sealed(meta), file)
    settle(out_dir)  # from here on the new data counts: the files take their names
    learned = [repr(encoding.decode([i])) for i in range(256, encoding.n_vocab - 1)]
    print("tokens learned:", *learned[:8], "...", *learned[-8:])

if __name__ == "__main__":
    raise SystemExit(config.run(main))
