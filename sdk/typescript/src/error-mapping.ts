/** Turns the server's error envelope into the classes of `errors.ts`: the one place where that is decided. */

import {
  BucketMountError,
  BucketSyncError,
  BucketUnmountError,
  ConnectionError,
  ContainerUnavailableError,
  FileNotFoundError,
  FileSystemError,
  FileTooLargeError,
  InvalidMountConfigError,
  MissingCredentialsError,
  PermissionDeniedError,
  ProcessNotFoundError,
  S3FSMountError,
  SandboxError,
  SessionAlreadyExistsError,
  SessionNotFoundError,
  type SandboxErrorDetails,
} from './errors.js';

/** The body of an error answer; members other than `error` and `code` are there for some errors only. */
export interface ErrorEnvelope {
  error: string;
  code: string;
  name?: string | undefined;
  sdkCode?: string | undefined;
  errno?: string | undefined;
  path?: string | undefined;
}

/** What the caller was doing, for the error's context. */
export interface Operation {
  /** The method's name, such as `readFile`. */
  name: string;
  /** What it was about; never a key. */
  context?: Record<string, unknown>;
}

const READ_ONLY_MESSAGE = 'Read-only filesystem';

/** errno -> code of the {@link FileSystemError}. */
const FILE_SYSTEM_CODES: Record<string, string> = {
  EROFS: 'READ_ONLY',
  EISDIR: 'IS_DIRECTORY',
  ENOTDIR: 'NOT_DIRECTORY',
  ENOSPC: 'NO_SPACE',
  EDQUOT: 'NO_SPACE',
  EEXIST: 'FILE_EXISTS',
  ENOTEMPTY: 'DIRECTORY_NOT_EMPTY',
  ENAMETOOLONG: 'NAME_TOO_LONG',
  ELOOP: 'TOO_MANY_LINKS',
  EXDEV: 'CROSS_DEVICE',
  EBUSY: 'RESOURCE_BUSY',
  EIO: 'IO_ERROR',
  ESTALE: 'STALE_FILE',
};

/** Methods whose errors are {@link BucketMountError}s. */
const MOUNT_OPERATIONS = new Set(['mountBucket', 'unmountBucket', 'syncBucket']);

/** Codes of the server whose failure is about a file. */
const FILE_CODES = new Set(['file_error', 'exec_transport_error', 'workspace_archive_write_error']);

/** Reads an error answer to its end and makes the error from it. */
export async function errorFromResponse(response: Response, operation: Operation): Promise<Error> {
  const text = await response.text().catch(() => '');
  return errorFromEnvelope(parseEnvelope(text, response), response.status, operation);
}

/** Makes the error of `envelope`. */
export function errorFromEnvelope(envelope: ErrorEnvelope, httpStatus: number, operation: Operation): Error {
  if (MOUNT_OPERATIONS.has(operation.name)) {
    const error = mountError(envelope, httpStatus);
    if (error) return error;
  }
  const { code, error: message, errno } = envelope;
  const details: SandboxErrorDetails = {
    code: code.toUpperCase(),
    message,
    httpStatus,
    context: {
      ...operation.context,
      serverCode: code,
      ...(envelope.path && { path: envelope.path }),
      ...(errno && { errno }),
    },
    operation: operation.name,
  };
  const as = <T extends SandboxError>(
    Class: new (details: SandboxErrorDetails) => T,
    more: Partial<SandboxErrorDetails>,
  ) => new Class({ ...details, ...more });

  switch (code) {
    case 'workspace_read_not_found':
      return as(FileNotFoundError, { code: 'FILE_NOT_FOUND' });
    case 'payload_too_large':
      return as(FileTooLargeError, {
        code: 'FILE_TOO_LARGE',
        suggestion: 'Raise the upload limit of the server, or send less.',
      });
    case 'capacity_exceeded':
    case 'unavailable':
      return as(ContainerUnavailableError, {
        code: 'CONTAINER_UNAVAILABLE',
        suggestion: 'Try again later, or destroy sandboxes.',
      });
    case 'process_not_found':
      return as(ProcessNotFoundError, { code: 'PROCESS_NOT_FOUND' });
    case 'unauthorized':
      return as(SandboxError, { suggestion: 'Set SANDPAIL_API_KEY, or pass apiKey, to the key of the server.' });
    case 'session_error':
      if (/already exists/.test(message)) return as(SessionAlreadyExistsError, { code: 'SESSION_ALREADY_EXISTS' });
      if (/not found/.test(message)) return as(SessionNotFoundError, { code: 'SESSION_NOT_FOUND' });
      return as(SandboxError, {});
  }
  // The contract has 400 here, for clients that know no 413.
  if (message.startsWith('tar payload too large')) return as(FileTooLargeError, { code: 'FILE_TOO_LARGE' });
  if (httpStatus === 503) return as(ContainerUnavailableError, { code: 'CONTAINER_UNAVAILABLE' });
  return fileError(envelope, as) ?? as(SandboxError, {});
}

/** The connection could not be made, or broke. */
export function connectionError(
  cause: unknown,
  url: string,
  operation: Operation,
  text = 'cannot reach',
): ConnectionError {
  const why = cause instanceof Error ? innermost(cause).message : String(cause);
  return new ConnectionError(
    {
      code: 'CONNECTION_FAILED',
      message: `${operation.name}: ${text} the sandpail server at ${url}: ${why}`,
      httpStatus: 0,
      context: { ...operation.context, url },
      operation: operation.name,
      suggestion: 'Is `sandpail serve` running there? SANDPAIL_URL or `url` says where it is.',
    },
    { cause },
  );
}

/** An argument that no request could be made from. */
export function invalidArgument(message: string, operation: string, context?: Record<string, unknown>): SandboxError {
  return new SandboxError({ code: 'INVALID_REQUEST', message, httpStatus: 0, operation, ...(context && { context }) });
}

function fileError(
  envelope: ErrorEnvelope,
  as: <T extends SandboxError>(Class: new (details: SandboxErrorDetails) => T, more: Partial<SandboxErrorDetails>) => T,
): SandboxError | undefined {
  const errno = envelope.errno ?? (FILE_CODES.has(envelope.code) ? errnoFromText(envelope.error) : undefined);
  if (errno === undefined) return envelope.code === 'file_error' ? as(FileSystemError, {}) : undefined;
  if (errno === 'ENOENT') return as(FileNotFoundError, { code: 'FILE_NOT_FOUND' });
  if (errno === 'EACCES' || errno === 'EPERM') return as(PermissionDeniedError, { code: 'PERMISSION_DENIED' });
  const code = FILE_SYSTEM_CODES[errno] ?? errno;
  if (code !== 'READ_ONLY') return as(FileSystemError, { code });
  // The contract promises this spelling; the system's own is "Read-only file system".
  const message = envelope.error.includes(READ_ONLY_MESSAGE)
    ? envelope.error
    : `${envelope.error.replace(/read-only file ?system/i, '').replace(/[:\s]+$/, '')}: ${READ_ONLY_MESSAGE}`;
  return as(FileSystemError, {
    code,
    message,
    suggestion: 'The mount is read-only: mount it with readOnly: false to write.',
  });
}

/** For servers that do not send `errno`. */
function errnoFromText(text: string): string | undefined {
  if (/read-only file ?system/i.test(text)) return 'EROFS';
  if (/is a directory/i.test(text)) return 'EISDIR';
  if (/no space left|disk quota exceeded/i.test(text)) return 'ENOSPC';
  if (/permission denied|operation not permitted/i.test(text)) return 'EACCES';
  if (/no such file/i.test(text)) return 'ENOENT';
  return undefined;
}

function mountError(envelope: ErrorEnvelope, httpStatus: number): BucketMountError | undefined {
  const message = envelope.error.replace(/^(mount|unmount|sync) failed: /, '');
  switch (envelope.name) {
    case 'InvalidMountConfigError':
      return new InvalidMountConfigError(message);
    case 'MissingCredentialsError':
      return new MissingCredentialsError(message);
    case 'S3FSMountError':
      return new S3FSMountError(message);
    case 'BucketUnmountError':
      return new BucketUnmountError(message);
  }
  if (envelope.code === 'sync_error') return new BucketSyncError(message);
  // A class that this version does not know still is a mount error, with the code it came with.
  if (envelope.code === 'mount_error') return new BucketMountError(message, envelope.sdkCode);
  if (envelope.code === 'unmount_error') {
    return message.startsWith('No active mount')
      ? new InvalidMountConfigError(message)
      : new BucketUnmountError(message);
  }
  // The form of the request was refused: for callers of mountBucket that is a wrong configuration.
  if (envelope.code === 'invalid_request' && httpStatus === 400) return new InvalidMountConfigError(message);
  return undefined;
}

function parseEnvelope(text: string, response: Response): ErrorEnvelope {
  try {
    const body: unknown = JSON.parse(text);
    if (typeof body === 'object' && body !== null && 'error' in body && typeof body.error === 'string') {
      const members = body as Record<string, unknown>;
      const optional = (name: string) => (typeof members[name] === 'string' ? members[name] : undefined);
      return {
        error: body.error,
        code: optional('code') ?? `http_${response.status}`,
        name: optional('name'),
        sdkCode: optional('sdkCode'),
        errno: optional('errno'),
        path: optional('path'),
      };
    }
  } catch {
    // Not our envelope (a proxy's page, for example): described below.
  }
  const start = text.trim().slice(0, 200);
  return {
    error: `HTTP ${response.status} ${response.statusText}`.trim() + (start && `: ${start}`),
    code: `http_${response.status}`,
  };
}

/** `fetch` says only "fetch failed"; what happened is in the cause. */
function innermost(error: Error): Error {
  let inner = error;
  while (inner.cause instanceof Error) inner = inner.cause;
  return inner.message === '' ? error : inner;
}
