import { afterEach, beforeEach, expect, test } from 'vitest';
import { connect, getSandbox, type WebSocketConstructor } from 'sandpail';

/** A WebSocket whose server is the test. */
class FakeSocket extends EventTarget {
  static last: FakeSocket;
  binaryType = '';
  readyState = 1;
  sent: (string | Uint8Array)[] = [];
  closed: number | undefined;
  constructor(
    readonly url: string,
    readonly options: { headers: Record<string, string> },
  ) {
    super();
    FakeSocket.last = this;
  }
  send(data: string | Uint8Array) {
    this.sent.push(data);
  }
  close(code?: number) {
    this.closed = code;
    this.dispatchEvent(Object.assign(new Event('close'), { code, reason: '' }));
  }
  say(data: unknown) {
    this.dispatchEvent(
      Object.assign(new Event('message'), {
        data: typeof data === 'string' || data instanceof ArrayBuffer ? data : JSON.stringify(data),
      }),
    );
  }
}

const text = (bytes: Uint8Array | string | undefined) =>
  typeof bytes === 'string' ? bytes : new TextDecoder().decode(bytes);
const encode = (data: string) => new TextEncoder().encode(data).buffer;
const target = { url: 'https://host/base', apiKey: 'k3y', WebSocket: FakeSocket as unknown as WebSocketConstructor };

test('a terminal: replayed output, ready, typing, resize, exit', async () => {
  const session = await getSandbox(target, 'box').getSession('s');
  const opening = session.terminal({ cols: 100, shell: '/bin/sh' });
  await new Promise(setImmediate);
  const socket = FakeSocket.last;
  expect(socket.url).toBe('wss://host/base/v1/sandbox/box/pty?cols=100&rows=24&shell=%2Fbin%2Fsh&session=s');
  expect(socket.options.headers).toEqual({ Authorization: 'Bearer k3y' });
  expect(socket.binaryType).toBe('arraybuffer');
  socket.say(encode('old'));
  socket.say({ type: 'ready' });
  const terminal = await opening;
  const seen: string[] = [];
  const off = terminal.on('data', (bytes) => seen.push(text(bytes)));
  socket.say(encode('new'));
  off();
  expect(seen).toEqual(['old', 'new']);
  terminal.write('ls\n');
  terminal.resize(120, 30);
  expect(socket.sent.map(text)).toEqual(['ls\n', '{"type":"resize","cols":120,"rows":30}']);
  expect(socket.sent[0]).toBeInstanceOf(Uint8Array);
  const errors: Error[] = [];
  terminal.on('error', (error) => errors.push(error));
  socket.say({ type: 'error', message: 'Invalid dimensions' });
  expect(errors.map(String)).toEqual(['SandboxError: Invalid dimensions']);
  const exits: unknown[] = [];
  terminal.on('exit', (exit) => exits.push(exit));
  socket.say({ type: 'exit', code: 137, signal: 'SIGKILL' });
  socket.close(1000);
  expect(await terminal.exited).toEqual({ code: 137, signal: 'SIGKILL' });
  expect(exits).toEqual([{ code: 137, signal: 'SIGKILL' }]);
});

test('a connection that is refused or ends early is an error', async () => {
  const sandbox = getSandbox(target, 'box');
  const refused = sandbox.terminal();
  await new Promise(setImmediate);
  FakeSocket.last.dispatchEvent(new Event('error'));
  await expect(refused).rejects.toMatchObject({ code: 'CONNECTION_FAILED' });
  const opening = sandbox.terminal();
  await new Promise(setImmediate);
  FakeSocket.last.say({ type: 'ready' });
  const terminal = await opening;
  terminal.close();
  expect(FakeSocket.last.closed).toBe(1000);
  await expect(terminal.exited).rejects.toMatchObject({ code: 'TERMINAL_CLOSED' });
});

const globals = globalThis as { WebSocket?: unknown };
let saved: unknown;
beforeEach(() => void (saved = globals.WebSocket));
afterEach(() => void (globals.WebSocket = saved));

test('a runtime without WebSocket is told what to do', async () => {
  globals.WebSocket = undefined;
  await expect(connect('http://host').sandbox('box').terminal()).rejects.toMatchObject({
    code: 'NO_WEBSOCKET',
    suggestion: expect.stringContaining('--experimental-websocket'),
  });
});
