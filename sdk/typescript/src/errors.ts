/**
 * What can go wrong, as classes that callers test with `instanceof` and by `code`.
 *
 * Two families: {@link SandboxError} for sandboxes, commands and files, and {@link BucketMountError} for mounts. No
 * error ever holds a key. The server's envelope becomes an error in `error-mapping.ts` and nowhere else.
 */

import type { NotStoredFile } from './types.js';

/** What a {@link SandboxError} is made from. */
export interface SandboxErrorDetails {
  /** Stable code in upper case, such as `FILE_NOT_FOUND`. */
  code: string;
  /** Text for people. */
  message: string;
  /** Status of the HTTP answer; 0 if there was none. */
  httpStatus: number;
  /** What the error is about: `path`, `sandboxId`, … */
  context?: Record<string, unknown>;
  /** The method that failed, such as `readFile`. */
  operation?: string;
  /** What to do about it. */
  suggestion?: string;
}

/** Base of the errors of sandboxes, commands, sessions and files; itself the fallback for codes that have no class. */
export class SandboxError extends Error {
  /** Stable code in upper case. */
  readonly code: string;
  /** Status of the HTTP answer; 0 if there was none. */
  readonly httpStatus: number;
  /** What the error is about: `path`, `sandboxId`, … */
  readonly context: Record<string, unknown>;
  /** The method that failed, such as `readFile`. */
  readonly operation: string | undefined;
  /** What to do about it. */
  readonly suggestion: string | undefined;

  constructor(details: SandboxErrorDetails, options?: { cause?: unknown }) {
    super(details.message, options);
    this.name = new.target.name;
    this.code = details.code;
    this.httpStatus = details.httpStatus;
    this.context = details.context ?? {};
    this.operation = details.operation;
    this.suggestion = details.suggestion;
  }

  /** The error as plain data, for logs. */
  toJSON(): Record<string, unknown> {
    const { name, code, message, httpStatus, context, operation, suggestion } = this;
    return { name, code, message, httpStatus, context, operation, suggestion };
  }
}

/** `FILE_NOT_FOUND`: nothing is at the path. */
export class FileNotFoundError extends SandboxError {}

/** `PERMISSION_DENIED`: the sandbox's own file permissions, or the bucket's keys, do not allow it. */
export class PermissionDeniedError extends SandboxError {}

/** Any other file error: `READ_ONLY`, `IS_DIRECTORY`, `NOT_DIRECTORY`, `NO_SPACE`, `FILE_EXISTS`, … */
export class FileSystemError extends SandboxError {}

/** `FILE_TOO_LARGE`: the body exceeds the server's upload limit. */
export class FileTooLargeError extends SandboxError {}

/** `SESSION_ALREADY_EXISTS`: the session id is taken. */
export class SessionAlreadyExistsError extends SandboxError {}

/** `SESSION_NOT_FOUND`: no session has this id. */
export class SessionNotFoundError extends SandboxError {}

/** `PROCESS_NOT_FOUND`: no background process has this id. */
export class ProcessNotFoundError extends SandboxError {}

/** `CONTAINER_UNAVAILABLE` (503): the server is full or stopping; retried before it reaches the caller. */
export class ContainerUnavailableError extends SandboxError {}

/** `CONNECTION_FAILED`: the server could not be reached, or the connection broke. */
export class ConnectionError extends SandboxError {}

/** Base of the errors of `mountBucket`, `syncBucket` and `unmountBucket`. */
export class BucketMountError extends Error {
  /** Stable code, such as `MISSING_CREDENTIALS`. */
  readonly code: string;

  constructor(message: string, code = 'BUCKET_MOUNT_ERROR', options?: { cause?: unknown }) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
  }
}

/** `INVALID_MOUNT_CONFIG`: names, paths or options are wrong; nothing was tried. */
export class InvalidMountConfigError extends BucketMountError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, 'INVALID_MOUNT_CONFIG', options);
  }
}

/** `MISSING_CREDENTIALS`: none were given, and the server's environment and configuration hold none. */
export class MissingCredentialsError extends BucketMountError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, 'MISSING_CREDENTIALS', options);
  }
}

/** `S3FS_MOUNT_ERROR`: the bucket could not be mounted; the message says why. The name is kept for moved code. */
export class S3FSMountError extends BucketMountError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, 'S3FS_MOUNT_ERROR', options);
  }
}

/** `BUCKET_SYNC_ERROR`: not everything is in the bucket. What is not is kept, and tried again. */
export class BucketSyncError extends BucketMountError {
  /** The files that could not be stored; empty if the daemon could not find out. */
  readonly failed: NotStoredFile[];
  /** Files that were not in the bucket before, and are now. */
  readonly stored: number;

  constructor(message: string, failed: NotStoredFile[] = [], stored = 0, options?: { cause?: unknown }) {
    super(message, 'BUCKET_SYNC_ERROR', options);
    this.failed = failed;
    this.stored = stored;
  }
}

/** `BUCKET_UNMOUNT_ERROR`: it could not be unmounted and stays usable. */
export class BucketUnmountError extends BucketMountError {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, 'BUCKET_UNMOUNT_ERROR', options);
  }
}
