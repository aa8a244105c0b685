/** One bucket, mounted several times: other prefixes, other rights, in one sandbox and in another. */

import { FileSystemError, env, getSandbox } from 'sandpail';
import { check, freshName, refused, removeAll } from './support.js';

const name = freshName('several');
const bucket = env.MY_BUCKET;
await bucket.put(`${name}/models/weights.bin`, 'weights');

await using sandbox = getSandbox(env.Sandbox, name);
await Promise.all([
  sandbox.mountBucket('MY_BUCKET', '/models', { prefix: `/${name}/models/`, readOnly: true }),
  sandbox.mountBucket('MY_BUCKET', '/out', { prefix: `/${name}/out/` }),
  sandbox.mountBucket('MY_BUCKET', '/all', { prefix: `/${name}/` }),
]);
const mounts = (await sandbox.listMounts()).map((mount) => mount.mountPath).sort();
check(mounts.join() === '/all,/models,/out', 'three mounts of one bucket');

await refused(sandbox.writeFile('/models/x', ''), FileSystemError, 'Read-only filesystem');
check((await sandbox.exec('cp /models/weights.bin /out/copy.bin')).success, 'from one to the other');
check((await sandbox.exec('cat /all/out/copy.bin')).stdout === 'weights', 'and seen at once through the third');

await using other = getSandbox(env.Sandbox, `${name}-other`);
await other.mountBucket('MY_BUCKET', '/data', { prefix: `/${name}/` });
await sandbox.exec('echo new > /out/new.txt');
check((await other.exec('cat /data/out/new.txt')).stdout === 'new\n', 'and through the mount of another sandbox');

await sandbox.unmountBucket('/models');
check((await sandbox.exec('ls /out')).success, 'the others go on when one is unmounted');
await removeAll(bucket, `${name}/`);
