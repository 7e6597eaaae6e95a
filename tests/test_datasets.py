"""What is found in folders, CSV files and scikit-learn's digits; and every refusal."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurecache.errors import BadInput, FeatureCacheWarning, UnknownName
from featurecache.images.datasets import open_dataset
from featurecache.images.layouts.own_output import MARK
from featurecache.images.layouts.unread import unread_pictures
from featurecache.images.samples import MAX_FILE, items_of
from featurecache.images.thumbnails import sheet, signed_file


@pytest.fixture
def make(tmp_path):
    """Write files (path -> text, or paths alone) below a new folder; gives the folder."""

    def write(*names, **texts):
        root = tmp_path / "d"
        root.mkdir(exist_ok=True)
        for name in names:
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(name.encode())
        for name, text in texts.items():
            (root / f"{name}.csv").write_text(text, encoding="utf-8")
        return root

    return write


def rows(dataset):
    """(id, class name, split) of every sample, in order."""
    names = [*dataset.classes, None]
    return [(s.id, names[-1 if s.label is None else s.label], s.split) for s in dataset.samples]


# ---- digits ----


def test_digits():
    from sklearn.datasets import load_digits

    dataset = open_dataset("digits")
    assert (len(dataset.split("train")), len(dataset.split("val"))) == (1438, 359)
    assert dataset.splits == ("train", "val")
    assert dataset.classes == tuple("0123456789")
    by_id = {sample.id: sample for sample in dataset.samples}
    images, labels = load_digits(return_X_y=True)
    for index in (0, 4, 1796):
        sample = by_id[f"{index:04}"]
        assert sample.label == labels[index]
        assert sample.split == ("val" if index % 5 == 4 else "train")
        head, pixels = sample.read()[:11], sample.read()[11:]
        assert head == b"P5\n8 8\n255\n"
        assert list(pixels) == [int(value * 255 / 16 + 0.5) for value in images[index]]


def test_a_folder_called_digits_is_a_folder(make, monkeypatch):
    monkeypatch.chdir(make("digits/cat/a.jpg", "digits/dog/b.jpg"))
    assert open_dataset(Path("digits")).classes == ("cat", "dog")
    assert open_dataset("./digits").classes == ("cat", "dog")
    with pytest.warns(FeatureCacheWarning, match=r"to use the folder .* pass \./digits"):
        assert open_dataset("digits").layout == "digits"


def test_an_open_dataset_is_given_as_it_is(make):
    dataset = open_dataset(make("cat/1.jpg"))
    assert open_dataset(dataset) is dataset and str(dataset) == dataset.root
    assert open_dataset([dataset]) is dataset


# ---- class folders and split folders ----


def test_class_folders(make):
    root = make("dog/2.PNG", "dog/1.jpg", "cat/deep/er/3.webp", "cat/notes.txt", ".git/x.jpg")
    dataset = open_dataset(root)
    assert dataset.layout == "class folders"
    assert rows(dataset) == [
        ("cat/deep/er/3.webp", "cat", "train"),
        ("dog/1.jpg", "dog", "train"),
        ("dog/2.PNG", "dog", "train"),
    ]
    assert dataset.samples[0].read() == b"cat/deep/er/3.webp"
    assert dataset.words == {}
    with pytest.raises(UnknownName, match=r"unknown split 'tran'.*train"):
        dataset.split("tran")


def test_sources_do_not_depend_on_the_working_directory(make, monkeypatch, tmp_path):
    monkeypatch.chdir(make("cat/1.jpg").parent)
    dataset = open_dataset("d")
    assert dataset.root == "d"
    monkeypatch.chdir("/")
    assert dataset.samples[0].read() == b"cat/1.jpg"


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_with_an_unlabelled_test(make, val):
    root = make("train/b/1.jpg", "train/a/2.jpg", f"{val}/b/3.jpg", "test/4.jpg", "docs/x.txt")
    dataset = open_dataset(root)
    assert dataset.layout == "split folders"
    assert dataset.splits == ("train", "val", "test")
    assert rows(dataset) == [
        ("train/a/2.jpg", "a", "train"),
        ("train/b/1.jpg", "b", "train"),
        (f"{val}/b/3.jpg", "b", "val"),
        ("test/4.jpg", None, "test"),
    ]


def test_a_labelled_test(make):
    dataset = open_dataset(make("train/a/1.jpg", "test/a/2.jpg"))
    assert rows(dataset) == [("train/a/1.jpg", "a", "train"), ("test/a/2.jpg", "a", "test")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1.jpg", "val/b/2.jpg"], "class 'b'.*not in split train"),
        (["train/a/1.jpg", "val/2.jpg"], "outside the class folders"),
        (["train/a/1.jpg", "test/a/2.jpg", "test/3.jpg"], "outside the class folders"),
        (["train/a/1.jpg", "cat/2.jpg"], "both split folders and cat/"),
        (["train/a/1.jpg", "val/a/2.jpg", "valid/a/3.jpg"], "both split val"),
        (["train/a/1.jpg", "2.jpg"], "outside the split folders"),
        (["train/a/1.jpg", "val/x.txt"], "no class folders"),
        (["cat/1.jpg", "dog/readme.txt"], "d/dog: a class folder without images"),
        (["cat/1.jpg", "2.jpg"], "outside the class folders"),
        ([".gitkeep"], "no images in folders.*path,label"),
        (["CACHE.json", "cat/1.jpg"], "a cache or a run"),
        (["train/1.jpg", "test/2.jpg", "dev/3.jpg"], r"If 'dev' is a class.*train/dev/"),
        (["dev/1.jpg", "cat/2.jpg"], r"holds both split folders and cat/.*If 'dev' is a class"),
        (["train/a/1.jpg", "training/a/2.jpg"], "are both split train"),
        (["train/a/1.jpg", "holdout/a/2.jpg"], "both split folders and holdout/"),
        (["caf\u00e9/1.jpg", "cafe\u0301/2.jpg"], "look the same and differ in .*NFC and NFD"),
        (["cat/1.jpg", "cat /2.jpg"], "'cat' and 'cat ' look the same and differ in spaces"),
        (["train/caf\u00e9/1.jpg", "val/cafe\u0301/2.jpg"], "not in split train; it differs from"),
        (["train/cat/1.jpg", "val/Cat/2.jpg"], "differs from 'cat' in upper and lower case"),
    ],
)
def test_folders_that_are_refused(make, names, message):
    with pytest.raises(BadInput, match=message):
        open_dataset(make(*names))


def test_classes_in_a_plain_folder_of_each_split(make):
    """`train/images/cat` is of class cat, and images right in `test/images` have no label."""
    root = make(*(f"{split}/images/{c}/{split}.png" for split in ("train", "val") for c in "ab"),
                "test/images/1.png")  # fmt: skip
    dataset = open_dataset(root)
    assert dataset.classes == ("a", "b")
    assert [s.label for s in dataset.samples] == [0, 1, 0, 1, None]
    root = make("test/images/a/1.png")
    (root / "test/images/1.png").unlink()
    assert [s.label for s in open_dataset(root).split("test")] == [0]
    with pytest.raises(BadInput, match=r"class 'a' .* is not in split train; there are: images"):
        open_dataset(make("train/images/1.png"))


def test_class_folders_that_hold_the_same_folders_are_noted(make):
    root = make(*(f"fold{n}/{c}/1.png" for n in (1, 2) for c in ("cat", "dog")))
    (note,) = open_dataset(root).notes
    assert note == "not used: each class folder holds the same folders (cat, dog)"


def test_classes_that_are_the_same_number_are_noted(make):
    (note,) = open_dataset(make("03/1.png", "3/2.png", "3.5/3.png", "cat/4.png")).notes
    assert note == "classes that are the same number: 03 and 3"


def test_what_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"no such file.*\.csv.*digits"):
        open_dataset(tmp_path / "nothing")
    (tmp_path / "a.doc").touch()
    with pytest.raises(BadInput, match="not a dataset"):
        open_dataset(tmp_path / "a.doc")
    with pytest.raises(BadInput, match="too long"):
        open_dataset("x" * 5000)


def test_caches_and_runs_are_passed_over(make):
    root = make(
        "cat/1.jpg", "dog/2.jpg",
        "cache/CACHE.json", "cache/views/3.jpg",
        "runs/run.json", "runs/4.jpg",
        "cat/cache/CACHE.json", "cat/cache/5.jpg",
    )  # fmt: skip
    assert [sample.id for sample in open_dataset(root).samples] == ["cat/1.jpg", "dog/2.jpg"]


def test_classes_named_by_splits_have_a_way_in(make):
    dataset = open_dataset(make("train/train/1.jpg", "train/test/2.jpg", "train/dev/3.jpg"))
    assert dataset.classes == ("dev", "test", "train") and dataset.splits == ("train",)


@pytest.mark.parametrize(
    "names",
    [("training", "dev", "testing"), ("Train Set", "ValSet", "test_images"),
     ("coco_train2017", "coco_val2017", "coco_test2017"), ("1_train", "2_val", "3_test")],
)  # fmt: skip
def test_splits_by_other_names(make, names):
    train, val, test = names
    dataset = open_dataset(make(f"{train}/a/1.jpg", f"{val}/a/2.jpg", f"{test}/a/3.jpg"))
    assert [sample.split for sample in dataset.samples] == ["train", "val", "test"]


def test_a_class_with_a_splits_word_in_its_name_is_a_class_and_noted(make):
    dataset = open_dataset(make("bullet_train/1.jpg", "test tube/2.jpg", "cat/3.jpg"))
    assert dataset.classes == ("bullet_train", "cat", "test tube")
    assert dataset.notes == (
        "used as classes, although their names contain a split's name: bullet_train, test tube",
    )


def test_folders_of_other_systems_are_passed_over(make):
    root = make(
        "cat/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x.jpg", "__MACOSX/cat/1.jpg",
        "lost+found/1.jpg", "$RECYCLE.BIN/1.jpg", "#recycle/1.jpg",
        "System Volume Information/1.jpg",
        ".ipynb_checkpoints/1.jpg", "dog/2.jpg", "dog/.git/2.jpg", "dog/._2.jpg", "found.000/1.jpg",
    )  # fmt: skip
    dataset = open_dataset(root)
    assert [sample.id for sample in dataset.samples] == ["cat/1.jpg", "dog/2.jpg"]
    (note,) = dataset.notes
    assert note.startswith("passed over, folders of other systems: #recycle, $RECYCLE.BIN, @eaDir")


STUDY = b'{\n "study": "pca",\n "title": "x"\n}\n'


def test_what_featurecache_writes_is_passed_over_where_it_lies(make):
    """Caches, runs, studies and sheets, bare folders of them, and defaults that are empty."""
    root = make(
        "cat/1.png", "dog/2.png", "data/cache/CACHE.json", "runs/a/run.json", "worth/b/run.json",
        "worth/worth.csv", "tb/run/events.out.tfevents.1", "figures/pca.svg", "figures/pca.png",
        "cat/study/pca.svg", "cat/study/pca.png", "cat/study/mine.png", "report.html", "x.parquet",
    )  # fmt: skip
    for folder in ("figures", "cat/study"):
        (root / folder / "pca.json").write_bytes(STUDY)
    (root / "study").mkdir()
    rows = [[np.zeros((9, 9, 3), np.uint8)] * 2]
    picture = signed_file(sheet(rows, 128, 4), "preview.png", MARK)
    for name in ("preview.png", "sheet.png", "cat/sheet.png"):
        (root / name).write_bytes(picture)
    dataset = open_dataset(root)
    assert [sample.id for sample in dataset.samples] == [
        "cat/1.png", "cat/study/mine.png", "dog/2.png"
    ]  # fmt: skip
    assert any("written by featurecache" in note for note in dataset.notes)
    assert unread_pictures(str(root)) == {}


def test_a_picture_beside_json_and_a_foreign_run_are_data(make):
    root = make("cat/1.png", "cat/1.json", "cat/1.svg", "dog/sheet.png", "dog/run.json")
    (root / "dog/run.json").write_text('{"name": "of another tool"}')
    assert len(open_dataset(root).samples) == 2


def test_a_single_folder_stands_for_what_it_holds(make):
    root = make(".gitkeep", "cache/CACHE.json", "x/y/train/a/1.jpg", "x/y/val/a/2.jpg")
    dataset = open_dataset(root)
    assert dataset.root == f"{root.as_posix()}/x/y"
    assert [sample.id for sample in dataset.samples] == ["train/a/1.jpg", "val/a/2.jpg"]


def test_a_single_folder_of_images_is_one_class(make):
    assert rows(open_dataset(make("cat/1.jpg"))) == [("cat/1.jpg", "cat", "train")]


def test_a_linked_dataset_is_followed_and_a_loop_is_refused(make, tmp_path):
    root = make("cat/1.jpg", "dog/2.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(root, target_is_directory=True)
    assert len(open_dataset(tmp_path / "data").samples) == 2
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    with pytest.raises(BadInput, match="a link to a folder that holds it"):
        open_dataset(root)


def test_what_is_no_file_is_listed_and_never_waited_for(make, tmp_path, monkeypatch):
    names = ("1.jpg", "folder.jpg/x.txt", "pictures.jpg/2.jpg", "gone.png")
    root = make("dog/3.jpg", *(f"cat/{name}" for name in names))
    os.mkfifo(root / "cat" / "pipe.jpg")
    monkeypatch.chdir(root / "cat")  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    (root / "cat" / "link.jpg").symlink_to(root / "cat" / "1.jpg")
    (root / "cat" / "zero.jpg").symlink_to("/dev/zero")
    (root / "cat" / "loop.jpg").symlink_to("loop.jpg")
    (root / "cat" / "nowhere.jpg").symlink_to("nothing")
    with (root / "cat" / "holes.jpg").open("wb") as file:
        file.truncate(MAX_FILE + 1)
    Path(os.fsdecode(os.fsencode(root) + b"/cat/\xff.jpg")).write_bytes(b"not read")
    dataset = open_dataset(root)
    (root / "cat" / "gone.png").unlink()
    items, reasons = items_of(dataset.samples)
    read = [s.id for s, item in zip(dataset.samples, items, strict=True) if item is not None]
    assert read == ["cat/1.jpg", "cat/link.jpg", "cat/pictures.jpg/2.jpg", "dog/3.jpg"]
    not_regular = "not a regular file; move it away"
    assert reasons == {
        "cat/\\xff.jpg": "its name is not UTF-8; rename it",
        "cat/folder.jpg": f"a folder, {not_regular}",
        "cat/gone.png": "No such file or directory",
        "cat/holes.jpg": "1,073,741,825 bytes, more than the 1,073,741,824 allowed",
        "cat/loop.jpg": "Too many levels of symbolic links",
        "cat/nowhere.jpg": "a broken link; repair or remove it",
        "cat/pipe.jpg": f"a named pipe, {not_regular}",
        "cat/socket.jpg": f"a socket, {not_regular}",
        "cat/zero.jpg": f"a device, {not_regular}",
    }
    for sample in dataset.samples:
        if sample.id in reasons:
            with pytest.raises(OSError) as caught:
                sample.read()
            assert caught.value.strerror == reasons[sample.id]


def test_a_pipe_among_the_unlabelled(make):
    root = make("train/a/1.jpg", "test/2.jpg", "test/folder.jpg/x.txt")
    os.mkfifo(root / "test" / "pipe.jpg")
    assert [sample.id for sample in open_dataset(root).split("test")] == [
        "test/2.jpg", "test/folder.jpg", "test/pipe.jpg"
    ]  # fmt: skip


def test_a_class_whose_name_is_not_utf8_is_refused(make):
    root = make("cat/1.jpg")
    odd = Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))
    odd.mkdir()
    (odd / "1.jpg").touch()
    with pytest.raises(BadInput, match=r"class caf\\xe9 has a name that is not UTF-8; rename it"):
        open_dataset(root)


def test_a_root_whose_name_is_not_utf8_is_shown_escaped(make, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    make("cat/1.jpg").rename(odd)
    dataset = open_dataset(odd)
    assert dataset.root == f"{tmp_path}/caf\\xe9"
    assert dataset.samples[0].read() == b"cat/1.jpg"


def test_links_that_branch_and_meet_again_are_refused(make):
    root = make("dog/1.jpg", "cat/0/last.jpg")
    for number in range(1, 30):
        (root / "cat" / f"{number}").mkdir()
        for name in "ab":
            (root / "cat" / f"{number}" / name).symlink_to(root / "cat" / f"{number - 1}")
    with pytest.raises(BadInput, match="more than 64 ways of links lead here"):
        open_dataset(root)


def test_folders_that_are_too_deep(make):
    root = make("dog/1.jpg", "/".join(["cat", *"d" * 140, "1.jpg"]))
    with pytest.raises(BadInput, match="more than 64 deep"):
        open_dataset(root)
    with pytest.raises(BadInput, match="more than 64 deep"):
        open_dataset(root / "cat")


@pytest.mark.parametrize("name", ["t.csv", "t.tar", "shards/0.tar"])
def test_a_dataset_that_is_a_pipe_is_not_waited_for(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(BadInput, match="a named pipe"):
        open_dataset(tmp_path / name)
    if name.startswith("shards"):
        with pytest.raises(BadInput, match="a named pipe"):
            open_dataset(tmp_path / "shards")


def test_what_a_table_names_and_is_no_file_is_listed(make):
    root = make("1.jpg", t="path,label\n1.jpg,a\nfolder,a\n")
    (root / "folder").mkdir()
    _, reasons = items_of(open_dataset(root / "t.csv").samples)
    assert reasons == {"folder": "a folder, not a regular file; move it away"}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(["train/a/10.jpg", "train/a/9.jpg", "train/b/1.jpg", "val/a/2.jpg"]))
def test_the_order_of_listing_does_not_matter(tmp_path, monkeypatch, names):
    root = tmp_path / "o"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    rank = {Path(name).name: position for position, name in enumerate(names)}
    scandir = os.scandir

    class Shuffled:
        def __init__(self, folder):
            self.folder = folder

        def __enter__(self):
            with scandir(self.folder) as entries:
                return iter(sorted(entries, key=lambda e: rank.get(e.name, -1)))

        def __exit__(self, *_):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Shuffled)
        ids = [sample.id for sample in open_dataset(root).samples]
    assert ids == ["train/a/10.jpg", "train/a/9.jpg", "train/b/1.jpg", "val/a/2.jpg"]


# ---- Tiny ImageNet ----

TINY = (
    "train/n02/images/n02_0.JPEG", "train/n01/images/n01_0.JPEG", "train/n01/images/n01_1.JPEG",
    "train/n01/n01_boxes.txt", "val/images/val_0.JPEG", "val/images/val_1.JPEG",
    "test/images/test_0.JPEG",
)  # fmt: skip


def tiny(make, annotations):
    root = make(*TINY)
    (root / "val" / "val_annotations.txt").write_text(annotations)
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tbarn owl\nn03\tunused\n")
    return root


def test_tiny_imagenet(make):
    root = tiny(make, "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    dataset = open_dataset(root)
    assert dataset.layout == "tiny-imagenet"
    assert dataset.classes == ("n01", "n02")
    assert dataset.words == {"n01": "goldfish, Carassius", "n02": "barn owl"}
    assert rows(dataset) == [
        ("train/n01/images/n01_0.JPEG", "n01", "train"),
        ("train/n01/images/n01_1.JPEG", "n01", "train"),
        ("train/n02/images/n02_0.JPEG", "n02", "train"),
        ("val/images/val_0.JPEG", "n02", "val"),  # by the annotations, not by the order
        ("val/images/val_1.JPEG", "n01", "val"),
        ("test/images/test_0.JPEG", None, "test"),
    ]
    assert open_dataset(root.parent).samples == dataset.samples


def test_tiny_imagenet_with_val_regrouped(make):
    """`test/images/` is no class, as long as no class is called so."""
    root = make("train/n01/images/0.JPEG", "val/n01/images/1.JPEG", "test/images/2.JPEG")
    assert rows(open_dataset(root)) == [
        ("train/n01/images/0.JPEG", "n01", "train"),
        ("val/n01/images/1.JPEG", "n01", "val"),
        ("test/images/2.JPEG", None, "test"),
    ]
    make("train/images/3.JPEG")
    assert rows(open_dataset(root))[-1] == ("test/images/2.JPEG", "images", "test")


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ("val_0.JPEG\tn01\n", "val_1.JPEG: not in .*val_annotations.txt"),
        ("val_0.JPEG\tn01\nval_1.JPEG\tn01\nval_2.JPEG\tn01\n", "1 images are not.*val_2.JPEG"),
        ("val_0.JPEG\tn01\nval_1.JPEG\tn09\n", "class 'n09'.*not in split train"),
        ("val_0.JPEG\tn01\nval_0.JPEG\tn02\n", "line 2: val_0.JPEG has two classes"),
        ("val_0.JPEG n01\n", "line 1: expected file<TAB>wnid"),
    ],
)
def test_tiny_imagenet_that_is_refused(make, annotations, message):
    with pytest.raises(BadInput, match=message):
        open_dataset(tiny(make, annotations))


# ---- CSV ----


def test_csv(make, tmp_path):
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"outside")
    root = make("z/1.jpg", "2.jpg", "3.jpg", "a,b.jpg")
    table = root / "table.csv"
    table.write_text(
        "\ufeffid,path, label,split\n"
        f'7,z/1.jpg,dog,\n8,"a,b.jpg",cat,train\n9,./2.jpg,cat,valid\n\n10,3.jpg,,test\n'
        f"11,{root}/2.jpg,cat,val\n12,../outside.jpg,dog,train\n13,{outside},dog,train\n",
        encoding="utf-8",
    )
    dataset = open_dataset(table)
    assert dataset.layout == "csv"
    assert rows(dataset) == [
        ("../outside.jpg", "dog", "train"),
        ("a,b.jpg", "cat", "train"),
        ("z/1.jpg", "dog", "train"),
        ("2.jpg", "cat", "val"),
        ("3.jpg", None, "test"),
    ]
    assert [sample.read() for sample in dataset.samples][:3] == [b"outside", b"a,b.jpg", b"z/1.jpg"]


def test_csv_in_the_working_directory_without_splits(make, monkeypatch):
    monkeypatch.chdir(make("1.jpg", t="path,label\n1.jpg,a\n"))
    assert rows(open_dataset("t.csv")) == [("1.jpg", "a", "train")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one column 'path'; there are none"),
        ("paths,label\n1.jpg,a\n", "expected one column 'path'; nearest: paths"),
        ("path,label,label\n1.jpg,a,b\n", "2 columns are called 'label'"),
        ("path,label\n", "holds no rows"),
        ("path,label\n1.jpg\n", "line 2: 1 values, the header has 2"),
        ("path,label\n1.jpg,a,b\n", "line 2: 3 values"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label\n1.jpg,\n", "line 2: no label"),
        ("path,label,split\n1.jpg,a,vall\n", "line 2: unknown split 'vall'; nearest: val"),
        ("path,label\n1.jpg,a\nd/../1.jpg,b\n", "lines 2 and 3: .* has two labels"),
        ("path,label,split\n1.jpg,a,train\n1.jpg,a,val\n", "lines 2 and 3: .* has two splits"),
        ("path,label,split\n1.jpg,a,train\n2.jpg,b,val\n", "class 'b'.*not in split train"),
        ('path,label\n"1.jpg,a\n', "not valid CSV"),
        ("path,label,subset\n1.jpg,a,train\n", "'subset' looks like 'split'.*rename it 'split'"),
        ("path,label,splits\n1.jpg,a,train\n", "'splits' looks like 'split'"),
        ("path,label,grp\n1.jpg,a,train\n2.jpg,a,val\n", "'grp' holds names of splits"),
        ("path,label,is_valid\n1.jpg,a,False\n", "'is_valid' looks like 'split'"),
        ("path,label,grp\n1.jpg,a,Train\n2.jpg,a,\n", "'grp' holds names of splits"),
        ("path,label,Label\n1.jpg,a,b\n", "2 columns are called 'label'"),
        ("path;label\n1.jpg;a\n", "not separated by commas"),
        ("path,label,split\n1.jpg,a,trainval\n", "unknown split 'trainval'"),
        (
            "path,label\n" + "".join(f"no{i}.jpg,a\n" for i in range(7)),
            r"7 files not found: no0.jpg \(line 2\), .*no4.jpg \(line 6\) and 2 more",
        ),
    ],
)
def test_csv_that_is_refused(make, text, message):
    with pytest.raises(BadInput, match=message):
        open_dataset(make("1.jpg", "2.jpg", t=text) / "t.csv")


def test_csv_lines_without_a_split_are_noted(make):
    root = make("1.jpg", "2.jpg", t="path,label,split\n1.jpg,a,\n2.jpg,a,val\n")
    dataset = open_dataset(root / "t.csv")
    assert [sample.split for sample in dataset.samples] == ["train", "val"]
    assert dataset.notes == ("lines without a split, which are train: 2",)


def test_csv_names_that_no_file_or_class_has(make):
    with pytest.raises(BadInput, match="2 columns are called 'label'; keep one"):
        open_dataset(make(t="path,label,Label\n1.jpg,a,b\n") / "t.csv")
    with pytest.raises(BadInput, match="has a NUL in its name"):
        open_dataset(make("1.jpg", t="path,label\n1.jpg,a\0b\n") / "t.csv")


@pytest.mark.parametrize("header", ["path,label,Split", " Path ,LABEL, SPLIT\u00a0"])
def test_csv_columns_in_any_case_are_honoured(make, header):
    root = make("1.jpg", "2.jpg", t=f"{header}\n1.jpg,a,train\n2.jpg,a,Validation\n")
    assert [sample.split for sample in open_dataset(root / "t.csv").samples] == ["train", "val"]


def test_a_table_beside_images_is_not_passed_over_without_a_word(make):
    root = make("images/1.jpg", t="Path,label\nimages/1.jpg,a\n", other="a,b\n")
    with pytest.raises(BadInput, match=r"has no classes; pass --data .*t\.csv"):
        open_dataset(root)
    make("cat/1.jpg")
    (note,) = open_dataset(root).notes
    assert note.startswith("not used: ") and "t.csv" in note


def test_a_misspelt_folder_has_a_nearest_one(make):
    root = make("photos/cat/1.jpg")
    with pytest.raises(BadInput, match=r"/Photo: no such file or folder; nearest: .*/photos"):
        open_dataset(root / "Photo")


def test_csv_columns_that_are_not_used_are_noted(make):
    root = make("1.jpg", t="id,path,label,width\n1,1.jpg,a,7\n")
    (note,) = open_dataset(root / "t.csv").notes
    assert note.endswith("; not used: 'id', 'width'")


def test_csv_that_is_not_utf8(make):
    root = make("1.jpg")
    (root / "t.csv").write_bytes(b"path,label\n1.jpg,\xff\n")
    with pytest.raises(BadInput, match="UTF-8"):
        open_dataset(root / "t.csv")


# ---- items ----


@pytest.mark.parametrize("threads", [1, 3])
def test_items_are_in_order_and_failures_are_listed(make, threads):
    root = make(*(f"cat/{i:04}.jpg" for i in range(600)))
    (root / "cat" / "0002b.jpg").symlink_to(root / "gone.jpg")
    dataset = open_dataset(root)
    (root / "cat" / "0300.jpg").unlink()
    items, reasons = items_of(dataset.samples, threads=threads)
    assert reasons == {
        "cat/0002b.jpg": "a broken link; repair or remove it",
        "cat/0300.jpg": "No such file or directory",
    }
    assert list(items) == [
        None if sample.id in reasons else hashlib.sha256(sample.id.encode()).digest()
        for sample in dataset.samples
    ]
    empty, none = items_of([])
    assert (list(empty), none) == ([], {})


def test_the_module_imports_no_heavy_library():
    code = (
        "import sys, featurecache.stages.looking.inspect\n"
        "print(sorted({'torch','timm','imgaug','pandas','sklearn','scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
