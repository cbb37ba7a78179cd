"""Where images come from, one file per data set or form: each registers a ``Reader`` in ``READERS``.

A file that is added here, or any module that calls ``register_reader``, is all that new data take: ``load_data``,
recipes, messages and the command line's help follow. Nothing heavy is imported before data are read.
"""

from ccf_plugin.zoo.readers.reader import READERS, Arrays, ImageFiles, Reader, register_reader
from ccf_plugin.zoo.specs import import_entries

__all__ = ["READERS", "Arrays", "ImageFiles", "Reader", "register_reader"]

# The order in which help and messages list them.
import_entries(__name__, __path__, first=("digits", "cifar", "imagenet", "folder", "npz", "hf", "python"))
