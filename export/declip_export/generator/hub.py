"""Files that are named by path, by folder and name, or by a repository on the hub and name."""

from __future__ import annotations

from pathlib import Path

from declip_runtime.errors import ExportError

from .library import library, reason


def local_file(source: str, fix: str) -> Path:
    """The path of the file ``source``: PATH, FOLDER:NAME, or ID:NAME of a repository on the hub, which is downloaded.

    Raises ExportError, which ends in ``fix``, where there is no such file.
    """
    path = Path(source)
    if path.is_file():
        return path
    place, colon, name = source.rpartition(":")
    if path.is_dir() or not colon or not place:
        raise ExportError(
            f"{source} names no file. Give the path of a file, or FOLDER:FILE or ID:FILE of a folder or a repository "
            f"on huggingface.co. {fix}."
        )
    if Path(place).is_dir():
        if not (Path(place) / name).is_file():
            raise ExportError(f"there is no file {name} in {place}. {fix}.")
        return Path(place) / name
    hub = library("huggingface_hub")
    try:
        return Path(hub.hf_hub_download(place, name))
    except hub.errors.GatedRepoError as error:
        raise ExportError(
            f"{place} is gated: its licence must be accepted. Accept it at https://huggingface.co/{place} and log in "
            "with `hf auth login`, or give a file."
        ) from error
    except (hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        raise ExportError(f"{source} can neither be found here nor downloaded: {reason(error)}. {fix}.") from error
