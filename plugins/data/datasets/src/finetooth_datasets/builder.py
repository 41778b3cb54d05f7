"""Options and builder of the source `datasets`, apart from what it builds: a reader of its options does not
import the datasets library."""

from __future__ import annotations

from finetooth_hooks import Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Source


class DatasetsOptions(Options):
    """Options of `datasets`."""

    path: str
    """A file (.csv, .tsv, .json, .parquet, .arrow), a folder with a saved dataset or with files of one, or a hub id
    `org/name`."""
    split: str = "train"
    """The split, with a slice if you want: `train[:10%]`, `test[100:200]`. A file, or a saved dataset without splits,
    has one split, `train`."""
    config: str | None = None
    """The configuration, if a hub dataset has several."""
    data_files: str | list[str] | None = None
    """For a hub dataset or a folder: files or patterns to read instead of all files; they form one split, `train`."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    streaming: bool = False
    """For a hub dataset: rows are read as they arrive over the network, and nothing is downloaded whole or stored. With
    method pretrain and its `streaming`, training begins with the first rows. The split then has no slice."""
    field: str | None = None
    """For a .json file that is an object: the key that holds the rows."""


def build(options: DatasetsOptions, context: Context) -> Source:
    """Builder of the source `datasets`."""
    from finetooth_datasets.source import DatasetsSource

    return DatasetsSource(options, context.note)
