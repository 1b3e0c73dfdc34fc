"""Users' own messages: .proto files and descriptor sets, and what is said of those that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.descriptors import (
    DescriptorError,
    compile_proto,
    find_message,
    read_descriptor_set,
)

TWO = 'syntax = "proto3"; package a.v1; message One { string x = 1; message In {} } message Two {}'


def proto(folder: Path, text: str, name: str = "a.proto") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_message_answers_to_its_full_name_and_to_its_last_one(tmp_path: Path) -> None:
    files = compile_proto(proto(tmp_path, TWO))
    assert find_message(files, "a.v1.One").full_name == "a.v1.One"
    assert find_message(files, "Two").full_name == "a.v1.Two"


def test_a_file_without_a_package_works_too(tmp_path: Path) -> None:
    files = compile_proto(proto(tmp_path, 'syntax = "proto3"; message One { string x = 1; }'))
    assert find_message(files, "One").full_name == "One"


def test_imports_are_found_beside_the_file_and_among_the_well_known_types(tmp_path: Path) -> None:
    proto(tmp_path, 'syntax = "proto3"; package b; message Other { int32 n = 1; }', "sub/b.proto")
    path = proto(
        tmp_path,
        'syntax = "proto3"; import "sub/b.proto"; import "google/protobuf/timestamp.proto"; '
        "message A { b.Other other = 1; google.protobuf.Timestamp at = 2; }",
    )
    found = find_message(compile_proto(path), "A")
    assert [f.message_type.full_name for f in found.fields] == [
        "b.Other", "google.protobuf.Timestamp",
    ]  # fmt: skip


@pytest.mark.parametrize("module", ["operator", "random", "types", "grpc_tools"])
def test_what_lies_where_a_command_is_typed_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    (tmp_path / f"{module}.py").write_text("raise SystemExit('this is not the standard library')")
    monkeypatch.chdir(tmp_path)
    assert find_message(compile_proto(proto(tmp_path, TWO)), "Two").full_name == "a.v1.Two"


def test_two_versions_of_a_message_do_not_meet(tmp_path: Path) -> None:
    old = compile_proto(proto(tmp_path, 'syntax = "proto3"; message M { string x = 1; }'))
    new = compile_proto(proto(tmp_path, 'syntax = "proto3"; message M { int32 y = 1; }'))
    assert find_message(old, "M").fields[0].name == "x"
    assert find_message(new, "M").fields[0].name == "y"


def test_a_descriptor_set_is_read_as_its_proto(tmp_path: Path) -> None:
    files = compile_proto(proto(tmp_path, TWO))
    (tmp_path / "set.bin").write_bytes(files.SerializeToString())
    assert read_descriptor_set(tmp_path / "set.bin") == files


def test_what_is_missing_or_broken_is_said_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(DescriptorError, match=r"nowhere\.proto does not exist"):
        compile_proto(tmp_path / "nowhere.proto")
    broken = proto(tmp_path, 'syntax = "proto3";\nmessage M { strung x = 1; }')
    with pytest.raises(DescriptorError, match=r"does not compile: .*a\.proto:2:13: \"strung\""):
        compile_proto(broken)
    with pytest.raises(DescriptorError, match=r"x\.proto (can't be read: File name|does not)"):
        compile_proto(tmp_path / ("x" * 300 + "x.proto"))
    with pytest.raises(DescriptorError, match=r"can't be read: .*null"):
        read_descriptor_set(tmp_path / "a\0.bin")
    with pytest.raises(DescriptorError, match=r"a\.bin can't be read: No such file"):
        read_descriptor_set(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(b"\xff\xff")
    with pytest.raises(DescriptorError, match="is not a descriptor set; write one with `protoc"):
        read_descriptor_set(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(DescriptorError, match="holds no files"):
        read_descriptor_set(tmp_path / "a.bin")


def test_a_message_that_is_not_there_or_ambiguous_is_said_with_those_there_are(
    tmp_path: Path,
) -> None:
    files = compile_proto(proto(tmp_path, TWO))
    with pytest.raises(DescriptorError, match=r"'Nope' is not there; there are: a\.v1\.One, a\.v1"):
        find_message(files, "Nope")
    files.file.extend(
        compile_proto(
            proto(tmp_path, 'syntax = "proto3"; package b; message One {}', "b.proto")
        ).file
    )
    with pytest.raises(DescriptorError, match=r"'One' is ambiguous; .*b\.One"):
        find_message(files, "One")
    assert find_message(files, "b.One").full_name == "b.One"


def test_a_set_without_its_imports_says_how_to_write_one_with(tmp_path: Path) -> None:
    files = compile_proto(
        proto(
            tmp_path,
            'syntax = "proto3"; import "google/protobuf/timestamp.proto"; '
            "message M { google.protobuf.Timestamp at = 1; }",
        )
    )
    del files.file[0]
    with pytest.raises(DescriptorError, match="written without --include_imports"):
        find_message(files, "M")
