"""Datasets read from stand-ins in their true on-disk formats, by the true readers."""

import builtins
import gzip
import hashlib
import os
import pickle
import shutil
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from pndm.config.errors import InputError
from pndm.config.files import alone
from pndm.config.load import load
from pndm.config.schema import DatasetSection
from pndm.dataset import batches, count_images, encode, open_dataset
from pndm.dataset.database import close_databases
from pndm.dataset.readers import Recipe, array, fashion_labels, plain_folder


def section(name, path, size, channels=3, **more):
    return DatasetSection(dataset=name, path=str(path), image_size=size, channels=channels, **more)


def picture(seed, width, height, channels=3):
    """A smooth image, which survives JPEG, with some noise."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, channels), np.uint8).squeeze()
    return Image.fromarray(small).resize((width, height), Image.BICUBIC)


def encoded(tmp_path, image, suffix):
    path = tmp_path / f"one{suffix}"
    image.save(path)
    return path.read_bytes()


def database(path, items):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(path), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for name, value in items.items():
            transaction.put(name, value)


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """python pickles as in cifar-10-python.tar.gz, 20 images a batch; torchvision is told their checksums."""
    base, rng = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    base.mkdir()
    data = rng.integers(0, 256, (6, 20, 3072), np.uint8)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = [[name, write(name, {"data": part, "labels": [0] * 20})] for name, part in zip(names, data, strict=True)]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", {"label_names": ["a"]})}
    for name, value in (("train_list", sums[:5]), ("test_list", sums[5:]), ("meta", meta)):
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)
    return tmp_path, data[:5].reshape(100, 3, 32, 32)


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """178×218 JPEGs and the five lists; 6 images of the training split, 2 of the others."""
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 9)]
    for i, name in enumerate(names):
        picture(i, 178, 218).save(base / "img_align_celeba" / name, quality=95)

    def table(columns, header=False):
        head = f"{len(names)}\n{' '.join(f'c{i}' for i in range(columns))}\n" if header else ""
        return head + "".join(f"{name} {' '.join(['1'] * columns)}\n" for name in names)

    partition = "".join(f"{name} {(0, 0, 0, 1, 0, 0, 2, 0)[i]}\n" for i, name in enumerate(names))
    files = {
        "list_eval_partition.txt": partition,
        "identity_CelebA.txt": table(1),
        "list_bbox_celeba.txt": table(4, header=True),
        "list_landmarks_align_celeba.txt": table(10, header=True),
        "list_attr_celeba.txt": table(40, header=True),
    }
    for name, text in files.items():
        (base / name).write_text(text)
    sums = [("", hashlib.md5(text.encode()).hexdigest(), name) for name, text in files.items()]
    monkeypatch.setattr(torchvision.datasets.CelebA, "file_list", sums)
    return tmp_path, [names[i] for i in (0, 1, 2, 4, 5, 7)]


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_sixteen_bits_are_scaled(tmp_path, channels):
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    expected = np.rint(levels / 257)
    image = Recipe(channels).decode(tmp_path / "deep.png").numpy()
    assert image.shape[0] == (channels or 1)
    assert (image == expected).all()


def test_one_process_at_a_time_fills_a_folder(tmp_path):
    order = []

    def second():
        with alone(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with alone(tmp_path):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_digits():
    images = open_dataset(DatasetSection(dataset="DIGITS", image_size=8, channels=1))
    assert len(images) == 1797 and images[5].shape == (1, 8, 8) and images[5].dtype == torch.uint8
    assert max(int(images[i].max()) for i in range(20)) == 255


def test_cifar10(cifar10):
    path, data = cifar10
    images = open_dataset(section("CIFAR10", path, 32))
    assert len(images) == 100 and np.array_equal(torch.stack([images[i] for i in range(100)]).numpy(), data)
    assert images.record["split"] == "train"


def test_cifar10_with_a_changed_byte_is_refused(cifar10):
    path, _ = cifar10
    (path / "cifar-10-batches-py/data_batch_3").write_bytes(b"x")
    with pytest.raises(InputError, match="CIFAR10: its files are not in"):
        open_dataset(section("CIFAR10", path, 32))


def test_cifar10_is_fetched_only_when_it_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def download(*args, **options):
        asked.append(args[0])
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", download)
    with pytest.raises(
        InputError, match=r"not in .*nowhere .*offline.*cifar-10-batches-py/, unpacked from https://www"
    ):
        open_dataset(section("CIFAR10", tmp_path / "nowhere", 32))
    assert asked and not (tmp_path / "nowhere").exists()
    said = f"CIFAR10: downloading about 170 MB through torchvision to {tmp_path / 'nowhere'}\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("name", "size"), [("FASHION", 28), ("CIFAR10", 32)])
def test_offline_nothing_is_downloaded(tmp_path, monkeypatch, name, size):
    for module in (torchvision.datasets.cifar, torchvision.datasets.mnist):
        monkeypatch.setattr(module, "download_and_extract_archive", lambda *_, **__: pytest.fail("it was asked for"))
    with pytest.raises(InputError, match=f"{name}: its files are not in .* .offline.; what belongs there is"):
        open_dataset(section(name, tmp_path / "nowhere", size, channels=1 if name == "FASHION" else 3))
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def fashion(tmp_path):
    """The images of an IDX file, and the file, compressed, as Debian has it."""
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    content = np.array([2051, 7, 28, 28], ">i4").tobytes() + images.tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    return tmp_path, images, content


def test_fashion(fashion, tmp_path):
    path, images, content = fashion
    (tmp_path / "b/FashionMNIST/raw").mkdir(parents=True)
    (tmp_path / "b/FashionMNIST/raw/train-images-idx3-ubyte").write_bytes(content)  # as torchvision leaves it
    for folder in (path, tmp_path / "b"):
        read = open_dataset(section("FASHION", folder, 28, channels=1))
        assert len(read) == 7 and np.array_equal(torch.stack([read[i] for i in range(7)])[:, 0].numpy(), images)
    assert read.record["dataset"] == "FASHION"


def test_the_splits_and_labels_of_fashion(fashion):
    path, images, _ = fashion
    test = np.array([2051, 2, 28, 28], ">i4").tobytes() + images[3:5].tobytes()
    (path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(test))
    (path / "train-labels-idx1-ubyte").write_bytes(np.array([2049, 7], ">i4").tobytes() + bytes(range(7)))
    where = section("FASHION", path, 28, channels=1)
    assert fashion_labels(where).tolist() == list(range(7))
    where = section("FASHION", path, 28, channels=1, split="test")
    read = open_dataset(where)
    assert len(read) == 2 and np.array_equal(read[1][0].numpy(), images[4]) and read.record["split"] == "test"
    assert count_images(where) == 10_000
    with pytest.raises(ValueError, match="split test: only CIFAR10 and FASHION have one"):
        section("DIGITS", path, 8, channels=1, split="test")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: gzip.compress(content)[:-50], "not readable in IDX"),
        (lambda content: content, "not readable in IDX"),
        (lambda content: gzip.compress(content[:-1]), "not readable in IDX"),
        (lambda content: gzip.compress(b"\0\0\x08\x01" + content[4:]), "header begins with 2049, not 2051"),
    ],
)
def test_fashion_damaged(fashion, change, what):
    path, _, content = fashion
    (path / "train-images-idx3-ubyte.gz").write_bytes(change(content))
    with pytest.raises(InputError, match=what):
        open_dataset(section("FASHION", path, 28, channels=1))


@pytest.mark.parametrize(("name", "size"), [("FASHION", 28), ("CIFAR10", 32)])
def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch, name, size):
    monkeypatch.delenv("HF_HUB_OFFLINE")

    def download(*args, **options):
        raise urllib.error.URLError("offline")

    for module in (torchvision.datasets.cifar, torchvision.datasets.mnist):
        monkeypatch.setattr(module, "download_and_extract_archive", download)
    nowhere = section(name, tmp_path / "a/b", size, channels=1 if name == "FASHION" else 3)
    with pytest.raises(InputError, match=f"{name}: its files are not in"):
        open_dataset(nowhere)
    assert not (tmp_path / "a").exists()
    assert count_images(nowhere) in (50_000, 60_000)


def test_a_download_that_was_cut_is_made_anew_and_nothing_shows_before_it_is_whole(cifar10, tmp_path, monkeypatch):
    """The first try ends in the middle; before, an older version left a folder that is not whole."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    whole, data = cifar10
    home, tries = tmp_path / "home", []
    (home / "cifar-10-batches-py").mkdir(parents=True)

    def download(address, root, **_):
        tries.append(sorted(path.name for path in home.rglob("data_batch*")))
        folder = shutil.copytree(whole / "cifar-10-batches-py", Path(root) / "cifar-10-batches-py")
        if len(tries) == 1:
            (folder / "data_batch_5").unlink()
            raise OSError("the connection was cut")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", download)
    with pytest.raises(InputError, match="the connection was cut"):
        open_dataset(section("CIFAR10", home, 32))
    assert len(open_dataset(section("CIFAR10", home, 32))) == len(data)
    assert tries == [[], []] and [path.name for path in home.iterdir()] == ["cifar-10-batches-py"]
    open_dataset(section("CIFAR10", home, 32))
    assert len(tries) == 2


def test_two_processes_that_lack_a_data_set_download_it_once(fashion, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    _, _, content = fashion
    begun, tries = threading.Event(), []

    class Slow:
        def __init__(self, root, download):
            tries.append(root)
            file = Path(root) / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
            file.parent.mkdir(parents=True)
            file.write_bytes(content[:100])
            begun.set()
            time.sleep(0.5)
            file.write_bytes(content)

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Slow)
    home = section("FASHION", tmp_path / "home", 28, channels=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(open_dataset, home)
        assert begun.wait(60)
        assert len(open_dataset(home)) == len(first.result()) == 7
    assert len(tries) == 1


def test_photographs_of_a_folder_stand_upright(tmp_path):
    """As the camera says that it was held (EXIF, 6: turn it clockwise)."""
    image = Image.fromarray(np.repeat([[0], [255]], [6, 6], 0).repeat(8, 1).astype(np.uint8))  # dark above
    turn = Image.Exif()
    turn[0x0112] = 6
    image.save(tmp_path / "a.png", exif=turn)
    upright = open_dataset(section("FOLDER", tmp_path, 8, channels=1))[0][0]
    assert upright[:, 0].min() > 128 > upright[:, -1].max()
    as_it_is = plain_folder(tmp_path)[0][0]
    assert as_it_is[0].max() < 128 < as_it_is[-1].min()


def test_only_regular_files_are_images(tmp_path):
    picture(0, 8, 8, 1).save(tmp_path / "000001.png")
    os.mkfifo(tmp_path / "000009.png")
    assert len(plain_folder(tmp_path)) == 1
    (tmp_path / "run.json").write_text("{}")
    assert len(plain_folder(tmp_path)) == 1


def test_a_link_to_nothing_is_named_and_not_left_out(tmp_path):
    """As of photographs on a disk that is not there."""
    picture(0, 8, 8, 1).save(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    for opened in (plain_folder, lambda path: open_dataset(section("FOLDER", path, 8, channels=1))):
        with pytest.raises(InputError, match=r"^[^ ]*2\.png: a link to nothing$"):
            opened(tmp_path)


@pytest.mark.parametrize(("name", "why"), [("none", "does not exist"), ("file", "is not a folder")])
def test_a_folder_that_is_none_is_said(tmp_path, name, why):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"its files are not in [^ ]*{name} .{why}.; what belongs there is image fil"):
        open_dataset(section("FOLDER", tmp_path / name, 8))


def test_celeba_is_cropped_as_the_released_code_does(celeba):
    path, names = celeba
    images = open_dataset(section("CELEBA", path, 64))
    assert len(images) == len(names)
    # Released code: Crop(121 - 64, 121 + 64, 89 - 64, 89 + 64), Resize(64).
    recipe = transforms.Compose(
        [lambda image: transforms.functional.crop(image, 57, 25, 128, 128), transforms.Resize(64)]
    )
    for i, name in enumerate(names):
        with Image.open(path / "celeba/img_align_celeba" / name) as image:
            assert np.array_equal(images[i].numpy().transpose(1, 2, 0), np.asarray(recipe(image)))
    assert images.record == {
        "dataset": "CELEBA",
        "split": "train",
        "crop": "128×128 about (89, 121)",
        "resize": "smaller side to 64, antialiased bilinear; centre 64×64",
    }


def test_celeba_without_a_list_or_an_image(celeba):
    path, names = celeba
    (path / "celeba/img_align_celeba" / names[2]).unlink()
    with pytest.raises(InputError, match=f"{names[2]}: no such image"):
        open_dataset(section("CELEBA", path, 64))[2]
    (path / "celeba/identity_CelebA.txt").unlink()
    with pytest.raises(InputError, match=r"celeba/ with img_align_celeba/ .*identity_CelebA.txt"):
        open_dataset(section("CELEBA", path, 64))


def test_lsun_is_what_torchvision_reads(tmp_path, monkeypatch):
    folder = tmp_path / "church_outdoor_train_lmdb"
    sizes = [(341, 256), (256, 300), (256, 256), (400, 257)]
    items = {f"{97 * i % 100:040x}".encode(): encoded(tmp_path, picture(i, *s), ".webp") for i, s in enumerate(sizes)}
    database(folder, items)
    images = open_dataset(section("LSUN", tmp_path, 256, category="church_outdoor"))
    ours = [images[i] for i in range(len(images))]
    close_databases()
    monkeypatch.chdir(tmp_path)  # where torchvision leaves its pickle
    recipe = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(256), transforms.PILToTensor()])
    theirs = torchvision.datasets.LSUN(str(tmp_path), ["church_outdoor_train"], recipe)
    assert len(ours) == len(theirs) == 4
    for i in range(4):
        assert torch.equal(ours[i], theirs[i][0])
    assert images.record["category"] == "church_outdoor"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_lsun_in_worker_processes(tmp_path):
    database(
        tmp_path / "bedroom_train_lmdb", {b"%d" % i: encoded(tmp_path, picture(i, 32, 32), ".png") for i in range(8)}
    )
    images = open_dataset(section("LSUN", tmp_path, 32, category="bedroom"))
    assert images[0].shape == (3, 32, 32)  # open in this process, too
    read = torch.cat(list(DataLoader(images, batch_size=2, num_workers=2)))
    assert torch.equal(read, torch.stack([images[i] for i in range(8)]))


def test_lsun_wrong(tmp_path):
    with pytest.raises(InputError, match="LSUN needs a category"):
        open_dataset(section("LSUN", tmp_path, 256))
    with pytest.raises(InputError, match=r"tower_train_lmdb/data\.mdb"):
        open_dataset(section("LSUN", tmp_path, 256, category="tower"))
    pytest.importorskip("lmdb")
    (tmp_path / "tower_train_lmdb").mkdir()
    (tmp_path / "tower_train_lmdb/data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match="tower_train_lmdb: not a readable LMDB"):
        open_dataset(section("LSUN", tmp_path, 256, category="tower"))
    database(tmp_path / "kitchen_train_lmdb", {b"k": b"no image"})
    with pytest.raises(InputError, match="kitchen_train_lmdb, key k: not a readable image"):
        open_dataset(section("LSUN", tmp_path, 256, category="kitchen"))


@pytest.mark.parametrize("pages", [2, 5])
def test_a_database_that_is_cut_short_is_one_line(tmp_path, pages):
    """Reading behind its end would end the process."""
    folder = tmp_path / "tower_train_lmdb"
    database(folder, {b"%d" % i: encoded(tmp_path, picture(i, 64, 64), ".png") for i in range(20)})
    os.truncate(folder / "data.mdb", pages * 4096)
    with pytest.raises(InputError, match=r"tower_train_lmdb: not a readable LMDB \(cut short: data.mdb should have "):
        open_dataset(section("LSUN", tmp_path, 64, category="tower"))


def test_lsun_without_lmdb(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **options):
        if name == "lmdb":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "tower_train_lmdb").mkdir()
    (tmp_path / "tower_train_lmdb/data.mdb").touch()
    with pytest.raises(InputError, match="pip install lmdb"):
        open_dataset(section("LSUN", tmp_path, 256, category="tower"))


def test_ffhq_database(tmp_path):
    items = {f"{r}-{i:05d}".encode(): encoded(tmp_path, picture(i, r, r), ".png") for r in (16, 32) for i in range(3)}
    database(tmp_path, items | {b"length": b"3"})
    images = open_dataset(section("FFHQ", tmp_path, 32))
    assert len(images) == 3
    assert np.array_equal(images[2].numpy().transpose(1, 2, 0), np.asarray(picture(2, 32, 32)))
    with pytest.raises(InputError, match="key 64-00000: not in this database"):
        open_dataset(section("FFHQ", tmp_path, 64))


def test_ffhq_database_without_its_length(tmp_path):
    database(tmp_path, {b"32-00000": encoded(tmp_path, picture(0, 32, 32), ".png")})
    with pytest.raises(InputError, match="FFHQ: there are no images in it"):
        open_dataset(section("FFHQ", tmp_path, 32))
    close_databases()
    database(tmp_path, {b"length": b"many"})
    with pytest.raises(InputError, match="not FFHQ's database: its length is b'many'"):
        open_dataset(section("FFHQ", tmp_path, 32))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_no_known_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.arange(64, dtype=dtype).reshape(8, 8)).save(tmp_path / "0.tif")
    with pytest.raises(InputError, match=r"0\.tif: not a readable image \(32 bits a channel; 8 and 16 can be read\)"):
        open_dataset(section("FOLDER", tmp_path, 8, 1))


@pytest.mark.parametrize("name", ["FFHQ", "FOLDER"])
def test_folders_below_folders(tmp_path, name):
    for i in range(3):
        (tmp_path / f"{i:05d}").mkdir()
        picture(i, 48, 64).save(tmp_path / f"{i:05d}" / f"{i}.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    images = open_dataset(section(name, tmp_path, 32))
    assert len(images) == 3
    for i in range(3):
        right = transforms.CenterCrop(32)(transforms.Resize(32)(picture(i, 48, 64)))
        assert np.array_equal(images[i].numpy().transpose(1, 2, 0), np.asarray(right))


def test_folder_in_grey(tmp_path):
    picture(0, 8, 8).save(tmp_path / "a.png")
    assert open_dataset(section("FOLDER", tmp_path, 8, channels=1))[0].shape == (1, 8, 8)


def test_linked_folders_are_read_and_grids_of_runs_are_not(tmp_path):
    for name in ("here/0.png", "here/run/000000.png", "here/run/grid.png", "there/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0, 8, 8).save(tmp_path / name)
    (tmp_path / "here/run/run.json").write_text("{}")
    (tmp_path / "here/linked").symlink_to(tmp_path / "there")
    (tmp_path / "there/circle").symlink_to(tmp_path / "here")
    (tmp_path / "here/again").symlink_to(tmp_path / "there")
    images = open_dataset(section("FOLDER", tmp_path / "here", 8))
    names = [str(Path(images.name(i)).relative_to(tmp_path / "here")) for i in range(len(images))]
    assert names == ["0.png", "again/0.png", "run/000000.png"]


@pytest.mark.parametrize(("name", "what"), [("FFHQ", "ffhq-dataset"), ("FOLDER", r"\.png.* in any subfolders")])
def test_empty_folder(tmp_path, name, what):
    with pytest.raises(InputError, match=f"{name}: its files are not in {tmp_path}; what belongs there is .*{what}"):
        open_dataset(section(name, tmp_path, 32))


def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not in temp/dataset/FOLDER"):
        open_dataset(DatasetSection(dataset="FOLDER", image_size=8, channels=3))


def test_wrong_size_and_broken_file(cifar10, tmp_path):
    with pytest.raises(InputError, match=r"CIFAR10 has images of \(3, 32, 32\), the experiment says \(3, 64, 64\)"):
        open_dataset(section("CIFAR10", cifar10[0], 64))
    (tmp_path / "broken.png").write_bytes(encoded(tmp_path, picture(0, 32, 32), ".png")[:50])
    (tmp_path / "one.png").unlink()
    with pytest.raises(InputError, match=r"broken\.png: not a readable image"):
        open_dataset(section("FOLDER", tmp_path, 32))


def test_plain_folder_of_a_sampling_run_leaves_out_its_grid(tmp_path):
    for name in ("000000.png", "000001.png", "grid.png"):
        picture(0, 8, 8, 1).save(tmp_path / name)
    assert len(plain_folder(tmp_path)) == 3
    (tmp_path / "run.json").write_text("{}")
    assert len(plain_folder(tmp_path)) == 2 and plain_folder(tmp_path)[0].shape == (1, 8, 8)


def test_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), np.uint8)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "b.npz", images, np.arange(5))  # guided diffusion's: images, labels
    np.savez(tmp_path / "c.npz", samples=images)
    for name in ("a.npy", "b.npz", "c.npz"):
        read = array(tmp_path / name)
        assert len(read) == 5 and np.array_equal(read[3].numpy(), images[3].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (np.zeros((5, 8, 8, 3)), r"holds float64 \(5, 8, 8, 3\); images are uint8 \(n, H, W, C\)"),
        (np.zeros((5, 3, 8, 8), np.uint8), r"holds uint8 \(5, 3, 8, 8\)"),
        (np.array([{}], object), "not readable as NumPy's arrays"),
        (b"nothing", "not readable as NumPy's arrays"),
    ],
)
def test_wrong_arrays(tmp_path, content, what):
    path = tmp_path / "a.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(InputError, match=f"a.npy: {what}"):
        array(path)


def test_a_damaged_archive_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, np.random.default_rng(0).integers(0, 9, (5, 8, 8, 3), np.uint8))
    content, refused = path.read_bytes(), 0
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            array(path)
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{path}: not readable as NumPy's arrays (")
    assert refused > len(content) / 7 / 2


def test_batches_are_in_order_and_of_one_shape(tmp_path):
    for i in range(70):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"{i:03d}.png")
    read = list(batches(plain_folder(tmp_path), 16))
    assert [len(ids) for ids, _ in read] == [16, 16, 16, 16, 6]
    assert torch.cat([images for _, images in read])[:, 0, 0, 0].tolist() == list(range(70))
    picture(0, 5, 4, 1).save(tmp_path / "055.png")
    with pytest.raises(InputError, match=r"055\.png is \(1, 4, 5\), .*000\.png \(1, 4, 4\)"):
        list(batches(plain_folder(tmp_path), 16))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_reading_keeps_up(tmp_path, suffix):
    """At least 2,000 32×32 images a second; asked of the best of three, since the machine does other things too."""
    rng = np.random.default_rng(0)
    for i in range(500):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{i:03d}{suffix}")
    images = open_dataset(section("FOLDER", Path(tmp_path), 32))

    def seconds():
        start = time.perf_counter()
        assert sum(len(ids) for ids, _ in batches(images, 64)) == 500
        return time.perf_counter() - start

    assert 500 / min(seconds() for _ in range(3)) >= 2000


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images = torch.stack(list(open_dataset(load("digits.yml").Dataset)))
    assert torch.equal(images[:, 0], torch.from_numpy(np.rint(load_digits().images * (255 / 16)).astype(np.uint8)))


def test_black_and_white_are_the_ends_of_what_the_network_sees():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    for rescaled, ends in ((True, [-1, 1]), (False, [0, 1])):
        seen = encode(images, section("DIGITS", ".", 8, 1, rescaled=rescaled))
        assert seen.flatten().tolist() == ends
