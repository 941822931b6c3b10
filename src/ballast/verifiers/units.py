"""Units of answers: math-verify drops them, so that 5 cm and 5 m are one and the same to it."""

from __future__ import annotations

import re

NAMES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inche",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound",
    "oz": "ounce",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "day": "",
    "week": "",
    "month": "",
    "year": "",
    "cent": "",
    "dollar": "",
    "degree": "",
    "radian": "rad",
}
UNITS = {form: unit for unit, names in NAMES.items() for name in (unit, *names.split()) for form in (name, f"{name}s")}
POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
SET = r"\\(?:text|mbox|textrm|mathrm|operatorname)\s*\{([^{}]*)\}"
UNIT = re.compile(rf"[\d}})](?:\\[,;: !]|[\s~])*(?:{SET}|([A-Za-z][A-Za-z./ ]*))(?:\s*\^\s*\{{?(\d)\}}?)?$")
DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?$")


def unit(answer: str) -> tuple[tuple[str, int], ...] | None:
    r"""Return the units behind the number of an answer with their powers, or None where there is none that is known.

    >>> unit(r"15\mbox{ cm}^2"), unit("15 square centimeters"), unit(r"5 \text{ apples}")
    ((('cm', 2),), (('cm', 2),), None)
    """
    if DEGREES.search(answer):
        return (("degree", 1),)
    found = UNIT.search(answer)
    if found is None:
        return None
    power = int(found.group(3) or 1)
    units = []
    for part in re.split(r"/|\bper\b", (found.group(1) or found.group(2)).lower()):
        words = part.replace(".", " ").split()
        powers = [POWERS[word] for word in words if word in POWERS]
        names = [UNITS.get(word) for word in words if word not in POWERS]
        if len(names) != 1 or names[0] is None:
            return None
        units.append((names[0], powers[0] if powers else power))
    return tuple(units)


def units_differ(answer: str, given: str) -> bool:
    """Whether both answers name a unit that is known, and not the same one."""
    wanted, found = unit(answer), unit(given)
    return wanted is not None and found is not None and wanted != found
