import io

import numpy as np
import pyarrow as pa
import pytest

from dynaxx.errors import CorruptData
from dynaxx.runlog.frames import END, entry, next_frame, read_frame, stamp


def messages(count=3):
    """A stream as Arrow writes it: its messages, stamped one by one."""
    schema = pa.schema([("x", pa.float64())], metadata={"dynaxx": entry(axes={})})
    buffer = io.BytesIO()
    head = bytearray(schema.serialize().to_pybytes())
    parts, skip = [head], len(head)
    stream = pa.ipc.new_stream(buffer, schema)
    for n in range(count):
        batch = pa.RecordBatch.from_arrays([pa.array(np.full(n + 1, np.nan))], schema=schema)
        stream.write_batch(batch, custom_metadata={"dynaxx": entry(rows=n + 1)})
        parts.append(bytearray(buffer.getbuffer()[skip:]))
        skip = 0
        buffer.seek(0)
        buffer.truncate()
    for part in parts:
        stamp(part)
    return [bytes(part) for part in parts]


def test_stamped_messages_are_read_one_after_the_other_and_by_arrow():
    parts = messages()
    data, at = b"".join(parts) + END, 0
    for n, part in enumerate(parts):
        frame = read_frame(data, at)
        assert (frame.start, frame.end) == (at, at + len(part))
        assert frame.facts.get("rows") == (n or None)
        at = frame.end
    with pytest.raises(CorruptData, match="no message"):
        read_frame(data, at)
    assert pa.ipc.open_stream(data).read_all().num_rows == 6


def test_every_flipped_bit_of_the_framing_is_noticed():
    for part in messages(1):
        body = read_frame(part, 0).body
        for bit in range(8 * body):
            broken = bytearray(part)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(CorruptData):
                read_frame(bytes(broken), 0)


def test_a_torn_message_is_told_from_a_broken_one():
    part = messages(1)[1]
    body = read_frame(part, 0).body
    for end in range(body, len(part)):
        assert read_frame(part[:end], 0).end is None
    for end in range(body):
        with pytest.raises(CorruptData, match="ends within"):
            read_frame(part[:end], 0)


def test_reading_goes_on_behind_what_is_broken():
    parts = messages()
    data = b"".join(parts)
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    assert [next_frame(data, start) for start in (0, 1, starts[1], starts[1] + 1)] == [
        0,
        *starts[1:2],
        starts[1],
        starts[2],
    ]
    assert next_frame(data, starts[3] + 1) is None
    noise = b"\xff" * 1003  # no alignment, and bytes that look like the beginning of a message
    assert next_frame(data[: starts[1] + 9] + noise + data[starts[2] :], starts[1]) == starts[1] + 9 + len(noise)
