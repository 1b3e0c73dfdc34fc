import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HttpTest(_message.Message):
    __slots__ = ("timestamp", "account_id", "device_id", "test_id", "target", "colo", "status_code", "dns_ms", "connect_ms", "tls_ms", "ttfb_ms", "total_ms", "error")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    TEST_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    COLO_FIELD_NUMBER: _ClassVar[int]
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    DNS_MS_FIELD_NUMBER: _ClassVar[int]
    CONNECT_MS_FIELD_NUMBER: _ClassVar[int]
    TLS_MS_FIELD_NUMBER: _ClassVar[int]
    TTFB_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    timestamp: _timestamp_pb2.Timestamp
    account_id: str
    device_id: str
    test_id: str
    target: str
    colo: str
    status_code: int
    dns_ms: float
    connect_ms: float
    tls_ms: float
    ttfb_ms: float
    total_ms: float
    error: str
    def __init__(self, timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., account_id: _Optional[str] = ..., device_id: _Optional[str] = ..., test_id: _Optional[str] = ..., target: _Optional[str] = ..., colo: _Optional[str] = ..., status_code: _Optional[int] = ..., dns_ms: _Optional[float] = ..., connect_ms: _Optional[float] = ..., tls_ms: _Optional[float] = ..., ttfb_ms: _Optional[float] = ..., total_ms: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...
