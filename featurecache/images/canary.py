"""A pixel canary: a digest of a view's pixels on reference pictures, for this kind of machine.

The libraries that compute a view choose their code by the CPU (SIMD, IPP, OpenBLAS), so another
kind of machine may round some pixels differently. Keys do not contain this. Every shard records
the canary of the machine that computed its pixels, and differences are reported.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import platform

import numpy as np
from PIL import Image, features

from featurecache import keys, versions
from featurecache.errors import FeatureCacheError
from featurecache.images.decode import Undecodable, decode
from featurecache.images.views import View

DRAWS = 24  # enough to run every augmenter of the shipped policies
# The libraries that decide a picture's last bits.
LIBRARIES = (
    "featurecache",
    "h5py",
    "imaug",
    "numba",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "scikit-image",
    "scipy",
    "simplejpeg",
)
TORCH_LIBRARIES = ("torch", "torchvision")  # those of a policy with transforms, beside the others
# 72x56 pixels with halved chroma, quality 70: gradients and a red square, encoded by Pillow. As
# bytes, so that the JPEG library that decodes it is part of the canary.
_JPEG = base64.b64decode(
    """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAoHBwgHBgoICAgLCgoLDhgQDg0NDh0VFhEYIx8lJCIfIiEmKzcvJik0KSEiMEEx
NDk7Pj4+JS5ESUM8SDc9Pjv/2wBDAQoLCw4NDhwQEBw7KCIoOzs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7Ozs7
Ozs7Ozs7Ozs7Ozs7Ozv/wAARCAA4AEgDASIAAhEBAxEB/8QAGwAAAwEBAQEBAAAAAAAAAAAAAAQFAwYHAgj/xAAsEAAABQME
AQMCBwAAAAAAAAAAAQIDBBExYQUSIUEGUYGxE3EUIiRCocHw/8QAGwEAAwADAQEAAAAAAAAAAAAABAUGAAIDAQf/xAAoEQAB
BAEDAwMFAQAAAAAAAAABAAIDEQQFITESQVETcaFhkcHR8OH/2gAMAwEAAhEDEQA/APIWkmZ1PkzDjTQyYQKDLdhQ40C6NNIb
ZwGUMYGrTQdaYwG7IhSJY+ksiNgbJi4DzcfAabjYGkjBSOjmpTExMDQoWBXREwN0Q8BFlgUmMWRSh/gcAHRJhYAJOeutM2ZW
y8vjpsL0PTicYS79Sm7rbkRoxWHTQCpCb9/kxWahky42OHxGjddvB8qc0bFiycgslFir7+R4QiGSP319gyy2W4kgGsQt0lBf
f4CvE1fNfkMY5+xIB2Hn2VDlaVhx48j2s3AJ5PYe6bZYwHWo2BqwxbgUGI+BYTSClENlpLNRcBpuHgPMxcB5qJgTebKKKJZP
SmIhYAL7UPABGZE460U3J2X53iFYdBDeoylvbbuogw+hdhpsL9zYshgZKLHP9SEhyZsV5fEaPHb8qk0ybvdBQh6eaH0ufUrT
raMIiLC3FbsNW4WFG4Pazcb8n9raXWc57Cxz9iKOw/Sajs24FSPHtwMYrNhYjMW4GZGUKSUyUhiNgfWoahA0SOl6c7s3V2IS
VVLMirQi/s+OS5EvyXyVGjNnDhmlc9ZcncmSPs8+he58UI+IWb86UuVKcU686dVLV3/vQKzAZm9chpvyU907TX5AEkppvyf8
/vqq+o+X6rqVW436Fn0aV+c7XXe5dUvQ6gE91BRYbr9CqhPFSqVev5AAS2OyI2ign2RqOn6dUT21e/F/defQuh0EIrAAD45X
UpmUK/DTYXYbdgAHr5X0lsiuxGrcBLyPydGjNnDhmlc9ZcncmSPs8+he58UIwA44w9afpfwBaI0uBmRldMgsAWuHix7cCxGj
W4AAZqE76O6t3OKy1xO1hqMm6z3KororVL7/AAAABN+s8AL5br0736g+zxQ+F//Z
"""
)


@functools.lru_cache(maxsize=64)
def pixel_canary(view: View) -> str:
    """The first 16 digits of the SHA-256 over `view` of the reference pictures on this machine.

    Covers decoding a JPEG, DRAWS draws of the policy, and resizing. Cached per process.
    """
    total = hashlib.sha256()
    with Image.open(io.BytesIO(_JPEG)) as image:  # Pillow's own JPEG library is another build
        total.update(np.asarray(image.convert("RGB")).tobytes())
    side = None if view.jpeg_side is None else 28  # half of the height of the JPEG
    pictures = (decode(_JPEG, side), _pattern(64, 96))
    for draw in range(DRAWS if view.policy else len(pictures)):
        item = hashlib.sha256(f"pixel canary {draw}".encode()).digest()
        try:
            pixels = view.picture(pictures[draw % len(pictures)], item)
        except (FeatureCacheError, Undecodable) as error:
            # The policy needs a larger picture. Rewording such an error changes the canary.
            total.update(str(error).encode())
            continue
        total.update(str(pixels.shape).encode() + pixels.tobytes())
        resized = Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC)
        total.update(resized.tobytes())
    return total.hexdigest()[:16]


def _pattern(height: int, width: int) -> np.ndarray:
    """Edges, gradients and noise, (height, width, 3) uint8, by integer arithmetic."""
    y, x = np.mgrid[:height, :width]
    noise = (x * 7919 + y * 104729 + x * y * 31) % 251
    red = (x * 2 + y) % 256
    green = np.where((x // 16 + y // 16) % 2 == 0, 230, 25)
    return np.stack([red, green, noise], axis=-1).astype(np.uint8)


def pixel_provenance(view: View) -> dict[str, str]:
    """What can change the last bits of a picture but is not in its key.

    This is the canary, and the versions and the kind of machine that explain a difference.
    """
    provenance = {
        keys.PIXEL_CANARY: pixel_canary(view),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "libjpeg_turbo": features.version_feature("libjpeg_turbo") or "none",  # Pillow's
    }
    libraries = view.policy.libraries if view.policy else []
    if "imaug" in libraries:  # building the policy has imported OpenCV
        provenance |= _opencv()
    if "torchvision" in libraries:
        provenance |= _torch()
    return provenance | versions.installed_versions(*LIBRARIES)


@functools.cache
def _torch() -> dict[str, str]:
    """The versions of torchvision and torch, and the code path that torch chose for this CPU."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch_cpu": capability} | versions.installed_versions(*TORCH_LIBRARIES)


@functools.cache
def _opencv() -> dict[str, str]:
    """The code paths that OpenCV, NumPy and its OpenBLAS chose for this CPU."""
    import cv2
    import threadpoolctl

    ipp = cv2.ipp.getIppVersion() if cv2.ipp.useIPP() else "off"
    blas = [
        library["architecture"]
        for library in threadpoolctl.threadpool_info()
        if "numpy" in library["filepath"] and "architecture" in library
    ]
    simd = np.show_config(mode="dicts") or {}
    extensions = simd.get("SIMD Extensions", {}).get("found", [])
    return {
        "opencv_cpu": cv2.getCPUFeaturesLine(),
        "opencv_ipp": ipp,
        "numpy_cpu": " ".join(extensions),
        "numpy_blas": " ".join(blas) or "unknown",
    }
