"""Whether numbers were taken alike: what of their records has to be equal before one is set against the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hires_gan.evaluation.protocol import Record

_FREE = (
    *("format", "value", "deviation", "better", "scale", "seeds", "caution"),
    *("checkpoint", "device", "versions", "date"),
)
"""What was judged, when, by which versions and where, and with which random draws."""
_FREE_WITHIN = ("data.name", "features.version", "features.random")
"""The data's digest and the feature network's checksum decide."""
_DECODER = "data.decoder"
"""Of it, the name: versions of libraries may differ."""
_REPLACED = "data.replaced"
"""Where none is, that is no part of the protocol: records of before do not know it."""
_FREQUENCIES = "parameters.class_frequencies"
"""Where reals are looked at, classes are drawn as they occur among them: their digest decides, older records' too."""
_BETWEEN = " | "


def protocol_of(records: Sequence[Record]) -> dict[str, str]:
    """How one metric was taken, flat and as text, for a store that knows nothing of records.

    Args:
        records: Of the metric; for a translation one for each direction. Where these differ, all values stand there.
    """
    flat = [_protocol(record) for record in records]
    keys = dict.fromkeys(key for one in flat for key in one if key != "metric")
    return {key: _BETWEEN.join(dict.fromkeys(str(one.get(key)) for one in flat)) for key in keys}


def protocols_of(records: Sequence[Record]) -> dict[str, dict[str, str]]:
    """How each metric was taken, by its name."""
    names = dict.fromkeys(record.metric for record in records)
    return {name: protocol_of([record for record in records if record.metric == name]) for name in names}


def differences(one: Record, other: Record) -> dict[str, tuple[Any, Any]]:
    """Where two records differ so that their numbers cannot be compared.

    What was judged, when and where, and with which seeds may differ, and so may versions of libraries and the name of
    the data: the digest decides, and the checksum of the feature network.

    Returns:
        By key, such as `reals` or `features.checksum`, what each of them has; empty if they may be compared.
    """
    mine, others = _protocol(one), _protocol(other)
    keys = [*mine, *(key for key in others if key not in mine)]
    return {key: (mine.get(key), others.get(key)) for key in keys if mine.get(key) != others.get(key)}


def comparable(one: Record, other: Record) -> bool:
    """Whether two numbers may be set against each other."""
    return not differences(one, other)


def _protocol(record: Record) -> dict[str, Any]:
    """What has to be equal."""
    kept: dict[str, Any] = {}
    for key, value in record.model_dump(mode="json").items():
        if key in _FREE:
            continue
        if isinstance(value, dict):
            kept |= {f"{key}.{name}": one for name, one in value.items()}
        else:
            kept[key] = value
    if _DECODER in kept:
        kept[_DECODER] = kept[_DECODER].split()[0]
    if not kept.get(_REPLACED):
        kept[_REPLACED] = None
    if record.data is not None:
        kept[_FREQUENCIES] = None
    return {key: value for key, value in kept.items() if key not in _FREE_WITHIN and value is not None}
