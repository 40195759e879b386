"""Every reader finds the right score for the right image in the right direction, and says what is wrong."""

from __future__ import annotations

import re
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from scipy import stats

from declip_runtime.errors import TrainingError
from declip_training.evaluation.datasets import DATASETS, collect, collect_parts
from declip_training.evaluation.datasets.tfrecord import masked_crc32c, read_examples

from .miniatures import MINIATURES, Miniature, draw, number_in, write_examples


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Miniature]]:
    found = {}
    for name, make in MINIATURES.items():
        root = tmp_path_factory.mktemp(name)
        found[name] = root, make(root)
    return found


@pytest.fixture
def copy(miniatures: dict[str, tuple[Path, Miniature]], tmp_path: Path) -> object:
    """A data set that a test may damage."""

    def of(name: str) -> Path:
        return Path(shutil.copytree(miniatures[name][0], tmp_path / name))

    return of


def test_there_is_a_miniature_of_every_data_set() -> None:
    assert set(MINIATURES) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_the_right_score_for_the_right_image(name: str, miniatures: dict[str, tuple[Path, Miniature]]) -> None:
    root, expected = miniatures[name]
    found = collect(DATASETS[name], root)
    scores = {number_in(photo.path): photo.score for photo in found.photos}
    assert scores == pytest.approx(expected.scores)
    assert len(found.photos) == len(scores)
    assert stats.spearmanr(list(scores), list(scores.values())).statistic == pytest.approx(1)  # higher is better
    assert {photo.split for photo in found.photos} == {found.split} == {"test" if DATASETS[name].splits else "all"}
    assert found.missing == ()


@pytest.mark.parametrize(
    ("name", "there", "instead"),
    [
        ("eva", "images/EVA_together", "images/EVA_together/EVA_together"),
        ("apddv2", "images", "APDDv2images/APDDv2images"),
        ("agiqa", "AGIQA-3K", "Images"),
        ("richhf", "images", "images/all"),
    ],
)
def test_images_are_found_where_archives_unpack_them(
    name: str, there: str, instead: str, miniatures: dict[str, tuple[Path, Miniature]], copy: object, tmp_path: Path
) -> None:
    root = copy(name)  # type: ignore[operator]
    (root / there).rename(tmp_path / "moved")
    (root / instead).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "moved").rename(root / instead)
    found = collect(DATASETS[name], root)
    assert {number_in(photo.path): photo.score for photo in found.photos} == pytest.approx(miniatures[name][1].scores)


def test_richhf_as_the_authors_script_saves_it(miniatures: dict[str, tuple[Path, Miniature]], copy: object) -> None:
    """A folder an image, with maps beside it that every record has by the same names."""
    root = copy("richhf")  # type: ignore[operator]
    images = {number_in(path): path for path in (root / "images").iterdir()}
    expected = {"test": (1, 2, 3), "dev": (4, 5), "train": (6, 7)}
    for split, numbers in expected.items():
        for place, image in enumerate(images[number] for number in numbers):
            folder = root / split / f"{place:03d}"
            folder.mkdir(parents=True)
            image.rename(folder / f"{image.stem}.jpg")
            draw(folder / "artifact_map.jpg", 20)
    (root / "images").rmdir()
    for split, name in (("test", "test"), ("validation", "dev"), ("train", "train")):
        found = collect(DATASETS["richhf"], root, split)
        assert {number_in(photo.path) for photo in found.photos} == set(expected[name])


def test_the_two_files_of_opinions_on_live_are_told_apart(miniatures: dict[str, tuple[Path, Miniature]]) -> None:
    root, _ = miniatures["live-realigned"]  # has both
    released, realigned = (collect(DATASETS[name], root) for name in ("live", "live-realigned"))
    assert [p.name for p in released.photos] == [p.name for p in realigned.photos]
    assert [p.score for p in realigned.photos] == pytest.approx([p.score / 2 for p in released.photos])
    assert (released.dataset.title, realigned.dataset.title) == ("LIVE", "LIVE (realigned)")


@pytest.mark.parametrize("name", DATASETS)
def test_other_splits_all_groups_attributes_and_references(
    name: str, miniatures: dict[str, tuple[Path, Miniature]]
) -> None:
    root, expected = miniatures[name]
    assert set(DATASETS[name].splits) == ({"test", *expected.others} if expected.others else set())
    for split, scores in expected.others.items():
        found = collect(DATASETS[name], root, split)
        assert {number_in(p.path): p.score for p in found.photos} == pytest.approx(scores)
        assert found.split == split
    everything = collect(DATASETS[name], root, "all")
    union = {**expected.scores, **{n: s for scores in expected.others.values() for n, s in scores.items()}}
    assert {number_in(p.path): p.score for p in everything.photos} == pytest.approx(union)
    test = collect(DATASETS[name], root).photos
    assert {number_in(p.path): p.group for p in test if p.group} == expected.groups
    assert {number_in(p.path): p.attributes for p in test if p.attributes} == expected.attributes
    assert all((p.reference is not None and p.reference.is_file()) == expected.references for p in test)


def test_references_are_those_of_the_table(miniatures: dict[str, tuple[Path, Miniature]]) -> None:
    names = {
        name: [p.reference.name for p in collect(DATASETS[name], miniatures[name][0]).photos[:3] if p.reference]
        for name in ("live", "csiq", "tid2013", "kadid")
    }
    assert names == {
        "live": ["sailing1.bmp", "bikes.bmp", "sailing1.bmp"],
        "csiq": ["1600.png", "boston.png", "boston.png"],
        "tid2013": ["I01.BMP", "I02.BMP", "i25.bmp"],
        "kadid": ["I01.png", "I01.png", "I01.png"],
    }


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_table_names_itself_and_the_source(
    name: str, miniatures: dict[str, tuple[Path, Miniature]], tmp_path: Path
) -> None:
    root, expected = miniatures[name]
    assert expected.tables
    for table in expected.tables:
        hidden = (root / table).rename(tmp_path / "hidden")
        try:
            with pytest.raises(TrainingError) as error:
                collect(DATASETS[name], root)
        finally:
            hidden.rename(root / table)
        assert str(root / table) in str(error.value)
        assert DATASETS[name].source in str(error.value) or "Clone github.com" in str(error.value)


@pytest.mark.parametrize("name", DATASETS)
def test_nothing_at_the_path_is_told_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=re.escape(f"{tmp_path / 'no'} is not a folder. {DATASETS[name].source}")):
        collect(DATASETS[name], tmp_path / "no")
    with pytest.raises(TrainingError, match="incomplete"):
        collect(DATASETS[name], tmp_path)


@pytest.mark.parametrize("name", DATASETS)
def test_missing_images_are_counted_and_left_out_only_on_request(
    name: str, miniatures: dict[str, tuple[Path, Miniature]], tmp_path: Path
) -> None:
    root, expected = miniatures[name]
    photos = collect(DATASETS[name], root).photos
    hidden = [(photo.path, photo.path.rename(tmp_path / str(i))) for i, photo in enumerate(photos[:2])]
    try:
        with pytest.raises(TrainingError) as error:
            collect(DATASETS[name], root)
        found = collect(DATASETS[name], root, allow_missing=True)
    finally:
        for path, elsewhere in hidden:
            elsewhere.rename(path)
    told = str(error.value)
    assert f"2 of {len(photos)} images in its table are not on disk ({Path(photos[0].name).parent}" in told
    assert DATASETS[name].source in told
    assert "--allow-missing" in told
    assert len(found.missing) == 2
    left = {number_in(p.path): p.score for p in found.photos}
    assert left == pytest.approx({n: s for n, s in expected.scores.items() if n in left})
    assert len(left) == len(photos) - 2


def test_all_images_missing_is_an_error_whatever_is_allowed(copy: object) -> None:
    root = copy("kadid")  # type: ignore[operator]
    for path in (root / "images").glob("I01_*"):
        path.unlink()
    with pytest.raises(TrainingError, match="4 of 4 images") as error:
        collect(DATASETS["kadid"], root, allow_missing=True)
    assert "--allow-missing" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "table", "old", "new", "told"),
    [
        ("kadid", "dmos.csv", ",2.5,", ",nan,", "line 3 of .*dmos.csv: the score of images/I01_02_05.png is nan"),
        ("kadid", "dmos.csv", ",2.5,", ",n/a,", "line 3 of .*dmos.csv: dmos is 'n/a', not a number"),
        ("kadid", "dmos.csv", ",2.5,", ",,", "line 3 of .*dmos.csv: dmos is empty"),
        ("kadid", "dmos.csv", "I01_02", "I01_01", "line 3 of .*dmos.csv: images/I01_01_05.png stands in line 2 of"),
        ("kadid", "dmos.csv", "I01_02_05", "i01_01_05", "line 3 of .*: images/i01_01_05.png stands in line 2 of"),
        ("kadid", "dmos.csv", "I01_02_05", "./I01_01_05", r"line 3 of .*dmos.csv: images/\./I01_01_05.png stands in"),
        ("baid", "dataset/test_set.csv", ",2.5", ",2,5", "line 3 of .*_set.csv has 3 cells, its header 2: is"),
        ("ava", "aesthetics_image_lists/generic_test.jpgl", "953", "<p>953", "line 2 of .*jpgl is '<p>953', not"),
        ("ava", "aesthetics_image_lists/generic_test.jpgl", "951\n953\n955\n", "957\n",
         "of 6 images in .* 0 are among the 1"),
        ("kadid", "dmos.csv", ",dmos,", ",mos,", "has no column dmos; it has dist_img, ref_img, mos, var"),
        ("kadid", "dmos.csv", "dist_img,", "dist_img,dmos,", "dmos.csv has several columns dmos. Get it again"),
        ("koniq", "koniq10k_distributions_sets.csv", '"test"', '"tset"', "says 'tset'"),
        ("koniq", "koniq10k_distributions_sets.csv", ',"set"', "", "has no column set"),
        ("tid2013", "mos_with_names.txt", "2.25000 ", "2.25000", "line 2 of .*: the name is empty"),
        ("ava", "AVA.txt", "3 953 0 0 0 3 0 0 1", "3 953 0 0 0 0 0 0 0", "every vote on image 953"),
        ("ava", "AVA.txt", " 1 22 1396", " 1 22", "has 14 of 15 columns"),
        ("para", "annotation/PARA-GiaaTest.csv", "session2,animal,0,1.8", "session2,animal,0,inf", "line 3 .* is inf"),
        ("aadb", "imgListFiles_label/imgListTestNewRegression_score.txt", "_b.jpg 0.5", "_b.jpg",
         "line 2 of .*: the score is empty"),
        ("eva", "data/votes_filtered.csv", "=E136=2=", "=E136=two=", "line 4 of .*: the score is 'two'"),
        ("biq2021", "Test (Images and MOS).csv", ",0.2", ",good", "line 3 of .*: MOS is 'good', not a number"),
        ("biq2021", "Test (Images and MOS).csv", ",MOS", ",Score", "has no column MOS; it has Image Name, Score"),
        ("biq2021", "Test (Images and MOS).csv", ",0.2", "", "line 3 of .*: MOS is empty"),
        ("biq2021", "Test (Images and MOS).csv", ",0.2", ",nan", r"the score of Images/ss03 \(2\).jpg is nan"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_read_are_named(name: str, table: str, old: str, new: str, told: str, copy: object) -> None:
    root = copy(name)  # type: ignore[operator]
    text = (root / table).read_text(encoding="utf-8")
    assert old in text
    (root / table).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(TrainingError, match=told):
        collect(DATASETS[name], root)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("content", [b"", b"\xff\x00garbage\x9c" * 30, b"<html>Sign in</html>\n"])
def test_tables_that_are_something_else_are_one_clear_error(
    name: str, content: bytes, copy: object, miniatures: dict[str, tuple[Path, Miniature]]
) -> None:
    root = copy(name)  # type: ignore[operator]
    table = miniatures[name][1].tables[0]
    (root / table).write_bytes(content)
    with pytest.raises(TrainingError) as error:
        collect(DATASETS[name], root)
    assert Path(table).name in str(error.value) or "no photos" in str(error.value)


@pytest.mark.parametrize("name", ["csiq", "spaq"])
def test_an_excel_file_that_is_damaged_within_is_one_clear_error(
    name: str, copy: object, miniatures: dict[str, tuple[Path, Miniature]]
) -> None:
    root = copy(name)  # type: ignore[operator]
    table = root / miniatures[name][1].tables[0]
    with zipfile.ZipFile(table) as book:
        sheet = max((i for i in book.infolist() if "worksheets/sheet" in i.filename), key=lambda i: i.filename)
    content = bytearray(table.read_bytes())
    start = sheet.header_offset + 30 + len(sheet.filename)  # of the deflated sheet, which is read last
    content[start + 20 : start + 120] = bytes(100)
    table.write_bytes(content)
    with pytest.raises(TrainingError, match=r"\.xlsx cannot be read as an Excel file: .* Get it again"):
        collect(DATASETS[name], root)


def test_a_cut_off_table_of_ava_loses_no_test_image_unsaid(copy: object) -> None:
    root = copy("ava")  # type: ignore[operator]
    table = root / "AVA.txt"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(TrainingError, match=r"of 3 images in .* 2 are among the 3 of .* cut off or another list"):
        collect(DATASETS["ava"], root)


def test_a_column_that_stands_twice_in_a_sheet_is_refused(copy: object) -> None:
    """The second one might turn the order round."""
    root = copy("spaq")  # type: ignore[operator]
    table = root / "Annotations" / "MOS and Image attribute scores.xlsx"
    workbook = openpyxl.load_workbook(table)
    for row, value in enumerate(["mos", 5, 4, 3, 2, 1], 1):
        workbook.active.cell(row, 8, value)
    workbook.save(table)
    with pytest.raises(TrainingError, match="several columns mos"):
        collect(DATASETS["spaq"], root)


def test_parts_are_one_pool(copy: object) -> None:
    """An image must not stand in two of them, and one that lacks all its images may be left out as any other."""
    root = copy("koniq")  # type: ignore[operator]
    (root / "1024x768" / "94.jpg").unlink()  # all there is of validation
    found = collect_parts(DATASETS["koniq"], root, ("validation", "train"), allow_missing=True)
    assert ([number_in(p.path) for p in found.photos], found.missing) == ([2], ("1024x768/94.jpg",))
    table = root / "koniq10k_distributions_sets.csv"
    table.write_text(table.read_text().replace('"94.jpg"', '"92.jpg"'))
    with pytest.raises(TrainingError, match=r"92\.jpg stands in line"):
        collect_parts(DATASETS["koniq"], root, ("validation", "train"))


def test_a_matlab_file_that_is_cut_off_is_one_clear_error(copy: object) -> None:
    root = copy("livec")  # type: ignore[operator]
    table = root / "Data" / "AllMOS_release.mat"
    content = table.read_bytes()
    for kept in range(1, len(content), 7):
        table.write_bytes(content[:kept])
        with pytest.raises(TrainingError, match=r"AllMOS_release\.mat"):
            collect(DATASETS["livec"], root)


def test_a_database_with_other_bytes_than_text_is_one_clear_error(copy: object) -> None:
    root = copy("sac")  # type: ignore[operator]
    table = root / "sac_public_2022_06_29.sqlite"
    table.write_bytes(table.read_bytes().replace(b"CREATE TABLE paths", b"CREATE TABL\x8a paths"))
    with pytest.raises(TrainingError, match=r"sqlite cannot be read: .* Get it again"):
        collect(DATASETS["sac"], root)


def test_pictures_of_sac_may_lie_where_its_archive_unpacks_them(copy: object) -> None:
    root = copy("sac")  # type: ignore[operator]
    wanted = [photo.score for photo in collect(DATASETS["sac"], root).photos]
    (root / "home" / "jdp").mkdir(parents=True)
    (root / "images").rename(root / "home" / "jdp" / "simulacra-aesthetic-captions")
    assert [photo.score for photo in collect(DATASETS["sac"], root).photos] == wanted


def test_an_image_that_is_there_twice_is_always_the_same_one(copy: object) -> None:
    root = copy("richhf")  # type: ignore[operator]
    (picture,) = root.glob("images/*0001.jpg")
    draw(picture.with_suffix(".png"), 25)
    assert collect(DATASETS["richhf"], root).photos[0].path.suffix == ".png"


def test_a_name_that_is_no_text_is_an_image_that_is_missing(copy: object) -> None:
    root = copy("richhf")  # type: ignore[operator]
    write_examples(root / "test.tfrecord", [{"filename": b"test/\xff.png", "aesthetics_score": 0.5}])
    with pytest.raises(TrainingError, match="1 of 1 images in its table are not on disk"):
        collect(DATASETS["richhf"], root)


def test_without_openpyxl_the_extra_is_named(
    miniatures: dict[str, tuple[Path, Miniature]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(TrainingError, match=r"needs openpyxl\. Run: pip install 'declip-sdk\[train\]'"):
        collect(DATASETS["spaq"], miniatures["spaq"][0])


def test_a_git_lfs_pointer_is_recognised(copy: object) -> None:
    root = copy("richhf")  # type: ignore[operator]
    (root / "test.tfrecord").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    with pytest.raises(TrainingError, match="pointer to the file\\. Run `git lfs pull`"):
        collect(DATASETS["richhf"], root)


def test_splits_that_nobody_published_are_refused(miniatures: dict[str, tuple[Path, Miniature]]) -> None:
    with pytest.raises(TrainingError, match="LIVE has no official train split\\. It has: none, only all"):
        collect(DATASETS["live"], miniatures["live"][0], "train")
    with pytest.raises(TrainingError, match="AVA has no official validation split\\. It has: test, train, all"):
        collect(DATASETS["ava"], miniatures["ava"][0], "validation")


def test_live_of_another_length_is_refused(copy: object) -> None:
    from scipy.io import savemat

    root = copy("live")  # type: ignore[operator]
    savemat(root / "dmos.mat", {"dmos": np.zeros((1, 981)), "orgs": np.zeros((1, 981))})
    with pytest.raises(TrainingError, match="981 opinions, 981 marks of originals and 982 names for 982 images"):
        collect(DATASETS["live"], root)


def test_of_two_names_that_differ_in_case_the_exact_one_is_taken(copy: object) -> None:
    root = copy("koniq")  # type: ignore[operator]
    for number in range(1, 6):
        draw(root / "1024x768" / f"9{number}.JPG", 25)
    if len(list((root / "1024x768").iterdir())) == 5:
        pytest.skip("this file system does not tell the names apart")
    assert [number_in(p.path) for p in collect(DATASETS["koniq"], root, "all").photos] == [1, 3, 5, 4, 2]


def test_a_sheet_that_states_a_smaller_size_is_read_whole(copy: object) -> None:
    root = copy("spaq")  # type: ignore[operator]
    table = root / "Annotations" / "MOS and Image attribute scores.xlsx"
    with zipfile.ZipFile(table) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"]
    assert b'<dimension ref="A1:G6"' in sheet
    parts["xl/worksheets/sheet1.xml"] = sheet.replace(b'<dimension ref="A1:G6"', b'<dimension ref="A1:B2"')
    with zipfile.ZipFile(table, "w") as book:
        for name, content in parts.items():
            book.writestr(name, content)
    assert len(collect(DATASETS["spaq"], root).photos) == 5


def test_koniq_takes_the_small_images_only_where_there_are_no_large_ones(copy: object) -> None:
    root = copy("koniq")  # type: ignore[operator]
    (root / "1024x768" / "91.jpg").unlink()
    with pytest.raises(TrainingError, match=r"1 of 3 images .* \(1024x768/91.jpg\)"):
        collect(DATASETS["koniq"], root)  # not one image of another size among them
    shutil.rmtree(root / "1024x768")
    assert collect(DATASETS["koniq"], root).photos[0].name == "512x384/91.jpg"


# --- TFRecord


def test_the_checksum_is_tensorflows() -> None:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as theirs

    for data in (b"", b"a", bytes(range(256)), (1234).to_bytes(8, "little")):
        assert masked_crc32c(data) == theirs(data)


def test_all_kinds_of_lists_are_read(tmp_path: Path) -> None:
    examples = [{"text": "é".encode(), "number": 0.1, "ints": [0, 300, 2**40]}, {"text": b"", "number": -2.5}, {}]
    write_examples(tmp_path / "x.tfrecord", examples)
    first, second, third = read_examples(tmp_path / "x.tfrecord")
    assert first == {"text": ["é".encode()], "number": [pytest.approx(0.1)], "ints": [0, 300, 2**40]}
    assert second == {"text": [b""], "number": [-2.5]}
    assert third == {}


@pytest.mark.parametrize("kept", [5, 12, 40, -1])
def test_a_truncated_file_is_told_and_not_read_short(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "x.tfrecord"
    write_examples(path, [{"text": b"x" * 50}])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TrainingError, match="record 1"):
        list(read_examples(path))


def test_damage_in_the_framing_or_a_message_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    write_examples(path, [{"text": b"x" * 50}])
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(TrainingError, match="damaged at record 1"):
        list(read_examples(path))
    path.write_bytes(good[:13] + b"\xff" + good[14:])
    with pytest.raises(TrainingError, match=r"no tf\.train\.Example"):
        list(read_examples(path))
