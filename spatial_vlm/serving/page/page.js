// The page: takes an image and a statement, asks for both answers one after the other, and shows them.

import {AnswerPanel, PANELS, inSeconds} from "./answer.js";
import {RequestError, findModel, findSamples, streamAnswer} from "./api.js";
import {BoxOverlay} from "./boxes.js";
import {readImage, watchForImages} from "./image_file.js";
import {offerSamples} from "./samples.js";

const SMALL_IMAGE = 256; // pixels; smaller ones are shown with their pixels visible
const at = (id) => document.getElementById(id);

const overlay = new BoxOverlay(at("boxes"), at("names"));
const panels = Object.keys(PANELS).map(
  (id) => [id, new AnswerPanel(at(id), at("answer-template"), id, overlay)],
);
let model = null;
let image = null; // data URL
let samples = [];
let running = null; // AbortController of the question that is being asked

async function start() {
  try {
    model = await findModel(at("token").value);
    const limit = model.max_model_len ? `, ${model.max_model_len} tokens at most` : "";
    at("model").textContent = `${model.id}${limit}`;
    if (!model.spatial_vlm?.behaviors) {
      at("ask-short").checked = false;
      at("short-hint").hidden = false;
    }
    samples = await findSamples(at("token").value);
    offerSamples(samples, at("samples"), at("sample-list"), chooseSample);
    if (samples.length && !image && !at("statement").value) {
      at("sample-list").querySelector("input").click();
    }
    showError(null);
  } catch (error) {
    showError(error);
  }
}

function chooseSample(sample) {
  showImage(sample.image, "A rendered scene");
  at("statement").value = sample.statement;
}

async function chooseFile(file) {
  try {
    showImage(await readImage(file), file.name || "Pasted image");
    document.querySelectorAll("[name=sample]").forEach((input) => {
      input.checked = false;
    });
    if (samples.some((sample) => sample.statement === at("statement").value)) {
      at("statement").value = "";
    }
    showError(null);
    at("statement").focus();
  } catch (error) {
    showError(error);
  }
}

function showImage(url, source) {
  stop();
  image = url;
  clearAnswers();
  at("source").textContent = source;
  at("image").alt = source;
  at("image").src = url;
}

function fitFrame() {
  const {naturalWidth: width, naturalHeight: height} = at("image");
  at("frame").style.setProperty("--ratio", width / height);
  at("image").classList.toggle("small", Math.max(width, height) <= SMALL_IMAGE);
  at("frame").hidden = false;
  at("empty").hidden = true;
}

function clearAnswers(statement = "") {
  overlay.clear(statement);
  panels.forEach(([, panel]) => panel.clear());
  at("comparison").hidden = true;
  say("");
}

async function ask() {
  const statement = at("statement").value.trim();
  const chosen = panels.filter(([id]) => at(`ask-${id}`).checked);
  const missing = whatIsMissing(statement, chosen);
  if (!model) {
    await start(); // it failed when the page was opened, e.g. without a token
    if (!model || missing) {
      return;
    }
  } else if (missing) {
    showError(new Error(missing));
    return;
  }
  stop();
  clearAnswers(statement);
  showError(null);
  const controller = new AbortController();
  setRunning(controller);
  document.body.classList.add("asked");
  bringIntoView(at("answers"));
  try {
    for (const [, panel] of chosen) {
      await answer(panel, statement, controller.signal);
    }
    compare(statement);
  } catch (error) {
    if (!isReplaced(controller.signal)) {
      say(controller.signal.aborted ? "Stopped." : "");
      showError(controller.signal.aborted ? null : error);
    }
  } finally {
    if (running === controller) {
      setRunning(null);
    }
  }
}

function whatIsMissing(statement, chosen) {
  if (!image) {
    return "Choose an image first.";
  }
  if (!statement) {
    at("statement").focus();
    return "Write a statement first, such as “The cat is left of the mug.”";
  }
  return chosen.length ? "" : "Tick at least one answer to ask for.";
}

/** Streams one answer into its panel. Seconds are those that a reader waits, the network included. */
async function answer(panel, statement, signal) {
  const {heading, form} = panel.kind;
  const result = {tokens: undefined, seconds: 0, first: undefined, finish: null, own: null};
  const began = performance.now();
  const elapsed = () => (performance.now() - began) / 1000;
  panel.start();
  say(`${heading}: being written.`);
  const clock = setInterval(() => panel.setFigures({...result, seconds: elapsed()}), 100);
  try {
    const question = {model: model.id, image, statement, form};
    for await (const chunk of streamAnswer(question, at("token").value, signal)) {
      const text = chunk.choices?.[0]?.delta?.content;
      if (text) {
        result.first ??= elapsed();
        result.seconds = elapsed();
        panel.write(text);
      }
      result.finish = chunk.choices?.[0]?.finish_reason ?? result.finish;
      result.tokens = chunk.usage?.completion_tokens ?? result.tokens;
      result.own = chunk.spatial_vlm ?? result.own;
    }
    panel.finish(result);
    const verdict = panel.part(".verdict").textContent;
    say(`${heading}: ${verdict}, ${result.tokens} tokens in ${inSeconds(result.seconds)}.`);
  } catch (error) {
    if (!isReplaced(signal)) {
      panel.stop(signal.aborted ? "Stopped." : "No answer.");
    }
    throw error;
  } finally {
    clearInterval(clock);
  }
}

function compare(statement) {
  const [chain, short] = panels.map(([, panel]) => panel.result);
  const remarks = [];
  if (chain && short && short.tokens) {
    const share = (chain.tokens / short.tokens).toFixed(1);
    remarks.push(
      `The full chain took ${chain.tokens} tokens and ${inSeconds(chain.seconds)}, the short answer ` +
      `${short.tokens} tokens (${share} times fewer) and ${inSeconds(short.seconds)}.`,
    );
    if (chain.own?.verdict !== short.own?.verdict) {
      remarks.push("The two answers disagree.");
    }
  }
  const sample = samples.find((s) => s.image === image && s.statement === statement);
  if (sample?.label != null) {
    remarks.push(`In this scene the statement is ${sample.label ? "true" : "false"}.`);
  }
  at("comparison").textContent = remarks.join(" ");
  at("comparison").hidden = !remarks.length;
}

/** Scrolls to the answers where they stand below the question, as on a phone. */
function bringIntoView(element) {
  if (matchMedia("(max-width: 59.99rem)").matches) {
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({behavior: isCalm ? "auto" : "smooth", block: "start"});
  }
}

function stop() {
  running?.abort();
  setRunning(null);
}

/** Whether a later question has taken the place of the one with this signal: the panels are then the later one's. */
function isReplaced(signal) {
  return running !== null && running.signal !== signal;
}

function setRunning(controller) {
  running = controller;
  if (!controller && document.activeElement === at("stop")) {
    at("ask").focus(); // the button that has the focus is about to vanish
  }
  at("stop").hidden = !controller;
}

function say(text) {
  at("status").textContent = text;
}

function showError(error) {
  at("error").textContent = error?.message ?? "";
  at("error").hidden = !error;
  if (error instanceof RequestError && error.status === 401) {
    at("access").hidden = false;
    at("token").focus();
  }
}

at("image").addEventListener("load", fitFrame);
at("question").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("stop").addEventListener("click", stop);
at("statement").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
watchForImages(at("file"), at("stage"), chooseFile, showError);

start();
