"""Folders that are whole or not there.

A folder is filled under a temporary name, every file is listed with its size and SHA-256 in a manifest, all of it is
flushed to the disk, and then it takes its name. So a folder with that name was complete once, and `damage` says
whether it still is.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


MANIFEST = "manifest.json"
FORMAT = 1  # of what a checkpoint holds; a later one is refused
PARTIAL, FORMER = "partial", "former"


def replace_folder(final: Path, write: Callable[[Path], None], listed: bool = False) -> Path:
    """`write(folder)` fills a temporary folder, which then takes the place of the final one; `listed`: with a
    manifest. If it cannot be written, what was there is still there, and what was begun is gone."""
    partial, former = beside(final, PARTIAL), beside(final, FORMER)
    try:
        for leftover in (partial, former):
            remove(leftover)
        partial.mkdir(parents=True)
        write(partial)
        if listed:
            write_manifest(partial)
        for file in partial.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes for its owner only
            flush(file)
        flush(partial)
        if final.exists():
            os.rename(final, former)
        os.rename(partial, final)
        flush(final.parent)
    except (OSError, SafetensorError) as error:
        raise unwritten(final, partial, error) from error
    shutil.rmtree(former, ignore_errors=True)
    return final


def beside(final: Path, what: str) -> Path:
    return final.with_name(f".{final.name}.{what}")


def remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def flush(path: Path) -> None:
    """Onto the disk: a rename must not outlive a loss of power that its content does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unwritten(final: Path, partial: Path, error: Exception) -> OSError:
    """What went wrong, with the bytes that were written and those that are free; and no trace of the attempt."""
    written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file()) if partial.is_dir() else 0
    shutil.rmtree(partial, ignore_errors=True)
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    free = ""
    try:
        free = f", {shutil.disk_usage(final.parent).free:,} bytes are free"
    except OSError:
        pass  # the disk itself may be gone
    return OSError(f"{final} could not be written: {words} (after {written:,} bytes{free})")


def recover(folder: Path) -> None:
    """After a death in the middle: what was renamed last gets its name back, and what was begun is removed."""
    for former in folder.glob(f".*.{FORMER}"):
        final = former.with_name(former.name[1:].removesuffix(f".{FORMER}"))
        shutil.rmtree(former) if final.exists() else os.rename(former, final)
    for partial in folder.glob(f".*.{PARTIAL}"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# Manifests


def write_manifest(folder: Path) -> None:
    files = {file.name: {"bytes": file.stat().st_size, "sha256": digest(file)} for file in sorted(folder.iterdir())}
    content = json.dumps({"format": FORMAT, "files": files}, indent=1)
    (folder / MANIFEST).write_text(content, encoding="utf-8")


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that was written with a manifest; None if it is as it was."""
    try:
        files = listed_in(folder)
        there = {file.name for file in folder.iterdir()} - {MANIFEST}
        if there != files.keys():
            missing, extra = sorted(files.keys() - there), sorted(there - files.keys())
            return f"{', '.join(missing)} missing" if missing else f"{', '.join(extra)} does not belong to it"
        for name, (size, _) in files.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes, and was written with {size}"
        for name, (_, sha256) in files.items():
            if digest(folder / name) != sha256:
                return f"{name} has other bytes than were written"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def listed_in(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file, by the manifest; a ValueError where it is none that this version writes."""
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"it has no {MANIFEST}")
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        written = content["format"]
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    if written != FORMAT:
        raise ValueError(f"it was written in format {written!r}, and this version reads {FORMAT}")
    return files
