/** A sandbox that is destroyed keeps nothing; the bucket keeps everything. */

import { env, getSandbox } from 'sandpail';
import { check, freshName, removeAll } from './support.js';

const name = freshName('survives');
const sandbox = getSandbox(env.Sandbox, name);
await sandbox.mountBucket('MY_BUCKET', '/data', { prefix: `/${name}/` });
await sandbox.writeFile('/data/checkpoint.json', '{"step":1}');
await sandbox.exec('head -c 5000000 /dev/zero > /data/zeros.bin; echo own > /workspace/own.txt');
check(await sandbox.running(), 'it runs');
await sandbox.destroy();
check(!(await sandbox.running()), 'it is gone');

check((await env.MY_BUCKET.head(`${name}/zeros.bin`))?.size === 5_000_000, 'what was written is in the bucket');
await using again = getSandbox(env.Sandbox, name);
check(!(await again.exists('/workspace/own.txt')).exists, 'the same id starts afresh');
await again.mountBucket('MY_BUCKET', '/data', { prefix: `/${name}/` });
check(
  (await again.readFile('/data/checkpoint.json')).content === '{"step":1}',
  'and finds its data by mounting it again',
);
await removeAll(env.MY_BUCKET, `${name}/`);
