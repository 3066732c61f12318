"""What lies in the file, byte by byte: keys, sealed values, the header and the records of namespaces.

docs/lmdb-format.md describes the whole.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Final, get_args

import attrs
import torch
from xxhash import xxh3_64_intdigest

from memcore.chunk import ChunkBatch
from memcore.compression import Compression
from memcore.errors import BackendError, ChunkShapeError, CorruptedError
from memcore.files import parse_json
from memcore.options import structure_options

VERSION: Final = 1
"""Of the format. Raised when a reader of the version before would misread what is written."""

HEADER: Final = b"memcore"
"""Key of the header."""

COUNTER: Final = b"memcore next number"
"""Key of the number that the next namespace gets. No kind of keys begins as these two."""

NAMESPACE: Final = b"n"
RECORD: Final = b"r"
UNFINISHED: Final = b"u"
BLOCK: Final = b"b"
VECTORS: Final = b"v"
PAYLOAD: Final = b"p"

_FORMAT: Final = "memcore lmdb"
_NUMBER: Final = struct.Struct(">cQ")
_ID: Final = struct.Struct(">cQQ")
_CHECKSUM: Final = struct.Struct("<Q")
_COUNTER: Final = struct.Struct("<Q")
_LENGTH: Final = struct.Struct("<I")
_LARGEST: Final = (1 << 63) - 1
_MOST_BYTES: Final = (1 << 32) - 1
"""Of a value: more LMDB does not take."""


def name_key(kind: bytes, name: str) -> bytes:
    """Return the key, 17 bytes, of what has a name: any name, of any length."""
    return kind + blake2b(name_bytes(name), digest_size=16).digest()


def name_bytes(name: str) -> bytes:
    """Return a name as UTF-8; a str may hold half a surrogate pair, which UTF-8 proper has no bytes for."""
    return name.encode("utf-8", "surrogatepass")


def number_key(kind: bytes, number: int) -> bytes:
    """Return the key, 9 bytes, of what has a number; also what the keys of all that belongs to it begin with."""
    return _NUMBER.pack(kind, number)


def id_key(kind: bytes, number: int, id: int) -> bytes:
    """Return the key, 17 bytes, of what belongs to a chunk of the namespace with this number."""
    return _ID.pack(kind, number, id)


def split_id_key(key: bytes | memoryview) -> tuple[int, int]:
    """Return number and id from a key that :func:`id_key` made.

    Raises:
        CorruptedError: it has another length.
    """
    if len(key) != _ID.size:
        raise CorruptedError(f"there is an entry with the key {bytes(key).hex()}, which is none of memcore's")
    _, number, id = _ID.unpack(key)
    return number, id


def unpack_counter(value: bytes | memoryview | None) -> int:
    """Return the number that the next namespace gets, from what was found under ``COUNTER``.

    Raises:
        CorruptedError: it is missing or damaged.
    """
    what = "the counter of namespaces"
    if value is None:
        raise CorruptedError(f"{what} is missing")
    content = unseal(value, what)
    number = _COUNTER.unpack(content)[0] if len(content) == _COUNTER.size else 0
    if not 1 <= number < _LARGEST:
        raise CorruptedError(f"{what} is no number of a namespace, in {len(content)} bytes")
    return int(number)


def keys_from(cursor: Any, prefix: bytes) -> Iterator[bytes]:
    """Yield the keys that begin with ``prefix``, ascending; the cursor stands on each in its turn."""
    found = cursor.set_range(prefix)
    while found and bytes(cursor.key()).startswith(prefix):
        yield bytes(cursor.key())
        found = cursor.next()


def seal(content: bytes) -> bytes:
    """Return the content with its checksum before it."""
    return _CHECKSUM.pack(xxh3_64_intdigest(content)) + content


def unseal(value: bytes | memoryview, what: str) -> memoryview:
    """Return the content of a sealed value, not copied.

    Raises:
        CorruptedError: the checksum is not that of the content; the message begins with ``what``.
    """
    view = memoryview(value)
    if len(view) < _CHECKSUM.size or _CHECKSUM.unpack_from(view)[0] != xxh3_64_intdigest(view[_CHECKSUM.size :]):
        raise CorruptedError(f"{what}: the checksum does not match")
    return view[_CHECKSUM.size :]


def write_header() -> bytes:
    """Return the header of a new file."""
    return json.dumps({"format": _FORMAT, "version": VERSION, "byte_order": "little"}).encode()


def check_header(value: bytes | memoryview | None, where: str) -> None:
    """Raise unless this is the header of a file that this version reads, on this machine.

    Args:
        value: what was found under ``HEADER``.
        where: the file, to begin messages with.

    Raises:
        CorruptedError: it is not.
        BackendError: the machine is big-endian.
    """
    if sys.byteorder != "little":
        raise BackendError(f"{where} holds little-endian numbers, and this machine is big-endian")
    try:
        header = parse_json(bytes(value)) if value is not None else None
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise CorruptedError(
            f"{where} is an LMDB file, but no memory of memcore's, or its header is damaged; name another folder, or "
            "restore it from a copy"
        )
    if header.get("version") != VERSION or header.get("byte_order") != "little":
        raise CorruptedError(
            f"{where} has version {header.get('version')!r} of the format ({header.get('byte_order')}-endian), and "
            f"this memcore reads version {VERSION} (little-endian); use the memcore that wrote it"
        )


def pack_named(name: str, content: bytes) -> bytes:
    """Return a sealed value that tells its own name: for records, whose keys are digests."""
    raw = name_bytes(name)
    return seal(_LENGTH.pack(len(raw)) + raw + content)


def unpack_name(value: bytes | memoryview) -> str:
    """Return the name from a value that :func:`pack_named` made, without looking at the rest.

    Raises:
        CorruptedError: there is none.
    """
    try:
        (length,) = _LENGTH.unpack_from(value, _CHECKSUM.size)
        first = _CHECKSUM.size + _LENGTH.size
        return bytes(value[first : first + length]).decode("utf-8", "surrogatepass")
    except (struct.error, ValueError) as error:
        raise CorruptedError(f"a record without a readable name: {error}") from error


def unpack_named(value: bytes | memoryview, what: str) -> bytes:
    """Return the content of a value that :func:`pack_named` made.

    Raises:
        CorruptedError: the checksum does not match; the message begins with ``what``.
    """
    content = unseal(value, what)
    length = _LENGTH.unpack_from(content)[0] if len(content) >= _LENGTH.size else len(content)
    if _LENGTH.size + length > len(content):
        raise CorruptedError(f"{what}: its name is longer than all of it")
    return bytes(content[_LENGTH.size + length :])


@attrs.frozen(kw_only=True)
class ChunkShape:
    """What all chunks of a namespace have in common.

    Attributes:
        vectors: ``V``, vectors per chunk.
        size: ``E``, numbers per vector.
        heads: ``H``, key/value heads.
        key_size: ``D``.
        value_size: ``Dv``.
        dtype: of keys and values, e.g. ``"bfloat16"``.
    """

    vectors: int
    size: int
    heads: int
    key_size: int
    value_size: int
    dtype: str

    @classmethod
    def of(cls, chunks: ChunkBatch) -> ChunkShape:
        """Return the shape of these chunks."""
        return cls(
            vectors=chunks.embeddings.shape[1],
            size=chunks.embeddings.shape[2],
            heads=chunks.keys.shape[1],
            key_size=chunks.keys.shape[3],
            value_size=chunks.values.shape[3],
            dtype=str(chunks.keys.dtype).removeprefix("torch."),
        )

    @property
    def vector_bytes(self) -> int:
        """Bytes of one chunk's vectors."""
        return self.vectors * self.size * torch.float32.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself.

        Raises:
            BackendError: this version of torch has none of that name.
        """
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise BackendError(
                f"torch {torch.__version__} has no dtype {self.dtype!r}, in which this namespace is kept"
            )
        return dtype

    def check(self, namespace: str, chunks: ChunkBatch) -> None:
        """Raise ChunkShapeError unless these chunks are of this shape."""
        embeddings, keys, values = chunks.embeddings.shape, chunks.keys.shape, chunks.values.shape
        found = (embeddings[1], embeddings[2], keys[1], keys[3], values[3], chunks.keys.dtype)
        if found != (self.vectors, self.size, self.heads, self.key_size, self.value_size, self.torch_dtype):
            other = ChunkShape.of(chunks)
            differing = [
                f"{field.name} {getattr(other, field.name)} instead of {getattr(self, field.name)}"
                for field in attrs.fields(ChunkShape)
                if getattr(other, field.name) != getattr(self, field.name)
            ]
            raise ChunkShapeError(
                f"the chunks do not fit what namespace {namespace!r} holds: they have {', '.join(differing)}"
            )


@attrs.frozen(kw_only=True)
class NamespaceRecord:
    """What is known of a namespace without looking at its chunks.

    Attributes:
        name: any str.
        number: what its keys begin with, never used again after it was dropped; 0 if it was never committed.
        next_id: id of the next chunk.
        width: tokens of the longest chunk it ever held, at least 1.
        count: chunks.
        tokens: tokens of all chunks together.
        shape: of every chunk.
        compression: how payloads are kept, as :data:`memcore.compression.Compression` says.
    """

    name: str
    number: int
    next_id: int
    width: int
    count: int
    tokens: int
    shape: ChunkShape
    compression: str

    def pack(self) -> bytes:
        """Return the value that is written: sealed JSON."""
        return seal(json.dumps(attrs.asdict(self)).encode())

    @classmethod
    def unpack(cls, value: bytes | memoryview, what: str = "a namespace") -> NamespaceRecord:
        """Return the record from what :meth:`pack` made.

        Raises:
            CorruptedError: it cannot be read; the message begins with ``what``.
        """
        content = unseal(value, what)
        try:
            record = structure_options(cls, parse_json(bytes(content)))
        except ValueError as error:
            raise CorruptedError(f"{what}: it is not described as version {VERSION} of the format wants it") from error
        if problem := record._problem():
            raise CorruptedError(f"{what}: it is described as nothing can be: {problem}")
        return record

    def _problem(self) -> str:
        """Return what cannot be, so that nothing is computed or reserved by it."""
        shape = self.shape
        if not (1 <= self.number < _LARGEST and 0 <= self.count <= self.next_id < _LARGEST and self.tokens >= 0):
            return f"number {self.number}, {self.count} chunks, {self.tokens} tokens, next id {self.next_id}"
        if self.compression not in get_args(Compression):
            return f"compression {self.compression!r}"
        sizes = (shape.heads, shape.key_size, shape.value_size)
        if self.width < 1 or min(shape.vectors, shape.size) < 1 or min(sizes) < 0 or max(sizes) > _MOST_BYTES:
            return f"chunks of {self.width} tokens, {shape}"
        if not shape.torch_dtype.is_floating_point:
            return f"keys and values of {shape.dtype}"
        per_token = torch.int64.itemsize + shape.heads * (shape.key_size + shape.value_size)
        if max(per_token * self.width, shape.vector_bytes) > _MOST_BYTES:
            return f"chunks of {self.width} tokens, {shape}, which are larger than a value can be"
        return ""
