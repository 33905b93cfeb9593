"""Training files on the store's shelf: checked line by line before they are kept.

Here: keep_examples, PURPOSE. Not here: what makes a file sound (dataset.py), where it rests.
"""

from typing import BinaryIO

from adapters_store.files import FileRecord, FileShelf
from training.dataset import check_dataset

PURPOSE = "fine-tune"  # as OpenAI calls it
MAX_FILENAME = 255


def keep_examples(shelf: FileShelf, file: BinaryIO, filename: str) -> FileRecord:
    """Keeps a JSONL file, read from where it stands, once each of its lines was found sound.

    Raises InvalidDataset, which numbers the lines at fault, Unavailable, OSError.
    """
    start = file.tell()
    check_dataset(file).require_sound()
    file.seek(start)
    return shelf.add(file, filename=filename[-MAX_FILENAME:], purpose=PURPOSE)
