// Named boxes over the image.

const SVG = "http://www.w3.org/2000/svg";
const COLORS = [["#0072b2", "#ffffff"], ["#d55e00", "#000000"], ["#009e73", "#000000"], ["#e69f00", "#000000"]];
const OTHER = ["#6b7682", "#ffffff"]; // things that the statement does not name
const NAME_ROOM = 90; // height of a name, in 0–1000 of the image

/** Draws boxes over one image; each name keeps its colour until `clear`. */
export class BoxOverlay {
  constructor(svg, names) {
    this.svg = svg;
    this.names = names;
    this.clear("");
  }

  /** Removes all boxes; those that come next are answers about `statement`. */
  clear(statement) {
    this.statement = statement.toLowerCase();
    this.drawn = new Map();
    this.named = 0;
    this.svg.replaceChildren();
    this.names.replaceChildren();
    this.describe();
  }

  /** Adds the boxes that are not drawn yet: Map name → [x1, y1, x2, y2] in 0–1000. */
  show(boxes) {
    for (const [name, box] of boxes) {
      if (!this.drawn.has(name)) {
        this.drawn.set(name, this.draw(name, box));
      }
    }
    this.describe();
  }

  /** Marks the box of a name, or none. */
  mark(marked) {
    for (const [name, {group}] of this.drawn) {
      group.classList.toggle("marked", name === marked);
    }
  }

  colorOf(name) {
    return this.drawn.get(name)?.color ?? null;
  }

  draw(name, [x1, y1, x2, y2]) {
    const isNamed = this.statement.includes(name.toLowerCase());
    const [color, onColor] = isNamed ? COLORS[this.named++ % COLORS.length] : OTHER;
    const group = document.createElementNS(SVG, "g");
    group.classList.add("box", isNamed ? "named" : "other");
    group.style.setProperty("--color", color);
    for (const part of ["halo", "line"]) {
      const rect = document.createElementNS(SVG, "rect");
      rect.classList.add(part);
      const values = {x: x1, y: y1, width: x2 - x1, height: y2 - y1};
      Object.entries(values).forEach(([key, value]) => rect.setAttribute(key, value));
      group.append(rect);
    }
    this.svg.append(group);
    this.names.append(nameTag(name, [x1, y1, x2, y2], color, onColor));
    return {group, color};
  }

  describe() {
    const names = [...this.drawn.keys()];
    const count = names.length === 1 ? "1 box" : `${names.length} boxes`;
    this.svg.setAttribute("aria-label", names.length ? `${count}: ${names.join(", ")}` : "No boxes yet");
  }
}

/** Returns a name above its box where there is room, else below it, else inside. */
function nameTag(name, [x1, y1, x2, y2], color, onColor) {
  const tag = document.createElement("span");
  tag.className = "box-name";
  tag.textContent = name;
  tag.style.setProperty("--color", color);
  tag.style.setProperty("--on-color", onColor);
  const percent = (value) => `${value / 10}%`;
  if (x1 + x2 > 1000) {
    tag.style.right = percent(1000 - x2);
  } else {
    tag.style.left = percent(x1);
  }
  if (y1 >= NAME_ROOM) {
    tag.style.bottom = percent(1000 - y1);
  } else {
    tag.style.top = percent(y2 <= 1000 - NAME_ROOM ? y2 : y1);
  }
  return tag;
}
