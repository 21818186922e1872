"""Wordings of teachers' chains, by kind; `make_prose_chains.py` fills them in."""

OPENINGS = (
  "",
  "",
  "Both objects are clearly visible. ",
  "To decide whether the {S} {holds} the {O}, their positions are compared. ",
  "The {S} and the {O} are the two objects in question. ",
  "Looking at the image from the viewer's position: ",
)
ENDINGS = (
  "the {S} {holds} the {O}",
  "it {holds} it",
  "we can conclude that the {S} {holds} the {O}",
  "the statement that the {S} {holds} the {O} fits",
)

MEASURES = {
  "x": (
    "The {S} spans x={sx1} to x={sx2}, centre x={scx}; the {O} spans x={ox1} to x={ox2}, centre x={ocx}.",
    "The {O} spans x={ox1} to x={ox2}, with its centre at x={ocx}; the {S} spans x={sx1} to x={sx2}, with its centre"
    " at x={scx}.",
    "The {S} lies at x={sx1}-{sx2} and the {O} at x={ox1}-{ox2}.",
    "",
  ),
  "y": (
    "The {S} spans y={sy1} to y={sy2}, centre y={scy}; the {O} spans y={oy1} to y={oy2}, centre y={ocy}.",
    "The {O} extends from y={oy1} to y={oy2} (centre y={ocy}) and the {S} from y={sy1} to y={sy2} (centre y={scy}).",
    "The {S} lies at y={sy1}-{sy2}, the {O} at y={oy1}-{oy2}.",
    "",
  ),
  "xy": (
    "The {S} spans x={sx1} to x={sx2} and y={sy1} to y={sy2}; the {O} spans x={ox1} to x={ox2} and y={oy1} to y={oy2}.",
    "The {O} spans x={ox1} to x={ox2}, y={oy1} to y={oy2}, while the {S} spans x={sx1} to x={sx2}, y={sy1} to y={sy2}.",
    "",
  ),
  "centres": (
    "The {S}'s centre is at x={scx}, y={scy}, and the {O}'s centre is at x={ocx}, y={ocy}.",
    "The {S} is centred at x={scx}, y={scy}; the {O} is centred at x={ocx}, y={ocy}.",
    "",
  ),
  "sizes": (
    "The {S} has w={sw} and h={sh}; the {O} has w={ow} and h={oh}.",
    "The {S} spans x={sx1} to x={sx2} and y={sy1} to y={sy2}, so w={sw} and h={sh}. The {O} spans x={ox1} to x={ox2}"
    " and y={oy1} to y={oy2}, so w={ow} and h={oh}.",
  ),
}

CENTRES = (
  "Since {k}={a} {gt} {k}={b}, {end}.",
  "{k}={a} {gt} {k}={b}, so {end}.",
  "The {S}'s centre {k}={a} is {more} the {O}'s centre {k}={b}, so {end}.",
  "Given that {k}={a} {gt} {k}={b}, {end}.",
  "Comparing the centres, {k}={a} {gt} {k}={b}, and therefore {end}.",
  "As {k}={a} is {more} {k}={b}, {end}.",
  "Because {S} {k}={a} {gt} {O} {k}={b}, {end}.",
  "{k}={b} {lt} {k}={a}, which means that {end}.",
  "The centre of the {S}, {k}={a}, lies {place} the {O}'s {k}={b}; therefore {end}.",
  "The centre of the {S}, {k}={a}, {exceeds} the {O}'s {k}={b}, thus {end}.",
  "The {S} (centre {k}={a}) is {place} the {O} (centre {k}={b}), hence {end}.",
  "The {k}-coordinate of the {S}'s centre ({a}) is {more} that of the {O}'s centre ({b}), so {end}.",
  "The {S}'s {k}-coordinate of {a} is {larger} the {O}'s {k}-coordinate of {b}. Therefore, {end}.",
  "With {a} being {more} {b}, {end}.",
  "{along}, the {S}'s centre at {k}={a} is {further} the {O}'s centre at {k}={b}, so {end}.",
  "The {O}'s centre, at {k}={b}, is {less} the {S}'s centre, at {k}={a}. This means that {end}.",
  "It follows from {k}={a} {gt} {k}={b} that {end}.",
  "If we compare the centres, {k}={a} {gt} {k}={b}, so {end}.",
  "Measured at their centres, the {S} ({k}={a}) sits {place} the {O} ({k}={b}), so {end}.",
  "The midpoint of the {S} falls at {k}={a}, which is a {big} value than the {O}'s midpoint, {k}={b}; {end}.",
  "{along}, {a} for the {S} is {more} {b} for the {O}, so {end}.",
  "The {O} is centred at {k}={b} and the {S} at {k}={a}, i.e. {b} {lt} {a}, so {end}.",
  "The {S} is centred at {k}={a}, which is {place} the {O}, centred at {k}={b}. So {end}.",
  "With a centre {k} of {a}, the {S} is {place} the {O} with a centre {k} of {b}, so {end}.",
  "The value {a} is {more} {b}, so {end}.",
  "The {S}'s centre has {k}={a}; the {O}'s has {k}={b}. The former is the {big} one, so {end}.",
  "{a} versus {b}: {end}.",
  "The centre of the {S} is at {k}={a}, {place} the centre of the {O} at {k}={b}. Nothing hides either of them."
  " So {end}.",
  "The {S}'s center ({k} = {a}) {gt} the {O}'s center ({k} = {b}); consequently, {end}.",
  "We have {k}={a} for the {S} and {k}={b} for the {O}, and since {a} {gt} {b}, {end}.",
  "Its centre {k}={a} is {more} the {O} centre {k}={b}, so {end}.",
  "On this axis {k}_1 = {a} and {k}_2 = {b}, which shows that {end}.",
  "The {S} (center: {k}={a}) has a {big} {k} than the {O} (center: {k}={b}), so {end}.",
  "{k}: {a} {gt} {k}: {b}. Hence {end}.",
)
EDGES = (
  "The {S}'s {r} {k}={a} {gt} the {O}'s {q} {k}={b}, so {end}.",
  "Since the {r} of the {S} ({k}={a}) is {more} the {q} of the {O} ({k}={b}), {end}.",
  "The {r} of the {S}, {k}={a}, lies {place} the {q} of the {O}, {k}={b}, so {end}.",
  "The {O}'s {q} at {k}={b} is {less} the {S}'s {r} at {k}={a}; therefore {end}.",
  "Comparing the edges, {S} {r} {k}={a} {gt} {O} {q} {k}={b}, which means that {end}.",
  "The {S}'s {r} is at {k}={a}, which is {more} the {O}'s {q} {k}={b}, so {end}.",
  "With the {S}'s {r} at {k}={a} and the {O}'s {q} at {k}={b}, we get {a} {gt} {b}, so {end}.",
  "The {S}'s {r} ({a}) {exceeds} the {O}'s {q} ({b}), and so {end}.",
  "Note that the {q} of the {O} is {k}={b} and the {r} of the {S} is {k}={a}: {k}={a} {gt} {k}={b}. Thus {end}.",
  "{along}, the {S}'s {r}, {k}={a}, is {further} the {O}'s {q}, {k}={b}. That is why {end}.",
  "Even its {r} {k}={a} is {more} the {O}'s {q} {k}={b}, so {end}.",
  "The {r} of the {S} has a {big} coordinate ({k}={a}) than the {q} of the {O} ({k}={b}), so {end}.",
  "The {S} has its {r} at {a}, {place} the {O}'s {q} at {b}, so {end}.",
)
GAPS = (
  "Because gap={g} > 0, {end}.",
  "There is a gap of {g}, and gap={g} > 0, so {end}.",
  "The gap of {g} units is greater than 0, so {end}.",
  "The gap between the {S} and the {O}, gap={g}, is larger than 0. Therefore {end}.",
  "As the free space between them is {g} > 0, {end}.",
  "They are {g} units apart, so {end}.",
  "0 < gap={g}, which means that {end}.",
  "The empty strip between them measures gap={g}, which exceeds 0, so {end}.",
)
MEETING = (
  "The boxes overlap: gap={g}, so {end}.",
  "There is no gap between them, gap={g}, so {end}.",
  "gap={g}, therefore {end}.",
  "Between the {S} and the {O}, gap={g}. Therefore, {end}.",
  "The free space between the two is gap={g}, hence {end}.",
  "The gap between the {S} and the {O} is {g}, so {end}.",
  "Since gap={g}, {end}.",
  "They share a part of the image, so {end}.",
)
DISTANCES = (
  "d={d} {gt} {t}, so {end}.",
  "The distance between the centres is d={d}, and d={d} {gt} {t}, so {end}.",
  "The distance between the {S} and the {O} of {d} is {more} {t}, hence {end}.",
  "Their distance d={d} is {more} the threshold of {t}, so {end}.",
  "With a distance of {d} units, which is {more} {t}, {end}.",
  "Because distance={d} {gt} {t}, {end}.",
  "{t} {lt} d={d}, which means that {end}.",
  "The larger offset of the centres is {d}, {more} {t}; {end}.",
  "The separation of their centres, {d}, {exceeds} {t}, so {end}.",
  "The centres are about {d} units apart, so {end}.",
)
CONTAINS = (
  "x={i0} > x={a0}, x={i2} < x={a2}, y={i1} > y={a1} and y={i3} < y={a3}, so {end}.",
  "The {I} spans x={i0} to x={i2} and y={i1} to y={i3}, which lies fully within the {A}'s x={a0} to x={a2} and y={a1}"
  " to y={a3}, so {end}.",
  "The {I}'s x={i0} to x={i2} and y={i1} to y={i3} lies inside the {A}'s box from x={a0} to x={a2} and y={a1} to"
  " y={a3}, thus {end}.",
  "The {A}'s span from x={a0} to x={a2} and y={a1} to y={a3} contains the {I}'s x={i0} to x={i2} and y={i1} to y={i3};"
  " {end}.",
  "x={a0} < x={i0}, x={i2} < x={a2}, y={a1} < y={i1}, y={i3} < y={a3}: all four edges are inside, so {end}.",
  "The {I}'s left edge x={i0} > the {A}'s left edge x={a0}, its right edge x={i2} < x={a2}, its top edge y={i1} >"
  " y={a1} and its bottom edge y={i3} < y={a3}, so {end}.",
  "Both x={i0} > x={a0} and x={i2} < x={a2}, and also y={i1} > y={a1} and y={i3} < y={a3}. Thus {end}.",
  "The {I} is completely enclosed: {a0} < {i0}, {i2} < {a2}, {a1} < {i1} and {i3} < {a3}, so {end}.",
  "On every side there is room between the {I} and the border of the {A}, so {end}.",
)
SHAPES = (
  "Since w={aw} {agt} h={ah} and w={bw} {bgt} h={bh}, {end}.",
  "{S} w={aw} {agt} h={ah}, {O} w={bw} {bgt} h={bh}, so {end}.",
  "The {S} is {aform}, w={aw} {agt} h={ah}, while the {O} is {bform}, w={bw} {bgt} h={bh}, so {end}.",
  "The {S}'s width of {aw} is {amore} its height of {ah}, and the {O}'s width of {bw} is {bmore} its height of {bh}, so"
  " {end}.",
  "w={aw} {agt} h={ah} for the {S} and w={bw} {bgt} h={bh} for the {O}, hence {end}.",
)
VISUAL = (
  "Its front points straight at the {O}, so {end}.",
  "Since {S} x={a} {gt} {O} x={b}, the {O} lies in the direction in which the {S} looks; its eyes and nose are turned"
  " there, so {end}.",
  "The shadows of both fall on the same spot and the outlines meet, so {end}.",
  "The {S} is seen from behind, with its back to the camera, so {end}.",
  "The bodies of the two stretch along one line on the floor, so {end}.",
  "The {S} holds on to the {O} with one side, and nothing else is near, so {end}.",
  "For this, the {S} would have to be at x={b} > x={a}, but it is seen elsewhere, so {end}.",
  "The {S} covers a part of the {O}, whose rest is visible around it, so {end}.",
  "The surface of the {O} carries the {S}, as the dents around it show, so {end}.",
  "The {S} moves to the {way}, which the blurred background shows, so {end}.",
  "The long axes of both would meet at 90 degrees, so {end}.",
  "Number 42 is painted on its side, which is turned to the {O}, so {end}.",
  "A strap runs from one to the other, so {end}.",
)
