"""Where the pixels of a picture lie in memory that only a GPU reads, and how to look at them the right way up."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .tensors import DeviceTensor


@dataclass(frozen=True)
class Pixels:
    """A uint8 RGB picture: ``address`` of red in its upper left corner, and how many bytes are to the next row etc.

    Turning it moves nothing.
    """

    address: int
    height: int
    width: int
    row: int
    column: int
    channel: int

    @classmethod
    def of(cls, tensor: DeviceTensor, channels: str) -> Pixels:
        """A tensor uint8 [H, W, 3]; ``channels`` is its order, "rgb" or "bgr"."""
        (height, width, _), (row, column, channel) = tensor.shape, tensor.strides
        if channels == "bgr":
            return cls(tensor.address + 2 * channel, height, width, row, column, -channel)
        return cls(tensor.address, height, width, row, column, channel)

    def upright(self, orientation: object) -> Pixels:
        """Turned as EXIF's orientation (1 to 8) says; everything else counts as 1."""
        turned = self
        if orientation in (5, 6, 7, 8):
            turned = turned._transposed()
        if orientation in (2, 3, 6, 7):
            turned = turned._mirrored()
        if orientation in (3, 4, 7, 8):
            turned = turned._upside_down()
        return turned

    def _transposed(self) -> Pixels:
        return replace(self, height=self.width, width=self.height, row=self.column, column=self.row)

    def _mirrored(self) -> Pixels:
        return replace(self, address=self.address + (self.width - 1) * self.column, column=-self.column)

    def _upside_down(self) -> Pixels:
        return replace(self, address=self.address + (self.height - 1) * self.row, row=-self.row)
