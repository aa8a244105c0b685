/** What a sandbox and each of its sessions can do: commands, files, processes, mounts, terminals. */

import { argvOf, commandBody, outputOf } from './commands.js';
import { fromBase64, mimeTypeOf, textOf, toBase64, utf8Stream, type Bytes } from './encoding.js';
import { invalidArgument, type Operation } from './error-mapping.js';
import { BucketSyncError, InvalidMountConfigError, ProcessNotFoundError } from './errors.js';
import { absolutePath, pathInUrl, segment } from './paths.js';
import { Process } from './process.js';
import { Terminal, type TerminalOptions } from './terminal.js';
import type { Call, Transport } from './transport.js';
import type {
  DeleteFileResult,
  EgressPolicy,
  EgressPolicyInForce,
  ExecEvent,
  ExecOptions,
  ExecResult,
  ExecStreamOptions,
  FileContent,
  FileExistsResult,
  FileInfo,
  FileWatchEvent,
  ListFilesOptions,
  ListFilesResult,
  LogEvent,
  MkdirResult,
  MountBucketOptions,
  MountInfo,
  NotStoredFile,
  ProcessInfo,
  ProcessLogs,
  ProcessOptions,
  ReadFileOptions,
  ReadFileResult,
  RenameFileResult,
  SyncBucketResult,
  UnmountBucketOptions,
  UnmountBucketResult,
  WatchOptions,
  WriteFileOptions,
  WriteFileResult,
} from './types.js';

/** What a sandbox and each of its sessions can do. Paths are absolute, or relative to `/workspace`. */
export abstract class Workspace {
  /** @internal */
  protected readonly _transport: Transport;
  /** @internal The daemon's id of the sandbox. */
  protected readonly _sandboxId: string;
  /** @internal */
  protected readonly _sessionId: string | undefined;

  /** @internal */
  protected constructor(transport: Transport, sandboxId: string, sessionId: string | undefined) {
    this._transport = transport;
    this._sandboxId = sandboxId;
    this._sessionId = sessionId;
    // Printed objects show what they are, not how they talk.
    for (const name of ['_transport', '_sandboxId', '_sessionId'])
      Object.defineProperty(this, name, { enumerable: false });
  }

  // ---- Commands

  /**
   * Runs a command and waits for it.
   *
   * `exec('grep -c x *.txt | sort')` is a line for the shell; `exec('ls', { args: ['/data'] })` is a program with
   * exactly these arguments. In a session the line runs in the session's shell, so `cd` and `export` last.
   *
   * @returns the output and the exit code, also when the command fails (`success: false`).
   * @throws {@link SandboxError} only if it could not be run or watched.
   */
  async exec(command: string, options: ExecOptions = {}): Promise<ExecResult> {
    try {
      for await (const event of this.execStream(command, options)) {
        if (event.type === 'complete') {
          options.onComplete?.(event.result);
          return event.result;
        }
        if (event.type !== 'start' && options.stream !== false) options.onOutput?.(event.type, event.data);
      }
      throw invalidArgument('the command ended without a result', 'exec');
    } catch (error) {
      options.onError?.(error instanceof Error ? error : new Error(String(error)));
      throw error;
    }
  }

  /**
   * Runs a command and yields its output as it comes; `complete` is last. The command starts when the loop does.
   * Leaving the loop does not end the command: give it a `timeout`, or use `startProcess`.
   */
  async *execStream(command: string, options: ExecStreamOptions = {}): AsyncGenerator<ExecEvent, void, undefined> {
    const operation = { name: 'exec', context: { command } };
    const session = this._sessionId === undefined ? {} : { sessionId: this._sessionId };
    const started = Date.now();
    const timestamp = new Date(started).toISOString();
    const output = { stdout: '', stderr: '' };
    const argv = argvOf(command, options.args, this._sessionId !== undefined);
    const events = this._transport.events(
      this._call('POST', '/exec', operation, { json: commandBody(argv, options), signal: options.signal }),
    );
    yield { type: 'start', timestamp, command, ...session };
    for await (const event of outputOf(events, operation)) {
      if (event.type !== 'exit') {
        output[event.type] += event.data;
        yield { ...event, timestamp: now(), ...session };
        continue;
      }
      const { exitCode } = event;
      const duration = Date.now() - started;
      const result = { success: exitCode === 0, exitCode, ...output, command, duration, timestamp, ...session };
      yield { type: 'complete', timestamp: now(), exitCode, result, ...session };
    }
  }

  // ---- Files

  /**
   * Writes a file, replacing what was there and making the directories above it.
   *
   * @throws {@link FileSystemError} `READ_ONLY` with `Read-only filesystem` in the message below a read-only mount.
   */
  async writeFile(path: string, content: FileContent, options: WriteFileOptions = {}): Promise<WriteFileResult> {
    const absolute = absolutePath(path, 'writeFile');
    const call = this._file('PUT', absolute, 'writeFile', options.signal);
    await this._transport.done({ ...call, body: bodyOf(content, options.encoding, absolute) });
    return { success: true, path: absolute, timestamp: now() };
  }

  /**
   * Reads a whole file: as text if it is UTF-8, else as base64, unless `encoding` says which.
   *
   * @throws {@link FileNotFoundError}
   */
  async readFile(path: string, options: ReadFileOptions = {}): Promise<ReadFileResult> {
    const absolute = absolutePath(path, 'readFile');
    const bytes = await this._transport.bytes(this._file('GET', absolute, 'readFile', options.signal));
    const text = textOf(bytes);
    const isBinary = text === undefined;
    const encoding = options.encoding === 'base64' || (isBinary && options.encoding === undefined) ? 'base64' : 'utf-8';
    return {
      success: true,
      path: absolute,
      content: encoding === 'base64' ? toBase64(bytes) : (text ?? utf8Stream().decode(bytes)),
      timestamp: now(),
      encoding,
      isBinary,
      mimeType: mimeTypeOf(absolute, isBinary),
      size: bytes.length,
    };
  }

  /** Reads a whole file as bytes. */
  async readFileBytes(path: string, options: { signal?: AbortSignal | undefined } = {}): Promise<Uint8Array> {
    return this._transport.bytes(
      this._file('GET', absolutePath(path, 'readFileBytes'), 'readFileBytes', options.signal),
    );
  }

  /** Reads a file as its bytes come; for files that should not be in memory as a whole. */
  async readFileStream(
    path: string,
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<ReadableStream<Uint8Array>> {
    return this._transport.stream(
      this._file('GET', absolutePath(path, 'readFileStream'), 'readFileStream', options.signal),
    );
  }

  /** Makes a directory; with `recursive` also those above, and one that is there is no error. */
  async mkdir(path: string, options: { recursive?: boolean | undefined } = {}): Promise<MkdirResult> {
    const body = { path: absolutePath(path, 'mkdir'), recursive: options.recursive ?? false };
    return this._transport.json(
      this._call('POST', '/mkdir', { name: 'mkdir', context: { path: body.path } }, { json: body }),
    );
  }

  /** Lists a directory. */
  async listFiles(path = '.', options: ListFilesOptions = {}): Promise<ListFilesResult> {
    const absolute = absolutePath(path, 'listFiles');
    const query = { path: absolute, recursive: options.recursive, hidden: options.includeHidden };
    return this._transport.json(
      this._call('GET', '/files', { name: 'listFiles', context: { path: absolute } }, { query }),
    );
  }

  /** Describes a file or directory, following links. */
  async stat(path: string): Promise<FileInfo> {
    const absolute = absolutePath(path, 'stat');
    const query = { path: absolute };
    return this._transport.json(this._call('GET', '/stat', { name: 'stat', context: query }, { query }));
  }

  /** Whether something is at the path. */
  async exists(path: string): Promise<FileExistsResult> {
    const query = { path: absolutePath(path, 'exists') };
    return this._transport.json(this._call('GET', '/exists', { name: 'exists', context: query }, { query }));
  }

  /** Renames a file or directory. */
  async renameFile(oldPath: string, newPath: string): Promise<RenameFileResult> {
    return this._rename(oldPath, newPath, 'renameFile');
  }

  /** Moves a file or directory, also into or out of a mount. */
  async moveFile(sourcePath: string, destinationPath: string): Promise<RenameFileResult> {
    return this._rename(sourcePath, destinationPath, 'moveFile');
  }

  /** Removes a file, or with `recursive` a directory and what is below it. */
  async deleteFile(path: string, options: { recursive?: boolean | undefined } = {}): Promise<DeleteFileResult> {
    const call = this._file('DELETE', absolutePath(path, 'deleteFile'), 'deleteFile', undefined);
    return this._transport.json({ ...call, query: { ...call.query, recursive: options.recursive } });
  }

  /** Yields what changes below a directory, after `watching` once it is watched. Leaving the loop ends it. */
  async *watch(path: string, options: WatchOptions = {}): AsyncGenerator<FileWatchEvent, void, undefined> {
    const absolute = absolutePath(path, 'watch');
    const query = { path: absolute, recursive: String(options.recursive ?? true) };
    const operation = { name: 'watch', context: { path: absolute } };
    const call = this._call('GET', '/watch', operation, { query, signal: options.signal });
    for await (const { data } of this._transport.events(call)) yield JSON.parse(data) as FileWatchEvent;
  }

  // ---- Background processes

  /** Starts a command that runs on by itself. */
  async startProcess(command: string, options: ProcessOptions = {}): Promise<Process> {
    const json = { ...commandBody(argvOf(command, options.args, false), options), processId: options.processId };
    return new Process(
      this,
      await this._transport.json<ProcessInfo>(
        this._call('POST', '/processes', { name: 'startProcess', context: { command } }, { json }),
      ),
    );
  }

  /** The background processes, also those that ended. */
  async listProcesses(): Promise<Process[]> {
    const call = this._call('GET', '/processes', { name: 'listProcesses' });
    return (await this._transport.json<{ processes: ProcessInfo[] }>(call)).processes.map(
      (info) => new Process(this, info),
    );
  }

  /** The process with this id, or `null`. */
  async getProcess(id: string): Promise<Process | null> {
    try {
      return new Process(this, await this._transport.json<ProcessInfo>(this._process('GET', id, 'getProcess')));
    } catch (error) {
      if (error instanceof ProcessNotFoundError) return null;
      throw error;
    }
  }

  /** Sends a signal to a process; `SIGTERM` if none is named. */
  async killProcess(id: string, signal?: string | number): Promise<void> {
    await this._transport.done({ ...this._process('DELETE', id, 'killProcess'), query: { signal } });
  }

  /** Sends a signal to all running background processes; returns to how many. */
  async killAllProcesses(signal?: string | number): Promise<number> {
    const call = this._call('DELETE', '/processes', { name: 'killAllProcesses' }, { query: { signal } });
    return (await this._transport.json<{ count: number }>(call)).count;
  }

  /** The output that a process has written (the newest, if it was much). */
  async getProcessLogs(id: string): Promise<ProcessLogs> {
    const { processId, stdout, stderr } = await this._transport.json<ProcessLogs>(
      this._process('GET', id, 'getProcessLogs', '/logs'),
    );
    return { processId, stdout, stderr };
  }

  /** The output of a process, from what is kept on to its end; `exit` is last. */
  async *streamProcessLogs(
    id: string,
    options: { signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<LogEvent, void, undefined> {
    const call = this._process('GET', id, 'streamProcessLogs', '/logs');
    const events = this._transport.events({ ...call, query: { follow: true }, signal: options.signal });
    for await (const event of outputOf(events, call.operation)) yield { ...event, timestamp: now(), processId: id };
  }

  // ---- Buckets

  /**
   * Mounts a bucket as a directory. When this resolves, the mount is usable by everything in the sandbox.
   *
   * Without `endpoint`, `bucket` is the name of a binding of the daemon; with `endpoint`, it is the bucket's own name.
   *
   * @throws {@link BucketMountError} or one of its subclasses; nothing is left then.
   */
  async mountBucket(bucket: string, mountPath: string, options: MountBucketOptions = {}): Promise<void> {
    checkMountPath(mountPath);
    const { localBucket, ...others } = options as MountBucketOptions & { localBucket?: boolean };
    const source = options.endpoint === undefined ? { binding: bucket } : { bucket };
    const json = { ...source, mountPath, options: { ...others, ...(localBucket && { localBucket }) } };
    await this._transport.done(this._call('POST', '/mount', { name: 'mountBucket' }, { json }));
  }

  /**
   * Stores what is not stored yet, and unmounts. With `force` it resolves to what could not be stored.
   *
   * @throws {@link BucketUnmountError} if it is in use or cannot be stored; it stays usable.
   */
  async unmountBucket(mountPath: string, options: UnmountBucketOptions = {}): Promise<UnmountBucketResult> {
    checkMountPath(mountPath);
    const json = { mountPath, ...(options.force !== undefined && { force: options.force }) };
    const call = this._call('POST', '/unmount', { name: 'unmountBucket' }, { json });
    return { notStored: (await this._transport.json<Partial<UnmountBucketResult>>(call)).notStored ?? [] };
  }

  /**
   * A barrier: when this resolves, everything that was written to the mount before the call is in the bucket, also by
   * programs that still have the file open.
   *
   * @throws {@link BucketSyncError} with the files that could not be stored. Their bytes are kept, and tried again as
   * long as the bucket is mounted. {@link InvalidMountConfigError} if nothing is mounted there.
   */
  async syncBucket(mountPath: string): Promise<SyncBucketResult> {
    checkMountPath(mountPath);
    const call = this._call('POST', '/mounts/sync', { name: 'syncBucket' }, { json: { mountPath } });
    const { ok, stored, failed } = await this._transport.json<{
      ok: boolean;
      stored: number;
      failed: NotStoredFile[];
    }>(call);
    if (ok) return { stored };
    const named = failed.slice(0, 5).map(({ path, reason }) => `${path}: ${reason}`);
    const more = failed.length > named.length ? ', …' : '';
    const message = `${failed.length} file(s) could not be stored: ${named.join(', ')}${more}`;
    throw new BucketSyncError(message, failed, stored);
  }

  /** The mounts of the sandbox. */
  async listMounts(): Promise<MountInfo[]> {
    return (await this._transport.json<{ mounts: MountInfo[] }>(this._call('GET', '/mounts', { name: 'listMounts' })))
      .mounts;
  }

  // ---- Network

  /** What the sandbox reaches of the network; values of headers are `***`. */
  async getEgress(): Promise<EgressPolicyInForce> {
    return this._transport.json(this._call('GET', '/egress', { name: 'getEgress' }));
  }

  /**
   * Replaces what the sandbox reaches of the network, from now on. Connections that the new policy forbids end.
   *
   * @throws {@link SandboxError} with the daemon's words if the policy makes no sense; the old one holds then.
   */
  async setEgress(policy: EgressPolicy): Promise<EgressPolicyInForce> {
    return this._transport.json(this._call('PUT', '/egress', { name: 'setEgress' }, { json: policy }));
  }

  // ---- Terminals

  /** Opens a terminal; that of a session goes on when the connection ends. Resolves when it is ready. */
  async terminal(options: TerminalOptions = {}): Promise<Terminal> {
    const { cols = 80, rows = 24, shell } = options;
    const operation = { name: 'terminal', context: { sandboxId: this._sandboxId } };
    // In the query, as not every WebSocket can send headers of ours.
    const query = { cols, rows, shell, session: this._sessionId };
    return Terminal.open(
      await this._transport.openWebSocket(`/v1/sandbox/${this._sandboxId}/pty`, query, operation),
      operation,
    );
  }

  // ---- Requests

  /** @internal */
  protected _call(method: Call['method'], path: string, operation: Operation, more: Partial<Call> = {}): Call {
    return {
      method,
      path: `/v1/sandbox/${this._sandboxId}${path}`,
      operation: { ...operation, context: { sandboxId: this._sandboxId, ...operation.context } },
      ...more,
      headers: { 'Session-Id': this._sessionId, ...more.headers },
    };
  }

  private _file(method: Call['method'], absolute: string, operation: string, signal: AbortSignal | undefined): Call {
    const path = `/file/${pathInUrl(absolute, operation)}`;
    // Trusted code may name any file of the sandbox, not only those below /workspace.
    return this._call(
      method,
      path,
      { name: operation, context: { path: absolute } },
      { query: { scope: 'sandbox' }, signal },
    );
  }

  private _process(method: Call['method'], id: string, operation: string, below = ''): Call {
    return this._call(method, `/processes/${segment(id, operation)}${below}`, {
      name: operation,
      context: { processId: id },
    });
  }

  private async _rename(from: string, to: string, operation: string): Promise<RenameFileResult> {
    const json = { oldPath: absolutePath(from, operation), newPath: absolutePath(to, operation) };
    return this._transport.json(this._call('POST', '/rename', { name: operation, context: json }, { json }));
  }
}

/** The time as results carry it. */
export function now(): string {
  return new Date().toISOString();
}

function checkMountPath(mountPath: string): void {
  if (!mountPath.startsWith('/')) {
    throw new InvalidMountConfigError(`Mount path must be absolute (start with /): "${mountPath}"`);
  }
}

function bodyOf(content: FileContent, encoding: WriteFileOptions['encoding'], path: string): BodyInit {
  if (typeof content !== 'string') return content as Bytes | ArrayBuffer | Blob | ReadableStream<Uint8Array>;
  // Bytes, not text: `fetch` would name a media type for a string.
  if (encoding !== 'base64') return new TextEncoder().encode(content) as Bytes;
  try {
    return fromBase64(content);
  } catch {
    throw invalidArgument('content is no base64', 'writeFile', { path });
  }
}
