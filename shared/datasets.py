"""The book's data sets: where their files are, how they are checked, and how they are read.

A file is looked for in the folder that `UNROLLED_DATA` names, then in the user's cache (`UNROLLED_CACHE`, or the
system's usual place), then at each of its addresses; whatever does not have the right SHA-256 is never used. Two sets
are embedded, so that everything runs with no network: scikit-learn's digits (images) and Python's own help (text).
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import unicodedata
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

TIMEOUT = 10  # seconds without an answer, or between two pieces of one, before the next address is tried


class DatasetUnavailable(Exception):  # noqa: N818 (it reads as a sentence)
    """A data set could not be had: the message says what was tried and how to supply it, `reason` only the former."""

    reason = ""


@dataclasses.dataclass(frozen=True)
class File:
    """One file: its place under `UNROLLED_DATA` and in the cache, its hash, and the addresses that serve it."""

    path: str
    sha256: str
    urls: tuple[str, ...]


def _files(folder: str, addresses: tuple[str, ...], hashes: str) -> tuple[File, ...]:
    """Files from lines "name hash" that lie in one folder here and below one address on each mirror."""
    pairs = [line.split() for line in hashes.split("\n") if line.strip()]
    return tuple(File(f"{folder}/{name}", sha256, tuple(a + name for a in addresses)) for name, sha256 in pairs)


_GITHUB = "https://raw.githubusercontent.com/"
REGISTRY = {
    "mnist": _files(
        "mnist",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            _GITHUB + "fgnt/mnist/ae608a02b796c9ee908c082585a5f006fe05258e/",
        ),
        """
        train-images-idx3-ubyte.gz 440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
        train-labels-idx1-ubyte.gz 3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
        t10k-images-idx3-ubyte.gz 8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
        t10k-labels-idx1-ubyte.gz f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
        """,
    ),
    "tinyshakespeare": _files(
        "tinyshakespeare",
        (_GITHUB + "karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/",),
        "input.txt 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "names": _files(
        "names",
        (_GITHUB + "spro/practical-pytorch/c520c52e68e945d88fff563dba1c028b6ec0197b/data/names/",),
        """
        Arabic.txt 6f424a8dbe51cbbbabab7a57d38b617210125e4e3991f3c657cb79b8f104bafc
        Chinese.txt 09ba8f1f7e38dbc99372d461b26ad4433b811fc6bfa6a3ecca6fe11a9a777465
        Czech.txt e17ab0ec47616a72c39cb85c783f70c3663ab64488721e5d8378f146d2226be7
        Dutch.txt 924f32b635170eae561f84538632138fc07d4c8bbd70ba3fb980de1ecc4d2af3
        English.txt 9cca037066d3d5989e24bc01801416162de506b5e28e15b7c092a47905d29bf2
        French.txt 81e65b36c60ed5b89a17422f6edcadbb89546f38ad69e960e64e7ba682012a95
        German.txt 7449cd590b97a733e18d613a4155decd77ec35dc5f8aadd7a82204dce4f051db
        Greek.txt 3555b5186de7f401e6d991b088e9e644ca3099116477818c25ab5793801389e6
        Irish.txt cf8c7013256252a88d2503127b87282a11f21b2ff6db1bded68834c19a1ec058
        Italian.txt f88414c27d0606a11a678b4859277828c2565d6cc4d9ee932deef6e94f3b35e4
        Japanese.txt e0e717e114fec3e7eade4d9dabe0067c475f43147e36a22b47902ee76ad9e67f
        Korean.txt cd54221ccb362a6cba4c78828838cf3268a0e59744767a37cf6ec4b74036b136
        Polish.txt 45bab898af2f60ed3a728bbf6980e28821011a7caa53227553b5785903a40826
        Portuguese.txt 50a8735f41f4f73757c8ce5b16cb0275cd86b2b214bcbc8c9805f508cb131c53
        Russian.txt 0cfe53ac18041e8f63666aa77313e0a3ff378facb132abee052d8ebdc8c3d62c
        Scottish.txt 78d0252711d87d948ea86fe34826c51d2d794a8e52d15b5d6f7b6244d45d62dd
        Spanish.txt 1bcb462ed3316756a85781d68232bddae04498fdddd5d9219c53fd1fbdeba7a7
        Vietnamese.txt f3f9e4164ab47601178a6e45b216464a64122f49d05541f24bf18a757253281d
        """,
    ),
    "chorales": _files(
        "jsb",
        (_GITHUB + "czhuang/JSB-Chorales-dataset/9a7f733ddb4ed91f48da64ac7f0f621c34aadd4d/",),
        "jsb-chorales-quarter.json 2db9329f1881a1d3f49703ec556bf1d6f84b4f6c1d702c156536e93cf31e1c91",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset:
    """What every data set says of itself; `str` gives it in one line.

    name: as claims print it, always that of the data in hand, also when it is a fallback.
    origin: "from UNROLLED_DATA", "from the cache", "downloaded" or "embedded".
    note: why a fallback is in use, else empty.
    """

    name: str
    licence: str
    origin: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self._size()}; {self.licence}), {self.origin}{self.note}."

    __repr__ = __str__  # a cell that ends with a data set shows this line, not its tensors


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Images(Dataset):
    """Grey images in [0, 1] and the number of the class that each shows."""

    train_images: Float[Tensor, "n height width"]
    train_labels: Int[Tensor, " n"]
    test_images: Float[Tensor, "m height width"]
    test_labels: Int[Tensor, " m"]

    def _size(self) -> str:
        n, height, width = self.train_images.shape
        return f"{n:,} training and {len(self.test_images):,} test images of {height} by {width} pixels"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Text(Dataset):
    """One long string."""

    text: str

    def _size(self) -> str:
        return f"{len(self.text):,} characters"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Names(Dataset):
    """Family names by language, in the order of the files: NFC strings, names that occur more than once kept."""

    by_language: dict[str, list[str]]

    def _size(self) -> str:
        return f"{sum(map(len, self.by_language.values())):,} names"


Chord = tuple[int, ...]  # MIDI pitches that sound in one quarter note; empty where all voices rest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Chorales(Dataset):
    """Chorales as sequences of chords, one a quarter note, in the splits of Boulanger-Lewandowski et al. (2012)."""

    train: list[list[Chord]]
    valid: list[list[Chord]]
    test: list[list[Chord]]

    def _size(self) -> str:
        return f"{len(self.train)} training, {len(self.valid)} validation and {len(self.test)} test chorales"


def _mnist(files: dict[str, bytes]) -> dict:
    def decode(name: str) -> Tensor:  # IDX: two zero bytes, a type, the number of dimensions, each of them, the values
        content = gzip.decompress(files[f"mnist/{name}-ubyte.gz"])
        shape = np.frombuffer(content, dtype=">i4", count=content[3], offset=4)
        return torch.tensor(np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * len(shape)).reshape(shape))

    return {
        "train_images": decode("train-images-idx3").float() / 255,
        "train_labels": decode("train-labels-idx1").long(),
        "test_images": decode("t10k-images-idx3").float() / 255,
        "test_labels": decode("t10k-labels-idx1").long(),
    }


def _tinyshakespeare(files: dict[str, bytes]) -> dict:
    return {"text": files["tinyshakespeare/input.txt"].decode("utf-8")}


def _names(files: dict[str, bytes]) -> dict:
    def decode(content: bytes) -> list[str]:
        lines = content.decode("utf-8").split("\n")
        return [unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip()]

    return {"by_language": {Path(path).stem: decode(content) for path, content in files.items()}}


def _chorales(files: dict[str, bytes]) -> dict:
    splits = json.loads(files["jsb/jsb-chorales-quarter.json"])
    return {s: [[tuple(chord) for chord in piece] for piece in splits[s]] for s in ("train", "valid", "test")}


def _digits(_) -> dict:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.images).float() / 16, torch.tensor(digits.target).long()
    # Split in file order: neighbours share a writer, so a shuffled split would test on hands seen in training.
    return {
        "train_images": images[:1200],
        "train_labels": labels[:1200],
        "test_images": images[1200:],
        "test_labels": labels[1200:],
    }


def _topics(_) -> dict:
    from pydoc_data.topics import topics

    return {"text": "\n".join(topics[key] for key in sorted(topics))}


SETS = {  # name in claims, licence, kind, and how the bytes of the files (none where it is embedded) become its fields
    "mnist": ("MNIST", "CC BY-SA 3.0", Images, _mnist),
    "tinyshakespeare": ("Tiny Shakespeare", "public domain", Text, _tinyshakespeare),
    "names": ("names in 18 languages", "MIT licence", Names, _names),
    "chorales": ("JSB chorales", "music in the public domain", Chorales, _chorales),
    "digits": ("digits", "CC BY 4.0", Images, _digits),
    "topics": ("pydoc topics", "PSF licence", Text, _topics),
}


def load(name: str, *, fallback: str | None = None) -> Dataset:
    """The data set `name`: "mnist", "tinyshakespeare", "names", "chorales", or, embedded, "digits" or "topics".

    `fallback` names an embedded set of the same kind to use if the real one cannot be had; `str` of the result then
    says so. Read once a process, so treat the result as read-only. Raises ValueError for an unknown name or an unfit
    fallback, and DatasetUnavailable if there is neither file nor network and no fallback.
    """
    if not isinstance(name, str) or name not in SETS:
        raise ValueError(f"name must be one of {', '.join(SETS)} (got {name!r})")
    if fallback is not None and fallback not in _fallbacks(name):
        fit = " or ".join(map(repr, _fallbacks(name))) or "None, since no other set of its kind is embedded"
        raise ValueError(f"fallback for {name!r} must be {fit} (got {fallback!r})")
    folders = os.environ.get("UNROLLED_DATA", ""), os.environ.get("UNROLLED_CACHE", "")
    try:
        return _load(name, *folders)
    except DatasetUnavailable as error:
        if fallback is None:
            raise
        return dataclasses.replace(_load(fallback, *folders), note=f"; used because {error.reason}")


def _fallbacks(name: str) -> list[str]:
    return [other for other in SETS if other not in REGISTRY and SETS[other][2] is SETS[name][2]]


@functools.cache  # the folders are arguments so that a change of an environment variable is noticed
def _load(name: str, data: str, cache: str) -> Dataset:
    display_name, licence, kind, parse = SETS[name]
    contents, origins = {}, []
    for file in REGISTRY.get(name, ()):
        contents[file.path], origin = _find(name, file, data, cache)
        origins += [origin] * (origin not in origins)
    origin = " and ".join(origins) or "embedded"
    return kind(name=display_name, licence=licence, origin=origin, **parse(contents))


def _find(name: str, file: File, data: str, cache: str) -> tuple[bytes, str]:
    """The checked bytes of one file, and where they came from."""
    trouble = ""
    if data:
        supplied = Path(data).expanduser() / file.path
        content, problem = _checked(supplied, file.sha256)
        if content is not None:
            return content, "from UNROLLED_DATA"
        trouble = f"; UNROLLED_DATA points to {supplied}, which {problem}"
    folder = Path(cache).expanduser() if cache else Path(_pooch().os_cache("unrolled"))
    content, _ = _checked(folder / file.path, file.sha256)
    if content is not None:
        return content, "from the cache"
    return _download(name, file, folder, trouble), "downloaded"


def _pooch():
    """pooch, without the remark of its progress bar, stored in every notebook, that Jupyter's widgets are not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pooch
    return pooch


def _checked(path: Path, sha256: str) -> tuple[bytes | None, str]:
    """The bytes at `path` if they have the hash, else None and what is wrong with the file."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None, "is not there"
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    if hashlib.sha256(content).hexdigest() != sha256:
        return None, "has the wrong SHA-256 and was left alone"
    return content, ""


def _download(name: str, file: File, folder: Path, trouble: str) -> bytes:
    """Fetch one file into the cache `folder`, from the first address that serves the right bytes."""
    import requests  # pooch fetches with it

    pooch = _pooch()
    pooch.get_logger().setLevel(
        "WARNING"
    )  # its notes name the user's folders, and notebooks are stored with their output
    path, last = folder / file.path, ""
    for url in file.urls:
        try:
            # pooch writes to a temporary file beside `path` and moves it there once its hash is right: neither an
            # interruption nor a second process leaves half a file, and an older copy with the wrong hash is replaced.
            pooch.retrieve(
                url,
                known_hash=f"sha256:{file.sha256}",
                fname=path.name,
                path=path.parent,
                downloader=pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT),
            )
        except requests.RequestException as error:
            last = f"{urlsplit(url).netloc} {_in_plain_words(error)}"
        except ValueError:
            last = f"{urlsplit(url).netloc} sent bytes with the wrong SHA-256"
        except OSError as error:
            what = f"the folder {path.parent} cannot be written: {error.strerror or error}{trouble}"
            raise _unavailable(name, what, "Set UNROLLED_CACHE to a folder that can be written") from error
        content, _ = _checked(path, file.sha256)
        if content is not None:
            return content
    path.unlink(missing_ok=True)  # a bad copy from before, which no address could replace
    paths = [other.path for other in REGISTRY[name]]
    wanted = ", ".join(paths) if len(paths) <= 4 else f"{paths[0]} to {paths[-1]} ({len(paths)} files)"
    tried = f"{len(file.urls)} address{'es' * (len(file.urls) > 1)} tried, last: {last}"
    raise _unavailable(name, tried + trouble, f"Set UNROLLED_DATA to a folder that holds {wanted}")


def _in_plain_words(error: Exception) -> str:
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError):
        return f"answered {error.response.status_code}"
    if isinstance(error, exceptions.Timeout):
        return "timed out"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "broke off"
    return "could not be reached"


def _unavailable(name: str, what: str, remedy: str) -> DatasetUnavailable:
    reason = f"{SETS[name][0]} could not be fetched ({what})"
    other = "".join(f', or use fallback="{fallback}"' for fallback in _fallbacks(name))
    error = DatasetUnavailable(f"{reason}. {remedy}{other}.")
    error.reason = reason
    return error
