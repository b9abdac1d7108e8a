"""Data sets of the benchmark: registered small ones, or a folder of the user's. What was used is said in the result."""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from encoders_core.benchmarking.synthetic import latents, motions, textures
from encoders_core.errors import InputError, OptionError

Kind = Literal["image", "video", "features", "pairs", "text"]

_IMAGES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
_VIDEOS: Final = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"})


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Items of one kind, and labels where there are any.

    Items: pictures or clips as the encoders take them, texts, pairs (picture, text), or one mapping of features by
    modality, each (N, dim) or (N, L, dim).
    """

    name: str
    kind: Kind
    items: Sequence[Any] | Mapping[str, Any]
    labels: Sequence[int] | None = None
    classes: tuple[str, ...] = ()
    description: str = ""
    stands_for: str | None = None
    """The name that was asked for, where this set is a small substitute for another one."""

    def __len__(self) -> int:
        if isinstance(self.items, Mapping):
            return len(next(iter(self.items.values())))
        return len(self.items)

    def __post_init__(self) -> None:
        if not len(self):
            raise InputError(f"data set {self.name}: expected at least one item, got none")
        if self.labels is not None and len(self.labels) != len(self):
            raise InputError(f"data set {self.name}: expected a label for each of {len(self)}, got {len(self.labels)}")

    def take(self, indices: Sequence[int]) -> Any:
        """Those items, in the form they are kept in."""
        if isinstance(self.items, Mapping):
            return {name: values[list(indices)] for name, values in self.items.items()}
        return [self.items[index] for index in indices]


def _textures(_: Any) -> DataSet:
    items, labels, classes = textures()
    said = "128 synthetic pictures of 8 textures, made on the spot"
    return DataSet(name="textures", kind="image", items=items, labels=labels, classes=classes, description=said)


def _motions(_: Any) -> DataSet:
    items, labels, classes = motions()
    said = "64 synthetic clips of 4 frames, 4 textures sliding in 2 directions, made on the spot"
    return DataSet(name="motions", kind="video", items=items, labels=labels, classes=classes, description=said)


def _latents(encoder: Any) -> DataSet:
    items, labels, classes = latents(encoder.config.input_dimensions)
    said = "128 synthetic samples, each modality a noisy linear view of the same 16 hidden numbers, made on the spot"
    return DataSet(name="latents", kind="features", items=items, labels=labels, classes=classes, description=said)


def _digits(_: Any) -> DataSet:
    rows = np.loadtxt(_packaged("sklearn", "scikit-learn", "datasets/data/digits.csv.gz"), delimiter=",")[:400]
    order = _by_twos(rows[:, -1].astype(int).tolist())
    pixels = (rows[:, :-1].reshape(-1, 8, 8) * (255.0 / 16.0)).round().astype(np.uint8)
    items = [np.repeat(pixels[row][..., None], 3, axis=2) for row in order]
    labels = [int(rows[row, -1]) for row in order]
    said = "400 handwritten digits of 8 x 8 pixels, from scikit-learn's package"
    digits = tuple(map(str, range(10)))
    return DataSet(name="digits", kind="image", items=items, labels=labels, classes=digits, description=said)


_CAPTIONS: Final = {
    "astronaut.png": "an astronaut in an orange suit in front of a flag",
    "brick.png": "a brick wall",
    "camera.png": "a man with a camera on a tripod",
    "chelsea.png": "a tabby cat",
    "coffee.png": "a cup of coffee with a spoon",
    "coins.png": "old coins in rows",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies in deep space",
    "moon.png": "the surface of the moon",
    "motorcycle_left.png": "a motorcycle in a garage",
    "page.png": "a page of printed text",
    "retina.jpg": "the retina of an eye",
    "rocket.jpg": "a rocket on its launch pad",
}


def _photographs(_: Any) -> DataSet:
    paths = [_packaged("skimage", "scikit-image", f"data/{name}") for name in _CAPTIONS]
    pairs = list(zip(paths, _CAPTIONS.values(), strict=True))
    said = f"{len(pairs)} photographs from scikit-image's package with captions of ours"
    return DataSet(name="photographs", kind="pairs", items=pairs, description=said)


_SENTENCES: Final = {
    "animals": (
        "the dog barks|"
        "a cat sleeps on the sofa|"
        "birds fly south|"
        "the horse eats hay|"
        "a fish swims in the pond|"
        "two cows stand in the meadow"
    ),
    "traffic": (
        "the bus is late|"
        "a car waits at the red light|"
        "lorries block the motorway|"
        "he parks his bicycle|"
        "the train leaves the station|"
        "a taxi stops at the corner"
    ),
    "weather": (
        "it rains all day|"
        "snow falls in the mountains|"
        "the sun shines|"
        "a storm is coming|"
        "fog lies over the valley|"
        "the wind blows cold"
    ),
    "food": (
        "she bakes bread|"
        "the soup is hot|"
        "he peels potatoes|"
        "we ate rice and beans|"
        "the cake tastes of lemon|"
        "a plate of pasta with cheese"
    ),
}


def _sentences(_: Any) -> DataSet:
    split = {topic: texts.split("|") for topic, texts in _SENTENCES.items()}
    rows = [
        (texts[2 * turn + i], label) for turn in range(3) for label, texts in enumerate(split.values()) for i in (0, 1)
    ]
    items, labels = [text for text, _ in rows], [label for _, label in rows]
    said = "24 English sentences on 4 subjects"
    return DataSet(name="sentences", kind="text", items=items, labels=labels, classes=tuple(split), description=said)


_REGISTERED: Final[dict[str, tuple[Kind, Callable[[Any], DataSet]]]] = {
    "textures": ("image", _textures),
    "digits": ("image", _digits),
    "motions": ("video", _motions),
    "latents": ("features", _latents),
    "photographs": ("pairs", _photographs),
    "sentences": ("text", _sentences),
}
_SUBSTITUTES: Final[dict[str, dict[Kind, str]]] = {
    "imagenet_val_subset": {"image": "textures"},
    "kinetics_val_subset": {"video": "motions"},
    "multimodal_test_set": {"features": "latents", "pairs": "photographs"},
}
"""Names of sets that nobody may ship -> ours of that kind, named as substitutes in the result."""
DEFAULTS: Final[dict[Kind, str]] = {
    "image": "textures",
    "video": "motions",
    "features": "latents",
    "pairs": "photographs",
    "text": "sentences",
}


def kind_of(encoder: Any) -> Kind:
    """What such an encoder eats. Raises OptionError for what is no encoder of ours."""
    kinds: dict[tuple[str, ...], Kind] = {
        ("image",): "image",
        ("video",): "video",
        ("text",): "text",
        ("features",): "features",
        ("text", "image"): "pairs",
    }
    kind = kinds.get(tuple(getattr(encoder, "modalities", ())))
    if kind is None:
        raise OptionError(f"expected an encoder of encoders_core, got {type(encoder).__name__}")
    return kind


def resolve(asked: "str | os.PathLike[str] | DataSet | None", encoder: Any) -> DataSet:
    """The data set for `encoder`: a registered name, a folder (see `read_folder`), a DataSet, or None for the default.

    Raises OptionError for an unknown name, or a set of another kind, and names the valid ones.
    """
    kind = kind_of(encoder)
    if isinstance(asked, DataSet):
        found = asked
    elif asked is None or asked in _REGISTERED:
        name = DEFAULTS[kind] if asked is None else str(asked)
        found = _REGISTERED[name][1](encoder) if _REGISTERED[name][0] == kind else _wrong(name, kind)
    elif asked in _SUBSTITUTES:
        name = _SUBSTITUTES[str(asked)].get(kind) or _wrong(str(asked), kind).name
        found = replace(_REGISTERED[name][1](encoder), stands_for=str(asked))
    elif Path(asked).is_dir():
        found = read_folder(Path(asked), kind)
    else:
        raise OptionError(f"unknown data set {str(asked)!r}: expected {_valid(kind)}")
    return found if found.kind == kind else _wrong(found.name, kind)


def read_folder(folder: Path, kind: Kind) -> DataSet:
    """A folder of the user's.

    Pictures or videos: one folder a class, or all in one without labels. Pairs: pictures, each with a text of the same
    name in .txt. Text: one .txt a class, one text a line. Features: one NAME.npy a modality, (N, dim) or (N, L, dim), and
    perhaps labels.npy (N,).

    Items that are files are read when they are encoded. Raises InputError when nothing fits.
    """
    readers: dict[Kind, Callable[[Path], DataSet]] = {
        "image": lambda path: _class_folders(path, "image", _IMAGES),
        "video": lambda path: _class_folders(path, "video", _VIDEOS),
        "features": _feature_files,
        "pairs": _captioned,
        "text": _text_files,
    }
    return readers[kind](folder)


def _class_folders(folder: Path, kind: Kind, suffixes: frozenset[str]) -> DataSet:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if not classes:
        items = _files(folder, suffixes)
        return _user_set(folder, kind, items, description=f"{len(items)} files without labels")
    found = [(path, label) for label, name in enumerate(classes) for path in _files(folder / name, suffixes)]
    order = _by_twos([label for _, label in found])
    items, labels = [found[row][0] for row in order], [found[row][1] for row in order]
    said = f"{len(items)} files in {len(classes)} classes"
    return _user_set(folder, kind, items, labels=labels, classes=classes, description=said)


def _captioned(folder: Path) -> DataSet:
    pictures = [path for path in _files(folder, _IMAGES) if path.with_suffix(".txt").is_file()]
    pairs = [(path, path.with_suffix(".txt").read_text("utf-8").strip()) for path in pictures]
    return _user_set(folder, "pairs", pairs, description=f"{len(pairs)} pictures with texts")


def _text_files(folder: Path) -> DataSet:
    files = _files(folder, frozenset({".txt"}))
    lines = [(line, n) for n, path in enumerate(files) for line in path.read_text("utf-8").splitlines() if line.strip()]
    order = _by_twos([label for _, label in lines])
    items, labels = [lines[row][0] for row in order], [lines[row][1] for row in order]
    classes = tuple(path.stem for path in files)
    return _user_set(folder, "text", items, labels=labels, classes=classes, description=f"{len(items)} texts")


def _feature_files(folder: Path) -> DataSet:
    views = {path.stem: np.load(path, allow_pickle=False) for path in _files(folder, frozenset({".npy"}))}
    labels = views.pop("labels", None)
    sizes = {name: len(view) for name, view in views.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"{folder}: expected as many samples of each modality, got {sizes}")
    numbers = None if labels is None else [int(label) for label in labels]
    return _user_set(folder, "features", views, labels=numbers, description=f"features of {', '.join(views)}")


_LAYOUTS: Final[dict[Kind, str]] = {
    "image": "one folder of pictures a class, or pictures",
    "video": "one folder of videos a class, or videos",
    "features": "one NAME.npy a modality",
    "pairs": "pictures, each with a text of the same name in .txt",
    "text": "one .txt a class, one text a line",
}


def _user_set(folder: Path, kind: Kind, items: Any, **more: Any) -> DataSet:
    if not items:
        raise InputError(f"{folder}: expected {_LAYOUTS[kind]}, found nothing of the kind")
    return DataSet(name=str(folder), kind=kind, items=items, **more)


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)


def _by_twos(labels: Sequence[int]) -> list[int]:
    """An order in which classes take turns, two items at a time: a part from the beginning then has all of them."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    turns = range(0, max(map(len, rows.values()), default=0), 2)
    return [row for turn in turns for label in sorted(rows) for row in rows[label][turn : turn + 2]]


def _packaged(module: str, package: str, path: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise OptionError(
            f"this data set comes with the package {package}: pip install 'camvec[datasets]', or name a folder"
        )
    found = Path(spec.submodule_search_locations[0]) / path
    if not found.is_file():
        raise OptionError(f"{package} is installed, but without {path}: name a folder of your own")
    return found


def _wrong(name: str, kind: Kind) -> DataSet:
    raise OptionError(f"data set {name!r} is not for an encoder of {kind}: expected {_valid(kind)}")


def _valid(kind: Kind) -> str:
    ours = [name for name, (own, _) in _REGISTERED.items() if own == kind]
    names = [*ours, *(name for name, kinds in _SUBSTITUTES.items() if kind in kinds)]
    return f"{', '.join(names)}, a folder, or a DataSet"
