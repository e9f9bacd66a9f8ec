"""Arrays of strings as two arrays that NumPy writes without pickle, and without a change.

One holds the bytes of all strings in UTF-8, the other the length of each in bytes. NumPy's own
types for text cut NUL off the end of a string, and make each as wide as the longest.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

TEXT, LENGTHS = ".text", ".lengths"
"""What the name of an array is extended by, for each of the two."""


def stored(array: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The arrays that stand for one, each with what its name is extended by; numbers as they are.

    Example:
        >>> [(end, part.tolist()) for end, part in stored(np.array(["a", "ä"], dtype=object))]
        [('.text', [97, 195, 164]), ('.lengths', [1, 2])]
    """
    if array.dtype.kind not in "OU":
        yield "", array
        return
    texts = [str(text).encode("utf-8") for text in array.flat]
    yield TEXT, np.frombuffer(b"".join(texts), np.uint8)
    yield LENGTHS, np.array([len(text) for text in texts], np.int64).reshape(array.shape)


def joined(data: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Strings from the bytes of all and their lengths; objects, of the lengths' shape.

    Raises:
        ValueError: They do not belong together, or the bytes are not UTF-8.
    """
    whole, sizes = data.tobytes(), lengths.ravel().tolist()
    is_whole = lengths.dtype.kind in "iu" and min(sizes, default=0) >= 0
    if not is_whole or sum(sizes) != len(whole):
        raise ValueError(f"strings of {len(whole)} bytes that do not have the lengths stated")
    texts = np.empty(len(sizes), dtype=object)
    end = 0
    for place, size in enumerate(sizes):
        texts[place] = whole[end : end + size].decode("utf-8")
        end += size
    return texts.reshape(lengths.shape)
