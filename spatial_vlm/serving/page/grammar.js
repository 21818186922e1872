// Reads answers while they are written: the steps of spatial_vlm/answers.py, and the boxes in them.

const LABELS = ["Summary", "Caption", "Reasoning", "Conclusion"];
const APPLYING = /^Applying '(behavior_[a-z0-9_]+)': ?(.*)$/;
const CORNERS = / \[(\d{1,4}), (\d{1,4}), (\d{1,4}), (\d{1,4})\]/g;
/** What ends a name before its box, as in the package's `answers.parse_boxes`. */
const NO_NAME = /[^\p{L}\p{N}_\u0300-\u036f '’&-]/u;

/** Steps of each form, in their order. */
export const STEPS = {chain: LABELS, short: ["Applying", "Conclusion"]};

/**
 * Returns the steps of a text, which may end anywhere: [{label, text, behavior}].
 *
 * Text before the first label has the label "Answer". A last line that could become a label is left out.
 */
export function readSteps(text) {
  const steps = [];
  const lines = text.split("\n");
  lines.forEach((line, number) => {
    const isLast = number === lines.length - 1;
    const step = readLabel(line);
    if (step) {
      steps.push(step);
    } else if (isLast && couldBecomeLabel(line)) {
      return;
    } else if (steps.length) {
      steps[steps.length - 1].text += `\n${line}`;
    } else if (line.trim()) {
      steps.push({label: "Answer", text: line, behavior: null});
    }
  });
  return steps;
}

function readLabel(line) {
  const applying = APPLYING.exec(line);
  if (applying) {
    return {label: "Applying", text: applying[2], behavior: applying[1]};
  }
  const label = LABELS.find((name) => line.startsWith(`${name}:`));
  return label ? {label, text: line.slice(label.length + 1).trimStart(), behavior: null} : null;
}

function couldBecomeLabel(line) {
  return LABELS.some((name) => `${name}:`.startsWith(line)) || isUnfinishedApplying(line);
}

function isUnfinishedApplying(line) {
  return "Applying '".startsWith(line) || /^Applying '[a-z0-9_]*'?$/.test(line);
}

/**
 * Returns the named boxes of a text: Map name → [x1, y1, x2, y2] in 0–1000.
 *
 * The first box of a name counts; boxes outside 0–1000 or without area do not.
 */
export function readBoxes(text) {
  const boxes = new Map();
  let before = 0;
  for (const match of text.matchAll(CORNERS)) {
    const name = nameAtEnd(text.slice(before, match.index));
    const box = match.slice(1).map(Number);
    before = match.index + match[0].length;
    if (/\p{L}/u.test(name) && isBox(box) && !boxes.has(name)) {
      boxes.set(name, box);
    }
  }
  return boxes;
}

function nameAtEnd(text) {
  return text.split(NO_NAME).at(-1).replace(/^[ '’&-]+/, "").trimEnd();
}

function isBox([x1, y1, x2, y2]) {
  return x1 < x2 && x2 <= 1000 && y1 < y2 && y2 <= 1000;
}

/** Splits a text at the names, as whole words, longest first: [{text, name}]; `name` is null between names. */
export function splitAtNames(text, names) {
  if (!names.length) {
    return [{text, name: null}];
  }
  const longest = [...names].sort((a, b) => b.length - a.length);
  const escaped = longest.map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pattern = new RegExp(`(?<![A-Za-z0-9])(${escaped.join("|")})(?![A-Za-z0-9])`);
  return text
    .split(pattern)
    .map((piece, number) => ({text: piece, name: number % 2 ? piece : null}))
    .filter((piece) => piece.text);
}
