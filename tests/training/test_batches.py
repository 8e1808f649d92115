import numpy as np
import pytest
import torch

from fastcnn.data import Augment, Batches, image_folder


def numbered(count=10, batch_size=4, **settings):
    """Batches whose images are constant, with their own number."""
    images = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return Batches(images, torch.arange(count), batch_size, **settings)


def labels(batches):
    return [y.tolist() for _, y in batches]


def test_an_epoch_gives_every_image_once_with_its_label():
    batches = numbered()
    assert len(batches) == 3
    epoch = list(batches)
    assert [len(y) for _, y in epoch] == [4, 4, 2]
    assert sorted(torch.cat([y for _, y in epoch]).tolist()) == list(range(10))
    for x, y in epoch:
        assert x[:, 0, 0, 0].tolist() == y.tolist()


def test_the_order_depends_on_seed_and_epoch_alone():
    first, second = numbered(seed=7), numbered(seed=7)
    epochs = [labels(first) for _ in range(3)]
    assert epochs == [labels(second) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert labels(numbered(seed=8)) != epochs[0]
    torch.manual_seed(0)
    list(numbered())
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert drawn == torch.rand(1)


def test_without_shuffling_the_order_is_the_sets():
    batches = numbered(shuffle=False)
    assert labels(batches) == labels(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def pictures(batches):
    return [x for x, _ in batches]


def test_augmentation_depends_on_seed_and_place_alone():
    images = torch.rand(10, 1, 12, 12)

    def augmented(seed):
        return Batches(images, torch.arange(10), 4, seed=seed, shuffle=False, augment=Augment())

    batches = augmented(3)
    first, second = pictures(batches), pictures(batches)
    for changed, again, other, plain in zip(
        first, second, pictures(augmented(4)), pictures(numbered(shuffle=False)), strict=True
    ):
        assert changed.shape[:2] == plain.shape[:2]
        assert not torch.equal(changed, again)
        assert not torch.equal(changed, other)
    same = Batches(images[:1].expand(8, -1, -1, -1), torch.arange(8), 4, shuffle=False, augment=Augment())
    assert not torch.equal(*pictures(same))
    assert all(map(torch.equal, pictures(augmented(3)), first))
    broken = augmented(3)
    next(iter(broken))
    restored = augmented(0)
    restored.load_state_dict(broken.state_dict())
    assert all(map(torch.equal, pictures(restored), first[1:]))


@pytest.mark.parametrize("lazy", [False, True])
def test_a_whole_pass_gives_all_in_order_wherever_the_loader_stands(make_folder, lazy):
    part = image_folder(make_folder(), memory_limit=0 if lazy else 1 << 30).train
    plain = Batches(part.images, part.labels, 4, shuffle=False)
    expected = list(plain)
    batches = Batches(part.images, part.labels, 4, augment=Augment())
    next(iter(batches))
    place = batches.state_dict()
    for _ in range(2):
        for (x, y), (expected_x, expected_y) in zip(batches.whole_pass(), expected, strict=True):
            assert torch.equal(x, expected_x)
            assert torch.equal(y, expected_y)
    assert batches.state_dict() == place


@pytest.mark.parametrize("taken", range(8))
def test_the_state_restores_any_position(taken):
    straight = numbered(seed=5)
    expected = labels(straight) + labels(straight) + labels(straight)
    broken = numbered(seed=5)
    got = []
    while len(got) < taken:
        for _, y in broken:
            got.append(y.tolist())
            if len(got) == taken:
                break
    restored = numbered(seed=99)
    restored.load_state_dict(broken.state_dict())
    while len(got) < len(expected):
        got += labels(restored)
    assert got == expected


def test_the_state_of_another_set_is_refused():
    with pytest.raises(ValueError, match="length 10, this one has 12"):
        numbered(12).load_state_dict(numbered().state_dict())
    with pytest.raises(ValueError, match="batch_size 4, this one has 5"):
        numbered(batch_size=5).load_state_dict(numbered().state_dict())


def test_normalisation():
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    y = torch.zeros(6, dtype=torch.int64)
    ((x, _),) = Batches(images, y, 6, shuffle=False)
    torch.testing.assert_close(x, images / 255)
    mean, std = [10.0, 100.0, 200.0], [5.0, 50.0, 500.0]
    ((x, _),) = Batches(images, y, 6, shuffle=False, mean=mean, std=std)
    shape = (1, 3, 1, 1)
    torch.testing.assert_close(
        x, (images.float() - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    )
    ((x, _),) = Batches(images.float(), y, 6, shuffle=False, mean=mean, std=std)
    torch.testing.assert_close(
        x, (images.float() - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    )
    kept = images.float()
    ((x, _),) = Batches(kept, y, 6, shuffle=False)
    assert torch.equal(x, images.float())
    assert torch.equal(kept, images.float())


def test_arrays_and_lists_are_taken():
    ((x, y),) = Batches(np.ones((2, 1, 3, 3), np.float32), [0, 1], shuffle=False)
    assert x.shape == (2, 1, 3, 3)
    assert y.dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ((torch.zeros(2, 1), torch.zeros(3, dtype=torch.int64)), ValueError, "2 images and 3 labels"),
        ((torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)), ValueError, "empty"),
        ((torch.zeros(2, 1), torch.zeros(2)), TypeError, "integer class numbers"),
        ((torch.zeros(2, 1), torch.zeros(2, 10, dtype=torch.int64)), TypeError, "shape"),
        ((torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), 0), ValueError, "batch_size"),
    ],
)
def test_what_makes_no_batches_is_refused(arguments, kind, said):
    with pytest.raises(kind, match=said):
        Batches(*arguments)


def test_lazy_batches_equal_those_from_memory(make_folder):
    root = make_folder(colour=True)
    kept, lazy = image_folder(root), image_folder(root, memory_limit=0)
    mean, std = kept.statistics()
    pair = [
        Batches(part.train.images, part.train.labels, 4, seed=2, mean=mean, std=std) for part in (kept, lazy)
    ]
    for _ in range(2):
        for (x, y), (lazy_x, lazy_y) in zip(*pair, strict=True):
            assert torch.equal(x, lazy_x)
            assert torch.equal(y, lazy_y)
    state = pair[0].state_dict()
    assert state == pair[1].state_dict()


def test_a_file_that_breaks_while_lazy_leaves_its_batch(make_folder):
    root = make_folder()
    splits = image_folder(root, memory_limit=0)
    for path in splits.train.images.paths[:5]:
        path.write_bytes(path.read_bytes()[:60])
    batches = Batches(splits.train.images, splits.train.labels, 4, shuffle=False)
    for _ in range(2):
        epoch = list(batches)
        assert [len(y) for _, y in epoch] == [3, 4, 4, 4, 1]
        assert torch.cat([y for _, y in epoch]).tolist() == splits.train.labels[5:].tolist()
    assert len(splits.skipped) == 5
