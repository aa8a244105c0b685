/** A background process. */

import type { LogEvent, ProcessInfo, ProcessLogs } from './types.js';

/** The methods of a sandbox that a {@link Process} calls. */
export interface ProcessOwner {
  getProcess(id: string): Promise<Process | null>;
  killProcess(id: string, signal?: string | number): Promise<void>;
  getProcessLogs(id: string): Promise<ProcessLogs>;
  streamProcessLogs(
    id: string,
    options?: { signal?: AbortSignal | undefined },
  ): AsyncGenerator<LogEvent, void, undefined>;
}

/** A background process as it was when it was asked for. */
export class Process implements ProcessInfo {
  readonly id!: string;
  readonly pid!: number;
  readonly argv!: string[];
  readonly command!: string;
  readonly status!: ProcessInfo['status'];
  readonly exitCode!: number | null;
  readonly startTime!: string;
  readonly endTime!: string | null;
  readonly #owner: ProcessOwner;

  /** @internal */
  constructor(owner: ProcessOwner, info: ProcessInfo) {
    this.#owner = owner;
    Object.assign(this, info);
  }

  /** Sends it a signal; `SIGTERM` if none is named. */
  kill(signal?: string | number): Promise<void> {
    return this.#owner.killProcess(this.id, signal);
  }

  /** What it is doing now. */
  async getStatus(): Promise<ProcessInfo['status'] | 'unknown'> {
    return (await this.#owner.getProcess(this.id))?.status ?? 'unknown';
  }

  /** Its output so far. */
  getLogs(): Promise<ProcessLogs> {
    return this.#owner.getProcessLogs(this.id);
  }

  /** Its output so far and from now on, until it ends. */
  streamLogs(options?: { signal?: AbortSignal | undefined }): AsyncGenerator<LogEvent, void, undefined> {
    return this.#owner.streamProcessLogs(this.id, options);
  }

  /** Waits for its end and returns the exit code. */
  async wait(options?: { signal?: AbortSignal | undefined }): Promise<number> {
    for await (const event of this.streamLogs(options)) if (event.type === 'exit') return event.exitCode;
    throw new Error(`the log of process ${this.id} ended without its exit code`);
  }
}
