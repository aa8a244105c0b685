/**
 * HTTP to the daemon: where it is, the key, retries, and errors as classes.
 *
 * The key lives in a private field and goes into the `Authorization` header only, so that no printed object shows it.
 */

import { connectionError, errorFromResponse, invalidArgument, type Operation } from './error-mapping.js';
import { SandboxError } from './errors.js';
import { chunksOf, serverSentEvents, type ServerSentEvent } from './sse.js';

/** Where the daemon is, and how to talk to it. */
export interface ConnectionOptions {
  /** URL of the daemon. Default: `SANDPAIL_URL`, else `http://127.0.0.1:8787`. */
  url?: string | undefined;
  /** Key of the daemon. Default: `SANDPAIL_API_KEY`; with neither, no key is sent. */
  apiKey?: string | undefined;
  /** Used instead of the global `fetch`. */
  fetch?: typeof fetch | undefined;
  /** What is tried again, see {@link RetryOptions}. */
  retry?: RetryOptions | undefined;
  /** Used by terminals instead of the global `WebSocket`, for runtimes that have none. */
  WebSocket?: WebSocketConstructor | undefined;
}

/**
 * Retries happen only where nothing can be done twice: on 503 when the daemon says that it did not begin, or when the
 * call can be repeated (GET, PUT); on a broken connection only when it can be repeated. Streamed bodies are sent once.
 */
export interface RetryOptions {
  /** How many more times a call is tried. Default 4; 0 turns retries off. */
  count?: number | undefined;
  /** Wait before the first retry in milliseconds; doubles each time, with jitter. Default 200. */
  delay?: number | undefined;
}

/** As much of a WebSocket as a terminal needs; the global one and that of the package `ws` fit. */
export interface WebSocketLike {
  binaryType: string;
  readonly readyState: number;
  send(data: string | Uint8Array<ArrayBuffer>): void;
  close(code?: number, reason?: string): void;
  addEventListener(type: string, listener: (event: never) => void): void;
}

/** Makes a WebSocket. The second argument carries the `Authorization` header, which Node, Bun, Deno and `ws` take. */
export type WebSocketConstructor = new (url: string, options: never) => WebSocketLike;

/** One call. */
export interface Call {
  method: 'GET' | 'HEAD' | 'PUT' | 'POST' | 'DELETE';
  /** Path with its `/v1`, percent-encoded. */
  path: string;
  /** Query parameters; those that are undefined are left out, `false` as well. */
  query?: Record<string, string | number | boolean | undefined>;
  headers?: Record<string, string | undefined>;
  /** Sent as JSON. */
  json?: unknown;
  /** Sent as it is. */
  body?: BodyInit | undefined;
  /** Whether doing it twice is as good as once; by default that of GET, HEAD and PUT. */
  repeatable?: boolean;
  signal?: AbortSignal | undefined;
  /** For errors. */
  operation: Operation;
  /** Statuses that are answers to the caller and no errors. */
  accept?: number[];
}

const DEFAULT_URL = 'http://127.0.0.1:8787';
const RETRY_COUNT = 4;
const RETRY_DELAY_MS = 200;
const RETRY_DELAY_MAX_MS = 10_000;
/** With these the daemon says that it refused before it began anything. */
const NOT_BEGUN = new Set(['capacity_exceeded', 'unavailable']);

/** A variable of the environment, in runtimes that have one. */
function environment(name: string): string | undefined {
  try {
    const host = globalThis as { process?: { env?: Record<string, string | undefined> } };
    return host.process?.env?.[name] || undefined;
  } catch {
    // Deno refuses without permission; then there is no such variable for us.
    return undefined;
  }
}

/** A connection to one daemon; keeps no state but the address, the key and the choices. */
export class Transport {
  /** URL of the daemon, without a closing `/`. */
  readonly url: string;
  readonly #apiKey: string | undefined;
  readonly #fetch: typeof fetch | undefined;
  readonly #retryCount: number;
  readonly #retryDelay: number;
  readonly #WebSocket: WebSocketConstructor | undefined;

  constructor(options: ConnectionOptions = {}) {
    this.url = parseUrl(options.url ?? environment('SANDPAIL_URL') ?? DEFAULT_URL);
    this.#apiKey = parseKey(options.apiKey ?? environment('SANDPAIL_API_KEY'));
    this.#fetch = options.fetch;
    this.#retryCount = options.retry?.count ?? RETRY_COUNT;
    this.#retryDelay = options.retry?.delay ?? RETRY_DELAY_MS;
    this.#WebSocket = options.WebSocket;
  }

  /** Makes a call and returns its answer once the status is known to be good. */
  async send(call: Call): Promise<Response> {
    const repeatable = call.repeatable ?? (call.method === 'GET' || call.method === 'HEAD' || call.method === 'PUT');
    const hasStream = call.body instanceof ReadableStream;
    for (let attempt = 0; ; attempt++) {
      const mayRetry = attempt < this.#retryCount && !hasStream;
      let response: Response;
      try {
        response = await this.#fetchOnce(call, hasStream);
      } catch (cause) {
        call.signal?.throwIfAborted();
        if (!mayRetry || !repeatable) throw connectionError(cause, this.url, call.operation);
        await this.#pause(attempt, null, call.signal);
        continue;
      }
      if (response.ok || call.accept?.includes(response.status)) return response;
      const error = await errorFromResponse(response, call.operation);
      call.signal?.throwIfAborted();
      const refused = error instanceof SandboxError && NOT_BEGUN.has(String(error.context['serverCode']));
      if (response.status !== 503 || !mayRetry || !(repeatable || refused)) throw error;
      await this.#pause(attempt, response.headers.get('Retry-After'), call.signal);
    }
  }

  /** Makes a call and reads its answer as JSON. */
  async json<T>(call: Call): Promise<T> {
    const response = await this.send(call);
    const text = await this.#rest(call, response.text());
    try {
      return JSON.parse(text) as T;
    } catch (cause) {
      throw new SandboxError(
        {
          code: 'INVALID_RESPONSE',
          message: `${call.operation.name}: the answer is no JSON. Is ${this.url} a sandpail server?`,
          httpStatus: response.status,
          operation: call.operation.name,
        },
        { cause },
      );
    }
  }

  /** Makes a call and reads its answer to the end. */
  async bytes(call: Call): Promise<Uint8Array<ArrayBuffer>> {
    const response = await this.send(call);
    return new Uint8Array(await this.#rest(call, response.arrayBuffer()));
  }

  /** Makes a call whose answer says nothing. */
  async done(call: Call): Promise<void> {
    const response = await this.send(call);
    // Read to the end, so that the connection can be used again.
    await this.#rest(call, response.arrayBuffer());
  }

  /** Makes a call and gives its answer as it comes. */
  async stream(call: Call): Promise<ReadableStream<Uint8Array>> {
    const { body } = await this.send(call);
    return body ?? new ReadableStream({ start: (controller) => controller.close() });
  }

  /** Makes a call whose answer is an event stream. Leaving the loop closes the connection. */
  async *events(call: Call): AsyncGenerator<ServerSentEvent, void, undefined> {
    const body = await this.stream({ ...call, headers: { Accept: 'text/event-stream', ...call.headers } });
    const events = serverSentEvents(body);
    try {
      for (;;) {
        const { done, value } = await this.#rest(call, events.next());
        if (done) return;
        yield value;
      }
    } finally {
      await events.return();
    }
  }

  /** The chunks of an answer. */
  async *chunks(call: Call): AsyncGenerator<Uint8Array, void, undefined> {
    yield* chunksOf(await this.stream(call));
  }

  /** Opens a WebSocket. It may not be open yet when this returns. */
  async openWebSocket(
    path: string,
    query: Record<string, string | number | undefined>,
    operation: Operation,
  ): Promise<WebSocketLike> {
    const url = this.#address({ path, query });
    const headers = this.#headers({});
    const WebSocket = this.#WebSocket ?? (globalThis as { WebSocket?: WebSocketConstructor }).WebSocket;
    if ('WebSocketPair' in globalThis && !this.#WebSocket) return this.#upgrade(url, headers, operation);
    if (!WebSocket) {
      throw new SandboxError({
        code: 'NO_WEBSOCKET',
        message: 'This runtime has no WebSocket, which a terminal needs.',
        httpStatus: 0,
        operation: operation.name,
        suggestion:
          'On Node 20 start with --experimental-websocket, or connect({ WebSocket }) with that of the package "ws".',
      });
    }
    return new WebSocket(url.replace(/^http/, 'ws'), { headers } as never);
  }

  /** Workers: a `WebSocket` there takes no headers, but `fetch` upgrades. */
  async #upgrade(url: string, headers: Record<string, string>, operation: Operation): Promise<WebSocketLike> {
    const fetched = await this.#fetcher()(url, { headers: { ...headers, Upgrade: 'websocket' } });
    const socket = (fetched as Response & { webSocket?: WebSocketLike & { accept(): void } }).webSocket;
    if (!socket) throw await errorFromResponse(fetched, operation);
    socket.accept();
    return socket;
  }

  async #fetchOnce(call: Call, hasStream: boolean): Promise<Response> {
    const json = call.json === undefined ? undefined : JSON.stringify(call.json);
    const init: RequestInit & { duplex?: 'half' } = {
      method: call.method,
      headers: this.#headers({ ...(json !== undefined && { 'Content-Type': 'application/json' }), ...call.headers }),
      // The key must not follow a redirect.
      redirect: 'manual',
    };
    const body = json ?? call.body;
    if (body !== undefined) init.body = body;
    if (hasStream) init.duplex = 'half';
    if (call.signal) init.signal = call.signal;
    return this.#fetcher()(this.#address(call), init);
  }

  #fetcher(): typeof fetch {
    // Looked up at each call: tests and instrumentation replace the global one. Called without a receiver, as Workers
    // want.
    const chosen = this.#fetch ?? globalThis.fetch;
    return (input, init) => chosen(input, init);
  }

  #headers(more: Record<string, string | undefined>): Record<string, string> {
    const headers: Record<string, string> = {};
    for (const [name, value] of Object.entries(more)) if (value !== undefined) headers[name] = value;
    if (this.#apiKey !== undefined) headers['Authorization'] = `Bearer ${this.#apiKey}`;
    return headers;
  }

  #address(call: Pick<Call, 'path' | 'query'>): string {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(call.query ?? {})) {
      if (value !== undefined && value !== false) query.set(name, String(value));
    }
    // Both mean a space, but only to parsers of forms.
    const text = query.toString().replaceAll('+', '%20');
    return this.url + call.path + (text && `?${text}`);
  }

  /** Waits for a part of the answer; a connection that breaks becomes our error, an abort stays what it is. */
  async #rest<T>(call: Call, part: Promise<T>): Promise<T> {
    try {
      return await part;
    } catch (cause) {
      call.signal?.throwIfAborted();
      throw connectionError(cause, this.url, call.operation, 'lost the connection to');
    }
  }

  async #pause(attempt: number, retryAfter: string | null, signal: AbortSignal | undefined): Promise<void> {
    const asked = Number(retryAfter ?? NaN) * 1000;
    // Jitter of half, so that callers that were refused together do not come back together.
    const chosen = this.#retryDelay * 2 ** attempt * (0.5 + Math.random() / 2);
    const delay = Math.min(Number.isFinite(asked) ? Math.max(asked, chosen) : chosen, RETRY_DELAY_MAX_MS);
    await new Promise<void>((resolve, reject) => {
      const abort = () => {
        clearTimeout(timer);
        reject(signal?.reason);
      };
      const timer = setTimeout(() => {
        signal?.removeEventListener('abort', abort);
        resolve();
      }, delay);
      signal?.addEventListener('abort', abort, { once: true });
    });
  }
}

function parseUrl(text: string): string {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    // The text is not repeated: someone may have put a key into it.
    throw invalidArgument(
      'The URL of the sandpail server is not valid; it looks like http://127.0.0.1:8787',
      'connect',
    );
  }
  if (url.protocol !== 'http:' && url.protocol !== 'https:') {
    throw invalidArgument('The URL of the sandpail server must begin with http:// or https://', 'connect');
  }
  if (url.username !== '' || url.password !== '') {
    throw invalidArgument('The URL of the sandpail server must hold no user or password; use apiKey', 'connect');
  }
  return url.origin + url.pathname.replace(/\/+$/, '');
}

function parseKey(text: string | undefined): string | undefined {
  const key = text?.trim();
  if (!key) return undefined;
  // `fetch` would refuse such a header too, with the key in its message.
  if (!/^[\x21-\x7e]+$/.test(key))
    throw invalidArgument('The API key holds characters that no HTTP header can carry', 'connect');
  return key;
}
