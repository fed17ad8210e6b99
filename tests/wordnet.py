"""A WordNet of a dozen words, written for the tests in the format of its database files."""

from pathlib import Path

LICENCE = "  1 A line of the licence, which begins with blanks.  \n"
INDEX = {
    "noun": [
        "axe n 1 2 @ ~ 1 1 02764397",
        "axis n 1 1 @ 1 0 13863186",
        "bus n 2 3 @ ~ #p 2 1 02924116 00000022",
        "dog n 2 2 @ ~ 2 1 02084071 10114209",
        "glasses n 1 2 @ ~ 1 0 04272054",
        "hot_dog n 1 0 1 0 07697537",
        "man n 1 1 @ 1 1 10287213",
        "run n 1 1 @ 1 1 00558008",
        "saw n 1 1 @ 1 0 04140064",
        "x n 1 0 1 0 00000031",
    ],
    "verb": ["run v 1 0 1 1 01926311", "see v 1 0 1 1 02129289", "sit v 1 1 ! 1 1 01543123", "bake v 1 0 1 0 00319886"],
    "adj": ["big a 1 2 & ! 1 1 01382086", "wide a 1 0 1 0 02560548"],
    "adv": ["away r 1 0 1 1 00233295"],
}
EXCEPTIONS = {
    "noun": ["axes axis axe", "sledges sledge"],
    "verb": ["sat sit", "saw see", "running run"],
    "adj": ["bigger big"],
    "adv": [],
}


def make_wordnet(folder: Path) -> Path:
    """Write the folder and return it."""
    folder.mkdir(parents=True)
    for part, lines in INDEX.items():
        (folder / f"index.{part}").write_text(LICENCE + "".join(f"{line}  \n" for line in lines))
        (folder / f"{part}.exc").write_text("".join(f"{line}\n" for line in EXCEPTIONS[part]))
    return folder
