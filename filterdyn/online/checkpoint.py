"""Files of arrays that are written whole or not at all, and read only if every bit is right.

A file (or what is kept elsewhere as bytes) is a line that says what it is, the SHA-256 and the length of
a manifest, the manifest in JSON, and the arrays in NumPy's format. Nothing in it is ever executed or
unpickled.
"""

import functools
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import numpyro.distributions as dist

FORMAT = 1
_MAGIC = b"filterdyn checkpoint\n"
_HEAD = len(_MAGIC) + 64 + 16
_MOST_MANIFEST = 2**24


def fingerprint(*parts: Any) -> str:
    """A number for a model and a filter: of their types, settings and arrays. Functions enter by their
    names; addresses in memory do not."""
    return hashlib.sha256(_described(parts)).hexdigest()


def _described(tree: Any) -> bytes:
    # (A distribution lists its fields in the order of a set, which is another in every process.)
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, dist.Distribution))
    found = [_without_addresses(str(structure)).encode()]
    for leaf in leaves:
        if isinstance(leaf, dist.Distribution):
            kind = type(leaf)
            names = sorted({*kind.gather_pytree_data_fields(), *kind.gather_pytree_aux_fields()})
            fields = [(name, getattr(leaf, name, None)) for name in names]
            described = [name.encode() + _described(value) for name, value in fields]
            found.extend([kind.__qualname__.encode(), *described])
        elif hasattr(leaf, "dtype"):
            array = np.asarray(leaf)
            found.append(f"{array.dtype}{array.shape}".encode())
            found.append(np.ascontiguousarray(array).tobytes())
        else:
            found.append(_without_addresses(repr(leaf)).encode())
    return b"".join(hashlib.sha256(part).digest() for part in found)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def write(
    path: str | os.PathLike[str],
    kind: str,
    arrays: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    generations: int,
) -> None:
    """Write the arrays and the `facts` (JSON) beside them. Whenever the process dies, `path` holds the
    old file or the new one; `path.1`, `path.2`, ... are the ones before, up to `generations` in all."""
    path = Path(path)
    content = packed(kind, arrays, facts)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _rotate(path, generations)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def packed(kind: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    """What `write` writes, for those who keep it elsewhere than in a file."""
    blobs = {name: _blob(np.asarray(a)) for name, a in arrays.items()}
    entries = {
        name: dict(
            shape=list(np.shape(arrays[name])),
            dtype=str(np.asarray(arrays[name]).dtype),
            bytes=len(blob),
            sha256=hashlib.sha256(blob).hexdigest(),
        )
        for name, blob in blobs.items()
    }
    manifest = json.dumps(
        dict(
            format=FORMAT,
            version=_version(),
            kind=kind,
            facts=dict(facts),
            arrays=entries,
        )
    ).encode()
    digest = hashlib.sha256(manifest).hexdigest().encode()
    return b"".join([_MAGIC, digest, f"{len(manifest):016d}".encode(), manifest, *blobs.values()])


@functools.cache
def _version() -> str:
    return version("filterdyn")


def _blob(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def _rotate(path: Path, generations: int) -> None:
    """Older files move up by one; `path` itself stays until the new one takes its place."""
    older = [path, *(path.with_name(f"{path.name}.{k}") for k in range(1, generations))]
    for k in range(generations - 1, 0, -1):
        if not older[k - 1].exists():
            continue
        if k > 1:
            os.replace(older[k - 1], older[k])
            continue
        spare = path.with_name(f".{path.name}.spare")
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
        except OSError:  # a file system without links
            shutil.copyfile(path, spare)
        os.replace(spare, older[1])


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Reader:
    """A checkpoint that has been read, from a file or from bytes, and found whole.

    **Raises:** `ValueError` for one that is foreign, of a newer format, of another kind, truncated,
    changed or larger than `max_bytes`; it names the first difference.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, kind: str, max_bytes: int):
        if isinstance(source, bytes):
            self.name = f"of {len(source)} bytes"
            content, size = source, len(source)
        else:
            self.name = repr(os.fspath(source))
            with open(source, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = b"" if size > max_bytes else file.read(max_bytes + 1)
        if max(size, len(content)) > max_bytes:
            self.refuse(f"it has {size} bytes, more than `max_bytes` {max_bytes}")
        manifest, start = self._manifest(content)
        try:
            self.facts, entries = self._checked(manifest, kind)
            self._arrays = self._read(content, start, entries)
        except (KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            self.refuse(f"its manifest is malformed ({type(error).__name__}: {error})")

    def refuse(self, why: str) -> NoReturn:
        raise ValueError(f"checkpoint {self.name} is refused: {why}")

    def array(self, name: str, shape: tuple[int, ...] | None, dtype: Any) -> np.ndarray:
        """An array that must be there, of this shape (`None`: any) and type."""
        if name not in self._arrays:
            self.refuse(f"array `{name}` is missing")
        found = self._arrays[name]
        expected = found.shape if shape is None else tuple(shape)
        if found.shape != expected or found.dtype != np.dtype(dtype):
            self.refuse(
                f"array `{name}` is {found.dtype} of shape {found.shape}; expected {np.dtype(dtype)} of "
                f"shape {expected}"
            )
        return found

    def has(self, name: str) -> bool:
        return name in self._arrays

    def fact(self, name: str) -> Any:
        if name not in self.facts:
            self.refuse(f"its manifest does not say `{name}`")
        return self.facts[name]

    def expect(self, name: str, expected: Any) -> None:
        if self.fact(name) != expected:
            self.refuse(f"its {name} is {self.fact(name)!r}; expected {expected!r}")

    def _manifest(self, content: bytes) -> tuple[Any, int]:
        if content[: len(_MAGIC)] != _MAGIC:
            self.refuse(f"it begins with {content[:21]!r} and not with {_MAGIC!r}")
        if len(content) < _HEAD:
            self.refuse(f"it ends after {len(content)} bytes, within its head")
        digest, length = content[len(_MAGIC) : _HEAD - 16], content[_HEAD - 16 : _HEAD]
        if not length.isdigit() or int(length) > _MOST_MANIFEST:
            self.refuse(f"the length of its manifest is {length!r}")
        start = _HEAD + int(length)
        manifest = content[_HEAD:start]
        if len(content) < start:
            self.refuse(f"it ends after {len(content)} bytes, within its manifest")
        if hashlib.sha256(manifest).hexdigest().encode() != digest:
            self.refuse("the SHA-256 of its manifest differs")
        try:
            return json.loads(manifest), start
        except (ValueError, RecursionError) as error:
            self.refuse(f"its manifest is no JSON ({error})")

    def _checked(self, manifest: Any, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        if manifest["format"] != FORMAT:
            self.refuse(
                f"its format is {manifest['format']!r} (written by filterdyn "
                f"{manifest.get('version')!r}); this version reads {FORMAT}"
            )
        if manifest["kind"] != kind:
            self.refuse(f"it holds {manifest['kind']!r}; expected {kind!r}")
        facts, arrays = manifest["facts"], manifest["arrays"]
        if not (isinstance(facts, dict) and isinstance(arrays, dict)):
            raise TypeError("its parts are no tables")
        return facts, arrays

    def _read(self, content: bytes, start: int, entries: dict[str, Any]) -> dict[str, np.ndarray]:
        total = start + sum(entry["bytes"] for entry in entries.values())
        if total != len(content):
            self.refuse(f"it has {len(content)} bytes; expected {total}")
        arrays = {}
        for name, entry in entries.items():
            blob = content[start : start + entry["bytes"]]
            start += entry["bytes"]
            if hashlib.sha256(blob).hexdigest() != entry["sha256"]:
                self.refuse(f"the SHA-256 of array `{name}` differs")
            try:
                array = np.lib.format.read_array(io.BytesIO(blob), allow_pickle=False)
            except (ValueError, EOFError) as error:
                self.refuse(f"array `{name}` cannot be read ({error})")
            if list(array.shape) != entry["shape"] or str(array.dtype) != entry["dtype"]:
                self.refuse(f"array `{name}` is not what its manifest says")
            arrays[name] = array
        return arrays
