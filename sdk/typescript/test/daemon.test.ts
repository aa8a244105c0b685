/** Against a real daemon (`SANDPAIL_URL`, `SANDPAIL_API_KEY`; binding `MY_BUCKET`): what a fake server cannot show. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { FileSystemError, InvalidMountConfigError, SandboxError, connect, getSandbox, type Sandbox } from 'sandpail';

const url = process.env['SANDPAIL_URL'];
if (!url) console.warn('daemon tests: not run, as SANDPAIL_URL names no daemon');

describe.runIf(url)('a real daemon', () => {
  const daemon = connect();
  const bucket = daemon.env.MY_BUCKET;
  const name = `sdk-test-${Date.now().toString(36)}`;
  let sandbox: Sandbox;
  beforeAll(() => void (sandbox = daemon.sandbox(name)));
  afterAll(async () => {
    await sandbox.destroy();
    for (
      let page = await bucket.list({ prefix: `${name}/` });
      page.objects.length > 0;
      page = await bucket.list({ prefix: `${name}/` })
    ) {
      await bucket.delete(page.objects.map((object) => object.key));
    }
  });

  test('ids: names that people write, and ids that the daemon makes', async () => {
    expect(await sandbox.running()).toBe(false);
    expect((await sandbox.exec('echo up')).stdout).toBe('up\n');
    expect(await sandbox.running()).toBe(true);
    expect((await daemon.listSandboxes()).map((info) => info.name)).toContain(name);
    const made = await daemon.createSandbox();
    expect(made.id).toMatch(/^[a-z2-7]{26}$/);
    expect(made.serverId).toBe(made.id);
    await made.destroy();
    expect(await made.running()).toBe(false);
  });

  test('output of any size and any bytes arrives whole', async () => {
    const result = await sandbox.exec('seq 1 200000; printf "\\360\\237\\230\\200" >&2');
    expect(result.stdout.length).toBe(1_288_895);
    expect(result.stdout.endsWith('\n200000\n')).toBe(true);
    expect(result.stderr).toBe('😀');
  });

  test('exit codes', async () => {
    const codes = [];
    for (const line of ['exit 42', 'kill -9 $$', 'no-such-program', ': > /tmp/plain; /tmp/plain'])
      codes.push((await sandbox.exec(line)).exitCode);
    expect(codes).toEqual([42, 137, 127, 126]);
    expect((await sandbox.exec('exit', { args: ['7'] })).exitCode).toBe(7);
  });

  test('many commands at once', async () => {
    const results = await Promise.all(Array.from({ length: 20 }, (_, i) => sandbox.exec(`sleep 0.2; echo ${i}`)));
    expect(results.map((result) => result.stdout.trim())).toEqual(Array.from({ length: 20 }, (_, i) => String(i)));
  });

  test('file names with every awkward character', async () => {
    for (const file of ['a b', '#?%+&=;:@,$', '%41', 'ü€😀', 'it\'s "quoted"', 'line\nfeed', '..x', '-rf', '*']) {
      await sandbox.writeFile(`/tmp/names/${file}`, file);
      expect((await sandbox.readFile(`/tmp/names/${file}`)).content).toBe(file);
      expect((await sandbox.exec('cat', { args: ['--', `/tmp/names/${file}`] })).stdout).toBe(file);
    }
    expect((await sandbox.listFiles('/tmp/names', { includeHidden: true })).count).toBe(9);
  });

  test('object keys with every awkward character', async () => {
    for (const key of ['a b', '#?%+&=;:@,$', '%41', 'ü€😀', 'd//e', 'd/../e', "it's"]) {
      await bucket.put(`${name}/keys/${key}`, key, { customMetadata: { key } });
      const object = await bucket.get(`${name}/keys/${key}`);
      expect(await object?.text()).toBe(key);
      expect(object?.customMetadata).toEqual({ key });
    }
    expect((await bucket.list({ prefix: `${name}/keys/` })).objects).toHaveLength(7);
    expect(await bucket.head(`${name}/none`)).toBeNull();
    await expect(daemon.bucket('NO_SUCH').head('x')).rejects.toBeInstanceOf(SandboxError);
  });

  test('a mount is used by all methods; read-only is told by name', async () => {
    await sandbox.mountBucket('MY_BUCKET', '/data', { prefix: `/${name}/d/` });
    await sandbox.mountBucket('MY_BUCKET', '/ro', { prefix: `/${name}/d/`, readOnly: true });
    await sandbox.writeFile('/data/a.bin', Uint8Array.of(0, 255));
    expect(await (await bucket.get(`${name}/d/a.bin`))?.bytes()).toEqual(Uint8Array.of(0, 255));
    expect((await sandbox.readFile('/ro/a.bin')).content).toBe('AP8=');
    for (const change of [
      () => sandbox.writeFile('/ro/b', 'x'),
      () => sandbox.deleteFile('/ro/a.bin'),
      () => sandbox.mkdir('/ro/d'),
    ]) {
      const refused: unknown = await change().catch((error: unknown) => error);
      expect(refused).toBeInstanceOf(FileSystemError);
      expect(refused).toMatchObject({
        code: 'READ_ONLY',
        message: expect.stringContaining('Read-only filesystem'),
      });
    }
    await sandbox.moveFile('/data/a.bin', '/tmp/a.bin');
    expect(await bucket.head(`${name}/d/a.bin`)).toBeNull();
    const mounts = await sandbox.listMounts();
    expect(mounts).toMatchObject([
      { mountPath: '/data', readOnly: false },
      { mountPath: '/ro', readOnly: true, state: 'serving', mode: 'binding' },
    ]);
    await sandbox.unmountBucket('/ro/');
    await sandbox.unmountBucket('/data');
    await expect(sandbox.unmountBucket('/data')).rejects.toBeInstanceOf(InvalidMountConfigError);
  });

  test('events tell of a mount', async () => {
    const controller = new AbortController();
    const seen = (async () => {
      for await (const event of daemon.events({ signal: controller.signal }))
        if (event.kind === 'mount.serving') return event;
      return undefined;
    })();
    await new Promise((resolve) => setTimeout(resolve, 200));
    await sandbox.mountBucket('MY_BUCKET', '/evented');
    expect(await seen).toMatchObject({ sandbox: sandbox.serverId, mountPath: '/evented' });
    await sandbox.unmountBucket('/evented');
  });

  test('a wrong key is refused by name', async () => {
    if (!process.env['SANDPAIL_API_KEY']) return;
    await expect(getSandbox({ apiKey: 'wrong' }, name).running()).rejects.toMatchObject({
      code: 'UNAUTHORIZED',
      httpStatus: 401,
    });
  });
});
