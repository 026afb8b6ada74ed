"""Opening what `data.shards` names: a folder, `demo:NAME`, a URL or a pipe; and the order that goes with it."""

from __future__ import annotations

from typing import Literal

from hires_gan.data.demo import resolve_shards
from hires_gan.data.lanes import LaneOrder
from hires_gan.data.order import Order
from hires_gan.data.shard_cache import ShardCache, default_cache, require_room
from hires_gan.data.shards import ShardSet
from hires_gan.data.store import fetch_manifest, is_streamed, open_store
from hires_gan.data.stream_settings import GB, StreamSettings
from hires_gan.settings import expanded

_LANES_AT_LEAST = 32


def open_shards(location: str, stream: StreamSettings) -> ShardSet:
    """Open a shard set for training, wherever it is.

    Args:
        location: A folder; `demo:NAME`; a URL of the folder that holds the set, such as `s3://bucket/set`; or `pipe:`
            and a command in which {} stands for a file's name.
        stream: The block `data.stream`, for the last two.

    Raises:
        UsageError: There is no such set, the location is of no known kind, or something has to be installed for it.
        Failure: It cannot be read.
    """
    if not is_streamed(location):
        return ShardSet(resolve_shards(location))
    store = open_store(location, stream.allow_pipe)
    manifest = fetch_manifest(store, stream.patience)
    root = default_cache() if stream.cache is None else expanded(stream.cache)
    bound = round(stream.cache_gb * GB)
    return ShardSet.through(ShardCache(root, bound, store, manifest, stream.patience, stream.downloads))


def order_of(shards: ShardSet, seed: int, lanes: int, stream: int = 0) -> Order | LaneOrder:
    """The order of a set's samples: by offset for a folder, in lanes of whole shards for a streamed set.

    Args:
        shards: The set.
        seed: The run's seed.
        lanes: Into how many lanes an epoch of a streamed set is cut.
        stream: Tells apart the orders of several data sets under one seed.

    Raises:
        UsageError: The cache is too small for what these lanes read at the same time.
    """
    if shards.cache is None:
        return Order(seed, len(shards), stream)
    require_room([shards.cache], lanes)
    counts = [shard.samples for shard in shards.manifest.shards]
    return LaneOrder(seed, counts, lanes, stream)


def describe_order(order: Order | LaneOrder) -> dict[str, str | int]:
    """What a checkpoint says of an order besides the seed: going on with another one would show other samples."""
    return {"kind": "lanes", "lanes": order.lanes} if isinstance(order, LaneOrder) else {"kind": "offset"}


def resolve_lanes(setting: int | Literal["auto"], batch: int) -> int:
    """How many lanes `data.stream.lanes` asks for; auto: the smallest multiple of the batch that is at least 32."""
    return -(-_LANES_AT_LEAST // batch) * batch if setting == "auto" else setting
