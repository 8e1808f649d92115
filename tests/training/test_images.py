import numpy as np
import pytest
from PIL import Image

from fastcnn.data import DataError, UnreadableImage, find_readable_paths, read_image


def save(tmp_path, image, name="picture.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_grey_is_one_channel_and_colour_three(tmp_path):
    grey = save(tmp_path, Image.new("L", (50, 20), 77), "grey.png")
    rgb_grey = save(tmp_path, Image.new("RGB", (50, 20), (77, 77, 77)), "rgb_grey.png")
    colour = save(tmp_path, Image.new("RGB", (50, 20), (200, 10, 0)), "colour.png")
    for path in (grey, rgb_grey):
        assert read_image(path, 28).shape == (1, 28, 28)
        assert (read_image(path, 28) == 77).all()
        assert (read_image(path, 28, channels=3) == np.full((3, 28, 28), 77)).all()
    assert read_image(colour, 28)[:, 0, 0].tolist() == [200, 10, 0]
    assert read_image(colour, 28, channels=1).shape == (1, 28, 28)


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    deep = np.array([[0, 65535], [257 * 100, 257 * 200]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        pixels = read_image(save(tmp_path, Image.fromarray(deep), name), 2)
        assert pixels.tolist() == [[[0, 255], [100, 200]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([[0.0, 1.0], [0.5, 0.2]], [0, 255, 128, 51]), ([[0.0, 255.0], [7.0, 9.0]], [0, 255, 7, 9])],
)
def test_floating_point_pictures_go_by_their_range(tmp_path, values, expected):
    path = save(tmp_path, Image.fromarray(np.array(values, np.float32)), "float.tif")
    assert read_image(path, 2).reshape(-1).tolist() == expected


def test_transparency_lies_on_white(tmp_path):
    clear = save(tmp_path, Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "clear.png")
    assert (read_image(clear, 8) == 255).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    solid = save(tmp_path, palette, "palette.png")
    assert read_image(solid, 8)[:, 0, 0].tolist() == [10, 200, 30]
    transparent = save(tmp_path, palette, "transparent.png", transparency=1)
    assert (read_image(transparent, 8) == 255).all()


@pytest.mark.parametrize("mode", ["1", "LA", "CMYK", "YCbCr"])
def test_other_modes_are_read(tmp_path, mode):
    white = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    name = "white.png" if mode in ("1", "LA") else "white.jpg"
    assert (read_image(save(tmp_path, white, name), 8, channels=1) >= 254).all()


def test_exif_orientation_turns_the_picture_upright(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways: turn by 90 degrees clockwise
    path = save(tmp_path, Image.fromarray(pixels), exif=exif)
    assert read_image(path, 8)[0].tolist() == np.rot90(pixels, -1).tolist()


def test_a_huge_jpeg_keeps_its_values(tmp_path):
    path = save(tmp_path, Image.new("L", (900, 700), 120), "big.jpg")
    assert (np.abs(read_image(path, 28).astype(int) - 120) <= 1).all()


def test_what_cannot_be_decoded_is_said(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("this is no picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    whole = save(tmp_path, Image.fromarray(noise), "whole.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:1500])
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for path, said in (
        (text, "not an image"),
        (cut, "truncated"),
        (empty, "not an image"),
        (tmp_path / "x", "No such"),
    ):
        with pytest.raises(UnreadableImage, match=said):
            read_image(path, 28)


def test_folders_are_searched_for_images(tmp_path):
    for name in ("b.png", "a/c.JPG", "a/.hidden.png", ".git/d.png", "a/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = find_readable_paths([str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/c.JPG", "b.png"]
    with pytest.raises(DataError, match="no file or folder"):
        find_readable_paths([str(tmp_path / "nothing.png")])
