import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TracerouteTest(_message.Message):
    __slots__ = ("timestamp", "account_id", "device_id", "test_id", "target", "colo", "hops", "error")
    class Hop(_message.Message):
        __slots__ = ("address", "rtts_ms", "loss")
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        RTTS_MS_FIELD_NUMBER: _ClassVar[int]
        LOSS_FIELD_NUMBER: _ClassVar[int]
        address: str
        rtts_ms: _containers.RepeatedScalarFieldContainer[float]
        loss: float
        def __init__(self, address: _Optional[str] = ..., rtts_ms: _Optional[_Iterable[float]] = ..., loss: _Optional[float] = ...) -> None: ...
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    TEST_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    COLO_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    timestamp: _timestamp_pb2.Timestamp
    account_id: str
    device_id: str
    test_id: str
    target: str
    colo: str
    hops: _containers.RepeatedCompositeFieldContainer[TracerouteTest.Hop]
    error: str
    def __init__(self, timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., account_id: _Optional[str] = ..., device_id: _Optional[str] = ..., test_id: _Optional[str] = ..., target: _Optional[str] = ..., colo: _Optional[str] = ..., hops: _Optional[_Iterable[_Union[TracerouteTest.Hop, _Mapping]]] = ..., error: _Optional[str] = ...) -> None: ...
