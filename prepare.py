"""Text -> tokens: split the text, train a tokenizer, write data/*.bin (token ids, as nanoGPT does).

    python prepare.py                                                 # input.txt, BPE trained on it
    python prepare.py --input=letters,more.jsonl.gz --tokenizer=gpt2  # a folder and a file
"""

import collections
import glob
import hashlib
import importlib
import io
import itertools
import json
import os
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from email.utils import formatdate
from pathlib import Path

import numpy as np
import regex  # installed with tiktoken, which uses the same syntax
import tiktoken

import config
from config.sources import SOURCES

# text
input = "input.txt"  # file, folder, glob, URL, name in config/sources.py; a,b: several; -: stdin
text_key = "text"  # the key of the text in each line of a .jsonl file
encoding_errors = "strict"  # invalid UTF-8: 'strict' raises an error, 'replace' inserts U+FFFD
split_on_eot = False  # whether <|endoftext|> in a text ends a document; else it is ordinary text
val_fraction = 0.1  # fraction of the text held out for validation during training
test_fraction = 0.1  # fraction held out for one final test
# tokenizer
tokenizer = "bpe"  # 'bpe': trained here; or that of 'gpt2', owner/name, a model, run or data folder
vocab_size = 2048  # tokens of the trained BPE, <|endoftext|> included; 257 is plain bytes
bpe_sample_mb = 10.0  # train the BPE on about this many million training characters
# system
workers = 0  # threads that encode; 0: one per core
out_dir = "data"  # folder for train.bin, val.bin, test.bin and meta.json, which describes them

SPLITS = ("train", "val", "test")
END_OF_TEXT = "<|endoftext|>"  # a token of its own, after each of several documents
# GPT-2 cuts text into words first, and no token crosses a cut: "They've 12  cats!" is cut into
# They|'ve| 12| | cats|! (\p{L} is a letter, \p{N} a digit; `++` is `+` without backtracking.)
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


def train_bpe(word_counts, vocab_size):
    """Learn a byte-pair encoding (Sennrich et al. 2016): {word: count} -> list of tokens. Words
    begin as bytes, the tokens 0 to 255. Then the most frequent pair of adjacent tokens (on a tie,
    the one with smaller ids) becomes a new token, and so on. In merged, a token is the character
    chr(id), so that a merge is str.replace: once "th" is 256, "the" is chr(256) + "e"."""
    tokens = [chr(byte) for byte in range(256)]  # id -> bytes as characters: JSON has no bytes
    ids = {token: i for i, token in enumerate(tokens)}
    merged = {word: word.encode("utf-8").decode("latin-1") for word in word_counts}  # byte -> chr
    pair_counts = collections.Counter()
    words_with = collections.defaultdict(set)  # pair -> words that contain it or did

    def count_pairs(word, sign):
        for pair in itertools.pairwise(merged[word]):
            pair_counts[pair] += sign * word_counts[word]
            words_with[pair].add(word)

    for word in word_counts:
        count_pairs(word, +1)
    while len(tokens) < vocab_size - 1:  # the last id is that of <|endoftext|>
        highest = max(pair_counts.values(), default=0)
        if highest < 2:  # a pair that occurs once is not a pattern
            break
        left, right = min(pair for pair, count in pair_counts.items() if count == highest)
        token = tokens[ord(left)] + tokens[ord(right)]
        if token not in ids:  # "abc" may exist as ab+c: then a+bc is merged into that token
            ids[token] = len(tokens)
            tokens.append(token)
        for word in words_with[left, right]:  # recount their pairs (this set stays as it is)
            count_pairs(word, -1)
            merged[word] = merged[word].replace(left + right, chr(ids[token]))
            count_pairs(word, +1)
    return tokens


def load_tokenizer(description):
    """Return tiktoken's encoding for a description: "name", "tokens" (None: an unused id), perhaps
    "special" {text: id} and "eot_token", an id. A word's pairs merge in the order of learning."""
    if description is None:
        raise ValueError("the model has no tokenizer: put a BPE's tokenizer.json into its folder")
    tokens = description["tokens"]
    ranks = {token.encode("latin-1"): i for i, token in enumerate(tokens) if token is not None}
    special = description.get("special", {END_OF_TEXT: len(tokens)})
    pattern = PATTERN.replace(r"\s+(", r"\s{1,500000}(")  # tiktoken fails at a million spaces
    encoding = tiktoken.Encoding(description["name"], pat_str=pattern, mergeable_ranks=ranks,
                                 special_tokens=special)
    encoding.end_id = description.get("eot_token", len(tokens))  # the token that ends a text
    encoding.dtype = np.dtype("<u2" if encoding.n_vocab <= 65536 else "<u4")  # of .bin files
    return encoding


def split_by_position(pieces, n_characters):
    """Split one document's pieces (text, is_last). Yield (split, text, False): no <|endoftext|>."""
    fractions = (0, 1 - val_fraction - test_fraction, 1 - test_fraction, 1)
    bounds = [int(n_characters * fraction) for fraction in fractions]  # of the splits
    for text, _ in pieces:
        for split, start, end in zip(SPLITS, bounds, bounds[1:]):
            yield split, text[start:end], False
        bounds = [max(0, bound - len(text)) for bound in bounds]  # as seen from the next text


def split_by_hash(pieces, n_characters=None):  # called like split_by_position
    """Yield (split, text, is_last) for many documents, each assigned by a hash of its beginning."""
    ends = {"test": test_fraction, "val": test_fraction + val_fraction, "train": 1}  # in [0, 1]
    is_new = True
    for text, is_last in pieces:
        if is_new:
            digest = hashlib.sha256(text[:65536].encode("utf-8")).digest()
            u = int.from_bytes(digest[:6]) / 2**48  # uniform in [0, 1)
            split = next(name for name, end in ends.items() if u < end)
        yield split, text, is_last
        is_new = is_last


def write_splits(pieces, encoding):
    """Write each split's ids to SPLIT.bin.new; return ({split: counts}, sha256 of all text)."""
    splits = {split: collections.Counter(tokens=0, bytes=0) for split in SPLITS}
    digest = hashlib.sha256()
    with ExitStack() as stack:  # closes all three files
        files = {s: stack.enter_context(atomic_write(f"{out_dir}/{s}.bin.new")) for s in SPLITS}
        for split, utf8, ids in encode_in_threads(pieces, encoding):  # is_last adds <|endoftext|>
            files[split].write(ids)
            splits[split].update(tokens=len(ids), bytes=len(utf8))  # (a Counter's update adds)
            digest.update(utf8)
        if splits["train"]["bytes"] == 0:
            raise ValueError(f"no document of {input} is in the training split: add documents")
    return splits, digest.hexdigest()


def main(arguments):
    configure(arguments)  # input and the other settings above now have their final values
    lock = lock_folder(out_dir) if regex.search("(^|,)-", input) else None  # stdin is stored there
    paths = list(find_files(input))
    # First pass: count. A document comes in pieces; is_last is true for the one that ends it.
    n_documents, n_characters = count(document_pieces(paths))
    split_pieces = split_by_position if n_documents == 1 else split_by_hash
    lock = lock or lock_folder(out_dir)  # only now: an unusable text must not create the folder
    finish_publishing(out_dir)  # in case an earlier run was interrupted

    # Second pass, for a BPE: learn the tokenizer from the training split alone.
    if tokenizer == "bpe":
        word_counts = count_words(split_pieces(document_pieces(paths), n_characters), n_characters)
        description = {"name": "bpe", "tokens": train_bpe(word_counts, vocab_size)}
    else:
        description = find_tokenizer(tokenizer)
    encoding = load_tokenizer(description)

    # Third pass: encode. The new files replace the old ones together, once all are complete.
    splits, digest = write_splits(split_pieces(document_pieces(paths), n_characters), encoding)
    publish(description, encoding, splits, digest)


# ---- plumbing: skip on a first reading ----

RETRY_DELAYS = (1, 2, 4, 8)  # seconds before each new attempt at a download
TIMEOUT = 30  # seconds without a byte after which a connection counts as broken
TEXT_ENDINGS = ["", *".txt .md .rst .tex .html .csv .log .py .c .h .js .raw .tokens .jsonl".split()]
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}  # ending -> module that reads it
with suppress(ImportError):  # from Python 3.14 on, if it was built with zstd
    COMPRESSED[".zst"] = importlib.import_module("compression.zstd").__name__
CONVERTERS = {".zst": "zstd -dc", ".parquet": "python -c 'import pandas, sys; print(pandas."
              "read_parquet(sys.argv[1]).to_json(orient=\"records\", lines=True))'"}
HIDDEN_MEMBER = regex.compile(r"(^|/)\.\w")  # of an archive
GPT2_CACHE = "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"  # tiktoken's name for GPT-2's vocabulary
# In tokenizer files, bytes that are not visible characters are written as characters from 256 on.
TO_BYTES = dict(enumerate((i for i in range(256) if i == 32 or not chr(i).isprintable()), 256))
TO_VISIBLE = {byte: character for character, byte in TO_BYTES.items()}


def configure(arguments):
    globals().update(config.override(__file__, arguments, vocab_size=257,
                                     encoding_errors=("strict", "replace")))
    is_model = tokenizer.startswith("gpt2") or "/" in tokenizer  # at Hugging Face
    if tokenizer != "bpe" and not is_model and not os.path.exists(tokenizer):
        config.usage(f"{tokenizer=}: expected 'bpe', 'gpt2', an existing folder or owner/name")
    if val_fraction + test_fraction >= 1:
        config.usage(f"{val_fraction=} and {test_fraction=} leave nothing to train on")


def count(pieces):
    """Return (n_documents, n_characters); ValueError if there are too few characters to split."""
    n_documents = n_characters = n_marks = 0
    for text, is_last in pieces:
        n_characters += len(text)
        n_marks += text.count(END_OF_TEXT)
        if is_last:
            n_documents += 1
    fractions = {1 - val_fraction - test_fraction, val_fraction, test_fraction} - {0}  # 0: no split
    if n_characters * min(fractions) < 1:
        raise ValueError(f"{input} has {n_characters} characters: too few to split")
    if n_marks:
        print(f"note: {END_OF_TEXT} occurs {n_marks:,} times and is treated as ordinary text: see "
              "--split_on_eot", file=sys.stderr)
    return n_documents, n_characters


def count_words(pieces, n_characters):
    """Return {word: count} for bpe_sample_mb of the training split."""
    fraction = min(1, bpe_sample_mb * 1e6 / (n_characters * (1 - val_fraction - test_fraction)))
    capped = regex.compile(regex.sub(r"\++", "{1,99}", PATTERN))  # an endless word takes hours
    word_counts = collections.Counter()
    for i, text in enumerate(text for split, text, _ in pieces if split == "train"):
        if (i * fraction) % 1 < fraction:  # i * fraction passes an integer: sample evenly
            word_counts.update(capped.findall(text))
    return word_counts


def encode_in_threads(pieces, encoding):
    """Yield (split, text as UTF-8, token ids) for each piece, in order."""
    def encode(split, text, is_last):
        ids = encoding.encode_to_numpy(text, disallowed_special=())
        if is_last:
            ids = np.append(ids, encoding.end_id)
        return split, text.encode("utf-8"), ids.astype(encoding.dtype)

    encoding.encode("\na")  # tiktoken's first thread slows down the others: let it be this idle one
    n_threads = workers or os.cpu_count()
    with ThreadPoolExecutor(n_threads) as threads:  # few pieces are read ahead, to save memory
        while ahead := list(itertools.islice(pieces, 64 * n_threads)):
            yield from threads.map(lambda piece: encode(*piece), ahead)


@contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file for writing; it is renamed to path once it is safely on the disk."""
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)  # if it was not renamed


def lock_folder(folder):
    """Return a file that holds a lock on the folder until closed; None where locks don't work."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = open(Path(folder, ".lock"), "a")
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        print(os.getpid(), end="", file=file, flush=True)
    except BlockingIOError as error:
        raise ValueError(f"{folder} is in use by process {Path(file.name).read_text()}: wait for "
                         "it to end, or choose another folder") from error
    except (ImportError, OSError):  # Windows, a file system without locks, or a full disk
        return None
    return file


@contextmanager
def named_errors(name, stream=None):
    """Turn a parser's error into a one-line ValueError with its file, less torch.load's advice."""
    try:
        yield
    except Exception as error:  # every format has exceptions of its own
        named = isinstance(error, ValueError) and str(error).startswith((f"{name}: ", f"{name}/"))
        if named or regex.search("(Memory|Permission)Error|allocate mem|Input/|Stale", repr(error)):
            error.filename = getattr(error, "filename", None) or str(name)
            raise  # (named by an inner call, or the file is not to blame)
        reason = regex.sub(r"(?s)^Weights only.*(r error:|source\.)|\s+", " ", str(error)).strip()
        missing = "no " if isinstance(error, KeyError) else ""  # its text is the key alone
        if stream and isinstance(error, UnicodeDecodeError):
            offset = stream.buffer.tell() - len(error.object) + error.start
            reason = f"byte {offset} is not UTF-8 (see prepare.py's --encoding_errors)"
        raise ValueError(f"{name}: {missing}{reason or repr(error):.300}") from error


def fingerprint(path):
    """Return a sha256 of a file's size and of up to 64 samples of it: fast for any size."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file, named_errors(path):
        for i in range(64):
            file.seek((i * size) // 64)
            digest.update(file.read(min(65536, (size // 64) + 1)))
    return digest.hexdigest()


def download(url, path, headers=None):
    """Download url to the file path, completely or not at all. Interrupted downloads resume."""
    part = Path(f"{path}.part{os.environ.get('RANK', '')}")  # one for each process of torchrun
    part.parent.mkdir(parents=True, exist_ok=True)
    for delay in (*RETRY_DELAYS, None):  # None: this attempt is the last
        try:
            fetch(url, part, headers or {})
            return os.replace(part, path)
        except OSError as error:  # of requests (a ValueError, too, if the URL is invalid) or disk
            if not hasattr(error, "response"):  # the disk's: those of requests have a response
                if os.path.exists(path):  # another process has downloaded it
                    return
                raise OSError(error.errno, error.strerror, str(path)) from error
            status = getattr(error.response, "status_code", None)
            reason = f"status {status}" if status else f"download failed, {error!r:.150}"
            message = f"{url}: {reason}: check the address, the network and HF_TOKEN"
            if delay is None or status in (401, 403, 404) or isinstance(error, ValueError):
                raise (FileNotFoundError if status == 404 else OSError)(message) from error
            print(f"{message}; retrying in {delay} s", file=sys.stderr)
            time.sleep(delay)


def fetch(url, part, headers):
    """Append the rest of url to the file part; check its length and Hugging Face's sha256."""
    import requests  # here, since importing it takes as long as preparing a small text
    start = part.stat().st_size if part.exists() else 0
    headers = {**headers, "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    if start:  # else the file would be a mixture if it has changed on the server
        headers["If-Unmodified-Since"] = formatdate(part.stat().st_mtime, usegmt=True)
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code in (412, 416):  # it has, or the part is as long: start over
            part.unlink(missing_ok=True)
        response.raise_for_status()
        start = start if response.status_code == 206 else 0  # 200: the server ignores Range
        total = start + (response.raw.length_remaining or 0)
        promised = response.headers.get("Content-Range", "").rpartition("/")[2]  # "bytes 0-9/10"
        with open(part, "r+b" if part.exists() else "wb") as file:
            size = file.seek(start)  # (another process may be writing the same bytes there)
            for block in response.iter_content(1 << 16):
                size += file.write(block)
                print(f"{part.stem}: {size / 1e6:.1f} of {total / 1e6:.1f} MB", file=sys.stderr,
                      end="\n" if size == total else "  \r")
            file.truncate()
    if size < total or promised not in ("", "*", str(size)):
        raise requests.ConnectionError(f"received {size:,} of {total:,} bytes")
    with open(part, "r+b") as file:  # (fsync on Windows needs a writable file)
        os.fsync(file.fileno())
        found = hashlib.file_digest(file, "sha256").hexdigest()
    tags = str([answer.headers.get("X-Linked-Etag") for answer in (*response.history, response)])
    if found not in tags and regex.search("[0-9a-f]{64}", tags):  # sent for large (LFS) files
        part.unlink()
        raise requests.ConnectionError("sha256 mismatch")


def find_files(sources):
    """Yield the paths of all files that --input stands for; remote ones are downloaded first."""
    names = [sources] if os.path.exists(sources) else sources.split(",")
    for source in names:
        source = source if os.path.exists(source) else SOURCES.get(source, source)
        digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]  # URLs may share a file name
        local = f"data/downloads/{digest}-{os.path.basename(source.split('?')[0])}"
        found = [source] if os.path.exists(source) else [local, *glob.glob(source, recursive=True)]
        if source in ("-", "-.jsonl"):  # standard input, kept because it is read three times
            found = [f"{out_dir}/stdin{source[1:]}"]
            with atomic_write(found[0]) as file:
                file.writelines(iter(lambda: os.read(0, 1 << 20), b""))
        elif os.path.isdir(source):  # without hidden files (rglob does not follow links)
            found = [path for path in Path(source).rglob("*")
                     if "/." not in f"/{path.relative_to(source).as_posix()}"
                     and (not path.is_dir() or os.listdir(path))]  # listdir: an error if unreadable
        elif "://" in source and not os.path.exists(local):
            download(source, local)
        found = sorted(str(path) for path in found if os.path.isfile(path))
        if not found:
            raise ValueError(f"input={source!r}: no such file, folder, corpus or pattern, or empty")
        yield from found


def document_pieces(paths):
    """Yield (text, is_last) for pieces of documents: files, .jsonl lines, parts (split_on_eot)."""
    for path in paths:
        with open(path, "rb") as file, named_errors(path):
            for text, is_last in read(path, file):  # (split leaves '' at either end)
                *ended, rest = text.split(END_OF_TEXT) if split_on_eot else [text]
                yield from ((part, True) for part in ended if part)
                if rest:
                    yield rest, is_last


def read(name, file, inner_name=None):
    """Yield (text, is_last) of a file or nested archive, as a stream. inner_name: without .gz"""
    stem, ending = os.path.splitext((inner_name or name).lower().replace(".tgz", ".tar.gz"))
    if ending in COMPRESSED:
        yield from read(name, importlib.import_module(COMPRESSED[ending]).open(file), stem)
    elif ending == ".tar" or file.peek(512)[257:262] == b"ustar":  # (a .xz may hold a tar file)
        archive = tarfile.open(fileobj=file, mode="r:")
        while member := archive.next():
            archive.members.clear()  # or memory would grow with the number of members
            if member.isfile() and not HIDDEN_MEMBER.search(member.name):
                yield from read(f"{name}/{member.name}", archive.extractfile(member))
        if file.read(1 << 20)[:512] != bytes(512):  # the last block (reading checks a .gz's CRC)
            raise ValueError("the end of the archive (two blocks of zeros) is missing")
    elif ending == ".zip":
        archive = zipfile.ZipFile(file)
        for member in archive.infolist():
            if not member.is_dir() and not HIDDEN_MEMBER.search(member.filename):
                yield from read(f"{name}/{member.filename}", archive.open(member))
    elif ending in TEXT_ENDINGS:
        stream = io.TextIOWrapper(file, "utf-8-sig", encoding_errors, "\n")  # (-sig: no BOM)
        with named_errors(name, stream):
            yield from (json_texts(stream) if ending == ".jsonl" else text_pieces(stream))
    else:
        endings = " ".join([*TEXT_ENDINGS, *COMPRESSED, ".tgz", ".tar", ".zip"])
        raise ValueError(f"{name}: expected a name that ends in one of{endings}; use a pattern "
                         f"(*.md), rename or convert: {CONVERTERS.get(ending, 'PROGRAM')} {name} | "
                         "python prepare.py --out_dir=FOLDER --input=-.jsonl (text: --input=-)")


def json_texts(stream):
    """Yield (text, True) for each line of a .jsonl file."""
    for n, line in enumerate(stream, 1):
        try:  # (named_errors would make each line take half as long again)
            if line := line.strip("\ufeff \t\r\n"):
                data = json.loads(line)[text_key].encode("utf-16", "surrogatepass")
                yield data.decode("utf-16", encoding_errors), True  # (lone surrogates are errors)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"line {n} isn't JSON with a valid text ({text_key=}, "
                             f"{encoding_errors=}): {error}") from error


def text_pieces(stream):
    """Yield (text, is_last) for a document's pieces, the first as long as split_by_hash needs. One
    ends after a block's last <|endoftext|> (split_on_eot), else where it cuts no token or mark."""
    ends = r"\S(?=[ \n])|\p{L}(?=[^\p{L}<|>])|\p{N}(?=[^\p{N}<|>])"  # to| be, to|!, not to|<
    rest = ""
    while len(block := stream.read(2**17)) == 2**17:
        rest += block
        new = max(0, len(rest) - len(block) - len(END_OF_TEXT))  # what is before was searched
        mark = regex.search(r"(?r)<\|endoftext\|>", rest, pos=new) if split_on_eot else None
        cut = mark or regex.search(f"(?r){ends}", rest, pos=max(new, 2**16))  # (?r): from the end
        if cut:
            yield rest[:cut.end()], False
            rest = rest[cut.end():]
    yield rest + block, True


def read_meta(folder):
    """Return the content of meta.json, or None without one; ValueError if it is damaged."""
    path = Path(folder, "meta.json")
    if not path.exists():
        return None
    with suppress(ValueError), named_errors(path):
        meta = json.loads(path.read_bytes())
        if meta == sealed({key: value for key, value in meta.items() if key != "sha256"}):
            return meta
    raise ValueError(f"{path} is damaged: prepare it again with prepare.py (--out_dir={folder})")


def sealed(meta):  # -> meta with a sha256 of itself
    return meta | {"sha256": hashlib.sha256(json.dumps(meta).encode()).hexdigest()}


def publish(description, encoding, splits, digest):
    """Write meta.json for the .bin.new files in out_dir, give them their names, and report."""
    for split, about in splits.items():
        about["fingerprint"] = fingerprint(f"{out_dir}/{split}.bin.new")
    source = dict(name=input, bytes=sum(about["bytes"] for about in splits.values()), sha256=digest)
    meta = dict(vocab_size=encoding.n_vocab, dtype=encoding.dtype.name, splits=splits,
                tokenizer=description, source=source)
    with atomic_write(f"{out_dir}/meta.json", "w") as file:  # this commits the new data
        json.dump(sealed(meta), file)
    finish_publishing(out_dir)
    print(f"{input} -> {out_dir}/  ({encoding.name}, {encoding.n_vocab:,} tokens, {meta['dtype']})")
    print(f"{'split':6}{'tokens':>14}{'bytes':>16}{'bytes/token':>14}")
    for split, about in splits.items():
        ratio = about["bytes"] / max(1, about["tokens"])
        print(f"{split:6}{about['tokens']:14,}{about['bytes']:16,}{ratio:14.2f}")
        if about["tokens"] == 0 and globals()[f"{split}_fraction"] > 0:
            print(f"note: no document falls into {split}: raise {split}_fraction, or join them "
                  "in one file", file=sys.stderr)
    learned = [repr(encoding.decode([i])) for i in range(256, len(description["tokens"]))]
    print("tokens learned:", *learned[:8], "...", *learned[8:][-8:])
    cache = os.getenv("TIKTOKEN_CACHE_DIR", os.getenv("TMPDIR", "/tmp") + "/data-gym-cache")
    if splits["val"]["tokens"] and os.path.exists(f"{cache}/{GPT2_CACHE}"):  # (no download)
        text = encoding.decode(np.fromfile(f"{out_dir}/val.bin", encoding.dtype, 1 << 18).tolist())
        with suppress(OSError, ValueError):  # the cached file is damaged; a million spaces
            gpt2_ids = tiktoken.get_encoding("gpt2").encode(text, allowed_special="all")
            ratio = len(text.replace(END_OF_TEXT, "").encode("utf-8")) / max(1, len(gpt2_ids))
            print(f"GPT-2's tokenizer, for comparison: {ratio:.2f} bytes/token (beginning of val)")


def finish_publishing(folder):
    """Rename each X.bin.new that meta.json describes to X.bin, also after an interrupted run."""
    with suppress(ValueError):  # meta.json is damaged
        for split, about in (read_meta(folder) or {}).get("splits", {}).items():
            new = Path(folder, f"{split}.bin.new")
            with suppress(FileNotFoundError):  # renamed before, perhaps just now by another process
                if fingerprint(new) == about["fingerprint"]:
                    os.replace(new, new.with_suffix(""))


def find_tokenizer(name):
    """Return the description of the tokenizer of "gpt2", a data or run folder, or a model."""
    if name == "gpt2":
        try:
            tokens = tiktoken.get_encoding("gpt2").decode_tokens_bytes(range(50256))  # ordinary
        except OSError as error:
            raise OSError(f"GPT-2's vocabulary could not be downloaded: {error!r:.99}") from error
        return {"name": "gpt2", "tokens": [token.decode("latin-1") for token in tokens]}
    if meta := read_meta(name):
        return meta["tokenizer"]
    from model import GPT  # here, since that imports torch
    return GPT.from_pretrained(name).tokenizer or config.usage(f"{name} has no tokenizer.json")


def read_tokenizer(folder, about, vocab_size):  # about: the model's config.json
    """Return the description of a model's tokenizer; ValueError if tiktoken's ids would differ."""
    def load(name):  # {} if there is no such file
        return json.loads((folder / name).read_bytes()) if (folder / name).exists() else {}
    merges_of = {"tokenizer.json": None, "vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
    name = next((name for name in merges_of if (folder / name).exists()), None)
    if name is None:
        return find_tokenizer("gpt2") if vocab_size == 50257 else None
    found, options = load(name), load("tokenizer_config.json")
    if name == "tokenizer.json":
        check_tokenizer(found)
    else:  # two files
        text = (folder / merges_of[name]).read_text(encoding="utf-8")
        vocab = found | load("added_tokens.json")
        found = {"model": dict(vocab=vocab, merges=regex.findall("(?m)^(?!#version).* .*$", text))}
    if options.get("add_prefix_space") or (merges_of[name] and options.get("add_bos_token")):
        raise ValueError("its tokenizer_config.json sets add_prefix_space or add_bos_token")
    special = {added["content"]: added["id"] for added in found.get("added_tokens") or ()}
    ids, merges = found["model"]["vocab"] | special, found["model"]["merges"]
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    made = {chr(byte).translate(TO_VISIBLE) for byte in range(256)} | {"".join(p) for p in pairs}
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    whole = (ids.keys() - special.keys()) if found["model"].get("ignore_merges") else set()
    for token in made | whole:  # do its characters merge into it, as in tiktoken?
        parts = list(token)  # merged as BPE does: the adjacent pair with the lowest rank first
        while mergeable := ranks.keys() & itertools.pairwise(parts):
            i = list(itertools.pairwise(parts)).index(min(mergeable, key=ranks.get))
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if token in special or token not in made or parts != [token]:
            raise ValueError(f"its token {token!r} is also special, or no merges lead to it")
    special = {token: i for token, i in ids.items() if token not in made}
    if made - ids.keys() or not special:
        raise ValueError("its tokenizer lacks some of the 256 bytes or merges, or what ends a text")
    if pairs != sorted(pairs, key=lambda pair: ids["".join(pair)]):
        raise ValueError("the ids of its tokenizer are not in the order of its merges")
    used = set(ids.values())
    if len(used) < len(ids) or max(used) >= vocab_size:
        raise ValueError(f"two of its tokens have the same id, or {max(used)} >= {vocab_size=}")
    token_of = {ids[token]: token.translate(TO_BYTES) for token in made}
    tokens = [token_of.get(i) for i in range(1 + max(token_of))]
    if special == {END_OF_TEXT: len(tokens)} and None not in tokens:
        return {"name": "bpe", "tokens": tokens}
    ends = [about.get("eos_token_id"), special.get(END_OF_TEXT), min(special.values())]
    end = next(i for i in ends if i in special.values())  # the token that ends a text
    special |= {f"<|unused {i}|>": i for i in {*range(max(used))} - used}  # a model may draw it
    return {"name": "bpe", "tokens": tokens, "special": special, "eot_token": end}


def check_tokenizer(found):
    """Raise ValueError if a tokenizer.json does anything that GPT-2's doesn't."""
    gpt2 = dict(  # part -> key -> allowed values; None: the key may be missing
        model=dict(type=["BPE"], dropout=[None], continuing_subword_prefix=[None, ""],
                   end_of_word_suffix=[None, ""]),
        normalizer=dict(type=[None]),
        pre_tokenizer=dict(type=["ByteLevel"], add_prefix_space=[False], use_regex=[True, None]),
        post_processor=dict(type=["ByteLevel", "TemplateProcessing", None],  # adding no token
                            single=[None, [{"Sequence": {"id": "A", "type_id": 0}}]]))
    token = dict(special=[True], lstrip=[False], rstrip=[False], single_word=[False])
    parts = [(part, found.get(part) or {}, keys) for part, keys in gpt2.items()]
    parts += [(f"added token {t['content']!r}", t, token) for t in found.get("added_tokens") or ()]
    for part, content, keys in parts:
        for key, allowed in keys.items():
            if content.get(key) not in allowed:
                raise ValueError(f"its tokenizer.json is not like GPT-2's: {part} {key} is "
                                 f"{content.get(key)!r:.80}, expected {allowed[0]!r}")


def tokenizer_files(description):
    """Return {file name: content} of a tokenizer as Hugging Face's and other tools read it."""
    tokens = description["tokens"]
    ids = {token.translate(TO_VISIBLE): i for i, token in enumerate(tokens) if token is not None}
    special = description.get("special", {END_OF_TEXT: len(tokens)})
    # Two tokens may merge if their concatenation is a token; the lowest new id comes first.
    merges = [f"{token[:i]} {token[i:]}" for token in ids for i in range(1, len(token))
              if token[:i] in ids and token[i:] in ids]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    added = [dict(id=i, content=token, special=True, normalized=False, lstrip=False, rstrip=False,
                  single_word=False) for token, i in special.items()]
    model = dict(type="BPE", vocab=ids | special, merges=merges, ignore_merges=True)
    fast = dict(version="1.0", added_tokens=added, normalizer=None, pre_tokenizer=byte_level,
                post_processor=None, decoder=byte_level, model=model)
    return {"tokenizer.json": fast, "vocab.json": ids | special,
            "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}


if __name__ == "__main__":
    raise SystemExit(config.run(main))
