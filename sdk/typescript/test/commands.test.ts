import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { SandboxError, getSandbox, type ExecEvent, type Sandbox } from 'sandpail';
import { err, exit, fakeServer, json, out, stream, type FakeServer } from './fake-server.js';

let server: FakeServer;
let sandbox: Sandbox;
beforeEach(async () => {
  server = await fakeServer();
  sandbox = getSandbox({ url: server.url, apiKey: 'k3y', retry: { delay: 1 } }, 'box');
});
afterEach(() => server[Symbol.asyncDispose]());

describe('exec', () => {
  test('a line goes to bash, with the key', async () => {
    server.answer(stream([out('hello\n'), err('oh\n'), exit(3)]));
    const result = await sandbox.exec('echo hello', { timeout: 500, cwd: 'src', env: { A: '1', B: undefined } });
    expect(result).toMatchObject({
      success: false,
      exitCode: 3,
      stdout: 'hello\n',
      stderr: 'oh\n',
      command: 'echo hello',
    });
    expect(result).not.toHaveProperty('sessionId');
    const call = server.calls[0]!;
    expect([call.method, call.url]).toEqual(['POST', '/v1/sandbox/box/exec']);
    expect(call.headers.authorization).toBe('Bearer k3y');
    expect(call.headers['session-id']).toBeUndefined();
    expect(call.json()).toEqual({
      argv: ['bash', '-c', 'echo hello'],
      timeout_ms: 500,
      cwd: 'src',
      scope: 'sandbox',
      env: { A: '1' },
    });
  });

  test('args are exact and need no shell, also none at all', async () => {
    server.answer(stream([exit(0)]));
    await sandbox.exec('ls', { args: ['/data', '$HOME *'] });
    await sandbox.exec('pwd', { args: [] });
    expect(server.calls.map((call) => call.json()['argv'])).toEqual([['ls', '/data', '$HOME *'], ['pwd']]);
  });

  test("a line in a session is the session's own", async () => {
    server.answer(json({ id: 'build' }), stream([exit(0)]));
    const session = await sandbox.createSession({ id: 'build', cwd: '/data', env: { A: 'b', C: undefined } });
    expect((await session.exec('cd src')).sessionId).toBe('build');
    await session.exec('git', { args: ['status'] });
    expect(server.calls[0]!.json()).toEqual({ id: 'build', cwd: '/data', scope: 'sandbox', env: { A: 'b' } });
    expect(server.calls.slice(1).map((call) => [call.headers['session-id'], call.json()['argv']])).toEqual([
      ['build', ['eval', 'cd src']],
      ['build', ['git', 'status']],
    ]);
  });

  test('characters that chunks split are joined, per stream', async () => {
    const text = 'aß€😀\ufeffz';
    const whole = Buffer.from(text);
    for (let at = 0; at <= whole.length; at++) {
      server.answer(stream([out(whole.subarray(0, at)), err('€'), out(whole.subarray(at)), exit(0)]));
      const pieces: string[] = [];
      const result = await sandbox.exec('x', { onOutput: (from, data) => from === 'stdout' && pieces.push(data) });
      expect(result).toMatchObject({ stdout: text, stderr: '€' });
      expect(pieces.join('')).toBe(text);
      expect(pieces.join('')).not.toContain('\ufffd');
    }
  });

  test('half a character at the end is told', async () => {
    server.answer(stream([out(Buffer.from('a€').subarray(0, 2)), exit(0)]));
    expect((await sandbox.exec('x')).stdout).toBe('a\ufffd');
  });

  test('events split at any byte, with comments in between, arrive whole', async () => {
    const whole = Buffer.from(`: keep-alive\n\n${out('one')}: keep-alive\n\n${err('two')}${exit(0)}`);
    server.answer(stream(Array.from(whole, (byte) => Uint8Array.of(byte))));
    expect(await sandbox.exec('x')).toMatchObject({ stdout: 'one', stderr: 'two', exitCode: 0 });
  });

  test('callbacks see output, result and error', async () => {
    const seen: unknown[] = [];
    const options = {
      stream: true,
      onOutput: (from: string, data: string) => seen.push([from, data]),
      onComplete: (result: { exitCode: number }) => seen.push(result.exitCode),
      onError: (error: Error) => seen.push(error.message),
    };
    server.answer(
      stream([out('1'), err('2'), exit(7)]),
      stream(['event: error\ndata: {"error":"no init","code":"exec_error"}\n\n']),
    );
    await sandbox.exec('x', options);
    await expect(sandbox.exec('x', options)).rejects.toMatchObject({
      code: 'EXEC_ERROR',
      message: 'no init',
      operation: 'exec',
    });
    expect(seen).toEqual([['stdout', '1'], ['stderr', '2'], 7, 'no init']);
    server.answer(stream([out('1'), exit(0)]));
    await sandbox.exec('x', { ...options, stream: false });
    expect(seen.slice(4)).toEqual([0]);
  });

  test('a stream without an exit code is an error, not a success', async () => {
    server.answer(stream([out('half')]));
    await expect(sandbox.exec('x')).rejects.toMatchObject({ code: 'EXEC_TRANSPORT_ERROR' });
    server.answer(async (_seen, response) => {
      response.writeHead(200, { 'Content-Type': 'text/event-stream' });
      response.write(out('half'));
      setTimeout(() => response.destroy(), 20);
    });
    await expect(sandbox.exec('x')).rejects.toMatchObject({ code: 'CONNECTION_FAILED' });
  });

  test('abort rejects with its reason and closes the connection', async () => {
    const controller = new AbortController();
    let closed!: Promise<void>;
    server.answer((_seen, response) => {
      closed = new Promise((resolve) => response.on('close', resolve));
      response.writeHead(200, { 'Content-Type': 'text/event-stream' });
      response.write(out('begun'));
    });
    const reason = new Error('enough');
    const running = sandbox.exec('sleep 100', { signal: controller.signal, onOutput: () => controller.abort(reason) });
    await expect(running).rejects.toBe(reason);
    await closed;
    await expect(sandbox.exec('x', { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect(server.calls).toHaveLength(1);
  });

  test('execStream yields start, output, complete; leaving the loop closes the connection', async () => {
    server.answer(stream([out('1'), exit(0)]));
    const events: ExecEvent[] = [];
    for await (const event of sandbox.execStream('x')) events.push(event);
    expect(events.map((event) => event.type)).toEqual(['start', 'stdout', 'complete']);
    expect(events[2]).toMatchObject({ exitCode: 0, result: { stdout: '1', success: true } });

    let closed!: Promise<void>;
    server.answer((_seen, response) => {
      closed = new Promise((resolve) => response.on('close', resolve));
      response.writeHead(200, { 'Content-Type': 'text/event-stream' });
      response.write(out('tick'));
    });
    for await (const event of sandbox.execStream('tail -f x')) if (event.type === 'stdout') break;
    await closed;
  });
});

test('background processes', async () => {
  const info = {
    id: 'web',
    pid: 12,
    argv: ['bash', '-c', 'serve'],
    command: 'bash -c serve',
    status: 'running',
    exitCode: null,
    startTime: '2026-11-24T09:10:00.000Z',
    endTime: null,
  };
  server.answer(
    json(info),
    json({ processes: [info] }),
    json({ ...info, status: 'killed', exitCode: 143 }),
    json({ success: true, processId: 'web', signal: 9 }),
    json({ processId: 'web', stdout: 'o', stderr: 'e', encoding: 'utf-8' }),
    stream([out('o'), exit(143)]),
    json({ success: true, count: 2 }),
    json({ error: "Process 'nope' not found", code: 'process_not_found' }, 404),
  );
  const process = await sandbox.startProcess('serve', { processId: 'web', timeout: 9 });
  expect((await sandbox.listProcesses()).map((each) => each.id)).toEqual(['web']);
  expect(await process.getStatus()).toBe('killed');
  await process.kill('SIGKILL');
  expect(await process.getLogs()).toEqual({ processId: 'web', stdout: 'o', stderr: 'e' });
  expect(await process.wait()).toBe(143);
  expect(await sandbox.killAllProcesses()).toBe(2);
  expect(await sandbox.getProcess('nope')).toBeNull();
  expect(server.calls.map((call) => `${call.method} ${call.url.slice('/v1/sandbox/box'.length)}`)).toEqual([
    'POST /processes',
    'GET /processes',
    'GET /processes/web',
    'DELETE /processes/web?signal=SIGKILL',
    'GET /processes/web/logs',
    'GET /processes/web/logs?follow=true',
    'DELETE /processes',
    'GET /processes/nope',
  ]);
  expect(server.calls[0]!.json()).toEqual({ argv: ['bash', '-c', 'serve'], processId: 'web', timeout_ms: 9 });
  expect(JSON.parse(JSON.stringify(process))).toEqual(info);
});

test('sessions: errors have their classes', async () => {
  server.answer(
    json({ error: "session create failed: Session 's' already exists", code: 'session_error' }, 502),
    json({ error: "session delete failed: Session 's' not found", code: 'session_error' }, 502),
    json({ success: true, sessionId: 's', timestamp: 'now' }),
  );
  await expect(sandbox.createSession({ id: 's' })).rejects.toMatchObject({
    name: 'SessionAlreadyExistsError',
    code: 'SESSION_ALREADY_EXISTS',
    context: { sessionId: 's', sandboxId: 'box' },
  });
  await expect(sandbox.deleteSession('s')).rejects.toBeInstanceOf(SandboxError);
  expect(await sandbox.deleteSession('s')).toMatchObject({ sessionId: 's' });
  expect((await sandbox.getSession('other')).id).toBe('other');
});
