/**
 * Sandboxes with buckets mounted as directories: the client of `sandpail serve`.
 *
 * @packageDocumentation
 */

export * from './bucket.js';
export * from './connect.js';
export { ContainerProxy } from './container-proxy.js';
export * from './errors.js';
export { sandboxIdOf, sandboxNameOf } from './ids.js';
export { Process } from './process.js';
export { ExecutionSession, Sandbox, SandboxTarget, getSandbox, type GetSandboxOptions } from './sandbox.js';
export { parseSSEStream } from './sse.js';
export { Terminal, type TerminalEvents, type TerminalExit, type TerminalOptions } from './terminal.js';
export type { ConnectionOptions, RetryOptions, WebSocketConstructor, WebSocketLike } from './transport.js';
export type * from './types.js';
export type { Workspace } from './workspace.js';
