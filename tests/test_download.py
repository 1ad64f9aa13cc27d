"""prepare.download: files from a server that disconnects, stalls, refuses or sends other bytes."""

import hashlib
import http.server
import io
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import pytest
import urllib3
from conftest import ROOT

import config
import prepare

DATA = random.Random(1).randbytes(3_000_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA at any URL, misbehaves once for each of its faults, records the requests."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.faults, self.ranges, self.tokens, self.encodings = [], [], [], []
        self.digest = hashlib.sha256(DATA).hexdigest()
        self.modified = None  # when the file was changed
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        if self.path == "/elsewhere":
            fault = None
        else:
            server.ranges.append(self.headers["Range"])
            server.tokens.append(self.headers["Authorization"])
            server.encodings.append(self.headers["Accept-Encoding"])
            fault = server.faults.pop(0) if server.faults else None
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        status = 206
        since = self.headers["If-Unmodified-Since"]
        if server.modified and since and server.modified > parsedate_to_datetime(since).timestamp():
            status = 412
        elif fault in ("ignores", "chunked"):
            status, start = 200, 0
        elif fault == "linked":
            status = 302
        elif isinstance(fault, int):
            status = fault
        elif start and start >= len(DATA):
            status = 416
        body = DATA[start:] if status in (200, 206) else b""
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        if server.digest and self.path != "/elsewhere":
            self.send_header("X-Linked-Etag", f'"{server.digest}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault in ("breaks", "stalls"):
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            time.sleep(1 if fault == "stalls" else 0)
            self.close_connection = True
        elif fault == "slow":
            for i in range(0, len(body), 300_000):
                self.wfile.write(body[i:i + 300_000])
                time.sleep(0.1)
        else:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(prepare, "RETRY_DELAYS", (0, 0, 0, 0))
    monkeypatch.setattr(prepare, "TIMEOUT", 0.5)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def refusal(url, path, kind=OSError):
    """Download a file that is refused; return the one line that says why."""
    with pytest.raises(kind) as caught:
        prepare.download(url, path)
    assert "\n" not in str(caught.value) and not path.exists()
    return str(caught.value)


def test_a_file_is_downloaded_completely_with_a_line_of_its_progress(server, tmp_path, capsys):
    prepare.download(server.url, tmp_path / "new" / "file.bin", {"Authorization": "Bearer secret"})
    assert (tmp_path / "new" / "file.bin").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.bin"]
    assert len(server.ranges) == 1 and server.tokens == ["Bearer secret"]
    assert server.encodings == ["identity"]  # a compressed file has another length
    out, err = capsys.readouterr()
    assert out == "" and "file.bin: 1.6 of 3.0 MB  \r" in err
    assert err.endswith("of 3.0 MB\n")  # what is printed next, a text perhaps, has its own line


@pytest.mark.parametrize("faults", [
    ["breaks"], ["breaks"] * 4, ["stalls"], [503, 500], ["breaks", "ignores"], ["chunked"],
    ["linked"], ["breaks", 503, "stalls"], ["breaks", "linked"], ["ignores"]], ids=str)
def test_an_interrupted_download_resumes(faults, server, tmp_path):
    server.faults = list(faults)
    prepare.download(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA and not (tmp_path / "x.part").exists()
    broken = [fault for fault in faults if fault in ("breaks", "stalls", 503, 500)]
    assert len(server.ranges) == 1 + len(broken)
    starts = [int(asked[6:-1]) for asked in server.ranges]
    assert starts == sorted(starts) and starts[0] == 0
    if "breaks" in faults:  # of what came, no more than a block is asked for again
        assert starts[-1] > len(DATA) // 2 - (1 << 16)


def test_a_download_starts_over_if_the_file_has_changed_on_the_server(server, tmp_path):
    server.digest = None  # an ordinary server says nothing of the kind
    part = tmp_path / "x.part"
    part.write_bytes(b"an older edition")
    os.utime(part, (1e9, 1e9))
    server.modified = 1e9 + 3600
    prepare.download(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert server.ranges == ["bytes=16-", "bytes=0-"]


def test_a_download_resumes_on_another_day_if_the_file_has_not_changed(server, tmp_path):
    server.digest = None
    part = tmp_path / "x.part"
    part.write_bytes(DATA[:1000])
    os.utime(part, (1e9, 1e9))
    server.modified = 1e9 - 3600
    prepare.download(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA and server.ranges == ["bytes=1000-"]


def test_the_next_call_resumes_a_download_that_failed(server, tmp_path):
    server.faults = ["breaks"] * 5
    message = refusal(server.url, tmp_path / "x")
    assert server.url in message and len(server.ranges) == 5
    came = (tmp_path / "x.part").stat().st_size
    assert came > 0.9 * len(DATA)
    prepare.download(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA and server.ranges[5:] == [f"bytes={came}-"]


def test_a_part_of_another_file_is_detected_and_deleted(server, tmp_path):
    for size in (1000, len(DATA) + 1):  # the sha256 differs; there is no such range
        server.ranges.clear()
        (tmp_path / "x.part").write_bytes(b"?" * size)
        prepare.download(server.url, tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == DATA
        assert server.ranges == [f"bytes={size}-", "bytes=0-"]


@pytest.mark.parametrize("faults, asked, word", [
    ([401], 1, "HF_TOKEN"), ([403], 1, "HF_TOKEN"), ([429] * 5, 5, "429"), ([503] * 5, 5, "503"),
    ([416] * 5, 5, "416")], ids=str)
def test_a_refusal_is_one_line_with_the_url_and_leaves_nothing(
        faults, asked, word, server, tmp_path):
    server.faults = list(faults)
    message = refusal(server.url, tmp_path / "x")
    assert server.url in message and word in message
    assert len(server.ranges) == asked and not list(tmp_path.iterdir())


def test_status_404_is_a_filenotfounderror(server, tmp_path):
    server.faults = [404]
    message = refusal(server.url, tmp_path / "x", FileNotFoundError)
    assert server.url in message and len(server.ranges) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("faults", [[], ["linked"] * 5], ids=str)
def test_a_download_with_another_sha256_than_promised_is_deleted(faults, server, tmp_path):
    server.digest, server.faults = "0" * 64, faults
    message = refusal(server.url, tmp_path / "x")
    assert server.url in message and "sha256" in message and not list(tmp_path.iterdir())


def test_without_a_sha256_the_length_is_checked(server, tmp_path):
    for digest in ("", "0123abcd" * 5):  # git's sha1
        server.digest, server.faults = digest, ["breaks"]
        prepare.download(server.url, tmp_path / f"x{digest}")
        assert (tmp_path / f"x{digest}").read_bytes() == DATA


def test_the_length_is_checked_even_if_urllib3_does_not(server, tmp_path, monkeypatch):
    begin = urllib3.HTTPResponse.__init__
    monkeypatch.setattr(urllib3.HTTPResponse, "__init__", lambda *arguments, **options: begin(
        *arguments, **{**options, "enforce_content_length": False}))  # urllib3 1.26's default
    server.faults = ["breaks"] * 5
    assert "received " in refusal(server.url, tmp_path / "x")
    prepare.download(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA and len(server.ranges) == 6


def test_no_server_and_an_invalid_url_are_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    for url in (server.url, "http://", "nowhere/file.bin"):
        assert url in refusal(url, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file_and_the_download_resumes(server, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() > 1_000_000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    path = tmp_path / "x"
    with monkeypatch.context() as full:
        full.setattr(prepare, "open", lambda path, mode: Full(path, mode), raising=False)
        message = refusal(server.url, path)
    assert str(path) in message and "No space left on device" in message
    assert len(server.ranges) == 1 and (tmp_path / "x.part").stat().st_size > 1_000_000
    prepare.download(server.url, path)
    assert path.read_bytes() == DATA and int(server.ranges[1][6:-1]) > 1_000_000


def test_processes_of_one_torchrun_do_not_disturb_each_other(server, tmp_path):
    server.faults = ["slow"] * 3
    command = "import sys, prepare; prepare.download(*sys.argv[1:])"
    runs = [subprocess.Popen([sys.executable, "-c", command, server.url, tmp_path / "x"], cwd=ROOT,
                             env=os.environ | {"RANK": str(rank)}, stderr=subprocess.PIPE)
            for rank in range(3)]
    for run in runs:
        assert run.communicate()[1].endswith(b"of 3.0 MB\n") and run.returncode == 0
    assert (tmp_path / "x").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("fault", ["slow", "ignores"])
def test_several_processes_download_the_same_file_at_once(fault, server, tmp_path):
    server.faults = [fault] * 4
    with ThreadPoolExecutor(4) as threads:  # list raises what a thread has raised
        list(threads.map(prepare.download, [server.url] * 4, [tmp_path / "x"] * 4))
    assert (tmp_path / "x").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_part_longer_than_the_file_is_cut_if_the_server_ignores_ranges(server, tmp_path):
    server.digest = None
    server.faults = ["ignores"]
    (tmp_path / "x.part").write_bytes(DATA + b"longer")
    prepare.download(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_the_constants_of_a_download_are_not_settings():
    assert not {"RETRY_DELAYS", "TIMEOUT"} & config.override(prepare.__file__, []).keys()
    assert len(prepare.RETRY_DELAYS) == 4


def test_a_retry_is_announced_with_the_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "RETRY_DELAYS", (0,))
    with pytest.raises(OSError):
        prepare.download("http://127.0.0.1:1/x", tmp_path / "x")
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("http://127.0.0.1:1/x: download failed, ") and "retrying in 0 s" in line
