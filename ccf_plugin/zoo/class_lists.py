"""Lists of classes, in the order that their data sets fix."""

from __future__ import annotations

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# CIFAR-100's coarse labels with their classes (Krizhevsky 2009); its own labels are these in alphabetical order.
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": "beaver, dolphin, otter, seal, whale",
    "fish": "aquarium_fish, flatfish, ray, shark, trout",
    "flowers": "orchid, poppy, rose, sunflower, tulip",
    "food_containers": "bottle, bowl, can, cup, plate",
    "fruit_and_vegetables": "apple, mushroom, orange, pear, sweet_pepper",
    "household_electrical_devices": "clock, keyboard, lamp, telephone, television",
    "household_furniture": "bed, chair, couch, table, wardrobe",
    "insects": "bee, beetle, butterfly, caterpillar, cockroach",
    "large_carnivores": "bear, leopard, lion, tiger, wolf",
    "large_man-made_outdoor_things": "bridge, castle, house, road, skyscraper",
    "large_natural_outdoor_scenes": "cloud, forest, mountain, plain, sea",
    "large_omnivores_and_herbivores": "camel, cattle, chimpanzee, elephant, kangaroo",
    "medium_mammals": "fox, porcupine, possum, raccoon, skunk",
    "non-insect_invertebrates": "crab, lobster, snail, spider, worm",
    "people": "baby, boy, girl, man, woman",
    "reptiles": "crocodile, dinosaur, lizard, snake, turtle",
    "small_mammals": "hamster, mouse, rabbit, shrew, squirrel",
    "trees": "maple_tree, oak_tree, palm_tree, pine_tree, willow_tree",
    "vehicles_1": "bicycle, bus, motorcycle, pickup_truck, train",
    "vehicles_2": "lawn_mower, rocket, streetcar, tank, tractor",
}
CIFAR100_CLASSES = tuple(sorted(", ".join(CIFAR100_SUPERCLASSES.values()).split(", ")))

# Lists whose order data sets fix, which folders that are sorted as text do not have.
KNOWN: dict[str, tuple[str, ...]] = {
    "CIFAR-10": CIFAR10_CLASSES,
    "CIFAR-100": CIFAR100_CLASSES,
    "Fashion-MNIST": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "MNIST": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
}
