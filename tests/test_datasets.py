"""Data sets: the look-up order, downloads that go wrong in every way, and the sets themselves."""

import contextlib
import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from shared import datasets
from shared.datasets import DatasetUnavailable, File

ROOT = Path(__file__).resolve().parent.parent
GOOD = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
BAD = b"<html>Please log in to this network</html>"
PLACE = "tinyshakespeare/input.txt"


class Mirror(BaseHTTPRequestHandler):
    """Serves one file well or, by the first part of the path, badly; counts the requests."""

    requests: list[str]
    both: threading.Barrier

    def do_GET(self):
        self.requests.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "missing":
            self.send_error(404)
            return
        if kind == "slow":
            time.sleep(1)
        if kind == "together":  # answers when two are waiting
            self.both.wait(60)
        body = BAD if kind == "bad" else GOOD
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + 100 * (kind == "cut")))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(monkeypatch):
    handler = type("Handler", (Mirror,), {"requests": [], "both": threading.Barrier(2)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.requests = handler.requests
    server.url = lambda kind: f"http://127.0.0.1:{server.server_port}/{kind}/input.txt"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no supplied data, and nothing remembered from another test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("UNROLLED_CACHE", str(folder))
    monkeypatch.delenv("UNROLLED_DATA", raising=False)
    datasets._load.cache_clear()
    yield folder
    datasets._load.cache_clear()


@pytest.fixture
def register(monkeypatch):
    """Let Tiny Shakespeare be the file GOOD, served by the given addresses."""

    def register(*urls):
        file = File(PLACE, hashlib.sha256(GOOD).hexdigest(), urls)
        monkeypatch.setitem(datasets.REGISTRY, "tinyshakespeare", (file,))

    return register


def put(folder: Path, content: bytes) -> Path:
    path = folder / PLACE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


UNREACHABLE = "http://127.0.0.1:9/input.txt"  # the discard port: nothing listens


def test_a_good_download_is_kept(mirror, cache, register):
    register(mirror.url("good"))
    data = datasets.load("tinyshakespeare")
    assert data.text == GOOD.decode()
    assert str(data) == f"Tiny Shakespeare ({len(GOOD)} characters; public domain), downloaded."
    assert contents(cache) == {PLACE: GOOD}
    assert datasets.load("tinyshakespeare") is data
    datasets._load.cache_clear()  # as in the next process
    assert datasets.load("tinyshakespeare").origin == "from the cache"
    assert mirror.requests == ["/good/input.txt"]


@pytest.mark.parametrize("wrong", ["bad", "cut", "missing"])
def test_a_wrong_download_is_refused_and_the_next_mirror_used(mirror, cache, register, wrong):
    register(mirror.url(wrong), mirror.url("good"))
    assert datasets.load("tinyshakespeare").text == GOOD.decode()
    assert mirror.requests == [f"/{wrong}/input.txt", "/good/input.txt"]
    assert contents(cache) == {PLACE: GOOD}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("bad", "sent bytes with the wrong SHA-256"), ("missing", "answered 404"), ("cut", "broke off|wrong SHA-256")],
)
def test_a_wrong_download_leaves_nothing_behind(mirror, cache, register, wrong, said):
    register(mirror.url(wrong))
    with pytest.raises(DatasetUnavailable, match=rf"\(1 address tried, last: 127\.0\.0\.1:\d+ ({said})\)"):
        datasets.load("tinyshakespeare")
    assert contents(cache) == {}


def test_a_silent_server_is_given_up(mirror, cache, register, monkeypatch):
    monkeypatch.setattr(datasets, "TIMEOUT", 0.1)
    register(mirror.url("slow"))
    with pytest.raises(DatasetUnavailable, match="timed out"):
        datasets.load("tinyshakespeare")


def test_no_network_ends_in_one_sentence(cache, register):
    register(UNREACHABLE, UNREACHABLE)
    with pytest.raises(DatasetUnavailable) as caught:
        datasets.load("tinyshakespeare")
    assert str(caught.value) == (
        "Tiny Shakespeare could not be fetched (2 addresses tried, last: 127.0.0.1:9 could not be reached). Set "
        'UNROLLED_DATA to a folder that holds tinyshakespeare/input.txt, or use fallback="topics".'
    )
    copy = pickle.loads(pickle.dumps(caught.value))  # on its way from a worker process
    assert (str(copy), copy.reason) == (str(caught.value), caught.value.reason)


def test_a_fallback_takes_its_place_and_says_so(cache, register):
    register(UNREACHABLE)
    data = datasets.load("tinyshakespeare", fallback="topics")
    assert data.name == "pydoc topics"
    assert data.text == datasets.load("topics").text
    assert str(data).endswith(
        "embedded; used because Tiny Shakespeare could not be fetched "
        "(1 address tried, last: 127.0.0.1:9 could not be reached)."
    )
    assert "used because" not in str(datasets.load("topics"))


def test_a_fallback_is_not_used_without_need(mirror, cache, register):
    register(mirror.url("good"))
    assert datasets.load("tinyshakespeare", fallback="topics").name == "Tiny Shakespeare"


def test_a_set_of_many_files_stops_at_the_first_that_cannot_be_had(mirror, cache, monkeypatch):
    files = [File(f"names/{n}.txt", "0" * 64, (mirror.url("missing"), mirror.url("bad"))) for n in range(18)]
    monkeypatch.setitem(datasets.REGISTRY, "names", tuple(files))
    with pytest.raises(DatasetUnavailable, match=r"names/0\.txt to names/17\.txt \(18 files\)\.$"):
        datasets.load("names")
    assert len(mirror.requests) == 2


def test_a_cache_that_cannot_be_written_is_named(mirror, cache, register, tmp_path, monkeypatch):
    register(mirror.url("good"))
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("UNROLLED_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DatasetUnavailable, match=r"cannot be written: .*\. Set UNROLLED_CACHE to") as caught:
        datasets.load("tinyshakespeare")
    assert str(tmp_path / "file" / "below") in str(caught.value)
    assert datasets.load("tinyshakespeare", fallback="topics").name == "pydoc topics"


def test_a_bad_copy_in_the_cache_is_replaced(mirror, cache, register):
    register(mirror.url("good"))
    put(cache, BAD)
    assert datasets.load("tinyshakespeare").origin == "downloaded"
    assert contents(cache) == {PLACE: GOOD}


def test_a_bad_copy_in_the_cache_is_removed_even_without_network(cache, register):
    register(UNREACHABLE)
    put(cache, BAD)
    with pytest.raises(DatasetUnavailable):
        datasets.load("tinyshakespeare")
    assert contents(cache) == {}


def test_supplied_data_comes_first(mirror, cache, register, tmp_path, monkeypatch):
    register(mirror.url("good"))
    put(tmp_path / "data", GOOD)
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path / "data"))
    assert datasets.load("tinyshakespeare").origin == "from UNROLLED_DATA"
    assert not cache.exists()
    monkeypatch.delenv("UNROLLED_DATA")  # a change of the variable is noticed
    assert datasets.load("tinyshakespeare").origin == "downloaded"


def test_supplied_data_with_the_wrong_hash_are_refused_and_left_alone(mirror, cache, register, tmp_path, monkeypatch):
    supplied = put(tmp_path / "data", BAD)
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path / "data"))
    register(UNREACHABLE)
    with pytest.raises(DatasetUnavailable) as caught:
        datasets.load("tinyshakespeare")
    assert f"UNROLLED_DATA points to {supplied}, which has the wrong SHA-256 and was left alone" in str(caught.value)
    register(mirror.url("good"))
    assert datasets.load("tinyshakespeare").text == GOOD.decode()
    assert supplied.read_bytes() == BAD


def test_supplied_data_that_are_not_there_are_named(cache, register, tmp_path, monkeypatch):
    register(UNREACHABLE)
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetUnavailable, match=r"UNROLLED_DATA points to .*input\.txt, which is not there\)"):
        datasets.load("tinyshakespeare")


def test_two_processes_may_fetch_at_once(mirror, cache):
    script = (
        "from shared import datasets\n"
        f"file = datasets.File({PLACE!r}, {hashlib.sha256(GOOD).hexdigest()!r}, ({mirror.url('together')!r},))\n"
        "datasets.REGISTRY['tinyshakespeare'] = (file,)\n"
        "datasets.TIMEOUT = 60  # the first to ask waits until the second has started\n"
        "print(datasets.load('tinyshakespeare').text, end='')"
    )
    put(cache, BAD)  # the harder case: both also find a copy to replace
    processes = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0] for process in processes] == [GOOD.decode()] * 2
    assert len(mirror.requests) == 2
    assert contents(cache) == {PLACE: GOOD}


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"one of mnist, tinyshakespeare, names, chorales, digits, topics \(got 'imagenet'\)"
    ):
        datasets.load("imagenet")
    with pytest.raises(ValueError, match=r"name must be one of mnist, .* \(got \['mnist'\]\)"):
        datasets.load(["mnist"])


@pytest.mark.parametrize(
    ("name", "fallback", "said"),
    [
        ("mnist", "topics", "must be 'digits'"),
        ("tinyshakespeare", "mnist", "must be 'topics'"),
        ("names", "topics", "must be None"),
        ("chorales", "chorales", "must be None"),
    ],
)
def test_an_unfit_fallback_is_refused_even_where_it_is_not_needed(name, fallback, said):
    with pytest.raises(ValueError, match=said):
        datasets.load(name, fallback=fallback)


def test_an_embedded_set_may_be_its_own_fallback():
    """So that a chapter can name its data set and its fallback, and be pointed at the fallback by a parameter."""
    assert datasets.load("digits", fallback="digits") is datasets.load("digits")


def test_digits_are_split_by_writer():
    digits = datasets.load("digits")
    assert digits.train_images.shape == (1200, 8, 8)
    assert digits.test_images.shape == (597, 8, 8)
    assert digits.train_images.dtype == torch.float32
    assert digits.train_labels.dtype == torch.int64
    assert (float(digits.train_images.min()), float(digits.train_images.max())) == (0, 1)
    assert digits.train_labels[:10].tolist() == list(range(10))  # file order
    assert str(digits) == "digits (1,200 training and 597 test images of 8 by 8 pixels; CC BY 4.0), embedded."
    assert repr(digits) == str(digits)


def test_topics_are_a_long_text():
    text = datasets.load("topics").text
    assert 300_000 < len(text) < 1_000_000  # it differs between versions of Python
    assert "Boolean operations" in text


def test_idx_files_are_read_as_written(cache, tmp_path, monkeypatch):
    """Two images of 2 by 3 pixels and their labels, for training and for testing."""
    images = gzip.compress(struct.pack(">4B3i", 0, 0, 8, 3, 2, 2, 3) + bytes([0, 51, 102, 153, 204, 255] * 2))
    labels = gzip.compress(struct.pack(">4Bi", 0, 0, 8, 1, 2) + bytes([7, 9]))
    files = []
    for file in datasets.REGISTRY["mnist"]:
        content = images if "images" in file.path else labels
        files.append(File(file.path, hashlib.sha256(content).hexdigest(), ()))
        path = tmp_path / file.path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setitem(datasets.REGISTRY, "mnist", tuple(files))
    monkeypatch.setenv("UNROLLED_DATA", str(tmp_path))
    data = datasets.load("mnist")
    assert torch.allclose(data.test_images[1], torch.tensor([[0, 0.2, 0.4], [0.6, 0.8, 1]]))
    assert data.train_labels.tolist() == [7, 9]


def test_the_registry_is_complete():
    for name, files in datasets.REGISTRY.items():
        assert name in datasets.SETS
        for file in files:
            assert len(file.sha256) == 64
            assert file.urls
            assert all(url.startswith("https://") and url.endswith(Path(file.path).name) for url in file.urls)
    assert {name: len(files) for name, files in datasets.REGISTRY.items()} == {
        "mnist": 4,
        "tinyshakespeare": 1,
        "names": 18,
        "chorales": 1,
    }


real = pytest.mark.skipif(not os.environ.get("UNROLLED_DATA"), reason="UNROLLED_DATA is not set: no real data here")


@real
def test_mnist():
    data = datasets.load("mnist")
    assert data.train_images.shape == (60_000, 28, 28)
    assert data.test_images.shape == (10_000, 28, 28)
    assert data.train_images.dtype == torch.float32
    assert float(data.train_images.mean()) == pytest.approx(0.1307, abs=5e-5)
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_labels.bincount().sum() == 10_000
    assert str(data).endswith("from UNROLLED_DATA.")


@real
def test_tiny_shakespeare():
    assert len(datasets.load("tinyshakespeare").text) == 1_115_394


@real
def test_names():
    by_language = datasets.load("names").by_language
    assert len(by_language) == 18
    assert sum(map(len, by_language.values())) == 20_050
    assert len(by_language["Arabic"]) == 2_000
    assert len(set(by_language["Arabic"])) == 108  # those that occur more than once are kept
    assert "Béringer" in by_language["French"]
    assert all(name == name.strip() != "" for names in by_language.values() for name in names)


@real
def test_chorales():
    data = datasets.load("chorales")
    assert [len(split) for split in (data.train, data.valid, data.test)] == [229, 76, 77]
    assert data.train[0][0] == (60, 72, 79, 88)
    chords = [chord for split in (data.train, data.valid, data.test) for piece in split for chord in piece]
    assert () in chords  # rests are kept
    assert all(isinstance(chord, tuple) and all(20 < pitch < 109 for pitch in chord) for chord in chords)


def test_the_progress_bar_does_not_remark_on_missing_widgets(tmp_path):
    (tmp_path / "pooch.py").write_text("import warnings\n\nwarnings.warn('IProgress not found')\n")
    code = "from shared import datasets; datasets._pooch()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    ran = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], env=environment, capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, b"")
