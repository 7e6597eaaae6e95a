"""The layers of the networks of papers 001, 003 and 004, as far as the papers tell them.

A paper's figures of its networks are pictures, so where its text gives no number one is chosen
here, and the docstring says which.
"""

from __future__ import annotations

from featurecache.architectures.plain_networks import Convolution, PlainShape

HALVES = (2, 2)  # max pooling of 2x2 pixels
ALPHANET_SLOPE = 0.3
ALPHANET_DENSE = (1024, 1024)


def alphanet(version: int) -> PlainShape:
    """Paper 001: convolutions with batch norm, leaky ReLU, max pooling and dropout, like AlexNet.

    From the paper: the order of the layers; dropouts of 0.4 (convolutions) and 0.5 (dense layers)
    in the first version, 0.2 in the others; dense layers of 2,048 units, from the third version on
    of 1,024; pictures of 72 pixels in the third version. Chosen: AlexNet's five convolutions, of
    64, 128 and three times 256 channels, all 3x3, with pooling after the first, second and fifth;
    two dense layers; a slope of 0.3 below 0, which is Keras's.
    """
    conv, dense = (0.4, 0.5) if version == 1 else (0.2, 0.2)
    return PlainShape(
        convolutions=(
            Convolution(width=64, pool=HALVES, dropout=conv),
            Convolution(width=128, pool=HALVES, dropout=conv),
            Convolution(width=256, dropout=conv),
            Convolution(width=256, dropout=conv),
            Convolution(width=256, pool=HALVES, dropout=conv),
        ),
        dense=(2048, 2048) if version < 3 else ALPHANET_DENSE,
        dropout=dense,
        slope=ALPHANET_SLOPE,
        input_size=72 if version == 3 else 64,
    )


def convnet9() -> PlainShape:
    """Paper 003: the nine convolutions of the third assignment of Stanford's course CS231n.

    From the paper: dropouts of 0.25 after the third and the sixth convolution and of 0.5 after the
    dense layer, an epsilon of 1e-6 in batch norms. From the assignment of 2015: a 5x5 and eight 3x3
    kernels, every other one with a stride of 2, and a dense layer of 512 units.
    """
    widths = (64, 64, 128, 128, 256, 256, 512, 512, 1024)
    return PlainShape(
        convolutions=tuple(
            Convolution(
                width=width,
                kernel=3 if index else 5,
                stride=1 if index % 2 else 2,
                dropout=0.25 if index in (2, 5) else 0.0,
            )
            for index, width in enumerate(widths)
        ),
        dense=(512,),
        dropout=0.5,
        norm_epsilon=1e-6,
    )


def vgg_like() -> PlainShape:
    """Paper 003: the small network of Keras's documentation of that time.

    From the paper: four convolutions, dropouts of 0.25 after the second and the fourth, and of 0.5
    after the first dense layer. From Keras's example: twice 32 and twice 64 channels, 3x3 without
    padding, pooling after each pair, a dense layer of 256 units, no batch norm.
    """
    convolutions = (
        Convolution(width=width, padding=0, norm="none", pool=pool, dropout=0.25 if pool else 0.0)
        for width, pool in ((32, None), (32, HALVES), (64, None), (64, HALVES))
    )
    return PlainShape(
        convolutions=tuple(convolutions), dense=(256,), dropout=0.5, has_dense_norm=False
    )


def vgg16_64() -> PlainShape:
    """Paper 003: VGG-16 on pictures of 64 pixels, so that its first dense layer takes 2x2 maps.

    From the paper: dropouts of 0.75 after both dense layers. The layers are those of Simonyan and
    Zisserman 2014. Paper 003 starts the convolutions with ImageNet weights; for these take timm's
    `vgg16`, with an input size of 64, which averages its maps to 7x7.
    """
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    last_of_block = (1, 3, 6, 9, 12)
    return PlainShape(
        convolutions=tuple(
            Convolution(width=width, norm="none", pool=HALVES if index in last_of_block else None)
            for index, width in enumerate(widths)
        ),
        dense=(4096, 4096),
        dropout=0.75,
        has_dense_norm=False,
    )


def alexnet() -> PlainShape:
    """Paper 003: AlexNet as the author tried it in Keras, and could not train for lack of memory.

    From the paper: four convolutions, the first with 64 kernels of 11x11. Chosen: 128 kernels of
    7x7, then 192 and 256 of 3x3; after each batch norm, ReLU and AlexNet's overlapping pooling (3x3
    with a stride of 2); two dense layers of 4,096 units with dropouts of 0.5, as in AlexNet.
    """
    kernels = ((64, 11), (128, 7), (192, 3), (256, 3))
    return PlainShape(
        convolutions=tuple(
            Convolution(width=width, kernel=kernel, pool=(3, 2)) for width, kernel in kernels
        ),
        dense=(4096, 4096),
        dropout=0.5,
    )


def smallnet(input_size: int) -> PlainShape:
    """Paper 004: three convolutions and two dense layers.

    From the paper: the order of the layers, all widths, kernels and poolings, and pictures of 64
    pixels, or of 28 for digits. Chosen: padding that keeps the size, ReLU after the first dense
    layer, and a dropout of 0.5.
    """
    return PlainShape(
        convolutions=(
            Convolution(width=16, norm="after", pool=HALVES),
            Convolution(width=32, norm="none"),
            Convolution(width=32, norm="after", pool=HALVES),
        ),
        dense=(1024,),
        dropout=0.5,
        has_dense_norm=False,
        input_size=input_size,
    )
