/**
 * Options and results of the methods, in the shapes that people know. Sizes are bytes, durations milliseconds, times
 * ISO 8601.
 */

/** Dialect of an object store. */
export type BucketProvider = 'r2' | 's3' | 'gcs';

/** Keys for one mount. They go to the daemon and never into the sandbox. */
export interface BucketCredentials {
  accessKeyId: string;
  secretAccessKey: string;
  /** For temporary keys. */
  sessionToken?: string | undefined;
}

/** A bucket of any S3-compatible store. */
export interface RemoteMountBucketOptions {
  /** URL of the store. */
  endpoint: string;
  /** Default: known by the endpoint's host, else plain S3 with path-style addresses. */
  provider?: BucketProvider | undefined;
  /** Default: the daemon's `AWS_*`, else `R2_*` variables or secrets. */
  credentials?: BucketCredentials | undefined;
  /** Refuse writes. Default false. */
  readOnly?: boolean | undefined;
  /** Options in the words of s3fs; unknown ones are refused by name. */
  s3fsOptions?: string[] | undefined;
  /** Show only this part of the bucket; begins with `/`. */
  prefix?: string | undefined;
  /** S3 clients inside may reach the bucket through the proxy, which holds the keys. */
  credentialProxy?: boolean | undefined;
  /**
   * Closing a file returns when it is on the daemon's disk; it goes to the bucket within seconds, also after a crash, when
   * the bucket is mounted again so. `fsync` and `syncBucket` wait for the bucket. Default false.
   */
  writeBack?: boolean | undefined;
  /** When files of some paths are stored; the first rule that matches counts. Default: as `writeBack` says. */
  pathClasses?: PathRule[] | undefined;
  /**
   * Rules for trees that programs make, after `pathClasses`: `.git` is `write-back`; `node_modules`, `target`,
   * `__pycache__` and `.venv` are `local`. Default false.
   */
  agent?: boolean | undefined;
}

/**
 * When a file is stored: `durable` (closing waits for the bucket), `write-back` (closing waits for the daemon's disk) or
 * `local` (never: it is on the daemon's disk only, where the next mount of the bucket finds it).
 */
export type PathClass = 'durable' | 'write-back' | 'local';

/** Gives a class to paths below a mount. */
export interface PathRule {
  /** `*`, `**`, `?`, `[a-z]`, `{a,b}`; covers what is below. With `/` at its end it matches directories only. */
  glob: string;
  class: PathClass;
}

/** A bucket that the daemon's configuration knows by a binding. */
export interface R2BindingMountBucketOptions {
  endpoint?: never;
  /** Show only this part of the bucket; begins with `/`. */
  prefix?: string | undefined;
  /** Refuse writes. Default false. */
  readOnly?: boolean | undefined;
  /** Options in the words of s3fs; unknown ones are refused by name. */
  s3fsOptions?: string[] | undefined;
  /**
   * Closing a file returns when it is on the daemon's disk; it goes to the bucket within seconds, also after a crash, when
   * the bucket is mounted again so. `fsync` and `syncBucket` wait for the bucket. Default false.
   */
  writeBack?: boolean | undefined;
  /** When files of some paths are stored; the first rule that matches counts. Default: as `writeBack` says. */
  pathClasses?: PathRule[] | undefined;
  /**
   * Rules for trees that programs make, after `pathClasses`: `.git` is `write-back`; `node_modules`, `target`,
   * `__pycache__` and `.venv` are `local`. Default false.
   */
  agent?: boolean | undefined;
}

/** A plain directory that is kept equal to a binding's bucket, both ways, about once a second. */
export interface LocalMountBucketOptions {
  localBucket: boolean;
  endpoint?: never;
  /** Only this part of the bucket; begins with `/`. */
  prefix?: string | undefined;
  /** Carry nothing from the directory to the bucket. Default false. */
  readOnly?: boolean | undefined;
}

/** Options of `mountBucket`. */
export type MountBucketOptions = RemoteMountBucketOptions | LocalMountBucketOptions | R2BindingMountBucketOptions;

/** Options of `unmountBucket`. */
export interface UnmountBucketOptions {
  /** Unmount also what is in use or cannot be stored; its bytes are kept on the daemon's host. */
  force?: boolean | undefined;
}

/** What `syncBucket` did. */
export interface SyncBucketResult {
  /** Files that were not in the bucket before, and are now. */
  stored: number;
}

/** A file that is not in the bucket. */
export interface NotStoredFile {
  /** Below the mount. */
  path: string;
  reason: string;
}

/** What `unmountBucket` left behind. */
export interface UnmountBucketResult {
  /** With `force`: files that could not be stored. Their bytes are kept on the daemon's host. Else empty. */
  notStored: NotStoredFile[];
}

/** A mount as the daemon shows it. */
export interface MountInfo {
  /** As in `http://s3-credential-proxy.internal/<mountId>/<bucket>/<key>`, for S3 clients inside. */
  mountId: string;
  mountPath: string;
  mode: 'endpoint' | 'endpoint-proxy' | 'binding' | 'local';
  state: 'serving' | 'draining' | 'failed';
  bucket: string;
  binding: string | null;
  endpoint: string | null;
  /** Begins and ends with `/`. */
  prefix: string;
  readOnly: boolean;
  /** Files that are not in the bucket yet. */
  unstored: number;
  /** What S3 clients inside did with it since the daemon started; absent if they cannot reach it. */
  proxy?: ProxyCounts;
}

/** What went through a mount's door for S3 clients. */
export interface ProxyCounts {
  /** Requests, refused ones too. */
  requests: number;
  /** Requests that a rule refused. */
  refused: number;
  /** Requests that failed at the store, or on the way. */
  failed: number;
  /** Bytes of bodies that the sandbox sent. */
  bytesIn: number;
  /** Bytes of bodies that it got. */
  bytesOut: number;
}

/**
 * What a sandbox reaches of the network beside its mounts. The default is nothing. What `deniedHosts` names is never
 * reached; if `allowedHosts` is not empty, nothing else is reached.
 */
export interface EgressPolicy {
  /** Whether hosts are reached that no list names. Default false. */
  enableInternet?: boolean | undefined;
  /** If not empty: the only hosts that are reached. Names, with `*` for any letters, addresses and ranges. */
  allowedHosts?: string[] | undefined;
  /** Hosts that are never reached. */
  deniedHosts?: string[] | undefined;
  /** Headers that are added to requests to some hosts; the sandbox never sees them. */
  outboundByHost?: Record<string, OutboundOptions> | undefined;
}

/** A policy as it is in force. */
export interface EgressPolicyInForce {
  enableInternet: boolean;
  allowedHosts: string[];
  deniedHosts: string[];
  /** Values of headers are `***`. */
  outboundByHost: Record<string, { headers: Record<string, string>; allowHttp: boolean }>;
}

/** What is added to requests to a host. */
export interface OutboundOptions {
  /** Names and values; `${NAME}` in a value is a secret that the daemon is configured with. Shown as `***`. */
  headers: Record<string, string>;
  /** Whether they are sent over plain HTTP, too. Default false: such requests are refused. */
  allowHttp?: boolean | undefined;
}

/** What commands and background processes have in common. */
export interface CommandOptions {
  /** The exact arguments. With them the command is one program and no shell reads it. */
  args?: string[] | undefined;
  /** Kill the command after this many milliseconds; its exit code is 124 then. */
  timeout?: number | undefined;
  /** Variables for this command; undefined ones are left out. */
  env?: Record<string, string | undefined> | undefined;
  /** Working directory; relative means below `/workspace`. */
  cwd?: string | undefined;
}

/** Options of `execStream`. */
export interface ExecStreamOptions extends CommandOptions {
  /** Stops waiting. The command runs on in the sandbox until it ends or its `timeout` passes. */
  signal?: AbortSignal | undefined;
}

/** Options of `exec`. */
export interface ExecOptions extends ExecStreamOptions {
  /** `false` keeps `onOutput` from being called. */
  stream?: boolean | undefined;
  /** Called with each piece of output as it comes; pieces never split a character. */
  onOutput?: ((stream: 'stdout' | 'stderr', data: string) => void) | undefined;
  /** Called with the result, before the promise resolves. */
  onComplete?: ((result: ExecResult) => void) | undefined;
  /** Called with the error, before the promise rejects. */
  onError?: ((error: Error) => void) | undefined;
}

/** What a command did. */
export interface ExecResult {
  /** Whether the exit code is 0. */
  success: boolean;
  /** The command's own; 127 not found, 126 not executable, 128+n signal n, 124 timed out. */
  exitCode: number;
  stdout: string;
  stderr: string;
  /** The command as it was asked for. */
  command: string;
  /** Milliseconds. */
  duration: number;
  timestamp: string;
  sessionId?: string;
}

/** What `execStream` yields. */
export type ExecEvent =
  | { type: 'start'; timestamp: string; command: string; sessionId?: string }
  | { type: 'stdout' | 'stderr'; timestamp: string; data: string; sessionId?: string }
  | { type: 'complete'; timestamp: string; exitCode: number; result: ExecResult; sessionId?: string };

/** How text is written down. */
export type FileEncoding = 'utf-8' | 'utf8' | 'base64';

/** What `writeFile` takes. */
export type FileContent = string | Uint8Array | ArrayBuffer | Blob | ReadableStream<Uint8Array>;

/** Options of `writeFile`. */
export interface WriteFileOptions {
  /** What a string is. Default `utf-8`. */
  encoding?: FileEncoding | undefined;
  signal?: AbortSignal | undefined;
}

/** Result of `writeFile`. */
export interface WriteFileResult {
  success: boolean;
  path: string;
  timestamp: string;
}

/** Options of `readFile`. */
export interface ReadFileOptions {
  /** How `content` is written. Default: `utf-8` if the file is text, else `base64`. */
  encoding?: FileEncoding | undefined;
  signal?: AbortSignal | undefined;
}

/** Result of `readFile`. */
export interface ReadFileResult {
  success: boolean;
  path: string;
  /** Text, or base64, as `encoding` says. */
  content: string;
  timestamp: string;
  encoding?: 'utf-8' | 'base64';
  /** Whether the bytes are no UTF-8 or hold a NUL. */
  isBinary?: boolean;
  mimeType?: string;
  /** Bytes of the file. */
  size?: number;
}

/** A file or directory. */
export interface FileInfo {
  name: string;
  absolutePath: string;
  /** To the listed directory. */
  relativePath: string;
  type: 'file' | 'directory' | 'symlink' | 'other';
  size: number;
  modifiedAt: string;
  /** Such as `rw-r--r--`. */
  mode: string;
  /** The owner's. */
  permissions: { readable: boolean; writable: boolean; executable: boolean };
}

/** Options of `listFiles`. */
export interface ListFilesOptions {
  /** Whole subtrees; links are not followed. */
  recursive?: boolean | undefined;
  /** Names that begin with `.` too. */
  includeHidden?: boolean | undefined;
}

/** Result of `listFiles`. */
export interface ListFilesResult {
  success: boolean;
  path: string;
  files: FileInfo[];
  count: number;
  timestamp: string;
}

/** Result of `exists`. */
export interface FileExistsResult {
  success: boolean;
  path: string;
  exists: boolean;
  timestamp: string;
}

/** Result of `mkdir`. */
export interface MkdirResult {
  success: boolean;
  path: string;
  recursive: boolean;
  timestamp: string;
}

/** Result of `renameFile` and `moveFile`. */
export interface RenameFileResult {
  success: boolean;
  /** Where it was. */
  path: string;
  newPath: string;
  timestamp: string;
}

/** Result of `deleteFile`. */
export interface DeleteFileResult {
  success: boolean;
  path: string;
  timestamp: string;
}

/** Options of `watch`. */
export interface WatchOptions {
  /** Subdirectories too. Default true. */
  recursive?: boolean | undefined;
  /** Ends the watching. */
  signal?: AbortSignal | undefined;
}

/** What `watch` yields: `watching` first, `stopped` last. */
export type FileWatchEvent =
  | { type: 'watching'; path: string }
  | {
      type: 'event';
      eventType: 'create' | 'modify' | 'delete' | 'move';
      path: string;
      isDirectory: boolean;
      timestamp: string;
    }
  | { type: 'stopped'; reason: string };

/** Options of `startProcess`. */
export interface ProcessOptions extends CommandOptions {
  /** Its name; made by the daemon if absent. */
  processId?: string | undefined;
}

/** What a background process is, as data. */
export interface ProcessInfo {
  id: string;
  /** As the sandbox sees it. */
  pid: number;
  argv: string[];
  /** `argv` as one line, for people. */
  command: string;
  /** `completed`: exit code 0; `killed`: by a signal; `failed`: any other. */
  status: 'running' | 'completed' | 'failed' | 'killed';
  exitCode: number | null;
  startTime: string;
  endTime: string | null;
}

/** The output of a background process that the daemon has kept: the newest bytes of each stream. */
export interface ProcessLogs {
  processId: string;
  stdout: string;
  stderr: string;
}

/** What `streamProcessLogs` yields. */
export type LogEvent =
  | { type: 'stdout' | 'stderr'; timestamp: string; data: string; processId: string }
  | { type: 'exit'; timestamp: string; exitCode: number; processId: string };

/** Options of `createSession`. */
export interface SessionOptions {
  /** `^[a-zA-Z0-9._-]{1,128}$` without `..`; made by the daemon if absent. */
  id?: string | undefined;
  /** Where it starts. Default `/workspace`. */
  cwd?: string | undefined;
  /** Its variables; undefined ones are left out. */
  env?: Record<string, string | undefined> | undefined;
}

/** Result of `deleteSession`. */
export interface DeleteSessionResult {
  success: boolean;
  sessionId: string;
  timestamp: string;
}

/** A sandbox as it is listed. */
export interface SandboxInfo {
  /** The daemon's id. */
  id: string;
  /** What `getSandbox` takes: the id itself, or the name that was encoded as it. */
  name: string;
  running: boolean;
  createdAt: string;
  /** How many mounts it has. */
  mounts: number;
}

/** Something that happened on the daemon. */
export interface DaemonEvent {
  time: string;
  /** `sandbox.created`, `mount.serving`, …; `lagged` with `missed` when this reader was too slow. */
  kind: string;
  sandbox: string | null;
  mountPath: string | null;
  detail: string;
  missed?: number;
}
