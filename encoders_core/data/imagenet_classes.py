"""What the 1000 outputs of an ImageNet model are called, and what kind of thing each is."""

from functools import cache
from importlib.resources import files
from typing import Final

_KINDS: Final[dict[str, tuple[int | range, ...]]] = {
    "fish": (range(7), range(389, 398)),
    "bird": (range(7, 25), range(80, 101), range(127, 147)),
    "salamander": (range(25, 30),),
    "frog": (range(30, 33),),
    "turtle": (range(33, 38),),
    "lizard": (range(38, 49),),
    "crocodile": (49, 50),
    "dinosaur": (51,),
    "snake": (range(52, 69),),
    "spider": (range(72, 78),),
    "elephant": (101, 385, 386),
    "marsupial": (range(104, 107),),
    "shellfish": (112, 116, 117),
    "crab": (range(118, 122), 125),
    "lobster": (range(122, 125),),
    "whale": (147, 148),
    "seal": (149, 150),
    "dog": (range(151, 269),),
    "wolf": (range(269, 272),),
    "wild dog": (range(272, 276),),
    "fox": (range(277, 281),),
    "cat": (range(281, 286),),
    "wild cat": (range(286, 294),),
    "bear": (range(294, 298), 388),
    "beetle": (range(300, 308),),
    "insect": (range(308, 321),),
    "butterfly": (range(321, 327),),
    "rabbit": (range(330, 333),),
    "rodent": (range(333, 339),),
    "horse": (339, 340),
    "pig": (range(341, 344),),
    "cow": (range(345, 348),),
    "sheep": (range(348, 351),),
    "antelope": (range(351, 354),),
    "weasel": (range(356, 363),),
    "ape": (range(365, 370),),
    "monkey": (range(370, 383),),
    "lemur": (383, 384),
    "car": (436, 468, 511, 609, 627, 661, 751, 817),
    "van": (407, 656, 734),
    "truck": (555, 569, 675, 717, 864, 867),
    "bus": (654, 779, 874),
    "train": (466, 547, 565, 705, 820, 829),
    "motorcycle": (665, 670),
    "bicycle": (444, 671, 870, 880),
    "boat": (472, 484, 554, 576, 625, 814, 871, 914),
    "ship": (403, 510, 628, 724, 780),
    "aircraft": (404, 405, 895),
    "computer": (527, 590, 620, 681),
    "camera": (732, 759),
    "telephone": (487, 528, 707),
    "musical instrument": (
        *(401, 402, 420, 432, 486, 513, 541, 546, 558, 566, 577, 579, 593, 594, 641, 642, 683, 684, 687, 699),
        *(776, 822, 875, 881, 889),
    ),
    "weapon": (413, 471, 657, 744, 763, 764),
    "furniture": (453, 492, 493, 495, 526, 532, 553, 559, 765, 831, 894),
    "bed": (431, 516, 520, 564),
    "shop": (415, 424, 454, 467, 509, 582, 788, 860, 865),
    "building": (425, 483, 497, 663, 668, 698, 832),
    "dish": (range(924, 928), range(933, 936), 959, range(962, 966)),
    "bread": (range(930, 933),),
    "vegetable": (range(936, 947),),
    "fruit": (range(948, 958),),
    "drink": (441, 966, 967, 969),
    "person": (range(981, 984),),
    "flower": (range(984, 987),),
    "mushroom": (947, range(991, 998)),
}
"""The everyday word above names that few people use, by index; most objects go by an everyday name anyway."""


@cache
def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 English names of ImageNet-1k's classes in the order of the outputs; two pairs of names are alike."""
    text = files("encoders_core.data").joinpath("imagenet1k_classes.txt").read_text("utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


@cache
def imagenet_class_kinds() -> tuple[str | None, ...]:
    """For each class the everyday word for what it is, as "cat" for "Egyptian Mau"; None where its name says it."""
    kinds: list[str | None] = [None] * len(imagenet_class_names())
    for kind, indices in _KINDS.items():
        for index in indices:
            for one in [index] if isinstance(index, int) else index:
                kinds[one] = kind
    return tuple(kinds)
