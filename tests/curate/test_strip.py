from PIL import Image

from curate.strip import (
    CELL_PX,
    FRAME_PX,
    GREY,
    LINE_PX,
    LINES,
    MAX_TILES,
    SURVIVOR_COLOUR,
    TILE_PX,
    Tile,
    lines_under,
    strip,
    thumbnail,
)

RED = (255, 0, 0)


def tiles(count: int) -> list[Tile]:
    """Return that many red tiles, the first the survivor."""
    picture = Image.new("RGB", (TILE_PX, TILE_PX), RED)
    return [Tile(uid=f"{n:032d}", is_survivor=n == 0, picture=picture, told=("exact",)) for n in range(count)]


def test_the_strip_has_a_cell_for_each_tile():
    drawn = strip("c" * 32, 3, tiles(3))
    assert drawn.size == (3 * CELL_PX, LINE_PX + CELL_PX + LINES * LINE_PX)
    assert drawn.mode == "RGB"


def test_no_more_than_the_cap_is_drawn():
    assert strip("c" * 32, 500, tiles(MAX_TILES + 5)).size[0] == MAX_TILES * CELL_PX
    assert strip("c" * 32, MAX_TILES, tiles(MAX_TILES)).size[0] == MAX_TILES * CELL_PX


def test_only_the_survivor_has_a_frame():
    drawn = strip("c" * 32, 2, tiles(2))
    middle = LINE_PX + CELL_PX // 2
    assert drawn.getpixel((1, middle)) == SURVIVOR_COLOUR
    assert drawn.getpixel((FRAME_PX, middle)) == RED
    assert drawn.getpixel((CELL_PX - 1, middle)) == SURVIVOR_COLOUR
    assert drawn.getpixel((CELL_PX + 1, middle)) == (255, 255, 255)
    assert drawn.getpixel((CELL_PX + FRAME_PX, middle)) == RED


def test_a_tile_without_picture_is_grey_with_its_uid():
    drawn = strip("c" * 32, 2, [Tile(uid="f" * 32, is_survivor=True, picture=None, told=()), *tiles(2)[1:]])
    area = (FRAME_PX, LINE_PX + FRAME_PX, FRAME_PX + TILE_PX, LINE_PX + FRAME_PX + TILE_PX)
    colours = drawn.crop(area).getcolors(1 << 16)
    assert max(colours)[1] == GREY
    assert len(colours) > 1
    assert drawn.getpixel((1, LINE_PX + 1)) == SURVIVOR_COLOUR


def test_the_header_is_never_cut():
    assert strip("c" * 200, 2, tiles(2)).size[0] > 2 * CELL_PX


def test_a_thumbnail_is_the_whole_picture():
    assert thumbnail(Image.new("RGB", (1600, 800))).size == (160, 80)
    assert thumbnail(Image.new("RGB", (6000, 1))).size == (160, 1)
    assert thumbnail(Image.new("RGB", (40, 30))).size == (40, 30)


def test_the_lines_under_a_member():
    assert lines_under("perceptual", 3.0, "resolution") == ("perceptual", "distance 3 bits", "lost by resolution")
    assert lines_under("semantic", 0.03125, "uid") == ("semantic", "distance 0.0312", "lost by uid")
    assert lines_under("error_image", None, None) == ("error_image",)
