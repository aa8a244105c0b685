import { afterEach, beforeEach, expect, test } from 'vitest';
import { connect, type R2Bucket } from 'sandpail';
import { bytes, fakeServer, json, noContent, type FakeServer } from './fake-server.js';

let server: FakeServer;
let bucket: R2Bucket;
beforeEach(async () => {
  server = await fakeServer();
  bucket = connect({ url: server.url, retry: { delay: 1 } }).env.MY_BUCKET;
});
afterEach(() => server[Symbol.asyncDispose]());

const object = {
  key: 'a/ü#',
  size: 3,
  etag: 'e1',
  httpEtag: '"e1"',
  uploaded: '2026-11-24T09:10:00.000Z',
  httpMetadata: {},
  customMetadata: {},
};
const headers = {
  ETag: '"e1"',
  'X-Object-Size': '3',
  'X-Object-Uploaded': object.uploaded,
  'Content-Type': 'text/csv',
  'X-Object-Metadata': '{"k":"\\u00fc"}',
};
const missing = json({ error: 'no object', code: 'object_not_found' }, 404);

test('put', async () => {
  server.answer(json(object));
  const options = { httpMetadata: { contentType: 'text/csv' }, customMetadata: { k: 'ü😀' } };
  expect(await bucket.put('a/ü#', 'abc', options)).toMatchObject({
    key: 'a/ü#',
    etag: 'e1',
    uploaded: new Date(object.uploaded),
  });
  const call = server.calls[0]!;
  expect(`${call.method} ${call.url}`).toBe('PUT /v1/bindings/MY_BUCKET/objects/a%2F%C3%BC%23');
  expect(call.headers['content-type']).toBe('text/csv');
  expect(call.headers['x-object-metadata']).toBe('{"k":"\\u00fc\\ud83d\\ude00"}');
  expect(JSON.parse(String(call.headers['x-object-metadata']))).toEqual({ k: 'ü😀' });

  const raw = Uint8Array.of(1, 2, 3, 4);
  for (const value of [raw.subarray(1, 3), raw.buffer, new Blob([raw]), null, new Blob([raw]).stream()])
    await bucket.put('k', value);
  expect(server.calls.slice(1).map((each) => each.body.toString('hex'))).toEqual([
    '0203',
    '01020304',
    '01020304',
    '',
    '01020304',
  ]);
  await bucket.put('k', 'x', { httpMetadata: new Headers({ 'Content-Type': 'text/html' }) });
  expect(server.calls.at(-1)!.headers['content-type']).toBe('text/html');
  await expect(bucket.put('k', 'x', { httpMetadata: { cacheControl: 'no' } as never })).rejects.toThrow('cacheControl');
});

test('get and head', async () => {
  server.answer(bytes('abc', headers));
  const got = (await bucket.get('a/ü#'))!;
  expect(got).toMatchObject({
    key: 'a/ü#',
    size: 3,
    etag: 'e1',
    httpEtag: '"e1"',
    httpMetadata: { contentType: 'text/csv' },
    customMetadata: { k: 'ü' },
  });
  expect(got.bodyUsed).toBe(false);
  expect(await got.text()).toBe('abc');
  expect(got.bodyUsed).toBe(true);
  const answer = new Headers();
  got.writeHttpMetadata(answer);
  expect(answer.get('content-type')).toBe('text/csv');
  expect(await (await bucket.get('k'))!.arrayBuffer()).toEqual(Uint8Array.of(97, 98, 99).buffer);
  expect(await new Response((await bucket.get('k'))!.body).text()).toBe('abc');
  server.answer(bytes('{"a":1}', headers));
  expect(await (await bucket.get('k'))!.json()).toEqual({ a: 1 });
  expect(await bucket.head('k')).toMatchObject({ size: 3, etag: 'e1' });
  expect(server.calls.at(-1)!.method).toBe('HEAD');
});

test('ranges', async () => {
  server.answer(bytes('abc', headers));
  for (const range of [{ offset: 2 }, { offset: 2, length: 3 }, { length: 3 }, { suffix: 4 }])
    await (await bucket.get('k', { range }))!.text();
  expect(server.calls.map((call) => call.headers.range)).toEqual(['bytes=2-', 'bytes=2-4', 'bytes=0-2', 'bytes=-4']);
});

test('a missing object is null, a missing binding an error', async () => {
  server.answer(missing);
  expect(await bucket.get('k')).toBeNull();
  expect(await bucket.head('k')).toBeNull();
  server.answer(json({ error: 'R2 binding "MY_BUCKET" not found', code: 'binding_not_found' }, 404));
  await expect(bucket.get('k')).rejects.toMatchObject({ code: 'BINDING_NOT_FOUND' });
  await expect(bucket.head('k')).rejects.toMatchObject({ code: 'BINDING_NOT_FOUND' });
});

test('list and delete', async () => {
  server.answer(json({ objects: [object], truncated: true, cursor: 'c1', delimitedPrefixes: ['a/'] }));
  expect(await bucket.list({ prefix: 'a', delimiter: '/', cursor: 'c0', limit: 5000 })).toMatchObject({
    objects: [{ key: 'a/ü#' }],
    truncated: true,
    cursor: 'c1',
    delimitedPrefixes: ['a/'],
  });
  expect(server.calls[0]!.url).toBe('/v1/bindings/MY_BUCKET/objects?prefix=a&delimiter=%2F&cursor=c0&limit=1000');
  server.answer(json({ objects: [], truncated: false, delimitedPrefixes: [] }));
  expect(await bucket.list()).toEqual({ objects: [], truncated: false, delimitedPrefixes: [] });
  server.answer(noContent);
  await bucket.delete('k');
  await bucket.delete(['k', '..']);
  await bucket.delete([]);
  expect(server.calls.slice(2).map((call) => [call.url, call.json()])).toEqual([
    ['/v1/bindings/MY_BUCKET/delete', { keys: ['k'] }],
    ['/v1/bindings/MY_BUCKET/delete', { keys: ['k', '..'] }],
  ]);
});

test('keys that no URL can name are refused', async () => {
  for (const key of ['', '.', '..']) await expect(bucket.get(key)).rejects.toMatchObject({ code: 'INVALID_REQUEST' });
});
