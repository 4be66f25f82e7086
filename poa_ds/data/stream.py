"""Reading with the webdataset library: for pipes, where nothing can be read by its place."""

from collections.abc import Iterator, Sequence

import webdataset

from poa_ds.data.tarwalk import IMAGES


def stream_images(sources: Sequence[str]) -> Iterator[bytes]:
    """The encoded images of tars, one after the other, as webdataset's own reader gives them."""
    for sample in webdataset.WebDataset(list(sources), shardshuffle=False):
        yield next(content for name, content in sample.items() if name in IMAGES)
