"""The one function that opens images: what becomes of orientation, depth, colours and transparency, and of damage."""

import io
import itertools
import struct
import warnings

import numpy as np
import pytest
from image_files import data_config, picture, splits
from PIL import Image, ImageFile

from dk_bench.analysis.pictures import open_pictures
from dk_bench.data.pixels import TURNS, check_size, is_image_name, open_image
from dk_bench.data.sources import open_images
from dk_bench.errors import UserError

RAMP = np.linspace(0, 65535, 24 * 20).astype(np.uint16).reshape(20, 24)
CORNERS = np.zeros((16, 24, 3), np.uint8)  # red above on the left, green on the right, blue below on the left
CORNERS[:8, :12, 0] = CORNERS[:8, 12:, 1] = CORNERS[8:, :12, 2] = 255


def oriented(path, number, pixels=CORNERS, **options):
    """Saves the picture so that it is upright once the orientation is applied."""
    undo = {None: None, 1: None, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    image, turn = Image.fromarray(pixels), undo.get(number, TURNS.get(number))  # all others are their own inverse
    exif = Image.Exif()
    if number is not None:
        exif[0x0112] = number
    (image if turn is None else image.transpose(turn)).save(path, exif=exif, **options)
    return path


def array(path, size=None):
    return np.asarray(open_image(path, size))


# Everywhere the same


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "deep.png", "deep.tif"])
def test_training_evaluation_and_analysis_see_the_same_pixels(tmp_path, name):
    splits(tmp_path)
    for split in ("train", "val"):
        for path in (tmp_path / split / "ant").iterdir():
            path.unlink()
        path = tmp_path / split / "ant" / name
        Image.fromarray(RAMP).save(path) if "deep" in name else oriented(path, 6)
    expected = array(tmp_path / "train" / "ant" / name)
    assert expected.shape == ((20, 24, 3) if "deep" in name else (16, 24, 3))
    for split in ("train", "val"):
        assert np.array_equal(np.asarray(open_images(data_config(tmp_path), split)[0][0]), expected)
    (seen,) = open_pictures(str(path), 24, 1)
    assert np.array_equal(np.asarray(seen.image), np.asarray(Image.fromarray(expected).resize((24, 24))))


def test_ordinary_files_keep_their_bits():
    """Those that records were made with: as Pillow decodes them, which is as OpenCV does for JPEG and PNG."""
    cv2 = pytest.importorskip("cv2")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)).resize((106, 74))
    ways = [{"format": name} for name in ("PNG", "BMP", "TIFF", "JPEG", "WEBP")]
    ways += [{"format": "JPEG", "progressive": True}, {"format": "JPEG", "subsampling": 0, "quality": 95}]
    for mode, options in itertools.product(("RGB", "L"), ways):
        stream = io.BytesIO()
        noise.convert(mode).save(stream, **options)
        found = np.asarray(open_image(stream))
        assert np.array_equal(found, np.asarray(Image.open(stream).convert("RGB"))), (mode, options)
        if options["format"] in ("JPEG", "PNG"):
            decoded = cv2.imdecode(np.frombuffer(stream.getvalue(), np.uint8), cv2.IMREAD_COLOR)
            assert np.array_equal(found, decoded[..., ::-1]), (mode, options)


# Orientation


def check_upright(folder, suffix, number):
    path = oriented(folder / f"x.{suffix}", number, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(array(path), CORNERS), (suffix, number)
    assert np.array_equal(array(path, (24, 16)), CORNERS), (suffix, number)
    check_size(path, (24, 16))


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("number", range(2, 9))
def test_photographs_are_set_upright(tmp_path, suffix, number):
    check_upright(tmp_path, suffix, number)


def test_upright_photographs_stay(tmp_path):
    """Those without an orientation, or that Pillow turns by itself; a number that is no orientation is none."""
    for suffix, number in [*itertools.product(("png", "webp"), (None, 1)), *(("tif", n) for n in (None, *range(1, 9)))]:
        check_upright(tmp_path, suffix, number)
    for number in (0, 9, 65535):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(CORNERS).save(tmp_path / "x.png", exif=exif)
        assert np.array_equal(array(tmp_path / "x.png"), CORNERS)


def test_damaged_exif_is_no_orientation(tmp_path):
    Image.fromarray(CORNERS).save(tmp_path / "x.png", exif=b"Exif\0\0no TIFF at all")
    oriented(tmp_path / "y.jpg", 6)
    content = bytearray((tmp_path / "y.jpg").read_bytes())
    content[content.index(b"Exif\0\0") + 10 : content.index(b"Exif\0\0") + 14] = struct.pack(">I", 60000)
    (tmp_path / "y.jpg").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(array(tmp_path / "x.png"), CORNERS)
        assert array(tmp_path / "y.jpg").shape == (24, 16, 3)


def test_the_stated_size_decides_which_way_a_photograph_lies(tmp_path):
    path = oriented(tmp_path / "x.png", 6)
    stored = np.asarray(Image.open(path))
    assert stored.shape == (24, 16, 3)
    assert np.array_equal(array(path, (16, 24)), stored)  # boxes were measured on it as it is stored
    check_size(path, (16, 24))
    square = CORNERS[:, :16]
    for number in (3, 6):  # both sizes are the stated one: upright
        path = oriented(tmp_path / "square.png", number, square)
        assert np.array_equal(array(path, (16, 16)), square)
    for opens in (open_image, check_size):
        with pytest.raises(UserError, match=r"x\.png is 24 x 16; its annotation says 24 x 17"):
            opens(tmp_path / "x.png", (24, 17))


# Depth and colours


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("pixels", [RAMP, np.where(np.arange(480).reshape(20, 24) % 2, 300, 40000).astype(np.uint16)])
def test_of_sixteen_bits_the_upper_eight_are_kept(tmp_path, suffix, pixels):
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}")
    found = array(tmp_path / f"x.{suffix}")
    assert np.array_equal(found, np.repeat((pixels >> 8)[..., None], 3, axis=2))


def test_sixteen_bits_of_either_byte_order_and_of_colour(tmp_path):
    for mode in ("I;16B", "I;16"):
        image = Image.frombytes(mode, (24, 20), RAMP.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        image.save(tmp_path / "x.tif")
        assert np.array_equal(array(tmp_path / "x.tif")[..., 0], RAMP >> 8)
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "x.png"), np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]]))
    found = array(tmp_path / "x.png")
    assert np.array_equal(found, np.dstack([RAMP[:, ::-1], RAMP[::-1], RAMP]) >> 8)


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (RAMP.astype(np.int32) * 2, "its grey values are 0 to 131070, expected 0 to 65535"),
        (RAMP.astype(np.int32) - 5, "its grey values are -5 to 65530, expected 0 to 65535"),
        (RAMP >> 8, "its grey values, up to 255 of 65535, are all black in eight bits; expected a file of eight bits"),
        (RAMP.astype(np.float32) / 65535, "its pixels are floating-point numbers, expected 8 or 16 bits a channel"),
    ],
)
def test_pixels_without_known_black_and_white_are_named(tmp_path, pixels, text):
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=rf"image .*x\.tif cannot be read: {text}"):
        open_image(tmp_path / "x.tif")


def test_transparency_is_dropped(tmp_path, recwarn):
    shades = (RAMP >> 8).astype(np.uint8)
    for alpha in (np.zeros_like(shades), shades):
        Image.fromarray(np.dstack([shades, alpha]), "LA").save(tmp_path / "grey.png")
        Image.fromarray(np.dstack([shades, shades, shades, alpha]), "RGBA").save(tmp_path / "colour.png")
        Image.fromarray(shades).convert("P").save(tmp_path / "palette.png", transparency=alpha.tobytes()[:256])
        Image.fromarray(shades).save(tmp_path / "key.png", transparency=7)
        for path in tmp_path.iterdir():
            assert np.array_equal(array(path), np.repeat(shades[..., None], 3, axis=2)), path
    assert not [w for w in recwarn if "ransparency" in str(w.message)]


def test_other_colours(tmp_path):
    Image.fromarray(CORNERS).convert("CMYK").save(tmp_path / "x.tif")
    Image.fromarray(CORNERS).convert("P").save(tmp_path / "x.gif")
    Image.fromarray(CORNERS[..., 0] > 0).save(tmp_path / "x.pbm")
    assert np.array_equal(array(tmp_path / "x.tif"), CORNERS) and np.array_equal(array(tmp_path / "x.gif"), CORNERS)
    assert np.array_equal(array(tmp_path / "x.pbm"), np.repeat(CORNERS[..., :1], 3, axis=2))
    Image.fromarray(CORNERS).convert("YCbCr").save(tmp_path / "y.tif")
    assert np.abs(array(tmp_path / "y.tif").astype(int) - CORNERS).max() < 4


def test_first_frame_counts(tmp_path):
    frames = [Image.fromarray(CORNERS), Image.fromarray(255 - CORNERS)]
    for suffix in ("gif", "png", "webp", "tif"):
        lossless = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **lossless)
        assert np.array_equal(array(tmp_path / f"x.{suffix}"), CORNERS), suffix


# Damage


def test_files_cut_short_are_named(tmp_path):
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    for suffix in ("jpg", "png", "bmp", "gif", "tif", "webp", "ppm", "avif"):
        path = picture(tmp_path / f"x.{suffix}", size=(64, 48))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(UserError, match=rf"image .*x\.{suffix} cannot be read: \S"):
            open_image(path)


def test_what_is_no_image_is_named(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    picture(tmp_path / "large.png", size=(100, 100))
    for name, why in (("text", "not an image"), ("empty", "the file is empty"), ("none", "No such file")):
        with pytest.raises(UserError, match=rf"image .*{name}\.png cannot be read: {why}"):
            open_image(tmp_path / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"image .*large\.png cannot be read: .*decompression bomb"):
        open_image(tmp_path / "large.png")
    with pytest.raises(UserError, match="^the third cannot be read: not an image"):
        open_image(io.BytesIO(b"no"), name="the third")


def test_names_of_images():
    for name in ("a.png", "A.JPEG", "b.mpo", "c.webp", "d.TIF", "e.f.jpg"):
        assert is_image_name(name), name
    for name in ("a", ".png", "a.pdf", "a.txt", "a.mpg", "a.png.part", "a.h5", "png"):
        assert not is_image_name(name), name


# Folders of pictures for receptive fields


def test_pictures_below_a_folder(tmp_path):
    for name in ("b/x.tif", "a/y.gif", "a/x.webp", "z.png", "@eaDir/n.png"):
        picture(tmp_path / name)
    (tmp_path / "a" / ".DS_Store").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert [each.name for each in open_pictures(str(tmp_path), 8, 9)] == ["a/x.webp", "a/y.gif", "b/x.tif", "z.png"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"--images .*: notes\.txt \(no image by its name's end\) is not used"):
        open_pictures(str(tmp_path), 8, 9)
