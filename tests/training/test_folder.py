import shutil

import numpy as np
import pytest
import torch

from fastcnn.data import DataError, LazyImages, image_folder, labelled_folder, load

from .conftest import draw


def sets(splits):
    return splits.train, splits.validation, splits.test


def test_digits_are_split_stratified_and_disjoint():
    splits = load("digits", seed=3)
    assert [len(part) for part in sets(splits)] == [1257, 180, 360]
    names = [set(part.names) for part in sets(splits)]
    assert len(names[0] | names[1] | names[2]) == 1797
    for part, share in zip(sets(splits), (0.7, 0.1, 0.2), strict=True):
        counts = torch.bincount(part.labels, minlength=10)
        assert ((counts - share * 179.7).abs() <= 5).all()
        assert part.images.dtype == torch.uint8
        assert part.images.shape[1:] == (1, 28, 28)
    assert load("digits", seed=3).fingerprint() == splits.fingerprint()
    assert load("digits", seed=4).fingerprint() != splits.fingerprint()
    assert load("digits", channels=3).train.images.shape[1] == 3


def test_digits_are_the_bilinear_pictures_of_scikit_learn():
    from sklearn.datasets import load_digits

    raw = load_digits().images
    splits = load("digits", image_size=8)
    for part in sets(splits):
        expected = np.rint(raw[list(map(int, part.names))] * (255 / 16))
        assert np.abs(part.images[:, 0].numpy() - expected).max() <= 0.5


def test_a_folder_of_classes_is_split(make_folder):
    root = make_folder(classes={"up": 20, "down": 10, "left": 10})
    (root / "up" / "notes.txt").write_text("not an image")
    (root / "README.md").write_text("not a class")
    (root / "empty").mkdir()
    splits = image_folder(root)
    assert splits.classes == ["down", "left", "up"]
    assert splits.channels == 1
    assert not splits.skipped
    names = [set(part.names) for part in sets(splits)]
    assert [len(part) for part in names] == [28, 4, 8]
    assert len(names[0] | names[1] | names[2]) == 40
    for part in sets(splits):
        for name, label in zip(part.names, part.labels.tolist(), strict=True):
            assert name.startswith(splits.classes[label])
    assert torch.bincount(splits.test.labels).tolist() == [2, 2, 4]


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_given_splits_are_kept(make_folder, validation):
    root = make_folder(under="train")
    make_folder(under=validation, classes={"up": 2, "down": 3, "left": 1})
    make_folder(under="test", classes={"up": 1, "down": 1})
    splits = image_folder(root)
    assert [len(part) for part in sets(splits)] == [30, 6, 2]
    assert all(name.startswith(validation) for name in splits.validation.names)
    assert all(name.startswith("test") for name in splits.test.names)


def test_missing_splits_come_off_the_training_images(make_folder):
    root = make_folder(under="train")
    make_folder(under="test", classes={"up": 2, "down": 2, "left": 2})
    splits = image_folder(root)
    assert [len(part) for part in sets(splits)] == [27, 3, 6]
    assert all(name.startswith("train") for name in splits.validation.names)
    shutil.rmtree(root / "test")
    assert [len(part) for part in sets(image_folder(root))] == [21, 3, 6]


def test_a_class_may_be_called_train(make_folder):
    root = make_folder(classes={"train": 5, "car": 5})
    assert image_folder(root).classes == ["car", "train"]


def test_colour_is_inferred_or_given(make_folder):
    root = make_folder()
    assert image_folder(root).channels == 1
    assert image_folder(root, channels=3).train.images.shape[1:] == (3, 28, 28)
    draw(root / "up" / "coloured.png", 0, 1, colour=True)
    mixed = image_folder(root)
    assert mixed.channels == 3
    assert mixed.train.images.shape[1:] == (3, 28, 28)
    assert image_folder(root, channels=1, image_size=40).train.images.shape[1:] == (1, 40, 40)


@pytest.mark.parametrize("memory_limit", [1 << 30, 0])
def test_unreadable_files_are_skipped_and_named(make_folder, memory_limit):
    root = make_folder()
    (root / "up" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbut not really")
    (root / "down" / "text.jpg").write_text("hello")
    splits = image_folder(root, memory_limit=memory_limit)
    assert sorted(item.path.name for item in splits.skipped) == ["broken.png", "text.jpg"]
    assert all(item.reason for item in splits.skipped)
    assert sum(len(part) for part in sets(splits)) == 30


def test_a_set_too_large_for_memory_stays_on_disk_and_is_the_same(make_folder):
    root = make_folder(colour=True)
    kept = image_folder(root)
    lazy = image_folder(root, memory_limit=1000)
    assert isinstance(lazy.train.images, LazyImages)
    assert lazy.channels == kept.channels == 3
    assert lazy.fingerprint() == kept.fingerprint()
    assert lazy.statistics() == kept.statistics()
    decoded = np.stack([lazy.test.images.decode(i) for i in range(len(lazy.test))])
    assert (decoded == kept.test.images.numpy()).all()


def test_statistics_are_those_of_the_pixels(make_folder):
    splits = image_folder(make_folder(colour=True))
    pixels = splits.train.images.double()
    mean, std = splits.statistics()
    torch.testing.assert_close(torch.tensor(mean), pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(torch.tensor(std), pixels.std((0, 2, 3), correction=0).float())


def test_progress_counts_every_file(make_folder):
    seen = []
    image_folder(make_folder(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 30) for n in range(1, 31)]


def test_what_is_unusable_is_explained(make_folder, tmp_path):
    def complaint(folder, **settings):
        with pytest.raises(DataError) as caught:
            image_folder(folder, **settings)
        return str(caught.value)

    assert "no folder" in complaint(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    assert "is a file" in complaint(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing usable" in complaint(empty)
    draw(tmp_path / "loose" / "a.png", 0, 0)
    assert "in no sub-folder" in complaint(tmp_path / "loose")
    assert "only one class, 'up'" in complaint(make_folder("one", {"up": 5}))
    assert "class 'few' has 2 usable images" in complaint(make_folder("few", {"up": 9, "few": 2}))
    assert "channels must be 1 or 3" in complaint(make_folder(), channels=2)
    broken = tmp_path / "broken"
    for name in ("a", "b"):
        (broken / name).mkdir(parents=True)
        (broken / name / "x.png").write_text("no")
    assert "none of its 2 image files can be read" in complaint(broken)
    strange = make_folder("strange", under="train")
    draw(strange / "test" / "unheard" / "x.png", 0, 0)
    assert "'unheard' that the training images lack" in complaint(strange)


def test_tiny_folders_give_every_split_every_class(make_folder):
    splits = image_folder(make_folder(classes={f"class{n}": 3 for n in range(6)}))
    for part in sets(splits):
        assert torch.bincount(part.labels).tolist() == [1] * 6


def test_a_labelled_folder_takes_the_models_classes(make_folder):
    root = make_folder(classes={"down": 3, "up": 2})
    images, skipped = labelled_folder(root, ["up", "left", "down"], channels=1, image_size=28)
    assert images.labels.tolist() == [2, 2, 2, 0, 0]
    assert not skipped
    with pytest.raises(DataError, match="'down' that the model was not trained on"):
        labelled_folder(root, ["up", "left"], channels=1, image_size=28)
    nested = make_folder("nested", under="train")
    make_folder("nested", {"left": 2}, under="test")
    images, _ = labelled_folder(nested, ["left", "up", "down"], channels=1, image_size=28)
    assert images.labels.tolist() == [0, 0]
