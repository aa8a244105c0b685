import { afterEach, beforeEach, expect, test } from 'vitest';
import {
  FileNotFoundError,
  FileSystemError,
  FileTooLargeError,
  PermissionDeniedError,
  getSandbox,
  type Sandbox,
} from 'sandpail';
import { bytes, fakeServer, json, noContent, stream, type FakeServer } from './fake-server.js';

let server: FakeServer;
let sandbox: Sandbox;
beforeEach(async () => {
  server = await fakeServer();
  sandbox = getSandbox({ url: server.url, retry: { delay: 1 } }, 'box');
});
afterEach(() => server[Symbol.asyncDispose]());
const urls = () => server.calls.map((call) => `${call.method} ${call.url.slice('/v1/sandbox/box'.length)}`);

test('paths are resolved as text and encoded once', async () => {
  server.answer(json({ ok: true }));
  for (const path of ['/data/a b#?%+é.txt', 'a.txt', './d/../../tmp//x/', '/../etc/passwd'])
    await sandbox.writeFile(path, '');
  expect(urls()).toEqual([
    'PUT /file/data/a%20b%23%3F%25%2B%C3%A9.txt?scope=sandbox',
    'PUT /file/workspace/a.txt?scope=sandbox',
    'PUT /file/tmp/x?scope=sandbox',
    'PUT /file/etc/passwd?scope=sandbox',
  ]);
  await expect(sandbox.readFile('')).rejects.toMatchObject({ code: 'INVALID_REQUEST' });
  await expect(sandbox.readFile('/a\ud800')).rejects.toMatchObject({ code: 'INVALID_REQUEST' });
});

test('writeFile takes every kind of content', async () => {
  server.answer(json({ ok: true }));
  const raw = Uint8Array.of(0, 255, 128);
  const streamed = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(raw.slice(0, 1));
      controller.enqueue(raw.slice(1));
      controller.close();
    },
  });
  expect(await sandbox.writeFile('a', 'grüß')).toMatchObject({ success: true, path: '/workspace/a' });
  await sandbox.writeFile('a', 'AP+A', { encoding: 'base64' });
  for (const content of [raw, raw.buffer, new Blob([raw]), streamed]) await sandbox.writeFile('a', content);
  expect(server.calls.map((call) => call.body.toString('hex'))).toEqual([
    Buffer.from('grüß').toString('hex'),
    ...Array(5).fill('00ff80'),
  ]);
  await expect(sandbox.writeFile('a', 'n@t', { encoding: 'base64' })).rejects.toMatchObject({
    code: 'INVALID_REQUEST',
  });
  expect(server.calls).toHaveLength(6);
});

test('readFile tells text from bytes', async () => {
  const cases: [string | Uint8Array, Parameters<Sandbox['readFile']>[1], object][] = [
    ['\ufeffgrüß', {}, { content: '\ufeffgrüß', encoding: 'utf-8', isBinary: false, size: 9 }],
    ['', {}, { content: '', encoding: 'utf-8', isBinary: false, size: 0 }],
    [Uint8Array.of(0, 255, 128), {}, { content: 'AP+A', encoding: 'base64', isBinary: true, size: 3 }],
    ['a\0b', {}, { content: 'YQBi', encoding: 'base64', isBinary: true }],
    [Uint8Array.of(97, 255), { encoding: 'utf-8' }, { content: 'a\ufffd', encoding: 'utf-8', isBinary: true }],
    ['text', { encoding: 'base64' }, { content: 'dGV4dA==', encoding: 'base64', isBinary: false }],
  ];
  for (const [body, options, expected] of cases) {
    server.answer(bytes(body));
    expect(await sandbox.readFile('/d/f.csv', options)).toMatchObject({
      success: true,
      path: '/d/f.csv',
      mimeType: 'text/csv',
      ...expected,
    });
  }
  const large = new Uint8Array(300_000).map((_, i) => i * 7);
  server.answer(bytes(large));
  expect(Buffer.from((await sandbox.readFile('f')).content, 'base64').equals(large)).toBe(true);
  // Not toEqual, which takes seconds for so many bytes.
  expect(Buffer.from(await sandbox.readFileBytes('f')).equals(large)).toBe(true);
  const streamed = await new Response(await sandbox.readFileStream('f')).arrayBuffer();
  expect(Buffer.from(streamed).equals(large)).toBe(true);
});

test('errors have their classes', async () => {
  const cases: [number, object, new (...args: never) => Error, object][] = [
    [
      404,
      { error: 'File not found: /a', code: 'workspace_read_not_found', errno: 'ENOENT', path: '/a' },
      FileNotFoundError,
      {
        name: 'FileNotFoundError',
        code: 'FILE_NOT_FOUND',
        httpStatus: 404,
        operation: 'writeFile',
        context: { path: '/a' },
      },
    ],
    [
      502,
      { error: 'write failed: Read-only filesystem', code: 'workspace_archive_write_error', errno: 'EROFS' },
      FileSystemError,
      { code: 'READ_ONLY', message: 'write failed: Read-only filesystem' },
    ],
    [
      502,
      { error: 'write failed: a: Read-only file system (os error 30)', code: 'workspace_archive_write_error' },
      FileSystemError,
      { code: 'READ_ONLY', message: expect.stringContaining('Read-only filesystem') },
    ],
    [
      502,
      { error: 'read failed: it', code: 'exec_transport_error', errno: 'EISDIR' },
      FileSystemError,
      { code: 'IS_DIRECTORY' },
    ],
    [502, { error: 'it', code: 'file_error', errno: 'EDQUOT' }, FileSystemError, { code: 'NO_SPACE' }],
    [502, { error: 'it', code: 'file_error', errno: 'ENOVEL' }, FileSystemError, { code: 'ENOVEL' }],
    [502, { error: 'it', code: 'file_error', errno: 'EACCES' }, PermissionDeniedError, { code: 'PERMISSION_DENIED' }],
    [
      413,
      { error: 'payload too large: 9 bytes exceeds the 5-byte limit', code: 'payload_too_large' },
      FileTooLargeError,
      { code: 'FILE_TOO_LARGE' },
    ],
  ];
  for (const [status, envelope, Class, expected] of cases) {
    server.answer(json(envelope, status));
    const failed = sandbox.writeFile('/a', 'x');
    await expect(failed).rejects.toBeInstanceOf(Class);
    await expect(failed).rejects.toMatchObject(expected);
  }
});

test('directories', async () => {
  server.answer(
    json({ success: true, path: '/workspace', files: [], count: 0, timestamp: 't', exists: false, newPath: '/b' }),
  );
  await sandbox.mkdir('d/e', { recursive: true });
  await sandbox.listFiles();
  await sandbox.listFiles('/data', { recursive: true, includeHidden: true });
  expect((await sandbox.exists('/data/x')).exists).toBe(false);
  await sandbox.stat('x');
  await sandbox.renameFile('a', '/b');
  await sandbox.moveFile('/a', 'b');
  await sandbox.deleteFile('/data/x');
  await sandbox.deleteFile('d', { recursive: true });
  expect(urls()).toEqual([
    'POST /mkdir',
    'GET /files?path=%2Fworkspace',
    'GET /files?path=%2Fdata&recursive=true&hidden=true',
    'GET /exists?path=%2Fdata%2Fx',
    'GET /stat?path=%2Fworkspace%2Fx',
    'POST /rename',
    'POST /rename',
    'DELETE /file/data/x?scope=sandbox',
    'DELETE /file/workspace/d?scope=sandbox&recursive=true',
  ]);
  expect(server.calls[0]!.json()).toEqual({ path: '/workspace/d/e', recursive: true });
  expect(server.calls[5]!.json()).toEqual({ oldPath: '/workspace/a', newPath: '/b' });
});

test('watch yields until it is left', async () => {
  const change = { type: 'event', eventType: 'create', path: '/data/x', isDirectory: false, timestamp: 't' };
  server.answer(
    stream(
      [
        'event: watching\ndata: {"type":"watching","path":"/data"}\n\n',
        `event: change\ndata: ${JSON.stringify(change)}\n\n`,
      ],
      true,
    ),
  );
  const seen: unknown[] = [];
  for await (const event of sandbox.watch('/data', { recursive: false })) {
    seen.push(event);
    if (event.type === 'event') break;
  }
  expect(seen).toEqual([{ type: 'watching', path: '/data' }, change]);
  expect(urls()).toEqual(['GET /watch?path=%2Fdata&recursive=false']);
});

test('persist and hydrate', async () => {
  server.answer(bytes('tar'), json({ ok: true }), noContent);
  const tar = await sandbox.persist({ excludes: ['node_modules', 'a b'] });
  await sandbox.hydrate(tar);
  await sandbox.destroy();
  expect(urls()).toEqual(['POST /persist?excludes=node_modules%2Ca%20b', 'POST /hydrate', 'DELETE ']);
  expect(server.calls[1]!.body.toString()).toBe('tar');
  server.answer(
    json({ error: 'tar payload too large: 9 bytes exceeds the 5-byte limit', code: 'invalid_request' }, 400),
  );
  await expect(sandbox.hydrate(new Uint8Array(9))).rejects.toBeInstanceOf(FileTooLargeError);
});
