"""Text -> tokens: train a tokenizer, split the text, write data/train.bin, val.bin and test.bin.

    python prepare.py                                    # input.txt, a BPE trained on it
    python prepare.py --input=mine.txt,folder --vocab_size=4096 --out_dir=data_mine
    python prepare.py --input=openwebtext-10k --tokenizer=gpt2  # OpenAI's vocabulary

A .bin file is nothing but token ids, one after the other (uint16, as in nanoGPT); meta.json says
what they mean. Any text can be encoded, since the tokens are made of bytes, not of characters.
The text, of any size, is read three times: to measure it, to learn from it and to encode it."""

import bz2
import collections
import glob
import gzip
import hashlib
import heapq
import io
import itertools
import json
import lzma
import os
import re
import sys
import tarfile
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import regex  # comes with tiktoken, which splits text by it too
import tiktoken

import config

input = "input.txt"  # file, folder, glob, address, name in SOURCES or - (several with commas)
text_key = "text"  # what a line of .jsonl calls its text
encoding_errors = "strict"  # bytes that are not UTF-8 'strict': end it; 'replace': become U+FFFD
tokenizer = "bpe"  # 'bpe': trained here on the training split; 'gpt2': OpenAI's 50,257 tokens
vocab_size = 2048  # tokens of the trained BPE, <|endoftext|> among them; 257 is plain bytes
bpe_sample_mb = 20.0  # millions of characters, spread over the training split, to train it on
val_fraction = 0.1  # share of the text held out for validation while training
test_fraction = 0.1  # share held out for one last test
workers = 0  # threads that encode; 0: one a core
out_dir = "data"  # folder for train.bin, val.bin, test.bin and meta.json

SPLITS = ("train", "val", "test")
END_OF_TEXT = "<|endoftext|>"
# GPT-2's rule for what may become one token: a contraction, a word or a number or punctuation,
# each with one space before it, or white space. Tokens never reach across such pieces.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
RAW, HUB = "https://raw.githubusercontent.com", "https://huggingface.co"
SOURCES = {
    "shakespeare": f"{RAW}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "the-verdict": f"{RAW}/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
    "wikitext-103": f"{HUB}/datasets/segyges/wikitext-103/resolve/main/wiki.train.raw",
    "openwebtext-10k": "https://cdn-datasets.huggingface.co/nlp/datasets/openwebtext/"
                       "openwebtext-10k.tar.xz"}
TEXTS = ("", ".txt", ".md", ".rst", ".tex", ".html", ".csv", ".py", ".raw", ".tokens", ".jsonl")
PACKED = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# Seconds before a download is tried again (doubled each time), and of silence until it is broken
RETRY_DELAY = 1.0
TIMEOUT = 30.0


def download(url, path, headers=None):
    """Fetch an address into the file path, whole or not at all. A broken attempt leaves path.part,
    with which up to four more attempts and the next call go on. Content-Length is checked, and the
    sha256 that Hugging Face names. Raises OSError, one line that names the address or the path."""
    import requests  # here, since importing it takes long beside preparing a small text

    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(5):
        size = part.stat().st_size if part.exists() else 0
        asked = {**(headers or {}), "Accept-Encoding": "identity"}
        asked |= {"Range": f"bytes={size}-"} if size else {}
        try:
            with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT) as response:
                response.raise_for_status()
                size = size if response.status_code == 206 else 0  # else all of it comes again
                total = size + int(response.headers.get("Content-Length", -1 - size))
                first, start = size, time.monotonic()
                with open(part, "ab" if size else "wb") as file:
                    for block in response.iter_content(1 << 14):
                        size += file.write(block)
                        speed = (size - first) / 1e6 / (time.monotonic() - start + 1e-6)
                        if size == total or size % (1 << 20) < len(block):
                            print(f"\r{part.stem}: {size:,} of {total:,} bytes, {speed:.1f} MB/s ",
                                  end="", file=sys.stderr, flush=True)
                    file.flush()
                    os.fsync(file.fileno())
            print(file=sys.stderr)
            if total not in (-1, size):
                raise ConnectionError(f"{size:,} of {total:,} bytes came")
            break
        except (requests.RequestException, ConnectionError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status == 416:  # the part is not the beginning of what is there now
                part.unlink()
            elif attempt == 4 or 400 <= status < 500 or isinstance(error, ValueError):  # no address
                advice = "set HF_TOKEN to a token with access" if status in (401, 403) else (
                    "check the address and the network, then run it again")
                raise OSError(f"{url}: {error!r:.99}: {advice}") from error
            print(f"{url}: {error!r:.99}: trying again", file=sys.stderr)
            time.sleep(RETRY_DELAY * 2 ** attempt)
        except OSError as error:  # of the disk
            error.filename = str(path)
            raise
    with open(part, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for answer in (*response.history, response):
        promised = answer.headers.get("X-Linked-Etag", "").strip('"')
        if re.fullmatch("[0-9a-f]{64}", promised) and promised != digest:
            part.unlink()
            raise OSError(f"{url}: its sha256 is not what the server names: deleted, try again")
    os.replace(part, path)


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
    words = [word.encode().decode("latin-1") for word in word_counts]  # a token is its chr(id)
    counts = list(word_counts.values())
    pair_counts = collections.Counter()
    places = collections.defaultdict(set)  # pair -> the words it has been in
    changed = set()  # the pairs whose count is another than in the heap
    heap = []

    def count(place, sign):
        for pair in zip(words[place], words[place][1:]):
            pair_counts[pair] += sign * counts[place]
            places[pair].add(place)
            changed.add(pair)

    for place in range(len(words)):
        count(place, 1)
    while len(tokens) < vocab_size - 1:  # the last id is <|endoftext|>'s
        for pair in changed:
            heapq.heappush(heap, (-pair_counts[pair], pair))
        changed.clear()
        while heap and -heap[0][0] != pair_counts[heap[0][1]]:  # a count of before
            heapq.heappop(heap)
        if not heap or -heap[0][0] < 2:
            break
        pair = heap[0][1]
        token = tokens[ord(pair[0])] + tokens[ord(pair[1])]
        if token not in ids:  # else the same bytes were reached by another way before
            ids[token] = len(tokens)
            tokens.append(token)
        for place in places.pop(pair):
            count(place, -1)
            words[place] = words[place].replace("".join(pair), chr(ids[token]))
            count(place, 1)
    return tokens


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


def find(sources):
    """Return the files of a comma-separated list of sources; those of a folder or a glob sorted.
    What an address names is downloaded once; standard input is copied to a temporary file."""
    found = []
    for source in sources.split(","):
        source = SOURCES.get(source, source)
        if source.startswith(("http://", "https://")):
            name = source.partition("?")[0].rpartition("/")[2]
            path = f"data/downloads/{hashlib.sha256(source.encode()).hexdigest()[:8]}-{name}"
            if not os.path.exists(path):
                token = source.startswith(HUB + "/") and os.environ.get("HF_TOKEN")
                download(source, path, {"Authorization": f"Bearer {token}"} if token else None)
            found.append(path)
        elif source == "-":
            os.makedirs(out_dir, exist_ok=True)
            found.append(tempfile.NamedTemporaryFile(prefix="standard_input_", dir=out_dir))
            found[-1].writelines(sys.stdin.buffer)
            found[-1].flush()
        else:
            literal = glob.escape(source) + "/**" * os.path.isdir(source)
            paths = glob.glob(literal, recursive=True) or glob.glob(source, recursive=True)
            paths = sorted(filter(os.path.isfile, paths))
            if not paths:
                raise FileNotFoundError(2, "No such file, or no file in it", source)
            found += paths
    return found


def members(name, file):
    """Yield (name, binary file) for a text, or for each text in what is packed, however deep."""
    stem, ending = os.path.splitext(name)
    if ending in PACKED:
        with PACKED[ending](file) as inner:
            yield from members(stem, inner)
    elif ending == ".tar" or file.peek(512)[257:262] == b"ustar":
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in iter(archive.next, None):
                archive.members.clear()  # else memory would grow with their number
                if member.isfile():
                    yield from members(f"{name}/{member.name}", archive.extractfile(member))
            if file.read(1 << 20)[:512] != bytes(512):  # and so up to the checksum of a .gz
                raise tarfile.ReadError("its end is missing")
    elif ending == ".zip":
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    yield from members(f"{name}/{member.filename}", archive.open(member))
    elif ending not in TEXTS:
        raise ValueError(f"{ending} is not the ending of a text: expected {' '.join(TEXTS[1:])} "
                         "or none, and behind it .gz, .bz2 or .xz; or .zip or .tar")
    elif not os.path.basename(name).startswith("."):  # which systems add to archives
        yield name, file


def texts(name, file):
    """Yield (text, last): the documents of a file in pieces, and if the piece is a document's last.
    A piece ends where white space follows something else, since no token reaches across."""
    stream = io.TextIOWrapper(file, "utf-8", encoding_errors, newline="\n")
    try:
        if name.endswith(".jsonl"):
            for number, line in enumerate(stream, 1):
                try:
                    if line.strip():
                        text = json.loads(line)[text_key].encode("utf-8", encoding_errors).decode()
                        yield text, True
                except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
                    raise ValueError(f"line {number} is not JSON with a text as its {text_key!r}: "
                                     f"see --text_key ({error!r:.60})") from error
            return
        rest = ""
        while block := stream.read(1 << 17):
            rest += block
            safe = re.match(r"(?s).*\S(?=[ \n])", rest)
            if safe:
                yield safe[0], False
                rest = rest[safe.end():]
        yield rest, True
    except UnicodeDecodeError as error:
        place = file.tell() - len(error.object) + error.start
        raise ValueError(f"byte {place} is not UTF-8 ({error.reason}): --encoding_errors=replace "
                         "goes on") from error


def documents(sources):
    """Yield (text, last) for all that the sources hold. ValueError names what can't be read."""
    for source in sources:
        name = path = getattr(source, "name", source)
        try:
            with open(path, "rb") as opened:
                for name, file in members(path, opened):
                    yield from texts(name, file)
        except Exception as error:  # each format has its own for what is damaged
            if isinstance(error, MemoryError) or getattr(error, "errno", None):
                raise
            reason = error if isinstance(error, ValueError) else f"{error!r:.99}"
            raise ValueError(f"{name}: {reason}") from error


def by_split(sources, ends):
    """Yield (split, text, last) for each piece of the documents. A single document is cut where a
    split ends (in characters). With ends=None each goes where a hash of its content (as far as its
    first piece) says, so that a document that is added moves no other to another split."""
    position = 0
    new = True
    for text, last in documents(sources):
        for split, end in zip(SPLITS, ends or ()):
            part = text[:max(0, end - position)]
            if part:
                yield split, part, False
                position += len(part)
                text = text[len(part):]
        if new and not ends:
            share = int(hashlib.sha256(text.encode()).hexdigest()[:13], 16) / 16**13
            split = SPLITS[(share < val_fraction + test_fraction) + (share < test_fraction)]
        if not ends:
            yield split, text, last
            new = last


def encoded(parts, encoding, dtype):
    """Yield [(split, text in UTF-8, ids as bytes)], a few parts at a time and in order, with the
    work done by tiktoken's threads."""
    def encode(batch):
        result = []
        for split, text, last in batch:
            ids = encoding.encode_to_numpy(text, disallowed_special=())
            ids = np.append(ids, encoding.eot_token) if last else ids
            result.append((split, text.encode(), ids.astype(dtype).tobytes()))
        return result

    threads = workers or os.cpu_count()
    ahead = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(itertools.islice(parts, 4)):
            ahead.append(pool.submit(encode, batch))
            if len(ahead) > 8 * threads:
                yield ahead.popleft().result()
        yield from (task.result() for task in ahead)


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
    config.one_of(globals(), "encoding_errors", "strict", "replace")
    if vocab_size < 257:
        config.usage(f"vocab_size={vocab_size}: 256 bytes and {END_OF_TEXT} make 257 the least")
    if val_fraction + test_fraction >= 1:
        config.usage(f"val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing "
                     "for training: lower them")

    sources = find(input)
    characters = count = 0
    for text, last in documents(sources):
        characters += len(text)
        count += last
        if count > 1:
            break
    shares = (1 - val_fraction - test_fraction, 1 - test_fraction, 1)
    ends = [int(characters * share) for share in shares] if count < 2 else None
    for split, share, size in zip(SPLITS, (1, val_fraction, test_fraction),
                                  np.diff(ends or (1, 2, 3), prepend=0)):
        if share and not size:
            raise ValueError(f"{input} has {characters} characters: nothing is left for the "
                             f"{split} split; give more text or lower val_fraction, test_fraction")

    if tokenizer == "gpt2":
        description = gpt2_tokenizer()
    else:
        words = collections.Counter()
        seen = learned = 0  # characters of the training split, and those of them in the sample
        size = sum(os.path.getsize(getattr(source, "name", source)) for source in sources)
        for split, text, _ in by_split(sources, ends):
            seen += len(text) if split == "train" else 0
            if learned >= bpe_sample_mb * 1e6:
                break
            if split == "train" and learned * size <= seen * bpe_sample_mb * 1e6:
                words.update(regex.findall(PATTERN, text))
                learned += len(text)
        tokens = train_bpe(words, vocab_size)
        description = {"name": "bpe", "tokens": [token.decode("latin-1") for token in tokens]}
    encoding = load_tokenizer(description)
    dtype = np.dtype("<u2" if encoding.n_vocab <= 65536 else "<u4")

    Path(out_dir).mkdir(parents=True, exist_ok=True)
    with suppress(ValueError):  # files that an earlier writing left to rename aren't written over
        settle(out_dir)
    splits = {split: {"tokens": 0, "bytes": 0} for split in SPLITS}
    digest = hashlib.sha256()
    with ExitStack() as stack:
        files = {split: stack.enter_context(whole_file(Path(out_dir, f"{split}.bin.new")))
                 for split in SPLITS}
        for batch in encoded(by_split(sources, ends), encoding, dtype):
            for split, text, ids in batch:
                digest.update(text)
                files[split].write(ids)
                splits[split]["tokens"] += len(ids) // dtype.itemsize
                splits[split]["bytes"] += len(text)
        if not splits["train"]["tokens"]:
            raise ValueError(f"{input}: no document is for training; give more, or lower "
                             "val_fraction, test_fraction")
    for split in SPLITS:
        splits[split]["fingerprint"] = fingerprint(Path(out_dir, f"{split}.bin.new"))
    size = sum(splits[split]["bytes"] for split in SPLITS)
    meta = {"vocab_size": encoding.n_vocab, "dtype": dtype.name, "splits": splits,
            "source": {"name": input, "bytes": size, "sha256": digest.hexdigest()},
            "tokenizer": description}
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
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or f"{tempfile.gettempdir()}/data-gym-cache"
    if os.path.exists(f"{cache}/6d1cbeee0f20b3d9449abfede4726ed8212e3aee"):  # GPT-2's vocabulary
        with suppress(OSError):  # only a part of it may be there
            ids = np.fromfile(Path(out_dir, "train.bin"), dtype, 1 << 18).tolist()
            text = encoding.decode(ids).replace(END_OF_TEXT, "")
            theirs = len(load_tokenizer(gpt2_tokenizer()).encode_ordinary(text))
            print(f"bytes/token in the beginning of train: {len(text.encode()) / len(ids):.2f}, "
                  f"with GPT-2's vocabulary {len(text.encode()) / max(1, theirs):.2f}")


if __name__ == "__main__":
    raise SystemExit(config.run(main))
