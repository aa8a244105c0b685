/** A sandbox, its sessions, and `getSandbox`. */

import { definedOnly } from './commands.js';
import { sandboxIdOf } from './ids.js';
import { segment } from './paths.js';
import { Transport, type ConnectionOptions } from './transport.js';
import type { DeleteSessionResult, SessionOptions } from './types.js';
import { Workspace } from './workspace.js';

/** Where sandboxes are: what `env.Sandbox` of {@link connect} is. Shows its URL, never its key. */
export class SandboxTarget {
  /** @internal */
  readonly #transport: Transport;

  /** @internal */
  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** URL of the daemon. */
  get url(): string {
    return this.#transport.url;
  }

  /** @internal */
  static transportOf(target: SandboxTarget): Transport {
    return target.#transport;
  }

  /** Only the URL. */
  toJSON(): { url: string } {
    return { url: this.url };
  }
}

/** Options of {@link getSandbox}. */
export interface GetSandboxOptions {
  /** Lower-case the id first, so that `User-1` and `user-1` are one sandbox. Default false. */
  normalizeId?: boolean | undefined;
  /** Taken so that moved code compiles, and without effect: a sandbox lives until it is destroyed. */
  keepAlive?: boolean | undefined;
  /** Taken so that moved code compiles, and without effect: a sandbox lives until it is destroyed. */
  sleepAfter?: string | number | undefined;
}

/**
 * The sandbox called `id`. Makes no call: the sandbox is made by the first one that needs it.
 *
 * @param target - `env.Sandbox`, `{ url, apiKey }`, or the URL of the daemon.
 * @param id - any text of 1 to 77 bytes, see {@link sandboxIdOf}.
 */
export function getSandbox(
  target: SandboxTarget | ConnectionOptions | string,
  id: string,
  options: GetSandboxOptions = {},
): Sandbox {
  const name = options.normalizeId ? id.toLowerCase() : id;
  return Sandbox.open(transportOf(target), name);
}

function transportOf(target: SandboxTarget | ConnectionOptions | string): Transport {
  if (target instanceof SandboxTarget) return SandboxTarget.transportOf(target);
  return new Transport(typeof target === 'string' ? { url: target } : target);
}

/**
 * A sandbox.
 *
 * ```ts
 * await using sandbox = getSandbox(env.Sandbox, 'report');   // destroyed at the end of the block
 * await sandbox.mountBucket('MY_BUCKET', '/data');
 * const { stdout } = await sandbox.exec('wc -l /data/*.csv');
 * ```
 */
export class Sandbox extends Workspace implements AsyncDisposable {
  /** The name it was asked for with. */
  readonly id: string;

  private constructor(transport: Transport, id: string) {
    super(transport, sandboxIdOf(id), undefined);
    this.id = id;
  }

  /** @internal */
  static open(transport: Transport, id: string): Sandbox {
    return new Sandbox(transport, id);
  }

  /** The daemon's id: the name itself, or its encoding, see {@link sandboxIdOf}. */
  get serverId(): string {
    return this._sandboxId;
  }

  /** Whether it was made and not destroyed. Makes none. */
  async running(): Promise<boolean> {
    return (await this._transport.json<{ running: boolean }>(this._call('GET', '/running', { name: 'running' })))
      .running;
  }

  /**
   * Makes a session: a shell whose working directory, variables and functions last from command to command.
   *
   * @throws {@link SessionAlreadyExistsError}
   */
  async createSession(options: SessionOptions = {}): Promise<ExecutionSession> {
    const { id, cwd, env } = options;
    const json = { id, env: definedOnly(env), ...(cwd !== undefined && { cwd, scope: 'sandbox' }) };
    const call = this._call(
      'POST',
      '/session',
      { name: 'createSession', context: id === undefined ? {} : { sessionId: id } },
      { json },
    );
    return ExecutionSession.open(
      this._transport,
      this._sandboxId,
      (await this._transport.json<{ id: string }>(call)).id,
    );
  }

  /** The session with this id; its first command makes it if it is not there. */
  async getSession(sessionId: string): Promise<ExecutionSession> {
    return ExecutionSession.open(this._transport, this._sandboxId, sessionId);
  }

  /**
   * Ends a session.
   *
   * @throws {@link SessionNotFoundError}
   */
  async deleteSession(sessionId: string): Promise<DeleteSessionResult> {
    const path = `/session/${segment(sessionId, 'deleteSession')}`;
    return this._transport.json(this._call('DELETE', path, { name: 'deleteSession', context: { sessionId } }));
  }

  /** An uncompressed tar of `/workspace`; what is mounted, and `excludes` (paths below it), are left out. */
  async persist(
    options: { excludes?: string[] | undefined; signal?: AbortSignal | undefined } = {},
  ): Promise<ReadableStream<Uint8Array>> {
    const excludes = options.excludes?.length ? options.excludes.join(',') : undefined;
    return this._transport.stream(
      // It changes nothing, so it may be asked for again.
      this._call(
        'POST',
        '/persist',
        { name: 'persist' },
        { query: { excludes }, signal: options.signal, repeatable: true },
      ),
    );
  }

  /** Unpacks such a tar over `/workspace`, keeping files that it does not name. */
  async hydrate(
    tar: Uint8Array | ArrayBuffer | Blob | ReadableStream<Uint8Array>,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    const body = tar as Exclude<BodyInit, string>;
    await this._transport.done(
      this._call('POST', '/hydrate', { name: 'hydrate' }, { body, signal: options.signal, repeatable: true }),
    );
  }

  /** Stores what mounts have not stored yet, unmounts, and removes the sandbox with all that runs in it. */
  async destroy(): Promise<void> {
    await this._transport.done(this._call('DELETE', '', { name: 'destroy' }, { repeatable: true }));
  }

  /** {@link Sandbox.destroy}, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.destroy();
  }
}

/** A shell of a sandbox whose state lasts; files, processes and mounts are those of the sandbox. */
export class ExecutionSession extends Workspace {
  /** Its id. */
  readonly id: string;

  private constructor(transport: Transport, sandboxId: string, id: string) {
    super(transport, sandboxId, id);
    this.id = id;
  }

  /** @internal */
  static open(transport: Transport, sandboxId: string, id: string): ExecutionSession {
    return new ExecutionSession(transport, sandboxId, id);
  }
}
