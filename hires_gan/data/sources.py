"""Where images come from: folders, zips, tars, webdatasets and shard sets, all as lists of references."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hires_gan.data.archives import Reference, is_tar, list_tar, list_zip
from hires_gan.data.labels import OwnLabels, assign_labels, class_files, dataset_json, sample_key
from hires_gan.data.manifest import IMAGE, MANIFEST, pictures_of
from hires_gan.data.pairs import Inputs, Item, by_key, column_and_key, key_of, match
from hires_gan.data.shards import ShardSet
from hires_gan.errors import Failure, UsageError

_RARER = (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif")
EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", *_RARER]
)
"""Endings of image files; what the file really is, its first bytes tell."""
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_BRACES = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")


@dataclass(frozen=True)
class Source:
    """The images of one SRC, sorted by name."""

    shown: str
    """As the user named it."""
    references: list[Reference]
    own_labels: OwnLabels | None
    """The labels that it brings along; None if it has none or they were not asked for."""
    passed_over: Counter[str]
    """Endings of the files that are no images."""


class Wish(NamedTuple):
    """What is looked for in a source."""

    scratch: Path
    """Folder for decompressed copies of compressed tars; made when needed."""
    own_labels: bool = False
    """Whether to read the labels that it brings along."""
    columns: tuple[str, ...] = ()
    """The pictures of each sample, in files such as `12.a.jpg`; none for a source of single images."""


@dataclass(frozen=True)
class Listing:
    """All images of all sources, in the order in which they become samples."""

    items: list[Item]
    """What becomes one sample each (or its tiles): a single image, or the images of a pair."""
    labels: list[int | None] | None
    """One per item; None for an item without its first picture, by which all are labelled."""
    label_names: tuple[str, ...] | None
    """The classes, by number."""
    passed_over: Counter[str]
    """Endings of the files that are no images."""

    def fingerprint(self) -> str:
        """Return a sha256 over names, sizes and labels: what tells whether the sources are still the same."""
        digest = hashlib.sha256(repr(self.label_names).encode())
        for number, item in enumerate(self.items):
            label = self.labels[number] if self.labels is not None else None
            files = "\0".join("" if file is None else f"{file.name}\0{file.size}" for file in item)
            digest.update(f"{files}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def list_sources(inputs: Inputs, labels: str, scratch: Path) -> Listing:
    """Find every image of every source.

    Args:
        inputs: Folders, archives, shard sets, or patterns like `shards-{000000..000010}.tar`, and what a sample is.
        labels: `none`, `folders`, `own`, or the path of a CSV file; of a pair, those of the first picture.
        scratch: Folder for decompressed copies of compressed tars; made when needed.

    Raises:
        UsageError: A source does not exist, holds no images, or lacks the labels that were asked for; or several
            images could be one picture of a pair.
        Failure: An archive cannot be read.
    """
    columns = inputs.names if inputs.paired and not inputs.apart else ()
    found = []
    for number, place in enumerate(inputs.places):
        counts = number == 0 or not inputs.apart
        found.append(list_source(place, Wish(scratch, labels == "own" and counts, columns)))
    groups = _grouped(inputs, found)
    labelled = [
        (source.shown, [item[0] for item in group if item[0] is not None], source.own_labels)
        for source, group in zip(found, groups, strict=False)  # sources that lie apart are one group
    ]
    numbers, names = assign_labels(labelled, labels)
    items = [item for group in groups for item in group]
    rest = iter(numbers or ())
    return Listing(
        items=items,
        labels=None if numbers is None else [None if item[0] is None else next(rest) for item in items],
        label_names=names,
        passed_over=sum((source.passed_over for source in found), Counter()),
    )


def _grouped(inputs: Inputs, found: Sequence[Source]) -> list[list[Item]]:
    """Say which images make a sample together: a list per source, or a single one if the pictures lie apart."""
    if inputs.apart:
        halves = [
            by_key(((key_of(file, EXTENSIONS), file) for file in source.references), f"--pair {name}={source.shown}")
            for name, source in zip(inputs.names, found, strict=True)
        ]
        return [match(halves)]
    if inputs.paired:
        return [_paired_within(source, inputs.names) for source in found]
    return [[(reference,) for reference in source.references] for source in found]


def _paired_within(source: Source, names: Sequence[str]) -> list[Item]:
    keyed: dict[str, list[tuple[str, Reference]]] = {name: [] for name in names}
    for reference in source.references:
        name, key = column_and_key(reference, names, EXTENSIONS) or ("", "")  # other images were passed over
        keyed[name].append((key, reference))
    return match([by_key(files, source.shown) for files in keyed.values()])


def list_source(source: str, wish: Wish) -> Source:
    """Find every image of one source; see `list_sources`."""
    try:
        listed = _list_any(source, wish)
    except PermissionError as error:
        raise Failure(f"{error.filename} cannot be read: {error.strerror}") from None
    if not listed.references:
        others = f" ({_summary(listed.passed_over)})" if listed.passed_over else ""
        if wish.columns:
            raise UsageError(
                f"{source} holds no images of --columns {','.join(wish.columns)}{others}: their files are called "
                f"{' and '.join(f'KEY.{name}.jpg' for name in wish.columns)}, or end like another kind of image"
            )
        raise UsageError(f"{source} holds no images{others}: what counts is {' '.join(sorted(EXTENSIONS))}")
    return listed


def _list_any(source: str, wish: Wish) -> Source:
    path = Path(source)
    if path.is_dir():
        return _list_folder(source, path, wish)
    if path.is_file():
        return _list_archive(source, path, wish)
    if _BRACES.fullmatch(source):
        return _list_tars(source, list(_expanded(source)), wish)
    raise UsageError(f"there is no folder or archive {source}")


def _summary(passed_over: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in passed_over.most_common(5))


def _expanded(pattern: str) -> Iterator[Path]:
    """Expand the last `{000000..000010}` of a pattern, and those before it."""
    match = _BRACES.fullmatch(pattern)
    if match is None:
        yield Path(pattern)
        return
    before, first, last, after = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{before}{number:0{len(first)}d}{after}")


def _list_folder(source: str, folder: Path, wish: Wish) -> Source:
    if (folder / MANIFEST).is_file() and any(folder.glob("*.index")):
        return _list_shards(source, folder, wish)
    files = list(_walk(folder, folder))
    listed = _images(source, files, wish.columns)
    if listed.references:
        return _with_dataset_json(listed, files) if wish.own_labels else listed
    tars = sorted(path for path in folder.iterdir() if path.name.endswith(_TARS) and path.is_file())
    return _list_tars(source, tars, wish) if tars else listed


def _walk(folder: Path, root: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Reference]:
    """List the files below a folder; links are followed, except into a folder that is being walked already."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_dir():
            if not entry.name.startswith("."):
                yield from _walk(path, root, above | {here})
        elif entry.is_file():
            name = path.relative_to(root).as_posix()
            try:
                size = entry.stat().st_size
            except FileNotFoundError:  # another machine writes its shards below this folder, and just renamed one
                continue
            yield Reference(path=entry.path, name=name, shown=entry.path, size=size)


def _list_shards(source: str, folder: Path, wish: Wish) -> Source:
    """List the full images of a shard set of ours, in their order."""
    shards = ShardSet(folder)
    columns = wish.columns or (IMAGE,)
    if not {*columns} <= {*shards.manifest.columns}:
        there = pictures_of(shards.manifest.columns)
        remedy = "leave --columns out" if there == (IMAGE,) else f"use --columns {','.join(there)}"
        raise UsageError(f"the samples of {source} hold {' and '.join(there)}, not {' and '.join(columns)}: {remedy}")
    names = shards.manifest.label_names if wish.own_labels else None
    references: list[Reference] = []
    labels: OwnLabels = {}
    for row in range(len(shards)):
        key = shards.key_of(row)
        for column in columns:
            path, offset, size, crc32 = shards.locate(row, column)
            place = f"{key}.{column}" if wish.columns else key
            shown = f"{path}/{place}"
            references.append(Reference(str(path), f"{path.name}/{place}", shown, size, offset, crc32=crc32))
            if names:
                labels[shown] = names[shards.label(row)]
    return Source(source, references, labels or None, Counter())


def _list_archive(source: str, path: Path, wish: Wish) -> Source:
    if zipfile.is_zipfile(path):
        files = list_zip(path)
        listed = _images(source, files, wish.columns)
        return _with_dataset_json(listed, files) if wish.own_labels else listed
    if is_tar(path):
        return _list_tars(source, [path], wish)
    raise UsageError(f"{source} is neither a folder nor a zip nor a tar (or the archive is damaged)")


def _list_tars(source: str, tars: Sequence[Path], wish: Wish) -> Source:
    """List tars (webdatasets or others) in the order given, each sorted by name."""
    references: list[Reference] = []
    labels: OwnLabels = {}
    passed_over: Counter[str] = Counter()
    for tar in tars:
        if not tar.is_file():
            raise UsageError(f"there is no {tar}, which {source} names")
        files = list_tar(tar, wish.scratch)
        unlabelled = [file for file in files if not file.name.endswith(".cls")]
        images = unlabelled if wish.columns else _first_columns(unlabelled, passed_over)
        listed = _images(source, images, wish.columns)
        references += listed.references
        passed_over += listed.passed_over
        if wish.own_labels:
            labels.update(class_files(files, listed.references))
    return Source(source, references, labels or None, passed_over)


def _first_columns(files: Sequence[Reference], passed_over: Counter[str]) -> list[Reference]:
    """Leave out what only accompanies an image in a webdataset: `0001.64.png` beside `0001.png`."""
    images = [file for file in files if _is_image(file.name)]
    whole = {sample_key(file.name) for file in images if _endings(file.name) == 1}
    beside = {file.name for file in images if _endings(file.name) > 1 and sample_key(file.name) in whole}
    passed_over.update({"other columns": len(beside)} if beside else {})
    return [file for file in files if file.name not in beside]


def _endings(name: str) -> int:
    return PurePosixPath(name).name.count(".")


def _images(source: str, files: Sequence[Reference], columns: Sequence[str]) -> Source:
    """Sort out the images among the files of a source; of two with one name the last counts, as in any archive.

    Args:
        source: As the user named it.
        files: All that it holds.
        columns: The pictures that are wanted of each sample; any images, if none are named.
    """
    images = {file.name: file for file in files if _is_image(file.name)}
    beside = {name for name, file in images.items() if columns and not column_and_key(file, columns, EXTENSIONS)}
    others = Counter(PurePosixPath(file.name).suffix or "without an ending" for file in files)
    passed_over = Counter({ending: count for ending, count in others.items() if ending.lower() not in EXTENSIONS})
    hidden = sum(_is_hidden(file.name) and file.name.lower().endswith(tuple(EXTENSIONS)) for file in files)
    passed_over.update({"hidden": hidden} if hidden else {})
    passed_over.update({"other columns": len(beside)} if beside else {})
    return Source(source, [images[name] for name in sorted(images) if name not in beside], None, passed_over)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in EXTENSIONS and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    """Tell whether a name is the operating system's: `.thumbnails/a.jpg`, `__MACOSX/._a.jpg`."""
    parts = PurePosixPath(name).parts
    return any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in parts)


def _with_dataset_json(listed: Source, files: Sequence[Reference]) -> Source:
    """Add the labels of the NVlabs format, if the source has them."""
    for file in files:
        if file.name == "dataset.json":
            return replace(listed, own_labels=dataset_json(file, listed.references))
    return listed
