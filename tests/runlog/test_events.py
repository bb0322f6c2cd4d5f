import errno
import os

import pytest

from dynaxx.runlog import events
from dynaxx.runlog.events import EventFile, EventReader
from dynaxx.runlog.sealed import seal


def test_a_line_torn_by_a_full_disk_is_written_again_on_its_own(tmp_path, monkeypatch):
    file, reader = EventFile(tmp_path), EventReader(tmp_path)
    file.append(seal({"step": 1}))
    original = events.write_all

    def torn(descriptor, data):
        os.write(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(events, "write_all", torn)
    with pytest.raises(OSError, match="full"):
        file.append(seal({"step": 2}))
    reader.extend()
    assert reader.tail is not None
    monkeypatch.setattr(events, "write_all", original)
    file.append(seal({"step": 2}))
    file.sync()
    file.close()
    reader.extend()
    assert [event["step"] for event in reader.events] == [1, 2]
    assert ([note.what for note in reader.notes], reader.tail, reader.problems) == (["torn line"], None, [])


def test_no_events_are_no_problem(tmp_path):
    reader = EventReader(tmp_path)
    reader.extend()
    assert (reader.events, reader.problems, reader.notes, reader.tail) == ([], [], [], None)
