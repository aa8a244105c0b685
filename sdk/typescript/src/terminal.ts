/** A terminal over a WebSocket. */

import { connectionError, type Operation } from './error-mapping.js';
import { SandboxError } from './errors.js';
import type { WebSocketLike } from './transport.js';

/** Options of `terminal`. */
export interface TerminalOptions {
  /** Width in characters. Default 80. */
  cols?: number | undefined;
  /** Height in lines. Default 24. */
  rows?: number | undefined;
  /** The shell. Default `bash`. */
  shell?: string | undefined;
}

/** How a terminal ended. */
export interface TerminalExit {
  /** The shell's exit code; 128+n for signal n. */
  code: number;
  /** Such as `SIGKILL`. */
  signal?: string;
}

/** Listeners of a terminal by event. */
export interface TerminalEvents {
  /** Bytes to show, as they come; what came before `terminal()` resolved is given to the first listener. */
  data: (bytes: Uint8Array) => void;
  /** The shell ended. */
  exit: (exit: TerminalExit) => void;
  /** The daemon refused something that was sent; the terminal goes on. */
  error: (error: Error) => void;
}

/** A terminal. `write` what is typed, listen to `data`, `resize`, and wait for `exited`. */
export class Terminal {
  /**
   * Resolves when the shell ended; rejects if the connection ends before.
   */
  readonly exited: Promise<TerminalExit>;
  readonly #socket: WebSocketLike;
  readonly #operation: Operation;
  readonly #listeners: { [Event in keyof TerminalEvents]: Set<TerminalEvents[Event]> } = {
    data: new Set(),
    exit: new Set(),
    error: new Set(),
  };
  /** Output that nobody listened to yet. */
  #early: Uint8Array[] = [];
  #exit: TerminalExit | undefined;
  #closing = false;

  private constructor(socket: WebSocketLike, operation: Operation, ready: (error?: Error) => void) {
    this.#socket = socket;
    this.#operation = operation;
    let resolveExit: (exit: TerminalExit) => void;
    let rejectExit: (error: Error) => void;
    this.exited = new Promise((resolve, reject) => {
      resolveExit = resolve;
      rejectExit = reject;
    });
    // Those who only read `data` need not wait for it.
    this.exited.catch(() => undefined);

    socket.binaryType = 'arraybuffer';
    const listen = socket.addEventListener.bind(socket) as (
      type: string,
      listener: (event: { data?: unknown; reason?: string }) => void,
    ) => void;
    listen('message', ({ data }) => {
      if (typeof data !== 'string') return this.#output(new Uint8Array(data as ArrayBuffer));
      const message = JSON.parse(data) as { type: string; code?: number; signal?: string; message?: string };
      if (message.type === 'ready') ready();
      else if (message.type === 'exit') {
        const exit = { code: message.code ?? 0, ...(message.signal !== undefined && { signal: message.signal }) };
        this.#exit = exit;
        for (const listener of this.#listeners.exit) listener(exit);
        resolveExit(exit);
      } else if (message.type === 'error') {
        const error = this.#error('TERMINAL_ERROR', message.message ?? 'terminal error');
        for (const listener of this.#listeners.error) listener(error);
      }
    });
    listen('error', () => {
      const error = connectionError('the WebSocket failed', 'this address', operation, 'no terminal from');
      ready(error);
      rejectExit(error);
    });
    listen('close', ({ reason }) => {
      const error = this.#error(
        this.#closing ? 'TERMINAL_CLOSED' : 'CONNECTION_FAILED',
        `the terminal's connection ended${reason ? `: ${reason}` : ''}`,
      );
      ready(error);
      rejectExit(error);
    });
  }

  /** @internal */
  static async open(socket: WebSocketLike, operation: Operation): Promise<Terminal> {
    return new Promise((resolve, reject) => {
      const terminal: Terminal = new Terminal(socket, operation, (error) =>
        error ? reject(error) : resolve(terminal),
      );
    });
  }

  /** Sends what is typed. */
  write(data: string | Uint8Array): void {
    this.#socket.send((typeof data === 'string' ? new TextEncoder().encode(data) : data) as Uint8Array<ArrayBuffer>);
  }

  /** Tells the terminal its new size. */
  resize(cols: number, rows: number): void {
    this.#socket.send(JSON.stringify({ type: 'resize', cols, rows }));
  }

  /** Listens. Returns a function that ends it. */
  on<Event extends keyof TerminalEvents>(event: Event, listener: TerminalEvents[Event]): () => void {
    this.#listeners[event].add(listener);
    if (event === 'data') {
      const early = this.#early;
      this.#early = [];
      for (const bytes of early) (listener as TerminalEvents['data'])(bytes);
    } else if (event === 'exit' && this.#exit) {
      (listener as TerminalEvents['exit'])(this.#exit);
    }
    return () => void this.#listeners[event].delete(listener);
  }

  /** Ends the connection. A terminal without a session ends with it. */
  close(): void {
    this.#closing = true;
    this.#socket.close(1000);
  }

  /** {@link Terminal.close}, for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  #output(bytes: Uint8Array): void {
    if (this.#listeners.data.size === 0) this.#early.push(bytes);
    for (const listener of this.#listeners.data) listener(bytes);
  }

  #error(code: string, message: string): SandboxError {
    return new SandboxError({
      code,
      message,
      httpStatus: 0,
      operation: this.#operation.name,
      context: this.#operation.context ?? {},
    });
  }
}
