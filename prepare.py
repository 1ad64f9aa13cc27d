"""Text -> tokens: train a tokenizer, split the text, write data/train.bin, val.bin and test.bin.

    python prepare.py                                  # input.txt, a BPE trained on it
    python prepare.py --input=letters,more.jsonl.gz --tokenizer=gpt2  # a folder, a file; GPT-2's

A .bin file is nothing but token ids, as nanoGPT's are; meta.json says what they mean."""

import bz2
import collections
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import regex  # comes with tiktoken, which splits text by it too
import tiktoken

import config
from config.sources import SOURCES

input = "input.txt"  # files, folders, globs, addresses, names (config/sources.py) or -, with commas
text_key = "text"  # what a line of .jsonl calls its text
encoding_errors = "strict"  # bytes that aren't UTF-8: 'strict' ends there, 'replace' goes on
tokenizer = "bpe"  # 'bpe': trained here on the training split; 'gpt2': OpenAI's 50,257 tokens
vocab_size = 2048  # tokens of the trained BPE, <|endoftext|> among them; 257 is plain bytes
bpe_sample_mb = 10.0  # millions of characters, from all over the training split, to train it on
val_fraction = 0.1  # share of the text held out for validation while training
test_fraction = 0.1  # share held out for one last test
workers = 0  # threads that encode; 0 for one a core
out_dir = "data"  # folder for train.bin, val.bin, test.bin and meta.json

SPLITS = ("train", "val", "test")
END_OF_TEXT = "<|endoftext|>"
# GPT-2's rule for what may become one token: a contraction, a word or a number or punctuation,
# each with one space before it, or white space. Tokens never reach across such pieces.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
RETRY_DELAYS = (1, 2, 4, 8)  # seconds before each new attempt at a download
TIMEOUT = 30  # seconds without a byte after which a connection counts as broken
TEXTS = ["", *".txt .md .rst .tex .html .csv .log .py .c .h .js .raw .tokens .jsonl".split()]
PACKED = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

@contextmanager
def whole_file(path, mode="wb"):
    """Open a file for writing that takes its name only when all of it is safely on the disk."""
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
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
            error.filename = error.filename or str(path)
        raise error

def download(url, path, headers=None):
    """Fetch an address into the file path, whole or not at all; what a broken attempt left is gone
    on with. Length and X-Linked-Etag's sha256 are checked. OSError is one line with the address."""
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
                total = size + (response.raw.length_remaining or 0)
                start, old, told = time.monotonic(), size, response.headers.get("Content-Range", "")
                with open(part, "ab" if size else "wb") as file:
                    for block in response.iter_content(1 << 16):
                        size += file.write(block)
                        speed = (size - old) / 1e6 / (time.monotonic() - start + 1e-9)
                        print(f"{part.stem}: {size / 1e6:.1f} of {total / 1e6:.1f} MB, {speed:.1f} "
                              "MB/s", file=sys.stderr, end="\n" if size == total else "  \r")
            if size < total or told and told.rpartition("/")[2] not in ("*", str(size)):
                raise requests.ConnectionError(f"{size:,} of {total:,} bytes came")
            linked = [each.headers.get("X-Linked-Etag") for each in (*response.history, response)]
            promised = regex.search("[0-9a-f]{64}", str(linked))
            with open(part, "rb") as file:
                os.fsync(file.fileno())
                if promised and hashlib.file_digest(file, "sha256").hexdigest() != promised[0]:
                    part.unlink()
                    raise requests.ConnectionError("what came hasn't the promised sha256")
            return os.replace(part, path)
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", 0)
            reason = f"status {status}" if status else f"no connection, {error!r:.150}"
            message = f"{url}: {reason}: check the address, the network and HF_TOKEN"
            if delay is None or status in (401, 403, 404) or isinstance(error, ValueError):
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
    """Learn a byte-level BPE (Sennrich et al. 2016): {word: count} -> [token in latin-1], by id.
    The most frequent pair of neighbouring tokens becomes a new token, again and again; of equally
    frequent pairs, the one with the smaller ids. A pair seen once is no pattern, and ends it."""
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
        raise OSError(f"GPT-2's vocabulary can't be had, try later: {error!r:.99}") from error
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return {"name": "gpt2", "tokens": [token.decode("latin-1") for token in tokens]}

def find(sources):
    """Yield the paths of the files that the sources stand for; what is no file yet is fetched."""
    for source in [sources] if os.path.exists(sources) else sources.split(","):
        source = source if os.path.exists(source) else SOURCES.get(source, source)
        digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]  # (addresses may end alike)
        found = [f"data/downloads/{digest}-{os.path.basename(source.split('?')[0])}"]
        if source == "-":  # a copy, since everything is read three times
            with whole_file(found[0]) as file:
                file.writelines(iter(lambda: os.read(0, 1 << 20), b""))
        elif os.path.isdir(source):  # (rglob follows no links: they may lead in circles)
            found = [p for p in Path(source).rglob("*") if "/." not in f"/{p.relative_to(source)}"
                     and (not p.is_dir() or os.listdir(p))]  # (rglob hides what this raises)
        elif "://" not in source:
            found = [source] if os.path.exists(source) else glob.glob(source, recursive=True)
        elif not os.path.exists(found[0]):
            download(source, found[0])
        if not (found := sorted(filter(os.path.isfile, map(str, found)))):
            raise FileNotFoundError(2, "No such file or directory, or an empty one", source)
        yield from found

def unpacked(name, file, inside=None):  # inside: the name of what a packed file packs
    """Yield (name, stream, is .jsonl) of a text, or of each in what is packed, however deep."""
    stem, ending = os.path.splitext((inside or name).lower())
    if ending in PACKED:
        yield from unpacked(name, PACKED[ending](file), stem + ".tar" * (ending == ".tgz"))
    elif ending == ".tar" or file.peek(512)[257:262] == b"ustar":  # (in openwebtext's .xz are tars)
        archive = tarfile.open(fileobj=file, mode="r:")
        for member in iter(archive.next, None):
            archive.members.clear()  # else memory would grow with their number
            if member.isfile() and not regex.search(r"(^|/)\.\w", member.name):  # hidden
                yield from unpacked(f"{name}/{member.name}", archive.extractfile(member))
        if file.read(1 << 20)[:512] != bytes(512):  # (which reads on to the checksum of a .gz)
            raise ValueError("the end of the archive is missing")
    elif ending == ".zip":
        for member in (archive := zipfile.ZipFile(file)).infolist():
            if not regex.search(r"(^|/)\.\w|/$", member.filename):  # no folder, nothing hidden
                yield from unpacked(f"{name}/{member.filename}", archive.open(member))
    elif ending not in TEXTS:
        raise ValueError(f"{name} ends with none of{' '.join(TEXTS)} .gz .bz2 .xz .tgz .tar .zip")
    else:
        yield name, io.TextIOWrapper(file, "utf-8", encoding_errors, "\n"), ending == ".jsonl"

def texts(stream, lines):
    """Yield (text, last) for all pieces of the documents in a file, last with the end of one.
    Pieces end before white space that follows something else, which no token reaches across."""
    rest = ""
    if lines:
        for number, line in enumerate(stream, 1):
            try:
                if line := line.strip("\ufeff \t\r\n"):
                    yield json.loads(line)[text_key].encode("utf-8", encoding_errors).decode(), True
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"line {number} isn't JSON with a text at {text_key=}") from error
    while len(block := stream.read(1 << 17)) == 1 << 17:
        rest += block
        if safe := regex.match(r"(?s).*\S(?=[ \n])", rest, pos=max(0, len(rest) - len(block) - 1)):
            yield rest[:safe.end()], False
            rest = rest[safe.end():]
    yield rest + block, True

def documents(paths):
    """Yield (text, last) as texts does, for all files. ValueError names what is broken."""
    for path in paths:
        name, stream = path, None
        with open(path, "rb") as file:
            try:
                for name, stream, lines in unpacked(path, file):
                    yield from (part for part in texts(stream, lines) if part[0])
                    name, stream = path, None
            except Exception as error:  # each format has errors of its own
                if stream and isinstance(error, UnicodeDecodeError):
                    place = stream.buffer.tell() - len(error.object) + error.start
                    error = f"byte {place} is not UTF-8 (see prepare.py's --encoding_errors)"
                raise ValueError(f"{name}: {str(error) or repr(error)}") from None

def sealed(meta):  # -> the same with a sha256 of itself
    return meta | {"sha256": hashlib.sha256(json.dumps(meta).encode()).hexdigest()}

def read_meta(folder):
    """Return what meta.json says, None without one; ValueError if it is not as it was written."""
    path = Path(folder, "meta.json")
    with suppress(ValueError, TypeError, RecursionError):
        meta = json.loads(path.read_bytes()) if path.exists() else None
        if meta is None or meta == sealed({key: meta[key] for key in meta if key != "sha256"}):
            for new in path.parent.glob("*.bin.new") if meta else ():  # where a writing broke off
                if fingerprint(new) == meta["splits"].get(new.name[:-8], {}).get("fingerprint"):
                    os.replace(new, new.with_suffix(""))
            return meta
    raise ValueError(f"{path} is damaged: python prepare.py --out_dir={folder} makes it anew")

def main(arguments=None):
    globals().update(config.override(__file__, arguments))
    config.one_of(globals(), tokenizer=("bpe", "gpt2"), encoding_errors=("strict", "replace"))
    config.at_least(globals(), 257, "vocab_size")
    held_out = val_fraction + test_fraction
    if held_out >= 1:
        config.usage(f"{val_fraction=} and {test_fraction=} leave nothing for training: lower them")

    paths, characters, count = list(find(input)), 0, 0
    for text, last in documents(paths):
        characters += len(text)
        count += last
    if characters * min(filter(None, (1 - held_out, val_fraction, test_fraction))) < 1:
        raise ValueError(f"{characters=} in {input}: too few for {val_fraction=}, {test_fraction=}")
    ends = [int(characters * end) for end in (1 - held_out, 1 - test_fraction, 1)]
    def parts():  # -> (split, text, whether a document ends there) for all pieces
        position, last = 0, True
        for text, ended in documents(paths):
            if count == 1:  # the only document is cut where the splits end
                for split, start, end in zip(SPLITS, [0, *ends], ends):
                    yield split, text[max(0, start - position):max(0, end - position)], False
                position += len(text)
                continue
            if last:  # a new document goes where a hash says: to add some moves no others
                share = int(hashlib.sha256(text[:65536].encode()).hexdigest()[:12], 16) / 16**12
                split = SPLITS[(share < held_out) + (share < test_fraction)]
            yield split, text, ended
            last = ended

    if tokenizer == "gpt2":
        description = gpt2_tokenizer()
    else:
        part = min(1, bpe_sample_mb * 1e6 / characters / (1 - held_out))  # of the pieces, evenly
        training = (text for split, text, _ in parts() if split == "train")
        sample = (text for i, text in enumerate(training) if i * part % 1 < part)
        pattern = regex.compile(PATTERN.replace("++", "{1,99}"))  # a word without end takes hours
        words = collections.Counter(word for text in sample for word in pattern.findall(text))
        description = {"name": "bpe", "tokens": train_bpe(words, vocab_size)}
    encoding = load_tokenizer(description)
    encoding.encode("\na")  # tiktoken's first thread slows all others: be it this one, idle then
    dtype = np.dtype("<u2" if encoding.n_vocab <= 65536 else "<u4")
    end_of_text = dtype.type(encoding.eot_token).tobytes()
    def encode(some):  # -> (split, text in UTF-8, tokens as in the .bin file) for each
        return [(split, text.encode(), encoding.encode_to_numpy(text, disallowed_special=()).astype(
            dtype).tobytes() + end_of_text * last) for split, text, last in some]
    with suppress(ValueError):  # files that an earlier writing left to rename aren't written over
        read_meta(out_dir)
    splits, sizes, digest = {}, dict.fromkeys(SPLITS, 0), hashlib.sha256()  # sizes in bytes
    todo, cores = (part for part in parts() if part[1]), workers or os.cpu_count()
    batches = iter(lambda: list(itertools.islice(todo, 16)), [])  # (one is too short a task)
    with ExitStack() as stack, ThreadPoolExecutor(cores) as threads:
        files = {split: stack.enter_context(whole_file(f"{out_dir}/{split}.bin.new"))
                 for split in SPLITS}
        while some := list(itertools.islice(batches, 4 * cores)):  # (what is in memory at once)
            for split, text, ids in itertools.chain.from_iterable(threads.map(encode, some)):
                digest.update(text)
                files[split].write(ids)
                sizes[split] += len(text)
        if not sizes["train"]:
            raise ValueError(f"no document of {input} is for training: give more, or larger ones")
    table = [f"{input} -> {out_dir}/  ({encoding.name}, {encoding.n_vocab:,} tokens, {dtype.name})",
             f"{'split':6}{'tokens':>14}{'bytes':>16}{'bytes/token':>14}"]
    for split, size in sizes.items():
        new = f"{out_dir}/{split}.bin.new"
        tokens = os.path.getsize(new) // dtype.itemsize
        splits[split] = dict(tokens=tokens, bytes=size, fingerprint=fingerprint(new))
        table.append(f"{split:6}{tokens:14,}{size:16,}{size / max(1, tokens):14.2f}")
    meta = dict(vocab_size=encoding.n_vocab, dtype=dtype.name, splits=splits, tokenizer=description,
                source=dict(name=input, bytes=sum(sizes.values()), sha256=digest.hexdigest()))
    with whole_file(f"{out_dir}/meta.json", "w") as file:
        json.dump(sealed(meta), file)
    read_meta(out_dir)  # from here on the new data counts: the files take their names
    print(*table, sep="\n")
    learned = [repr(encoding.decode([i])) for i in range(256, encoding.n_vocab - 1)]
    print("tokens learned:", *learned[:8], "...", *learned[-8:])
    cache = os.getenv("TIKTOKEN_CACHE_DIR", os.getenv("TMPDIR", "/tmp") + "/data-gym-cache")
    with suppress(OSError), open(f"{cache}/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"):  # GPT-2's
        text = encoding.decode(np.fromfile(Path(out_dir, "val.bin"), dtype, 1 << 18).tolist())
        theirs = load_tokenizer(gpt2_tokenizer()).encode(text, allowed_special="all")
        print(f"GPT-2's: {len(text.encode()) / (len(theirs) or 1):.2f} bytes/token (val's start)")

if __name__ == "__main__":
    raise SystemExit(config.run(main))
