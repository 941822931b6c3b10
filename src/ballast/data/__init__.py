"""Demonstrations: loading, tokenising as TRL does, naming each row by its digest, packing and collating."""

from ballast.data.chunks import read_chunks
from ballast.data.collate import Collator
from ballast.data.digest import row_digest
from ballast.data.load import load_rows
from ballast.data.options import PrepareOptions
from ballast.data.packing import align, attach, pack
from ballast.data.prepare import Prepared, check_data, prepare
from ballast.data.report import PrepareReport
from ballast.data.stream import Streamed, prepare_stream
from ballast.data.values import renamed

__all__ = [
    "Collator",
    "PrepareOptions",
    "PrepareReport",
    "Prepared",
    "Streamed",
    "align",
    "attach",
    "check_data",
    "load_rows",
    "pack",
    "prepare",
    "prepare_stream",
    "read_chunks",
    "renamed",
    "row_digest",
]
