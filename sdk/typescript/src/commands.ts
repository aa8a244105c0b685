/** Commands as requests, and their event streams as text. Shared by `exec`, `execStream` and process logs. */

import { fromBase64, utf8Stream } from './encoding.js';
import { errorFromEnvelope, type ErrorEnvelope, type Operation } from './error-mapping.js';
import { SandboxError } from './errors.js';
import type { ServerSentEvent } from './sse.js';
import type { CommandOptions } from './types.js';

/**
 * The words to run: with `args` a program and its exact arguments; else a line for a shell, which in a session is the
 * session's own (`eval`), so that `cd` and `export` last.
 */
export function argvOf(command: string, args: string[] | undefined, inSession: boolean): string[] {
  if (args) return [command, ...args];
  return inSession ? ['eval', command] : ['bash', '-c', command];
}

/** The body of an exec or process request. */
export function commandBody(argv: string[], options: CommandOptions): Record<string, unknown> {
  return {
    argv,
    timeout_ms: options.timeout,
    env: definedOnly(options.env),
    // Trusted code may name any directory of the sandbox, not only those below /workspace.
    ...(options.cwd !== undefined && { cwd: options.cwd, scope: 'sandbox' }),
  };
}

/** Without the variables that are undefined. */
export function definedOnly(env: Record<string, string | undefined> | undefined): Record<string, string> | undefined {
  if (!env) return undefined;
  return Object.fromEntries(Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined));
}

/** What a command says, as text: pieces never split a character. */
export type Output = { type: 'stdout' | 'stderr'; data: string } | { type: 'exit'; exitCode: number };

/** Decodes the events of a command. Throws if it could not be run or watched, or if the stream ends too early. */
export async function* outputOf(
  events: AsyncIterable<ServerSentEvent>,
  operation: Operation,
): AsyncGenerator<Output, void, undefined> {
  const decoders = { stdout: utf8Stream(), stderr: utf8Stream() };
  for await (const { event, data } of events) {
    if (event === 'stdout' || event === 'stderr') {
      const text = decoders[event].decode(fromBase64(data), { stream: true });
      if (text !== '') yield { type: event, data: text };
    } else if (event === 'exit') {
      for (const type of ['stdout', 'stderr'] as const) {
        // Half a character at the very end becomes U+FFFD.
        const text = decoders[type].decode();
        if (text !== '') yield { type, data: text };
      }
      yield { type: 'exit', exitCode: (JSON.parse(data) as { exit_code: number }).exit_code };
      return;
    } else if (event === 'error') {
      throw errorFromEnvelope(JSON.parse(data) as ErrorEnvelope, 200, operation);
    }
  }
  throw new SandboxError({
    code: 'EXEC_TRANSPORT_ERROR',
    message: `${operation.name}: the stream ended before the command's exit code`,
    httpStatus: 200,
    operation: operation.name,
    ...(operation.context && { context: operation.context }),
  });
}
