"""Images on disk to batches on the device: prepare, shards, order, decoders, loader."""
