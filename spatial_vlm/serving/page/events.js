// Server-sent events of a streamed completion.

/** Yields the JSON of each event of a response's body until "[DONE]" or the end. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const {value, done} = await reader.read();
      buffer += done ? "\n\n" : value;
      const events = buffer.split(/\r?\n\r?\n/);
      buffer = events.pop();
      for (const event of events) {
        const data = dataOf(event);
        if (data === "[DONE]") {
          return;
        }
        if (data) {
          yield JSON.parse(data);
        }
      }
      if (done) {
        return;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // frees the connection when the caller stops early
  }
}

function dataOf(event) {
  return event
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trimStart())
    .join("\n");
}
