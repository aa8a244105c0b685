/** Reads `text/event-stream`: events whole, however the bytes are split. */

/** One event. */
export interface ServerSentEvent {
  /** Its name; `message` if it has none. */
  event: string;
  /** Its `data` lines, joined by line feeds. */
  data: string;
}

/** The parser without I/O: text in, events out. Comments, `id` and `retry` are passed over. */
export class SseParser {
  #rest = '';
  #event = '';
  #data: string[] = [];

  /** Takes the next piece of text and returns the events that it completed. */
  push(text: string): ServerSentEvent[] {
    const events: ServerSentEvent[] = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    // A `\r` at the very end may be half of `\r\n`, so it stays with the rest.
    this.#rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line === '') {
        if (this.#data.length > 0) events.push({ event: this.#event || 'message', data: this.#data.join('\n') });
        this.#event = '';
        this.#data = [];
      } else {
        this.#field(line);
      }
    }
    return events;
  }

  #field(line: string): void {
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') this.#data.push(value);
    else if (name === 'event') this.#event = value;
  }
}

/**
 * The events of a body. An unfinished last event is dropped, as the format wants. Leaving the loop cancels the body.
 */
export async function* serverSentEvents(
  body: ReadableStream<Uint8Array>,
): AsyncGenerator<ServerSentEvent, void, undefined> {
  const parser = new SseParser();
  // Not `ignoreBOM`: a byte order mark before the first event does not belong to it.
  const decoder = new TextDecoder();
  for await (const chunk of chunksOf(body)) yield* parser.push(decoder.decode(chunk, { stream: true }));
}

/** The chunks of a body; leaving the loop cancels it. (Not every runtime can iterate a ReadableStream itself.) */
export async function* chunksOf(body: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
  const reader = body.getReader();
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        ended = true;
        return;
      }
      yield value;
    }
  } finally {
    // Cancelling a body that failed rejects with that failure, which the caller has already.
    if (!ended) await reader.cancel().catch(() => undefined);
    reader.releaseLock();
  }
}

/**
 * Iterates a stream of events. `execStream`, `streamProcessLogs` and `watch` of this package are iterators already and
 * pass through unchanged, so code that wraps them keeps working; a raw body is parsed, each `data` being JSON.
 */
export async function* parseSSEStream<T>(
  stream: ReadableStream<Uint8Array> | AsyncIterable<T>,
  signal?: AbortSignal,
): AsyncGenerator<T, void, undefined> {
  const events: AsyncIterable<T> = 'getReader' in stream ? jsonEvents<T>(stream) : stream;
  for await (const event of events) {
    signal?.throwIfAborted();
    yield event;
  }
}

async function* jsonEvents<T>(body: ReadableStream<Uint8Array>): AsyncGenerator<T, void, undefined> {
  for await (const { data } of serverSentEvents(body)) yield JSON.parse(data) as T;
}
