"""GGUF files as models: what a header says, the conversion, and the folders that files are unpacked to once."""

from ballast.gguf.conversion import convert
from ballast.gguf.unpack import digest, folder_problem, gone, is_gguf, problem, unpacked

__all__ = ["convert", "digest", "folder_problem", "gone", "is_gguf", "problem", "unpacked"]
