"""Text -> tokens: train a tokenizer, split the text, write data/train.bin, val.bin and test.bin.

    python prepare.py                                    # input.txt, a BPE trained on it
    python prepare.py --input=mine.txt --vocab_size=4096 --out_dir=data_mine
    python prepare.py --input=mine.txt --tokenizer=gpt2  # OpenAI's vocabulary, for fine-tuning

A .bin file is nothing but token ids, one after the other (uint16, as in nanoGPT); meta.json says
what they mean. Any text can be encoded, since the tokens are made of bytes, not of characters."""

import codecs
import collections
import hashlib
import heapq
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
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
RETRY_DELAY = 1.0  # seconds before a download is tried again; doubled each time after that
TIMEOUT = 30.0  # seconds without a byte after which a connection counts as broken
REFUSALS = {401: "that needs a permission: set HF_TOKEN to a token that gives it",
            403: "that is forbidden: set HF_TOKEN to a token that has access to it",
            404: "there is no such thing: check the name and the address"}


@contextmanager
def whole_file(path, mode="wb"):
    """Open a file for writing that takes its name only when all of it is safely on the disk."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
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


def receive(response, part):
    """Write what comes into the file part, or behind what it holds, with a progress line on stderr.
    Raises ConnectionError if that isn't all."""
    size = part.stat().st_size if response.status_code == 206 else 0
    span, _, total = response.headers.get("Content-Range", "").rpartition("/")
    if response.status_code == 416 or size and not span.startswith(f"bytes {size}-"):
        part.unlink(missing_ok=True)
        raise ConnectionError("the server can't go on where it broke off")
    if response.status_code != 206:  # all of it, whatever was asked for
        response.raise_for_status()
        total = response.headers.get("Content-Length", "")
    total = int(total) if total.isdigit() else None  # not every server knows
    start, old, shown = time.monotonic(), size, 0
    with open(part, "ab" if size else "wb") as file:
        for block in response.iter_content(1 << 14):
            size += file.write(block)
            seconds = time.monotonic() - start
            if seconds > shown + 0.5 or size == total:
                shown = seconds
                print(f"\r{part.stem}: {size / 1e6:.1f} of {(total or 0) / 1e6:.1f} MB, "
                      f"{(size - old) / 1e6 / (seconds + 1e-6):.1f} MB/s", end="   ",
                      file=sys.stderr, flush=True)
        file.flush()
        os.fsync(file.fileno())
    print(file=sys.stderr)
    if total not in (None, size):
        raise ConnectionError(f"{size:,} of {total:,} bytes came")


def download(url, path, headers=None):
    """Fetch an address into the file path, whole or not at all. What a broken attempt leaves in
    path.part is gone on with, by up to four more attempts and by the next call. Content-Length is
    checked, and the sha256 that Hugging Face names. Raises OSError, one line with the address."""
    import requests  # here, since importing it takes long beside preparing a small text

    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(5):
        asked = {**(headers or {}), "Accept-Encoding": "identity"}
        if part.exists() and part.stat().st_size:
            asked["Range"] = f"bytes={part.stat().st_size}-"
        try:
            with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT) as response:
                receive(response, part)
            break
        except (requests.RequestException, ConnectionError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            reason = error if type(error) is ConnectionError else f"no connection ({error!r:.60})"
            reason = REFUSALS.get(status, f"status {status}") if status else reason
            if attempt == 4 or 400 <= status < 500 or isinstance(error, ValueError):  # no address
                raise OSError(f"{url}: {reason}") from error
            print(f"{url}: {reason}; trying again", file=sys.stderr)
            time.sleep(RETRY_DELAY * 2 ** attempt)
        except OSError as error:  # of the disk
            error.filename = str(path)
            raise
    for answer in (*response.history, response):
        promised = re.fullmatch('"?([0-9a-f]{64})"?', answer.headers.get("X-Linked-Etag", ""))
        with open(part, "rb") as file:
            if promised and hashlib.file_digest(file, "sha256").hexdigest() != promised[1]:
                part.unlink()
                raise OSError(f"{url}: what came hasn't the sha256 that the server names; it was "
                              "deleted: try again")
    os.replace(part, path)


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
    """Learn a byte-level BPE: {word: count} -> list of tokens (bytes), the id is the place in it.
    The most frequent pair of neighbouring tokens becomes a new token, again and again; of equally
    frequent pairs, the one with the smaller ids. A pair seen once is no pattern, and ends it.
    (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", 3.2.)"""
    tokens = [bytes([byte]) for byte in range(256)]
    ids = {token: i for i, token in enumerate(tokens)}
    words = [list(word.encode()) for word in word_counts]
    counts = list(word_counts.values())
    pair_counts = collections.Counter()
    places = collections.defaultdict(set)  # pair -> the words it occurs in
    for place, (word, count) in enumerate(zip(words, counts)):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += count
            places[pair].add(place)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < vocab_size - 1:  # the last id is <|endoftext|>'s
        count, pair = heapq.heappop(heap)
        if -count != pair_counts[pair]:  # merges since then have changed the count: ask again
            if pair_counts[pair] > 0:
                heapq.heappush(heap, (-pair_counts[pair], pair))
            continue
        if -count < 2:
            break
        token = tokens[pair[0]] + tokens[pair[1]]
        if token not in ids:  # else the same bytes were reached by another way before
            ids[token] = len(tokens)
            tokens.append(token)
        grown = set()
        for place in places.pop(pair):
            word = words[place]
            for old in zip(word, word[1:]):
                pair_counts[old] -= counts[place]
            words[place] = word = merged(word, pair, ids[token])
            for new in zip(word, word[1:]):
                pair_counts[new] += counts[place]
                if ids[token] in new:
                    places[new].add(place)
                    grown.add(new)
        for new in grown:
            heapq.heappush(heap, (-pair_counts[new], new))
    return tokens


def merged(word, pair, new_id):
    """Replace each occurrence of pair in the list of ids, from the left, by new_id."""
    result = []
    i = 0
    while i < len(word):
        if word[i] == pair[0] and i + 1 < len(word) and word[i + 1] == pair[1]:
            result.append(new_id)
            i += 2
        else:
            result.append(word[i])
            i += 1
    return result


def load_tokenizer(description):
    """Return the tiktoken.Encoding of a description: {"name", "tokens"}, each token as latin-1."""
    tokens = [token.encode("latin-1") for token in description["tokens"]]
    return tiktoken.Encoding(
        name=description["name"],
        pat_str=PATTERN,
        mergeable_ranks={token: i for i, token in enumerate(tokens)},
        special_tokens={END_OF_TEXT: len(tokens)},
    )


def gpt2_tokenizer():
    """Return the description of OpenAI's tokenizer, which tiktoken downloads once and caches."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except OSError as error:
        raise OSError(f"the vocabulary of gpt2 can't be downloaded ({type(error).__name__}): "
                      "try again with a network, or use --tokenizer=bpe") from error
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return {"name": "gpt2", "tokens": [token.decode("latin-1") for token in tokens]}


def pieces(path):
    """Yield a text file in pieces of about a megabyte that can be tokenized one by one.
    A piece ends before white space that follows something else: no token ever reaches across.
    Raises ValueError with the offset of the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""
    offset = 0
    with open(path, "rb") as file:
        while True:
            block = file.read(1 << 20)
            offset += len(block)
            try:
                rest += decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = offset - len(error.object) + error.start
                raise ValueError(f"{path}: byte {place} is not UTF-8 ({error.reason})") from error
            if not block:
                break
            safe = re.match(r"(?s).*\S(?=[ \n])", rest)
            if safe:
                yield safe[0]
                rest = rest[safe.end():]
    yield rest


def by_split(path, ends):
    """Yield (split, piece); a piece that reaches over an end of a split (in characters) is cut."""
    position = 0
    for piece in pieces(path):
        for split, end in zip(SPLITS, ends):
            part = piece[:max(0, end - position)]
            if part:
                yield split, part
                position += len(part)
                piece = piece[len(part):]


def encoded(parts, encoding):
    """Yield (split, bytes of text, ids) in order; tiktoken's threads work on a few parts ahead."""
    def encode(part):
        split, text = part
        return split, len(text.encode()), encoding.encode_to_numpy(text, disallowed_special=())

    with ThreadPoolExecutor() as threads:
        ahead = collections.deque()
        for part in parts:
            ahead.append(threads.submit(encode, part))
            if len(ahead) > 8:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def sealed(meta):  # -> the JSON of meta.json, with a sha256 of itself
    return json.dumps(meta | {"sha256": hashlib.sha256(json.dumps(meta).encode()).hexdigest()})


def read_meta(folder):
    """Return what meta.json says, None without one; ValueError if it is not as it was written."""
    path = Path(folder, "meta.json")
    text = path.read_bytes() if path.exists() else b"null"
    try:
        meta = json.loads(text)
        if meta is None or sealed({key: meta[key] for key in meta if key != "sha256"}) == (
                text.decode()):
            return meta
    except (ValueError, TypeError, RecursionError):
        pass
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
    config.one_of(globals(), "tokenizer", "bpe", "gpt2")
    if vocab_size < 257:
        config.usage(f"vocab_size={vocab_size}: 256 bytes and {END_OF_TEXT} make 257 the least")
    config.at_least(globals(), 0, "val_fraction test_fraction")
    if val_fraction + test_fraction >= 1:
        config.usage(f"val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing "
                     "for training: lower them")

    characters = 0
    digest = hashlib.sha256()
    for piece in pieces(input):
        characters += len(piece)
        digest.update(piece.encode())
    ends = [int(characters * share) for share in (1 - val_fraction - test_fraction,
                                                  1 - test_fraction, 1)]
    sizes = [end - start for start, end in zip([0] + ends, ends)]
    for split, size, share in zip(SPLITS, sizes, (1, val_fraction, test_fraction)):
        if share and not size:
            raise ValueError(f"{input} has {characters} characters: nothing is left for the "
                             f"{split} split; give more text or lower val_fraction, test_fraction")

    if tokenizer == "gpt2":
        description = gpt2_tokenizer()
    else:
        words = collections.Counter()
        for split, text in by_split(input, ends):
            if split == "train":
                words.update(regex.findall(PATTERN, text))
        tokens = train_bpe(words, vocab_size)
        description = {"name": "bpe", "tokens": [token.decode("latin-1") for token in tokens]}
    encoding = load_tokenizer(description)
    dtype = np.dtype("<u2" if encoding.n_vocab <= 65536 else "<u4")

    Path(out_dir).mkdir(parents=True, exist_ok=True)
    with suppress(ValueError):  # files that an earlier writing left to rename aren't written over
        settle(out_dir)
    splits = {split: {"tokens": 0, "bytes": 0} for split in SPLITS}
    with ExitStack() as stack:
        files = {split: stack.enter_context(whole_file(Path(out_dir, f"{split}.bin.new")))
                 for split in SPLITS}
        for split, size, ids in encoded(by_split(input, ends), encoding):
            files[split].write(ids.astype(dtype).tobytes())
            splits[split]["tokens"] += len(ids)
            splits[split]["bytes"] += size
    for split in SPLITS:
        splits[split]["fingerprint"] = fingerprint(Path(out_dir, f"{split}.bin.new"))
    source = {"name": input, "bytes": os.path.getsize(input), "sha256": digest.hexdigest()}
    meta = {"vocab_size": encoding.n_vocab, "dtype": dtype.name, "splits": splits,
            "source": source, "tokenizer": description}
    with whole_file(Path(out_dir, "meta.json"), "w") as file:
        file.write(sealed(meta))
    settle(out_dir)  # from here on the new data counts: the files take their names

    print(f"{input} -> {out_dir}/  ({encoding.name}, {encoding.n_vocab:,} tokens, {dtype.name})")
    print(f"{'split':6}{'tokens':>14}{'bytes':>16}{'bytes/token':>14}")
    for split, size in splits.items():
        ratio = size["bytes"] / max(1, size["tokens"])
        print(f"{split:6}{size['tokens']:14,}{size['bytes']:16,}{ratio:14.2f}")
    learned = range(256, encoding.n_vocab - 1)
    for name, ids in (("first", learned[:8]), ("last", learned[-8:])):
        print(f"{name} tokens learned:", *(repr(encoding.decode([i])) for i in ids))


if __name__ == "__main__":
    raise SystemExit(config.run(main))
