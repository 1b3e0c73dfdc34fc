"""Users' own messages: from a `.proto` file or a descriptor set to a protobuf Descriptor.

Each call builds a descriptor pool of its own, so two streams may bring different versions of a
message of the same name. A `.proto` is compiled in memory at start by the protoc of grpcio-tools;
nothing is generated on disk and no Python is written.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError

__all__ = [
    "DescriptorError", "compile_proto", "find_message", "read_descriptor_set", "unreadable",
]  # fmt: skip


class DescriptorError(Exception):
    """A message declaration can't be used; the text says where and why."""


def compile_proto(path: Path) -> descriptor_pb2.FileDescriptorSet:
    """Compile a `.proto` and all that it imports.

    Imports are looked up in the file's own directory and among protobuf's well-known types.
    Raises DescriptorError with protoc's own message.
    """
    try:
        there = path.is_file()
    except OSError as error:  # a name that no file can have, a directory that is shut
        raise DescriptorError(f"{path} can't be read: {error.strerror}") from error
    if not there:
        raise DescriptorError(f"{path} does not exist")
    from grpc_tools import _proto as well_known

    include = Path(next(iter(well_known.__path__)))
    with tempfile.TemporaryDirectory(prefix="headrace-protoc-") as folder:
        out = Path(folder) / "set.bin"
        # A process of its own: protoc inside ours prints its errors past sys.stderr.
        done = subprocess.run(
            [
                sys.executable,
                # Not from here: a types.py or random.py of the user's would be run in its place.
                *("-P", "-m", "grpc_tools.protoc"),
                f"-I{path.parent}",
                f"-I{include}",
                "--include_imports",
                f"--descriptor_set_out={out}",
                str(path),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise DescriptorError(f"{path} does not compile: {done.stderr.strip()}")
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())


def read_descriptor_set(path: Path) -> descriptor_pb2.FileDescriptorSet:
    """Read what `protoc --include_imports --descriptor_set_out` (or `buf build -o`) wrote."""
    try:
        found = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    except OSError as error:
        raise DescriptorError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in its name
        raise DescriptorError(f"{path} can't be read: {error}") from error
    except DecodeError as error:
        raise DescriptorError(
            f"{path} is not a descriptor set; write one with "
            "`protoc --include_imports --descriptor_set_out=FILE`"
        ) from error
    if not found.file:
        raise DescriptorError(f"{path} holds no files")
    return found


def find_message(files: descriptor_pb2.FileDescriptorSet, message: str) -> Descriptor:
    """The message of that full name (`package.Message`), or of that last name if only one has it.

    Raises DescriptorError, naming the messages there are.
    """
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        try:
            pool.Add(file)
        except TypeError as error:
            raise DescriptorError(
                f"{file.name} can't be linked: {error}. Was the descriptor set written without "
                "--include_imports?"
            ) from error
    names = [
        f"{file.package}.{m.name}".lstrip(".")
        for file in files.file
        if not file.package.startswith("google.protobuf")
        for m in file.message_type
    ]
    found = [n for n in names if n == message] or [n for n in names if n.endswith("." + message)]
    if len(found) != 1:
        problem = "is ambiguous" if found else "is not there"
        raise DescriptorError(f"message {message!r} {problem}; there are: {', '.join(names)}")
    return pool.FindMessageTypeByName(found[0])


def unreadable(file: FileDescriptor) -> str | None:
    """Why inserters can't read the messages of a file: ptars, which decodes there, panics at it."""
    for one in _with_imports(file):
        said = descriptor_pb2.FileDescriptorProto()
        one.CopyToProto(said)
        if said.syntax == "editions":
            return (
                f"{one.name} is written in an edition of protobuf, which inserters can't read; "
                'write it with syntax = "proto3" or "proto2"'
            )
        # In proto2 they may be.
        alike = _alike(one.message_types_by_name.values()) if said.syntax == "proto3" else None
        if alike is not None:
            return (
                f"inserters can't read {one.name}, where the fields {alike[0].full_name} and "
                f"{alike[1].name} differ in capitals and underscores only; rename one of them"
            )
    return None


def _with_imports(file: FileDescriptor) -> Iterator[FileDescriptor]:
    """A file and all that it imports, each once."""
    found, todo = {file.name}, [file]
    while todo:
        file = todo.pop()
        yield file
        todo += [other for other in file.dependencies if other.name not in found]
        found.update(other.name for other in file.dependencies)


def _alike(messages: Iterable[Descriptor]) -> tuple[FieldDescriptor, FieldDescriptor] | None:
    """Two fields of a message, at any depth, that differ in capitals and underscores only."""
    for message in messages:
        seen: dict[str, FieldDescriptor] = {}
        for one in message.fields:
            other = seen.setdefault(one.name.replace("_", "").lower(), one)
            if other is not one:
                return other, one
        if (found := _alike(message.nested_types)) is not None:
            return found
    return None
