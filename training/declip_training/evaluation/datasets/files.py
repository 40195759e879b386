"""A data set's folder, and the kinds of tables found in one; whatever is missing or unreadable names itself."""

from __future__ import annotations

import csv
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from declip_runtime.errors import TrainingError

Cells = Mapping[str, Any]

_LFS_POINTER = b"version https://git-lfs"
_EXTRA = "Run: pip install 'declip-sdk[train]'"


class Folder:
    """The folder of one data set; ``title`` and ``source`` stand in every message about what is missing in it."""

    def __init__(self, root: Path, title: str, source: str) -> None:
        self.root = root
        self._title = title
        self._source = source
        self._listings: dict[str, dict[str, str]] = {}
        if not root.is_dir():
            raise TrainingError(f"{title}: {root} is not a folder. {source}")

    def file(self, *names: str) -> Path:
        """The first of the files that exists; TrainingError where none does, or where it is a Git LFS pointer."""
        for path in (self.root / name for name in names):
            if path.is_file():
                if _is_pointer(path):
                    raise TrainingError(f"{path} is only a pointer to the file. Run `git lfs pull` in its repository.")
                return path
        raise self.incomplete(" or ".join(str(self.root / name) for name in names))

    def directory(self, *names: str, holding: str = "") -> str:
        """The first of the folders that exists, as it was named; TrainingError where none does.

        One in which the image ``holding`` lies comes first: archives unpack into a folder of their own name, or not.
        """
        there = [name for name in names if (self.root / name).is_dir()]
        if not there:
            raise self.incomplete(" or ".join(str(self.root / name) for name in names))
        return next((name for name in there if holding and self.find(f"{name}/{holding}")), there[0])

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return (self.root / name).is_file()

    def incomplete(self, what: str) -> TrainingError:
        """The error that ``what`` is missing, with how to get it."""
        return TrainingError(f"{self._title} is incomplete: {what} is missing. {self._source}")

    def names(self, directory: str) -> set[str]:
        """Names of the files in a folder."""
        return set(self._listing(directory).values())

    def below(self, directory: str) -> list[str]:
        """Paths of the files in a folder and in those below it, as ``find`` takes them, in a fixed order."""
        walked = os.walk(self.root / directory, followlinks=True)
        paths = (Path(place, name) for place, _, names in walked for name in names)
        return sorted(path.relative_to(self.root).as_posix() for path in paths)

    def find(self, image: str) -> Path | None:
        """An image by its path in the folder, the name exactly or else in another case; None where it is not there."""
        directory, _, wanted = image.rpartition("/")
        listing = self._listing(directory)
        name = listing.get(wanted) or listing.get(wanted.lower())
        return None if name is None else self.root / directory / name

    def _listing(self, directory: str) -> dict[str, str]:
        """Every name by its lower case and, which counts more, by itself; read once: there may be 250,000 images."""
        if directory not in self._listings:
            folder = self.root / directory
            names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
            self._listings[directory] = {name.lower(): name for name in names} | {name: name for name in names}
        return self._listings[directory]


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_LFS_POINTER)) == _LFS_POINTER


def number(value: object, where: str, what: str) -> float:
    """A cell as a float; TrainingError that names the row where it is none."""
    try:
        return float(str(value))
    except ValueError:
        raise TrainingError(f"{where}: {what} is {value!r}, not a number. Repair the table or get it again.") from None


def text(value: object, where: str, what: str) -> str:
    """A cell as text without surrounding blanks; TrainingError that names the row where it is empty."""
    found = "" if value is None else str(value).strip()
    if not found:
        raise TrainingError(f"{where}: {what} is empty. Repair the table or get it again.")
    return found


def lines(path: Path, encodings: Sequence[str] = ("utf-8-sig",)) -> Iterator[tuple[str, str]]:
    """Place and text of every line that is not blank; TrainingError where the file is in none of the encodings."""
    for number_, line in enumerate(io.StringIO(_decoded(path, encodings), newline=None), 1):
        if line.strip():
            yield f"line {number_} of {path}", line.strip()


def csv_rows(
    path: Path, columns: Iterable[str], *, delimiter: str = ",", encodings: Sequence[str] = ("utf-8-sig",)
) -> Iterator[tuple[str, Cells]]:
    """Place and cells by column name of every row of a CSV file with a header; other columns are kept too.

    Raises TrainingError for a missing column, a row that is too short to have all of them or longer than the header,
    and an unreadable file.
    """
    wanted = tuple(columns)
    reader = csv.reader(io.StringIO(_decoded(path, encodings), newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        _require_columns(path, wanted, header)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"line {reader.line_num} of {path}"
            if any(cell.strip() for cell in cells[len(header) :]):
                raise TrainingError(
                    f"{where} has {len(cells)} cells, its header {len(header)}: is there a comma inside a number? "
                    "Repair the table or get it again."
                )
            row = dict(zip(header, cells, strict=False))
            for name in wanted:
                text(row.get(name), where, name)
            yield where, row
    except csv.Error as error:
        raise TrainingError(f"{path} cannot be read as CSV: {error}. Get it again.") from error


def sheet_rows(path: Path, columns: Iterable[str], sheet: str | None = None) -> Iterator[tuple[str, Cells]]:
    """Place and cells by column name (lower case) of every row below the header of an Excel sheet.

    The header is the first row that has all the columns, whatever stands above or beside it; ``sheet`` None is the
    first one. Raises TrainingError for a missing sheet or column, a column that stands twice, an empty cell in one, and
    an unreadable file.
    """
    wanted = [name.lower() for name in columns]
    header: list[str] = []
    for place, values in enumerate(_sheet(path, sheet), 1):
        if not header:
            names = ["" if value is None else str(value).strip().lower() for value in values]
            if set(wanted) <= set(names):
                header = names
                _require_columns(path, wanted, header)
            continue
        row = dict(zip(header, values, strict=False))
        if all(row.get(name) is None for name in wanted):
            continue
        where = f"row {place} of {path}"
        for name in wanted:
            text(row.get(name), where, name)
        yield where, row
    if not header:
        raise TrainingError(f"{path} has no row with the columns {', '.join(wanted)}. Get it again.")


def mat_values(path: Path, name: str) -> Any:
    """The variable ``name`` of a MATLAB file, without axes of length one; TrainingError where it cannot be read."""
    from scipy import io as scipy_io

    with _reading(path, "a MATLAB file", scipy_io.matlab.MatReadError):
        variables = scipy_io.loadmat(path, squeeze_me=True)
    if name not in variables:
        known = ", ".join(n for n in variables if not n.startswith("__"))
        raise TrainingError(f"{path} has no variable {name}, only {known}. Get it again.")
    return variables[name]


def _decoded(path: Path, encodings: Sequence[str]) -> str:
    content = path.read_bytes()
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            last = error
    raise TrainingError(f"{path} is not {' or '.join(encodings)} text: {last}. Get it again.") from last


def _require_columns(path: Path, wanted: Sequence[str], header: Sequence[str]) -> None:
    if lacking := [name for name in wanted if name not in header]:
        raise TrainingError(f"{path} has no column {', '.join(lacking)}; it has {', '.join(header)}. Get it again.")
    if twice := [name for name in wanted if header.count(name) > 1]:
        raise TrainingError(f"{path} has several columns {twice[0]}. Get it again.")


def _sheet(path: Path, sheet: str | None) -> list[tuple[Any, ...]]:
    """The values of all rows; read whole, because damage shows only in the row that has it."""
    try:
        openpyxl = import_module("openpyxl")
    except ImportError as error:
        raise TrainingError(f"Reading {path} needs openpyxl. {_EXTRA}") from error
    with _reading(path, "an Excel file", openpyxl.utils.exceptions.InvalidFileException):
        workbook = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            if sheet is not None and sheet not in workbook.sheetnames:
                known = ", ".join(workbook.sheetnames)
                raise TrainingError(f"{path} has no sheet {sheet!r}, only {known}. Get it again.")
            worksheet = workbook[sheet] if sheet else workbook.worksheets[0]
            worksheet.reset_dimensions()  # some writers state them wrongly, and rows beyond would be lost
            return list(worksheet.iter_rows(values_only=True))
        finally:
            workbook.close()


# What the readers of MATLAB and Excel files let through of a damaged file, besides errors of their own.
_DAMAGE = (
    ValueError, TypeError, LookupError, AttributeError, EOFError, OSError, NotImplementedError, SyntaxError, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


@contextmanager
def _reading(path: Path, kind: str, theirs: type[Exception]) -> Iterator[None]:
    """Make what damage of ``path`` raises in the block a TrainingError."""
    try:
        yield
    except (*_DAMAGE, theirs) as error:
        raise TrainingError(f"{path} cannot be read as {kind}: {error}. Get it again.") from error
