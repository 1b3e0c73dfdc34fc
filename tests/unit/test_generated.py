"""ingest/gen is what `make proto` writes from proto/, and proto/ keeps buf's standard rules.

buf itself is not on PyPI; what of its STANDARD rules can be told from descriptors is checked here:
packages and their directories, names, zero values of enums, unused imports, and comments.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "proto").rglob("*.proto"))
GENERATED = ROOT / "ingest" / "gen"

each = pytest.mark.parametrize("path", PROTOS, ids=lambda p: p.stem)


def protoc(*args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", *args,
         *(str(p.relative_to(ROOT / "proto")) for p in PROTOS)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # protoc warns of unused imports


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Each file's descriptor, with the places of its comments."""
    out = tmp_path_factory.mktemp("proto") / "set.bin"
    protoc(f"--descriptor_set_out={out}", "--include_source_info")
    found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    return {file.name: file for file in found.file}


def test_the_generated_messages_are_those_of_the_protos(tmp_path: Path) -> None:
    """If this fails: `make proto`, and commit ingest/gen."""
    protoc(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    fresh = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*_pb2.py*")}
    checked_in = {p.relative_to(GENERATED): p.read_text() for p in GENERATED.rglob("*_pb2.py*")
                  if p.suffix in (".py", ".pyi")}  # fmt: skip
    assert fresh.keys() == checked_in.keys()
    for name, text in fresh.items():
        assert checked_in[name] == text, f"{name} is stale: run `make proto`"
    assert len(fresh) == 2 * len(PROTOS)


def test_make_proto_runs_the_protoc_that_this_test_runs() -> None:
    recipe = (ROOT / "Makefile").read_text().split("proto: ", 2)[-1]
    assert "-m grpc_tools.protoc -Iproto --python_out=ingest/gen --pyi_out=ingest/gen" in recipe


@each
def test_a_proto_is_proto3_in_a_versioned_package_of_its_directory(
    path: Path, files: dict[str, descriptor_pb2.FileDescriptorProto]
) -> None:
    name = str(path.relative_to(ROOT / "proto"))
    file = files[name]
    assert file.syntax == "proto3"
    assert re.fullmatch(r"([a-z][a-z0-9_]*\.)+v[1-9][0-9]*", file.package)
    assert file.package.replace(".", "/") == str(Path(name).parent)
    assert re.fullmatch(r"[a-z][a-z0-9_]*\.proto", path.name)


@each
def test_names_are_those_of_the_style_guide(
    path: Path, files: dict[str, descriptor_pb2.FileDescriptorProto]
) -> None:
    file = files[str(path.relative_to(ROOT / "proto"))]
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages += [m for m in message.nested_type if not m.options.map_entry]
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name), message.name
        for field in message.field:
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name), field.name
            assert field.name not in ("descriptor",)
        for enum in message.enum_type:
            check_enum(enum)
    for enum in file.enum_type:
        check_enum(enum)
    assert not file.service


def check_enum(enum: descriptor_pb2.EnumDescriptorProto) -> None:
    prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"
    assert not enum.options.allow_alias
    assert enum.value[0].number == 0
    assert enum.value[0].name == prefix + "UNSPECIFIED"
    assert all(value.name.startswith(prefix) for value in enum.value)


@each
def test_imports_are_used_sorted_and_neither_public_nor_weak(
    path: Path, files: dict[str, descriptor_pb2.FileDescriptorProto]
) -> None:
    file = files[str(path.relative_to(ROOT / "proto"))]
    assert not file.public_dependency
    assert not file.weak_dependency
    assert list(file.dependency) == sorted(file.dependency)


@each
def test_every_message_says_what_it_is(
    path: Path, files: dict[str, descriptor_pb2.FileDescriptorProto]
) -> None:
    file = files[str(path.relative_to(ROOT / "proto"))]
    commented = {tuple(place.path) for place in file.source_code_info.location
                 if place.leading_comments.strip()}  # fmt: skip
    assert {(4, i) for i in range(len(file.message_type))} <= commented
