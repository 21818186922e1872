// One panel: an answer while it is written, and its figures. Texts are inserted as text, never as markup.

import {STEPS, readBoxes, readSteps, splitAtNames} from "./grammar.js";

const COORDINATES = /(\[\d+, \d+, \d+, \d+\])/;
const VERDICTS = {1: "Yes", 0: "No"};

/** What a panel is for; `form` is the request's field `spatial_vlm`, and a server recalls what behaviors it has. */
export const PANELS = {
  chain: {
    heading: "Full chain",
    about: "Four steps: it finds the things, writes their boxes and compares them.",
    form: {form: "chain", behaviors: false},
  },
  short: {
    heading: "Short answer",
    about: "Recalls a behavior, a procedure learnt from earlier chains, and applies it.",
    form: {form: "short"},
  },
};

export class AnswerPanel {
  /** Fills `root` from the template; `overlay` draws the boxes that the answer names. */
  constructor(root, template, id, overlay) {
    this.kind = PANELS[id];
    this.overlay = overlay;
    this.root = root;
    root.replaceChildren(template.content.cloneNode(true));
    this.part = (selector) => root.querySelector(selector);
    this.part("h2").id = `${id}-heading`;
    this.part("h2").textContent = this.kind.heading;
    this.part(".about").textContent = this.kind.about;
    this.clear();
  }

  clear() {
    this.text = "";
    this.result = null;
    this.setVerdict("", "");
    this.setFigures({});
    this.note("");
    this.part(".raw").hidden = true;
    this.root.removeAttribute("aria-busy");
    this.render(false);
  }

  start() {
    this.clear();
    this.root.setAttribute("aria-busy", "true");
    this.render(true);
  }

  write(text) {
    this.text += text;
    this.render(true);
  }

  /** Shows seconds and, once they are known, tokens. */
  setFigures({tokens, seconds, first}) {
    const shown = {tokens, seconds: seconds && inSeconds(seconds), first: first && inSeconds(first)};
    for (const [name, value] of Object.entries(shown)) {
      this.part(`[data-figure="${name}"]`).textContent = value ?? "–";
    }
  }

  /** Ends the answer: {tokens, seconds, first, finish, own}; `own` is the response's field `spatial_vlm`. */
  finish(result) {
    this.result = result;
    this.root.removeAttribute("aria-busy");
    this.setFigures(result);
    this.render(false);
    const verdict = result.own?.verdict ?? null;
    this.setVerdict(verdict ?? "none", VERDICTS[verdict] ?? "No verdict");
    this.note(this.remark(result));
    this.part(".raw").hidden = !this.text;
    this.part(".raw pre").textContent = this.text;
  }

  stop(reason) {
    this.root.removeAttribute("aria-busy");
    this.render(false);
    this.note(reason);
  }

  note(text) {
    this.part(".note").textContent = text;
    this.part(".note").hidden = !text;
  }

  setVerdict(verdict, text) {
    this.part(".verdict").dataset.verdict = verdict;
    this.part(".verdict").textContent = text;
  }

  remark({finish, own, seconds}) {
    const remarks = [];
    if (finish === "length") {
      remarks.push("The answer was cut off at the limit on its tokens.");
    } else if ((own?.verdict ?? null) === null) {
      remarks.push("The text is not an answer in the form that was asked for.");
    }
    if (this.kind.form.form === "short" && own && !own.behavior) {
      remarks.push("No behavior was recalled.");
    }
    return remarks.join(" ");
  }

  render(isWriting) {
    const written = readSteps(this.text);
    const labels = written.map((step) => step.label);
    const form = labels.includes("Summary") ? "chain" : this.kind.form.form;
    const isFreeText = labels.includes("Answer");
    const waiting = isFreeText ? [] : STEPS[form].filter((label) => !labels.includes(label));
    const caption = written.find((step) => step.label === "Caption");
    if (caption) {
      this.overlay.show(readBoxes(caption.text));
    }
    this.part(".steps").replaceChildren(
      ...written.map((step, number) => this.step(step, isWriting && number === written.length - 1)),
      ...waiting.map((label, number) => waitingStep(label, isWriting && !written.length && !number)),
    );
  }

  step({label, text, behavior}, isWriting) {
    const {item, paragraph} = emptyStep(label);
    item.classList.add("written");
    item.classList.toggle("writing", isWriting);
    if (behavior) {
      const name = document.createElement("code");
      name.className = "behavior";
      name.textContent = behavior;
      item.querySelector("h3").append(" ", name);
    }
    paragraph.append(...this.marked(text));
    return item;
  }

  /** Returns the text as nodes: names with a box carry its colour, and show the box when they are pointed at. */
  marked(text) {
    return splitAtNames(text, [...this.overlay.drawn.keys()]).flatMap(({text: piece, name}) => {
      if (name === null) {
        return piece.split(COORDINATES).map((part, number) => number % 2 ? span("numbers", part) : part);
      }
      const object = span("object", piece);
      object.style.setProperty("--color", this.overlay.colorOf(name));
      object.addEventListener("pointerenter", () => this.overlay.mark(name));
      object.addEventListener("pointerleave", () => this.overlay.mark(null));
      return [object];
    });
  }
}

/** Returns seconds as they are shown; the number and its unit stay on one line. */
export function inSeconds(seconds) {
  return `${seconds.toFixed(2)}\u00a0s`;
}

function span(className, text) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}

function waitingStep(label, isFirst) {
  const {item} = emptyStep(label);
  item.classList.add(isFirst ? "writing" : "waiting");
  return item;
}

function emptyStep(label) {
  const item = document.createElement("li");
  const heading = document.createElement("h3");
  const paragraph = document.createElement("p");
  item.className = "step";
  item.dataset.step = label;
  heading.textContent = label;
  item.append(heading, paragraph);
  return {item, paragraph};
}
