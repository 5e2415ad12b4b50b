"""The events of a batch merged into one: a field that is unset in it is unset in each of them.

Found out for all at once, which fields few events have costs nothing for those that have none.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from protos import millstream_wire_v1_pb2 as wire


def _merging_batch() -> type[Message]:
    """EventBatch with one event instead of many: the same bytes parse as both, and here the events merge.

    https://protobuf.dev/programming-guides/encoding/#last-one-wins
    """
    label, kind = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.TYPE_MESSAGE
    event = FieldDescriptorProto(
        name="event", number=2, label=label, type=kind, type_name=f".{wire.Event.DESCRIPTOR.full_name}"
    )
    file = FileDescriptorProto(
        name="consumers/merging_batch.proto",
        package="millstream.sink.v1",
        dependency=[wire.DESCRIPTOR.name],
        syntax="proto3",
        message_type=[DescriptorProto(name="MergingBatch", field=[event])],
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("millstream.sink.v1.MergingBatch"))


_MergingBatch = _merging_batch()


def merged(raw: bytes) -> wire.Event:
    """All events of a serialized batch in one. Raises DecodeError.

    A field that says outright that it is nothing hides what another event has there, so `raw` should be canonical.
    """
    batch: Any = _MergingBatch.FromString(raw)
    event: wire.Event = batch.event
    return event
