"""Changes the colours of a picture for losses that compare two views of it, as SimCLR does (Chen et al. 2020, arXiv 2002.05709)."""

from random import Random

import cv2
import numpy as np
import numpy.typing as npt

_JITTER_SHARE, _JITTER, _HUE = 0.8, 0.4, 0.1  # of brightness, contrast and saturation; of the circle of hues
_GREY_SHARE = 0.2
_BLUR_SHARE, _BLUR_SIGMA = 0.5, (0.1, 2.0)  # standard deviation in pixels of a picture of 224
_BLUR_SIZE = 224
_FLIP_SHARE = 0.5


def augment_picture(image: npt.NDArray[np.uint8], generator: Random) -> None:
    """Flip, jitter the colours, make grey and blur in place, each with SimCLR's probability; `image` is (S, S, 3), RGB."""
    if generator.random() < _FLIP_SHARE:
        image[:] = image[:, ::-1].copy()
    if generator.random() < _JITTER_SHARE:
        _jitter(image, generator)
    if generator.random() < _GREY_SHARE:
        image[:] = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    if generator.random() < _BLUR_SHARE:
        low, high = _BLUR_SIGMA
        sigma = (low + (high - low) * generator.random()) * image.shape[0] / _BLUR_SIZE
        image[:] = cv2.GaussianBlur(image, (0, 0), max(sigma, 1e-2))


def _jitter(image: npt.NDArray[np.uint8], generator: Random) -> None:
    brightness, contrast, saturation = (generator.uniform(1 - _JITTER, 1 + _JITTER) for _ in range(3))
    pixels = image.astype(np.float32) * brightness
    mean = float(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean())
    pixels = (pixels - mean) * contrast + mean
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
    pixels = (pixels - grey) * saturation + grey
    hsv = cv2.cvtColor(np.clip(pixels, 0, 255).astype(np.uint8), cv2.COLOR_RGB2HSV)
    # OpenCV's hues of 8-bit pictures go from 0 to 179.
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(180 * generator.uniform(-_HUE, _HUE))) % 180
    image[:] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
