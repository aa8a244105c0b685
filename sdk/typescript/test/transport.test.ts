import { inspect } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  ConnectionError,
  ContainerUnavailableError,
  SandboxError,
  connect,
  env,
  getSandbox,
  type Sandbox,
} from 'sandpail';
import { broken, bytes, exit, fakeServer, json, noContent, stream, type FakeServer } from './fake-server.js';

let server: FakeServer;
let sandbox: Sandbox;
beforeEach(async () => {
  server = await fakeServer();
  sandbox = getSandbox({ url: `${server.url}/`, apiKey: 's3cr3t', retry: { count: 2, delay: 1 } }, 'box');
});
afterEach(() => server[Symbol.asyncDispose]());

const full = json({ error: 'instance limit reached', code: 'capacity_exceeded' }, 503);
const odd503 = json({ message: 'a proxy says' }, 503);

describe('retries', () => {
  test('a refusal that began nothing is tried again, whatever the call', async () => {
    server.answer(full, stream([exit(0)]));
    expect((await sandbox.exec('x')).exitCode).toBe(0);
    expect(server.calls).toHaveLength(2);
  });

  test('a 503 of unknown origin only where the call can be repeated', async () => {
    server.answer(odd503);
    await expect(sandbox.exec('x')).rejects.toBeInstanceOf(ContainerUnavailableError);
    expect(server.calls).toHaveLength(1);
    server.answer(odd503, bytes('text'));
    expect((await sandbox.readFile('x')).content).toBe('text');
    expect(server.calls).toHaveLength(3);
  });

  test('end with the error', async () => {
    server.answer(full);
    await expect(sandbox.exec('x')).rejects.toMatchObject({
      code: 'CONTAINER_UNAVAILABLE',
      httpStatus: 503,
      message: 'instance limit reached',
    });
    expect(server.calls).toHaveLength(3);
  });

  test('a broken connection only where the call can be repeated', async () => {
    server.answer(broken, bytes('text'));
    expect((await sandbox.readFile('x')).content).toBe('text');
    server.answer(broken);
    await expect(sandbox.exec('x')).rejects.toBeInstanceOf(ConnectionError);
    expect(server.calls).toHaveLength(3);
  });

  test('no other status is tried again', async () => {
    server.answer(json({ error: 'pool error: no', code: 'pool_error' }, 502));
    await expect(sandbox.readFile('x')).rejects.toMatchObject({ code: 'POOL_ERROR' });
    expect(server.calls).toHaveLength(1);
  });

  test('a streamed body is sent once', async () => {
    server.answer(full);
    await expect(sandbox.writeFile('x', new Blob(['x']).stream())).rejects.toBeInstanceOf(ContainerUnavailableError);
    expect(server.calls).toHaveLength(1);
  });

  test('Retry-After is waited for, and an abort ends the wait', async () => {
    server.answer(json({ error: 'full', code: 'capacity_exceeded' }, 503, { 'Retry-After': '9' }));
    const controller = new AbortController();
    const reading = sandbox.readFile('x', { signal: controller.signal });
    setTimeout(() => controller.abort(new Error('no longer')), 30);
    await expect(reading).rejects.toThrow('no longer');
    expect(server.calls).toHaveLength(1);
  });
});

test('a server that is not there is named, without the key', async () => {
  const { url } = server;
  await server[Symbol.asyncDispose]();
  const gone = getSandbox({ url, apiKey: 's3cr3t', retry: { count: 0 } }, 'box');
  const error = await gone.running().catch((caught: unknown) => caught);
  expect(error).toMatchObject({ name: 'ConnectionError', code: 'CONNECTION_FAILED', httpStatus: 0, context: { url } });
  expect(String(error)).toMatch(/cannot reach the sandpail server at http:\/\/127\.0\.0\.1:\d+: .*ECONNREFUSED/);
  expect(inspect(error, { depth: 20 })).not.toContain('s3cr3t');
});

test('answers that are no JSON are told', async () => {
  server.answer(bytes('<html>'));
  await expect(sandbox.running()).rejects.toMatchObject({ code: 'INVALID_RESPONSE' });
  server.answer((_seen, response) => response.writeHead(504, 'Gateway Timeout').end('<h1>late</h1>'));
  await expect(sandbox.running()).rejects.toMatchObject({
    code: 'HTTP_504',
    message: 'HTTP 504 Gateway Timeout: <h1>late</h1>',
  });
});

test('the key does not follow a redirect', async () => {
  server.answer((_seen, response) => response.writeHead(302, { Location: `${server.url}/elsewhere` }).end());
  await expect(sandbox.running()).rejects.toMatchObject({ code: 'HTTP_302' });
  expect(server.calls).toHaveLength(1);
});

test('no printed object shows the key', async () => {
  const connection = connect({ url: server.url, apiKey: 's3cr3t' });
  const session = await sandbox.getSession('s');
  const things = { sandbox, session, connection, target: connection.env.Sandbox, bucket: connection.env['MY_BUCKET'] };
  for (const [name, thing] of Object.entries(things)) {
    const shown = inspect(thing, { depth: 20, showHidden: true }) + JSON.stringify(thing) + String(thing);
    expect(shown, name).not.toContain('s3cr3t');
  }
  expect(JSON.parse(JSON.stringify(sandbox))).toEqual({ id: 'box' });
});

test('addresses and keys that cannot work are refused without being repeated', () => {
  for (const url of ['s3cr3t', 'ftp://s3cr3t', 'http://user:s3cr3t@host', 'http://s3cr3t@host']) {
    expect(() => connect(url)).toThrow(SandboxError);
    expect(() => connect(url)).not.toThrow(/s3cr3t/);
  }
  expect(() => connect({ apiKey: 's3cr3t\nInjected: 1' })).toThrow('API key');
  expect(() => connect({ apiKey: 's3cr3t\nInjected: 1' })).not.toThrow(/s3cr3t/);
});

test("address and key come from the environment; a file's line feed is no part of the key", async () => {
  const { SANDPAIL_URL, SANDPAIL_API_KEY } = process.env;
  try {
    process.env['SANDPAIL_URL'] = server.url;
    process.env['SANDPAIL_API_KEY'] = 'from-env\n';
    server.answer(json({ running: true }));
    expect(await getSandbox(env.Sandbox, 'a-b').running()).toBe(true);
    expect(await getSandbox({}, 'box').running()).toBe(true);
    expect(await getSandbox(server.url, 'BOX', { normalizeId: true }).running()).toBe(true);
    expect(server.calls.map((call) => call.headers.authorization)).toEqual(Array(3).fill('Bearer from-env'));
    expect(server.calls.map((call) => call.url)).toEqual([
      '/v1/sandbox/sdk7mewwe/running',
      ...Array(2).fill('/v1/sandbox/box/running'),
    ]);
  } finally {
    // Assigning undefined would set the word "undefined".
    for (const [name, value] of Object.entries({ SANDPAIL_URL, SANDPAIL_API_KEY })) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  }
});

test('await using destroys the sandbox', async () => {
  server.answer(noContent);
  {
    await using using = sandbox;
    expect(using.serverId).toBe('box');
  }
  expect(server.calls.map((call) => `${call.method} ${call.url}`)).toEqual(['DELETE /v1/sandbox/box']);
});

test('connect: sandboxes, bindings, events', async () => {
  const connection = connect({ url: server.url });
  server.answer(
    json({ id: 'abcdefghijklmnopqrstuvwxyz' }),
    json({ sandboxes: [{ id: 'sdk7mewwe', running: true }] }),
    json({ bindings: ['B'] }),
    stream([
      'event: mount.serving\ndata: {"time":"t","kind":"mount.serving","sandbox":"box","mountPath":"/d"}\n\n',
      'event: lagged\ndata: {"missed":3}\n\n',
    ]),
  );
  expect((await connection.createSandbox()).serverId).toBe('abcdefghijklmnopqrstuvwxyz');
  expect(await connection.listSandboxes()).toMatchObject([{ id: 'sdk7mewwe', name: 'a-b' }]);
  expect(await connection.listBindings()).toEqual(['B']);
  const seen = [];
  for await (const event of connection.events()) seen.push(event);
  expect(seen).toMatchObject([
    { kind: 'mount.serving', sandbox: 'box' },
    { kind: 'lagged', missed: 3 },
  ]);
});
