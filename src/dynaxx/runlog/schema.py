"""How the columns of a log are written as an Arrow schema and a block of rows as an Arrow batch, and read back.

A segment has the fields `step` (int64), `wall` (float64, UTC seconds) and one per column: a float, or a fixed-size list
of floats over the column's axis; null where nothing was measured, which is not NaN. A field's metadata hold unit,
reduction and description; the schema's hold labels and weights of every axis once.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from dynaxx.core.records import Axis, Column
from dynaxx.runlog.frames import entry

KEY = "dynaxx"
CLOCK = Column(name="wall", unit="s", dtype="float64", about="UTC seconds since 1970 at which the row was made.")
_FIXED = (pa.field("step", pa.int64(), nullable=False), pa.field("wall", pa.float64(), nullable=False))


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """The Arrow schema of a segment with these columns.

    Args:
        columns: The columns, in order.

    Returns:
        The schema, with its framing not yet stamped.
    """
    axes: dict[str, Axis] = {}
    fields = [*_FIXED]
    for column in columns:
        facts: dict[str, Any] = {"unit": column.unit, "reduce": column.reduce, "about": column.about, "axis": None}
        kind = pa.float32() if column.dtype == "float32" else pa.float64()
        if column.axis is not None:
            facts["axis"] = _key(axes, column.axis)
            kind = pa.list_(pa.field("item", kind, nullable=False), len(column.axis))
        fields.append(pa.field(column.name, kind, nullable=True, metadata={KEY: json.dumps(facts)}))
    told = {key: {"name": a.name, "labels": a.labels, "weights": a.weights} for key, a in axes.items()}
    return pa.schema(fields, metadata={KEY: entry(axes=told)})


def _key(axes: dict[str, Axis], axis: Axis) -> str:
    """The key of an axis within a schema: its name, numbered where several axes share one."""
    key, number = axis.name, 1
    while axes.setdefault(key, axis) != axis:
        number += 1
        key = f"{axis.name}#{number}"
    return key


def columns_of(schema: pa.Schema, axes: dict[str, Any]) -> list[Column]:
    """The columns of a segment.

    Args:
        schema: The segment's Arrow schema.
        axes: What the schema's entry says of its axes.

    Returns:
        One column per field after `step`, `wall` included.
    """
    known = {
        key: Axis(name=told["name"], labels=tuple(told["labels"]), weights=tuple(told["weights"]))
        for key, told in axes.items()
    }
    columns = [CLOCK]
    for field in list(schema)[len(_FIXED) :]:
        facts = json.loads(field.metadata[KEY.encode()])
        axis = None if facts["axis"] is None else known[facts["axis"]]
        kind = field.type if axis is None else field.type.value_type
        columns.append(
            Column(
                name=field.name,
                axis=axis,
                unit=facts["unit"],
                reduce=facts["reduce"],
                dtype="float32" if kind == pa.float32() else "float64",
                about=facts["about"],
            )
        )
    return columns


def bits_of(valid: np.ndarray | None) -> np.ndarray | None:
    """The validity bits of a field's rows.

    Args:
        valid: bool of shape (rows,), False where nothing was measured; None: all was.

    Returns:
        uint8 of shape (⌈rows / 8⌉,), the lowest bit first; None where all was measured.
    """
    return None if valid is None or valid.all() else np.packbits(valid, bitorder="little")


def checksum(values: np.ndarray, bits: np.ndarray | None) -> str:
    """xxh3 of a field's rows: the bytes of the validity bits, where any row is null, then of the values.

    Args:
        values: Shape (rows,) or (rows, entries), contiguous.
        bits: What `bits_of` returned.

    Returns:
        16 hex digits.
    """
    state = xxhash.xxh3_64() if bits is None else xxhash.xxh3_64(bits.data)
    state.update(values.data)
    return state.hexdigest()


def array_of(kind: pa.DataType, values: np.ndarray, bits: np.ndarray | None) -> pa.Array:
    """Rows of one field as an Arrow array, without copying the values.

    Args:
        kind: The field's type.
        values: Shape (rows,) or (rows, entries), contiguous, in the type's number format.
        bits: What `bits_of` returned.

    Returns:
        The array.
    """
    rows, data = len(values), pa.py_buffer(values)
    mask, missing = (None, 0) if bits is None else (pa.py_buffer(bits), -1)  # -1: Arrow counts them
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, rows, [mask, data], missing)
    child = pa.Array.from_buffers(kind.value_type, values.size, [None, data], 0)
    return pa.Array.from_buffers(kind, rows, [mask], missing, children=[child])


def layout_of(message: pa.Message, schema: pa.Schema) -> tuple[tuple[int, int | None], ...]:
    """Where the fields of a batch lie.

    Args:
        message: The batch's message, verified.
        schema: Its schema.

    Returns:
        Per field the offsets of its values and of its validity bits, in bytes from the beginning of the message's
        body; None where it has no bits.
    """
    base = message.body.address
    places: list[tuple[int, int | None]] = []
    for array in pa.ipc.read_record_batch(message, schema).columns:
        first, last = array.buffers()[0], array.buffers()[-1]
        places.append((last.address - base, None if array.null_count == 0 else first.address - base))
    return tuple(places)
