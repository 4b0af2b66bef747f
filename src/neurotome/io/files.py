"""Which files hold images and labels: suffixes, names without them, one listing of a folder, and what a file can hold."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from neurotome.errors import ImageError

OUTPUT_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".zarr")
SUFFIXES = (*OUTPUT_SUFFIXES, ".h5", ".hdf5", ".nii", ".nii.gz", ".nrrd", ".mrc", ".bmp", ".jpg", ".jpeg")
"""What is read as an image, in any case; labels may have all but the lossy .jpg and .jpeg."""

GREY_DTYPES = ("uint8", "uint16", "float32")

DOUBLE_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.zarr", ".nii.gz")


def find_suffix(path: Path) -> str:
    """Returns the suffix by which the format of a file is known, in lower case: `.nii.gz`, `.ome.tif`, `.png`."""
    name = path.name.lower()
    return next((suffix for suffix in DOUBLE_SUFFIXES if name.endswith(suffix)), path.suffix.lower())


def name_image(path: Path) -> str:
    """Returns the name of an image: that of its file without the suffix, `.ome.tif` and `.nii.gz` being one."""
    return path.name[: len(path.name) - len(find_suffix(path))]


def split_inner(path: Path) -> tuple[Path, str]:
    """Splits `file.h5:/path/in/file` into the file and the path within it, "" if none is given."""
    for suffix in (".h5", ".hdf5"):
        head, colon, inner = str(path).rpartition(f"{suffix}:")
        if colon:
            return Path(f"{head}{suffix}"), inner
    return path, ""


def list_images(folder: Path) -> list[Path]:
    """Returns the images in a folder, sorted by name; dot files are none (macOS leaves `._name` beside what it copies)."""
    paths = (path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES) and not path.name.startswith("."))
    return sorted(path for path in paths if path.is_file() or path.suffix.lower() == ".zarr")


def find_image(folder: Path, image_id: str) -> Path:
    """Returns the file of an image, `<folder>/<image_id>` with a known suffix; none or several are an ImageError."""
    wanted = _normalize(image_id)
    paths = list_images(folder) if folder.is_dir() else []
    matching = [path for path in paths if wanted in (_normalize(name_image(path)), _normalize(path.stem))]
    if len(matching) == 1:
        return matching[0]
    expected = f"expected one file {folder / image_id} with suffix {', '.join(SUFFIXES)}"
    if matching:
        raise ImageError(f"{', '.join(path.name for path in matching)} all exist; {expected}. Remove the others.")
    if Path(image_id).suffix.lower() in SUFFIXES:
        raise ImageError(f"{expected}; names are given without suffix: {name_image(Path(image_id))}.")
    near = sorted(path.name for path in folder.iterdir() if _normalize(path.stem) == wanted) if folder.is_dir() else []
    raise ImageError(f"{expected}; found {', '.join(near) or 'nothing of that name'}. Add or convert the file.")


def check_claim(path: Path, claimed: int, ratio: int) -> None:
    """Raises an `ImageError` if a file, packed at most to one `ratio`-th, cannot hold the bytes of pixels it claims."""
    size = path.stat().st_size
    if claimed > ratio * size:
        raise ImageError(
            f"{path}: the header claims {claimed} bytes of pixels, but the file has {size} bytes, which "
            "cannot hold them; it is damaged. Copy or export it again."
        )


def describe_suffix(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> str:
    """Says that a file has an unknown suffix."""
    return f"{path}: unknown suffix {path.suffix!r}; expected {', '.join(suffixes)}. Convert the file."


def _normalize(name: str) -> str:
    """Returns a name in one Unicode form: macOS splits an accent from its letter, others do not."""
    return unicodedata.normalize("NFC", name)
