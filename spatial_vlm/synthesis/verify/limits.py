"""Tells a teacher the limits that its answers are held to, from the settings that the checks use."""

from collections.abc import Iterable

from spatial_vlm.synthesis.verify.check_settings import SEPARATING, CheckSettings


def describe_limits(settings: CheckSettings) -> str:
  """Returns a paragraph for the instruction of a teacher; every value comes from `settings`."""
  rules = [
    f"Summary, caption and reasoning together have {settings.min_words} to {settings.max_words} words.",
    f"A box covers {_percent(settings.min_box_share)} to {_percent(settings.max_box_share)} of the image's area. One "
    "of the statement's two objects may cover more, such as a train seen from inside or a table that a plate is on, "
    f"but not in statements with {_listed(SEPARATING)}. No two objects share a name or a box.",
    "A coordinate is an edge or the centre of the object that it is said of"
    f"{_tolerance(settings.number_tolerance)}. A coordinate of a part names the part and lies in its object's box: "
    '"the dog\'s head is at about x=300".',
    "Lengths are those of the boxes, in their units and never in metres: gaps, distances, overlaps, widths, heights. "
    'Mark a rounded number: "about 600 units apart" for 605. A percentage, a fraction or "twice as wide" follows from '
    'the boxes too. Any other number is one that the image shows, with a word that says so: "route number 42", '
    '"12 people", "at 90 degrees".',
    *_geometry(settings),
    "The reasoning's last sentence agrees with the conclusion.",
  ]
  listed = "\n".join(f"- {rule}" for rule in rules)
  return f"Checks discard every answer that breaks one of these rules:\n{listed}"


def _geometry(settings: CheckSettings) -> list[str]:
  """Returns the rules about boxes and conclusion."""
  margin = f"{settings.geometry_margin} units"
  rules = []
  if settings.decisive:
    rules.append(
      f"In statements with {_listed(settings.decisive)}, boxes and conclusion agree; boxes that miss by less than "
      f"{margin} prove nothing."
    )
  if settings.necessary:
    rules.append(
      f'In statements with {_listed(settings.necessary)}, boxes that miss by {margin} or more exclude a "yes".'
    )
  return rules


def _tolerance(units: float) -> str:
  return f", at most {units:g} units off" if units else ", exactly"


def _percent(share: float) -> str:
  return f"{100 * share:g}%"


def _listed(names: Iterable[str]) -> str:
  *first, last = [f'"{name}"' for name in names]
  return f"{', '.join(first)} or {last}" if first else last
