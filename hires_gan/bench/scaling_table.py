"""The result of `bench scaling` as lines for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]
_WIDTH = 116
_WAYS = {"behind": "buckets sent behind the passes", "during": "buckets sent during the passes"}


def table(record: Record) -> list[str]:
    """The whole result."""
    settings, step = record["settings"], record["step"]
    lines = [
        *_wrapped(
            f"{settings['config']}: {settings['resolution']}x{settings['resolution']}, {settings['precision']}, "
            f"performance {settings['performance']}; batches of {settings['batch']} in groups of {settings['group']}, "
            f"{step['images']} images at once"
        ),
        "",
        *_wrapped(f"a step alone, {step['images']} images: {step['average_ms']:.2f} ms, {step['from']}"),
        *_phases(step),
        *[line for remark in record["remarks"] for line in _wrapped(f"remark: {remark}")],
    ]
    lines += ["", *_together(record["together"])] if "together" in record else []
    lines += ["", *_assumptions(record)]
    for scaling in ("weak", "strong"):
        lines += ["", *_rows(record, scaling)]
    return [*lines, "", *_messages(record), "", *_published(record)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ")


def _phases(step: Record) -> Iterator[str]:
    yield f"{'phase':16}{'interval':>9}{'ms/call':>10}{'gradient MB':>13}{'buckets':>9}  ready, ms before the end"
    for name, phase in step["phases"].items():
        ready = phase["ready_ms"]
        told = "not measured" if ready is None else ", ".join(f"{before:.2f}" for before in ready)
        line = f"{name:16}{phase['interval']:>9}{phase['ms_per_call']:>10.2f}{phase['gradient_bytes'] / 1e6:>13.2f}"
        yield f"{line}{len(phase['buckets']):>9}  {told}"


def _together(found: Record) -> Iterator[str]:
    yield (
        f"measured on {found['processes']} processes, {found['neighbours']} of them here: an average step of "
        f"{found['measured_step_ms']:.2f} ms, efficiency {found['measured_efficiency']:.1%}"
    )
    yield (
        f"  the model, from the times of single messages: {found['predicted_step_ms']:.2f} ms, efficiency "
        f"{found['predicted_efficiency']:.1%}; control {found['control_ms']:.3f} ms, means {found['means_ms']:.3f} ms"
    )
    yield f"  the control message is {found['control']}"
    yield f"{'phase':16}{'alone ms':>10}{'together ms':>13}{'model ms':>10}"
    for name, phase in found["phases"].items():
        yield f"{name:16}{phase['alone_ms']:>10.2f}{phase['measured_ms']:>13.2f}{phase['predicted_ms']:>10.2f}"


def _assumptions(record: Record) -> list[str]:
    network = record["network"]
    lines = [
        f"assumed: {network['per_node']} GPUs in a node; {network['intra'] / 1e9:g} GB/s for each GPU inside it, "
        f"{network['inter'] / 1e9:g} GB/s for each node outside, in each direction; {network['hop_intra'] * 1e6:g}, "
        f"{network['hop_inter'] * 1e6:g} and {network['hop_control'] * 1e6:g} us for a message inside, outside and of "
        f"control; step times that vary by {record['jitter']:.1%}; the first process alone for "
        f"{record['first_seconds_per_kimg']:g} s/kimg"
    ]
    return [line for text in (*lines, f"model: {record['model']}") for line in _wrapped(text)]


_TITLES = {
    "weak": "weak scaling: each GPU keeps its images, the batch grows, and with it what is trained",
    "strong": "strong scaling: the configuration's batch in whole groups, the same training",
}


def _rows(record: Record, scaling: str) -> Iterator[str]:
    trained = record["as_trained"]
    other = {"behind": "during", "during": "behind"}[trained]
    others = record[scaling].get(other)
    yield f"{_TITLES[scaling]};"
    yield f"  predicted ms of an average step, {_WAYS[trained]}, as train does there"
    head = f"{'GPUs':>6}{'images':>7}{'idle':>6}{'batch':>7}{'compute':>9}{'gradients':>10}{'means':>7}{'control':>8}"
    head += f"{'slowest':>8}{'first':>8}{'step':>9}{'images/s':>10}{'efficiency':>11}"
    yield head + (f"{other:>8}" if others else "")
    for number, row in enumerate(record[scaling][trained]):
        yield _row(row) + (f"{others[number]['efficiency']:>8.1%}" if others else "")


def _row(row: Record) -> str:
    line = f"{row['gpus']:>6}{row['images_per_gpu']:>7}{row['idle_gpus']:>6}{row['batch']:>7}{row['compute_ms']:>9.2f}"
    line += f"{row['gradients_ms']:>10.2f}{row['means_ms']:>7.2f}{row['control_ms']:>8.2f}{row['stragglers_ms']:>8.2f}"
    return f"{line}{row['first_ms']:>8.2f}{row['step_ms']:>9.2f}{row['images_per_s']:>10.1f}{row['efficiency']:>11.1%}"


def _messages(record: Record) -> list[str]:
    rows = [row for row in record["weak"][record["as_trained"]] if row["gpus"] in (8, 64, 1024)]
    told = ", ".join(f"{row['control_message_ms']:.2f} ms among {row['gpus']:,}" for row in rows)
    return _wrapped(
        f"a control message takes {told}; it travels beside a step, which waits for what of it takes longer than the "
        "step itself: the column control"
    )


def _published(record: Record) -> list[str]:
    published, settings = record["published"], record["settings"]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in published["efficiency_at_8"].items())
    weak, strong = (
        next(row["efficiency"] for row in record[scaling][record["as_trained"]] if row["gpus"] == 8)
        for scaling in ("weak", "strong")
    )
    groups = max(1, settings["batch"] // settings["group"])
    return _wrapped(
        f"published by {published['whose']}; {published['what']}: {shares} at 8. The model says {weak:.1%} here where "
        f"each GPU keeps its images, and {strong:.1%} for the configuration's batch, which gives work to {groups}."
    )
