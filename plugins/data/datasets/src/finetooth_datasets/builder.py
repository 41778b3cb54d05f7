"""Options and builder of the source `datasets`, apart from what it builds: a reader of its options does not
import the datasets library."""

from __future__ import annotations

from finetooth_hooks import Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Source


class DatasetsOptions(Options):
    """Options of `datasets`."""

    path: str
    """A file (.csv, .tsv, .json, .parquet, .arrow), a folder with a dataset that was saved to disk or with files of
    one, or a hub id `org/name`."""
    split: str = "train"
    """The split, with a slice if you want: `train[:10%]`, `test[100:200]`. A file is one split, `train`, and so is a
    saved dataset without splits."""
    config: str | None = None
    """The configuration of a hub dataset that has several."""
    data_files: str | list[str] | None = None
    """Of a hub dataset or a folder: files of it, or patterns, that are read in place of all; they are one split,
    `train`."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    streaming: bool = False
    """Of a hub dataset: rows are read as they come over the network, and nothing is downloaded whole or kept; with
    method pretrain and its `streaming`, training begins with the first of them. A split has no slice then."""
    field: str | None = None
    """For a .json file that is an object: the key under which its rows are."""


def build(options: DatasetsOptions, context: Context) -> Source:
    """Builder of the source `datasets`."""
    from finetooth_datasets.source import DatasetsSource

    return DatasetsSource(options, context.note)
