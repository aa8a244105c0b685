/** `localBucket`: a plain directory of the sandbox and the bucket are kept equal, both ways. */

import { env, getSandbox } from 'sandpail';
import { check, eventually, freshName, removeAll } from './support.js';

const name = freshName('local');
const bucket = env.MY_BUCKET;
await bucket.put(`${name}/before.txt`, 'was there');

await using sandbox = getSandbox(env.Sandbox, name);
await sandbox.mountBucket('MY_BUCKET', '/data', { localBucket: true, prefix: `/${name}/` });
check(
  (await sandbox.readFile('/data/before.txt')).content === 'was there',
  'the first sync is done when mountBucket resolves',
);

await sandbox.exec('echo inside > /data/inside.txt');
await eventually('a file of the sandbox becomes an object', () => bucket.head(`${name}/inside.txt`));
await bucket.put(`${name}/outside.txt`, 'outside');
await eventually('an object becomes a file', async () => (await sandbox.exists('/data/outside.txt')).exists);
await bucket.delete(`${name}/before.txt`);
await eventually('a deletion arrives too', async () => !(await sandbox.exists('/data/before.txt')).exists);

await sandbox.exec('echo last > /data/last.txt');
await sandbox.unmountBucket('/data');
check((await bucket.head(`${name}/last.txt`)) !== null, 'unmountBucket syncs once more');
check((await sandbox.exists('/data/inside.txt')).exists, 'and leaves the files');
await removeAll(bucket, `${name}/`);
