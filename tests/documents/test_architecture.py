"""The picture of the architecture can be read, and shows the packages and layers that there are."""

import io
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
import resvg_py
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from local.programs import ROOT

PICTURE = ROOT / "docs/architecture.svg"
SVG = "{http://www.w3.org/2000/svg}"
# A wide font: text that fits in it fits in the others that the picture names.
FONTS = Path(mpl.get_data_path()) / "fonts/ttf"
DARK = re.compile(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n    \}", re.DOTALL)
# Of text against what is behind it (WCAG 2.2, 1.4.3).
LEAST_CONTRAST = 4.5
# The layers that are packages, of each program. What a worker runs are packages of the service.
PACKAGES = {"gateway": "gateway", "service": "service", "worker": "service"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A text of the picture, in the picture's units of length."""

    text: str
    is_name: bool
    middle: float
    baseline: float
    room: float
    """The width of the rectangle around it, infinite if it has none of its own."""

    @property
    def size(self) -> int:
        return 13 if self.is_name else 12

    @property
    def width(self) -> float:
        font = FontProperties(family="DejaVu Sans", weight="bold" if self.is_name else "normal")
        return float(TextPath((0, 0), self.text, size=self.size, prop=font).get_extents().width)


def picture() -> ElementTree.Element:
    return ElementTree.fromstring(PICTURE.read_text("utf-8"))  # noqa: S314  our own file


def labels() -> Iterator[Label]:
    """Every text but the names of groups."""
    for parent in picture().iter():
        if parent.get("class") == "group":
            continue
        rectangle = parent.find(f"{SVG}rect") if parent.tag == f"{SVG}g" else None
        for text in parent.findall(f"{SVG}text"):
            middle = float(text.attrib["x"])
            room = math.inf
            if rectangle is not None:
                left, width = (float(rectangle.attrib[name]) for name in ("x", "width"))
                room = 2 * min(middle - left, left + width - middle)
            yield Label(
                text=text.text or "",
                is_name=text.get("class") == "name",
                middle=middle,
                baseline=float(text.attrib["y"]),
                room=room,
            )


def layers(program: str) -> dict[str, int]:
    """The modules of a program with their layer, 0 the highest, as `make lint` checks them."""
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    [contract] = [
        contract
        for contract in configuration["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == [program]
    ]
    return {
        module.strip(): depth
        for depth, layer in enumerate(contract["layers"])
        for module in layer.split("|")
    }


def luminance(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Relative luminance (WCAG 2.2) of pixels of red, green and blue from 0 to 1."""
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    weighted: np.ndarray[Any, Any] = linear[..., :3] @ np.array([0.2126, 0.7152, 0.0722])
    return weighted


def test_every_text_fits_in_its_rectangle() -> None:
    for label in labels():
        assert label.width <= label.room, f"{label.text}: {label.width:.0f} of {label.room:.0f}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_is_legible_when_rendered(scheme: str) -> None:
    text = PICTURE.read_text("utf-8")
    [dark] = DARK.findall(text)
    # The renderer knows no media queries.
    text = DARK.sub(lambda _: dark if scheme == "dark" else "", text)
    png = resvg_py.svg_to_bytes(
        svg_string=text,
        zoom=2,
        skip_system_fonts=True,
        font_files=[str(FONTS / name) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")],
        font_family="DejaVu Sans",
    )
    pixels = matplotlib.image.imread(io.BytesIO(png))
    assert luminance(pixels[0, 0, :3]) == pytest.approx(1 if scheme == "light" else 0, abs=0.02)
    for label in labels():
        bottom, half = 2 * label.baseline, label.width
        box = pixels[
            round(bottom - 2 * 0.75 * label.size) : round(bottom),
            round(2 * label.middle - half) : round(2 * label.middle + half),
        ]
        shades = luminance(box)
        contrast = (shades.max() + 0.05) / (shades.min() + 0.05)
        assert contrast >= LEAST_CONTRAST, f"{label.text}: {contrast:.1f}"


@pytest.mark.parametrize(("group", "program"), PACKAGES.items())
def test_the_picture_shows_packages_in_the_order_of_their_layers(group: str, program: str) -> None:
    [drawn] = [each for each in picture().iter(f"{SVG}g") if each.get("id") == group]
    heights = {
        box.findtext(f"{SVG}text", ""): float(box.find(f"{SVG}rect").attrib["y"])  # type: ignore[union-attr]
        for box in drawn.findall(f"{SVG}g[@class='box']")
    }
    depths = layers(program)
    assert len(heights) > 2
    for name, height in heights.items():
        assert (ROOT / program / name / "__init__.py").exists(), f"{program}/{name} is no package"
        higher = {other for other in heights if depths[other] < depths[name]}
        assert all(heights[other] <= height for other in higher), f"{name} is drawn too high"


@pytest.mark.parametrize("program", ["service", "gateway"])
def test_the_tables_of_layers_are_those_that_are_checked(program: str) -> None:
    text = (ROOT / "docs/development.md").read_text("utf-8")
    [table] = re.findall(
        rf"^\| layer of `{program}/` \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE
    )
    described = {
        module: depth
        for depth, row in enumerate(table.splitlines())
        for module in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert described == layers(program)
