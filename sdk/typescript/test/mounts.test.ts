import { afterEach, beforeEach, expect, test } from 'vitest';
import * as sandpail from 'sandpail';
import {
  BucketMountError,
  BucketSyncError,
  BucketUnmountError,
  InvalidMountConfigError,
  MissingCredentialsError,
  S3FSMountError,
  SandboxError,
  getSandbox,
  type MountBucketOptions,
  type Sandbox,
} from 'sandpail';
import { fakeServer, json, type FakeServer } from './fake-server.js';

let server: FakeServer;
let sandbox: Sandbox;
beforeEach(async () => {
  server = await fakeServer();
  sandbox = getSandbox({ url: server.url, retry: { delay: 1 } }, 'box');
});
afterEach(() => server[Symbol.asyncDispose]());

test('mountBucket sends binding or bucket', async () => {
  server.answer(json({ ok: true }));
  const endpoint = 'https://s3.example.com';
  const credentials = { accessKeyId: 'id', secretAccessKey: 'secret' };
  const cases: [MountBucketOptions | undefined, object][] = [
    [undefined, { binding: 'B', options: {} }],
    [
      { prefix: '/p/', readOnly: true, s3fsOptions: ['nomultipart'] },
      { binding: 'B', options: { prefix: '/p/', readOnly: true, s3fsOptions: ['nomultipart'] } },
    ],
    [
      { localBucket: true, prefix: '/p' },
      { binding: 'B', options: { localBucket: true, prefix: '/p' } },
    ],
    [{ localBucket: false }, { binding: 'B', options: {} }],
    [
      { pathClasses: [{ glob: '**/build/', class: 'local' }], agent: true },
      { binding: 'B', options: { pathClasses: [{ glob: '**/build/', class: 'local' }], agent: true } },
    ],
    [
      { endpoint, provider: 's3', credentials, credentialProxy: true },
      { bucket: 'B', options: { endpoint, provider: 's3', credentials, credentialProxy: true } },
    ],
    [
      { endpoint, readOnly: false, credentials: undefined },
      { bucket: 'B', options: { endpoint, readOnly: false } },
    ],
  ];
  for (const [options, expected] of cases) {
    await sandbox.mountBucket('B', '/data', options);
    expect(server.calls.at(-1)!.json()).toEqual({ mountPath: '/data', ...expected });
  }
  await sandbox.unmountBucket('/data');
  await sandbox.unmountBucket('/data', { force: true });
  expect(server.calls.slice(-2).map((call) => [call.url, call.json()])).toEqual([
    ['/v1/sandbox/box/unmount', { mountPath: '/data' }],
    ['/v1/sandbox/box/unmount', { mountPath: '/data', force: true }],
  ]);
});

test('mount errors have their classes, codes and texts', async () => {
  const cases: [string, string, typeof BucketMountError][] = [
    ['InvalidMountConfigError', 'INVALID_MOUNT_CONFIG', InvalidMountConfigError as never],
    ['MissingCredentialsError', 'MISSING_CREDENTIALS', MissingCredentialsError as never],
    ['S3FSMountError', 'S3FS_MOUNT_ERROR', S3FSMountError as never],
    ['BucketUnmountError', 'BUCKET_UNMOUNT_ERROR', BucketUnmountError as never],
    ['BucketMountError', 'BUCKET_MOUNT_ERROR', BucketMountError],
    ['NovelError', 'NOVEL', BucketMountError],
  ];
  for (const [name, sdkCode, Class] of cases) {
    server.answer(json({ error: 'mount failed: S3FS mount failed: why', code: 'mount_error', name, sdkCode }, 502));
    const error = await sandbox.mountBucket('B', '/data').catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(Class);
    expect(error).toBeInstanceOf(BucketMountError);
    expect(error).not.toBeInstanceOf(SandboxError);
    expect(error).toMatchObject({ code: sdkCode, message: 'S3FS mount failed: why' });
    if (name in sandpail) expect((error as Error).name).toBe(name);
  }
});

test('errors without a class name fall back', async () => {
  server.answer(json({ error: 'mount failed: why', code: 'mount_error' }, 502));
  await expect(sandbox.mountBucket('B', '/data')).rejects.toMatchObject({ name: 'BucketMountError', message: 'why' });
  server.answer(json({ error: 'unmount failed: No active mount found at path: /x', code: 'unmount_error' }, 502));
  await expect(sandbox.unmountBucket('/x')).rejects.toMatchObject({
    name: 'InvalidMountConfigError',
    message: 'No active mount found at path: /x',
  });
  server.answer(json({ error: 'unmount failed: busy: cat (12)', code: 'unmount_error' }, 502));
  await expect(sandbox.unmountBucket('/x')).rejects.toMatchObject({
    name: 'BucketUnmountError',
    code: 'BUCKET_UNMOUNT_ERROR',
  });
  server.answer(json({ error: 'options.prefix must be a string when provided', code: 'invalid_request' }, 400));
  await expect(sandbox.mountBucket('B', '/x')).rejects.toBeInstanceOf(InvalidMountConfigError);
  server.answer(json({ error: 'Unauthorized', code: 'unauthorized' }, 401));
  await expect(sandbox.mountBucket('B', '/x')).rejects.toMatchObject({
    name: 'SandboxError',
    code: 'UNAUTHORIZED',
    httpStatus: 401,
  });
});

test('syncBucket resolves when everything is stored, and rejects with the files that are not', async () => {
  server.answer(json({ ok: true, stored: 3, failed: [] }));
  expect(await sandbox.syncBucket('/data')).toEqual({ stored: 3 });
  expect(server.calls.map((call) => [call.url, call.json()])).toEqual([
    ['/v1/sandbox/box/mounts/sync', { mountPath: '/data' }],
  ]);
  const failed = Array.from({ length: 6 }, (_, n) => ({ path: `/f${n}`, reason: 'access denied' }));
  server.answer(json({ ok: false, stored: 1, failed }));
  const error = await sandbox.syncBucket('/data').catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(BucketSyncError);
  expect(error).toBeInstanceOf(BucketMountError);
  expect(error).toMatchObject({ name: 'BucketSyncError', code: 'BUCKET_SYNC_ERROR', stored: 1, failed });
  expect((error as Error).message).toMatch(/^6 file\(s\) could not be stored: \/f0: access denied, .*\/f4: [^,]*, …$/);
  server.answer(
    json({ error: 'sync failed: Cannot sync /data: why', code: 'sync_error', name: 'BucketMountError' }, 502),
  );
  await expect(sandbox.syncBucket('/data')).rejects.toMatchObject({
    name: 'BucketSyncError',
    message: 'Cannot sync /data: why',
    failed: [],
  });
  const name = 'InvalidMountConfigError';
  server.answer(json({ error: 'sync failed: No active mount found at path: /x', code: 'sync_error', name }, 502));
  await expect(sandbox.syncBucket('/x')).rejects.toBeInstanceOf(InvalidMountConfigError);
});

test('unmountBucket tells what it left behind', async () => {
  server.answer(json({ ok: true }));
  expect(await sandbox.unmountBucket('/data')).toEqual({ notStored: [] });
  const notStored = [{ path: '/late', reason: 'access denied' }];
  server.answer(json({ ok: true, notStored }));
  expect(await sandbox.unmountBucket('/data', { force: true })).toEqual({ notStored });
});

test("a relative mount path is refused with the contract's text", async () => {
  for (const call of [
    () => sandbox.mountBucket('B', 'data'),
    () => sandbox.unmountBucket('data'),
    () => sandbox.syncBucket('data'),
  ]) {
    await expect(call()).rejects.toMatchObject({
      name: 'InvalidMountConfigError',
      message: 'Mount path must be absolute (start with /): "data"',
    });
  }
  expect(server.calls).toHaveLength(0);
});

test('listMounts', async () => {
  server.answer(json({ mounts: [{ mountPath: '/data', mode: 'binding', state: 'serving' }] }));
  expect(await sandbox.listMounts()).toEqual([{ mountPath: '/data', mode: 'binding', state: 'serving' }]);
});

test('ContainerProxy can be exported again', () => {
  expect(new sandpail.ContainerProxy()).toBeInstanceOf(sandpail.ContainerProxy);
});
