"""nvImageCodec: NVIDIA's decoder, which leaves pictures in the memory of the GPU."""

from __future__ import annotations

import base64
from typing import Any

from .cuda import Stream
from .errors import BackendUnavailableError
from .quiet import import_nvimgcodec
from .tensors import DeviceTensor

INSTALL = "Run: pip install 'declip-sdk[nvimagecodec]'"

# Chroma is interpolated as libjpeg does it, and not repeated.
_OPTIONS = ":fancy_upsampling=1"

# 8 x 8 grey pixels: whether anything decodes at all shows only when something is decoded.
_PROBE = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PTgy"
    "PC4zNDL/wAALCAAIAAgBAREA/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEG"
    "E1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJ"
    "ipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/ACv/2Q=="
)


def unavailable() -> str | None:
    """None where nvImageCodec can be imported, else the reason and the fix."""
    try:
        import_nvimgcodec()
    except ModuleNotFoundError:
        return f"nvImageCodec is not installed. {INSTALL}"
    except (ImportError, OSError) as error:
        return f"nvImageCodec cannot be loaded ({error}). {INSTALL}"
    return None


class JpegDecoder:
    """Decodes JPEGs on GPU ``device``, by one thread at a time; None decodes on the CPU, for tests without a GPU.

    Raises BackendUnavailableError where it cannot.
    """

    def __init__(self, device: int | None) -> None:
        self._device = device
        reason = unavailable()
        if reason is not None:
            raise BackendUnavailableError(reason)
        nvimgcodec = import_nvimgcodec()
        kinds = nvimgcodec.BackendKind
        wanted = [kinds.CPU_ONLY] if device is None else [kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU]
        try:
            self._decoder: Any = nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY if device is None else device,
                max_num_cpu_threads=1,  # whoever calls has threads
                backends=[nvimgcodec.Backend(kind) for kind in wanted],
                options=_OPTIONS,
            )
        except RuntimeError as error:
            raise BackendUnavailableError(f"nvImageCodec cannot start ({error}). Update NVIDIA's driver.") from error
        self._parameters = nvimgcodec.DecodeParams(apply_exif_orientation=False)
        if self._decode(_PROBE, 0) is None:
            raise BackendUnavailableError(
                f"nvImageCodec {nvimgcodec.__version__} decodes no JPEG, usually because nvJPEG is missing. {INSTALL}"
            )

    def decode(self, content: bytes, stream: Stream) -> DeviceTensor | None:
        """Red, green and blue, uint8 [H, W, 3], there for work that ``stream`` is given from now on.

        None where nvImageCodec does not decode it, for whatever reason: it does not say.
        """
        image = self._decode(content, stream.handle)
        if image is None:
            return None
        memory = image.__array_interface__ if self._device is None else image.__cuda_array_interface__
        return DeviceTensor(image, self._device or 0, memory["data"][0], str(image.dtype), image.shape, image.strides)

    def _decode(self, content: bytes, stream: int) -> Any:
        try:
            return self._decoder.decode(content, params=self._parameters, cuda_stream=stream)
        except (RuntimeError, ValueError):  # what is no picture at all
            return None
