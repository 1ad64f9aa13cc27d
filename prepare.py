"""Text -> tokens: train a tokenizer, split the text, write data/train.bin, val.bin and test.bin.

    python prepare.py                                                 # input.txt and a BPE of it
    python prepare.py --input=letters,more.jsonl.gz --tokenizer=gpt2  # a folder and a file

A .bin file holds nothing but token ids, in nanoGPT's format; meta.json describes them.
"""

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
import regex  # installed with tiktoken, which uses the same syntax
import tiktoken

import config
from config.sources import SOURCES

# text
input = "input.txt"  # files, folders, globs, URLs, names in config/sources.py, or - (stdin); a,b
text_key = "text"  # the key of the text in each line of a .jsonl file
encoding_errors = "strict"  # invalid UTF-8: 'strict' raises an error, 'replace' inserts U+FFFD
# tokenizer
tokenizer = "bpe"  # 'bpe': trained here on the training split; 'gpt2': OpenAI's 50,257 tokens
vocab_size = 2048  # tokens of the trained BPE, <|endoftext|> included; 257 is plain bytes
bpe_sample_mb = 10.0  # train the BPE on so many million characters of the training split
# splits
val_fraction = 0.1  # fraction of the text held out for validation during training
test_fraction = 0.1  # fraction held out for one final test
# system
workers = 0  # threads that encode; 0: one per core
out_dir = "data"  # folder for train.bin, val.bin, test.bin and meta.json

SPLITS = ("train", "val", "test")
END_OF_TEXT = "<|endoftext|>"
# GPT-2 cuts text into words first, and no token crosses a cut: contractions; letters, digits or
# other signs, with at most one space before them; white space. (`++` is `+` without backtracking.)
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def train_bpe(word_counts, vocab_size):
    """Learn a byte-pair encoding (Sennrich et al. 2016) from {word: count}.

    Words begin as bytes, the tokens 0 to 255. Then, again and again, the most frequent pair of
    neighboring tokens becomes a new token (of equally frequent ones, the pair with smaller ids).
    Returns the tokens by id, each as a latin-1 string of its bytes. Inside a word, token i is the
    character chr(i), so merging a pair is str.replace: with a+b -> 256, "abab" is chr(256) * 2.
    """
    tokens = [chr(byte) for byte in range(256)]
    ids = {token: i for i, token in enumerate(tokens)}
    words = [word.encode("utf-8").decode("latin-1") for word in word_counts]
    counts = list(word_counts.values())
    pair_counts = collections.Counter()
    words_with = collections.defaultdict(set)  # pair -> indices of the words that have contained it

    def add_pairs(index, sign):
        for pair in itertools.pairwise(words[index]):
            pair_counts[pair] += sign * counts[index]
            words_with[pair].add(index)

    for index in range(len(words)):
        add_pairs(index, +1)
    while len(tokens) < vocab_size - 1:  # the last id is reserved for <|endoftext|>
        highest = max(pair_counts.values(), default=0)
        if highest < 2:  # a pair that occurs once is not a pattern
            break
        left, right = min(pair for pair, count in pair_counts.items() if count == highest)
        token = tokens[ord(left)] + tokens[ord(right)]
        if token not in ids:  # "abc" may exist already: both ab+c and a+bc produce it
            ids[token] = len(tokens)
            tokens.append(token)
        # Only the words that contain the pair change, and with them the counts of their pairs.
        for index in list(words_with[left, right]):
            add_pairs(index, -1)
            words[index] = words[index].replace(left + right, chr(ids[token]))
            add_pairs(index, +1)
        del pair_counts[left, right]
    return tokens


def load_tokenizer(description):
    """Return the tiktoken.Encoding of {"name", "tokens"}; the tokens are latin-1 strings by id."""
    ranks = {token.encode("latin-1"): i for i, token in enumerate(description["tokens"])}
    return tiktoken.Encoding(description["name"], pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={END_OF_TEXT: len(description["tokens"])})


def split_by_position(pieces, n_characters):
    """Yield (split, text, False) for the only document: its beginning is for training."""
    ends = (1 - val_fraction - test_fraction, 1 - test_fraction, 1)
    boundaries = [int(n_characters * end) for end in ends]
    position = 0  # of the piece in the document
    for text, _ in pieces:
        start = 0
        for split, boundary in zip(SPLITS, boundaries):
            end = max(start, min(len(text), boundary - position))
            if end > start:
                yield split, text[start:end], False
            start = end
        position += len(text)


def split_by_hash(pieces):
    """Yield (split, text, is_last) for the pieces of many documents.

    A hash of how a document begins assigns it to a split, so adding documents moves no others.
    """
    is_new = True
    for text, is_last in pieces:
        if is_new:
            u = hash_to_unit_interval(text[:65536])
            if u < test_fraction:
                split = "test"
            elif u < val_fraction + test_fraction:
                split = "val"
            else:
                split = "train"
        yield split, text, is_last
        is_new = is_last


def write_splits(pieces, encoding):
    """Write token ids to out_dir/X.bin.new; return ({split: bytes of text}, sha256 of the text)."""
    n_bytes = dict.fromkeys(SPLITS, 0)
    digest = hashlib.sha256()
    with ExitStack() as stack:
        files = {split: stack.enter_context(atomic_write(f"{out_dir}/{split}.bin.new"))
                 for split in SPLITS}
        for split, text, ids in encode_in_threads(pieces, encoding):
            files[split].write(ids)
            n_bytes[split] += len(text)
            digest.update(text)
        if n_bytes["train"] == 0:
            raise ValueError(f"no document of {input} is in the training split: add documents")
    return n_bytes, digest.hexdigest()


def main(arguments=None):
    globals().update(configure(arguments))
    paths = list(find_files(input))
    with suppress(ValueError):
        finish_publishing(out_dir)  # where an earlier prepare.py was interrupted

    # First pass: a single document is split by position, several are assigned by hash.
    n_documents, n_characters = count(documents(paths))

    def pieces():  # -> (split, text, is_last) for every piece of every document
        if n_documents == 1:
            return split_by_position(documents(paths), n_characters)
        return split_by_hash(documents(paths))

    # Second pass: the tokenizer is learned from the training split alone.
    if tokenizer == "gpt2":
        description = gpt2_tokenizer()
    else:
        training_texts = (text for split, text, _ in pieces() if split == "train")
        word_counts = count_words(training_texts, n_characters)
        description = {"name": "bpe", "tokens": train_bpe(word_counts, vocab_size)}
    encoding = load_tokenizer(description)

    # Third pass: encode. The new files replace the old ones together, once all are complete.
    n_bytes, digest = write_splits(pieces(), encoding)
    publish(description, encoding, n_bytes, digest)
    print_summary(encoding)


# ---- plumbing: skip on a first reading ----

RETRY_DELAYS = (1, 2, 4, 8)  # seconds before each new attempt at a download
TIMEOUT = 30  # seconds without a byte after which a connection counts as broken
TEXT_ENDINGS = ("", ".txt", ".md", ".rst", ".tex", ".html", ".csv", ".log", ".py", ".c", ".h",
                ".js", ".raw", ".tokens", ".jsonl")
COMPRESSED = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
HIDDEN_MEMBER = regex.compile(r"(^|/)\.\w")  # of an archive
GPT2_CACHE = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"  # tiktoken's name for GPT-2's vocabulary


def configure(arguments):
    settings = config.override(__file__, arguments)
    config.one_of(settings, tokenizer=("bpe", "gpt2"), encoding_errors=("strict", "replace"))
    if settings["vocab_size"] < 257:
        config.usage(f"vocab_size={settings['vocab_size']}: expected at least 257")
    val, test = settings["val_fraction"], settings["test_fraction"]
    if val + test >= 1:
        config.usage(f"val_fraction={val} and test_fraction={test} leave nothing for training: "
                     "lower them")
    return settings


def count(pieces):
    """Return how many documents and characters there are, if they are enough to be split."""
    n_documents = n_characters = 0
    for text, is_last in pieces:
        n_characters += len(text)
        if is_last:
            n_documents += 1
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    smallest = min(fraction for fraction in fractions if fraction > 0)
    if n_characters * smallest < 1:
        raise ValueError(f"{input} has {n_characters} characters: too few for {val_fraction=}, "
                         f"{test_fraction=}")
    return n_documents, n_characters


def token_dtype(encoding):
    return np.dtype("<u2" if encoding.n_vocab <= 65536 else "<u4")


def encode_in_threads(pieces, encoding):
    """Yield (split, text as UTF-8, token ids as bytes) for each piece, in order.

    Memory does not grow with the text: only so many pieces are read ahead.
    """
    dtype = token_dtype(encoding)
    end_of_text = dtype.type(encoding.eot_token).tobytes()

    def encode(batch):
        encoded = []
        for split, text, is_last in batch:
            ids = encoding.encode_to_numpy(text, disallowed_special=()).astype(dtype).tobytes()
            if is_last:
                ids += end_of_text
            encoded.append((split, text.encode("utf-8"), ids))
        return encoded

    encoding.encode("\na")  # tiktoken is slow while its first thread is busy; this one will wait
    n_threads = workers or os.cpu_count()
    with ThreadPoolExecutor(n_threads) as threads:
        for batches in in_batches(in_batches(pieces, 16), 4 * n_threads):  # 1 is too short a task
            for batch in threads.map(encode, batches):
                yield from batch


def hash_to_unit_interval(text):
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return int(digest[:12], 16) / 16**12


def in_batches(items, n):
    """Yield the items in lists of n, the last of which may be shorter."""
    items = iter(items)
    while batch := list(itertools.islice(items, n)):
        yield batch


# Files: written completely or not at all, fetched, checked.

@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file for writing; it is renamed to path once it is safely on the disk."""
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        encoding = None if "b" in mode else "utf-8"
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise


class BrokenFile(ValueError):
    """A message of one line that names the file."""


@contextmanager
def named_errors(name):
    """Turn whatever a broken file makes a parser raise into one line that begins with its name."""
    try:
        yield
    except (BrokenFile, MemoryError):
        raise
    except Exception as error:  # every format has exceptions of its own
        if isinstance(error, KeyError):
            reason = f"no {error}"
        else:
            reason = " ".join(str(error).split()) or repr(error)
        raise BrokenFile(f"{name}: {reason:.250}") from error


def fingerprint(path):
    """Return a sha256 of a file's size and of up to 64 samples of it: fast for any size."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for i in range(64):
            file.seek(i * size // 64)
            digest.update(file.read(min(65536, size // 64 + 1)))
    return digest.hexdigest()


def download(url, path, headers=None):
    """Download url to the file path, completely or not at all. Interrupted downloads resume.

    The length and Hugging Face's sha256 are checked. Raises OSError (FileNotFoundError for status
    404) with one line that contains the address.
    """
    import requests  # here, since importing it takes as long as preparing a small text
    part = Path(f"{path}.part{os.environ.get('RANK', '')}")  # one for each process of torchrun
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(len(RETRY_DELAYS) + 1):
        try:
            expected = fetch(url, part, headers or {})
            with open(part, "rb") as file:
                os.fsync(file.fileno())
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if expected not in (None, found):
                part.unlink()
                raise requests.ConnectionError("sha256 mismatch")
            os.replace(part, path)
            return
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            reason = f"status {status}" if status else f"no connection, {error!r:.150}"
            message = f"{url}: {reason}: check the address, the network and HF_TOKEN"
            is_final = status in (401, 403, 404) or isinstance(error, ValueError)  # invalid URL
            if is_final or attempt == len(RETRY_DELAYS):
                kind = FileNotFoundError if status == 404 else OSError
                raise kind(message) from error
            print(f"{message}; retrying in {RETRY_DELAYS[attempt]} s", file=sys.stderr)
            time.sleep(RETRY_DELAYS[attempt])
        except OSError as error:  # the disk's (those of requests are caught above)
            raise OSError(error.errno, error.strerror, str(path)) from error


def fetch(url, part, headers):
    """Append what the file part lacks of url; return the sha256 the server promises, or None."""
    import requests
    size = part.stat().st_size if part.exists() else 0
    headers = {**headers, "Accept-Encoding": "identity", "Range": f"bytes={size}-"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # the part is longer than the file
            part.unlink(missing_ok=True)
        response.raise_for_status()
        if response.status_code != 206:  # the server ignores Range and sends the whole file
            size = 0
        total = size + (response.raw.length_remaining or 0)
        content_range = response.headers.get("Content-Range", "")
        started = time.monotonic()
        resumed_at = size
        with open(part, "ab" if size else "wb") as file:
            for block in response.iter_content(1 << 16):
                size += file.write(block)
                speed = (size - resumed_at) / 1e6 / (time.monotonic() - started + 1e-9)
                print(f"{part.stem}: {size / 1e6:.1f} of {total / 1e6:.1f} MB, {speed:.1f} MB/s",
                      file=sys.stderr, end="\n" if size == total else "  \r")
    promised = content_range.rpartition("/")[2]  # "bytes 0-9/10"; the total may be *
    if size < total or promised not in ("", "*", str(size)):
        raise requests.ConnectionError(f"{size:,} of {total:,} bytes came")
    # Hugging Face sends the sha256 of a large (LFS) file with the redirect to its storage.
    for each in (*response.history, response):
        if found := regex.search("[0-9a-f]{64}", each.headers.get("X-Linked-Etag", "")):
            return found[0]
    return None


def count_words(texts, n_characters):
    """Return {word: count} for bpe_sample_mb of the training split of n_characters of text."""
    fraction = min(1, bpe_sample_mb * 1e6 / n_characters / (1 - val_fraction - test_fraction))
    # A word of a million letters would take hours to learn from: each merge rescans its words.
    pattern = regex.compile(PATTERN.replace("++", "{1,99}"))
    word_counts = collections.Counter()
    for i, text in enumerate(texts):
        if (i * fraction) % 1 < fraction:  # i * fraction passes an integer: sample evenly
            word_counts.update(pattern.findall(text))
    return word_counts


# Sources: from --input to documents.

def find_files(sources):
    """Yield the paths of all files that --input stands for; what is remote is downloaded first."""
    for source in [sources] if os.path.exists(sources) else sources.split(","):
        if not os.path.exists(source):
            source = SOURCES.get(source, source)
        digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]  # URLs may end alike
        copy = f"data/downloads/{digest}-{os.path.basename(source.split('?')[0])}"
        if source == "-":  # standard input can be read once only, and is needed three times
            with atomic_write(copy) as file:
                while block := os.read(0, 1 << 20):
                    file.write(block)
            found = [copy]
        elif os.path.isdir(source):
            found = files_below(source)
        elif "://" in source:
            if not os.path.exists(copy):
                download(source, copy)
            found = [copy]
        elif os.path.exists(source):
            found = [source]
        else:
            found = glob.glob(source, recursive=True)
        found = sorted(str(path) for path in found if os.path.isfile(path))
        if not found:
            raise FileNotFoundError(2, "No such file or directory, or an empty one", source)
        yield from found


def files_below(folder):
    """Return what is in a folder and in those below it, but for hidden files and folders."""
    found = []
    for path in Path(folder).rglob("*"):  # does not follow links, which may form circles
        if "/." in f"/{path.relative_to(folder)}":
            continue
        if path.is_dir():
            os.listdir(path)  # raises where rglob silently skips a folder that can't be read
        found.append(path)
    return found


def documents(paths):
    """Yield (text, is_last) for all pieces of all documents; a document ends with is_last."""
    for path in paths:
        with named_errors(path), open(path, "rb") as file:
            for name, stream, is_jsonl in members(path, file):
                read = json_texts if is_jsonl else text_pieces
                with named_errors(name):
                    try:
                        for text, is_last in read(stream):
                            if text:
                                yield text, is_last
                    except UnicodeDecodeError as error:
                        offset = stream.buffer.tell() - len(error.object) + error.start
                        raise ValueError(f"byte {offset} is not UTF-8 (see prepare.py's "
                                         "--encoding_errors)") from error


def members(name, file, inner_name=None):
    """Yield (name, text stream, is .jsonl) for a file, or for all members of what is packed in it.

    Archives may be nested, and are read as streams: nothing is unpacked onto the disk.
    """
    stem, ending = os.path.splitext((inner_name or name).lower())
    if ending in COMPRESSED:
        if ending == ".tgz":
            stem += ".tar"
        yield from members(name, COMPRESSED[ending](file), stem)
    elif ending == ".tar" or file.peek(512)[257:262] == b"ustar":  # (a .xz may hold a tar file)
        archive = tarfile.open(fileobj=file, mode="r:")
        while member := archive.next():
            archive.members.clear()  # or memory would grow with the number of members
            if member.isfile() and not HIDDEN_MEMBER.search(member.name):
                yield from members(f"{name}/{member.name}", archive.extractfile(member))
        if file.read(1 << 20)[:512] != bytes(512):  # reading also verifies the checksum of a .gz
            raise ValueError("the end of the archive is missing")
    elif ending == ".zip":
        archive = zipfile.ZipFile(file)
        for member in archive.infolist():
            if not member.is_dir() and not HIDDEN_MEMBER.search(member.filename):
                yield from members(f"{name}/{member.filename}", archive.open(member))
    elif ending in TEXT_ENDINGS:
        yield name, io.TextIOWrapper(file, "utf-8", encoding_errors, "\n"), ending == ".jsonl"
    else:
        raise BrokenFile(f"{name}: expected a name that ends in one of{' '.join(TEXT_ENDINGS)} "
                         ".gz .bz2 .xz .tgz .tar .zip")


def json_texts(stream):
    """Yield (text, True) for each line of a .jsonl file."""
    for number, line in enumerate(stream, 1):
        line = line.strip("\ufeff \t\r\n")
        if not line:
            continue
        try:
            text = json.loads(line)[text_key].encode("utf-8", encoding_errors).decode("utf-8")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"line {number} isn't JSON with a text at {text_key=}") from error
        yield text, True


def text_pieces(stream):
    """Yield (text, is_last) for the pieces of one document.

    A piece ends before the last white space of a block that follows something else, since no token
    crosses such a place: "to be or not to be" may be cut after "to", never inside " be".
    """
    rest = ""
    while len(block := stream.read(1 << 17)) == 1 << 17:
        rest += block
        searched_before = max(0, len(rest) - len(block) - 1)
        if cut := regex.match(r"(?s).*\S(?=[ \n])", rest, pos=searched_before):
            yield rest[:cut.end()], False
            rest = rest[cut.end():]
    yield rest + block, True


# meta.json: what the .bin files are. Writing it is the moment from which new data counts.

def read_meta(folder):
    """Return the content of meta.json, or None without one; ValueError if it is damaged."""
    path = Path(folder, "meta.json")
    if not path.exists():
        return None
    with suppress(ValueError, TypeError, RecursionError):
        meta = json.loads(path.read_bytes())
        content = {key: value for key, value in meta.items() if key != "sha256"}
        if meta == sealed(content):
            return meta
    raise ValueError(f"{path} is damaged: prepare it again: python prepare.py --out_dir={folder}")


def sealed(meta):
    """Return meta with a sha256 of itself."""
    return meta | {"sha256": hashlib.sha256(json.dumps(meta).encode()).hexdigest()}


def publish(description, encoding, n_bytes, digest):
    """Write meta.json for the .bin.new files in out_dir, then give them their names."""
    splits = {}
    for split in SPLITS:
        new = f"{out_dir}/{split}.bin.new"
        n_tokens = os.path.getsize(new) // token_dtype(encoding).itemsize
        splits[split] = dict(tokens=n_tokens, bytes=n_bytes[split], fingerprint=fingerprint(new))
    source = dict(name=input, bytes=sum(n_bytes.values()), sha256=digest)
    meta = dict(vocab_size=encoding.n_vocab, dtype=token_dtype(encoding).name, splits=splits,
                tokenizer=description, source=source)
    with atomic_write(f"{out_dir}/meta.json", "w") as file:
        json.dump(sealed(meta), file)
    finish_publishing(out_dir)


def finish_publishing(folder):
    """Rename every X.bin.new that meta.json describes to X.bin.

    If prepare.py is interrupted between writing meta.json and the last rename, whoever calls this
    next completes it, so that a folder never holds a mix of old and new data.
    """
    meta = read_meta(folder)
    for new in Path(folder).glob("*.bin.new") if meta else ():
        split = new.name.removesuffix(".bin.new")
        if fingerprint(new) == meta["splits"].get(split, {}).get("fingerprint"):
            os.replace(new, new.with_suffix(""))


def print_summary(encoding):
    print(f"{input} -> {out_dir}/  ({encoding.name}, {encoding.n_vocab:,} tokens, "
          f"{token_dtype(encoding).name})")
    print(f"{'split':6}{'tokens':>14}{'bytes':>16}{'bytes/token':>14}")
    for split, about in read_meta(out_dir)["splits"].items():
        n_tokens, n_bytes = about["tokens"], about["bytes"]
        print(f"{split:6}{n_tokens:14,}{n_bytes:16,}{n_bytes / max(1, n_tokens):14.2f}")
    learned = [repr(encoding.decode([i])) for i in range(256, encoding.n_vocab - 1)]
    print("tokens learned:", *learned[:8], "...", *learned[-8:])
    cache = os.getenv("TIKTOKEN_CACHE_DIR", os.getenv("TMPDIR", "/tmp") + "/data-gym-cache")
    if os.path.exists(f"{cache}/{GPT2_CACHE}"):  # nothing is downloaded for a comparison
        ids = np.fromfile(f"{out_dir}/val.bin", token_dtype(encoding), 1 << 18)
        text = encoding.decode(ids.tolist())
        gpt2_ids = load_tokenizer(gpt2_tokenizer()).encode(text, allowed_special="all")
        ratio = len(text.encode("utf-8")) / max(1, len(gpt2_ids))
        print(f"GPT-2's tokenizer, for comparison: {ratio:.2f} bytes/token (beginning of val)")


def gpt2_tokenizer():
    """Return the description of OpenAI's tokenizer, which tiktoken downloads once and caches."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except OSError as error:
        raise OSError(f"GPT-2's vocabulary could not be downloaded, try later: "
                      f"{error!r:.99}") from error
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    return {"name": "gpt2", "tokens": [token.decode("latin-1") for token in tokens]}


if __name__ == "__main__":
    raise SystemExit(config.run(main))
