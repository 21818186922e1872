// The samples of the server, as radio buttons with small images.

/** Fills `list` with a choice for each sample; `choose` gets the one that is chosen. */
export function offerSamples(samples, fieldset, list, choose) {
  list.replaceChildren(...samples.flatMap((sample, number) => sampleChoice(sample, number, choose)));
  fieldset.hidden = !samples.length;
}

function sampleChoice(sample, number, choose) {
  const input = document.createElement("input");
  input.type = "radio";
  input.name = "sample";
  input.id = `sample-${number}`;
  input.className = "hidden";
  input.addEventListener("change", () => choose(sample));
  const image = document.createElement("img");
  image.src = sample.image;
  image.alt = "";
  const statement = document.createElement("span");
  statement.textContent = sample.statement;
  const label = document.createElement("label");
  label.className = "sample";
  label.htmlFor = input.id;
  label.append(image, statement);
  return [input, label];
}
