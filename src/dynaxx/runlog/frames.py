"""Arrow messages that carry the checksum of their own framing, so that no broken byte ever reaches Arrow's parser.

An encapsulated message of an Arrow stream is `0xFFFFFFFF, int32 size, size bytes of metadata, body`. The metadata hold
a user entry `{"dynaxx":1,"frame":"<16 hex digits>", ...}`: the xxh3 of prefix and metadata with these digits as zeros.
Arrow itself has no checksum, and a flipped bit in an offset makes its readers return wrong numbers or fail.
"""

import json
import mmap
import struct
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import xxhash

from dynaxx.errors import CorruptData

MARK = '{"dynaxx":1,"frame":"'
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_ZEROS = b"0" * 16
_PREFIX = struct.Struct("<Ii")
_REACH = 2**20


class Torn(CorruptData):
    """The file ends within a message: what a killed process leaves, or a write in progress."""


def entry(**facts: Any) -> str:
    """The user entry of a message before it is stamped.

    Args:
        facts: What it says besides.

    Returns:
        JSON with zeros for the checksum.
    """
    return json.dumps({"dynaxx": 1, "frame": _ZEROS.decode(), **facts}, separators=(",", ":"))


def stamp(message: bytearray) -> str:
    """Write the checksum of the framing into a message.

    Args:
        message: One encapsulated message, changed in place.

    Returns:
        The 16 hex digits.
    """
    size = _PREFIX.size + _PREFIX.unpack_from(message)[1]
    place = message.index(MARK.encode(), 0, size) + len(MARK)
    digits = xxhash.xxh3_64_hexdigest(memoryview(message)[:size])
    message[place : place + 16] = digits.encode()
    return digits


@dataclass(frozen=True, slots=True)
class Frame:
    """One message whose framing matches its checksum.

    Args:
        start: Offset of the message in bytes.
        body: Offset of its body.
        end: Offset of the first byte after it; None: the file ends within the body.
        digits: The checksum of its framing.
        facts: Its user entry.
        message: The message, without a copy; None where the body is torn.
    """

    start: int
    body: int
    end: int | None
    digits: str
    facts: dict[str, Any]
    message: pa.Message | None


def read_frame(data: mmap.mmap | bytes, start: int) -> Frame:
    """The message at an offset.

    Args:
        data: The file.
        start: Offset in bytes.

    Returns:
        The frame.

    Raises:
        Torn: The file ends within its prefix or its metadata.
        CorruptData: No message with a matching checksum stands there.
    """
    if len(data) - start < _PREFIX.size:
        raise Torn("the file ends within a message's prefix")
    mark, size = _PREFIX.unpack_from(data, start)
    body = start + _PREFIX.size + size
    if mark != 0xFFFFFFFF or size <= 0:
        raise CorruptData("no message begins here")
    if body > len(data):
        raise Torn("the file ends within a message's metadata")
    block = bytearray(data[start:body])
    place = block.find(MARK.encode())
    digits = bytes(block[place + len(MARK) : place + len(MARK) + 16])
    block[place + len(MARK) : place + len(MARK) + 16] = _ZEROS
    if place < 0 or xxhash.xxh3_64_hexdigest(block).encode() != digits:
        raise CorruptData("the framing of a message does not match its checksum")
    facts = json.loads(block[place : block.index(b"\0", place)].decode())
    try:
        message = pa.ipc.read_message(pa.py_buffer(data).slice(start))
    except (OSError, pa.ArrowInvalid):  # its checksum holds, so only the end of the file can be in the way
        return Frame(start, body, None, digits.decode(), facts, None)
    end = body + (message.body.size if message.body is not None else 0)
    return Frame(start, body, end, digits.decode(), facts, message)


def next_frame(data: mmap.mmap | bytes, start: int) -> int | None:
    """Where the first message at or after an offset begins; how reading goes on behind a broken one.

    Args:
        data: The file.
        start: Offset in bytes.

    Returns:
        Offset of a message whose framing matches its checksum; None: there is none.
    """
    found = start
    while (found := data.find(MARK.encode(), found)) >= 0:
        prefix = found
        # 0xFFFFFFFF can stand within the metadata too; the message begins at one of the few before its entry.
        while (prefix := data.rfind(END[:4], max(start, found - _REACH), prefix)) >= 0:
            try:
                read_frame(data, prefix)
            except CorruptData:
                continue
            return prefix
        found += len(MARK)
    return None
