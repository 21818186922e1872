// The server's endpoints, by relative addresses, so that a proxy may serve them under a prefix.

import {readEvents} from "./events.js";

/** A failed request: what to tell the reader, and the HTTP status (0 where no answer came). */
export class RequestError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Returns the first model that the server offers. */
export async function findModel(token) {
  const {data} = await (await request("v1/models", {}, token)).json();
  return data[0];
}

/** Returns the images and statements of the samples: [{id, image, statement, label}]. */
export async function findSamples(token) {
  const {data} = await (await request("v1/spatial_vlm/samples", {}, token)).json();
  return data;
}

/**
 * Asks whether a statement is true of an image and yields the chunks of the streamed answer.
 *
 * `question` is {model, image, statement, form}; `image` is a data URL and `form` the request's field `spatial_vlm`.
 */
export async function* streamAnswer(question, token, signal) {
  const body = JSON.stringify({
    model: question.model,
    messages: [{role: "user", content: [
      {type: "image_url", image_url: {url: question.image}},
      {type: "text", text: question.statement},
    ]}],
    temperature: 0,
    stream: true,
    stream_options: {include_usage: true},
    spatial_vlm: question.form,
  });
  const headers = {"Content-Type": "application/json"};
  const options = {method: "POST", headers, body, signal};
  const response = await request("v1/chat/completions", options, token);
  try {
    for await (const chunk of readEvents(response.body)) {
      if (chunk.error) {
        throw new RequestError(chunk.error.message, response.status);
      }
      yield chunk;
    }
  } catch (error) {
    throw error instanceof TypeError ? new RequestError("The connection broke off.", 0) : error;
  }
}

async function request(path, options, token) {
  const headers = {...options.headers, ...(token ? {Authorization: `Bearer ${token}`} : {})};
  let response;
  try {
    response = await fetch(path, {...options, headers});
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new RequestError("The server does not answer. Is it still running?", 0);
  }
  if (!response.ok) {
    throw new RequestError(await reason(response), response.status);
  }
  return response;
}

async function reason(response) {
  const wait = response.headers.get("Retry-After");
  const later = wait ? ` Try again in ${wait} s.` : "";
  try {
    return (await response.json()).error.message + later;
  } catch {
    return `The server answered with HTTP status ${response.status}.${later}`;
  }
}
