/** A daemon as a whole: `connect()` and `env`. */

import { R2Bucket } from './bucket.js';
import { sandboxNameOf } from './ids.js';
import { Sandbox, SandboxTarget, getSandbox, type GetSandboxOptions } from './sandbox.js';
import { Transport, type ConnectionOptions } from './transport.js';
import type { DaemonEvent, SandboxInfo } from './types.js';

/**
 * As code of Workers knows it: `Sandbox` for {@link getSandbox}, and the daemon's bindings as buckets by their names.
 */
export type Env = { readonly Sandbox: SandboxTarget } & { readonly [binding: string]: R2Bucket };

/** A daemon. Makes no call until it is asked for something. */
export class Connection {
  /** `Sandbox` and the bindings. Any name gives a bucket; the daemon says at the first call whether it has it. */
  readonly env: Env;
  readonly #transport: Transport;

  /** @internal */
  constructor(transport: Transport) {
    this.#transport = transport;
    this.env = envOf(() => transport);
  }

  /** URL of the daemon. */
  get url(): string {
    return this.#transport.url;
  }

  /** The sandbox called `id`, made by its first call. */
  sandbox(id: string, options?: GetSandboxOptions): Sandbox {
    return getSandbox(this.env.Sandbox, id, options);
  }

  /** A new sandbox whose id the daemon makes. */
  async createSandbox(): Promise<Sandbox> {
    const call = { method: 'POST', path: '/v1/sandbox', operation: { name: 'createSandbox' } } as const;
    return this.sandbox((await this.#transport.json<{ id: string }>(call)).id);
  }

  /** All sandboxes. */
  async listSandboxes(): Promise<SandboxInfo[]> {
    const call = { method: 'GET', path: '/v1/sandbox', operation: { name: 'listSandboxes' } } as const;
    const { sandboxes } = await this.#transport.json<{ sandboxes: Omit<SandboxInfo, 'name'>[] }>(call);
    return sandboxes.map((info) => ({ ...info, name: sandboxNameOf(info.id) }));
  }

  /** The bucket of a binding. */
  bucket(binding: string): R2Bucket {
    return new R2Bucket(this.#transport, binding);
  }

  /** The names of the bindings. */
  async listBindings(): Promise<string[]> {
    const call = { method: 'GET', path: '/v1/bindings', operation: { name: 'listBindings' } } as const;
    return (await this.#transport.json<{ bindings: string[] }>(call)).bindings;
  }

  /** What happens on the daemon from now on. Leaving the loop ends it. */
  async *events(options: { signal?: AbortSignal | undefined } = {}): AsyncGenerator<DaemonEvent, void, undefined> {
    const call = { method: 'GET', path: '/v1/events', operation: { name: 'events' }, signal: options.signal } as const;
    for await (const { event, data } of this.#transport.events(call)) {
      const fields = JSON.parse(data) as Partial<DaemonEvent>;
      yield { time: new Date().toISOString(), kind: event, sandbox: null, mountPath: null, detail: '', ...fields };
    }
  }

  /** Only the URL. */
  toJSON(): { url: string } {
    return { url: this.url };
  }
}

/** Connects to a daemon; without options to the one that `SANDPAIL_URL` and `SANDPAIL_API_KEY` name. */
export function connect(options: ConnectionOptions | string = {}): Connection {
  return new Connection(new Transport(typeof options === 'string' ? { url: options } : options));
}

/** The `env` of the daemon that `SANDPAIL_URL` and `SANDPAIL_API_KEY` name, read at first use. */
export const env: Env = envOf(() => new Transport());

function envOf(transport: () => Transport): Env {
  let used: Transport | undefined;
  const entries = new Map<string, SandboxTarget | R2Bucket>();
  return new Proxy({} as Env, {
    get(_target, name) {
      // Symbols, and names that the language asks every object for, are no bindings.
      if (typeof name === 'symbol' || name in Object.prototype || name === 'then' || name === 'toJSON')
        return undefined;
      let entry = entries.get(name);
      if (!entry) {
        used ??= transport();
        entry = name === 'Sandbox' ? new SandboxTarget(used) : new R2Bucket(used, name);
        entries.set(name, entry);
      }
      return entry;
    },
  });
}
