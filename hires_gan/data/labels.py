"""Class labels: from folder names, from a CSV file, or those that a source brings along."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from hires_gan.data.archives import Reference, read_bytes
from hires_gan.data.pairs import some
from hires_gan.data.rejection import Rejected
from hires_gan.errors import Failure, UsageError

OwnLabels = dict[str, str]
"""What a source says about its images: `Reference.shown` -> class number or name."""
LabelledSource = tuple[str, Sequence[Reference], Mapping[str, str] | None]
"""A source as the user named it, its images, and its own labels if it has any."""

MOST_CLASSES = 100_000
_NUMBER = re.compile(r"0|[1-9]\d{0,8}")


def assign_labels(sources: Sequence[LabelledSource], option: str) -> tuple[list[int] | None, tuple[str, ...] | None]:
    """Give every image its class.

    Args:
        sources: All sources, in order.
        option: `none`, `folders`, `own`, or the path of a CSV file.

    Returns:
        The class number of each image, and the name of each class; both None for `none`.

    Raises:
        UsageError: Images without a label, labels without an image, or labels that cannot be classes.
    """
    if option == "none":
        return None, None
    if option == "folders":
        return _by_folder(sources)
    values = _own(sources) if option == "own" else _from_csv(sources, Path(option))
    return _numbered(values)


def _by_folder(sources: Sequence[LabelledSource]) -> tuple[list[int], tuple[str, ...]]:
    """Name each image's class after the top-level folder in its source, or after the source if it lies in none."""
    values = [folder_of(shown, reference.name) for shown, references, _ in sources for reference in references]
    names = sorted(set(values), key=_natural)
    if len(names) == 1:
        raise UsageError(
            f"--labels folders found a single class, '{names[0]}': classes are the folders directly below a source, "
            "or the sources themselves if the images lie directly in them"
        )
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[value] for value in values], tuple(names)


def folder_of(source: str, name: str) -> str:
    """Return the class that an image's place gives it."""
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else Path(source).absolute().name.split(".")[0]


def _natural(name: str) -> tuple[int, int, str]:
    """Sort whole numbers by value, before other names."""
    return (0, int(name), name) if _NUMBER.fullmatch(name) else (1, 0, name)


def _own(sources: Sequence[LabelledSource]) -> list[str]:
    values: list[str] = []
    for shown, references, labels in sources:
        if labels is None:
            raise UsageError(
                f"{shown} has no labels of its own (a dataset.json with labels, or .cls files): "
                "use --labels folders or a CSV file"
            )
        _refuse_missing([reference.shown for reference in references if reference.shown not in labels], shown)
        values += [labels[reference.shown] for reference in references]
    return values


def _from_csv(sources: Sequence[LabelledSource], path: Path) -> list[str]:
    """Look up each image in a CSV file, by its path inside the source or with the source in front."""
    rows = read_csv(path)
    by_path: dict[str, set[str]] = {}
    images = [(reference, {reference.name, reference.shown}) for _, refs, _ in sources for reference in refs]
    for reference, paths in images:
        for one in paths:
            by_path.setdefault(one, set()).add(reference.shown)
    unknown = [row for row in rows if row not in by_path]
    if unknown:
        raise UsageError(f"{path} names {some(unknown)}, which no source holds: paths are relative to their source")
    ambiguous = [row for row in rows if len(by_path[row]) > 1]
    if ambiguous:
        raise UsageError(f"{path} names {some(ambiguous)}, which several sources hold: put the source in front")
    _refuse_missing([reference.shown for reference, paths in images if not paths & rows.keys()], str(path))
    return [next(rows[one] for one in sorted(paths, key=len, reverse=True) if one in rows) for _, paths in images]


def read_csv(path: Path) -> dict[str, str]:
    """Read a CSV file with the header `path,label`.

    Raises:
        UsageError: It does not exist, has another header, or a row is incomplete or contradicts another.
    """
    rows: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            if [field.strip() for field in next(reader, [])] != ["path", "label"]:
                raise UsageError(f"{path} must begin with the header path,label")
            for row in filter(None, reader):
                if len(row) != 2 or not row[0].strip() or not row[1].strip():
                    raise UsageError(f"{path}, line {reader.line_num}: a path and a label are needed, found {row}")
                image, label = PurePosixPath(row[0].strip()).as_posix(), row[1].strip()
                if rows.setdefault(image, label) != label:
                    raise UsageError(f"{path}, line {reader.line_num}: {image} is {label} here, {rows[image]} above")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"--labels {path} cannot be read as a CSV file ({error}): use none, folders, own, or such a file"
        ) from None
    return rows


def _numbered(values: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Number the classes: whole numbers stay what they are, names are sorted."""
    distinct = set(values)
    if all(_NUMBER.fullmatch(value) for value in distinct):
        classes = max(map(int, distinct)) + 1
        if classes > MOST_CLASSES:
            raise UsageError(f"a label is {classes - 1}: numbers must be classes from 0 on, below {MOST_CLASSES}")
        return [int(value) for value in values], tuple(str(number) for number in range(classes))
    names = tuple(sorted(distinct, key=_natural))
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[value] for value in values], names


def _refuse_missing(missing: Sequence[str], where: str) -> None:
    if missing:
        raise UsageError(f"{where} has no label for {some(missing)}: every image needs one")


def dataset_json(file: Reference, references: Iterable[Reference]) -> OwnLabels | None:
    """Read NVlabs' `dataset.json`: {"labels": [[name, class number], ...]}, or null for none.

    Raises:
        Failure: It is not of this form.
    """
    try:
        content = json.loads(read_bytes(file))
        if content["labels"] is None:
            return None
        labels = {name: _class_number(label) for name, label in content["labels"]}
    except (Rejected, ValueError, TypeError, KeyError) as error:
        raise Failure(f'{file.shown} is not of the form {{"labels": [["name", class number], ...]}}: {error}') from None
    return {reference.shown: labels[reference.name] for reference in references if reference.name in labels}


def _class_number(label: object) -> str:
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise ValueError(f"a label is {label!r}, only whole numbers from 0 on are classes")
    return str(label)


def sample_key(name: str) -> str:
    """Return the webdataset key of a member: its path up to the first dot of the file name."""
    path = PurePosixPath(name)
    return (path.parent / path.name.split(".")[0]).as_posix()


def class_files(files: Iterable[Reference], references: Iterable[Reference]) -> OwnLabels:
    """Read the `.cls` file of each image in a webdataset.

    Raises:
        Failure: One cannot be read.
    """
    classes = {sample_key(file.name): file for file in files if file.name.endswith(".cls")}
    labels: OwnLabels = {}
    for reference in references:
        file = classes.get(sample_key(reference.name))
        if file is not None:
            labels[reference.shown] = _class_text(file)
    return labels


def _class_text(file: Reference) -> str:
    try:
        return read_bytes(file).decode().strip()
    except (Rejected, UnicodeDecodeError) as error:
        raise Failure(f"{file.shown} cannot be read as a label: {error}") from None
